"""One machine's part of a collection: schedules of a few programs proposed, compiled and measured, each in a process of its own.

`measure_programs` is what collect_schedules.py hands to a machine. A folder a program: a `.sample` and a `.schedule.h` for each
schedule, and `program.json`, the record of every candidate and how it ended. What is in the record is never done again, so that a
collection that was stopped at any moment goes on where it was.
"""

import contextlib
import ctypes
import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import platform
import resource
import signal
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import halide as hl
import numpy as np
import orjson
import psutil
from filelock import FileLock

import halide_utils
from halide_utils import Proposal

PROPOSALS_A_SCHEDULE = 3  # give up on a program after this many proposals for each schedule wanted
FEW_TIMEOUTS, MANY_TIMEOUTS = 2, 4  # or after this many that took too long to compile: few if fewer were fast enough, or many
RUN_SECONDS = 60
TRIES = 3  # measurements of one schedule on a busy machine before it is kept and flagged noisy
# Every schedule is measured in short passes through all that are compiled, so that those of one are half a minute apart: others on the
# host slow a machine by up to a fifth for seconds at a time, which it can't see. The fastest pass counts; there are more of them until
# the two fastest agree.
MIN_PASSES, MAX_PASSES, PASS_AGREEMENT = 4, 6, 0.02
REPEATED_SHARE = 0.05  # of the schedules are measured again in a fresh process, which tells the noise
MEMORY_LIMIT = 12 * 2**30
MAX_DRIFT = 0.05  # of the calibration programs' times, beyond which measurements no longer belong to one collection


@dataclass(frozen=True)
class Plan:
    """What is to be measured of each program, and where it goes."""

    folder: str
    schedules: int
    compile_seconds: float


# In the candidate's process


def run_candidate(connection, spec, proposal, reference_path, log_path):
    """Schedule, compile, check and (whenever told to) measure one candidate; `proposal` None makes the program's reference.

    Sends ("proposed", featurization, source, seconds, description of the stages), then, each after a word from the parent, ("compiled", seconds),
    ("checked",) where its output is the reference's, and ("measured", dict) as often as asked; or ("failed", reason, detail).
    """
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    halide_utils.keep_memory()
    try:
        start = time.monotonic()
        pipeline = spec.build()
        if proposal is None:
            halide_utils.schedule_everything_at_root(pipeline)
            connection.send(("proposed", b"", "", 0.0, halide_utils.describe_stages(pipeline)))
        else:
            featurization, source = proposal.apply(pipeline)
            connection.send(("proposed", featurization, source, time.monotonic() - start, {}))
        connection.recv()
        start = time.monotonic()
        program = halide_utils.Program(pipeline)
        if proposal is None:
            program.allocate(spec.seed)
            program()
            np.savez(reference_path, *program.results())
        connection.send(("compiled", time.monotonic() - start))
        connection.recv()
        program.allocate(spec.seed)
        program()
        with np.load(reference_path) as reference:
            wrong = halide_utils.mismatch(program.results(), reference.values())
        if wrong:
            connection.send(("failed", "wrong_result", wrong))
            return
        program.release()
        connection.send(("checked",))
        while True:
            connection.recv()
            measurement = halide_utils.benchmark(program, spec.seed).as_dict()
            program.release()  # before the next one's turn: a hundred candidates wait side by side
            connection.send(("measured", measurement))
    except EOFError:
        pass
    except (hl.HalideError, ValueError, RuntimeError, MemoryError) as error:
        connection.send(("failed", "halide_error", " ".join(str(error).split())[:300]))


def propose(spec, proposal):
    """(featurization, source) of a proposal, neither compiled nor run, or None where Halide can't schedule it so."""
    try:
        return proposal.apply(spec.build())
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


# In the collecting process


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
        arguments = (theirs, run.spec, self.proposal, str(Path(folder, f"{run.spec.name}.npz")), str(self.log))
        self.process = self.context.Process(target=run_candidate, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.deadline, self.late = time.monotonic() + self.seconds, ("timeout", f"not compiled within {self.seconds:g} s")
        self.featurization, self.source, self.hash = b"", "", ""
        self.schedule_seconds = self.compile_seconds = 0.0
        self.passes = []  # what each pass measured
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
        self.hash = hashlib.sha256(featurization or source.encode()).hexdigest()[:16]
        self.deadline = math.inf
        self.has_proposed = True

    def compile(self):
        self.deadline = time.monotonic() + self.seconds
        self.send("compile")

    def check(self):
        """Have it run once, and its output compared with the reference's."""
        self.deadline, self.late = time.monotonic() + RUN_SECONDS, ("too_slow", f"not run and measured within {RUN_SECONDS} s")
        self.send("check")

    def fastest(self):
        """The measurement that counts: the fastest pass, of those on a quiet machine if there is one."""
        return min(self.passes, key=lambda m: (is_noisy(m), m["runtime_ms"]))

    def is_settled(self):
        """Whether there were passes enough."""
        times = sorted(m["runtime_ms"] for m in self.passes)
        agree = len(times) >= MIN_PASSES and times[1] <= (1 + PASS_AGREEMENT) * times[0]
        return agree or len(times) >= MAX_PASSES

    def end(self):
        self.has_ended = True
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.unlink(missing_ok=True)


class ProgramRun:
    """One program's collection: its folder, its record (program.json), and the candidates under way."""

    def __init__(self, spec, plan):
        self.spec, self.wanted = spec, plan.schedules
        self.seconds = plan.compile_seconds
        self.folder = Path(plan.folder) / spec.name
        self.path = self.folder / "program.json"
        if self.path.exists():
            self.record = orjson.loads(self.path.read_bytes())
            if not self.record["complete"]:
                # A timeout counts against the candidates that compiled beside it, and those are gone with the process that was killed.
                candidates = self.record["candidates"]
                self.record["candidates"] = {k: c for k, c in candidates.items() if c["outcome"] != "timeout"}
        else:
            self.record = {"name": spec.name, "seed": spec.seed, "stages": [], "edges": [], "calls": {}, "candidates": {}, "complete": False}
            if not spec.path:
                self.record["stage_kinds"] = halide_utils.random_programs.build(spec.seed, spec.max_stages)[1]
        self.decided = self.record["candidates"]
        self.reference_ready, self.failed = False, "failure" in self.record
        self.undecided = []  # candidates whose proposals may be duplicates of earlier ones, in the order of their keys
        self.compiling = {}  # {hash: key} of those that were not
        self.unchecked = []  # candidates that have compiled before the reference has run
        self.n_compiled = 0

    def save(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, orjson.dumps(self.record, option=orjson.OPT_INDENT_2))

    def proposal(self, key):
        """What the candidate of this number is."""
        return Proposal.draw(self.spec.seed, int(key))

    def seconds_for(self, key):
        """How long a candidate may take to be scheduled and compiled."""
        return self.seconds

    def measured(self):
        """Keys of the schedules with a runtime, repetitions left out."""
        return [k for k, c in self.decided.items() if c["outcome"] == "measured" and not k.endswith("r")]

    def decide(self, candidate, outcome, **more):
        """Note for good how a candidate ended."""
        self.decided[candidate.key] = {**vars(candidate.proposal), "outcome": outcome, **more}
        self.save()

    def gives_up(self):
        """Whether no more candidates are worth their time: no reference, or mostly such that compile for too long."""
        timeouts = sum(c["outcome"] == "timeout" for c in self.decided.values())
        fast_enough = len(self.measured()) + self.n_compiled
        return self.failed or timeouts >= MANY_TIMEOUTS or (timeouts >= FEW_TIMEOUTS and timeouts > fast_enough)

    def next_keys(self):
        """Keys of the candidates to start now: as many as schedules are missing, in order, never the same again.

        The set of schedules that a program ends with depends on nothing but the program, however often it was stopped.
        """
        if self.gives_up():
            return []
        missing = self.wanted - len(self.measured())
        open_keys = (str(k) for k in range(self.wanted * PROPOSALS_A_SCHEDULE) if str(k) not in self.decided)
        return list(itertools.islice(open_keys, missing))

    def repeat_keys(self):
        """Keys of the schedules to be measured once more, drawn by a hash."""
        if self.failed:
            return []
        chosen = (k for k in self.measured() if stable_share(f"{self.spec.name}/{k}") < REPEATED_SHARE)
        return [f"{k}r" for k in chosen if f"{k}r" not in self.decided]

    def decide_proposals(self):
        """Compile or drop the proposals whose turn it is.

        In the order of the keys, so that which of two equal schedules counts as the duplicate does not depend on which process
        was faster. Returns the candidates dropped.
        """
        dropped = []
        while self.undecided and (self.undecided[0].has_proposed or self.undecided[0].has_ended):
            candidate = self.undecided.pop(0)
            if candidate.has_ended:
                continue
            earlier = {c.get("hash"): k for k, c in self.decided.items()} | self.compiling
            if candidate.hash in earlier:
                self.decide(candidate, "duplicate", of=earlier[candidate.hash], hash=candidate.hash)
                candidate.end()
                dropped.append(candidate)
            else:
                self.compiling[candidate.hash] = candidate.key
                candidate.compile()
        return dropped

    def check_compiled(self):
        """Check what has compiled, once there is something to compare with. Returns the candidates given up because there never will be."""
        if not self.reference_ready and not self.failed:
            return []
        candidates, self.unchecked = self.unchecked, []
        for candidate in candidates:
            if self.failed:
                candidate.end()
            else:
                candidate.check()
        return candidates if self.failed else []

    def fail(self, candidate, reason, detail):
        """Note why a candidate gave no measurement; without its reference a program has nothing to be compared with."""
        if candidate.key == "reference":
            self.failed = True
            self.record["failure"] = f"reference: {reason}: {detail}"
        else:
            self.decide(candidate, reason, detail=detail, hash=candidate.hash)
        candidate.end()

    def write_sample(self, candidate, runtime_ms):
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / candidate.key.zfill(3)
        footer = struct.pack("<fii", runtime_ms, self.spec.seed % 2**31, int(candidate.key.rstrip("r")))
        replace_file(stem.with_suffix(".schedule.h"), candidate.source.encode())
        if candidate.featurization:  # autoschedulers other than Adams2019 give none
            replace_file(stem.with_suffix(".sample"), candidate.featurization + footer)


def replace_file(path, data):
    """Write to another name and move into place: whoever kills us, the file is whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def stable_share(text):
    """A number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def prepare_processes():
    """Have candidates' processes start from one that has imported Halide, and without the script: it is of no use to them, and slow."""
    Candidate.context.set_forkserver_preload(["warm_halide", "collection"])
    main = sys.modules["__main__"]
    if main.__spec__ is None:
        main.__file__ = struct.__file__  # multiprocessing has each process import what this names: something that costs nothing


def measure_programs(specs, plan):
    """One round on this machine: compile what is missing of a few programs, then measure it, until each has its schedules.

    Returns {"measured": schedules, "failed": candidates} as added now, or {"drift": share} where the machine no longer runs as it
    did when the collection began: then nothing was measured. One round at a time runs on a machine, whoever started it.
    """
    prepare_processes()
    with FileLock(Path(tempfile.gettempdir()) / f"collect_schedules.{os.getuid()}.lock"):
        drift = note_calibration(Path(plan.folder))
        if abs(drift) > MAX_DRIFT:
            return {"drift": drift}
        runs = [ProgramRun(spec, plan) for spec in specs]
        done = {run: set(run.decided) for run in runs}
        with tempfile.TemporaryDirectory() as folder:
            measured = []
            for open_keys in (ProgramRun.next_keys, ProgramRun.repeat_keys):
                while any(open_keys(run) for run in runs):
                    ready = compile_candidates({run: open_keys(run) for run in runs}, folder)
                    measured += ready
                    for run, candidate in ready:
                        measure(run, candidate)
            further_passes(measured)
        for run in runs:
            run.record["complete"] = True
            run.save()
    new = [(key, c["outcome"]) for run in runs for key, c in run.decided.items() if key not in done[run]]
    return {"measured": sum(outcome == "measured" and key.isdecimal() for key, outcome in new), "failed": sum(outcome not in ("measured", "duplicate") for _, outcome in new)}


def compile_candidates(keys, folder):
    """Start candidates, as many at a time as there are cores, and leave the compiled ones waiting.

    keys : {ProgramRun: [key]}. Returns [(ProgramRun, Candidate)], ready to be measured.
    """
    queue, active, ready = [], {}, []
    for run in keys:
        run.n_compiled, run.compiling = 0, {}
        queue += [(run, key) for key in ([] if run.reference_ready or not keys[run] else ["reference"]) + keys[run]]
    queue.reverse()
    while queue or active:
        # Those that wait for an earlier proposal or for the reference need no core.
        while queue and sum(candidate.deadline < math.inf for _, candidate in active.values()) < os.cpu_count():
            run, key = queue.pop()
            if run.failed or (key.isdecimal() and run.gives_up()):
                continue
            candidate = Candidate(key, run, folder)
            active[candidate.connection] = (run, candidate)
            if key.isdecimal():
                run.undecided.append(candidate)
        nearest = min((candidate.deadline for _, candidate in active.values()), default=0)
        heard = wait(list(active), min(max(nearest - time.monotonic(), 0), 60))
        late = [c for c, (_, candidate) in active.items() if candidate.deadline <= time.monotonic() and c not in heard]
        for connection in [*heard, *late]:
            if connection not in active:
                continue  # dropped a moment ago
            run, candidate = active[connection]
            kind, *content = candidate.receive(0)
            if kind == "proposed":
                *proposal, description = content
                candidate.keep_proposal(*proposal)
                if candidate.key == "reference":
                    run.record.update(description)
                if not candidate.key.isdecimal():
                    candidate.compile()
            elif kind == "compiled" and candidate.key != "reference":
                candidate.compile_seconds, candidate.deadline = content[0], math.inf
                run.n_compiled += 1
                run.unchecked.append(candidate)
            else:
                del active[connection]
                if kind == "failed":
                    run.fail(candidate, *content)
                elif candidate.key == "reference":
                    run.reference_ready = True
                    candidate.end()
                else:
                    ready.append((run, candidate))
            for dropped in [*run.decide_proposals(), *run.check_compiled()]:
                active.pop(dropped.connection, None)
    for run, candidate in ready:
        if run.failed:
            candidate.end()
    return sorted(((r, c) for r, c in ready if not r.failed), key=lambda rc: (rc[0].spec.name, rc[1].key.zfill(6)))


def measure(run, candidate):
    """One pass: measure a compiled candidate alone on the machine, repeated where others used it. What is measured is on disk at once."""
    tries = []
    while len(tries) < TRIES:
        if tries:
            wait_for_calm()
        candidate.send("measure")
        message = candidate.receive(RUN_SECONDS)
        if message[0] == "failed":
            if candidate.passes:
                candidate.end()
            else:
                run.fail(candidate, *message[1:])
            return
        tries.append(message[1])
        if not is_noisy(message[1]):
            break
    candidate.passes.append(min(tries, key=lambda m: m["foreign_share"]) | {"tries": len(tries)})
    fastest = candidate.fastest()
    run.write_sample(candidate, fastest["runtime_ms"])
    seconds = {"schedule_seconds": round(candidate.schedule_seconds, 2), "compile_seconds": round(candidate.compile_seconds, 2)}
    passes = [m["runtime_ms"] for m in candidate.passes]
    run.decide(candidate, "measured", hash=candidate.hash, **fastest, noisy=is_noisy(fastest), passes_ms=passes, **seconds)


def further_passes(measured):
    """The further passes through [(ProgramRun, Candidate)] that `measure` has seen once; ends the candidates."""
    while measured := [(run, candidate) for run, candidate in measured if not candidate.has_ended]:
        for run, candidate in measured:
            measure(run, candidate)
            if candidate.is_settled():
                candidate.end()


def is_noisy(measurement):
    return measurement["foreign_share"] > halide_utils.FOREIGN_SHARE_LIMIT


def wait_for_calm(seconds=3):
    """Until nobody else uses the machine, but not for ever: the measurement itself tells whether it was disturbed."""
    deadline = time.monotonic() + seconds
    while halide_utils.foreign_share() > halide_utils.FOREIGN_SHARE_LIMIT and time.monotonic() < deadline:
        pass


# What a collection says about its machine


def describe_machine():
    """What a measurement depends on: processor, cores, versions, protocol."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    u = halide_utils
    return {
        "processor": model, "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(), "python": platform.python_version(), "halide": importlib.metadata.version("halide"),
        "target": str(hl.get_host_target()),
        "protocol": {
            "threads": "all cores", "freed_memory": "kept by the process", "batch_seconds": u.BATCH_SECONDS,
            "min_seconds": u.MIN_BENCHMARK_SECONDS, "max_seconds": u.MAX_BENCHMARK_SECONDS, "agreement": u.AGREEMENT,
            "foreign_share_limit": u.FOREIGN_SHARE_LIMIT, "tries": TRIES, "passes": [MIN_PASSES, MAX_PASSES], "pass_agreement": PASS_AGREEMENT,
            "repeated_share": REPEATED_SHARE, "runtime": "fastest batch of calls of all passes, its time a call, in milliseconds",
        },
    }  # fmt: skip


@functools.cache
def calibration_programs():
    """{name: compiled program} of a few fixed ones that need the memory, the arithmetic units, or the library of mathematics."""
    programs = {}
    for name, pipeline in halide_utils.calibration_pipelines().items():
        programs[name] = halide_utils.Program(pipeline)
    return programs


def calibrate():
    """{calibration program: milliseconds}, measured now by the protocol of the schedules."""
    passes = [{name: round(halide_utils.benchmark(program, 0).runtime_ms, 6) for name, program in calibration_programs().items()} for _ in range(MIN_PASSES)]
    return {name: min(times[name] for times in passes) for name in passes[0]}


def note_calibration(folder):
    """Measure the calibration programs and add their times to the collection's note.

    Returns by how much they have drifted: the median over the programs of their time over that of the collection's first
    measurement, less 1. On a machine that looks drifted it is measured again, up to three times; the nearest counts.
    """
    path = folder / "collection.json"
    first = orjson.loads(path.read_bytes())["calibration"][:1]
    best = None
    for _ in range(TRIES):
        times = calibrate()
        drift = float(np.median([times[name] / ms for name, ms in first[0]["ms"].items()])) - 1 if first else 0.0
        if best is None or abs(drift) < abs(best[0]):
            best = (drift, times)
        if abs(drift) <= MAX_DRIFT:
            break
        wait_for_calm()
    with FileLock(str(path) + ".lock"):
        note = orjson.loads(path.read_bytes())
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        note["calibration"].append({"when": now, "ms": best[1], "drift": round(best[0], 4)})
        replace_file(path, orjson.dumps(note, option=orjson.OPT_INDENT_2))
    return best[0]
