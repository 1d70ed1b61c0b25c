"""Halide's own cost model, the network inside its Adams2019 autoscheduler (Adams et al. 2019, "Learning to Optimize Halide with
Tree Search and Random Programs"), in PyTorch: a rival in every report.

Three small dense layers turn a stage's histograms and schedule features into 32 coefficients, each the price of one hand-written
cost term; the time of a program is the sum over its stages. The terms are those of Halide's cost_model_generator.cpp.

Axes: B batch, T stages (padded).
"""

import math
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import halide as hl
import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

import train_utils
from features import SCHEDULE_FEATURES, TYPES
from halide_tools.autoschedulers import WEIGHT_SHAPES, read_weights, write_weights

TOOL = Path(hl.install_dir()) / "bin" / "adams2019_retrain_cost_model"
FIT_PROGRAMS = 8  # groups in a batch, each of schedules of one program
FIT_GROUP = 64  # schedules of one program in a batch at most: the losses compare all pairs
MIN_SCHEDULES = 8  # Halide's tool leaves out pipelines with fewer


class Adams2019(nn.Module):
    """Predicts runtimes in milliseconds, up to a factor: the weights are of another machine.

    Parameters
    ----------
    weights : list of six arrays as baseline_weights or read_weights return them
    n_cores : of the machine that runs the schedules
    """

    def __init__(self, weights, n_cores):
        super().__init__()
        # Halide stores the first axis innermost, so its shapes are reversed here.
        tensors = [torch.tensor(w).reshape(shape[::-1]) for w, shape in zip(weights, WEIGHT_SHAPES)]
        names = ("algorithm_filter", "algorithm_bias", "schedule_filter", "schedule_bias", "filter", "bias")
        for name, tensor in zip(names, tensors):
            setattr(self, name, nn.Parameter(tensor))
        self.n_cores = n_cores

    def weights(self):
        """The six arrays again, for write_weights."""
        return [p.detach().cpu().numpy() for p in self.parameters()]

    def coefficients(self, schedule_features, histograms):
        """(B, T, 32) prices before they are cut off at zero, from arrays as of forward."""
        by_algorithm = torch.einsum("btrk,krc->btc", histograms, torch.sigmoid(self.algorithm_filter)) + self.algorithm_bias  # (B, T, 8)
        by_schedule = torch.relu(torch.log1p(schedule_features) @ self.schedule_filter + self.schedule_bias)  # (B, T, 24)
        return torch.cat([by_algorithm, by_schedule], 2) @ self.filter + self.bias

    def forward(self, schedule_features, histograms, lengths):
        """Predicted milliseconds, (B,).

        schedule_features : float (B, T, 39), raw; histograms : float (B, T, 40, 7), operations and accesses by Halide's seven
        types; lengths : (B,)
        """
        price = torch.relu(self.coefficients(schedule_features, histograms))
        s = dict(zip(SCHEDULE_FEATURES, schedule_features.unbind(2)))
        cost = (torch.stack(self._terms(s), 2) * price[:, :, :28]).sum(2)  # (B, T)
        present = torch.arange(cost.shape[1], device=lengths.device) < lengths[:, None]
        return (cost * present).sum(1) * 1e-9

    def _terms(self, s):
        """The 28 cost terms that the first 28 coefficients are multiplied with, (B, T) each, in their order (the fifth is unused)."""
        zero, one = torch.zeros_like(s["vector_size"]), torch.ones_like(s["vector_size"])
        inlined, parallel = s["inlined_calls"] > 0, s["inner_parallelism"] > 1
        first = torch.zeros_like(parallel)
        first[:, 0] = True
        tasks = (s["inner_parallelism"] * s["outer_parallelism"]).clamp(min=1)
        a_core = tasks / self.n_cores
        idle = torch.ceil(a_core) / a_core.clamp(min=1)
        innermost_task = s["innermost_bytes_at_task"].clamp(min=1)
        lines_written = s["num_realizations"] * s["inner_parallelism"] * s["bytes_at_task"] / innermost_task
        bytes_written = s["num_realizations"] * s["bytes_at_realization"]
        kinds = [parallel, ~parallel & first, ~parallel & ~first]  # of stores: to other cores, of the output, any other
        page_faults = s["bytes_at_production"] * torch.minimum(s["inner_parallelism"], 4096 / innermost_task)
        compute = [idle * s["vector_size"] * s["num_vectors"], idle * s["num_scalars"]]
        return [
            *(~inlined * c for c in compute), *(inlined * c for c in compute), zero,
            s["num_realizations"] * s["unique_lines_read_per_realization"], s["num_realizations"] * s["unique_bytes_read_per_realization"],
            s["num_vectors"] * s["scalar_loads_per_vector"], s["num_scalars"] * s["scalar_loads_per_scalar"],
            s["num_vectors"] * s["vector_loads_per_vector"],
            s["num_scalars"] * s["unique_bytes_read_per_vector"], s["num_vectors"] * s["unique_bytes_read_per_vector"],
            s["num_scalars"] * s["unique_lines_read_per_vector"], s["num_vectors"] * s["unique_lines_read_per_vector"],
            tasks * s["unique_bytes_read_per_task"], tasks * s["unique_lines_read_per_task"],
            # Halide counts the stores twice, and its weights were trained so.
            *(2 * kind * lines_written for kind in kinds), *(2 * kind * bytes_written for kind in kinds),
            2 * parallel * (s["num_vectors"] + s["num_scalars"]) / innermost_task,
            2 * page_faults * s["inner_parallelism"] * s["outer_parallelism"],
            s["num_realizations"], parallel * s["num_productions"], s["num_productions"] * (s["inner_parallelism"] - one), s["working_set"],
        ]  # fmt: skip


@torch.no_grad()
def log_predictions(weights, samples, n_cores):
    """Log of the predicted milliseconds of each sample, (N,) float64.

    samples : iterable of (schedule_features (B, T, 39), histograms (B, T, 41, 8), lengths (B,)) batches
    """
    model = Adams2019(weights, n_cores).double()
    parts = [torch.log(model(s.double(), h[:, :, 1:, :7].double(), n).clamp(min=1e-12)) for s, h, n in samples]
    return torch.cat(parts).numpy() if parts else np.zeros(0)


def write_samples(folder, samples, log_runtime, instances):
    """One `.sample` a schedule in `folder`, with its instance for a pipeline id. Returns the paths."""
    ids = np.unique(instances, return_inverse=True)[1]
    paths = []
    for schedule_features, histograms, lengths in samples:
        for s, h, n in zip(schedule_features, histograms, lengths):
            stages = torch.cat([s[:n], h[:n, :, :7].flatten(1)], 1).numpy().astype("<f4")  # (T, 326)
            i = len(paths)
            paths.append(Path(folder, f"{i}.sample"))
            paths[-1].write_bytes(stages.tobytes() + struct.pack("<fii", np.exp(log_runtime[i]), ids[i], i))
    return paths


def retrain(paths, rate, epochs, n_cores, initial_weights):
    """New weights (six arrays) from Halide's own retraining tool, run on `.sample` files. Raises RuntimeError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = f"{folder}/before.weights", f"{folder}/after.weights"
        write_weights(before, initial_weights)
        command = [
            TOOL, f"--epochs={epochs}", f"--rates={rate}", f"--num_cores={n_cores}", f"--initial_weights={before}",
            f"--weights_out={after}", "--best_benchmark=", "--best_schedule=",
        ]  # fmt: skip
        names = "\n".join(str(p) for p in paths)
        threads = os.environ | {"HL_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, input=names, capture_output=True, text=True, env=threads)
        if done.returncode or not Path(after).exists():
            raise RuntimeError(f"{TOOL.name} failed: {(done.stderr or done.stdout).strip()[-200:]}")
        return read_weights(after)


def fit(weights, examples, n_cores, epochs, learning_rate, seed):
    """New weights that predict `examples` better than `weights` do, trained here rather than by Halide's tool.

    examples : list of (schedule_features (T, 39), algorithm_features (T, 41, 8), log_runtime, instance)

    The losses are the LSTM's, so that order and ratios within a program weigh most, as a beam search needs. The speed of the machine
    is a separate offset, which is dropped at the end.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, offset = Adams2019(weights, n_cores), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([*model.parameters(), offset], lr=learning_rate, weight_decay=0.0)
    instances = np.array([instance for *_, instance in examples])
    order = np.argsort(instances, kind="stable")
    programs = np.split(order, np.flatnonzero(np.diff(instances[order])) + 1)
    groups = [rows[start : start + FIT_GROUP] for rows in programs for start in range(0, len(rows), FIT_GROUP)]
    steps = epochs * math.ceil(len(groups) / FIT_PROGRAMS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in range(epochs):
        rng.shuffle(groups)
        for start in range(0, len(groups), FIT_PROGRAMS):
            rows = np.concatenate(groups[start : start + FIT_PROGRAMS])
            schedule_features, algorithm, log_runtime, instance = zip(*(examples[i] for i in rows))
            lengths = torch.tensor([len(s) for s in schedule_features])
            padded = [pad_sequence([torch.from_numpy(a) for a in part], batch_first=True) for part in (schedule_features, algorithm)]
            predicted = torch.log(model(padded[0], padded[1][:, :, 1:, : len(TYPES)], lengths).clamp(min=1e-12)) + offset
            target = SimpleNamespace(log_runtime=torch.tensor(log_runtime), instance=torch.tensor(instance))
            loss = train_utils.loss_terms(predicted, target).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.weights()
