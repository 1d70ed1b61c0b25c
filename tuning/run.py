"""One program's tuning: its proposals by number, its record, and measurements of those that are asked for."""

import math
import tempfile
import time
from dataclasses import dataclass

import psutil

from config import usable_cores
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from measuring.candidate import HandWritten, proposal_of
from measuring.collection import Plan, ProgramRun
from measuring.compile_queue import CompileQueue
from measuring.machine import CAREFUL
from measuring.messages import BuildLibrary, CompareSizes, Failed, FindMinimumExtents, LoopNest, MinimumExtents, PrintLoopNest, Profile
from measuring.stopwatch import Stopwatch

ADAMS2019, ADAMS2019_SECONDS = "0", 3600  # key of its own choice, and the longest that its search may take
ADAMS2019_BEAM = 32  # what Halide uses unless told otherwise
ADAMS2019_PATIENCE = 20  # seconds that its search is waited for; then it goes on beside other work
OTHERS = ("Mullapudi2016", "Li2018")  # Halide's other autoschedulers, with one choice each: each is worth an eighth of a budget
LIBRARY_SECONDS = 3600  # for the library, where there is no limit of minutes
N_KEPT = 5  # processes of the fastest schedules that are kept: nothing is searched and compiled once more for the fresh runs at the end


@dataclass(frozen=True)
class Clock:
    """When each part of a tuning has to end (time.monotonic()): `began` is when the first of them does, `end` when all must be over."""

    began: float
    end: float = math.inf

    @classmethod
    def start(cls, minutes):
        """A Clock for what is left of so many minutes since this process began: imports take their part of them. 0 is no limit."""
        now = time.monotonic()
        passed = time.time() - psutil.Process().create_time()
        return cls(now, now - passed + 60 * minutes if minutes else math.inf)

    def after(self, share):
        return self.began + (self.end - self.began) * share

    def minutes(self, share):
        """Such a share of the time, in minutes."""
        return (self.end - self.began) * share / 60


class TuningRun(ProgramRun):
    """One program's tuning. Like the collection of a program, but its proposals are chosen one by one, and none makes it give up.

    cores : candidates compiled at a time, all usable ones if 0; report : called with a line about what is going on; measured_one : called
    after each measurement that is kept.
    """

    forgotten = ("deadline",)
    keeps_schedules = True  # so that going on needs no search for what was found
    needs_dumps = False
    never_duplicates = (ADAMS2019,)  # it may come late

    def __init__(self, spec, folder, seconds, protocol=CAREFUL, cores=0, report=None):
        self.cores, self.report, self.stopwatch = cores or usable_cores(), report, Stopwatch(protocol)
        self.measured_one = lambda: None
        super().__init__(spec, Plan(str(folder), 0, seconds, self.cores, protocol))
        self.failed = False  # another try may have more time
        for key in ("failure", "reference_failures", "not_featurized"):
            self.record.pop(key, None)
        self.searches = self.record.setdefault("searches", {})  # {way to choose: its keys, in the order of measuring}
        self.proposals = {ADAMS2019: Proposal(sigma=0.0, dropout=100, beam_size=ADAMS2019_BEAM, seed=0)}
        self.proposals |= {key: proposal_of(c) for key, c in self.outcomes.items() if key.isdecimal()}
        self.numbers = {proposal: key for key, proposal in self.proposals.items()}
        self.next_number = 1 + max(map(int, self.proposals))
        self.others = [self.key(OtherAutoscheduler(name)) for name in OTHERS]
        self.hand_written = self.key(HandWritten()) if spec.has_hand_schedule() else None
        self.processes = {}  # {key: Candidate}, compiled and right, of those that are kept
        self.in_background = []  # [(self, Candidate)]: Adams2019's own search, where it takes longer than ADAMS2019_PATIENCE
        # Until when (time.monotonic()) it is waited for, and when it has to be through, if that is later than for the others.
        self.patience, self.background_deadline = math.inf, 0.0
        self.not_restored = set()  # keys of schedules that can't be had from what is stored of them
        self.workspace = tempfile.TemporaryDirectory()

    def proposal(self, key):
        return self.proposals[key.rstrip("r")]

    def stored_schedule(self, key):
        return "" if key.rstrip("r") in self.not_restored else super().stored_schedule(key)

    def seconds_for(self, key):
        return ADAMS2019_SECONDS if key.rstrip("r") == ADAMS2019 else self.seconds

    def should_stop(self):
        return self.failed

    def set_deadline(self, deadline, reference=0.0):
        """Nothing begins, and nothing is waited for, after `deadline` (time.monotonic()); for the reference after the later of the two."""
        self.deadline = self.stopwatch.deadline = deadline
        self.reference_deadline = max(deadline, reference)

    def key(self, proposal):
        """The number of a proposal, a new one if it has none yet."""
        if proposal not in self.numbers:
            self.numbers[proposal] = str(self.next_number)
            self.proposals[self.numbers[proposal]] = proposal
            self.next_number += 1
        return self.numbers[proposal]

    def name_of(self, key):
        proposal = self.proposals.get(key.rstrip("r"))
        if proposal is None:
            return "the program as it stands"
        if isinstance(proposal, (HandWritten, OtherAutoscheduler)):
            return "the author's schedule" if isinstance(proposal, HandWritten) else f"{proposal.autoscheduler}'s choice"
        return "Adams2019's own choice" if key.rstrip("r") == ADAMS2019 else f"schedule {key}"

    def baselines(self):
        """Keys of what the answer must not be slower than: Adams2019's own choice, and its author's schedule where there is one."""
        return [ADAMS2019] + ([self.hand_written] if self.hand_written else [])

    def deadline_of(self, key):
        return max(self.deadline, self.background_deadline) if key == ADAMS2019 else super().deadline_of(key)

    def leaves_alone(self, candidate):
        return candidate.key == ADAMS2019 and not candidate.has_proposed and time.monotonic() > self.patience

    def deduplicate_proposals(self):
        """As of ProgramRun, but in the order in which they come: none waits for Adams2019's own search."""
        self.awaiting_deduplication.sort(key=lambda candidate: not (candidate.has_proposed or candidate.has_ended))
        return super().deduplicate_proposals()

    def is_pending(self, key):
        """Whether a candidate is searched for in the background."""
        return any(candidate.key == key for _, candidate in self.in_background)

    def wait_for_background(self):
        """Measure what is searched for in the background, however long that takes, the deadline kept."""
        self.patience = math.inf
        if self.in_background:
            self.measure([])

    def measure(self, keys):
        """Compile and measure these candidates, those that were before left out."""
        ready = self._compile([key for key in keys if key not in self.outcomes and not self.is_pending(key)])
        self._measure(ready)
        self.processes |= {candidate.key: candidate for _, candidate in ready}
        self._keep_the_fastest()

    def measure_interleaved(self, keys):
        """{key: milliseconds now} of these candidates, interleaved: new ones are measured as by `measure`, the others once more.

        What the record has of the others stays. A new one that compiles to what is there already is measured as that.
        """
        new = [key for key in keys if key not in self.outcomes]
        ready = self._compile(new)
        self.processes |= {candidate.key: candidate for _, candidate in ready}
        known = dict.fromkeys(self.outcomes.get(key, {}).get("of", key) for key in keys)
        again = [key for key in known if key not in new and key in self.measured()]
        self._revive(again)
        repeated = [(self, self.processes[key]) for key in again if key in self.processes and not self.processes[key].has_ended]
        for _, candidate in repeated:
            candidate.start_over()
        self.repeated = {}
        self._measure([*repeated, *ready])
        self._keep_the_fastest()
        return {key: self.runtime_ms(key) for key in new if key in self.measured()} | {
            key: found["runtime_ms"] for key, found in self.repeated.items()
        }

    def _compile(self, keys):
        queue = CompileQueue({self: keys}, self.workspace.name, self.cores, self.report, self.in_background)
        try:
            return queue.run()
        finally:
            self.in_background = list(queue.active.values())

    def _measure(self, ready):
        """Measure [(self, Candidate)] on the idle machine: what is searched for in the background rests meanwhile."""
        for _, candidate in self.in_background:
            candidate.pause()
        self.stopwatch.measure(ready)
        for _, candidate in self.in_background:
            candidate.resume()

    def _keep_the_fastest(self):
        """End the processes that are not among the fastest."""
        alive = [key for key, candidate in self.processes.items() if not candidate.has_ended]
        kept = {*self.baselines(), *sorted(alive, key=self.runtime_ms)[:N_KEPT]}
        for key in set(alive) - kept:
            self.processes[key].end()
        self.processes = {key: self.processes[key] for key in alive if key in kept}

    def runtime_ms(self, key):
        """Measured milliseconds of a candidate; infinite where it gave none."""
        return self.outcomes.get(key, {}).get("runtime_ms", math.inf)

    def describe(self, key):
        """How a candidate ended, for a person."""
        c = self.outcomes.get(key, {"outcome": "never tried"})
        return f"{c['runtime_ms']:.4g} ms" if "runtime_ms" in c else f"{c['outcome']}: {c.get('detail', '')}".removesuffix(": ")

    def keep_measurement(self, candidate, found):
        """A first measurement goes to disk as a dump; a repetition is handed to measure_again."""
        if candidate.key.isdecimal():
            super().keep_measurement(candidate, found)
            self.measured_one()
        else:
            self.repeated[candidate.key.rstrip("r")] = found

    def measure_again(self, keys, times):
        """{key: [milliseconds, ...]} of `times` new measurements of each, interleaved, all in fresh forks; only those that ran.

        They are noted in the record's `fresh_runs`. What has no process any more is scheduled and compiled once more.
        """
        self._revive(keys)
        runs, noted = {}, self.record.setdefault("fresh_runs", {})
        for _ in range(times):
            ready = [(self, c) for key in keys if not self.is_late() and (c := self.processes.get(key)) and not c.has_ended]
            for _, candidate in ready:
                candidate.start_over()
            self.repeated = {}
            self._measure(ready)
            for key, found in self.repeated.items():
                runs.setdefault(key, []).append(found["runtime_ms"])
                noted.setdefault(key, []).append({name: found[name] for name in ("runtime_ms", "foreign_share", "noisy", "passes_ms")})
            self.save()
        return runs

    def _revive(self, keys):
        """Have a process again for each of these schedules: from what is stored of it, or else searched for once more."""
        for _ in range(2):
            gone = [key for key in keys if key not in self.processes or self.processes[key].has_ended]
            if gone and not self.is_late():
                self.processes |= {candidate.key.rstrip("r"): candidate for _, candidate in self._compile([f"{key}r" for key in gone])}
                self.not_restored |= set(gone) - set(self.processes)

    def build_library(self, key, prefix, name):
        """LibraryBuilt, once PREFIX.a and PREFIX.h hold the program as this schedule has it, or Failed."""
        return self._ask(key, BuildLibrary(str(prefix), name))

    def minimum_extents(self, key):
        """The smallest outputs that a schedule can be called with, a list for each; None where that can't be told in time."""
        answer = self._ask(key, FindMinimumExtents())
        return answer.extents if isinstance(answer, MinimumExtents) else None

    def compare_sizes(self, key, smallest):
        """execution.compare_sizes of a schedule that takes outputs from `smallest` on, or Failed."""
        answer = self._ask(key, CompareSizes(self.record["reference"], smallest))
        return answer if isinstance(answer, Failed) else answer.sizes

    def loop_nest(self, key):
        """The loops of a schedule as Halide prints them; None where they can't be had in time."""
        answer = self._ask(key, PrintLoopNest())
        return answer.text if isinstance(answer, LoopNest) else None

    def profile(self, key, seconds):
        """Profiled, of a schedule that runs for so long under Halide's profiler, or Failed."""
        return self._ask(key, Profile(seconds))

    def _ask(self, key, order):
        self._revive([key])
        if key not in self.processes or self.processes[key].has_ended:
            c = self.outcomes.get(f"{key}r", {"outcome": "deadline", "detail": "--minutes were over"})
            return Failed(c["outcome"], c.get("detail", ""))
        answer = self.processes[key].ask(order, min(self.deadline - time.monotonic(), LIBRARY_SECONDS))
        if isinstance(answer, Failed):
            self.processes[key].end()
        return answer

    def end(self):
        for candidate in [*self.processes.values(), *(candidate for _, candidate in self.in_background)]:
            if not candidate.has_ended:
                candidate.end()
