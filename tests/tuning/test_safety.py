"""Which schedules are fit to be the answer, and the bar that shows how far a tuning is."""

import io
import math
from types import SimpleNamespace

import pytest

from halide_tools.directives import ROOT, FuncSchedule, Loop, Split, Stage
from halide_tools.schedules import Schedule
from measuring.messages import Failed
from tuning import safety
from tuning.progress import Progress

SAME, WRONG = {"extents": [48, 32], "outcome": "same", "detail": ""}, {"extents": [80, 60], "outcome": "differs", "detail": "at (3, 4)"}


class Run:
    """A TuningRun of schedules that take 1, 2, ... ms, as far as safety asks of it."""

    hand_written, late = "9", False

    def __init__(self, sizes=(), extents=()):
        self.sizes, self.extents, self.record, self.asked, self.proposals = dict(sizes), dict(extents), {}, [], []
        self.outcomes = {key: {} for key in self.measured()}

    def again(self):
        """Without what has been found out."""
        self.record = {}
        return self

    def measured(self):
        return ["1", "2", "3", "4", "9"]

    def runtime_ms(self, key):
        return float(key)

    def baselines(self):
        return ["4", "9"]

    def is_late(self):
        return self.late

    def minimum_extents(self, key):
        self.asked.append(key)
        return None if self.late and key != self.hand_written else [self.extents.get(key, [8, 1])]

    def compare_sizes(self, key, smallest):
        assert smallest in (None, self.extents.get(key, [8, 1]))
        return self.sizes.get(key, [SAME])

    def describe(self, key):
        return f"{key} ms"

    def name_of(self, key):
        return f"schedule {key}"

    def save(self):
        pass


def fit(run, n=3, keep_extents=True):
    lines = []
    return safety.fit_ones(run, ["3", "2", "1"], n, keep_extents, lines.append), lines


def test_what_is_wrong_at_another_size_is_not_fit():
    run = Run(sizes={"1": [SAME, WRONG], "3": Failed("crashed", "exit code -11")})
    found, lines = fit(run)
    assert found == ["2"] and len(lines) == 2
    assert "schedule 1" in lines[0] and "wrong for an output of 80 x 60: at (3, 4)" in lines[0] and "crashes" in lines[1]


def test_where_the_program_itself_crashes_no_schedule_is_to_blame():
    run = Run(sizes=dict.fromkeys(["1", "2", "3", "4", "9"], Failed("crashed", "exit code -11")))
    assert fit(run) == (["1", "2", "3"], [])


def test_what_needs_more_than_the_authors_schedule_is_fit_only_on_demand():
    run = Run(extents={"1": [64, 1], "2": [8, 2]})
    found, lines = fit(run)
    assert (
        found == ["3"]
        and len(lines) == 2
        and "from 64 x 1 on, the author's schedule from 8 x 1" in lines[0]
        and "--keep_extents false" in lines[0]
    )
    assert fit(run, keep_extents=False) == (["1", "2", "3"], [])
    run.measured = lambda: ["1", "2", "3", "4"]
    assert fit(run) == (["1", "2", "3"], []), "there is no author's schedule"


def test_what_asks_for_too_much_is_tried_with_its_output_split_otherwise():
    split = Split("x", "xo", "xi", 64, "ShiftInwards")
    stage = Stage((), ("x",), (Loop("xi"), Loop("xo")), (split,))
    run = Run(extents={"1": [64, 1]})
    run.outcomes["1"]["schedule"] = Schedule(("out",), {"out": FuncSchedule(("x",), (stage,), ROOT)}).to_json()
    run.key, run.measure = lambda proposal: run.proposals.append(proposal) or "4", lambda keys: None
    found, lines = fit(run)
    assert found == ["4", "2", "3"] and "with its output split otherwise it takes 4 ms" in lines[1]
    [edited] = run.proposals
    assert edited.edit_of == "1" and Schedule.from_json(edited.text).funcs["out"].stages[0].transforms[0].tail == "GuardWithIf"
    run.extents["4"] = [16, 1]
    assert fit(Run.again(run))[0] == ["2", "3"], "it does not help"


def test_what_is_far_slower_than_a_baseline_is_not_checked():
    run = Run()
    run.baselines = lambda: ["2"]
    assert fit(run)[0] == ["1", "2"] and "3" not in run.asked


def test_as_few_as_needed_are_checked_and_none_twice():
    run = Run()
    assert fit(run, 1)[0] == ["1"] and run.asked == ["1", "9"]
    assert fit(run, 2)[0] == ["1", "2"] and run.asked == ["1", "9", "2"]


@pytest.mark.parametrize(("reason", "kept"), [("deadline", False), ("timeout", False), ("crashed", True)])
def test_a_check_without_time_speaks_against_nothing_and_is_made_again(reason, kept):
    run = Run(sizes={"1": Failed(reason, "")})
    assert (fit(run, 1)[0] == ["1"]) is not kept and ("1" in run.record["checks"]) is kept


def test_without_time_to_look_no_schedule_is_taken_for_one_that_takes_small_outputs():
    run = Run()
    run.late = True
    found, lines = fit(run)
    assert found == [] and len(lines) == 3 and "no time" in lines[0]
    assert fit(Run.again(run), keep_extents=False)[0] == ["1", "2", "3"]
    run.hand_written = "8"  # nobody's schedule to compare with
    assert fit(Run.again(run))[0] == ["1", "2", "3"]


def test_the_bar_shows_what_has_been_found():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    run, shown = Run(), Terminal()
    progress = Progress(run, 64, shown)
    progress.begin("searching")
    run.measured_one()
    progress.close()
    text = shown.getvalue()
    assert "searching: 5 of 64 measured" in text and "fastest 1 ms, 4.00 x Halide's, 9.00 x the author's" in text
    quiet = io.StringIO()
    Progress(SimpleNamespace(measured=lambda: ["1"], runtime_ms=lambda key: math.inf, baselines=list), 1, quiet).begin("searching")
    assert quiet.getvalue() == ""
