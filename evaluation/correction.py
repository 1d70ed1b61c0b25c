"""The correction of a program's predictions by a few of its measured schedules.

Most of the error on a new program is shared by its schedules, and the more so, the more alike they are in what takes their time: a kind
of event that costs more than predicted does so in all of them. So the residuals (ln measured - ln predicted) of a program's schedules
are modelled as a Gaussian process (Rasmussen & Williams 2006). The covariance of two schedules is

    offset + alike exp(-d^2 / (2 length^2)),    and `own` more of a schedule with itself,

where d is the distance between the square roots of their event shares (Hellinger's, but for a factor): what share of the predicted time
each kind of event takes (modeling.py). The four parameters are those by which the validation programs' residuals are likeliest.

Axes: N schedules, k of them measured, K + 1 kinds of event and the floor, G programs.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

IMPLAUSIBLE = 3.0  # standard deviations; a program's mean residual beyond them contradicts the variances of the validation programs
SHOTS = (1, 3, 8)
DRAWS = 20  # random choices of the measured schedules that the report averages over
LARGEST = 64  # schedules of a program that the parameters are fitted to
# Least and greatest value of each parameter, and where the fit starts, in (log-runtime)^2; the length is between square roots of shares.
PARAMETERS = {"offset": (1e-5, 10.0, 0.03), "alike": (1e-5, 10.0, 0.05), "own": (1e-4, 10.0, 0.05), "length": (0.03, 1.0, 0.3)}


def distances(shares, others):
    """(N, M) between the square roots of event shares (N, K + 1) and (M, K + 1)."""
    return np.sqrt(np.maximum(2 - 2 * np.sqrt(shares) @ np.sqrt(others).T, 0))  # shares sum to 1


def fit_covariance(residuals, instances, shares):
    """The covariance's parameters {"offset", "alike", "own", "length"} by maximum likelihood.

    residuals, instances : (N,); shares : (N, K + 1). Programs are independent; of a large one LARGEST schedules count.
    """
    order = np.argsort(instances, kind="stable")
    starts = 1 + np.flatnonzero(instances[order][1:] != instances[order][:-1])
    groups = [group[:LARGEST] for group in np.split(order, starts)]
    n = max(map(len, groups))
    residual, present, distance = np.zeros((len(groups), n, 1)), np.zeros((len(groups), n), bool), np.zeros((len(groups), n, n))
    for i, group in enumerate(groups):
        residual[i, : len(group), 0], present[i, : len(group)] = residuals[group], True
        distance[i, : len(group), : len(group)] = distances(shares[group], shares[group])
    residual, distance, present = torch.from_numpy(residual), torch.from_numpy(distance), torch.from_numpy(present)
    both, identity = present[:, :, None] & present[:, None, :], torch.eye(n, dtype=torch.float64)
    filler = torch.diag_embed((~present).double())  # rows that are missing: a variance of 1 and a residual of 0, which cost nothing

    def cost(logarithms):
        """Negative log-likelihood a schedule, and its gradient."""
        theta = torch.tensor(logarithms, requires_grad=True)
        offset, alike, own, length = theta.exp()
        covariance = (offset + alike * torch.exp(-(distance**2) / (2 * length**2)) + own * identity) * both + filler
        factor = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(factor, residual, upper=False)
        loss = (whitened**2).sum() / 2 + factor.diagonal(dim1=1, dim2=2).log().sum()
        loss = loss / len(residuals)
        loss.backward()
        return loss.item(), theta.grad.numpy()

    low, high, start = np.log(np.array(list(PARAMETERS.values()))).T
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high))).x
    return dict(zip(PARAMETERS, np.exp(found).tolist()))


def shared(covariance, distance):
    """The covariance of schedules at a distance (N, M) that are not the same."""
    return covariance["offset"] + covariance["alike"] * np.exp(-(distance**2) / (2 * covariance["length"] ** 2))


def plausible(residuals, covariance):
    """The covariance for a program with these residuals (k,) of measured schedules.

    Where their mean or their spread lies beyond IMPLAUSIBLE standard deviations, the program is unlike the validation programs (another
    machine, say). Then its own residuals say how large the variances are, as in maximum likelihood. A single residual does not tell the
    program's offset from the schedule's own error: all variances are then larger by the same factor.
    """
    k, mean = len(residuals), float(np.mean(residuals))
    offset, alike, own = (covariance[name] for name in ("offset", "alike", "own"))
    if k == 1:
        factor = mean**2 / (offset + alike + own)
        if factor <= IMPLAUSIBLE**2:
            return covariance
        return covariance | {"offset": factor * offset, "alike": factor * alike, "own": factor * own}
    if (spread := float(np.var(residuals, ddof=1))) > IMPLAUSIBLE**2 * (alike + own):
        factor = spread / (alike + own)
        alike, own = factor * alike, factor * own
    # How far the mean strays varies with how alike the schedules are: as if none were.
    if mean**2 > IMPLAUSIBLE**2 * (offset + alike + own / k):
        offset = mean**2
    return covariance | {"offset": offset, "alike": alike, "own": own}


@dataclass
class Correction:
    """Of one program's predictions, by its measured schedules: what `of` says.

    covariance : of its residuals; shares : (k, K + 1), of the measured; factor : of the Cholesky decomposition of their covariance;
    weights : (k,); usual : the variance of a residual by the calibration; widening : a further factor of its intervals' widths;
    widened : whether its measured schedules contradict the calibration
    """

    covariance: dict
    shares: np.ndarray
    factor: tuple
    weights: np.ndarray
    usual: float
    widening: float = 1.0
    widened: bool = False

    @classmethod
    def fit(cls, residuals, shares, prior):
        """From the residuals (k,) and event shares (k, K + 1) of measured schedules; prior : fit_covariance of the validation programs."""
        covariance = plausible(residuals, prior)
        own = covariance["own"] * np.eye(len(residuals))
        factor = cho_factor(shared(covariance, distances(shares, shares)) + own)
        usual = prior["offset"] + prior["alike"] + prior["own"]
        return cls(covariance, shares, factor, cho_solve(factor, residuals), usual, widened=covariance != prior)

    def of(self, shares):
        """For schedules with event shares (N, K + 1): (what to add to predicted log-runtimes, by what factor intervals are narrower or
        wider), (N,) each."""
        covariance = shared(self.covariance, distances(shares, self.shares))  # (N, k)
        known = np.einsum("nk,kn->n", covariance, cho_solve(self.factor, covariance.T))
        remaining = self.covariance["offset"] + self.covariance["alike"] + self.covariance["own"] - known
        return covariance @ self.weights, self.widening * np.sqrt(np.maximum(remaining, 0) / self.usual)


def correct(residuals, half_widths, shares, prior, level):
    """The Correction of one program's predictions by the residuals of its measured schedules, half the widths, (k,) each, and their event
    shares (k, K + 1).

    prior : fit_covariance of the validation programs. Intervals shrink with the error that remains, and grow until a share `level` of
    the measured schedules lies within at least.
    """
    correction = Correction.fit(residuals, shares, prior)
    offsets, factors = correction.of(shares)
    needed = float(np.sort(np.abs(residuals - offsets) / (half_widths * factors))[math.ceil(round(level * len(residuals), 9)) - 1])
    correction.widening, correction.widened = max(1.0, needed), correction.widened or needed > 1
    return correction


def few_shot_errors(instances, residuals, half_widths, shares, prior, level, seed):
    """[{"k", "programs", "mse_log", "median_ape", "uncorrected_mse_log", "uncorrected_median_ape", "coverage"}] for each k of SHOTS.

    k schedules of each instance with more than k are drawn as measured, DRAWS times; both errors are those of the rest, and coverage is
    the share of the rest that lies within the corrected intervals.

    instances, residuals, half_widths : (N,); shares : (N, K + 1); prior, level : as of correct
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(instances == i) for i in np.unique(instances)]
    lines = []
    for k in SHOTS:
        large = [rows for rows in groups if len(rows) > k]
        before, after, width = [], [], []
        for _ in range(DRAWS):
            for rows in large:
                order = rng.permutation(rows)
                measured, rest = order[:k], order[k:]
                found = correct(residuals[measured], half_widths[measured], shares[measured], prior, level)
                offsets, factors = found.of(shares[rest])
                before.append(residuals[rest])
                after.append(residuals[rest] - offsets)
                width.append(half_widths[rest] * factors)
        if large:
            before, after, width = map(np.concatenate, (before, after, width))
            lines.append({
                "k": k, "programs": len(large), "mse_log": float(np.mean(after**2)), "median_ape": _median_ape(after),
                "uncorrected_mse_log": float(np.mean(before**2)), "uncorrected_median_ape": _median_ape(before),
                "coverage": float(np.mean(np.abs(after) <= width)),
            })  # fmt: skip
    return lines


def _median_ape(residuals):
    return float(100 * np.median(np.abs(np.expm1(-residuals))))
