"""Take a trained model elsewhere: as one ONNX file, or as weights for Halide's own Adams2019 autoscheduler.

    python export_model.py --format onnx --output cost_model.onnx
    python export_model.py --format weights --output mine.weights

onnx: raw features (B, T, F) float32, as features.featurize gives them, and lengths (B,) int64 in; predicted_ms, lower_ms and upper_ms,
(B,) float32, out; any B and T. The names of the features, in order, are in the file's metadata under `features`, as JSON.

weights: Adams2019's own network, trained on the measured schedules of data_path's training split and on the LSTM's predictions for
schedules of other random programs that nobody has measured. A search finds what its model is wrong about, so in each further round
Adams2019 schedules these programs with the weights so far, and what it finds is predicted and added. Of the weights of all rounds and
those that Halide ships, the ones are written with which beam search finds what the LSTM predicts to be fastest, on further programs.
An unmodified Halide takes the file through `weights_path`.
"""

# ruff: noqa: E402
import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read by torch when imported; its exporter says of each LSTM that it can't infer a shape

import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from pydantic import Field
from torch import nn
from tqdm import tqdm

import adams2019
import collection
import data_utils
import halide_utils
import search
import train_utils
from config import Config, UserError, load_config, make_folder, run_script
from features import FEATURES, featurize
from halide_utils import ProgramSpec, Proposal, WithWeights

OPSET = 17
UNMEASURED_FROM = 1_000_000  # number of the first random program whose schedules are predicted only: none that is measured here
NOISE = (0.0, 0.1, 0.1, 0.3, 0.3, 1.0)  # standard deviations, on the weights so far, of the searches whose finds are added after a round
JUDGED_STAGES = 12  # most that the programs are drawn with on which weights are chosen: their beam search takes seconds


class ExportConfig(Config):
    format: Literal["onnx", "weights"] = Field("onnx", description="what to write")
    checkpoint: str = Field(str(train_utils.SHIPPED_MODEL), description="model to export")
    output: str = Field("", description="file to write; empty: cost_model.FORMAT")
    unmeasured_programs: int = Field(60, ge=0, description="weights: random programs whose schedules the LSTM predicts")
    unmeasured_schedules: int = Field(16, ge=1, description="weights: schedules of each before the first round")
    judged_programs: int = Field(24, ge=0, description="weights: further random programs on whose beam search a round is chosen; 0: the last")
    rounds: int = Field(3, ge=1, description="weights: times that the network is trained, each time on more schedules")
    fit_epochs: int = Field(40, ge=1, description="weights: passes over all schedules in a round")
    fit_learning_rate: float = Field(0.001, gt=0, description="weights: peak learning rate")


class Milliseconds(nn.Module):
    """The model with what a user wants to know for an output: milliseconds and their interval."""

    def __init__(self, model, log_half_width):
        super().__init__()
        self.model, self.log_half_width = model, log_half_width

    def forward(self, features, lengths):
        log_runtime = self.model(features, lengths).mean(0)  # (B,)
        return torch.exp(log_runtime), torch.exp(log_runtime - self.log_half_width), torch.exp(log_runtime + self.log_half_width)


def export_onnx(model, meta, path):
    """Write `model` to the file `path`."""
    example = torch.zeros(2, 3, len(FEATURES)), torch.tensor([3, 2])
    outputs = ["predicted_ms", "lower_ms", "upper_ms"]
    axes = {"features": {0: "B", 1: "T"}, "lengths": {0: "B"}} | {name: {0: "B"} for name in outputs}
    with warnings.catch_warnings():
        # The exporter that follows a trace is the one that maps packed sequences to ONNX's LSTM; what it warns of is checked by a test.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Milliseconds(model, meta["interval"]["log_half_width"]), example, str(path), dynamo=False, opset_version=OPSET,
            input_names=["features", "lengths"], output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip
    written = onnx.load(path)
    onnx.helper.set_model_props(written, {"features": json.dumps(FEATURES), "interval": str(meta["interval"]["level"])})
    onnx.save(written, path)


def measured_examples(train):
    """What adams2019.fit learns from, of the training split's rows (Sequences)."""
    examples, start = [], 0
    for schedule_features, algorithm, lengths in train.halide_batches():
        rows = zip(schedule_features.numpy(), algorithm.numpy(), lengths.tolist(), train.log_runtime[start:], train.instance[start:])
        examples += [(s[:n], a[:n], float(y), int(i)) for s, a, n, y, i in rows]
        start += len(lengths)
    return examples


def predicted_examples(spec, featurizations, model, device):
    """The same of a program's schedules that were never run, with the LSTM's predictions for their runtimes."""
    calls = data_utils.call_counts(halide_utils.describe_stages(spec.build())["calls"])
    dumps = [data_utils.Dump("proposed.featurization", "", data=data, calls=calls) for data in featurizations]
    schedules = [data_utils.parse_dump(dump, math.inf, need_runtime=False) for dump in dumps]
    predictions = train_utils.predict_sequences(model, featurize(schedules), device)
    return [(s.schedule_features, s.algorithm_features, p, spec.seed) for s, (p, _, _) in zip(schedules, predictions)]


def judge(candidates, specs, model, device):
    """ln of the milliseconds that the LSTM predicts for what beam search finds with each of the weights files `candidates`.

    A list of one for each candidate, for each of the programs `specs` that all of them find a schedule for in time.
    """
    proposals, judged = [WithWeights(str(path), search.ADAMS2019_BEAM) for path in candidates], []
    for spec in specs:
        found = dict(search.propose_all(spec, proposals))
        if len(found) == len(proposals):
            examples = predicted_examples(spec, [found[proposal] for proposal in proposals], model, device)
            judged.append([log_ms for _, _, log_ms, _ in examples])
    return judged


def export_weights(config, model, device, path):
    """Write weights for Adams2019 to the file `path`; returns a sentence on how they came about."""
    train = train_utils.Sequences(config.data_path, data_utils.read_meta(config.data_path), "train")
    examples, shipped, rng = measured_examples(train), halide_utils.baseline_weights(), np.random.default_rng(config.seed)
    end = UNMEASURED_FROM + config.unmeasured_programs
    specs = [ProgramSpec(f"random_{n}", n) for n in range(UNMEASURED_FROM, end)]
    further = [ProgramSpec(f"random_{n}", n, max_stages=JUDGED_STAGES) for n in range(end, end + config.judged_programs)]
    if not examples and not specs:
        raise UserError(f"{config.data_path}: its train split is empty, and --unmeasured_programs is 0: nothing to train on")
    collection.prepare_processes()
    proposals = {spec: [Proposal.draw(spec.seed, k) for k in range(config.unmeasured_schedules)] for spec in specs}
    with tempfile.TemporaryDirectory() as folder:
        candidates = [Path(folder, "shipped.weights")]
        halide_utils.write_weights(candidates[0], shipped)
        for i in range(config.rounds):
            for spec in tqdm(specs, f"round {i + 1} of {config.rounds}", unit="program"):
                found = {data for _, data in search.propose_all(spec, proposals[spec])}
                examples += predicted_examples(spec, sorted(found), model, device)
            weights = adams2019.fit(shipped, examples, os.cpu_count(), config.fit_epochs, config.fit_learning_rate, config.seed)
            files = [Path(folder, f"round_{i}_{k}.weights") for k in range(len(NOISE))]
            for file, sigma in zip(files, NOISE):
                halide_utils.write_weights(file, halide_utils.add_noise(weights, sigma, rng))
            candidates.append(files[0])
            proposals = dict.fromkeys(specs, [WithWeights(str(file), 1) for file in files])
        judged = judge(candidates, tqdm(further, "choosing", unit="program"), model, device)
        log_ms = np.mean(judged, 0) if judged else np.zeros(len(candidates))
        best = int(np.argmin(log_ms)) if judged else config.rounds
        path.write_bytes(candidates[best].read_bytes())
    speedups = ", ".join(f"{math.exp(log_ms[0] - value):.2f}" for value in log_ms[1:])
    return (
        f"trained on {len(train)} measured and {len(examples) - len(train)} predicted schedules; on {len(judged)} further programs the LSTM takes "
        f"what beam search finds for {speedups} x as fast, by round, as with the weights that Halide ships; written are "
        + (f"those of round {best}" if best else "the latter")
    )


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
        print(f"{path}: {len(FEATURES)} raw features a stage in, milliseconds and their {meta['interval']['level']:.0%} interval out")
    else:
        print(f"{path}: {export_weights(config, model, device, path)}; give it to Adams2019 as weights_path")


if __name__ == "__main__":
    run_script(main)
