"""One candidate: a schedule of a program, proposed, compiled, checked and measured in a process of its own, which it may crash.

`run_candidate` is what that process does; `Candidate` is the process as whoever started it sees it.
"""

import contextlib
import ctypes
import hashlib
import math
import multiprocessing
import os
import resource
import signal
import struct
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import halide as hl
import numpy as np

from halide_tools import execution, lowered_code, lowered_features
from halide_tools.programs import describe_stages, schedule_everything_at_root

HALIDE_ERRORS = (hl.HalideError, ValueError, RuntimeError, MemoryError)
RUN_SECONDS = 60
MEMORY_LIMIT = 12 * 2**30


# In its own process


def run_candidate(connection, spec, proposal, counts, reference_path, log_path):
    """Schedule, compile, check and (whenever told to) measure one candidate; `proposal` None makes the program's reference.

    counts : whether to count in its lowered code, too.

    Sends ("proposed", featurization, source, seconds, description of the stages), then, each after a word from the parent, ("compiled", seconds),
    ("checked", lowered_code.as_dict of the counts or None) where its output is the reference's, and ("measured", execution.Pass) as often as asked; or ("failed", reason, detail).
    """
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        with ThreadPoolExecutor(1) as elsewhere:  # where it has a heap of its own, so that the one that is measured on is as good as new
            start = time.monotonic()
            pipeline, *proposed = elsewhere.submit(_schedule, spec, proposal).result()
            connection.send(("proposed", *proposed[:2], time.monotonic() - start, proposed[2]))
            connection.recv()
            start = time.monotonic()
            program = elsewhere.submit(execution.Program, pipeline).result()
        if proposal is None:
            program.allocate(spec.seed)
            program()
            np.savez(reference_path, *program.results())
        connection.send(("compiled", time.monotonic() - start))
        connection.recv()
        _send_from_fork(connection, lambda: _check(program, spec.seed, reference_path, counts))
        while True:
            connection.recv()
            _send_from_fork(connection, lambda: ("measured", execution.benchmark(program, spec.seed)))
    except EOFError:
        pass
    except HALIDE_ERRORS as error:
        connection.send(_failure(error))


def _schedule(spec, proposal):
    """(hl.Pipeline, featurization, source, description of the stages), the last for the reference only."""
    pipeline = spec.build()
    if proposal:
        return pipeline, *proposal.apply(pipeline), {}
    schedule_everything_at_root(pipeline)
    return pipeline, b"", "", describe_stages(pipeline)


def _check(program, seed, reference_path, counts):
    """The message about a program's output; with `counts` also of what is counted in its lowered code."""
    program.allocate(seed)
    program()
    with np.load(reference_path) as reference:
        wrong = execution.mismatch(program.results(), reference.values())
    if wrong:
        return ("failed", "wrong_result", wrong)
    found = lowered_features.count_lowered(program.pipeline) if counts else None
    return ("checked", None if found is None else lowered_code.as_dict(found))


def _send_from_fork(connection, work):
    """Send the message that `work` returns, worked out in a fork of this process, and die as that does.

    Where the memory, stacks and threads of a process happen to lie makes one and the same schedule up to a quarter slower for as long as the
    process lives. A fork draws them anew, and gives its buffers back: a hundred candidates wait side by side.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            _die_with_parent()
            execution.keep_memory()
            try:
                message = work()
            except HALIDE_ERRORS as error:
                message = _failure(error)
            connection.send(message)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        signal.raise_signal(-code)
    elif code:
        sys.exit(code)


def _failure(error):
    return ("failed", "halide_error", " ".join(str(error).split())[:300])


def hash_of(featurization, source):
    """What a schedule goes by in program.json."""
    return hashlib.sha256(featurization or source.encode()).hexdigest()[:16]


def propose(spec, proposal):
    """(featurization, source) of a proposal, neither compiled nor run; None where Halide can't schedule it so."""
    try:
        return proposal.apply(spec.build())
    except (hl.HalideError, RuntimeError):
        return None


def count(spec, proposal):
    """What lowered_features.count_lowered finds in the code of a proposal, neither compiled nor run; None where Halide can't lower it, too."""
    try:
        pipeline = spec.build()
        proposal.apply(pipeline)
        return lowered_features.count_lowered(pipeline)
    except (hl.HalideError, RuntimeError):
        return None


def build_library(spec, proposal, prefix, name):
    """Write PREFIX.a and PREFIX.h: the program as a function `name`, scheduled by `proposal`."""
    pipeline, arguments = spec.build_with_arguments()
    proposal.apply(pipeline)
    pipeline.compile_to_static_library(prefix, arguments, name, hl.get_host_target())


def silence():
    """Send what Halide prints in this process nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)


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


class Candidate:
    """A candidate's process seen from outside, and how far it has come.

    key: "reference", the number of a proposal, or that with an "r" behind it for each time its measurement is repeated.
    """

    context = multiprocessing.get_context("forkserver")

    def __init__(self, key, run, folder):
        self.key, self.seconds = key, run.seconds_for(key)
        self.proposal = None if key == "reference" else run.proposal(key.rstrip("r"))
        self.log = Path(folder, f"{run.spec.name}.{key}.log")
        self.connection, theirs = self.context.Pipe()
        self.lowered = run.lowered(key)  # as of lowered_code.as_dict
        counts = key.isdecimal() and self.lowered is None
        arguments = (theirs, run.spec, self.proposal, counts, str(Path(folder, f"{run.spec.name}.npz")), str(self.log))
        self.process = self.context.Process(target=run_candidate, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.deadline, self.late = time.monotonic() + self.seconds, ("timeout", f"not compiled within {self.seconds:g} s")
        self.featurization, self.source, self.hash = b"", "", ""
        self.schedule_seconds = self.compile_seconds = 0.0
        self.passes = []  # execution.Pass each
        self.has_proposed = self.has_ended = False

    def receive(self, seconds):
        """The next message, or a failure in its place: `late` (reason, detail) where none comes in time, or that the process has died."""
        try:
            if self.connection.poll(max(seconds, 0)):
                return self.connection.recv()
            return ("failed", *self.late)
        except (EOFError, OSError):
            self.process.join(5)
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            words = [line for line in text.splitlines() if line.strip()]
            return ("failed", "crashed", f"exit code {self.process.exitcode}: {words[-1][:200] if words else 'nothing printed'}")

    def send(self, word):
        """Tell the process to go on; if it is dead, the next `receive` says so."""
        with contextlib.suppress(OSError):
            self.connection.send(word)

    def keep_proposal(self, featurization, source, seconds):
        """Its schedule; it waits, without a time limit, to be told to compile it."""
        self.featurization, self.source, self.schedule_seconds = featurization, source, seconds
        self.hash = hash_of(featurization, source)
        self.deadline = math.inf
        self.has_proposed = True

    def compile(self):
        self.deadline = time.monotonic() + self.seconds
        self.send("compile")

    def check(self):
        """Have it run once, and its output compared with the reference's."""
        self.deadline, self.late = time.monotonic() + RUN_SECONDS, ("too_slow", f"not run and measured within {RUN_SECONDS} s")
        self.send("check")

    def end(self):
        self.has_ended = True
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.unlink(missing_ok=True)
