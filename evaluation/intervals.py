"""Prediction intervals: conformal calibration, coverage, and the correction of a program by a few of its measured schedules.

An interval is the wider the more the ensemble's members disagree on a schedule: half its width is in proportion to SPREAD_FLOOR and their
standard deviation together (Lei et al. 2018, "locally weighted"). Members disagree on programs unlike those of training, and most there.

Most of the error on a new program is shared by its schedules: all are predicted too fast, or all too slow. A residual (ln measured -
ln predicted) is modelled as an offset of its program plus an independent error, with variances `between` and `within` that are
estimated on the validation programs. Given the residuals of k measured schedules, the best linear predictor of the offset is their
mean, shrunk by between / (between + within / k) (Henderson 1975).
"""

import math
from dataclasses import dataclass

import numpy as np

IMPLAUSIBLE = 3.0  # standard deviations; a program's mean residual beyond them contradicts the variances of the validation programs
SPREAD_FLOOR = 0.1  # in log-runtime, of what all members get wrong together
COVERAGE_TOLERANCE = 0.05  # below its level, an interval that covers less does not hold
SHOTS = (1, 3, 8)
# features.INPUTS for a person.
SCHEDULES_WITH = {
    "all": "with lowered-code counts",
    "without_counts": "without lowered-code counts",
    "counts_alone": "without Halide's schedule features",
}
DRAWS = 20  # random choices of the measured schedules that the report averages over


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


def calibrate(residuals, spread, rows, level):
    """What intervals are made of, from the residuals of validation `rows` and the members' standard deviations there, (N,) each.

    width_per_spread : half a width over SPREAD_FLOOR plus the standard deviation; log_half_width : half the width in the mean of these
    rows; offset_variance : of variance_components; programs : how many they are.
    """
    factor = conformal_half_width(residuals / (SPREAD_FLOOR + spread), rows.program, level)
    return {
        "width_per_spread": factor, "log_half_width": float(np.mean(factor * (SPREAD_FLOOR + spread))),
        "offset_variance": variance_components(residuals, rows.instance),
        "programs": len(np.unique(rows.program)),
    }  # fmt: skip


def calibrations(predicted, rows, level):
    """What a checkpoint stores of its errors: {"errors": {one of features.INPUTS: calibration of predictions from these inputs}}.

    predicted : {one of INPUTS: (2, N), log-runtimes of the validation `rows` (Sequences) and the members' standard deviations}, with the
    other inputs masked where a row has all

    Each is of the rows that have these inputs, or all. Where there is none, it repeats another's, with 0 programs.
    """
    errors = {}
    for inputs, (log_predicted, spread) in predicted.items():
        at = np.flatnonzero((rows.inputs == inputs) | (rows.inputs == "all"))
        errors[inputs] = calibrate((rows.log_runtime - log_predicted)[at], spread[at], rows.subset(at), level) if len(at) else None
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


# Correction by measured schedules


def variance_components(residuals, programs):
    """{"between", "within"}: variances of the programs' offsets and of the errors within, by the analysis of variance.

    residuals, programs : (N,). The moment estimator for groups of unequal size; a negative estimate of `between` becomes 0.
    """
    _, group, size = np.unique(programs, return_inverse=True, return_counts=True)
    n, groups = len(residuals), len(size)
    mean = np.bincount(group, residuals) / size
    within = float(((residuals - mean[group]) ** 2).sum() / max(n - groups, 1))
    typical_size = (n - (size**2).sum() / n) / max(groups - 1, 1)
    spread = float((size * (mean - residuals.mean()) ** 2).sum() / max(groups - 1, 1))
    return {"between": max(0.0, (spread - within) / max(typical_size, 1.0)), "within": within}


def plausible_components(residuals, components):
    """The variance components for a program with these residuals (k,) of measured schedules.

    Where their mean or their spread lies beyond IMPLAUSIBLE standard deviations, the program is unlike the validation programs (another
    machine, say). Then its own residuals say how large the variances are, as in maximum likelihood. A single residual does not tell the
    program's offset from the schedule's own error: both variances are then larger by the same factor.
    """
    k, mean = len(residuals), float(np.mean(residuals))
    between, within = components["between"], components["within"]
    if k == 1:
        factor = mean**2 / max(between + within, 1e-12)
        return {"between": factor * between, "within": factor * within} if factor > IMPLAUSIBLE**2 else components
    if (spread := float(np.var(residuals, ddof=1))) > IMPLAUSIBLE**2 * within:
        within = spread
    if mean**2 > IMPLAUSIBLE**2 * (between + within / k):
        between = mean**2 - within / k
    return {"between": between, "within": within}


def offset(residuals, components):
    """How much slower a program is than predicted, in log-runtime, from the residuals (k,) of its measured schedules."""
    between, within = components["between"], components["within"]
    return float(np.mean(residuals)) * between / max(between + within / len(residuals), 1e-12)


def remaining_variance(k, components):
    """Variance of the error of a corrected prediction, with k schedules measured."""
    between, within = components["between"], components["within"]
    return between * within / max(k * between + within, 1e-12) + within


@dataclass
class Correction:
    """Of one program's predictions: what to add in log-runtime, and by what factor its intervals are narrower or wider.

    widened : whether its measured schedules contradict the calibration.
    """

    offset: float = 0.0
    width_factor: float = 1.0
    widened: bool = False


def correct(residuals, half_widths, prior, level):
    """The Correction of one program's predictions by the residuals of its measured schedules and half the widths there, (k,) each.

    prior : variance_components of the validation programs. Intervals shrink with the error that remains, and grow until a share `level` of
    the measured schedules lies within at least.
    """
    k = len(residuals)
    components = plausible_components(residuals, prior)
    shift = offset(residuals, components)
    scale = math.sqrt(remaining_variance(k, components) / max(prior["between"] + prior["within"], 1e-12))
    needed = float(np.sort(np.abs(residuals - shift) / (half_widths * scale))[math.ceil(round(level * k, 9)) - 1])
    return Correction(shift, scale * max(1.0, needed), components != prior or needed > 1)


def few_shot_errors(instances, log_runtime, log_predicted, components, seed):
    """[{"k", "programs", "mse_log", "median_ape", "uncorrected_mse_log", "uncorrected_median_ape"}] for each k of SHOTS.

    k schedules of each instance with more than k are drawn as measured, DRAWS times; both errors are those of the rest.
    """
    rng = np.random.default_rng(seed)
    residuals = log_runtime - log_predicted
    groups = [np.flatnonzero(instances == i) for i in np.unique(instances)]
    lines = []
    for k in SHOTS:
        large = [rows for rows in groups if len(rows) > k]
        before, after = [], []
        for _ in range(DRAWS):
            for rows in large:
                order = rng.permutation(rows)
                measured, rest = residuals[order[:k]], residuals[order[k:]]
                before.append(rest)
                after.append(rest - offset(measured, plausible_components(measured, components)))
        if large:
            before, after = np.concatenate(before), np.concatenate(after)
            lines.append({
                "k": k, "programs": len(large), "mse_log": float(np.mean(after**2)), "median_ape": _median_ape(after),
                "uncorrected_mse_log": float(np.mean(before**2)), "uncorrected_median_ape": _median_ape(before),
            })  # fmt: skip
    return lines


def _median_ape(residuals):
    return float(100 * np.median(np.abs(np.expm1(-residuals))))
