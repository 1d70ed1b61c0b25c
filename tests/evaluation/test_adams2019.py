"""Halide's own network beside Halide's own word on it."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, make_stages, sample_bytes

from dumps.files import Dump
from dumps.parsing import parse_dump
from evaluation import adams2019
from features import SCHEDULE_FEATURES
from halide_tools.autoschedulers import baseline_weights

ASK_HALIDE = """
import sys
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import ProgramSpec
spec = ProgramSpec("p", int(sys.argv[1]))
featurization, _ = Proposal(sigma=0.0, dropout=100, beam_size=1, seed=0).apply(spec.build(), spec)
open(sys.argv[2], "wb").write(featurization)
"""


@pytest.mark.parametrize("seed", [3, 11])
def test_the_cost_is_the_one_halide_prints(tmp_path, seed):
    path = tmp_path / "p.featurization"
    done = subprocess.run(
        [sys.executable, "-c", ASK_HALIDE, str(seed), str(path)], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"HL_DEBUG_AUTOSCHEDULE": "1"},
    )  # fmt: skip
    printed = float(re.findall(r"[Cc]ost: ([-+.e\d]+)", done.stdout + done.stderr)[-1])
    schedule = parse_dump(Dump("p.featurization", "", path=str(path)), 1e5, need_runtime=False)
    batch = [torch.from_numpy(a)[None] for a in (schedule.schedule_features, schedule.algorithm_features)] + [
        torch.tensor([len(schedule.schedule_features)])
    ]
    ours = np.exp(adams2019.log_predictions(baseline_weights(), [batch], os.cpu_count()))[0]
    assert ours == pytest.approx(printed, rel=1e-3)


def test_padding_does_not_matter():
    stages = torch.from_numpy(make_stages(1, 2, 4))
    schedule, counts = stages[None, :, :39], torch.zeros(1, 4, 41, 8)
    counts[0, :, :, :7] = stages[:, 39:].reshape(4, 41, 7)
    alone = adams2019.log_predictions(baseline_weights(), [(schedule, counts, torch.tensor([4]))], 2)
    padded = [torch.cat([a, torch.ones_like(a)], 1) for a in (schedule, counts)]
    assert adams2019.log_predictions(baseline_weights(), [(*padded, torch.tensor([4]))], 2) == pytest.approx(alone)


def test_retraining_makes_predictions_better(tmp_path):
    """On one program whose runtime is nothing but its points computed."""
    batches, runtimes = [], []
    for k in range(10):
        stages = torch.from_numpy(make_stages(0, 0, 3)).clone()
        stages[:, [SCHEDULE_FEATURES.index(n) for n in ("num_vectors", "points_computed_total")]] *= 1 + k
        counts = torch.zeros(1, 3, 41, 8)
        counts[0, :, :, :7] = stages[:, 39:].reshape(3, 41, 7)
        batches.append((stages[None, :, :39], counts, torch.tensor([3])))
        runtimes.append(1.0 + k)
    log_runtime = np.log(runtimes)
    paths = adams2019.write_samples(tmp_path, batches, log_runtime, np.zeros(10, np.int64))
    assert paths[3].read_bytes() == sample_bytes(torch.cat([batches[3][0][0], batches[3][1][0, :, :, :7].flatten(1)], 1).numpy(), 4.0, 0, 3)
    before = baseline_weights()
    after = adams2019.retrain(paths, 1e-3, 50, 2, before)

    def error(weights):  # of the throughput relative to the fastest, which Halide's tool makes small
        predicted = np.exp(adams2019.log_predictions(weights, batches, 2))
        return np.sum((1 / np.maximum(predicted / runtimes[0], 1e-10) - runtimes[0] / np.array(runtimes)) ** 2)

    assert error(after) < error(before)
