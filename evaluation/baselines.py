"""The rivals that stand beside the LSTM in every report, fitted on the same training rows and told the same inputs.

Each takes (train, val, others) as Sequences and returns the predicted log-runtime of each of `others`, a list of (N,) arrays.
"""

import os
import tempfile

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from evaluation import adams2019
from halide_tools.autoschedulers import baseline_weights

TREE_SETTINGS = [{"max_leaf_nodes": 8, "min_samples_leaf": 10}, {"max_leaf_nodes": 31, "min_samples_leaf": 20}]
TREE_RATE, TREE_ITERATIONS = 0.08, 300
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
    best = None
    for settings in TREE_SETTINGS:
        trees = HistGradientBoostingRegressor(
            learning_rate=TREE_RATE, max_iter=TREE_ITERATIONS, early_stopping=False, random_state=seed, **settings
        ).fit(x_train, train.log_runtime)
        errors = [np.mean((p - val.log_runtime) ** 2) for p in trees.staged_predict(x_val)]
        rounds = int(np.argmin(errors))
        if best is None or errors[rounds] < best[0]:
            best = (errors[rounds], trees, rounds)
    _, trees, rounds = best
    return [_predict_staged(trees, pooled_features(rows), rounds) for rows in others]


def _predict_staged(trees, x, rounds):
    if len(x) == 0:
        return np.zeros(0)
    for i, predicted in enumerate(trees.staged_predict(x)):
        if i == rounds:
            return predicted


def pooled_features(sequences):
    """Each feature's mean, maximum and log-sum-exp over a schedule's stages, and the number of stages: (N, 3 F + 1)."""
    parts = [np.zeros((0, 1), np.float32)]
    for shard in sequences.shards:
        features, lengths = shard["features"], shard["lengths"]
        padding = torch.arange(features.shape[1]) >= lengths[:, None]
        hidden = features.masked_fill(padding[:, :, None], -torch.inf)
        mean = features.sum(1) / lengths[:, None]
        pooled = torch.cat([mean, hidden.amax(1), hidden.logsumexp(1), lengths[:, None].log()], 1)
        parts.append(pooled.float().numpy())
    return np.concatenate(parts[1:] or parts)


def adams2019_as_shipped(train, val, others):
    """Halide's own network with the weights it ships with, its predictions scaled to this machine on the training rows."""
    return _scaled(baseline_weights(), train, others)


def adams2019_retrained(train, val, others):
    """Halide's own network after its own retraining tool has seen the training rows; the learning rate is chosen on the validation rows."""
    n_cores = os.cpu_count()
    best = None
    with tempfile.TemporaryDirectory() as folder:
        samples = adams2019.write_samples(folder, train.halide_batches(), train.log_runtime, train.instance)
        for rate in RETRAIN_RATES:
            weights = adams2019.retrain(samples, rate, RETRAIN_EPOCHS, n_cores, baseline_weights())
            error = np.mean((_scaled(weights, train, [val])[0] - val.log_runtime) ** 2)
            if best is None or error < best[0]:
                best = (error, weights)
    return _scaled(best[1], train, others)


def _scaled(weights, train, others):
    def predict(rows):
        return adams2019.log_predictions(weights, rows.halide_batches(), os.cpu_count())

    offset = np.mean(train.log_runtime - predict(train))
    return [predict(rows) + offset for rows in others]


def why_no_halide_model(train, val, others):
    """Why Adams2019's network can't stand beside the LSTM on these rows, or ''."""
    for rows in (train, val, *others):
        if any(bool(algorithm[:, :, :, -1].any()) for _, algorithm, _ in rows.halide_batches()):
            return "some of these dumps do not tell the types of their operations, which it needs"
    return ""


def why_no_retraining(train):
    """Why Halide's tool can't retrain on these rows, or ''."""
    if np.unique(train.instance, return_counts=True)[1].max() < adams2019.MIN_SCHEDULES:
        return f"Halide's tool trains on programs with {adams2019.MIN_SCHEDULES} schedules or more, and there is none"
    return ""
