"""Every figure of the report, from predicted and measured runtimes.

Within a program (an instance of it: the algorithm at one size) the question is the order of its schedules; across programs, the
size of the error. `log` is the natural logarithm of milliseconds.
"""

from math import comb

import numpy as np
from scipy.stats import kendalltau, rankdata

TITLES = {
    "mse_log": "MSE log", "r2_log": "R2 log", "mse": "MSE ms^2", "mape": "MAPE %", "median_ape": "median APE %", "spearman": "Spearman",
    "kendall": "Kendall", "pairwise_accuracy": "pair acc.", "top1_regret": "top-1 regret", "top5_regret": "top-5",
    "correct_ordering_rate": "correct ordering",
}  # fmt: skip
ORDER_TOLERANCE = 1.1  # runtimes closer than this are not worth ordering
SLOWER = 1.3  # Halide's own threshold in its correct ordering rate
PAIRS_AT_A_TIME = 2**22  # some 100 MB, however many schedules a program has
BOOTSTRAP_ROWS = 2e8  # rows that all resamplings together draw at most; more test rows get fewer resamplings, but MIN_RESAMPLINGS
MIN_RESAMPLINGS = 100


def error_metrics(log_runtime, log_predicted):
    """Metrics over rows, from arrays of shape (N,): mse_log, r2_log, mse (ms^2), mape and median_ape (percent)."""
    residual = log_predicted - log_runtime
    runtime, predicted = np.exp(log_runtime), np.exp(log_predicted)
    variance = np.var(log_runtime) if np.ptp(log_runtime) > 0 else 0.0
    ape = 100 * np.abs(predicted - runtime) / runtime
    mse_log = np.mean(residual**2)
    return {
        "mse_log": mse_log, "r2_log": 1 - mse_log / variance if variance > 0 else np.nan, "mse": np.mean((predicted - runtime) ** 2),
        "mape": np.mean(ape), "median_ape": np.median(ape),
    }  # fmt: skip


def program_metrics(runtime, predicted):
    """Metrics of one program's schedules, (N,) with N >= 2: how well their order is predicted. NaN where there is no order.

    top-k regret is the fastest runtime among the k predicted fastest over the fastest of all, at least 1; the two counts are
    those of Halide's correct ordering rate.
    """
    fastest = int(np.argmin(runtime))
    slow = runtime > SLOWER * runtime[fastest]
    return {
        "spearman": spearman(runtime, predicted), "kendall": kendall(runtime, predicted),
        "pairwise_accuracy": pairwise_accuracy(runtime, predicted),
        "top1_regret": top_k_regret(runtime, predicted, 1), "top5_regret": top_k_regret(runtime, predicted, 5),
        "n_slow": int(slow.sum()), "n_ordered": int((predicted[slow] >= predicted[fastest]).sum()),
    }  # fmt: skip


def spearman(runtime, predicted):
    """Rank correlation with ties at their mean rank; 0 for a constant prediction, NaN for constant runtimes."""
    a, b = rankdata(runtime), rankdata(predicted)
    a, b = a - a.mean(), b - b.mean()
    if not a.any():
        return np.nan
    return float(a @ b / np.sqrt((a @ a) * (b @ b))) if b.any() else 0.0


def kendall(runtime, predicted):
    """Kendall's tau-b; 0 for a constant prediction, NaN for constant runtimes."""
    if np.ptp(runtime) == 0:
        return np.nan
    return float(kendalltau(runtime, predicted).statistic) if np.ptp(predicted) > 0 else 0.0


def pairwise_accuracy(runtime, predicted):
    """Share of the pairs more than 10 % apart that are ordered rightly; a tie counts half."""
    n, apart, agreement = len(runtime), 0, 0
    step = max(1, PAIRS_AT_A_TIME // n)
    for start in range(0, n, step):  # some rows of the matrix of pairs at a time, right of its diagonal
        i, j = slice(start, start + step), slice(start, n)
        a, b = runtime[i, None], runtime[None, j]
        pairs = np.triu(np.maximum(a, b) > ORDER_TOLERANCE * np.minimum(a, b), 1)
        orders = np.sign(a - b) * np.sign(predicted[i, None] - predicted[None, j])
        apart += int(pairs.sum())
        agreement += int(orders[pairs].sum())
    return (agreement + apart) / 2 / apart if apart else np.nan


def top_k_regret(runtime, predicted, k):
    """Best runtime among the k schedules predicted fastest over the best of all.

    Where equal predictions straddle the k-th place, the mean over all ways to choose among them.
    """
    k = min(k, len(runtime))
    threshold = np.sort(predicted)[k - 1]
    sure, tied = runtime[predicted < threshold], np.sort(runtime[predicted == threshold])
    n, chosen = len(tied), k - len(sure)
    if len(sure):
        tied = np.minimum(tied, sure.min())
    # The i-th fastest of the tied ones is the best of a choice when the others chosen all come after it.
    chances = [comb(n - i - 1, chosen - 1) / comb(n, chosen) for i in range(n)]
    return float(np.dot(chances, tied) / runtime.min())


def by_program(groups, runtime, predicted):
    """[(group, number of schedules, program_metrics)] for each of the `groups` (N,) that has two schedules or more."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]])
    parts = np.split(order, starts[1:])
    return [(groups[part[0]], len(part), program_metrics(runtime[part], predicted[part])) for part in parts if len(part) > 1]


def summarise(programs):
    """Within-program metrics over programs: means, but the geometric mean of regrets, and the pooled correct ordering rate.

    programs : list of program_metrics; a metric is left out of the mean where a program has no value for it.
    """

    def values(name):
        column = np.array([p[name] for p in programs], float)
        return column[~np.isnan(column)]

    result = {name: np.mean(values(name)) if len(values(name)) else np.nan for name in ("spearman", "kendall", "pairwise_accuracy")}
    for name in ("top1_regret", "top5_regret"):
        result[name] = np.exp(np.mean(np.log(values(name)))) if programs else np.nan
    n_slow = sum(p["n_slow"] for p in programs)
    result["correct_ordering_rate"] = sum(p["n_ordered"] for p in programs) / n_slow if n_slow else np.nan
    return result


def all_metrics(groups, log_runtime, log_predicted):
    """Every metric of docs/metrics.md for one model: {name: float}."""
    programs = [p for _, _, p in by_program(groups, np.exp(log_runtime), np.exp(log_predicted))]
    return {k: float(v) for k, v in (error_metrics(log_runtime, log_predicted) | summarise(programs)).items()}


def resamplings(n_samples, n_rows):
    """How many resamplings are made where `n_samples` are asked for: fewer for very many rows, so that the cost is bounded."""
    return min(n_samples, max(MIN_RESAMPLINGS, int(BOOTSTRAP_ROWS // max(n_rows, 1))))


def bootstrap(programs, groups, log_runtime, log_predicted, n_samples, level, seed):
    """Confidence intervals {metric: [low, high]} from resampling whole programs, whose schedules are not independent.

    programs : (N,) what is resampled; groups : (N,) instances, within which schedules are ordered
    """
    if n_samples == 0:
        return {}
    units, unit_of = np.unique(programs, return_inverse=True)
    rows = [np.flatnonzero(unit_of == u) for u in range(len(units))]
    within = [[p for _, _, p in by_program(groups[r], np.exp(log_runtime[r]), np.exp(log_predicted[r]))] for r in rows]
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(resamplings(n_samples, len(programs))):
        drawn = rng.integers(len(units), size=len(units))
        at = np.concatenate([rows[u] for u in drawn])
        samples.append(error_metrics(log_runtime[at], log_predicted[at]) | summarise([p for u in drawn for p in within[u]]))
    tails = [50 * (1 - level), 50 * (1 + level)]
    with np.errstate(all="ignore"):
        return {
            name: [float(v) for v in np.nanpercentile([s[name] for s in samples], tails)]
            if not all(np.isnan(s[name]) for s in samples)
            else [None, None]
            for name in samples[0]
        }


def noise_ceiling(rows, log_runtime):
    """The scores of a predictor that knows every true runtime, from schedules that were measured more than once.

    rows : DataFrame with `measurements`, `log_variance` and `log_range` (of a schedule's log-runtimes); log_runtime : (N,) of the
    test rows. Differences are between the slowest and the fastest measurement of one schedule, in percent. None without any.
    """
    repeated = rows[rows.measurements > 1]
    if repeated.empty:
        return None
    degrees = repeated.measurements - 1
    variance = float((repeated.log_variance * degrees).sum() / degrees.sum())
    difference = 100 * np.expm1(repeated.log_range)
    total = float(np.var(log_runtime))
    return {
        "repeated_schedules": len(repeated), "log_sigma": variance**0.5, "mse_log": variance,
        "r2_log": 1 - variance / total if total > 0 else None,
        "median_ape": 100 * 0.6745 * variance**0.5,  # the median of a normal error of this size
        "median_difference": float(difference.median()), "p90_difference": float(difference.quantile(0.9)),
    }  # fmt: skip
