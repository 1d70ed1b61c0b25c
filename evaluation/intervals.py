"""How far predictions may be off: conformal intervals, and the correction by a few measured schedules of a program.

Most of the error on a new program is shared by its schedules: the model takes all of them for faster or slower than they are. A
residual (ln measured - ln predicted) is taken for the sum of an offset of its program and an error of its own, with variances
`between` and `within` that are estimated on the validation programs. Given residuals of k measured schedules, the best linear
predictor of the offset is their mean, shrunk by between / (between + within / k) (Henderson 1975).
"""

import numpy as np


def conformal_half_width(residuals, programs, level):
    """Half the width of an interval in log-runtime that covers a new program's schedules with probability `level` on average.

    Split conformal prediction with programs, not rows, as what is exchangeable: every program counts the same, and one more,
    infinitely wrong, stands for the program to come (Lei et al. 2018; Dunn et al. 2022 for groups). With fewer programs than
    level / (1 - level) that would be an infinite width; then the largest residual is returned, and the level is not promised.
    """
    _, program, count = np.unique(programs, return_inverse=True, return_counts=True)
    order = np.argsort(np.abs(residuals))
    reached = np.cumsum(1 / count[program[order]]) / (len(count) + 1)
    at = np.searchsorted(reached, level)
    return float(np.abs(residuals)[order[min(at, len(order) - 1)]])


def errors_of(meta, counted):
    """What a checkpoint knows of its errors on programs not seen, where the lowered code was counted and where it was not: {"log_half_width",
    "offset_variance"}."""
    return meta["errors" if counted else "errors_uncounted"]


SHOTS = (1, 3, 8)
DRAWS = 20  # random choices of the measured schedules that the report averages over


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


def offset(residuals, components):
    """How much slower a program is than predicted, in log-runtime, from the residuals (k,) of its measured schedules."""
    between, within = components["between"], components["within"]
    return float(np.mean(residuals)) * between / max(between + within / len(residuals), 1e-12)


def remaining_error(k, components):
    """Standard deviation of a corrected prediction's error over that of an uncorrected one, with k schedules measured."""
    between, within = components["between"], components["within"]
    left = between * within / max(k * between + within, 1e-12)
    return float(np.sqrt((left + within) / max(between + within, 1e-12)))


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
                rest = residuals[order[k:]]
                before.append(rest)
                after.append(rest - offset(residuals[order[:k]], components))
        if large:
            before, after = np.concatenate(before), np.concatenate(after)
            lines.append({
                "k": k, "programs": len(large), "mse_log": float(np.mean(after**2)), "median_ape": _median_ape(after),
                "uncorrected_mse_log": float(np.mean(before**2)), "uncorrected_median_ape": _median_ape(before),
            })  # fmt: skip
    return lines


def _median_ape(residuals):
    return float(100 * np.median(np.abs(np.expm1(-residuals))))
