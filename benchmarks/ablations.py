"""What the choices in the model are worth: variants of the shipped configuration, judged on validation rows alone.

    python benchmarks/ablations.py
    python benchmarks/ablations.py --variants "no LSTM context" --raw_path dumps.tar.xz --name json_dumps

For each fold (5, or --folds) it runs generate_dataset.py once and train_model.py for every variant, `--jobs` at a time, in
runs/ablations/NAME, and prints the mean over folds of the last epoch's validation scores; the table goes to table.md there. The
validation share is --ablation_val_fraction of what is not the fold's test split, which is never looked at.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, UserError, load_config, run_script
from features import CALLS

VARIANTS = {
    "shipped": {},
    "one member": {"members": 1},
    "no centred loss": {"centred_loss_weight": 0},
    "no ranking loss": {"ranking_loss_weight": 0},
    "regression loss alone": {"centred_loss_weight": 0, "ranking_loss_weight": 0},
    "half the width": {"embed_size": 48, "hidden_size": 24},
    "twice the width": {"embed_size": 192, "hidden_size": 96},
    "two LSTM layers": {"lstm_layers": 2},
    "without operation histograms": {
        "drop_features": ",".join(
            f"log_{op}"
            for op in (
                "float_*",
                "ops_*",
                "const",
                "cast",
                "variable",
                "param",
                "add",
                "sub",
                "mod",
                "mul",
                "div",
                "min",
                "max",
                "eq",
                "ne",
                "lt",
                "le",
                "and",
                "or",
                "not",
                "select",
                "*_call",
                "let",
            )
        )
    },
    "without access patterns": {"drop_features": "log_pointwise_*,log_transpose_*,log_broadcast_*,log_slice_*"},
    "without cost terms": {"drop_features": "log_cost_*"},
    "without calls": {"drop_features": ",".join(f"log_{kind}_calls,log_cost_{kind}_calls" for kind in CALLS)},
    "without counts in the lowered code": {"drop_features": "*lowered_*"},
    "without padding": {"drop_features": "padding,outer_padding,partial_share"},
}


class AblationConfig(Config):
    name: str = Field("shipped", min_length=1, description="folder under runs/ablations for this table")
    variants: str = Field("", description="names of the variants to run, separated by commas; empty: all")
    ablation_val_fraction: float = Field(
        0.25, gt=0, lt=1, description="share of a fold's training programs that the variants are judged on"
    )
    jobs: int = Field(2, ge=1, description="training runs at a time; each gets num_threads")


def run_script_quietly(script, settings):
    environment = os.environ | ({"OMP_NUM_THREADS": str(settings["num_threads"])} if settings["num_threads"] else {})
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    done = subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{script} failed")


def train(settings, folder):
    """Validation scores of one variant on one fold, as a row of metrics.csv."""
    run_script_quietly("train_model.py", settings | {"run_path": folder})
    return pd.read_csv(folder / "metrics.csv").iloc[-1]


def main():
    config = load_config(AblationConfig)
    names = [name.strip() for name in config.variants.split(",") if name.strip()] or list(VARIANTS)
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"--variants: no variant {name!r}; there are {', '.join(VARIANTS)}")
    folder = ROOT / "runs" / "ablations" / config.name
    shared = {key: getattr(config, key) for key in Config.model_fields} | {
        "val_fraction": config.ablation_val_fraction,
        "folds": config.folds or 5,
    }
    folds = [shared | {"fold": fold, "data_path": folder / f"data_{fold}"} for fold in range(shared["folds"])]
    for settings in folds:
        run_script_quietly("generate_dataset.py", settings)
    tasks = [(name, fold, settings | VARIANTS[name]) for name in names for fold, settings in enumerate(folds)]
    rows = Parallel(config.jobs, prefer="threads")(
        delayed(train)(settings, folder / name.replace(" ", "_") / str(fold)) for name, fold, settings in tasks
    )

    lines = ["| variant | val MSE log | Spearman | median APE % |", "|---|---|---|---|"]
    for name in names:
        scores = pd.DataFrame([row for row, task in zip(rows, tasks) if task[0] == name])
        cells = [f"{scores[c].mean():.3f} ± {scores[c].std():.3f}" for c in ("val_mse_log", "val_spearman", "val_median_ape")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    (folder / "table.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    run_script(main)
