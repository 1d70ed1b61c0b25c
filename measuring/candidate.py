"""One candidate: a schedule of a program, proposed, compiled, checked and measured in a process of its own, which it may crash.

`run_candidate` is what that process does; `Candidate` is the process as whoever started it sees it. What they tell each other is in
measuring.messages.
"""

import contextlib
import ctypes
import dataclasses
import hashlib
import math
import multiprocessing
import os
import re
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import halide as hl
import numpy as np
import psutil

from dumps.companions import ADAMS2019
from halide_tools import execution, lowered_features, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal, proposal_from_record
from halide_tools.buffers import lowered_text
from halide_tools.lowered_identity import lowered_hash
from halide_tools.mutations import Edited, Mutated, NoChange
from halide_tools.program_rows import apply_from_data, by_names, of_program, stage_labels
from halide_tools.programs import ProgramSpec, describe_stages, reference_schedules
from halide_tools.schedule_source import read_source
from measuring.messages import (
    BuildLibrary,
    Checked,
    CompareSizes,
    Compiled,
    Failed,
    Featurized,
    FindMinimumExtents,
    GoOn,
    LibraryBuilt,
    LoopNest,
    Measured,
    MinimumExtents,
    PrintLoopNest,
    Profile,
    Profiled,
    Proposed,
    ReferenceRun,
    SizesCompared,
)

HALIDE_ERRORS = (hl.HalideError, ValueError, RuntimeError, MemoryError)
RUN_SECONDS = 60  # for a candidate's check, and for each pass
MUTATED_RUN_SECONDS = 4  # the same of a mutation: one in ten is tens of times slower than its parent, and nobody wants to know how many
REFERENCE_RUN_SECONDS = 120  # for the reference's run: it is the slowest of all
MEMORY_LIMIT = min(12 * 2**30, psutil.virtual_memory().total * 3 // 4)  # bytes of address space for each process
OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|cannot allocate memory|memoryerror", re.I)
NO_LEGAL_STATE = re.compile(r"no legal way|out of legal states", re.I)  # Adams2019's words
PASS_OF_SEARCH = re.compile(r"^Pass (\d+) of (\d+)", re.M)


@dataclass(frozen=True)
class Reference:
    """A way, by its name in programs.reference_schedules, to compute the outputs that those of all candidates are compared with."""

    way: str


@dataclass(frozen=True)
class HandWritten:
    """The schedule that the program's author wrote."""

    autoscheduler: str = "hand_written"


@dataclass(frozen=True)
class StoredSchedule:
    """A schedule that was found before, as text of schedules.Schedule.to_json: it needs no search."""

    text: str


class GivenUp(Exception):
    """What a fork of a candidate's process has said, Failed, is the candidate's own end."""

    def __init__(self, failed):
        super().__init__(failed.detail)
        self.failed = failed


class NoSchedule(ValueError):
    """The program's author wrote none."""


@dataclass(frozen=True)
class Task:
    """What a candidate's process is to do.

    proposal : how to schedule, or a Reference; counts : whether to count in the lowered code, too; as_data : whether to tell the schedule
    as data, too.
    """

    spec: ProgramSpec
    proposal: object
    counts: bool
    as_data: bool
    reference_path: str
    log_path: str


def origin(proposal):
    """Where a proposal's schedule comes from: `adams2019`, `mutated`, `mullapudi2016`, `li2018` or `hand_written`."""
    return getattr(proposal, "autoscheduler", ADAMS2019).lower()


def proposal_of(record):
    """The proposal in a candidate's entry of program.json."""
    if record.get("autoscheduler") == HandWritten().autoscheduler:
        return HandWritten()
    if "edit_of" in record:
        return Edited.from_record(record)
    return Mutated.from_record(record) if "parent" in record else proposal_from_record(record)


def hash_of(featurization, source):
    """What a schedule goes by in program.json."""
    return hashlib.sha256(featurization or source.encode()).hexdigest()[:16]


# In its own process


def run_candidate(connection, task):
    """Schedule, compile, check and (whenever told to) measure one candidate, or make the program's reference."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(task.log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    limit_memory()
    if getattr(task.proposal, "beam_size", 1) > 1:
        os.environ["HL_DEBUG_AUTOSCHEDULE"] = "1"  # has Adams2019 print how far its search is
    try:
        _run_steps(connection, task)
    except EOFError:
        pass
    except GivenUp as given_up:
        connection.send(given_up.failed)
    except HALIDE_ERRORS as error:
        connection.send(failure(error))


def _run_steps(connection, task):
    spec = task.spec
    with ThreadPoolExecutor(1) as elsewhere:  # where it has a heap of its own, so that the one that is measured on is as good as new
        start = time.monotonic()
        scheduled, proposed = elsewhere.submit(_schedule, task).result()
        connection.send(dataclasses.replace(proposed, seconds=time.monotonic() - start))
        connection.recv()
        start = time.monotonic()
        program = elsewhere.submit(execution.Program, scheduled.pipeline, spec, isinstance(task.proposal, Reference)).result()
    connection.send(Compiled(time.monotonic() - start))
    connection.recv()
    if isinstance(task.proposal, Reference):
        np.savez(task.reference_path, *program.results_of_two_runs(spec.seed))
        connection.send(ReferenceRun(execution.describe_inputs(spec)))
        connection.recv()
        connection.send(Featurized(_found_in_fork(lambda: Proposal.draw(spec.seed, 0).apply(spec.build(), spec)[0])))
        return
    _send_from_fork(connection, lambda: _check(program, task, scheduled.by_stage))
    while True:
        order = connection.recv()
        _send_from_fork(connection, lambda: _obey(order, program))  # noqa: B023  (called at once)


class Scheduled(NamedTuple):
    """A scheduled pipeline.

    data : text of Schedule.to_json or ""; by_stage : function that makes counts of its stages those of its program's, None where they are.
    """

    pipeline: hl.Pipeline
    featurization: bytes
    source: str
    data: str
    by_stage: Callable | None = None


def _schedule(task):
    """(Scheduled, Proposed)."""
    if isinstance(task.proposal, Reference):
        return _schedule_reference(task)
    found = scheduled(task.spec, task.proposal, task.as_data)
    number = lowered_hash(lowered_text(found.pipeline, task.spec.halide_target(), keep=True))  # kept for the counts
    return found, Proposed(found.featurization, found.source, 0.0, schedule=found.data, lowered_hash=number)


def scheduled(spec, proposal, keep_data=False):
    """The Scheduled pipeline of a proposal for a ProgramSpec; with `keep_data` the data of Adams2019's, too.

    What can be kept as data is made from data, in a process that builds nothing else before. So Halide gives the same names each time,
    and the pipeline has all the Funcs of its program: Mullapudi2016 and Li2018 take out of it those that they inline. Adams2019's own and
    the author's schedule are measured as they come.
    """
    source = ""
    if isinstance(proposal, Edited):
        proposal = StoredSchedule(proposal.text)
    if isinstance(proposal, (Mutated, OtherAutoscheduler)):
        source, text = _found_in_fork(lambda: _search(proposal, spec))
        proposal = StoredSchedule(text) if text else proposal
    if isinstance(proposal, HandWritten):
        labels, _ = from_fork(lambda: stage_labels(spec.build()))
        pipeline = spec.build_hand_scheduled()
        if pipeline is None:
            raise NoSchedule("its author wrote no schedule")
        data = as_data(pipeline)
        if not isinstance(labels, list):
            return Scheduled(pipeline, b"", "", "")
        if data is None:
            return Scheduled(pipeline, b"", "", "", by_names(pipeline, labels))
        names = {label: name for label, (name, _) in data.names.items()}
        return Scheduled(pipeline, b"", "", data.to_json(), partial(of_program, pipeline, labels, names, data.created))
    pipeline = spec.build()
    if isinstance(proposal, StoredSchedule):
        return Scheduled(pipeline, b"", source, proposal.text, apply_from_data(schedules.Schedule.from_json(proposal.text), pipeline))
    unscheduled = as_data(pipeline) if keep_data else None
    found = proposal.apply(pipeline, spec)
    data = as_data(pipeline, unscheduled) if keep_data else None
    return Scheduled(pipeline, *found, data.to_json() if data else "")


def _search(proposal, spec):
    """(C++ source or "", text of Schedule.to_json or "") of what a proposal other than Adams2019's finds."""
    if isinstance(proposal, Mutated):
        return "", proposal.find(spec).to_json()
    pipeline = spec.build()
    unscheduled = as_data(pipeline)
    _, source = proposal.apply(pipeline, spec)
    data = as_data(pipeline, unscheduled)
    if data is None and ".rfactor(" in source:  # of loops that were split before: the text alone tells
        data = read_source(source, spec.build(), unscheduled)
    return source, data.to_json() if data else ""


def _schedule_reference(task):
    """_schedule for the reference, with what it says of its program."""
    spec = task.spec
    # In a process that has built nothing yet, as processes.identities does: Halide gives other names to a second program.
    identity, _ = from_fork(spec.identity)
    pipeline = spec.build()
    description = describe_stages(pipeline) | {"identity": identity if isinstance(identity, str) else ""}
    reference_schedules()[task.proposal.way](pipeline, spec)
    hint = {"index_hint": execution.index_hint(spec)}  # built last: a second program gets other names
    return Scheduled(pipeline, b"", "", ""), Proposed(b"", "", 0.0, description | hint)


def as_data(pipeline, unscheduled=None):
    """schedules.Schedule of a pipeline, None where it can't be kept so: it is searched for once more when it is asked for again."""
    try:
        return schedules.read(pipeline, unscheduled)
    except (ValueError, RuntimeError, LookupError):
        return None


def from_fork(work):
    """(What `work` returns, or Failed where Halide refuses, or None where it dies; the exit code), worked out in a fork of this process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            _die_with_parent()
            try:
                found = work()
            except HALIDE_ERRORS as error:
                found = failure(error)
            sender.send(found)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    sender.close()
    with receiver:
        try:
            found = receiver.recv()
        except EOFError:
            found = None
    return found, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _found_in_fork(work):
    """What `work` returns, of a fork; raises GivenUp where Halide refuses, and ends as the fork does where that ends badly."""
    found, exit_code = from_fork(work)
    _die_as(exit_code)
    if isinstance(found, Failed):
        raise GivenUp(found)
    return found


def _check(program, task, by_stage):
    """The message about a program's output; with `counts` also of what is counted in its lowered code."""
    with np.load(task.reference_path) as reference:
        wrong = program.mismatch(task.spec.seed, reference.values())
    if wrong:
        return Failed("wrong_result", wrong)
    found = lowered_features.count_lowered(program.pipeline, task.spec) if task.counts else None
    if found is not None and by_stage:
        found = by_stage(found)
    return Checked(None if found is None else lowered_features.as_dict(found))


def _obey(order, program):
    """The answer to what a candidate that waits is told."""
    match order:
        case BuildLibrary():
            arguments = program.spec.build_with_arguments()[1]
            program.pipeline.compile_to_static_library(order.prefix, arguments, order.name, program.spec.halide_target())
            return LibraryBuilt()
        case FindMinimumExtents():
            return MinimumExtents(execution.minimum_extents(program.spec, program.pipeline))
        case CompareSizes():
            return SizesCompared(execution.compare_sizes(program, order.way, order.smallest))
        case PrintLoopNest():
            return LoopNest(execution.printed(program.pipeline.print_loop_nest))
        case Profile():
            data = as_data(program.pipeline)
            labels = {name: label for label, (name, _) in data.names.items()} if data else {}
            found = execution.profile(program.pipeline, program.spec, order.seconds)
            return Profiled({labels.get(name, name): ms for name, ms in found.items()})
        case GoOn():
            return Measured(execution.benchmark(program, program.spec.seed))


def _send_from_fork(connection, work):
    """Send the message that `work` returns, worked out in a fork of this process, and die as that does.

    Where the memory, stacks and threads of a process happen to lie makes one and the same schedule up to a quarter slower for as long as
    the process lives. A fork draws them anew, and gives its buffers back: a hundred candidates wait side by side.
    """

    def with_its_own_memory():
        execution.keep_memory()
        return work()

    message, exit_code = from_fork(with_its_own_memory)
    _die_as(exit_code)
    connection.send(message)


def _die_as(exit_code):
    """End this process as a fork of it has ended, if that was not well."""
    if exit_code < 0:
        signal.raise_signal(-exit_code)
    elif exit_code:
        sys.exit(exit_code)


def failure(error):
    """Failed, with the reason and Halide's words, of an exception."""
    words = " ".join(str(error).split()).removeprefix("Error: ")[:300] or type(error).__name__
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(words):
        return Failed("out_of_memory", words)
    for kind, reason in ((NoChange, "no_change"), (NoSchedule, "no_schedule")):
        if isinstance(error, kind):
            return Failed(reason, words)
    return Failed("no_legal_state" if NO_LEGAL_STATE.search(words) else "halide_error", words)


def failure_of_process(exit_code, text):
    """Failed, of a process that ended without a word, by its exit code and what it had printed."""
    lines = [line for line in text.splitlines() if line.strip()]
    for pattern, reason in ((OUT_OF_MEMORY, "out_of_memory"), (NO_LEGAL_STATE, "no_legal_state")):
        told = [line for line in lines if pattern.search(line)]
        if told:
            return Failed(reason, " ".join(told[-1].split())[:200])
    if exit_code == -signal.SIGKILL:
        return Failed("out_of_memory", "killed by the system, as happens where memory is short")
    return Failed("crashed", f"exit code {exit_code}: {lines[-1][:200] if lines else 'nothing printed'}")


def limit_memory():
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _die_with_parent():
    """So that no compiler goes on when the collection is killed (Linux; elsewhere the process ends at its next message)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# Seen from outside


def prepare_processes():
    """Have candidates' processes start from one that has imported Halide, and without the script: it is of no use to them, and slow."""
    Candidate.context.set_forkserver_preload(["measuring.warm_up", "measuring.candidate"])
    main = sys.modules["__main__"]
    if main.__spec__ is None:
        main.__file__ = struct.__file__  # multiprocessing has each process import what this names: something that costs nothing
    standard_error, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # what dies with its parent, a pool that is stopped, would leave a traceback there; candidates have their logs
    try:
        forkserver.ensure_running()
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error), os.close(nowhere)


class Candidate:
    """A candidate's process seen from outside, and how far it has come.

    key: "reference", the number of a proposal, or that with an "r" behind it for each time its measurement is repeated.
    """

    context = multiprocessing.get_context("forkserver")

    def __init__(self, key, run, folder):
        self.key, self.run = key, run
        self.proposal = Reference(run.reference_way) if key == "reference" else run.proposal(key)
        stem = hashlib.sha256(run.spec.name.encode()).hexdigest()[:16]  # whatever characters a name has
        self.log = Path(folder, f"{stem}.{key}.log")
        self.connection, theirs = self.context.Pipe()
        self.lowered = run.lowered(key)  # as of lowered_features.as_dict
        is_repeated_sample = key != "reference" and not key.isdecimal() and origin(self.proposal) == ADAMS2019  # counted beside the first
        counts = self.lowered is None and not is_repeated_sample
        stored = "" if key == "reference" else run.stored_schedule(key)
        task = Task(
            run.spec,
            StoredSchedule(stored) if stored else self.proposal,
            counts,
            run.keeps_schedules,
            str(Path(folder, f"{stem}.npz")),
            str(self.log),
        )
        self.process = self.context.Process(target=run_candidate, args=(theirs, task), daemon=True)
        self.process.start()
        theirs.close()
        self.began = time.monotonic()
        self.featurization, self.source, self.schedule, self.hash, self.lowered_hash = b"", "", "", "", None
        self.schedule_seconds = self.compile_seconds = 0.0
        self.passes = []  # execution.Pass each
        self.has_proposed = self.has_ended = False
        self.run_seconds = MUTATED_RUN_SECONDS if isinstance(self.proposal, Mutated) else RUN_SECONDS
        self.limit("timeout", "scheduled", run.seconds_for(key))

    def limit(self, reason, what, seconds):
        """Give its next message so long, but no longer than the run has; `late` is the Failed in its place."""
        self.deadline, self.late = time.monotonic() + seconds, Failed(reason, f"not {what} within {seconds:g} s")
        end = self.run.deadline_of(self.key)
        if end < self.deadline:
            self.deadline, self.late = end, Failed("deadline", f"not {what} when its share of --minutes was over")

    def unlimit(self):
        """It waits for others."""
        self.deadline = math.inf

    def receive(self, seconds):
        """The next message, or Failed in its place: `late` where none comes in time, or that the process has died."""
        try:
            if self.connection.poll(max(seconds, 0)):
                return self.connection.recv()
            return self.late
        except (EOFError, OSError):
            self.process.join(5)
            return failure_of_process(self.process.exitcode, self.log.read_text(errors="replace") if self.log.exists() else "")

    def send(self, order):
        """Tell the process to go on; if it is dead, the next `receive` says so."""
        with contextlib.suppress(OSError):
            self.connection.send(order)

    def keep_proposal(self, proposed):
        """Its schedule; it waits, without a time limit, to be told to compile it."""
        self.featurization, self.source, self.schedule = proposed.featurization, proposed.source, proposed.schedule
        self.schedule_seconds = proposed.seconds
        self.hash = hash_of(proposed.featurization, proposed.source or proposed.schedule)
        self.lowered_hash, self.has_proposed = proposed.lowered_hash, True
        self.unlimit()

    def compile(self):
        self.limit("timeout", "compiled", self.run.seconds)
        self.send(GoOn())

    def run_reference(self):
        """Have the reference run once, and keep its output."""
        self.limit("too_slow", "run (the limit for the program that the others are compared with)", REFERENCE_RUN_SECONDS)
        self.send(GoOn())

    def featurize(self):
        """Have the reference's process featurize the program, too."""
        self.limit("timeout", "featurized", self.run.seconds)
        self.send(GoOn())

    def check(self):
        """Have it run once, and its output compared with the reference's."""
        self.limit("too_slow", "run and compared", self.run_seconds)
        self.send(GoOn())

    def measure_pass(self):
        """The message about one pass, measured now."""
        self.limit("too_slow", "measured", self.run_seconds)
        self.send(GoOn())
        return self.receive(self.deadline - time.monotonic())

    def ask(self, order, seconds):
        """The answer to an order of messages, or Failed."""
        self.limit("timeout", "done", seconds)
        self.send(order)
        return self.receive(self.deadline - time.monotonic())

    def start_over(self):
        """What is measured from now on is a repetition."""
        self.key, self.passes = self.key.rstrip("r") + "r", []

    def progress(self):
        """How far it is, for a person."""
        text = f"{time.monotonic() - self.began:.0f} s"
        passes = PASS_OF_SEARCH.findall(self.log.read_text(errors="replace")) if self.log.exists() else []
        if passes and not self.has_proposed:
            text += f", pass {int(passes[-1][0]) + 1} of {passes[-1][1]} of its search done"
        return text

    def pause(self):
        """Have it use no processor until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self):
        self.has_ended = True
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.unlink(missing_ok=True)
