"""Which schedules are measured next."""

import math
from types import SimpleNamespace

import numpy as np

from tuning import search
from tuning.choosing import choose_by_model


class FakeRun:
    """A tuning that measures what it is asked for, but for `failing`, in its number of milliseconds; those `pending` when waited for."""

    others, failed = ["1", "2"], False

    def __init__(self, failing=(), pending=()):
        self.searches, self.outcomes, self.failing, self.asked, self.pending = {}, {}, set(failing), [], set(pending)

    def is_pending(self, key):
        return key in self.pending

    def wait_for_background(self):
        keys, self.pending = sorted(self.pending), set()
        self.measure(keys)

    def measure(self, keys):
        for key in keys:
            if key not in self.outcomes and key not in self.pending:
                self.asked.append(key)
                self.outcomes[key] = {"outcome": "crashed" if key in self.failing else "measured"}

    def measured(self):
        return [key for key, c in self.outcomes.items() if c["outcome"] == "measured"]

    def runtime_ms(self, key):
        return 1.0 + int(key)

    def save(self):
        pass


def first_open(pool, measured, still_open, n):
    return still_open[:n]


def search_with(run, budget, keys=range(3, 30)):
    return search.search(SimpleNamespace(run=run, keys=[str(i) for i in keys]), "lstm", first_open, budget, 4, math.inf)


def test_other_autoschedulers_are_measured_where_the_budget_allows():
    measured = {budget: search_with(FakeRun(), budget) for budget in (1, 4, 8, 16)}
    assert measured[1] == ["0"] and measured[4] == ["0", "3", "4", "5"]
    assert measured[8][:3] == ["0", "1", "3"] and measured[16][:4] == ["0", "1", "2", "3"] and len(measured[16]) == 16


def test_a_larger_budget_goes_on_and_a_smaller_one_measures_nothing():
    run = FakeRun()
    first = list(search_with(run, 12))
    assert len(first) == 12
    run.asked.clear()
    assert search_with(run, 4) == first and not run.asked
    further = search_with(run, 20)
    assert further[:12] == first and len(further) == 20 and len(run.asked) == 8 and not set(run.asked) & set(first)


def test_failures_cost_no_measurement_but_end_the_search_in_the_end():
    run = FakeRun(failing=["0", "3", "4"])
    assert search_with(run, 4) == ["5", "6", "7", "8"]
    run = FakeRun(failing=map(str, range(30)))
    assert search_with(run, 4) == [] and len(run.asked) == 8
    assert search_with(FakeRun(), 8, keys=[]) == ["0", "1"], "nothing is left to choose from"


def test_adams2019s_own_choice_comes_when_it_is_found_and_has_its_place_in_the_budget():
    assert search_with(FakeRun(pending=["0"]), 4) == ["3", "4", "5", "0"]
    assert search_with(FakeRun(pending=["0"]), 1) == ["0"]
    assert search_with(FakeRun(pending=["0"], failing=["0"]), 4) == ["3", "4", "5", "6"]


def fake_pool(log_predicted, runtimes, x):
    keys = [str(i) for i in range(len(log_predicted))]
    measured = dict(zip(keys, runtimes))
    fake_run = SimpleNamespace(runtime_ms=lambda key: measured[key])
    return SimpleNamespace(
        keys=keys, log_predicted=np.array(log_predicted), descriptors=lambda: np.array(x), run=fake_run,
        meta={"errors": {"counts_alone": {"covariance": {"offset": 0.2, "alike": 0.1, "own": 0.2}}}},
        schedules=[SimpleNamespace(lowered=None) for _ in keys],
    )  # fmt: skip


def test_a_measurement_corrects_the_predictions_of_schedules_like_it():
    # 0 and 1 are alike and predicted the fastest; 0 turned out far slower, so 2 goes before 1.
    pool = fake_pool([0.0, 0.0, 0.3, 2.0], [math.exp(2.0), 0, 0, 0], [[0.0, 0.0], [0.05, 0.0], [3.0, 0.0], [0.0, 3.0]])
    assert choose_by_model(pool, ["0"], ["1", "2", "3"], 2) == ["2", "1"]
    # Nothing measured is like any of these: the predictions alone decide, but a batch is not of one kind.
    pool = fake_pool([0.0, 0.0, 0.01, 5.0], [1.0, 1.0, 1.0, 1.0], [[0.0, 0.0], [0.0, 0.01], [3.0, 0.0], [0.0, 3.0]])
    assert set(choose_by_model(pool, [], ["0", "1", "2", "3"], 2)) in ({"0", "2"}, {"1", "2"})


def test_only_what_was_counted_is_measured_as_long_as_there_is_enough_of_it():
    pool = fake_pool([0.0, 0.1, 0.2, 5.0], [1.0] * 4, [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]])
    pool.schedules[1].lowered = pool.schedules[3].lowered = np.ones((1, 1))
    assert choose_by_model(pool, [], ["0", "1", "2", "3"], 2) == ["1", "3"]
    assert choose_by_model(pool, [], ["0", "1", "2", "3"], 3) == ["0", "1", "2"]
