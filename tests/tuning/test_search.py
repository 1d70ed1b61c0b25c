"""What the search makes of the best schedules so far."""

import math
from types import SimpleNamespace

import pytest

from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.mutations import KINDS, Edited
from tuning import search


class FakeRun:
    """A tuning whose schedules took `runtimes` {key: ms}, made of each other as `made_of` {key: (key, kinds)} says."""

    spec = SimpleNamespace(seed=3)

    def __init__(self, runtimes, made_of=()):
        self.runtimes, made_of = runtimes, dict(made_of)
        self.outcomes = {
            key: {"outcome": "measured", "schedule": f"schedule {key}"}
            | ({"edit_of": made_of[key][0], "kinds": made_of[key][1]} if key in made_of else {})
            for key in runtimes
        }
        self.proposals = {key: Edited("", *made_of[key]) if key in made_of else Proposal.draw(1, int(key)) for key in runtimes}

    def measured(self):
        return list(self.runtimes)

    def runtime_ms(self, key):
        return self.runtimes[key]

    def baselines(self):
        return ["0"]


class FakePool:
    def __init__(self, run):
        self.run, self.keys, self.composed, self.asked, self.varied = run, list(run.runtimes), set(), [], []

    def change(self, edits, deadline):
        self.asked += edits

    def propose(self, proposals, deadline):
        self.varied += proposals


def changed(pool, n=60):
    pool.asked = []
    search.change_the_best(pool, pool.run.measured(), n, math.inf)
    return pool.asked


def test_the_fastest_are_changed_most_and_each_gets_the_composite_changes_once():
    pool = FakePool(FakeRun({str(k): 1.0 + k for k in range(10)}))
    edits = changed(pool, 200)
    assert len(edits) == 200 and all(edit.text == f"schedule {edit.edit_of}" for edit in edits)
    parents = [edit.edit_of for edit in edits]
    assert set(parents) == {str(k) for k in range(search.PARENTS)} and parents.count("0") > 2 * parents.count("5")
    composite = [edit for edit in edits if len(edit.weights) == 1]
    assert len(composite) == search.PARENTS * len(search.COMPOSITE) * search.COMPOSITE_TRIES
    assert {edit.weights[0][0] for edit in composite} == set(search.COMPOSITE)
    assert any(edit.other for edit in edits) and all(edit.other != edit.text for edit in edits)
    pool.keys.append("10")
    again = changed(pool)
    assert all(len(edit.weights) == len(KINDS) for edit in again) and not set(again) & set(edits), "other numbers are drawn"


def test_what_was_not_kept_as_data_is_not_changed():
    run = FakeRun({"0": 1.0, "1": 2.0})
    run.outcomes["0"]["schedule"] = ""
    assert {edit.edit_of for edit in changed(FakePool(run))} == {"1"}
    run.outcomes["1"]["schedule"] = ""
    assert changed(FakePool(run)) == []


def test_kinds_of_change_that_pay_are_drawn_more_often():
    before = search.kind_weights(FakeRun({"0": 1.0}), ["0"])
    assert before.keys() == KINDS.keys() and before == pytest.approx(search.PAID), "what paid in the shipped measurements"
    made_of = {str(k): ("0", ("order",)) for k in range(1, 9)} | {str(k): ("0", ("strip", "factor")) for k in range(9, 17)}
    run = FakeRun({"0": 1.0} | {str(k): 0.5 for k in range(1, 9)} | {str(k): 2.0 for k in range(9, 17)}, made_of)
    after = search.kind_weights(run, run.measured())
    assert after["order"] > 2 * before["order"] and after["strip"] < before["strip"] and after["split"] == before["split"]
    assert search.kind_weights(run, ["0"]) == before, "what another search has measured teaches this one nothing"


def test_more_noise_goes_to_schedules_that_adams2019_made():
    run = FakeRun({"0": 1.0, "1": 2.0, "2": 0.5, "3": 3.0}, {"2": ("1", ("order",))})
    run.proposals["3"] = OtherAutoscheduler("Li2018")
    pool = FakePool(run)
    search.vary_the_best(pool, run.measured(), 6, math.inf)
    assert {proposal.seed for proposal in pool.varied} == {run.proposals["1"].seed} and len(pool.varied) == 6
