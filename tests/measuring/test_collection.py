"""Candidates, passes and records: measuring without a script."""

import dataclasses
import math
import signal
import subprocess
import sys
import time

import orjson
import pytest
from conftest import ROOT, make_stages, parse, sample_bytes

from halide_tools import execution
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import ProgramSpec, find_programs, reference_schedules
from measuring import archives, candidate, collection, machine
from measuring.candidate import Candidate, origin
from measuring.collection import Plan, ProgramRun
from measuring.compile_queue import CompileQueue
from measuring.machine import CAREFUL, QUICK
from measuring.messages import Checked, Compiled, Failed, Featurized, Measured, Proposed, ReferenceRun
from measuring.stopwatch import Stopwatch


def plan(folder, schedules=8, **more):
    return Plan(str(folder), schedules, 5.0, 2, **more)


def test_a_known_schedule_that_comes_out_otherwise_is_not_measured(tmp_path):
    known = {str(k): collection.PriorSchedule(Proposal.draw(1, k), f"hash {k}", None) for k in (2, 5, 7)}
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path, known={"p": known}))
    assert run_.next_keys() == ["2", "5", "7"]
    for key in run_.next_keys():
        scripted = Scripted(key, [], [])
        scripted.hash = "hash 2" if key == "2" else "another"
        run_.awaiting_deduplication.append(scripted)
    assert [c.key for c in run_.deduplicate_proposals()] == ["5", "7"]
    assert [run_.outcomes[key]["outcome"] for key in ("5", "7")] == ["changed", "changed"] and "2" not in run_.outcomes


def test_all_schedules_of_a_shipped_collection_are_known():
    source, seeds, known = archives.known_schedules(str(ROOT / "data" / "raw" / "random_012.tar.xz"))
    assert source == {"random_programs": {"max_stages": 10}} and len(seeds) >= len(known) == 97
    assert (
        sum(map(len, known.values())) == 1428
        and sum(k.lowered is not None for schedules in known.values() for k in schedules.values()) >= 1420
    )


class Scripted(Candidate):
    """A candidate whose passes take these milliseconds (or (milliseconds, share that others used)), and that then crashes."""

    def __init__(self, key, runtimes, order):
        self.key, self.proposal, self.passes, self.has_ended = key, Proposal.draw(1, int(key)), [], False
        self.featurization, self.source, self.hash, self.schedule_seconds, self.compile_seconds = b"", "", key, 0.1, 0.2
        self.schedule, self.lowered_hash = "", None
        self.has_proposed, self.lowered, self.runtimes, self.order = True, None, list(runtimes), order

    def compile(self):
        pass

    def measure_pass(self):
        self.order.append(self.key)
        if not self.runtimes:
            return Failed("crashed", "exit code 1")
        ms, background = self.runtimes.pop(0), 0.0
        if isinstance(ms, tuple):
            ms, background = ms
        return Measured(execution.Pass([ms] * 25, 1, 2.0, background))

    def end(self):
        self.has_ended = True


def test_the_fastest_moments_of_all_passes_count(tmp_path):
    run_, order = ProgramRun(ProgramSpec("p", 1), plan(tmp_path)), []
    # Three agree at once but five are the least; the seventh is the third that agrees; always faster; it crashes; slow ones need but two.
    scripts = {
        "0": [1.3, 1.3, 1.31, 1.5, 1.6, 0.5],
        "1": [1.3, 1.0, 1.1, 1.2, 1.3, 1.01, 1.015, 0.5],
        "2": [2 / 1.1**i for i in range(20)],
        "3": [2.0],
        "4": [150.0, 151.0, 170.0, 0.5],
    }
    passes = {"0": 5, "1": 7, "2": CAREFUL.max_passes, "3": 1, "4": 3}
    candidates = [(run_, Scripted(key, runtimes, order)) for key, runtimes in scripts.items()]
    stopwatch = Stopwatch(CAREFUL)
    for _, scripted in candidates:
        stopwatch.one_pass(run_, scripted)
        assert ProgramRun(run_.spec, plan(tmp_path)).outcomes[scripted.key]["outcome"] == "measured"  # whatever happens next
    stopwatch.further_passes(candidates)
    assert order[:10] == ["0", "1", "2", "3", "4"] * 2  # some seconds apart in a real collection
    found = {key: (c["runtime_ms"], c["samples"], c["passes_ms"]) for key, c in run_.outcomes.items()}
    assert {key: f[1:] for key, f in found.items()} == {
        key: (25 * n, [round(ms, 6) for ms in scripts[key][:n]]) for key, n in passes.items()
    }
    assert (found["0"][0], found["1"][0], found["3"][0]) == (1.3, 1.0, 2.0) and found["2"][0] == round(2 / 1.1**15, 6)
    assert run_.outcomes["3"]["origin"] == "adams2019"


def test_a_busy_machine_is_not_waited_for_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "background_cpu_share_now", lambda: time.sleep(0.01) or 1.0)
    protocol = dataclasses.replace(CAREFUL, calm_seconds=0.1)
    run_, stopwatch = ProgramRun(ProgramSpec("p", 1), plan(tmp_path)), Stopwatch(protocol)
    busy = Scripted("0", [(2.0, 0.8)] * 100, [])
    began = time.monotonic()
    stopwatch.measure([(run_, busy)])
    assert time.monotonic() - began < 3 * 0.1 + 1, "it has waited more than VAIN_WAITS times"
    assert len(busy.passes) == CAREFUL.max_passes and run_.outcomes["0"]["noisy"] and run_.outcomes["0"]["foreign_share"] == 0.8
    assert len(busy.order) == CAREFUL.max_passes + machine.VAIN_WAITS and stopwatch.background.share() == 0.8
    calm_again = Scripted("1", [(2.0, 0.0), *[(2.0, 0.8)] * 4], [])
    stopwatch.one_pass(run_, calm_again)
    assert stopwatch.background.vain_waits == 0, "an undisturbed pass makes it worth waiting again"
    slow = Scripted("2", [(500.0, 0.8)] * 100, [])
    stopwatch.measure([(run_, slow)])
    assert len(slow.passes) == CAREFUL.slow_max_passes


def test_no_pass_begins_after_the_deadline(tmp_path):
    run_, stopwatch = ProgramRun(ProgramSpec("p", 1), plan(tmp_path)), Stopwatch(CAREFUL, time.monotonic() - 1)
    scripted = Scripted("0", [2.0] * 100, [])
    stopwatch.measure([(run_, scripted)])
    assert len(scripted.passes) == 1 and run_.outcomes["0"]["outcome"] == "measured"


def test_quick_and_careful_measurements_are_told_apart():
    quick, careful = machine.describe_machine(QUICK, threads=2), machine.describe_machine(CAREFUL, threads=2)
    assert machine.differences(careful, quick) == ["protocol careful, here quick"] and not machine.differences(quick, quick)
    assert machine.differences(careful | {"processor": "A"}, careful | {"processor": "B"}) == ["processor A, here B"]
    assert machine.differences(careful, machine.describe_machine(CAREFUL, threads=1)) == ["threads 2, here 1"]
    old = {key: value for key, value in careful.items() if key != "threads"}
    old["protocol"] = {key: value for key, value in careful["protocol"].items() if key != "name"} | {"threads": "all cores"}
    assert not machine.differences(old, careful) and machine.differences(old, quick), "a note without names"


def test_neither_one_fast_moment_nor_a_pass_on_a_busy_machine_counts():
    calm, busy = execution.Pass([1.0] * 2 + [2.0] * 98, 3, 2.0, 0.01), execution.Pass([1.0] * 100, 3, 2.0, 0.2)
    found = machine.summary([calm, busy])
    assert (found["runtime_ms"], found["calls"], found["spread"], found["noisy"]) == (2.0, 300, 0.0, False)
    found = machine.summary([busy])
    assert (found["runtime_ms"], found["foreign_share"], found["noisy"]) == (1.0, 0.2, True)


def test_candidates_that_wait_hold_no_buffers_and_die_as_their_forks_do():
    """A hundred of them wait side by side between their passes."""
    code = """
import os
import halide as hl
import psutil
from halide_tools import execution
from halide_tools.autoschedulers import load_autoscheduler
from measuring import candidate

class Connection:
    def send(self, message):
        said = message[0] if isinstance(message, list) else type(message).__name__
        print(said, psutil.Process().memory_info().rss / 2**20, flush=True)

execution.keep_memory()
x, y, image, f = hl.Var("x"), hl.Var("y"), hl.ImageParam(hl.Float(32), 2, "image"), hl.Func("f")
f[x, y] = image[x, y] + 1
image.set_estimates([(0, 4096), (0, 4096)])
f.set_estimates([(0, 4096), (0, 4096)])
program = execution.Program(hl.Pipeline(f))
Connection().send(["before"])
candidate._send_from_fork(Connection(), lambda: ["measured", execution.benchmark(program, 0)])
Connection().send(["waiting"])
candidate._send_from_fork(Connection(), lambda: load_autoscheduler("none"))
candidate._send_from_fork(Connection(), os.abort)
print("not here")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    (_, before), (_, measured), (_, waiting), (outcome, _) = (line.split() for line in done.stdout.splitlines())
    assert float(measured) > 128 and float(waiting) < float(before) + 20  # MiB; the two buffers have 64 each
    assert outcome == "Failed" and done.returncode == -signal.SIGABRT


def test_repeats_are_drawn_by_a_hash(tmp_path):
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path))
    run_.outcomes.update({str(k): {"outcome": "measured"} for k in range(400)})
    keys = run_.repeat_keys()
    assert 8 <= len(keys) <= 35 and all(k.endswith("r") for k in keys)
    run_.outcomes[keys[0]] = {"outcome": "measured"}
    assert run_.repeat_keys() == keys[1:]  # the same draw, less what is done


def test_timeouts_of_a_killed_collection_are_forgotten(tmp_path):
    """They were weighed against candidates that had compiled but were not measured yet."""
    first = ProgramRun(ProgramSpec("p", 1), plan(tmp_path, 4))
    first.outcomes.update({str(k): {"outcome": "timeout"} for k in range(4)})
    first.save()
    assert first.should_stop() and first.next_keys() == []
    assert ProgramRun(ProgramSpec("p", 1), plan(tmp_path, 4)).next_keys() == ["0", "1", "2", "3"]
    first.record["complete"] = True
    first.save()
    assert ProgramRun(ProgramSpec("p", 1), plan(tmp_path, 4)).next_keys() == []


def test_a_program_of_which_halide_takes_no_schedule_is_given_up_at_once(tmp_path):
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path, 100))
    run_.outcomes.update({str(k): {"outcome": "halide_error"} for k in range(collection.REFUSALS - 1)})
    assert not run_.should_stop()
    run_.outcomes[str(collection.REFUSALS - 1)] = {"outcome": "no_legal_state"}
    assert run_.should_stop()
    run_.outcomes["0"] = {"outcome": "measured"}
    assert not run_.should_stop()


@pytest.mark.parametrize(
    "exit_code, text, reason",
    [
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", "out_of_memory"),
        (-signal.SIGABRT, "LLVM ERROR: out of memory\nAllocation failed", "out_of_memory"),
        (-signal.SIGKILL, "", "out_of_memory"),
        (-signal.SIGABRT, "Warning: Found no legal way to schedule f in the following State:", "no_legal_state"),
        (-signal.SIGSEGV, "some words", "crashed"),
        (1, "", "crashed"),
    ],
)
def test_how_a_process_ended_is_told_apart(exit_code, text, reason):
    assert candidate.failure_of_process(exit_code, text).reason == reason


def test_how_halide_failed_is_told_apart():
    reasons = {
        "Error: Out of memory (halide_malloc returned nullptr)": "out_of_memory",
        "Ran out of legal states with beam size 1": "no_legal_state",
        "Error: can only unroll": "halide_error",
    }
    assert {words: candidate.failure(RuntimeError(words)).reason for words in reasons} == reasons
    assert candidate.failure(MemoryError()).reason == "out_of_memory" and candidate.failure(RuntimeError("Error: no")).detail == "no"


class Actor:
    """Candidates whose processes say what a script {key: [messages]} tells, one message after each word to them."""

    def __init__(self, monkeypatch, scripts):
        self.scripts, self.started = scripts, []
        monkeypatch.setattr("measuring.compile_queue.Candidate", self.start)
        monkeypatch.setattr("measuring.compile_queue.wait", lambda connections, seconds: [c for c in connections if c.messages])

    def start(self, key, run, folder):
        self.started.append(key)
        actor = Candidate.__new__(Candidate)
        actor.key, actor.run, actor.proposal, actor.seconds = key, run, Proposal.draw(1, 0), 5
        actor.connection = type("Connection", (), {"messages": list(self.scripts[key].pop(0)), "said": 0})()
        actor.featurization, actor.source, actor.hash, actor.lowered = b"", "", "", None
        actor.schedule, actor.lowered_hash, actor.run_seconds = "", None, 60
        actor.schedule_seconds = actor.compile_seconds = 0.0
        actor.passes, actor.has_proposed, actor.has_ended, actor.began = [], False, False, time.monotonic()
        actor.receive = lambda seconds: actor.connection.messages.pop(0) if actor.connection.messages else actor.late
        actor.send = lambda order: None
        actor.end = lambda: setattr(actor, "has_ended", True)
        actor.log = ROOT / "none"
        actor.limit("timeout", "scheduled", 5)
        return actor


def steps(name):
    return [Proposed(name.encode(), name, 0.1), Compiled(0.2), Checked({"stores": [1]})]


FEATURIZED = Featurized(make_stages(n_stages=1).tobytes())


def test_the_queue_takes_each_candidate_to_where_it_waits(tmp_path, monkeypatch):
    reference = [Proposed(b"", "", 0.1, {"stages": ["f"], "identity": "abc"}), Compiled(0.1), ReferenceRun({"image": "random"}), FEATURIZED]
    scripts = {
        "reference": [reference],
        "0": [steps("a")],
        "1": [steps("a")],  # a duplicate
        "2": [[Proposed(b"c", "c", 0.1), Failed("timeout", "not compiled within 5 s")]],
        "3": [steps("d")],
    }
    actor = Actor(monkeypatch, scripts)
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path))
    ready = CompileQueue({run_: ["0", "1", "2", "3"]}, tmp_path, 2).run()
    assert [c.key for _, c in ready] == ["0", "3"] and ready[0][1].lowered == {"stores": [1]} and actor.started[0] == "reference"
    assert {key: c["outcome"] for key, c in run_.outcomes.items()} == {"1": "duplicate", "2": "timeout"}
    assert run_.record["identity"] == "abc" and run_.record["inputs"] == {"image": "random"} and run_.failures() == {"timeout": 1}


def test_the_reference_falls_back_and_then_nothing_is_waited_for(tmp_path, monkeypatch):
    ways = list(reference_schedules())
    assert len(ways) > 1
    refused = [Proposed(b"", "", 0.1, {"index_hint": "it indexes by image"}), Failed("out_of_memory", "17 GB")]
    slow = [Proposed(b"", "", 0.1), Failed("too_slow", "not run within 120 s")]
    later = [Proposed(b"", "", 0.1), Compiled(0.1), ReferenceRun({}), FEATURIZED]
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path / "a"))
    Actor(monkeypatch, {"reference": [refused, later], "0": [steps("a")]})
    assert [c.key for _, c in CompileQueue({run_: ["0"]}, tmp_path, 2).run()] == ["0"] and run_.record["reference"] == ways[1]

    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path / "b"))
    # The candidate never says anything: it must not be waited for once there is no reference.
    Actor(monkeypatch, {"reference": [refused, *[slow] * (len(ways) - 1)], "0": [[]]})
    began = time.monotonic()
    assert CompileQueue({run_: ["0"]}, tmp_path, 2).run() == [] and run_.failed and time.monotonic() - began < 3
    assert all(way in run_.record["failure"] for way in ways) and "17 GB" in run_.record["failure"]
    assert run_.record["failure"].endswith("it indexes by image")


def test_nothing_is_begun_or_waited_for_after_the_deadline(tmp_path, monkeypatch):
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path))
    run_.reference_ready, run_.deadline = True, time.monotonic() + 0.3  # the reference's own deadline is a later one
    actor = Actor(monkeypatch, {key: [[]] for key in "0123"})
    assert CompileQueue({run_: list("0123")}, tmp_path, 2).run() == [] and time.monotonic() < run_.deadline + 1
    assert actor.started == ["0", "1"] and {c["outcome"] for c in run_.outcomes.values()} == {"deadline"}
    assert "--minutes" in run_.outcomes["0"]["detail"]
    assert ProgramRun(run_.spec, plan(tmp_path)).next_keys()[0] == "0", "with more time it is tried again"


def test_the_reference_may_take_longer_than_halides_own_choice(tmp_path, monkeypatch):
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path))
    run_.deadline, run_.reference_deadline = time.monotonic() - 1, time.monotonic() + 60
    reference = [Proposed(b"", "", 0.1), Compiled(0.1), ReferenceRun({}), FEATURIZED]
    actor = Actor(monkeypatch, {"reference": [reference], "0": [steps("a")]})
    assert CompileQueue({run_: ["0"]}, tmp_path, 2).run() == [] and actor.started == ["reference"]
    assert run_.reference_ready and not run_.failed


def test_a_candidate_is_run_on_the_threads_that_its_program_says(tmp_path, blur):
    """What is asked for reaches the schedule's parallelism and the threads that run."""
    source = {}
    for threads in (1, 2):
        spec = dataclasses.replace(find_programs(blur.path)[0], n_threads=threads)
        run_ = ProgramRun(spec, plan(tmp_path / str(threads), 1, protocol=QUICK))
        ((_, ready),) = CompileQueue({run_: ["0"]}, tmp_path, 2).run()
        Stopwatch(QUICK).measure([(run_, ready)])
        source[threads] = ready.source
        ready.end()
        assert run_.record["threads"] == threads and (threads > 1 or run_.outcomes["0"]["cpu_share"] < 1.2)
    assert source[1] != source[2]
    assert math.isfinite(run_.outcomes["0"]["runtime_ms"])


def own_steps(text, number, lowered=None):
    """What a candidate says that Adams2019 has not proposed."""
    return [Proposed(b"", "", 0.1, schedule=text, lowered_hash=number), Compiled(0.2), Checked(lowered)]


def test_what_lowers_to_the_code_of_an_earlier_candidate_is_not_measured(tmp_path, monkeypatch):
    reference = [Proposed(b"", "", 0.1, {"stages": ["f"], "calls": {}}), Compiled(0.1), ReferenceRun({}), FEATURIZED]
    sample = [dataclasses.replace(steps("a")[0], lowered_hash=7), *steps("a")[1:]]
    scripts = {"reference": [reference], "0": [sample], "1": [own_steps("b", 8)], "2": [own_steps("c", 7)], "3": [own_steps("d", 8)]}
    Actor(monkeypatch, scripts)
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path, origins=("adams2019", "mutated")))
    assert [c.key for _, c in CompileQueue({run_: list("0123")}, tmp_path, 2).run()] == ["0", "1"]
    assert {key: (c["outcome"], c["of"], c["lowered_hash"]) for key, c in run_.outcomes.items()} == {
        "2": ("duplicate", "0", f"{7:016x}"),
        "3": ("duplicate", "1", f"{8:016x}"),
    }


def test_a_dump_of_our_own_needs_the_programs_features(tmp_path, monkeypatch):
    """They come from Adams2019 once a program; where they can't be had, the reason is that of each candidate, and Adams2019's are kept."""
    start = [Proposed(b"", "", 0.1, {"stages": ["f", "g"], "calls": {"exp": [1, 0]}}), Compiled(0.1), ReferenceRun({})]
    featurized = Featurized(make_stages(5, n_stages=2).tobytes())
    for name, last in (("has", featurized), ("has not", Failed("no_legal_state", "Ran out of legal states"))):
        Actor(monkeypatch, {"reference": [[*start, last]], "0": [steps("a")], "1": [own_steps("{}", 8, {"bytes_stored": [1, 2]})]})
        run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path / name, origins=("adams2019", "mutated")))
        ready = CompileQueue({run_: ["0", "1"]}, tmp_path, 2).run()
        assert not run_.failed, "the reference itself has run"
        if name == "has":
            assert [c.key for _, c in ready] == ["0", "1"] and len(run_.record["features"]["sizes"]) == 2
            candidate_, found = ready[1][1], machine.summary([execution.Pass([2.0], 1, 1.0, 0.0)])
            candidate_.schedule, candidate_.passes = "", [1]
            run_.keep_measurement(candidate_, found)
            tree = orjson.loads((run_.folder / "001.schedule.json").read_bytes())
            dump = parse(orjson.dumps(tree), "001.schedule.json")
            assert dump.program == parse(sample_bytes(make_stages(5, n_stages=2), 1)).program and dump.runtime_ms == 2.0
            assert tree["program"]["stages"] == ["f", "g"] and dump.schedule == 8 and dump.calls.sum() == 1 and dump.lowered.sum() == 3
        else:
            assert [c.key for _, c in ready] == ["0"] and run_.outcomes["1"]["outcome"] == "not_featurized"
            assert "legal states" in run_.outcomes["1"]["detail"] and run_.should_stop()
            assert ProgramRun(run_.spec, plan(tmp_path / name)).record.get("not_featurized") is None, "another try may have more time"


def test_mutations_that_fail_do_not_give_up_the_program(tmp_path):
    both = plan(tmp_path, 8, origins=("adams2019", "mutated"))
    refused = {"outcome": "halide_error", "origin": "mutated"}
    run_ = ProgramRun(ProgramSpec("p", 1), plan(tmp_path, 8, origins=("mutated",)))
    run_.outcomes.update({str(k): refused for k in range(40)})
    assert not run_.should_stop() and run_.next_keys() == [str(k) for k in range(40, 48)]
    run_.outcomes.update({str(k): refused for k in range(8 * collection.MUTATIONS_A_SCHEDULE)})
    assert run_.next_keys() == [], "but not for ever"

    run_ = ProgramRun(ProgramSpec("p", 1), both)
    run_.outcomes.update({str(k): {"outcome": "timeout", "origin": "mutated"} for k in range(collection.MANY_TIMEOUTS)})
    assert not run_.should_stop()
    run_.outcomes["9"] = {"outcome": "timeout", "origin": "mutated"}
    assert run_.should_stop(), "more than were fast enough"
    run_.outcomes.update({str(k): {"outcome": "measured", "origin": "adams2019"} for k in range(10, 15)})
    assert not run_.should_stop()
    run_.outcomes.update({str(k): {"outcome": "timeout", "origin": "adams2019"} for k in range(20, 24)})
    assert run_.should_stop(), "Adams2019's own count as ever"


def test_mutations_get_less_time_to_run_than_what_an_autoscheduler_proposes(tmp_path, blur):
    run_, limits = ProgramRun(blur, plan(tmp_path, origins=("adams2019", "mutated"))), {}
    for key in ("0", "1"):
        candidate_ = Candidate(key, run_, tmp_path)
        candidate_.check()
        limits[origin(candidate_.proposal)] = candidate_.deadline - time.monotonic()
        candidate_.end()
    assert limits["mutated"] < candidate.MUTATED_RUN_SECONDS + 0.1 and limits["adams2019"] > candidate.RUN_SECONDS - 5
