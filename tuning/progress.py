"""The bar that a tuning shows to a person who watches it in a terminal."""

import sys

from tqdm import tqdm

FORMAT = "{desc}: {n_fmt} of {total_fmt} measured |{bar:20}| {elapsed}, {remaining} left{postfix}"


class Progress:
    """What a TuningRun is at, how much of its budget is spent, and how far it has come. Nothing is shown where `file` is no terminal."""

    def __init__(self, run, budget, file=None):
        self.run = run
        self.bar = tqdm(total=budget, bar_format=FORMAT, file=file or sys.stderr, disable=None, dynamic_ncols=True, leave=False)
        run.measured_one = self.update

    def begin(self, phase):
        self.bar.set_description_str(phase)

    def update(self):
        run, measured = self.run, self.run.measured()
        best = min(map(run.runtime_ms, measured))
        told = [f"fastest {best:.4g} ms"]
        for whose, key in zip(("Halide's", "the author's"), run.baselines()):
            if key in measured:
                told.append(f"{run.runtime_ms(key) / best:.2f} x {whose}")
        self.bar.set_postfix_str(", ".join(told), refresh=False)
        self.bar.n = min(len(measured), self.bar.total)
        self.bar.refresh()

    def close(self):
        self.bar.close()
