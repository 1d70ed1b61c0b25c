"""Rank schedules that were never run: predicted milliseconds with an interval, each program's from fastest to slowest.

    python rank_schedules.py my_samples/
    python rank_schedules.py a.featurization b.json more.tar.xz --output ranked.csv
    python rank_schedules.py my_samples/ --checkpoint runs/default/best.safetensors --stages true
    python rank_schedules.py my_samples/ --measured a_few_of_them/
    python rank_schedules.py my_generator.py --stages true
    python rank_schedules.py my_generators.py my_samples/ --generator blur

Reads the same formats as generate_dataset.py, runtimes not needed, and a checkpoint (default: models/default.safetensors). Unusable dumps
are listed on standard error. Writes the table to --output: program, instance (the program at one size), rank, predicted_ms,
lower_ms, upper_ms, file.

A Python file of Halide Generators or build(), or an executable of C++ ones, stands for the schedule that its author wrote, or, where there
is none, for the program as it stands. Nothing of it is compiled or run. It is ranked among the dumps of the same program.

Warnings on standard error: features outside the training range; intervals that are known to be too narrow for some kind of program, or
were calibrated on too few programs; measured schedules that contradict the intervals, which are then widened.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic_settings import CliPositionalArg

import train_utils
from config import Config, UserError, load_config, run_script
from dumps.companions import call_counts, is_built
from dumps.files import Dump, Unusable, iter_dumps
from dumps.parsing import hex_id, parse_dump
from evaluation import intervals
from evaluation.correction import correct
from features import INPUTS, featurize, inputs_of


class RankConfig(Config):
    paths: CliPositionalArg[list[str]] = Field(
        min_length=1,
        description="dumps, folders or archives to rank; Python files of Halide Generators or build(), or executables of C++ ones",
    )
    generator: str = Field("", description="which Generator of a program given; empty: all")
    params: str = Field("", description='GeneratorParams and open types of a program given, as "NAME=VALUE NAME=VALUE"')
    target: str = Field("host", description="Halide target that a program given is lowered for")
    checkpoint: str = Field("models/default.safetensors", description="model to rank with")
    output: str = Field("", description="write the table to this CSV file")
    measured: str = Field("", description="dumps with runtimes of some schedules of these programs, to correct the predictions by")
    stages: bool = Field(False, description="print the predicted cost of each stage, too")


def is_program(path):
    """Whether a path names a program rather than dumps: a Python file, or an executable."""
    try:
        with open(path, "rb") as f:
            return path.endswith(".py") or is_built(f.read(8))
    except OSError:
        return path.endswith(".py")


def featurize_programs(config, paths):
    """([(what it is, Schedule)] of each program in `paths`, {what it is: names of its stages}, a line for each that can't be predicted)."""
    # Halide is loaded only where there is a program: dumps need none.
    from halide_tools.programs import default_threads, find_programs
    from measuring.candidate import prepare_processes
    from measuring.processes import featurize_author, on_all_cores

    found, names, left_out = [], {}, []
    try:
        options = config.generator, config.params, config.target, config.num_threads or default_threads()
        specs = [(path, spec) for path in paths for spec in find_programs(path, *options)]
    except ValueError as error:
        raise UserError(str(error)) from None
    prepare_processes()
    for path, spec in specs:
        failures = []
        told = on_all_cores(featurize_author, spec, [path], failures=failures, cores=1).get(path)
        if told is None:
            left_out.append(f"left out {path}: {spec.name}: {failures[0].reason}: {failures[0].detail}")
            continue
        calls = call_counts(told["calls"])
        program = parse_dump(Dump(f"{path}.featurization", "", data=told["featurization"], calls=calls), math.inf, need_runtime=False)
        label = f"{path}: {spec.name} ({'as its author scheduled it' if told['is_written'] else 'as it stands'})"
        found.append((label, program.another(told["counts"], told["hash"])))
        names[label] = told["stages"]
    return found, names, left_out


def read_schedules(paths, max_runtime_ms, need_runtime):
    """[(file, Schedule)] of every usable dump, and a line for each of the others."""
    found, left_out = [], []
    for path in paths:
        for dump in iter_dumps(path):
            try:
                found.append((dump.file, parse_dump(dump, max_runtime_ms, need_runtime)))
            except Unusable as unusable:
                left_out.append(f"left out {dump.file}: {unusable}")
    return found, left_out


def check_found(paths, found, left_out):
    """Raises UserError where nothing in `paths` is usable."""
    if not found:
        why = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"{', '.join(paths)}: nothing usable in it{why}; docs/data_formats.md lists the formats that are read")


def inputs_of_schedules(schedules):
    """Which of features.INPUTS each has, (N,)."""
    return inputs_of(*(np.array(flags) for flags in zip(*((s.lowered is not None, s.has_schedule_features) for s in schedules))))


def corrections(measured, model, meta, device):
    """{(instance, which of features.INPUTS): Correction} of the predictions, from the Schedules that were measured."""
    predictions = train_utils.predict_sequences(model, featurize(measured), device)
    half_widths = intervals.half_widths(meta, inputs_of_schedules(measured), [p.spread for p in predictions])
    found = {}
    for schedule, prediction, half_width in zip(measured, predictions, half_widths):
        row = np.log(schedule.runtime_ms) - prediction.log_runtime, half_width, prediction.event_shares
        found.setdefault(schedule.instance, []).append(row)
    return {
        (instance, inputs): correct(*map(np.array, zip(*of_program)), meta["errors"][inputs]["covariance"], meta["interval"])
        for instance, of_program in found.items()
        for inputs in INPUTS
    }


def rank(files, schedules, predictions, corrected, meta):
    """The table of all schedules, programs together, each program's fastest first; with columns `outside`, `stages` and `widened`."""
    inputs, instances = inputs_of_schedules(schedules), np.array([s.instance for s in schedules])
    log_predicted = np.array([p.log_runtime for p in predictions])
    half_width = intervals.half_widths(meta, inputs, [p.spread for p in predictions])
    widened = np.zeros(len(schedules), bool)
    for (instance, one), correction in corrected.items():
        at = np.flatnonzero((instances == instance) & (inputs == one))
        if len(at):
            offsets, factors = correction.of(np.array([predictions[i].event_shares for i in at]))
            log_predicted[at] += offsets
            half_width[at] *= factors
            widened[at] = correction.widened
    lower, upper = log_predicted - half_width, log_predicted + half_width
    table = pd.DataFrame({
        "program": [hex_id(s.program) for s in schedules], "instance": [hex_id(s.instance) for s in schedules],
        "predicted_ms": np.exp(log_predicted), "lower_ms": np.exp(lower), "upper_ms": np.exp(upper), "file": files,
        "outside": [p.outside for p in predictions], "stages": [p.shares for p in predictions], "widened": widened,
    })  # fmt: skip
    table = table.sort_values(["program", "instance", "predicted_ms", "file"], kind="stable", ignore_index=True)
    table.insert(2, "rank", table.groupby("instance").cumcount() + 1)
    return table


def print_table(table, level, stages, names):
    """names : {file: names of its stages}, of programs."""
    for (program, _), rows in table.groupby(["program", "instance"], sort=False):
        print(f"program {program}: {len(rows)} schedules; {level:.0%} interval")
        for row in rows.itertuples():
            print(f"{row.rank:6d}  {row.predicted_ms:12.4f} ms  {row.lower_ms:12.4f} to {row.upper_ms:12.4f}  {row.file}")
            for i, share in enumerate(row.stages if stages else []):
                name = f"  {names[row.file][i]}" if row.file in names else ""
                print(f"{'':8}stage {i:3d}  {share * row.predicted_ms:12.4f} ms  {share:6.1%}{name}")


def warnings_of(table, schedules, meta, checkpoint):
    """Lines about predictions and intervals that should not be trusted."""
    lines = []
    unfamiliar = table[table.outside > intervals.UNFAMILIAR_SHARE]
    if len(unfamiliar):
        lines.append(
            f"{len(unfamiliar)} of {len(table)} schedules have features far outside what {checkpoint.name} was trained on (up to "
            f"{unfamiliar.outside.max():.0%} of them, in {unfamiliar.file.iloc[0]}): do not trust their milliseconds"
        )
    if widened := table.instance[table.widened].nunique():
        lines.append(
            f"the measured schedules of {widened} of {table.instance.nunique()} programs contradict the intervals of {checkpoint.name} "
            "(another machine or kind of program?): these programs' intervals are widened to hold what was measured"
        )
    lines += intervals.coverage_warnings(meta.get("coverage", {}))
    if warning := intervals.calibration_warning(meta, inputs_of_schedules(schedules)):
        lines.append(warning)
    return lines


def main():
    config = load_config(RankConfig)
    device = train_utils.pick_device(config)
    checkpoint = Path(config.checkpoint if "checkpoint" in config.model_fields_set else train_utils.SHIPPED_MODEL)
    model, meta = train_utils.load_model(checkpoint, device, config.precision)
    train_utils.agree_with_checkpoint(config, meta, checkpoint, "interval")
    programs = [path for path in config.paths if is_program(path)]
    if not programs and (given := {"generator", "params", "target"} & config.model_fields_set):
        raise UserError(f"--{min(given)}: is about programs, and {', '.join(config.paths)} holds dumps; leave it out, or give a program")
    found, left_out = read_schedules([path for path in config.paths if path not in programs], config.max_runtime_ms, need_runtime=False)
    predictable, names, unpredictable = featurize_programs(config, programs) if programs else ([], {}, [])
    found, left_out = predictable + found, left_out + unpredictable
    check_found(config.paths, found, left_out)
    files, schedules = zip(*found)
    corrected = {}
    if config.measured:
        measured, unusable = read_schedules([config.measured], config.max_runtime_ms, need_runtime=True)
        check_found([config.measured], measured, unusable)
        corrected = corrections([schedule for _, schedule in measured], model, meta, device)
        left_out += unusable
    table = rank(files, schedules, train_utils.predict_sequences(model, featurize(schedules), device), corrected, meta)
    if config.output:
        try:
            table.drop(columns=["outside", "stages", "widened"]).to_csv(config.output, index=False)
        except OSError as error:
            raise UserError(f"{config.output}: can't be written ({error.strerror or error}); give another --output") from None
    print(*left_out, sep="\n", end="\n" if left_out else "", file=sys.stderr)
    print_table(table, meta["interval"], config.stages, names)
    for line in warnings_of(table, schedules, meta, checkpoint):
        print(f"warning: {line}", file=sys.stderr)
    if config.output:
        print(f"written to {config.output}")


if __name__ == "__main__":
    run_script(main)
