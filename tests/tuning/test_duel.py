"""Which schedule is the answer, and how fast it is said to be."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from config import UserError
from tuning.duel import NOISE, is_slower, remeasure_finalists
from tuning.run import Clock

NO_LIMIT = Clock(0.0)


class Run:
    """A tuning whose runs take what `measure` says: key -> milliseconds, or None for a run that fails."""

    spec, path, record = SimpleNamespace(name="p"), "program.json", {}

    def __init__(self, first, measure, baselines=("0",)):
        self.first, self.measure, self.own_baselines, self.sets = first, measure, list(baselines), []

    def baselines(self):
        return self.own_baselines

    def measured(self):
        return list(self.first)

    def runtime_ms(self, key):
        return self.first.get(key, math.inf)

    def name_of(self, key):
        return f"schedule {key}"

    def set_deadline(self, deadline):
        assert deadline == math.inf

    def measure_again(self, keys, times):
        values = {key: [self.measure(key, len(self.sets), i) for i in range(times)] for key in keys}
        self.sets.append({key: [v for v in own if v is not None] for key, own in values.items() if any(v is not None for v in own)})
        return self.sets[-1]


def test_the_winner_is_chosen_on_one_set_and_reported_on_another():
    times = {"0": [2.0, 2.0, 2.2], "7": [1.0, 1.1, 1.3], "8": [1.05, 0.1, 0.1]}
    run = Run({"0": 2.0, "7": 1.0, "8": 1.2}, lambda key, n_set, i: times[key][n_set])
    answer = remeasure_finalists(run, ["0", "7", "8"], None, NO_LIMIT)
    assert answer.key == "7" and answer.ms("7") == 1.3 and answer.ms("0") == 2.2 and not answer.notes
    assert answer.times == {"7": [1.3] * 3, "0": [2.2] * 3} and len(run.sets) == 3


def test_without_time_to_choose_anew_the_search_chooses_and_fresh_runs_report():
    run = Run({"0": 2.0, "7": 1.0, "8": 1.2}, lambda key, n_set, i: None if n_set == 0 else 1.5)
    answer = remeasure_finalists(run, ["0", "7", "8"], None, NO_LIMIT)
    assert answer.key == "7" and answer.times == {"7": [1.5] * 3, "0": [1.5] * 3} and "no time to measure" in answer.notes[0]
    assert [list(kept) for kept in run.sets] == [[], ["7", "0"], ["7", "0"]]


def test_a_speedup_below_one_is_reported_as_it_is():
    run = Run({"0": 2.0, "7": 1.0}, lambda key, n_set, i: {"0": 1.0, "7": [0.9, 1.0, 1.2][n_set]}[key])
    answer = remeasure_finalists(run, ["0", "7"], None, NO_LIMIT)
    assert answer.key == "7" and answer.ms("0") / answer.ms("7") < 1


@pytest.mark.parametrize("other, baselines", [("0", ["0"]), ("3", ["0", "3"])])
def test_a_winner_that_turns_out_slower_is_not_the_answer(other, baselines):
    """Than Adams2019's choice, or the author's schedule: the faster one is, and its time comes from runs of its own."""
    times = {"0": 1.5, "3": 1.5, other: 1.0}
    run = Run(
        {"0": 2.0, "3": 2.0, "7": 1.0}, lambda key, n_set, i: [0.9, 1.3, 1.3][n_set] if key == "7" else times[key] + n_set / 100, baselines
    )
    answer = remeasure_finalists(run, ["0", "7"], None, NO_LIMIT)
    assert answer.key == other and answer.ms(other) == 1.02 and len(answer.notes) == 1 and "slower" in answer.notes[0]


def test_an_earlier_answer_is_replaced_only_by_one_that_is_not_slower():
    slower_in_the_check = Run({"0": 3.0, "5": 1.0, "9": 0.9}, lambda key, n_set, i: {"0": 3.0, "5": 1.0, "9": [0.9, 1.2, 1.2][n_set]}[key])
    assert remeasure_finalists(slower_in_the_check, ["0", "9"], "5", NO_LIMIT).key == "5"
    faster = Run({"0": 3.0, "5": 1.0, "9": 0.9}, lambda key, n_set, i: {"0": 3.0, "5": 1.0, "9": 0.9}[key])
    assert remeasure_finalists(faster, ["0", "9"], "5", NO_LIMIT).key == "9"


def test_medians_are_of_the_runs_that_ran():
    """One run of the winner fails, another finalist never runs."""
    run = Run({"0": 2.0, "7": 1.0, "8": 0.9}, lambda key, n_set, i: {"0": 2.0, "7": 1.0 if i else None, "8": None}[key])
    answer = remeasure_finalists(run, ["0", "7", "8"], None, NO_LIMIT)
    assert answer.key == "7" and answer.times["7"] == [1.0, 1.0] and math.isfinite(answer.ms("7"))


def test_a_winner_that_no_longer_runs_is_not_the_answer():
    run = Run({"0": 2.0, "7": 1.0, "8": 1.1}, lambda key, n_set, i: {"0": 2.0, "7": None if n_set else 1.0, "8": 1.1}[key])
    answer = remeasure_finalists(run, ["0", "7", "8"], None, NO_LIMIT)
    assert answer.key == "8" and "gave no further measurement" in answer.notes[0]


def test_a_duel_in_which_nothing_runs_is_no_success():
    run = Run({"0": 2.0, "7": 1.0}, lambda key, n_set, i: None)
    with pytest.raises(UserError, match="could be measured again"):
        remeasure_finalists(run, ["0", "7"], None, NO_LIMIT)
    run = Run({"0": 2.0, "7": 1.0}, lambda key, n_set, i: None if n_set else 1.0)
    with pytest.raises(UserError, match="could be measured again"):
        remeasure_finalists(run, ["0", "7"], None, NO_LIMIT)


def test_without_adams2019_there_is_an_answer_but_no_comparison():
    run = Run({"7": 1.0}, lambda key, n_set, i: 1.0)
    answer = remeasure_finalists(run, ["7"], None, NO_LIMIT)
    assert answer.key == "7" and answer.ms("0") is None and answer.ms(None) is None


def test_slower_means_by_more_than_noise():
    assert is_slower({"a": [1.1] * 3, "b": [1.0] * 3}, "a", "b")
    assert not is_slower({"a": [1 + NOISE * 0.9] * 3, "b": [1.0] * 3}, "a", "b")
    assert not is_slower({"a": [0.8, 1.1, 1.4], "b": [1.0] * 3}, "a", "b"), "its own runs differ by more"
    assert not is_slower({"a": [1.0] * 3, "b": [1.1] * 3}, "a", "b")


def test_reported_times_of_equal_schedules_are_not_biased():
    """Many schedules that are all as fast: the fastest of noisy first measurements is no faster than Adams2019's in the report."""
    rng = np.random.default_rng(0)
    noisy = lambda *_: float(np.exp(rng.normal(0, 0.05)))
    ratios, chosen_on = [], []
    for _ in range(300):
        run = Run({str(k): noisy() for k in range(20)}, noisy)
        answer = remeasure_finalists(run, [str(k) for k in range(20)], None, NO_LIMIT)
        ratios.append(math.log(answer.ms("0") / answer.ms(answer.key)))
        chosen_on.append(math.log(np.median(run.sets[0]["0"]) / min(np.median(v) for v in run.sets[0].values())))
    assert abs(np.mean(ratios)) < 0.01 < np.mean(chosen_on)
