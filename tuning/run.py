"""One program's tuning: its proposals by number, its record, and measurements of those that are asked for."""

import math
import tempfile

from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from measuring import collection
from measuring.collection import Plan, ProgramRun

ADAMS2019, ADAMS2019_SECONDS = "0", 3600  # key of its own choice, and the longest that may take
ADAMS2019_BEAM = 32  # what Halide uses unless told otherwise
OTHERS = ("Mullapudi2016", "Li2018")  # Halide's other autoschedulers, with one choice each: each is worth an eighth of a budget


class TuningRun(ProgramRun):
    """One program's tuning. Like the collection of a program, but its proposals are chosen one by one, and none makes it give up."""

    def __init__(self, spec, folder, seconds):
        super().__init__(spec, Plan(str(folder), 0, seconds))
        self.proposals = {ADAMS2019: Proposal(sigma=0.0, dropout=100, beam_size=ADAMS2019_BEAM, seed=0)}
        for key, c in self.outcomes.items():
            if key.isdecimal():
                self.proposals[key] = OtherAutoscheduler(c["autoscheduler"]) if "autoscheduler" in c else Proposal.from_record(c)
        self.numbers = {proposal: key for key, proposal in self.proposals.items()}
        self.next_number = 1 + max(map(int, self.proposals))
        self.others = [self.key(OtherAutoscheduler(name)) for name in OTHERS]
        self.workspace = tempfile.TemporaryDirectory()

    def proposal(self, key):
        return self.proposals[key]

    def seconds_for(self, key):
        return ADAMS2019_SECONDS if key.rstrip("r") == ADAMS2019 else self.seconds

    def should_stop(self):
        return self.failed

    def key(self, proposal):
        """The number of a proposal, a new one if it has none yet."""
        if proposal not in self.numbers:
            self.numbers[proposal] = str(self.next_number)
            self.proposals[self.numbers[proposal]] = proposal
            self.next_number += 1
        return self.numbers[proposal]

    def measure(self, keys):
        """Compile and measure these candidates, those that were before left out."""
        compiled = collection.compile_candidates({self: [key for key in keys if key not in self.outcomes]}, self.workspace.name)
        for _, candidate in compiled:
            collection.measure(self, candidate)
        collection.further_passes(compiled)

    def runtime_ms(self, key):
        """Measured milliseconds of a candidate; infinite where it gave none."""
        return self.outcomes.get(key, {}).get("runtime_ms", math.inf)

    def describe(self, key):
        """How a candidate ended, for a person."""
        c = self.outcomes.get(key, {"outcome": "never tried"})
        return f"{c['runtime_ms']:.4g} ms" if "runtime_ms" in c else f"{c['outcome']} {c.get('detail', '')}".strip()

    def measure_again(self, keys, times):
        """{key: [milliseconds, ...]} of new measurements, each in a fresh process, the candidates taking turns."""
        found = {key: [] for key in keys}
        for _ in range(times):
            repeats = {}
            for key in keys:
                repeats[key] = key + "r"
                while repeats[key] in self.outcomes:
                    repeats[key] += "r"
            self.measure(repeats.values())
            for key, repeat in repeats.items():
                found[key].append(self.runtime_ms(repeat))
        return found
