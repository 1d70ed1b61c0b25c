"""The linear model that a stage's predicted cost starts from: milliseconds an event, fitted to the training runtimes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from features import COST_COLUMNS, HAS_LOWERED_COUNTS_COLUMN, LOWERED_COLUMNS, PARALLEL_COLUMNS

FLOOR_MS = 1e-5  # no stage is taken to cost less
MIN_EXPLAINED = 0.5  # of the variance of log-runtime, for the linear cost model to be of use
REWEIGHTINGS = 6  # of the least squares behind the linear cost model
SERIAL_PENALTY = 0.01  # on what an event costs more in serial stages, against the error of taking it for that much in all


@dataclass
class LinearCosts:
    """A stage's milliseconds as a weighted sum of its events, and no less than `floor_ms`.

    event_ms : (2, 2, K) float32: where the lowered code was not counted and where it was, in serial and in parallel stages
    floor_ms : (2,) float32, likewise
    stage_ms : what a stage takes on average, whatever it is
    """

    event_ms: torch.Tensor
    floor_ms: torch.Tensor
    stage_ms: float


def fit_linear_costs(sequences, shown):
    """The LinearCosts that explain the runtimes best in relative terms.

    shown : bool (F,); events that are not get no weight. Where half of the programs tell too little of the other half's runtimes
    (another machine, say, or few programs), none gets any: a model that believes what is wrong learns less than one told nothing.
    """
    parts = []
    for shard in sequences.shards:
        events = torch.expm1(shard["features"][:, :, COST_COLUMNS].double())  # (N, T, K); padding has no events
        counted = shard["features"][:, :, [HAS_LOWERED_COUNTS_COLUMN]] > 0
        said, found = (shard["features"][:, :, [column]] > 0 for column in PARALLEL_COLUMNS)
        parallel = torch.where(counted, found, said)
        parts.append(torch.cat([(events * ~parallel).sum(1), (events * parallel).sum(1)], 1).numpy())
    events = np.concatenate(parts) * np.tile(shown[COST_COLUMNS].numpy(), 2)  # (N, 2 K)
    log_runtime = sequences.log_runtime.astype(np.float64)
    stage_ms = math.exp(np.mean(log_runtime - np.log(sequences.lengths)))
    half = sequences.program % 2 == 0

    def fit(events, log_runtime, half):
        """(milliseconds of each event, floor)."""
        errors = [
            np.log(events[~part] @ _fit(events[part], log_runtime[part]) + FLOOR_MS) - log_runtime[~part]
            for part in (half, ~half)
            if 0 < part.sum() < len(part)
        ]
        if not errors or np.mean(np.concatenate(errors) ** 2) > (1 - MIN_EXPLAINED) * log_runtime.var():
            return np.zeros(events.shape[1]), stage_ms
        return _fit(events, log_runtime), FLOOR_MS

    uncounted = events * ~np.tile(np.isin(COST_COLUMNS, LOWERED_COLUMNS), 2)
    counted = sequences.has_lowered_counts
    fits = [fit(uncounted, log_runtime, half), fit(events[counted], log_runtime[counted], half[counted])]
    event_ms, floor_ms = (torch.tensor(np.stack(values), dtype=torch.float32) for values in zip(*fits))
    return LinearCosts(event_ms.reshape(2, 2, -1), floor_ms, stage_ms)


def _fit(events, log_runtime):
    """Least squares without negative weights (Lawson & Hanson), reweighted so that a factor too slow counts like one too fast: (2 K,).

    An event costs the same in every stage, and more in a serial one as far as the data say so: few stages are serial, and weights
    fitted to those alone come out as 0 or absurd. What more it costs there is drawn to 0 by a ridge penalty.
    """
    serial, parallel = np.split(events, 2, axis=1)
    terms = np.concatenate([serial, serial + parallel], 1)
    k = serial.shape[1]
    runtime = np.exp(log_runtime)
    weight = 1 / runtime
    penalty = math.sqrt(SERIAL_PENALTY) * np.eye(k, 2 * k)
    target = np.r_[runtime, np.zeros(k)]
    for _ in range(REWEIGHTINGS):
        weighted = terms * weight[:, None]
        scale = np.tile(np.linalg.norm(weighted[:, k:], axis=0) + 1e-9, 2)
        target[: len(runtime)] = runtime * weight
        found = nnls(np.concatenate([weighted / scale, penalty]), target)[0] / scale
        predicted = terms @ found + FLOOR_MS
        weight = 1 / np.sqrt(predicted * runtime)
    more_ms, event_ms = np.split(found, 2)
    return np.concatenate([event_ms + more_ms, event_ms]) * np.exp(np.mean(log_runtime - np.log(predicted)))
