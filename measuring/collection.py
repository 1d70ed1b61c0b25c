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
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from filelock import FileLock
from tqdm import tqdm

from config import replace_file
from dumps.companions import LOWERED_SUFFIX
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import reference_schedules
from measuring.candidate import origin, prepare_processes
from measuring.compile_queue import CompileQueue
from measuring.machine import CAREFUL, REPEATED_SHARE, Protocol, record_calibration
from measuring.stopwatch import Stopwatch
from pipelines import random_programs

PROPOSALS_A_SCHEDULE = 3  # give up on a program after this many proposals for each schedule wanted
FEW_TIMEOUTS, MANY_TIMEOUTS = 2, 4  # or after this many that took too long to compile: few if fewer were fast enough, or many
REFUSALS = 4  # or where Halide has refused the first so many
REFUSED = ("halide_error", "no_legal_state")


@dataclass(frozen=True)
class PriorSchedule:
    """A schedule that was measured before: how to propose it, the hash of what comes out, and lowered_features.as_dict or None."""

    proposal: Proposal
    hash: str
    lowered: dict | None


@dataclass(frozen=True)
class Plan:
    """What is to be measured of each program, how, and where it goes.

    known : {program: {key: PriorSchedule}}, schedules to measure instead of new ones; cores : candidates compiled at a time.
    """

    folder: str
    schedules: int
    compile_seconds: float
    cores: int
    protocol: Protocol = CAREFUL
    known: dict = field(default_factory=dict)


class ProgramRun:
    """One program's collection: its folder, its record (program.json), and the candidates under way."""

    forgotten = ("timeout", "deadline")  # outcomes that a run which was stopped does not keep
    keeps_schedules = False  # as data, in the record

    def __init__(self, spec, plan):
        self.spec, self.known = spec, plan.known.get(spec.name, {})
        self.wanted = len(self.known) or plan.schedules
        self.seconds, self.deadline, self.reference_deadline = plan.compile_seconds, math.inf, math.inf
        self.folder = Path(plan.folder) / spec.name
        self.path = self.folder / "program.json"
        self.record = orjson.loads(self.path.read_bytes()) if self.path.exists() else self._new_record()
        self.outcomes = self.record["candidates"]
        if not self.record["complete"]:
            # A timeout counts against the candidates that compiled beside it, and those are gone with the process that was killed.
            for key in [key for key, c in self.outcomes.items() if c["outcome"] in self.forgotten]:
                del self.outcomes[key]
        self.reference_ready, self.failed = False, "failure" in self.record
        self.reference_way, *self.reference_ways_left = reference_schedules()
        self.awaiting_deduplication = []  # candidates whose proposals may be duplicates of earlier ones, in the order of their keys
        self.unchecked = []  # candidates that have compiled before the reference has run
        self.begin_round()

    def _new_record(self):
        spec = self.spec
        record = {
            "name": spec.name, "seed": spec.seed, "params": dict(spec.params), "target": str(spec.halide_target()), "threads": spec.threads,
            "stages": [], "edges": [], "calls": {}, "candidates": {}, "complete": False,
        }  # fmt: skip
        return record if spec.path else record | {"stage_kinds": random_programs.build(spec.seed, spec.max_stages)[1]}

    def begin_round(self):
        self.compiling, self.n_compiled = {}, 0  # {hash: key} of those that are no duplicates

    def save(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, orjson.dumps(self.record, option=orjson.OPT_INDENT_2))

    def proposal(self, key):
        """What the candidate of this number is."""
        number = key.rstrip("r")
        return self.known[number].proposal if self.known else Proposal.draw(self.spec.seed, int(number))

    def name_of(self, key):
        """A candidate's name for a person."""
        return f"{self.spec.name}/{key}"

    def lowered(self, key):
        """lowered_features.as_dict of the candidate's counts where they are known, so that it needn't be lowered once more for them."""
        return self.known[key].lowered if key in self.known else None

    def seconds_for(self, key):
        """How long a candidate may take to be scheduled; it then has `seconds` to be compiled."""
        return self.seconds

    def is_late(self):
        return time.monotonic() > self.deadline

    def measured(self):
        """Keys of the schedules with a runtime, repetitions left out."""
        return [k for k, c in self.outcomes.items() if c["outcome"] == "measured" and not k.endswith("r")]

    def failures(self):
        """{reason: how many candidates failed so}, the most frequent first; repetitions left out."""
        outcomes = [c["outcome"] for key, c in self.outcomes.items() if key.isdecimal() and c["outcome"] not in ("measured", "duplicate")]
        return {reason: outcomes.count(reason) for reason in sorted(set(outcomes), key=lambda o: (-outcomes.count(o), o))}

    def record_outcome(self, candidate, outcome, **more):
        """Note for good how a candidate ended."""
        self.outcomes[candidate.key] = {**vars(candidate.proposal), "origin": origin(candidate.proposal), "outcome": outcome, **more}
        self.save()

    def should_stop(self):
        """Whether no more candidates are worth their time: no reference, or mostly such that compile too long or are refused by Halide."""
        timeouts = sum(c["outcome"] == "timeout" for c in self.outcomes.values())
        fast_enough = len(self.measured()) + self.n_compiled
        too_many = timeouts >= MANY_TIMEOUTS or (timeouts >= FEW_TIMEOUTS and timeouts > fast_enough)
        hopeless = all(self.outcomes.get(str(k), {}).get("outcome") in REFUSED for k in range(REFUSALS))
        return self.failed or ((too_many or hopeless) and not self.known)

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
                self.end_as(candidate, "changed", detail="another schedule comes out today")
                dropped.append(candidate)
            elif candidate.hash in earlier:
                self.end_as(candidate, "duplicate", of=earlier[candidate.hash])
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

    def keep_reference(self, message):
        """The reference has run: the others can be checked."""
        self.reference_ready = True
        self.record["reference"], self.record["inputs"] = self.reference_way, message.inputs
        self.save()

    def fail(self, candidate, failed):
        """Note why a candidate gave no measurement. Returns whether its program's reference is to be tried otherwise.

        Without its reference a program has nothing to be compared with. One that only lacked time is tried again next time.
        """
        if candidate.key != "reference":
            self.end_as(candidate, failed.reason, detail=failed.detail)
            return False
        candidate.end()
        tried = self.record.setdefault("reference_failures", {})
        tried[self.reference_way] = f"{failed.reason}: {failed.detail}"
        if failed.reason != "deadline" and self.reference_ways_left:
            self.reference_way = self.reference_ways_left.pop(0)
            return True
        self.failed = True
        told = [f"{way}: {why}" for way, why in tried.items()] if len(set(tried.values())) > 1 else [f"{failed.reason}: {failed.detail}"]
        told += [self.record["index_hint"]] if self.record.get("index_hint") else []
        self.record["failure"] = f"reference: {'; '.join(told)}"
        return False

    def end_as(self, candidate, outcome, **more):
        self.record_outcome(candidate, outcome, hash=candidate.hash, **more)
        candidate.end()

    def keep_measurement(self, candidate, found):
        """Write what has been measured of a candidate so far, as of machine.summary."""
        self.write_sample(candidate, found["runtime_ms"])
        seconds = {"schedule_seconds": round(candidate.schedule_seconds, 2), "compile_seconds": round(candidate.compile_seconds, 2)}
        data = {"schedule": candidate.schedule} if self.keeps_schedules else {}
        self.record_outcome(candidate, "measured", hash=candidate.hash, **found, **seconds, **data)

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

    Returns {"measured": schedules, "failed": candidates, "background": share of the machine that others used} as added now, or
    {"drift": share} where the machine no longer runs as it did when the collection began: then nothing was measured. One round at a time
    runs on a machine, whoever started it.
    """
    prepare_processes()
    with FileLock(Path(tempfile.gettempdir()) / f"collect_schedules.{os.getuid()}.lock"):
        drift = record_calibration(Path(plan.folder), plan.protocol)
        if abs(drift) > plan.protocol.max_drift:
            return {"drift": drift}
        runs = [ProgramRun(spec, plan) for spec in specs]
        done, stopwatch = {run: set(run.outcomes) for run in runs}, Stopwatch(plan.protocol)
        report = tqdm.write if sys.stderr.isatty() else None
        with tempfile.TemporaryDirectory() as folder:
            measured = []
            for open_keys in (ProgramRun.next_keys, ProgramRun.repeat_keys):
                while any(open_keys(run) for run in runs):
                    ready = CompileQueue({run: open_keys(run) for run in runs}, folder, plan.cores, report).run()
                    measured += ready
                    for run, candidate in ready:
                        stopwatch.one_pass(run, candidate)
            stopwatch.further_passes(measured)
            for _, candidate in measured:
                if not candidate.has_ended:
                    candidate.end()
        for run in runs:
            run.record["complete"] = True
            run.save()
    new = [(key, c["outcome"]) for run in runs for key, c in run.outcomes.items() if key not in done[run]]
    return {
        "measured": sum(outcome == "measured" and key.isdecimal() for key, outcome in new),
        "failed": sum(outcome not in ("measured", "duplicate") for _, outcome in new),
        "background": stopwatch.background.share(),
    }
