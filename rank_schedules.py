"""Rank schedules that were never run: predicted milliseconds with an interval, each program's from fastest to slowest.

    python rank_schedules.py my_samples/
    python rank_schedules.py a.featurization b.json more.tar.xz --output ranked.csv
    python rank_schedules.py my_samples/ --checkpoint runs/default/best.safetensors --stages true
    python rank_schedules.py my_samples/ --measured a_few_of_them/

Reads the same formats as generate_dataset.py, runtimes not needed, and a checkpoint (models/default.safetensors unless told). What
can't be used is listed on standard error. Writes the table to --output: program, instance (the program at one size), rank, predicted_ms, lower_ms, upper_ms, file.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic_settings import CliPositionalArg

import train_utils
from config import Config, UserError, load_config, run_script
from dumps.files import Unusable, iter_dumps
from dumps.parsing import hex_id, parse_dump
from evaluation import intervals
from features import featurize

UNFAMILIAR_SHARE = 0.01  # of a schedule's inputs outside the range seen in training: worth a warning


class RankConfig(Config):
    paths: CliPositionalArg[list[str]] = Field(min_length=1, description="dumps, folders or archives to rank")
    checkpoint: str = Field("models/default.safetensors", description="model to rank with")
    output: str = Field("", description="write the table to this CSV file")
    measured: str = Field(
        "", description="dumps with runtimes of some of these programs' schedules, by which the predictions are corrected"
    )
    stages: bool = Field(False, description="print the predicted cost of each stage, too")


def read_schedules(paths, max_runtime_ms, need_runtime):
    """[(file, Schedule)] of every usable dump, and a line for each of the others."""
    found, left_out = [], []
    for path in paths:
        for dump in iter_dumps(path):
            try:
                found.append((dump.file, parse_dump(dump, max_runtime_ms, need_runtime)))
            except Unusable as unusable:
                left_out.append(f"left out {dump.file}: {unusable}")
    if not found:
        why = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"{', '.join(paths)}: no usable dump in it{why}; README.md lists the formats that are read")
    return found, left_out


def corrections(measured, model, meta, device):
    """{instance: (offset in log-runtime, what is left of the error)} from the Schedules that were measured."""
    residuals, components = {}, {}
    for schedule, (predicted, _, _) in zip(measured, train_utils.predict_sequences(model, featurize(measured), device)):
        residuals.setdefault(schedule.instance, []).append(np.log(schedule.runtime_ms) - predicted)
        components[schedule.instance] = intervals.errors_of(meta, schedule.lowered is not None)["offset_variance"]
    return {i: (intervals.offset(r, components[i]), intervals.remaining_error(len(r), components[i])) for i, r in residuals.items()}


def main():
    config = load_config(RankConfig)
    device = train_utils.pick_device(config)
    checkpoint = config.checkpoint if "checkpoint" in config.model_fields_set else train_utils.SHIPPED_MODEL
    model, meta = train_utils.load_model(checkpoint, device, config.precision)
    found, left_out = read_schedules(config.paths, config.max_runtime_ms, need_runtime=False)
    files, schedules = zip(*found)
    predictions = train_utils.predict_sequences(model, featurize(schedules), device)
    corrected = {}
    if config.measured:
        measured, unusable = read_schedules([config.measured], config.max_runtime_ms, need_runtime=True)
        corrected = corrections([schedule for _, schedule in measured], model, meta, device)
        left_out += unusable
    for line in left_out:
        print(line, file=sys.stderr)
    offsets, left = np.array([corrected.get(s.instance, (0.0, 1.0)) for s in schedules]).T
    log_predicted = np.array([p for p, _, _ in predictions]) + offsets
    half_width = np.array([intervals.errors_of(meta, s.lowered is not None)["log_half_width"] for s in schedules]) * left
    table = pd.DataFrame({
        "program": [hex_id(s.program) for s in schedules], "instance": [hex_id(s.instance) for s in schedules],
        "predicted_ms": np.exp(log_predicted), "lower_ms": np.exp(log_predicted - half_width), "upper_ms": np.exp(log_predicted + half_width),
        "file": files, "outside": [o for _, _, o in predictions], "stages": [s for _, s, _ in predictions],
    })  # fmt: skip
    table = table.sort_values(["program", "instance", "predicted_ms", "file"], kind="stable", ignore_index=True)
    table.insert(2, "rank", table.groupby("instance").cumcount() + 1)

    for (program, _), rows in table.groupby(["program", "instance"], sort=False):
        print(f"program {program}: {len(rows)} schedules; {meta['interval']:.0%} interval")
        for row in rows.itertuples():
            print(f"{row.rank:6d}  {row.predicted_ms:12.4f} ms  {row.lower_ms:12.4f} to {row.upper_ms:12.4f}  {row.file}")
            if config.stages:
                for i, share in enumerate(row.stages):
                    print(f"{'':8}stage {i:3d}  {share * row.predicted_ms:12.4f} ms  {share:6.1%}")
    unfamiliar = table[table.outside > UNFAMILIAR_SHARE]
    if len(unfamiliar):
        print(
            f"warning: {len(unfamiliar)} of {len(table)} schedules have features far outside what {Path(checkpoint).name} was trained on "
            f"(up to {unfamiliar.outside.max():.0%} of them, in {unfamiliar.file.iloc[0]}): do not trust their milliseconds", file=sys.stderr,
        )  # fmt: skip
    if config.output:
        try:
            table.drop(columns=["outside", "stages"]).to_csv(config.output, index=False)
        except OSError as error:
            raise UserError(f"{config.output}: can't be written ({error.strerror or error}); give another --output") from None
        print(f"written to {config.output}")


if __name__ == "__main__":
    run_script(main)
