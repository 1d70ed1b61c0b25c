"""One machine's part of a collection: schedules of a few programs proposed, compiled and measured, each in a process of its own.

`measure_programs` is what collect_schedules.py hands to a machine. A folder a program: a `.sample` (`.schedule.json` where Adams2019 did
not propose it) and a `.schedule.h` for each schedule, and `program.json`, the record of every candidate and how it ended. What is in the
record is never done again, so that a collection that was stopped at any moment goes on where it was.
"""

import dataclasses
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
from dumps import own
from dumps.companions import ADAMS2019, HASH, LOWERED_SUFFIX, SCHEDULE_SUFFIX
from dumps.parsing import hex_id
from halide_tools.lowered_identity import RENAMED
from halide_tools.mutations import Mutated
from halide_tools.programs import reference_schedules
from halide_tools.schedules import Schedule
from measuring import origins
from measuring.candidate import origin, prepare_processes
from measuring.compile_queue import CompileQueue
from measuring.machine import CAREFUL, REPEATED_SHARE, Protocol, record_calibration
from measuring.messages import Failed
from measuring.stopwatch import Stopwatch
from pipelines import random_programs

PROPOSALS_A_SCHEDULE = 3  # give up on a program after this many proposals for each schedule wanted,
MUTATIONS_A_SCHEDULE = 8  # or this many where some are mutations: those fail more often, most of them before they are compiled
FEW_TIMEOUTS, MANY_TIMEOUTS = 2, 4  # or after this many that took too long to compile: few if fewer were fast enough, or many
REFUSALS = 4  # or where Halide has refused the first so many
REFUSED = ("halide_error", "no_legal_state", "no_schedule")
MUTATED = Mutated.autoscheduler


@dataclass(frozen=True)
class PriorSchedule:
    """A schedule that was measured before.

    proposal : how it was found; hash : of what comes out; lowered : lowered_features.as_dict or None; schedule : text of
    Schedule.to_json that gives it again, "" where it has to be found again
    """

    proposal: object
    hash: str
    lowered: dict | None
    schedule: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be measured of each program, how, and where it goes.

    known : {program: {key: PriorSchedule}}, schedules to measure instead of new ones; cores : candidates compiled at a time; origins : of
    origins.ORIGINS.
    """

    folder: str
    schedules: int
    compile_seconds: float
    cores: int
    protocol: Protocol = CAREFUL
    known: dict = field(default_factory=dict)
    origins: tuple = (ADAMS2019,)


class ProgramRun:
    """One program's collection: its folder, its record (program.json), and the candidates under way."""

    forgotten = ("timeout", "deadline")  # outcomes that a run which was stopped does not keep
    keeps_schedules = False  # of Adams2019 as data, in the record; all others are kept so
    needs_dumps = True  # what can't be written as a dump is not measured
    never_duplicates = ()  # keys of candidates that are measured even where they are like an earlier one

    def __init__(self, spec, plan):
        self.spec, self.known, self.origins = spec, plan.known.get(spec.name, {}), plan.origins
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
            self.record.pop("not_featurized", None)
        self.reference_ready, self.failed = False, "failure" in self.record
        self.reference_way, *self.reference_ways_left = reference_schedules()
        self.awaiting_deduplication = []  # candidates whose proposals may be duplicates of earlier ones, in the order of their keys
        self.unchecked = []  # candidates that have compiled before the reference has run
        self.begin_round()

    def _new_record(self):
        spec = self.spec
        record = {
            "name": spec.name, "seed": spec.seed, "generator": spec.generator, "params": dict(spec.params),
            "target": str(spec.halide_target()), "threads": spec.threads,
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
        return self.known[number].proposal if self.known else origins.proposal(self.origins, self.spec, int(number))

    def stored_schedule(self, key):
        """Text of Schedule.to_json that gives the candidate of this number without a search, or ""."""
        number = key.rstrip("r")
        known = self.known[number].schedule if number in self.known else ""
        return known or (self.outcomes.get(number, {}).get("schedule", "") if key != number else "")

    def name_of(self, key):
        """A candidate's name for a person."""
        return f"{self.spec.name}/{key}"

    def lowered(self, key):
        """lowered_features.as_dict of the candidate's counts where they are known, so that it needn't be lowered once more for them."""
        return self.known[key].lowered if key in self.known else None

    def seconds_for(self, key):
        """How long a candidate may take to be scheduled; it then has `seconds` to be compiled."""
        return self.seconds

    def deadline_of(self, key):
        """When a candidate has to be through with what it is at (time.monotonic())."""
        return self.reference_deadline if key == "reference" else self.deadline

    def leaves_alone(self, candidate):
        """Whether a candidate that is at work is not waited for."""
        return False

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
        proposal = dataclasses.asdict(candidate.proposal)
        self.outcomes[candidate.key] = {**proposal, "origin": origin(candidate.proposal), "outcome": outcome, **more}
        self.save()

    def should_stop(self):
        """Whether no more candidates are worth their time: no reference, or mostly such that compile too long or are refused by Halide.

        Mutations may: it is the program's fault only where more of them take too long than are fast enough, or none can be kept.
        """
        timeouts = [c.get("origin") for c in self.outcomes.values() if c["outcome"] == "timeout"]
        n, fast_enough = len(timeouts) - timeouts.count(MUTATED), len(self.measured()) + self.n_compiled
        too_many = n >= MANY_TIMEOUTS or (n >= FEW_TIMEOUTS and n > fast_enough) or len(timeouts) > max(MANY_TIMEOUTS, fast_enough)
        keys = sorted((key for key in self.outcomes if key.isdecimal()), key=int)
        first = [self.outcomes[key]["outcome"] for key in keys if self.outcomes[key]["outcome"] != "no_schedule"][:REFUSALS]
        hopeless = ADAMS2019 in self.origins and len(first) == REFUSALS and all(outcome in REFUSED for outcome in first)
        hopeless |= self.origins != (ADAMS2019,) and "not_featurized" in self.record
        return self.failed or ((too_many or hopeless) and not self.known)

    def next_keys(self):
        """Keys of the candidates to start now: as many as schedules are missing, in order, never the same again.

        The set of schedules that a program ends with depends on nothing but the program, however often it was stopped.
        """
        if self.should_stop():
            return []
        missing = self.wanted - len(self.measured())
        each = MUTATIONS_A_SCHEDULE if MUTATED in self.origins else PROPOSALS_A_SCHEDULE
        keys = self.known or (str(k) for k in range(self.wanted * each) if origins.proposal(self.origins, self.spec, k))
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
            earlier = {c.get(name): k for k, c in self.outcomes.items() for name in ("hash", "lowered_hash")} | self.compiling
            known = self.known.get(candidate.key)
            same = next((h for h in (candidate.hash, hash_text(candidate.lowered_hash)) if h and h in earlier), None)
            if known and not known.schedule and known.hash != candidate.hash:
                self.end_as(candidate, "changed", detail="another schedule comes out today")
                dropped.append(candidate)
            elif same and not self.known and candidate.key not in self.never_duplicates:
                self.end_as(candidate, "duplicate", of=earlier[same])
                dropped.append(candidate)
            else:
                self.compiling |= {h: candidate.key for h in (candidate.hash, hash_text(candidate.lowered_hash)) if h}
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

    def has_features(self):
        """Whether Adams2019's features of the program are known, which dumps of other schedules need, or known not to be had."""
        return "features" in self.record or "not_featurized" in self.record

    def keep_features(self, featurization):
        found = own.Program.of_featurization(featurization).to_json()
        self.record["features"] = {name: found[name] for name in ("sizes", "algorithm")}
        self.save()

    def can_keep(self, candidate):
        """Whether there can be a dump of a candidate; one that can't be kept ends here."""
        if candidate.featurization or not self.needs_dumps or "features" in self.record:
            return True
        self.fail(candidate, Failed("not_featurized", self.record.get("not_featurized", "Adams2019 has not featurized the program")))
        return False

    def fail(self, candidate, failed):
        """Note why a candidate gave no measurement. Returns whether its program's reference is to be tried otherwise.

        Without its reference a program has nothing to be compared with. One that only lacked time is tried again next time.
        """
        if candidate.key != "reference":
            self.end_as(candidate, failed.reason, detail=failed.detail)
            return False
        candidate.end()
        if self.reference_ready:
            self.record["not_featurized"] = f"{failed.reason}: {failed.detail}"
            self.save()
            return False
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
        self.record_outcome(candidate, outcome, **hashes(candidate), **more)
        candidate.end()

    def keep_measurement(self, candidate, found):
        """Write what has been measured of a candidate so far, as of machine.summary."""
        self.write_dump(candidate, found)
        seconds = {"schedule_seconds": round(candidate.schedule_seconds, 2), "compile_seconds": round(candidate.compile_seconds, 2)}
        data = {"schedule": candidate.schedule} if self.keeps_schedules or not candidate.featurization else {}
        self.record_outcome(candidate, "measured", **hashes(candidate), **found, **seconds, **data)

    def write_dump(self, candidate, found):
        """A `.sample` and what lies beside it, or a dump of our own where Adams2019 has not featurized the schedule."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / candidate.key.zfill(3)
        if len(candidate.passes) <= 1:
            replace_file(stem.with_suffix(".schedule.h"), self.header(candidate).encode())
        if candidate.featurization:
            footer = struct.pack("<fii", found["runtime_ms"], self.spec.seed % 2**31, int(candidate.key.rstrip("r")))
            if candidate.key.isdecimal():  # what is repeated is read with what lies beside the first
                lowered = (candidate.lowered or {}) | {HASH: hash_text(candidate.lowered_hash)}
                replace_file(stem.with_suffix(LOWERED_SUFFIX), orjson.dumps(lowered))
            replace_file(stem.with_suffix(".sample"), candidate.featurization + footer)
        elif "features" in self.record:
            program = own.Program.from_json(self.record["features"] | {name: self.record[name] for name in ("stages", "calls")})
            is_whole = candidate.lowered and all(len(counts) == len(program.sizes) for counts in candidate.lowered.values())
            dump = own.OwnDump(
                program, candidate.lowered_hash, RENAMED, candidate.lowered if is_whole else None, candidate.schedule,
                origin(candidate.proposal), found["runtime_ms"], found["passes_ms"],
            )  # fmt: skip
            replace_file(stem.with_suffix(SCHEDULE_SUFFIX), own.write(dump))

    def header(self, candidate):
        """The C++ of a candidate: the directives as an autoscheduler has printed them, or a function that applies the schedule."""
        if candidate.source or not candidate.schedule:
            return candidate.source
        return Schedule.from_json(candidate.schedule).to_cpp_header(self.spec.c_name)


def hash_text(number):
    return None if number is None else hex_id(number)


def hashes(candidate):
    """What program.json notes of a candidate to know it again: by its proposal's features, text or data, and by what it lowers to."""
    return {"hash": candidate.hash, "lowered_hash": hash_text(candidate.lowered_hash)}


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
