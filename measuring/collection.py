"""One machine's part of a collection: schedules of a few programs proposed, compiled and measured, each in a process of its own.

`measure_programs` is what collect_schedules.py hands to a machine. A folder a program: a `.sample` and a `.schedule.h` for each
schedule, and `program.json`, the record of every candidate and how it ended. What is in the record is never done again, so that a
collection that was stopped at any moment goes on where it was.
"""

import hashlib
import itertools
import math
import os
import struct
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import orjson
from filelock import FileLock
from tqdm import tqdm

from config import replace_file
from dumps.files import LOWERED_SUFFIX
from halide_tools.autoschedulers import Proposal
from measuring.candidate import RUN_SECONDS, Candidate, prepare_processes
from measuring.machine import MAX_DRIFT, REPEATED_SHARE, TRIES, has_converged, is_noisy, record_calibration, summary, wait_for_calm
from pipelines import random_programs

PROPOSALS_A_SCHEDULE = 3  # give up on a program after this many proposals for each schedule wanted
FEW_TIMEOUTS, MANY_TIMEOUTS = 2, 4  # or after this many that took too long to compile: few if fewer were fast enough, or many


@dataclass(frozen=True)
class PriorSchedule:
    """A schedule that was measured before: how to propose it, the hash of what comes out, and lowering.as_dict of its counts, if there are any."""

    proposal: Proposal
    hash: str
    lowered: dict | None


@dataclass(frozen=True)
class Plan:
    """What is to be measured of each program, and where it goes: new schedules, or those of a program in `known`, {program: {key: PriorSchedule}}."""

    folder: str
    schedules: int
    compile_seconds: float
    known: dict = field(default_factory=dict)


class ProgramRun:
    """One program's collection: its folder, its record (program.json), and the candidates under way."""

    def __init__(self, spec, plan):
        self.spec, self.known = spec, plan.known.get(spec.name, {})
        self.wanted = len(self.known) or plan.schedules
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
            self.record = {
                "name": spec.name,
                "seed": spec.seed,
                "stages": [],
                "edges": [],
                "calls": {},
                "candidates": {},
                "complete": False,
            }
            if not spec.path:
                self.record["stage_kinds"] = random_programs.build(spec.seed, spec.max_stages)[1]
        self.outcomes = self.record["candidates"]
        self.reference_ready, self.failed = False, "failure" in self.record
        self.awaiting_deduplication = []  # candidates whose proposals may be duplicates of earlier ones, in the order of their keys
        self.compiling = {}  # {hash: key} of those that were not
        self.unchecked = []  # candidates that have compiled before the reference has run
        self.n_compiled = 0

    def save(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, orjson.dumps(self.record, option=orjson.OPT_INDENT_2))

    def proposal(self, key):
        """What the candidate of this number is."""
        return self.known[key].proposal if self.known else Proposal.draw(self.spec.seed, int(key))

    def lowered(self, key):
        """lowering.as_dict of the candidate's counts where they are known, so that it needn't be lowered once more for them."""
        return self.known[key].lowered if key in self.known else None

    def seconds_for(self, key):
        """How long a candidate may take to be scheduled and compiled."""
        return self.seconds

    def measured(self):
        """Keys of the schedules with a runtime, repetitions left out."""
        return [k for k, c in self.outcomes.items() if c["outcome"] == "measured" and not k.endswith("r")]

    def record_outcome(self, candidate, outcome, **more):
        """Note for good how a candidate ended."""
        self.outcomes[candidate.key] = {**vars(candidate.proposal), "outcome": outcome, **more}
        self.save()

    def should_stop(self):
        """Whether no more candidates are worth their time: no reference, or mostly such that compile for too long."""
        timeouts = sum(c["outcome"] == "timeout" for c in self.outcomes.values())
        fast_enough = len(self.measured()) + self.n_compiled
        too_many = timeouts >= MANY_TIMEOUTS or (timeouts >= FEW_TIMEOUTS and timeouts > fast_enough)
        return self.failed or (too_many and not self.known)

    def next_keys(self):
        """Keys of the candidates to start now: as many as schedules are missing, in order, never the same again.

        The set of schedules that a program ends with depends on nothing but the program, however often it was stopped.
        """
        if self.should_stop():
            return []
        missing = self.wanted - len(self.measured())
        keys = self.known or map(str, range(self.wanted * PROPOSALS_A_SCHEDULE))
        open_keys = (key for key in keys if key not in self.outcomes)
        return list(itertools.islice(open_keys, missing))

    def repeat_keys(self):
        """Keys of the schedules to be measured once more, drawn by a hash."""
        if self.failed:
            return []
        chosen = (k for k in self.measured() if stable_share(f"{self.spec.name}/{k}") < REPEATED_SHARE)
        return [f"{k}r" for k in chosen if f"{k}r" not in self.outcomes]

    def deduplicate_proposals(self):
        """Compile or drop the proposals whose turn it is.

        In the order of the keys, so that which of two equal schedules counts as the duplicate does not depend on which process
        was faster. Returns the candidates dropped.
        """
        dropped = []
        while self.awaiting_deduplication and (self.awaiting_deduplication[0].has_proposed or self.awaiting_deduplication[0].has_ended):
            candidate = self.awaiting_deduplication.pop(0)
            if candidate.has_ended:
                continue
            earlier = {c.get("hash"): k for k, c in self.outcomes.items()} | self.compiling
            known = self.known.get(candidate.key)
            if known and known.hash != candidate.hash:
                self.fail(candidate, "changed", "another schedule comes out today")
                dropped.append(candidate)
            elif candidate.hash in earlier:
                self.record_outcome(candidate, "duplicate", of=earlier[candidate.hash], hash=candidate.hash)
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
            self.record_outcome(candidate, reason, detail=detail, hash=candidate.hash)
        candidate.end()

    def write_sample(self, candidate, runtime_ms):
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / candidate.key.zfill(3)
        footer = struct.pack("<fii", runtime_ms, self.spec.seed % 2**31, int(candidate.key.rstrip("r")))
        replace_file(stem.with_suffix(".schedule.h"), candidate.source.encode())
        if candidate.featurization:  # autoschedulers other than Adams2019 give none
            if candidate.lowered is not None:
                replace_file(stem.with_suffix(LOWERED_SUFFIX), orjson.dumps(candidate.lowered))
            replace_file(stem.with_suffix(".sample"), candidate.featurization + footer)


def stable_share(text):
    """A number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def measure_programs(specs, plan):
    """One round on this machine: compile what is missing of a few programs, then measure it, until each has its schedules.

    Returns {"measured": schedules, "failed": candidates} as added now, or {"drift": share} where the machine no longer runs as it
    did when the collection began: then nothing was measured. One round at a time runs on a machine, whoever started it.
    """
    prepare_processes()
    with FileLock(Path(tempfile.gettempdir()) / f"collect_schedules.{os.getuid()}.lock"):
        drift = record_calibration(Path(plan.folder))
        if abs(drift) > MAX_DRIFT:
            return {"drift": drift}
        runs = [ProgramRun(spec, plan) for spec in specs]
        done = {run: set(run.outcomes) for run in runs}
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
    new = [(key, c["outcome"]) for run in runs for key, c in run.outcomes.items() if key not in done[run]]
    return {
        "measured": sum(outcome == "measured" and key.isdecimal() for key, outcome in new),
        "failed": sum(outcome not in ("measured", "duplicate") for _, outcome in new),
    }


def compile_candidates(keys, folder):
    """Start candidates, as many at a time as there are cores, and leave the compiled ones waiting.

    keys : {ProgramRun: [key]}. Returns [(ProgramRun, Candidate)], ready to be measured.
    """
    queue, active, ready = [], {}, []
    for run in keys:
        run.n_compiled, run.compiling = 0, {}
        queue += [(run, key) for key in ([] if run.reference_ready or not keys[run] else ["reference"]) + keys[run]]
    queue.reverse()
    progress = tqdm(total=len(queue), desc="compiled", unit="schedule", position=1, leave=False, disable=None)
    while queue or active:
        # Those that wait for an earlier proposal or for the reference need no core.
        while queue and sum(candidate.deadline < math.inf for _, candidate in active.values()) < os.cpu_count():
            run, key = queue.pop()
            if run.failed or (key.isdecimal() and run.should_stop()):
                continue
            candidate = Candidate(key, run, folder)
            active[candidate.connection] = (run, candidate)
            if key.isdecimal():
                run.awaiting_deduplication.append(candidate)
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
                    candidate.lowered = candidate.lowered or content[0]
                    ready.append((run, candidate))
            for dropped in [*run.deduplicate_proposals(), *run.check_compiled()]:
                active.pop(dropped.connection, None)
        progress.update(progress.total - len(queue) - len(active) - progress.n)
    progress.close()
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
    candidate.passes.append(min(tries, key=lambda p: p.background_cpu_share))
    found = summary(candidate.passes)
    run.write_sample(candidate, found["runtime_ms"])
    seconds = {"schedule_seconds": round(candidate.schedule_seconds, 2), "compile_seconds": round(candidate.compile_seconds, 2)}
    run.record_outcome(candidate, "measured", hash=candidate.hash, **found, **seconds)


def further_passes(measured):
    """The further passes through [(ProgramRun, Candidate)] that `measure` has seen once; ends the candidates."""
    progress = tqdm(total=len(measured), desc="measured", unit="schedule", position=1, leave=False, disable=None)
    while measured := [(run, candidate) for run, candidate in measured if not candidate.has_ended]:
        progress.update(progress.total - len(measured) - progress.n)
        for run, candidate in measured:
            if has_converged(candidate.passes):
                candidate.end()
            else:
                measure(run, candidate)
    progress.close()
