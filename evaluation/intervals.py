"""Prediction intervals: conformal calibration and coverage.

An interval is the wider the more the ensemble's members disagree on a schedule: half its width is in proportion to SPREAD_FLOOR and their
standard deviation together (Lei et al. 2018, "locally weighted"). Members disagree on programs unlike those of training, and most there.
"""

import math

import numpy as np

from evaluation.correction import fit_covariance

SPREAD_FLOOR = 0.1  # in log-runtime, of what all members get wrong together
UNFAMILIAR_SHARE = 0.01  # of a schedule's inputs outside the range seen in training; more is warned of
COVERAGE_TOLERANCE = 0.05  # below its level, an interval that covers less does not hold
# features.INPUTS for a person.
SCHEDULES_WITH = {
    "all": "with lowered-code counts",
    "without_counts": "without lowered-code counts",
    "counts_alone": "without Halide's schedule features",
}


# Conformal intervals


def conformal_half_width(residuals, programs, level):
    """Half the width of an interval in log-runtime that covers a new program's schedules with probability `level` on average.

    Split conformal prediction in which programs, not rows, are exchangeable: every program has the same weight, and one more with an
    infinite residual stands for the new program (Lei et al. 2018; Dunn et al. 2022 for groups). With fewer than
    `programs_needed(level)` programs that width would be infinite. Then the largest residual is returned, and the level is not reached.
    """
    _, program, count = np.unique(programs, return_inverse=True, return_counts=True)
    order = np.argsort(np.abs(residuals))
    reached = np.cumsum(1 / count[program[order]]) / (len(count) + 1)
    at = np.searchsorted(reached, level)
    return float(np.abs(residuals)[order[min(at, len(order) - 1)]])


def programs_needed(level):
    """The least number of calibration programs for which an interval of this level is finite."""
    return math.ceil(round(level / (1 - level), 9))


def calibrate(residuals, spread, shares, rows, level):
    """What intervals are made of, from the residuals of validation `rows`, the members' standard deviations there, (N,) each, and the
    event shares (N, K + 1).

    width_per_spread : half a width over SPREAD_FLOOR plus the standard deviation; log_half_width : half the width in the mean of these
    rows; covariance : of fit_covariance; programs : how many they are.
    """
    factor = conformal_half_width(residuals / (SPREAD_FLOOR + spread), rows.program, level)
    return {
        "width_per_spread": factor, "log_half_width": float(np.mean(factor * (SPREAD_FLOOR + spread))),
        "covariance": fit_covariance(residuals, rows.instance, shares),
        "programs": len(np.unique(rows.program)),
    }  # fmt: skip


def calibrations(predicted, rows, level):
    """What a checkpoint stores of its errors: {"errors": {one of features.INPUTS: calibration of predictions from these inputs}}.

    predicted : {one of INPUTS: RowPredictions of the validation `rows` (Sequences)}, with the other inputs masked where a row has all

    Each is of the rows that have these inputs, or all. Where there is none, it repeats another's, with 0 programs.
    """
    errors = {}
    for inputs, found in predicted.items():
        at = np.flatnonzero((rows.inputs == inputs) | (rows.inputs == "all"))
        of_rows = (rows.log_runtime - found.log_runtime)[at], found.spread[at], found.event_shares[at]
        errors[inputs] = calibrate(*of_rows, rows.subset(at), level) if len(at) else None
    known = next(found for found in errors.values() if found)
    return {"errors": {inputs: found or known | {"programs": 0} for inputs, found in errors.items()}}


def half_widths(meta, inputs, spread):
    """Half the width of each row's interval, (N,), from which of features.INPUTS it has and its members' standard deviation, (N,) each."""
    return np.array([meta["errors"][one]["width_per_spread"] for one in inputs]) * (SPREAD_FLOOR + np.asarray(spread))


def calibration_warning(meta, inputs):
    """A line where the intervals of some rows, by their inputs (N,), come from too few calibration programs for their level, else ""."""
    for one in np.unique(inputs):
        programs, needed = meta["errors"][one]["programs"], programs_needed(meta["interval"])
        if programs < needed:
            return (
                f"intervals of schedules {SCHEDULES_WITH[one]} were calibrated on {programs} programs; {meta['interval']:.0%} needs "
                f"at least {needed}: they may be too narrow"
            )
    return ""


# Coverage


def coverage(rows, log_predicted, half_width, level):
    """{"level", "log_half_width", "coverage", "coverage_by_program"} of the intervals of `rows`.

    coverage : share of the rows whose measured runtime lies within. coverage_by_program : the mean over programs of that share, which is
    what the calibration promises. None without rows.
    """
    if not len(rows.log_runtime):
        return {"level": level, "log_half_width": None, "coverage": None, "coverage_by_program": None}
    inside = np.abs(log_predicted - rows.log_runtime) <= half_width
    _, program, count = np.unique(rows.program, return_inverse=True, return_counts=True)
    return {
        "level": level, "log_half_width": float(np.mean(half_width)), "coverage": float(inside.mean()),
        "coverage_by_program": float(np.mean(np.bincount(program, inside) / count)),
    }  # fmt: skip


def coverage_warnings(found):
    """A line for each part of `found` {name: result of coverage} whose intervals are known not to hold."""
    return [
        f"the {c['level']:.0%} intervals are too narrow for programs like those of `{name}`: they cover {c['coverage_by_program']:.0%} "
        f"of a program's schedules there ({c['coverage']:.0%} of the rows)"
        for name, c in found.items()
        if c["coverage"] is not None and c["coverage_by_program"] < c["level"] - COVERAGE_TOLERANCE
    ]
