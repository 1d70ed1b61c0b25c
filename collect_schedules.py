"""Measure schedules on this machine: random programs, or the user's own Halide pipelines.

    python collect_schedules.py --programs 200 --schedules 8 --output data/raw/mine
    python collect_schedules.py --pipeline pipelines/ --schedules 16 --output data/raw/applications
    python collect_schedules.py --output data/raw/mine --programs 200 --schedules 8 --pack true

Writes a folder a program: a `.sample` and a `.schedule.h` for each schedule (what generate_dataset.py reads and C++ users
include), and `program.json` with stage names, edges, and how every schedule was proposed and measured. `collection.json` notes
machine, versions and protocol. Stopped at any moment and started again it goes on where it was.

Schedules of a few programs are compiled at a time on all cores, each in a process of its own that then waits; after that each is
measured alone on the idle machine. A process that crashes, hangs or eats memory costs its one schedule.
"""

import contextlib
import ctypes
import datetime
import hashlib
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import halide as hl
import numpy as np
import orjson
import psutil
from pydantic import Field
from tqdm import tqdm

import halide_utils
from config import Config, UserError, load_config, make_folder, run_script
from halide_utils import ProgramSpec, Proposal

PROGRAMS_A_ROUND = 8
PROPOSALS_A_SCHEDULE = 3  # give up on a program after this many proposals for each schedule wanted
FEW_TIMEOUTS, MANY_TIMEOUTS = 2, 4  # or after this many that took too long to compile: few if fewer were fast enough, or many
MEASURE_SECONDS = 60
TRIES = 3  # measurements of one schedule on a busy machine before it is kept and flagged noisy
REPEATED_SHARE = 0.05  # of the schedules are measured again in a fresh process, which tells the noise
MEMORY_LIMIT = 12 * 2**30


class CollectConfig(Config):
    programs: int = Field(100, ge=1, description="random programs to measure (ignored with --pipeline)")
    schedules: int = Field(8, ge=1, description="distinct schedules of each program")
    output: str = Field("./data/raw/collected", min_length=1, description="the collection's folder; started again, it goes on")
    pipeline: str = Field("", description="a file, or a folder of files, of Halide Python Generators or build() to measure instead")
    first_program: int = Field(0, ge=0, description="number of the first random program")
    max_stages: int = Field(25, ge=3, description="most stages that a random program is drawn with")
    compile_seconds: float = Field(5, gt=0, description="longest time to schedule and compile one candidate")
    pack: bool = Field(False, description="when complete, pack the folder into OUTPUT.tar.xz and delete it")


# In the candidate's process


def run_candidate(connection, spec, proposal, reference_path, log_path):
    """Schedule, compile and (when told to) measure one candidate; `proposal` None makes the program's reference.

    Sends ("proposed", featurization, source, seconds, stages, edges), then, each after a word from the parent, ("compiled", seconds)
    and ("measured", dict) or ("failed", reason, detail).
    """
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        start = time.monotonic()
        pipeline = spec.build()
        if proposal is None:
            halide_utils.schedule_everything_at_root(pipeline)
            connection.send(("proposed", b"", "", 0.0, *halide_utils.stages_and_edges(pipeline)))
        else:
            featurization, source = proposal.apply(pipeline)
            connection.send(("proposed", featurization, source, time.monotonic() - start, [], []))
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
        while True:
            connection.send(("measured", halide_utils.benchmark(program).as_dict()))
            connection.recv()
    except EOFError:
        pass
    except (hl.HalideError, ValueError, RuntimeError, MemoryError) as error:
        connection.send(("failed", "halide_error", " ".join(str(error).split())[:300]))


def _die_with_parent():
    """So that no compiler goes on when the collection is killed (Linux; elsewhere the process ends at its next message)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# In the collecting process


class Candidate:
    """A candidate's process seen from outside, and how far it has come.

    key: "reference", the number of a proposal, or that with an "r" behind it for a repeated measurement.
    """

    context = multiprocessing.get_context("forkserver")

    def __init__(self, key, run, folder):
        self.key, self.seconds = key, run.seconds
        self.proposal = None if key == "reference" else Proposal.draw(run.spec.seed, int(key.rstrip("r")))
        self.log = Path(folder, f"{run.spec.name}.{key}.log")
        self.connection, theirs = self.context.Pipe()
        arguments = (theirs, run.spec, self.proposal, str(Path(folder, f"{run.spec.name}.npz")), str(self.log))
        self.process = self.context.Process(target=run_candidate, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.deadline = time.monotonic() + self.seconds
        self.featurization, self.source, self.hash = b"", "", ""
        self.schedule_seconds = self.compile_seconds = 0.0
        self.has_proposed = self.has_ended = False

    def receive(self, seconds, late):
        """The next message, or a failure in its place: `late` (reason, detail) where none comes in time, or that the process has died."""
        try:
            if self.connection.poll(max(seconds, 0)):
                return self.connection.recv()
            return ("failed", *late)
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
        self.hash = hashlib.sha256(featurization).hexdigest()[:16]
        self.deadline = math.inf
        self.has_proposed = True

    def compile(self):
        self.deadline = time.monotonic() + self.seconds
        self.send("compile")

    def end(self):
        self.has_ended = True
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.unlink(missing_ok=True)


class ProgramRun:
    """One program's collection: its folder, its record (program.json), and the candidates under way."""

    def __init__(self, spec, config):
        self.spec, self.wanted = spec, config.schedules
        self.seconds = config.compile_seconds
        self.folder = Path(config.output) / spec.name
        self.path = self.folder / "program.json"
        if self.path.exists():
            self.record = orjson.loads(self.path.read_bytes())
            if not self.record["complete"]:
                # A timeout counts against the candidates that compiled beside it, and those are gone with the process that was killed.
                candidates = self.record["candidates"]
                self.record["candidates"] = {k: c for k, c in candidates.items() if c["outcome"] != "timeout"}
        else:
            self.record = {"name": spec.name, "seed": spec.seed, "stages": [], "edges": [], "candidates": {}, "complete": False}
            if not spec.path:
                self.record["stage_kinds"] = halide_utils.random_programs.build(spec.seed, spec.max_stages)[1]
        self.decided = self.record["candidates"]
        self.reference_ready, self.failed = False, "failure" in self.record
        self.undecided = []  # candidates whose proposals may be duplicates of earlier ones, in the order of their keys
        self.compiling = {}  # {hash: key} of those that were not
        self.n_ready = 0

    def save(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, orjson.dumps(self.record, option=orjson.OPT_INDENT_2))

    def measured(self):
        return [k for k, c in self.decided.items() if c["outcome"] == "measured" and not k.endswith("r")]

    def decide(self, candidate, outcome, **more):
        """Note for good how a candidate ended."""
        self.decided[candidate.key] = {**vars(candidate.proposal), "outcome": outcome, **more}
        self.save()

    def gives_up(self):
        """Whether no more candidates are worth their time: no reference, or mostly such that compile for too long."""
        timeouts = sum(c["outcome"] == "timeout" for c in self.decided.values())
        fast_enough = len(self.measured()) + self.n_ready
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
        replace_file(stem.with_suffix(".sample"), candidate.featurization + footer)


def replace_file(path, data):
    """Write to another name and move into place: whoever kills us, the file is whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def stable_share(text):
    """A number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def collect(programs, folder, progress):
    """One round: compile what is missing of `programs` (ProgramRuns), then measure it, until each has its schedules."""
    for open_keys in (ProgramRun.next_keys, ProgramRun.repeat_keys):
        while any(open_keys(run) for run in programs):
            for run, candidate in compile_candidates({run: open_keys(run) for run in programs}, folder):
                measure(run, candidate, progress)
    for run in programs:
        run.record["complete"] = True
        run.save()


def compile_candidates(keys, folder):
    """Start candidates, as many at a time as there are cores, and leave the compiled ones waiting.

    keys : {ProgramRun: [key]}. Returns [(ProgramRun, Candidate)], ready to be measured.
    """
    queue, active, ready = [], {}, []
    for run in keys:
        run.n_ready, run.compiling = 0, {}
        queue += [(run, key) for key in ([] if run.reference_ready or not keys[run] else ["reference"]) + keys[run]]
    queue.reverse()
    while queue or active:
        while queue and len(active) < os.cpu_count():
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
            kind, *content = candidate.receive(0, ("timeout", f"not compiled within {run.seconds:g} s"))
            if kind == "proposed":
                *proposal, stages, edges = content
                candidate.keep_proposal(*proposal)
                if candidate.key == "reference":
                    run.record.update(stages=stages, edges=edges)
                if not candidate.key.isdecimal():
                    candidate.compile()
            else:
                del active[connection]
                if kind == "failed":
                    run.fail(candidate, *content)
                elif candidate.key == "reference":
                    run.reference_ready = True
                    candidate.end()
                else:
                    candidate.compile_seconds = content[0]
                    run.n_ready += 1
                    ready.append((run, candidate))
            for dropped in run.decide_proposals():
                active.pop(dropped.connection, None)
    for run, candidate in ready:
        if run.failed:
            candidate.end()
    return sorted(((r, c) for r, c in ready if not r.failed), key=lambda rc: (rc[0].spec.name, rc[1].key.zfill(6)))


def measure(run, candidate, progress):
    """Measure one compiled candidate alone on the machine; a measurement on a busy machine is repeated."""
    tries = []
    while len(tries) < TRIES:
        if tries:
            wait_for_calm()
        candidate.send("measure")
        message = candidate.receive(MEASURE_SECONDS, ("too_slow", f"not measured within {MEASURE_SECONDS} s"))
        if message[0] == "failed":
            run.fail(candidate, *message[1:])
            return
        tries.append(message[1])
        if message[1]["foreign_share"] <= halide_utils.FOREIGN_SHARE_LIMIT:
            break
    best = min(tries, key=lambda m: m["foreign_share"])
    run.write_sample(candidate, best["runtime_ms"])
    noisy = best["foreign_share"] > halide_utils.FOREIGN_SHARE_LIMIT
    seconds = {"schedule_seconds": round(candidate.schedule_seconds, 2), "compile_seconds": round(candidate.compile_seconds, 2)}
    run.decide(candidate, "measured", hash=candidate.hash, **best, tries=len(tries), noisy=noisy, **seconds)
    candidate.end()
    progress.update(candidate.key.isdecimal())


def wait_for_calm(seconds=3):
    """Until nobody else uses the machine, but not for ever: the measurement itself tells whether it was disturbed."""
    deadline = time.monotonic() + seconds
    while halide_utils.foreign_share() > halide_utils.FOREIGN_SHARE_LIMIT and time.monotonic() < deadline:
        pass


# The collection


def program_specs(config):
    if not config.pipeline:
        numbers = range(config.first_program, config.first_program + config.programs)
        return [ProgramSpec(f"random_{n:06d}", n, max_stages=config.max_stages) for n in numbers]
    path = Path(config.pipeline)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{path}: no Python file there; give --pipeline a file with Generators, or a folder of them")
    own = Path(halide_utils.random_programs.__file__)
    try:
        return [spec for f in files if f.name != "__init__.py" and f.resolve() != own for spec in halide_utils.programs_in(f)]
    except ValueError as error:
        raise UserError(str(error)) from None


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
            "threads": "all cores", "warm_up_calls": u.WARM_UP_CALLS + 2, "batch_seconds": u.BATCH_SECONDS,
            "min_seconds": u.MIN_BENCHMARK_SECONDS, "max_seconds": u.MAX_BENCHMARK_SECONDS, "agreement": u.AGREEMENT,
            "foreign_share_limit": u.FOREIGN_SHARE_LIMIT, "tries": TRIES, "repeated_share": REPEATED_SHARE,
            "runtime": "fastest batch of calls, its time a call, in milliseconds",
        },
    }  # fmt: skip


def pack(folder):
    """`folder` as FOLDER.tar.xz, always the same bytes for the same files; the folder is deleted."""
    archive = folder.with_name(folder.name + ".tar.xz")
    temporary = archive.with_name(archive.name + ".tmp")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".tmp")

    def anonymous(info):
        info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
        return info

    with tarfile.open(temporary, "w:xz", preset=9) as tar:
        for f in files:
            tar.add(f, f.relative_to(folder.parent), filter=anonymous)
    temporary.replace(archive)
    shutil.rmtree(folder)
    return archive


def main():
    config = load_config(CollectConfig)
    output = Path(config.output).resolve()
    specs = program_specs(config)
    if output.with_name(output.name + ".tar.xz").exists():
        if config.pack and output.exists():  # killed after packing, before the folder was gone
            shutil.rmtree(output)
            return
        raise UserError(f"{output}.tar.xz is there already and packed collections are never rewritten; give another --output")
    Candidate.context.set_forkserver_preload(["warm_halide", "collect_schedules"])
    make_folder(output, "output")
    note = output / "collection.json"
    machine = describe_machine()
    source = {"pipeline": Path(config.pipeline).name} if config.pipeline else {"random_programs": {"max_stages": config.max_stages}}
    if note.exists():
        before = orjson.loads(note.read_bytes())
        if (before["machine"], before["source"]) != (machine, source):
            raise UserError(f"{note}: measured on another machine, with other versions or from other programs; give another --output")
    else:
        started = datetime.datetime.now(datetime.UTC).date().isoformat()
        content = {"name": output.name, "started": started, "source": source, "machine": machine}
        replace_file(note, orjson.dumps(content, option=orjson.OPT_INDENT_2))

    runs = [ProgramRun(spec, config) for spec in specs]
    progress = tqdm(total=len(runs) * config.schedules, unit="schedule", initial=sum(len(r.measured()) for r in runs))
    open_runs = [run for run in runs if not run.record["complete"] or run.next_keys()]
    for i in range(0, len(open_runs), PROGRAMS_A_ROUND):
        with tempfile.TemporaryDirectory() as folder:
            collect(open_runs[i : i + PROGRAMS_A_ROUND], folder, progress)
        failures = sum(c["outcome"] not in ("measured", "duplicate") for r in runs for c in r.decided.values())
        progress.set_postfix(programs=f"{sum(r.record['complete'] for r in runs)}/{len(runs)}", failures=failures)
    progress.close()
    for run in runs:
        if run.failed:
            print(f"{run.spec.name}: {len(run.measured())} measured: {run.record['failure']}")
    print(f"{sum(len(r.measured()) for r in runs)} schedules of {sum(bool(r.measured()) for r in runs)} programs in {output}")
    if config.pack:
        print(f"packed into {pack(output)}")


if __name__ == "__main__":
    run_script(main)
