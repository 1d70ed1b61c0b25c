"""How fast schedules are scored, from raw features to milliseconds, beside other models and beside what the machine can multiply.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --device cuda

Schedules of data_path that lie side by side in its shards, so of like lengths, at batch 1, 32 and 1,024, which the LSTM scores in
slices as train_utils.predict does. "share" is the floating-point operations of the model's matrix products over the rate at which the
machine multiplies large float32 and bfloat16 matrices, measured between the rounds. adams2019 is Halide's network as adams2019.py
writes it in PyTorch, in float32; hist_gradient_boosting predicts from pooled features that are ready.
Writes benchmarks/results/scoring.md and .json.
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingRegressor
from torch.nn.utils.rnn import pad_sequence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

import data_utils
import train_utils
from batches import Sequences
from config import Config, load_config, run_script
from evaluation import baselines
from evaluation.adams2019 import Adams2019
from halide_tools.autoschedulers import baseline_weights

BATCHES = (1, 32, 1024)
MATRIX = 2048


class ScoringConfig(Config):
    checkpoint: str = Field(str(train_utils.SHIPPED_MODEL), description="model to time")
    rounds: int = Field(15, ge=1, description="times that each rival scores each batch")
    queries: int = Field(500, ge=1, description="single queries, for their latency")


def flops(model, lengths):
    """Floating-point operations of the matrix products behind a prediction for schedules of these lengths."""
    a_stage = sum(2 * p.numel() for name, p in model.named_parameters() if p.ndim == 2)
    return a_stage * int(lengths.sum())


def multiply_rate(device, dtype):
    """Operations a second in the product of two large matrices."""
    a = torch.rand(MATRIX, MATRIX, device=device).to(dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / np.median(times[1:])


class Rivals:
    """Functions that score a batch of rows, by name."""

    def __init__(self, config, sequences, device):
        self.model, _ = train_utils.load_model(config.checkpoint, device)
        self.sequences, self.device = sequences, device
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            subprocess.run(
                [sys.executable, ROOT / "export_model.py", f"--checkpoint={config.checkpoint}", f"--output={path}"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self.onnx = onnxruntime.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])
        self.pooled = baselines.pooled_features(sequences)
        self.trees = HistGradientBoostingRegressor(max_iter=baselines.TREE_ITERATIONS).fit(self.pooled, sequences.log_runtime)
        self.adams = Adams2019(baseline_weights(), torch.get_num_threads()).float().to(device)
        self.halide = [(s, h, n) for s, h, n in sequences.halide_batches()]

    @torch.no_grad()
    def of(self, rows):
        """{name: function} for the schedules `rows`."""
        batch = self.sequences.batch(rows).to(self.device)
        slices = list(zip(batch.features.split(train_utils.SCORING_BATCH), batch.lengths.split(train_utils.SCORING_BATCH)))
        fed = [{"features": features.cpu().numpy(), "lengths": lengths.cpu().numpy()} for features, lengths in slices]
        pooled = self.pooled[rows]
        place = list(zip(self.sequences.shard_of[rows], self.sequences.row_of[rows]))
        s, h = (pad_sequence([self.halide[i][part][j, : self.halide[i][2][j]] for i, j in place], True).to(self.device) for part in (0, 1))
        h = h[:, :, 1:, :7].contiguous()

        def eager(precision="float32"):
            self.model.precision = precision
            with torch.no_grad():
                return torch.cat([self.model(*part).mean(0).exp() for part in slices]).cpu()

        def adams():
            with torch.no_grad():
                return self.adams(s, h, batch.lengths).cpu()

        return {
            "PyTorch": eager,
            "PyTorch, bfloat16": partial(eager, "bfloat16"),
            "ONNX Runtime": lambda: [self.onnx.run(None, part) for part in fed],
            "hist_gradient_boosting": lambda: self.trees.predict(pooled),
            "adams2019": adams,
        }


def main():
    config = load_config(ScoringConfig)
    device = train_utils.pick_device(config)
    sequences = Sequences(config.data_path, data_utils.read_meta(config.data_path), "train")
    rivals = Rivals(config, sequences, device)
    rng = np.random.default_rng(config.seed)
    rows, facts = [], {"device": str(device), "threads": torch.get_num_threads()}
    for size in BATCHES:
        chosen = (rng.integers(len(sequences)) + np.arange(size)) % len(sequences)
        functions = rivals.of(chosen)
        rates = {dtype: [] for dtype in (torch.float32, torch.bfloat16)}
        for dtype in rates:
            functions[str(dtype)] = lambda dtype=dtype, found=rates[dtype]: found.append(multiply_rate(device, dtype))
        seconds = common.interleave(functions, config.rounds)
        work = flops(rivals.model, sequences.lengths[chosen])
        for name in list(functions)[:-2]:
            shares = (
                [f"{work / np.median(seconds[name]) / np.median(rate):.2f}" for rate in rates.values()]
                if name.startswith(("PyTorch", "ONNX"))
                else ["", ""]
            )
            rows.append([size, name, common.spread(size / seconds[name]), common.spread(seconds["PyTorch"] / seconds[name]), *shares])
            facts[f"{name}, batch {size}"] = {"schedules_per_second": (size / seconds[name]).tolist(), "shares_of_matrix_product": shares}
        facts[f"matrix products, batch {size}"] = {str(dtype): rate for dtype, rate in rates.items()}
    queries = [rivals.of(np.array([row])) for row in rng.choice(len(sequences), config.queries)]
    for name in ("PyTorch", "ONNX Runtime"):
        times = []
        for query in queries:
            began = time.perf_counter()
            query[name]()
            times.append((time.perf_counter() - began) * 1e3)
        p50, p99 = np.quantile(times, [0.5, 0.99])
        facts[f"{name}, latency"] = {"p50_ms": p50, "p99_ms": p99}
        print(f"one query, {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    header = [
        "batch",
        "scoring",
        "schedules a second",
        "times as fast as PyTorch",
        "share of the float32 product",
        "of the bfloat16 product",
    ]
    common.write("scoring", header, rows, facts)


if __name__ == "__main__":
    run_script(main)
