"""The rival models."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_info

import data_utils
from evaluation import baselines


def test_the_first_rounds_of_trees_predict_what_staged_prediction_does():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5))
    trees = HistGradientBoostingRegressor(max_iter=30, early_stopping=False, random_state=0).fit(x, x[:, 0] * x[:, 1])
    staged = list(trees.staged_predict(x))
    for n in (1, 12, 30):
        assert np.array_equal(baselines.first_rounds(trees, n).predict(x), staged[n - 1])
    assert np.array_equal(trees.predict(x), staged[-1])  # the whole model is left as it was


def test_cores_are_those_of_the_machine_that_measured(monkeypatch):
    monkeypatch.setattr(baselines, "usable_cores", lambda: 5)
    sources = {"a": {"dumps": 8, "machine": {"cores": 12}}, "b": {"dumps": 2, "machine": {"cores": 4}}, "c": {"dumps": 99, "machine": None}}
    assert baselines.machine_cores(SimpleNamespace(meta={"sources": sources})) == 12
    held_out = {"dumps": 9, "machine": {"cores": 12}, "is_held_out": True}
    for unknown in ({"a": {"dumps": 8, "machine": None}}, {"a": held_out}):
        assert data_utils.measuring_cores({"sources": unknown}) is None
        assert baselines.machine_cores(SimpleNamespace(meta={"sources": unknown})) == 5


@pytest.mark.parametrize("n", [60, 61])
def test_trees_on_few_rows_take_one_thread(monkeypatch, n):
    """With more, the threads wait for each other: 29 minutes of processor time on 16 cores."""
    seen = []

    class Trees(HistGradientBoostingRegressor):
        def fit(self, x, y):
            seen.append(max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"))
            return super().fit(x, y)

    monkeypatch.setattr(baselines, "HistGradientBoostingRegressor", Trees)
    monkeypatch.setattr(baselines, "TREE_ITERATIONS", 3)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(baselines, "pooled_features", lambda rows: rows.x)
    train, val = (SimpleNamespace(x=rng.normal(size=(n, 4)), log_runtime=rng.normal(size=n), __len__=None) for _ in range(2))

    class Rows(SimpleNamespace):
        def __len__(self):
            return len(self.x)

    train, val, empty = Rows(**vars(train)), Rows(**vars(val)), Rows(x=np.zeros((0, 4)))
    predicted = baselines.hist_gradient_boosting(train, val, [val, empty])
    assert [len(p) for p in predicted] == [n, 0] and set(seen) == {1}
