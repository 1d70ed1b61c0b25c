"""Adams2019's own search, where it takes long: beside other work, and at rest while something is measured."""

import psutil
import pytest

from halide_tools.programs import find_programs
from measuring.machine import QUICK
from tuning.run import ADAMS2019, TuningRun

BLUR = """
import halide as hl


@hl.generator("blur")
class Blur(hl.Generator):
    im = hl.InputBuffer(hl.UInt(8), 2)
    out = hl.OutputBuffer(hl.UInt(8), 2)

    def generate(self):
        g, x, y = self, hl.Var("x"), hl.Var("y")
        blurred = hl.Func("blurred")
        blurred[x, y] = hl.u8((hl.u16(g.im[x, y]) + hl.u16(g.im[x + 1, y])) / 2)
        g.out[x, y] = blurred[x, y] + blurred[x, y + 1]
        g.im.set_estimates([(0, 257), (0, 257)])
        g.out.set_estimates([(0, 256), (0, 256)])
        if not g.using_autoscheduler():
            g.out.parallel(y).vectorize(x, 16)
"""


class SlowRun(TuningRun):
    """One in which Adams2019's search gets nowhere, and nobody waits for it, as long as `is_slow`."""

    is_slow = True

    def leaves_alone(self, candidate):
        if self.is_slow and candidate.key == ADAMS2019:
            candidate.pause()
            return True
        return False

    def state(self):
        [(_, candidate)] = self.in_background
        return psutil.Process(candidate.process.pid).status()


@pytest.fixture
def run(tmp_path):
    (tmp_path / "blur.py").write_text(BLUR)
    run = SlowRun(find_programs(tmp_path / "blur.py")[0], tmp_path / "measurements", 60, QUICK)
    yield run
    run.end()


def test_a_slow_search_rests_while_others_are_measured_and_is_measured_in_the_end(run):
    seen, measure = [], run.stopwatch.measure

    def watched(ready):
        seen.append(([candidate.key for _, candidate in ready], [run.state()] if run.in_background else []))
        measure(ready)

    run.stopwatch.measure = watched
    run.measure(run.baselines())
    assert run.measured() == [run.hand_written] and run.is_pending(ADAMS2019)
    assert seen == [([run.hand_written], [psutil.STATUS_STOPPED])] and run.state() != psutil.STATUS_STOPPED
    run.is_slow = False
    run.wait_for_background()
    assert set(run.measured()) == set(run.baselines()) and not run.in_background
    assert seen[-1] == ([ADAMS2019], [])


def test_adams2019s_own_choice_is_measured_even_where_an_equal_one_was_before(run):
    run.is_slow = False
    run.measure([ADAMS2019])
    first = run.outcomes.pop(ADAMS2019)
    run.outcomes["7"] = first
    run.measure([ADAMS2019])
    assert run.outcomes[ADAMS2019]["outcome"] == "measured" and run.outcomes[ADAMS2019]["hash"] == first["hash"]


def test_a_slow_search_has_a_deadline_of_its_own_and_ends_with_the_run(run):
    run.set_deadline(0.0)
    assert run.deadline_of(ADAMS2019) == run.deadline_of("5") == 0.0
    run.background_deadline = 7.0
    assert run.deadline_of(ADAMS2019) == 7.0 and run.deadline_of("5") == 0.0
    run.set_deadline(float("inf"))
    run.measure(run.baselines())
    [(_, candidate)] = run.in_background
    run.end()
    assert candidate.has_ended and not candidate.process.is_alive()
