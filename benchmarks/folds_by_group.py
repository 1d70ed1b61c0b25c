"""Errors of the LSTM by groups of programs that no single collection is: random programs, families of kernels, hand-written schedules.

    python benchmarks/folds_by_group.py

Reads what benchmarks/cross_validation.py has left in runs/folds/NAME, and prints mean and standard deviation over its folds.
Random programs and families are told by the names of the shipped archives.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, UserError, load_config, run_script
from evaluation import metrics

# {group: (split, which of its rows of schedules.csv)}
GROUPS = {
    "random programs": ("test", lambda rows: rows.collection.str.startswith("random")),
    "families of kernels": ("test", lambda rows: rows.collection.str.startswith("families")),
    "hand-written, applications": ("holdout", lambda rows: rows.get("origin", rows.collection) == "hand_written"),
}
PREDICTIONS = {"test": "predictions.csv", "holdout": "predictions_holdout.csv"}


class GroupsConfig(Config):
    name: str = Field("shipped", min_length=1, description="folder under runs/folds")


def scores(rows, predictions):
    """[schedules, mse_log, median error in %, Spearman within a program, mean of abs(ln(predicted / measured))]."""
    assert len(rows) == len(predictions)
    measured, predicted = (np.log(predictions[name].to_numpy()) for name in ("runtime_ms", "predicted_ms"))
    found = metrics.all_metrics(pd.factorize(rows.instance)[0], measured, predicted)
    return [len(rows), *(found[name] for name in ("mse_log", "median_ape", "spearman")), np.abs(predicted - measured).mean()]


def main():
    config = load_config(GroupsConfig)
    folder = ROOT / "runs" / "folds" / config.name
    folds = sorted(folder.glob("fold_*/report.json"))
    if len(folds) < 2:
        raise UserError(f"{folder}: has no two folds; run benchmarks/cross_validation.py --name {config.name} first")
    print("| group | schedules a fold | MSE log | median APE % | Spearman | mean abs(ln) |\n|---|---|---|---|---|---|")
    for group, (split, chosen) in GROUPS.items():
        lines = []
        for report in folds:
            rows = pd.read_csv(folder / report.parent.name.replace("fold", "data") / "schedules.csv").query("split == @split")
            at = chosen(rows).to_numpy()
            if at.any():
                lines.append(scores(rows[at], pd.read_csv(report.parent / PREDICTIONS[split])[at]))
        if lines:
            mean, spread = np.mean(lines, 0), np.std(lines, 0, ddof=1)
            told = [f"{m:.3f} ± {s:.3f}" if np.isfinite(m) else "-" for m, s in zip(mean[1:], spread[1:])]
            print(f"| {group} | {mean[0]:.0f} | {' | '.join(told)} |")


if __name__ == "__main__":
    run_script(main)
