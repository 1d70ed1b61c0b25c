"""Measures compiled candidates: each alone on the machine, in passes that are some seconds apart."""

import math
import time

from measuring.machine import Background, is_noisy, summary
from measuring.messages import Failed


class Stopwatch:
    """Takes the passes of a Protocol, and remembers how busy others kept the machine.

    deadline (time.monotonic()) : no pass begins after it; what has been measured once by then is kept.
    """

    def __init__(self, protocol, deadline=math.inf):
        self.protocol, self.deadline, self.background = protocol, deadline, Background(protocol)

    def measure(self, ready):
        """Measure [(ProgramRun, Candidate)], which wait, in as many passes as it takes."""
        for run, candidate in ready:
            self.one_pass(run, candidate)
        self.further_passes(ready)

    def one_pass(self, run, candidate):
        """Measure a compiled candidate once, alone on the machine, again where others used it. What is measured is on disk at once."""
        tries = []
        while len(tries) < self.protocol.tries and not (tries and not self.background.wait_for_calm()):
            message = candidate.measure_pass()
            if isinstance(message, Failed):
                if candidate.passes or tries:
                    candidate.end()
                else:
                    run.fail(candidate, message)
                break
            tries.append(message.one_pass)
            self.background.note(message.one_pass)
            if not is_noisy(message.one_pass) or time.monotonic() > self.deadline:
                break
        if not tries:
            return
        candidate.passes.append(min(tries, key=lambda p: p.background_cpu_share))
        run.keep_measurement(candidate, summary(candidate.passes))

    def further_passes(self, ready):
        """The further passes through candidates that one_pass has seen once, until each has converged, failed, or the deadline is over."""
        still_open = ready
        while still_open and time.monotonic() < self.deadline:
            still_open = [(run, c) for run, c in still_open if not c.has_ended and not self.protocol.has_converged(c.passes)]
            for run, candidate in still_open:
                if time.monotonic() < self.deadline:
                    self.one_pass(run, candidate)
