"""Export a trained model: as one ONNX file, or as weights for Halide's own Adams2019 autoscheduler.

    python export_model.py --format onnx --output cost_model.onnx
    python export_model.py --format weights --output mine.weights

onnx: inputs are raw features (B, T, F) float32, as features.featurize gives them, and lengths (B,) int64; outputs are predicted_ms,
lower_ms and upper_ms, (B,) float32. B and T are free, and B may be 0. The names of the features, in order, are in the file's metadata
under `features`, as JSON.

weights: Adams2019's own network, trained on the measured schedules of data_path's training split, and on the LSTM's predictions for
schedules of other random programs that were not measured. The result is averaged with the weights that Halide ships, since a search
loses more by an error of the weights than it gains by an improvement. An unmodified Halide reads the file through `weights_path`.
"""

# ruff: noqa: E402
import os

os.environ.setdefault(
    "TORCH_CPP_LOG_LEVEL", "ERROR"
)  # read by torch when imported; its exporter says of each LSTM that it can't infer a shape

import json
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from pydantic import Field
from torch import nn
from torch.onnx.operators import shape_as_tensor
from tqdm import tqdm

import data_utils
import train_utils
from batches import Sequences
from config import Config, UserError, load_config, make_folder, run_script
from dumps.companions import call_counts
from evaluation import adams2019, baselines, intervals
from features import FEATURES, FLAG_COLUMNS, INPUTS, featurize
from halide_tools.autoschedulers import Proposal, baseline_weights, write_weights
from halide_tools.programs import ProgramSpec, describe_stages
from measuring.candidate import prepare_processes
from measuring.processes import count, on_all_cores, propose
from tuning.pool import proposed_schedule

OPSET = 17
UNMEASURED_FROM = 1_000_000  # number of the first random program whose schedules are only predicted; none of the measured ones


class ExportConfig(Config):
    format: Literal["onnx", "weights"] = Field("onnx", description="what to write")
    checkpoint: str = Field(str(train_utils.SHIPPED_MODEL), description="model to export")
    output: str = Field("", description="file to write; empty: cost_model.FORMAT")
    unmeasured_programs: int = Field(60, ge=0, description="weights: random programs whose schedules the LSTM predicts")
    unmeasured_schedules: int = Field(16, ge=1, description="weights: schedules of each")
    fit_epochs: int = Field(40, ge=1, description="weights: passes over all schedules")
    fit_learning_rate: float = Field(0.001, gt=0, description="weights: peak learning rate")
    fit_share: float = Field(0.5, ge=0, le=1, description="weights: how far from those Halide ships (0) to those trained here (1)")


class Milliseconds(nn.Module):
    """The model with outputs in milliseconds: prediction and interval."""

    def __init__(self, model, meta):
        super().__init__()
        self.model, self.widths_per_spread = model, [meta["errors"][inputs]["width_per_spread"] for inputs in INPUTS]

    def forward(self, features, lengths):
        # ONNX Runtime's LSTM refuses an empty batch, so that one gets a row of a zero stage, which is cut off in the end.
        n, t = shape_as_tensor(features)[:2]
        extra, extra_stage = (n == 0).long(), (t == 0).long()
        row = features.new_zeros(1, 1, features.shape[2]).expand(1, t + extra_stage, -1)[:extra]
        features = torch.cat([features, features.new_zeros(n, 1, features.shape[2])[:, :extra_stage]], 1)
        features = torch.cat([features, row])  # (B + extra, T, F)
        lengths = torch.cat([lengths, lengths.new_ones(1)[:extra]])
        members = self.model(features, lengths)  # (M, B + extra)
        log_runtime = members.mean(0)
        spread = ((members - log_runtime) ** 2).mean(0).sqrt()
        has_counts, has_schedule = (features[:, 0, column] > 0 for column in FLAG_COLUMNS)
        both, without_counts, counts_alone = self.widths_per_spread
        per_spread = torch.where(has_counts, torch.where(has_schedule, both, counts_alone), without_counts)
        half_width = per_spread * (intervals.SPREAD_FLOOR + spread)
        logs = torch.stack([log_runtime, log_runtime - half_width, log_runtime + half_width])[:, :n]
        return torch.exp(logs).unbind(0)


def export_onnx(model, meta, path):
    """Write `model` to the file `path`."""
    example = torch.zeros(2, 3, len(FEATURES)), torch.tensor([3, 2])
    outputs = ["predicted_ms", "lower_ms", "upper_ms"]
    axes = {"features": {0: "B", 1: "T"}, "lengths": {0: "B"}} | {name: {0: "B"} for name in outputs}
    with warnings.catch_warnings():
        # The exporter that follows a trace is the one that maps an LSTM to ONNX's own; a test checks what it warns of.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Milliseconds(model, meta), example, str(path), dynamo=False, opset_version=OPSET,
            input_names=["features", "lengths"], output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
    written = onnx.load(path)
    coverage = json.dumps(meta.get("coverage", {}))  # of the intervals, as far as evaluate_model.py has measured it
    onnx.helper.set_model_props(written, {"features": json.dumps(FEATURES), "interval": str(meta["interval"]), "coverage": coverage})
    onnx.save(written, path)


def measured_examples(train):
    """Examples for adams2019.fit, from the rows of the training split (Sequences)."""
    examples, start = [], 0
    for schedule_features, algorithm, lengths in train.halide_batches():
        part = train.featurized[start : start + len(lengths)]
        rows = zip(schedule_features.numpy(), algorithm.numpy(), lengths.tolist(), train.log_runtime[part], train.instance[part])
        examples += [(s[:n], a[:n], float(y), int(i)) for s, a, n, y, i in rows]
        start += len(lengths)
    return examples


def predicted_examples(config, model, device):
    """Examples of schedules that were never run, with the LSTM's predictions for their runtimes."""
    prepare_processes()
    examples = []
    for number in tqdm(range(UNMEASURED_FROM, UNMEASURED_FROM + config.unmeasured_programs), unit="program"):
        spec = ProgramSpec(f"random_{number}", number)
        proposals = [Proposal.draw(number, k) for k in range(config.unmeasured_schedules)]
        proposed, counted = (on_all_cores(function, spec, proposals) for function in (propose, count))
        found = {featurization: counted.get(proposal) for proposal, (featurization, _) in proposed.items()}
        calls = call_counts(describe_stages(spec.build())["calls"])
        schedules = [proposed_schedule(featurization, calls, found[featurization]) for featurization in sorted(found)]
        predictions = train_utils.predict_sequences(model, featurize(schedules), device)
        examples += [(s.schedule_features, s.algorithm_features, p.log_runtime, number) for s, p in zip(schedules, predictions)]
    return examples


def export_weights(config, model, device, path):
    """Write weights for Adams2019 to the file `path`; returns how many schedules they were trained on: (measured, predicted)."""
    meta = data_utils.read_meta(config.data_path)
    train = Sequences(config.data_path, meta, "train")
    train_utils.agree_with_data(config, meta)
    if why := baselines.why_no_halide_model(train):
        raise UserError(f"{config.data_path}: {why}; give --data_path data made from .sample or .featurization files")
    measured, predicted = measured_examples(train), predicted_examples(config, model, device)
    if not measured + predicted:
        raise UserError(f"{config.data_path}: its train split is empty, and --unmeasured_programs is 0: nothing to train on")
    shipped = baseline_weights()
    n_cores = baselines.machine_cores(train)
    fitted = adams2019.fit(shipped, measured + predicted, n_cores, config.fit_epochs, config.fit_learning_rate, config.seed)
    share = config.fit_share  # weight-space ensembles (Wortsman et al. 2022): weights in between have lower errors than either
    averaged = [(1 - share) * s + share * f.ravel() for s, f in zip(shipped, fitted)]
    if not all(np.isfinite(array).all() for array in averaged):
        raise UserError(f"the weights are not finite after training; give a smaller --fit_learning_rate than {config.fit_learning_rate}")
    write_weights(path, averaged)
    return len(measured), len(predicted)


def main():
    config = load_config(ExportConfig)
    device = train_utils.pick_device(config) if config.format == "weights" else torch.device("cpu")
    train_utils.set_threads(config)
    if config.format == "onnx" and config.precision != "float32":
        raise UserError("--precision: an ONNX file is written in float32; leave it out")
    model, meta = train_utils.load_model(config.checkpoint, device, config.precision)
    train_utils.agree_with_checkpoint(config, meta, config.checkpoint, "interval")
    path = Path(config.output or f"cost_model.{config.format}")
    make_folder(path.parent, "output")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give --output a file")
    if config.format == "onnx":
        export_onnx(model, meta, path)
        print(f"{path}: {len(FEATURES)} raw features a stage in, milliseconds and their {meta['interval']:.0%} interval out")
    else:
        measured, predicted = export_weights(config, model, device, path)
        print(f"{path}: trained on {measured} measured and {predicted} predicted schedules; give it to Adams2019 as weights_path")


if __name__ == "__main__":
    run_script(main)
