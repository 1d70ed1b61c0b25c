"""The rival models of every report, fitted on the same training rows with the same inputs as the LSTM.

Each takes (train, val, others) as Sequences and returns the predicted log-runtime of each of `others`, a list of (N,) arrays. Halide's own
network needs its features: it is NaN for schedules that have none.
"""

import copy
import tempfile

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

import data_utils
from config import usable_cores
from evaluation import adams2019
from halide_tools.autoschedulers import baseline_weights

TREE_SETTINGS = [{"max_leaf_nodes": 8, "min_samples_leaf": 10}, {"max_leaf_nodes": 31, "min_samples_leaf": 20}]
TREE_RATE, TREE_ITERATIONS = 0.08, 300
ROWS_A_THREAD = 20000  # of the trees; with fewer rows, threads wait for each other longer than they compute
RETRAIN_RATES, RETRAIN_EPOCHS = (1e-4, 3e-4, 1e-3), 100


def constant(train, val, others):
    """The mean log-runtime of the training rows."""
    return [np.full(len(rows), train.log_runtime.mean(dtype=np.float64)) for rows in others]


def program_mean(train, val, others):
    """The mean log-runtime of the program's own training rows: only a split by schedule has any."""
    programs, inverse = np.unique(train.program, return_inverse=True)
    means = dict(zip(programs, np.bincount(inverse, train.log_runtime) / np.bincount(inverse)))
    overall = train.log_runtime.mean(dtype=np.float64)
    return [np.array([means.get(p, overall) for p in rows.program]) for rows in others]


def hist_gradient_boosting(train, val, others, seed=0):
    """Boosted trees on the LSTM's inputs pooled over stages; their size and number of rounds are chosen on the validation rows."""
    x_train, x_val = pooled_features(train), pooled_features(val)
    with threadpool_limits(min(torch.get_num_threads(), 1 + len(train) // ROWS_A_THREAD), "openmp"):
        candidates = []
        for settings in TREE_SETTINGS:
            trees = HistGradientBoostingRegressor(
                learning_rate=TREE_RATE, max_iter=TREE_ITERATIONS, early_stopping=False, random_state=seed, **settings
            ).fit(x_train, train.log_runtime)
            errors = [np.mean((p - val.log_runtime) ** 2) for p in trees.staged_predict(x_val)]
            rounds = int(np.argmin(errors))
            candidates.append((errors[rounds], trees, rounds))
        _, trees, rounds = min(candidates, key=lambda candidate: candidate[0])
        chosen = first_rounds(trees, rounds + 1)
        return [chosen.predict(pooled_features(rows)) if len(rows) else np.zeros(0) for rows in others]


def first_rounds(trees, n):
    """Fitted HistGradientBoosting with the trees of its first `n` rounds alone."""
    first = copy.copy(trees)
    first._predictors = trees._predictors[:n]  # scikit-learn (pinned) has no public way but staged_predict, a pass over all rows a tree
    return first


def pooled_features(sequences):
    """Each feature's mean, maximum and log-sum-exp over a schedule's stages, and the number of stages: (N, 3 F + 1)."""
    parts = [np.zeros((0, 1), np.float32)]
    for shard in sequences.parts():
        features, lengths = shard["features"], shard["lengths"]
        padding = torch.arange(features.shape[1]) >= lengths[:, None]
        unpadded = features.masked_fill(padding[:, :, None], -torch.inf)
        mean = features.sum(1) / lengths[:, None]
        pooled = torch.cat([mean, unpadded.amax(1), unpadded.logsumexp(1), lengths[:, None].log()], 1)
        parts.append(pooled.float().numpy())
    return np.concatenate(parts[1:] or parts)


def adams2019_as_shipped(train, val, others):
    """Halide's own network with the weights it ships with, its predictions scaled to this machine on the training rows."""
    return _scaled(baseline_weights(), train, others)


def adams2019_retrained(train, val, others):
    """Halide's own network, retrained on the training rows by its own tool; the learning rate is chosen on the validation rows."""
    n_cores = machine_cores(train)
    best = None
    with tempfile.TemporaryDirectory() as folder:
        rows = train.featurized
        samples = adams2019.write_samples(folder, train.halide_batches(), train.log_runtime[rows], train.instance[rows])
        for rate in RETRAIN_RATES:
            weights = adams2019.retrain(samples, rate, RETRAIN_EPOCHS, n_cores, baseline_weights())
            error = np.nanmean((_scaled(weights, train, [val])[0] - val.log_runtime) ** 2)
            if best is None or error < best[0]:
                best = (error, weights)
    return _scaled(best[1], train, others)


def machine_cores(train):
    """The cores of the machine that measured the training rows, or, where its data do not say, those usable here."""
    return data_utils.measuring_cores(train.meta) or usable_cores()


def _scaled(weights, train, others):
    n_cores = machine_cores(train)

    def predict(rows):
        predicted = np.full(len(rows), np.nan)
        predicted[rows.featurized] = adams2019.log_predictions(weights, rows.halide_batches(), n_cores)
        return predicted

    offset = np.nanmean(train.log_runtime - predict(train))
    return [predict(rows) + offset for rows in others]


def why_no_halide_model(*splits):
    """Why Adams2019's network can't be applied to any of these rows, or ''."""
    if any(len(rows) and not len(rows.featurized) for rows in splits[:3]):
        return "there is a split in which no schedule has Halide's features, which Adams2019's network needs"
    for rows in splits:
        if any(bool(algorithm[:, :, :, -1].any()) for _, algorithm, _ in rows.halide_batches()):
            return "some of these dumps (JSON) do not tell the types of their operations, which Adams2019's network needs"
    return ""


def why_no_retraining(train):
    """Why Halide's tool can't retrain on these rows, or ''."""
    if np.unique(train.instance, return_counts=True)[1].max() < adams2019.MIN_SCHEDULES:
        return f"Halide's tool trains on programs with {adams2019.MIN_SCHEDULES} schedules or more, and there is none"
    return ""
