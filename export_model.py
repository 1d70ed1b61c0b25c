"""Take a trained model elsewhere: as one ONNX file, or as weights for Halide's own Adams2019 autoscheduler.

    python export_model.py --format onnx --output cost_model.onnx
    python export_model.py --format weights --output mine.weights

onnx: raw features (B, T, F) float32, as features.featurize gives them, and lengths (B,) int64 in; predicted_ms, lower_ms and upper_ms,
(B,) float32, out; any B and T. The names of the features, in order, are in the file's metadata under `features`, as JSON.

weights: Adams2019's own network, trained on the measured schedules of data_path's training split and on the LSTM's predictions for
schedules of other random programs that nobody has measured; then drawn half-way back to the weights Halide ships, since what a search
makes of an error of theirs costs more than what it makes of a gain. An unmodified Halide takes the file through `weights_path`.
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

import onnx
import torch
from pydantic import Field
from torch import nn
from tqdm import tqdm

import data_utils
import train_utils
from config import Config, UserError, load_config, make_folder, run_script
from dumps.files import call_counts
from evaluation import adams2019, intervals
from features import FEATURES, HAS_LOWERED_COUNTS_COLUMN, featurize
from halide_tools.autoschedulers import Proposal, baseline_weights, write_weights
from halide_tools.programs import ProgramSpec, describe_stages
from measuring.candidate import prepare_processes
from measuring.processes import count, on_all_cores, propose
from tuning.pool import proposed_schedule

OPSET = 17
UNMEASURED_FROM = 1_000_000  # number of the first random program whose schedules are predicted only: none that is measured here


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
    """The model with what a user wants to know for an output: milliseconds and their interval."""

    def __init__(self, model, meta):
        super().__init__()
        self.model, self.log_half_widths = model, [intervals.errors_of(meta, counted)["log_half_width"] for counted in (False, True)]

    def forward(self, features, lengths):
        log_runtime = self.model(features, lengths).mean(0)  # (B,)
        counted = features[:, 0, HAS_LOWERED_COUNTS_COLUMN] > 0
        half_width = torch.where(counted, self.log_half_widths[1], self.log_half_widths[0])
        return torch.exp(log_runtime), torch.exp(log_runtime - half_width), torch.exp(log_runtime + half_width)


def export_onnx(model, meta, path):
    """Write `model` to the file `path`."""
    example = torch.zeros(2, 3, len(FEATURES)), torch.tensor([3, 2])
    outputs = ["predicted_ms", "lower_ms", "upper_ms"]
    axes = {"features": {0: "B", 1: "T"}, "lengths": {0: "B"}} | {name: {0: "B"} for name in outputs}
    with warnings.catch_warnings():
        # The exporter that follows a trace is the one that maps packed sequences to ONNX's LSTM; what it warns of is checked by a test.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Milliseconds(model, meta), example, str(path), dynamo=False, opset_version=OPSET,
            input_names=["features", "lengths"], output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {"features": json.dumps(FEATURES), "interval": str(meta["interval"])})
    onnx.save(written, path)


def measured_examples(train):
    """What adams2019.fit learns from, of the training split's rows (Sequences)."""
    examples, start = [], 0
    for schedule_features, algorithm, lengths in train.halide_batches():
        rows = zip(schedule_features.numpy(), algorithm.numpy(), lengths.tolist(), train.log_runtime[start:], train.instance[start:])
        examples += [(s[:n], a[:n], float(y), int(i)) for s, a, n, y, i in rows]
        start += len(lengths)
    return examples


def predicted_examples(config, model, device):
    """The same of schedules that were never run, with the LSTM's predictions for their runtimes."""
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
        examples += [(s.schedule_features, s.algorithm_features, p, number) for s, (p, _, _) in zip(schedules, predictions)]
    return examples


def export_weights(config, model, device, path):
    """Write weights for Adams2019 to the file `path`; returns how many schedules they were trained on: (measured, predicted)."""
    train = train_utils.Sequences(config.data_path, data_utils.read_meta(config.data_path), "train")
    measured, predicted = measured_examples(train), predicted_examples(config, model, device)
    if not measured + predicted:
        raise UserError(f"{config.data_path}: its train split is empty, and --unmeasured_programs is 0: nothing to train on")
    shipped = baseline_weights()
    fitted = adams2019.fit(shipped, measured + predicted, os.cpu_count(), config.fit_epochs, config.fit_learning_rate, config.seed)
    share = config.fit_share  # "weight-space ensembles" (Wortsman et al. 2022): between the two lie weights that err less than either
    write_weights(path, [(1 - share) * s + share * f.ravel() for s, f in zip(shipped, fitted)])
    return len(measured), len(predicted)


def main():
    config = load_config(ExportConfig)
    device = torch.device("cpu")
    model, meta = train_utils.load_model(config.checkpoint, device)
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
