"""Candidates, passes and records: measuring without a script."""

import signal
import subprocess
import sys

from conftest import ROOT

from halide_tools import execution
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import (
    ProgramSpec,
)
from measuring import archives, collection, machine
from measuring.candidate import Candidate
from measuring.collection import Plan


def test_a_known_schedule_that_comes_out_otherwise_is_not_measured(tmp_path):
    known = {str(k): collection.PriorSchedule(Proposal.draw(1, k), f"hash {k}", None) for k in (2, 5, 7)}
    run_ = collection.ProgramRun(ProgramSpec("p", 1), Plan(str(tmp_path), 8, 5.0, {"p": known}))
    assert run_.next_keys() == ["2", "5", "7"]
    for key in run_.next_keys():
        candidate = Scripted(key, [], [])
        candidate.hash = "hash 2" if key == "2" else "another"
        run_.awaiting_deduplication.append(candidate)
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
    """A candidate whose passes take these milliseconds, and that then crashes."""

    def __init__(self, key, runtimes, order):
        self.key, self.proposal, self.passes, self.has_ended = key, Proposal.draw(1, int(key)), [], False
        self.featurization, self.source, self.hash, self.schedule_seconds, self.compile_seconds = b"", "", key, 0.1, 0.2
        self.has_proposed, self.lowered, self.seconds = True, None, 5.0
        self.runtimes, self.order = list(runtimes), order

    def send(self, word):
        self.order.append(self.key)

    def receive(self, seconds):
        if not self.runtimes:
            return ("failed", "crashed", "exit code 1")
        return ("measured", execution.Pass([self.runtimes.pop(0)] * 25, 1, 2.0, 0.0))

    def end(self):
        self.has_ended = True


def test_the_fastest_moments_of_all_passes_count(tmp_path):
    run_, order = collection.ProgramRun(ProgramSpec("p", 1), Plan(str(tmp_path), 5, 5.0)), []
    # Three agree at once but five are the least; the seventh is the third that agrees; always faster; it crashes; slow ones need but two.
    scripts = {
        "0": [1.3, 1.3, 1.31, 1.5, 1.6, 0.5],
        "1": [1.3, 1.0, 1.1, 1.2, 1.3, 1.01, 1.015, 0.5],
        "2": [2 / 1.1**i for i in range(20)],
        "3": [2.0],
        "4": [150.0, 151.0, 170.0, 0.5],
    }
    passes = {"0": 5, "1": 7, "2": machine.MAX_PASSES, "3": 1, "4": 3}
    candidates = [(run_, Scripted(key, runtimes, order)) for key, runtimes in scripts.items()]
    for _, candidate in candidates:
        collection.measure(run_, candidate)
        assert (
            collection.ProgramRun(run_.spec, Plan(str(tmp_path), 5, 5.0)).outcomes[candidate.key]["outcome"] == "measured"
        )  # whatever happens next
    collection.further_passes(candidates)
    assert order[:10] == ["0", "1", "2", "3", "4"] * 2  # some seconds apart in a real collection
    found = {key: (c["runtime_ms"], c["samples"], c["passes_ms"]) for key, c in run_.outcomes.items()}
    assert {key: f[1:] for key, f in found.items()} == {
        key: (25 * n, [round(ms, 6) for ms in scripts[key][:n]]) for key, n in passes.items()
    }
    assert (found["0"][0], found["1"][0], found["3"][0]) == (1.3, 1.0, 2.0) and found["2"][0] == round(2 / 1.1**15, 6)
    assert all(candidate.has_ended for _, candidate in candidates)


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
        print(message[0], psutil.Process().memory_info().rss / 2**20, flush=True)

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
    assert outcome == "failed" and done.returncode == -signal.SIGABRT


def test_repeats_are_drawn_by_a_hash(tmp_path):
    run_ = collection.ProgramRun(ProgramSpec("p", 1), Plan(str(tmp_path), 8, 5.0))
    run_.outcomes.update({str(k): {"outcome": "measured"} for k in range(400)})
    keys = run_.repeat_keys()
    assert 8 <= len(keys) <= 35 and all(k.endswith("r") for k in keys)
    run_.outcomes[keys[0]] = {"outcome": "measured"}
    assert run_.repeat_keys() == keys[1:]  # the same draw, less what is done


def test_timeouts_of_a_killed_collection_are_forgotten(tmp_path):
    """They were weighed against candidates that had compiled but were not measured yet."""
    plan = Plan(str(tmp_path), 4, 5.0)
    first = collection.ProgramRun(ProgramSpec("p", 1), plan)
    first.outcomes.update({str(k): {"outcome": "timeout"} for k in range(4)})
    first.save()
    assert first.should_stop() and first.next_keys() == []
    assert collection.ProgramRun(ProgramSpec("p", 1), plan).next_keys() == ["0", "1", "2", "3"]
    first.record["complete"] = True
    first.save()
    assert collection.ProgramRun(ProgramSpec("p", 1), plan).next_keys() == []
