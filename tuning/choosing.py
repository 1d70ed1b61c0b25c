"""Which of the pool's schedules to measure next.

Each way to choose takes (pool, keys measured so far, keys still open, how many) and returns keys.
"""

import math
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from evaluation import adams2019
from halide_tools.autoschedulers import baseline_weights

NOISE = 0.03  # of a measurement, in log-runtime
OPTIMISM = 0.5  # standard deviations by which a prediction that is less sure may be faster
MIN_RESIDUALS = 8  # measured schedules before the kernel is fitted to them
RETRAIN_RATE, RETRAIN_EPOCHS = 1e-4, 32  # of Halide's autotune loop


def choose_by_model(pool, measured, still_open, n):
    """By the LSTM's predictions, corrected by what was measured.

    The prediction's error is taken for a Gaussian process: an offset of the program, and a part that schedules share the more, the
    nearer they are, with the variances found on validation programs. A batch is chosen one by one, each believed to turn out as
    predicted, so that it is not of one kind (the "kriging believer" of Ginsbourger et al. 2010).
    """
    x, row = pool.descriptors(), {key: i for i, key in enumerate(pool.keys)}
    candidates = [row[key] for key in still_open if key in row]
    counted = [i for i in candidates if pool.schedules[i].lowered is not None]
    if len(counted) >= n:  # the others looked slow at a first glance
        candidates = counted
    rows = [row[key] for key in measured if key in row]
    residuals = [math.log(pool.run.runtime_ms(pool.keys[i])) - pool.log_predicted[i] for i in rows]
    variances = pool.meta["errors"]["counts_alone"]["covariance"]
    between, within = (max(v, 1e-3) for v in (variances["offset"], variances["alike"] + variances["own"]))
    kernel = ConstantKernel(between, "fixed") + ConstantKernel(within, (within / 10, within * 10)) * RBF(1.0, (0.2, 5.0))
    optimizer = "fmin_l_bfgs_b" if len(rows) >= MIN_RESIDUALS else None
    chosen = []
    while candidates and len(chosen) < n:
        process = GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=optimizer)
        if rows:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at the end of its range is a good one, too
                process.fit(x[rows], residuals)
            kernel, optimizer = process.kernel_, None
        error, deviation = process.predict(x[candidates], return_std=True)
        best = int(np.argmin(pool.log_predicted[candidates] + error - OPTIMISM * deviation))
        chosen.append(candidates.pop(best))
        rows, residuals = [*rows, chosen[-1]], [*residuals, float(error[best])]
    return [pool.keys[i] for i in chosen]


def choose_at_random(pool, measured, still_open, n):
    """Any of them, with the same chance."""
    rng = np.random.default_rng([pool.run.spec.seed, len(measured)])
    return [still_open[i] for i in rng.permutation(len(still_open))[:n]]


class ChooseByHalide:
    """By the cost that Adams2019's own model predicts, its weights retrained on what was measured as Halide's autotune loop does."""

    def __init__(self):
        self.weights = baseline_weights()

    def __call__(self, pool, measured, still_open, n):
        samples = [pool.run.folder / f"{key.zfill(3)}.sample" for key in measured if key not in pool.run.others]
        if len(samples) >= adams2019.MIN_SCHEDULES:
            self.weights = adams2019.retrain(samples, RETRAIN_RATE, RETRAIN_EPOCHS, pool.run.cores, self.weights)
        cost = dict(zip(pool.keys, adams2019.log_predictions(self.weights, pool.halide_batches(), pool.run.cores)))
        return sorted(still_open, key=lambda key: cost[key])[:n]
