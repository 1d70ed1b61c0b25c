"""The linear model that a stage's predicted cost starts from: milliseconds an event, fitted to the training runtimes; and the scales by
which kinds of event are dearer on another machine."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from features import COST_COLUMNS, LOWERED_COLUMNS, PARALLEL_COLUMNS

FLOOR_MS = 1e-5  # least cost of a stage
MIN_EXPLAINED = 0.5  # of the variance of log-runtime, for the linear cost model to be of use
REWEIGHTINGS = 6  # of the least squares behind the linear cost model
SERIAL_PENALTY = 0.01  # ridge penalty on the extra cost of an event in serial stages
LEAST_SHARE = 0.01  # of the runtimes that each kind of event takes by `least_ms`, in the mean: a cost of 0 could not be corrected
# Of another machine's scales, as a prior: the standard deviation of a kind's logarithm beside that of all kinds, the variance of
# log-runtimes around them, and how many schedules of a program count as independent.
SCALE_SPREAD, SCALED_VARIANCE, INDEPENDENT = 0.5, 0.1, 3


@dataclass
class LinearCosts:
    """A stage's milliseconds as a weighted sum of its events, and no less than `floor_ms`.

    event_ms : (2, 2, K) float32: of schedules without and with lowered-code counts, in serial and in parallel stages
    least_ms : (2, K) float32, of the same schedules: what an event costs at least where its cost is to be corrected
    floor_ms : (2,) float32, of the same
    stage_ms : the mean of a stage, whatever it is
    """

    event_ms: torch.Tensor
    least_ms: torch.Tensor
    floor_ms: torch.Tensor
    stage_ms: float


def fit_linear_costs(sequences, shown):
    """The LinearCosts that explain the runtimes best in relative terms.

    shown : bool (F,); events among the other features get no weight. Where a fit to half of the programs explains less than
    MIN_EXPLAINED of the other half's variance (few programs, say), no event gets any weight: a wrong start is worse than none.
    """
    parts = []
    for shard in sequences.parts():
        events = torch.expm1(shard["features"][:, :, COST_COLUMNS].double())  # (N, T, K); padding has no events
        parallel = [shard["features"][:, :, [column]] > 0 for column in PARALLEL_COLUMNS]
        parts.append([torch.cat([(events * ~p).sum(1), (events * p).sum(1)], 1).numpy() for p in parallel])
    # (N, 2 K) each, by which stages are parallel in Halide's schedule features, and in the lowered code.
    by_halide, by_code = (np.concatenate(part) * np.tile(shown[COST_COLUMNS].numpy(), 2) for part in zip(*parts))
    log_runtime = sequences.log_runtime.astype(np.float64)
    stage_ms = math.exp(np.mean(log_runtime - np.log(sequences.lengths)))
    half = sequences.program % 2 == 0

    def fit(events, log_runtime, half):
        """(milliseconds of each event, the least of each, floor)."""
        errors = [
            np.log(events[~part] @ _fit(events[part], log_runtime[part]) + FLOOR_MS) - log_runtime[~part]
            for part in (half, ~half)
            if 0 < part.sum() < len(part)
        ]
        if not errors or np.mean(np.concatenate(errors) ** 2) > (1 - MIN_EXPLAINED) * log_runtime.var():
            return np.zeros(events.shape[1]), np.zeros(events.shape[1] // 2), stage_ms
        return _fit(events, log_runtime), _least(events, log_runtime), FLOOR_MS

    of_counts = np.tile(np.isin(COST_COLUMNS, LOWERED_COLUMNS), 2)
    kinds = [
        (by_halide * ~of_counts, sequences.inputs != "counts_alone"),
        (by_code * of_counts, sequences.inputs != "without_counts"),
    ]
    fits = [fit(events[rows], log_runtime[rows], half[rows]) for events, rows in kinds]
    event_ms, least_ms, floor_ms = (torch.tensor(np.stack(values), dtype=torch.float32) for values in zip(*fits))
    return LinearCosts(event_ms.reshape(2, 2, -1), least_ms, floor_ms, stage_ms)


def _least(events, log_runtime):
    """Milliseconds with which each kind of event takes LEAST_SHARE of the runtimes in the mean, (K,); 0 for those that never occur."""
    serial, parallel = np.split(events, 2, axis=1)
    a_ms = ((serial + parallel) / np.exp(log_runtime)[:, None]).mean(0)
    return np.divide(LEAST_SHARE, a_ms, out=np.zeros(len(a_ms)), where=a_ms > 0)


def _fit(events, log_runtime):
    """Milliseconds of each event, (2 K,), by least squares without negative weights (Lawson & Hanson 1974).

    Reweighted so that a factor too slow costs as much as a factor too fast. An event's cost in a serial stage is its cost in a parallel
    one and a non-negative extra. Few stages are serial, and fitted to those alone costs come out as 0 or absurd: a ridge penalty
    draws the extra to 0.
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


def fit_event_scales(log_costs, log_runtime, program):
    """By what factor each kind of event, and the floor, is dearer on another machine, (K + 1,) float32: the likeliest a posteriori.

    log_costs : (M, N, K + 1), predicted log milliseconds of each kind in N schedules by M members; log_runtime, program : (N,), measured
    """
    _, place, count = np.unique(program, return_inverse=True, return_counts=True)
    weight = torch.from_numpy(np.minimum(INDEPENDENT / count[place], 1)).float()
    measured = torch.from_numpy(log_runtime).float()
    of_all, of_kind = torch.zeros((), requires_grad=True), torch.zeros(log_costs.shape[2], requires_grad=True)
    optimizer = torch.optim.LBFGS([of_all, of_kind], max_iter=200, line_search_fn="strong_wolfe")

    def cost():
        optimizer.zero_grad()
        residual = (log_costs + of_kind).logsumexp(2).mean(0) + of_all - measured
        loss = (weight * residual**2).sum() / SCALED_VARIANCE + (of_kind**2).sum() / SCALE_SPREAD**2
        loss.backward()
        return loss

    optimizer.step(cost)
    return (of_all + of_kind).detach().exp()
