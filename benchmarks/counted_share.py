"""How many of the proposals tune_schedule.py should lower and count: the regret of choosing when only those that look fast without are.

    python benchmarks/counted_share.py

tune_schedule.py predicts every proposal from what Halide's Adams2019 tells, lowers the pool.COUNTED_SHARE that looks fastest, and
predicts those again. Here the shipped model does the same with schedules that were all measured and counted: those of the validation
programs, from which the share was chosen, and of the applications. Of each program the BUDGET predicted fastest count as measured;
regret is the fastest of them over the fastest of all, the geometric mean over programs with four schedules or more.
"""

import sys
from pathlib import Path

import numpy as np
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data_utils
import train_utils
from batches import Sequences
from config import Config, UserError, load_config, run_script

SHARES = (0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 1)
MIN_SCHEDULES = 4


class ShareConfig(Config):
    checkpoint: str = Field(str(train_utils.SHIPPED_MODEL), description="model to choose with")
    budget: float = Field(0.1, gt=0, le=1, description="share of a program's schedules that is measured, one at least")


def regret(glance, second, log_runtime, share, budget):
    """ln of the fastest runtime among those chosen over the fastest of all, of one program's schedules, (N,) each."""
    n_measured = max(1, round(budget * len(log_runtime)))
    n_counted = max(n_measured, round(share * len(log_runtime))) if share else 0
    seen = np.argsort(glance)[:n_counted] if n_counted else np.arange(len(log_runtime))
    chosen = seen[np.argsort((second if n_counted else glance)[seen])[:n_measured]]
    return log_runtime[chosen].min() - log_runtime.min()


def main():
    config = load_config(ShareConfig)
    device = train_utils.pick_device(config)
    model, _ = train_utils.load_model(config.checkpoint, device, config.precision)
    meta = data_utils.read_meta(config.data_path)
    lines = ["| regret on | " + " | ".join(f"{share:.0%} counted" for share in SHARES) + " |", "|---" * (1 + len(SHARES)) + "|"]
    for split, name in (("val", "validation programs"), ("holdout", "applications")):
        rows = Sequences(config.data_path, meta, split)
        if not len(rows) or not rows.has_lowered_counts.all():
            raise UserError(
                f"{config.data_path}: its {split} split is empty, or holds schedules whose lowered code was not counted; run generate_dataset.py on the shipped data"
            )
        glance, second = (train_utils.predict(model, rows, device, lowered) for lowered in (False, True))
        programs = [np.flatnonzero(rows.instance == instance) for instance in np.unique(rows.instance)]
        programs = [own for own in programs if len(own) >= MIN_SCHEDULES]
        cells = []
        for share in SHARES:
            logs = [regret(glance[own], second[own], rows.log_runtime[own], share, config.budget) for own in programs]
            cells.append(f"{np.exp(np.mean(logs)):.3f}")
        lines.append(f"| {len(programs)} {name} | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
