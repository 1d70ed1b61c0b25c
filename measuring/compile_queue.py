"""Has candidates proposed, compiled and checked, as many at a time as there are cores for it, and leaves those that are right waiting."""

import math
import time
from multiprocessing.connection import wait

from measuring.candidate import Candidate
from measuring.messages import Checked, Compiled, Failed, Featurized, Proposed, ReferenceRun

REPORT_SECONDS = 15  # between two reports of how far it is
LISTEN_SECONDS = 5  # longest wait for a message: the report is due now and then


class CompileQueue:
    """Candidates of a few programs on their way from a proposal to waiting for their measurement.

    keys : {ProgramRun: [key]}; folder : for logs and the references' outputs; cores : candidates at work at a time;
    report : called with a line now and then. at_work : [(ProgramRun, Candidate)] that an earlier queue has left at work.
    """

    def __init__(self, keys, folder, cores, report=None, at_work=()):
        self.folder, self.cores, self.report = folder, cores, report
        self.active = {candidate.connection: (run, candidate) for run, candidate in at_work}
        self.ready = []  # [(run, candidate)]
        self.waiting = []  # (run, key), the next one last
        for run, own in keys.items():
            run.begin_round()
            if own and not run.reference_ready and not run.failed:
                self.waiting.append((run, "reference"))
            self.waiting += [(run, key) for key in own]
        self.waiting.reverse()
        self.n_all, self.reported = len(self.waiting) + len(self.active), time.monotonic()

    def run(self):
        """[(ProgramRun, Candidate)] whose output is right, ready to be measured, in the order of their keys.

        What a run does not wait for is left at work, in `active`.
        """
        while self.waiting or any(not run.leaves_alone(candidate) for run, candidate in self.active.values()):
            self._start()
            for connection in self._heard_or_late():
                if connection in self.active:  # else dropped a moment ago
                    self._take(*self.active[connection])
            self._report()
        self.ready = [(run, candidate) for run, candidate in self.ready if run.can_keep(candidate)]
        return sorted(self.ready, key=lambda rc: (rc[0].spec.name, rc[1].key.zfill(6)))

    def _start(self):
        """Those that wait for an earlier proposal or for the reference need no core; those that are left alone get none of their own."""
        at_work = lambda: sum(c.deadline < math.inf and not run.leaves_alone(c) for run, c in self.active.values())
        while self.waiting and at_work() < self.cores:
            run, key = self.waiting.pop()
            if run.failed or (key != "reference" and run.is_late()) or (key.isdecimal() and run.should_stop()):
                continue
            candidate = Candidate(key, run, self.folder)
            self.active[candidate.connection] = (run, candidate)
            if key.isdecimal():
                run.awaiting_deduplication.append(candidate)

    def _heard_or_late(self):
        nearest = min((candidate.deadline for _, candidate in self.active.values()), default=0)
        heard = wait(list(self.active), min(max(nearest - time.monotonic(), 0), LISTEN_SECONDS))
        now = time.monotonic()
        return [*heard, *(c for c, (_, candidate) in self.active.items() if candidate.deadline <= now and c not in heard)]

    def _take(self, run, candidate):
        """Go on with what a candidate says, or has failed to say in time."""
        message = candidate.receive(0)
        match message:
            case Proposed():
                self._proposed(run, candidate, message)
            case Compiled():
                self._compiled(run, candidate, message)
            case ReferenceRun():
                run.keep_reference(message)
                if run.has_features():
                    self._drop(candidate)
                    candidate.end()
                else:
                    candidate.featurize()
            case Featurized():
                run.keep_features(message.featurization)
                self._drop(candidate)
                candidate.end()
            case Checked():
                candidate.lowered = candidate.lowered or message.lowered
                self._drop(candidate)
                self.ready.append((run, candidate))
            case Failed():
                self._drop(candidate)
                if run.fail(candidate, message):
                    self.waiting.append((run, "reference"))
        for dropped in [*run.deduplicate_proposals(), *run.check_compiled()]:
            self._drop(dropped)
        if run.failed:
            self._give_up(run)

    def _proposed(self, run, candidate, message):
        candidate.keep_proposal(message)
        if candidate.key == "reference":
            run.record.update(message.description)
        if not candidate.key.isdecimal():
            candidate.compile()

    def _compiled(self, run, candidate, message):
        candidate.compile_seconds = message.seconds
        if candidate.key == "reference":
            candidate.run_reference()
        else:
            candidate.unlimit()
            run.n_compiled += 1
            run.unchecked.append(candidate)

    def _drop(self, candidate):
        self.active.pop(candidate.connection, None)

    def _give_up(self, run):
        """End whatever of a program is under way: there will be nothing to compare it with."""
        for candidate in [candidate for own, candidate in self.active.values() if own is run]:
            self._drop(candidate)
            candidate.end()
        run.awaiting_deduplication, run.unchecked = [], []

    def _report(self):
        if not self.report or time.monotonic() - self.reported < REPORT_SECONDS:
            return
        self.reported = time.monotonic()
        at_work = [f"{run.name_of(c.key)}: {c.progress()}" for run, c in self.active.values() if c.deadline < math.inf]
        n_done = self.n_all - len(self.waiting) - len(self.active)
        self.report(f"  compiled {n_done} of {self.n_all}; at work: {'; '.join(at_work) or 'none'}")
