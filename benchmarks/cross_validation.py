"""Cross-validate the shipped configuration: the LSTM beside its rivals, mean and spread over folds split by program.

    python benchmarks/cross_validation.py
    python benchmarks/cross_validation.py --raw_path dumps.tar.xz --name json_dumps

For each fold (5, or --folds) it runs generate_dataset.py, train_model.py and evaluate_model.py with the flags given, in
runs/folds/NAME whatever data_path, run_path and fold say, and prints the table; the same as JSON in runs/folds/NAME/table.json.
Every rival gets the same rows of the same folds. With --num_threads, as many folds run side by side as the cores allow.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
from joblib import Parallel, delayed
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, UserError, load_config, run_script
from evaluation.metrics import TITLES

RIVALS = "lstm", "hist_gradient_boosting"  # what is compared on each part of the rows


class FoldsConfig(Config):
    name: str = Field("shipped", min_length=1, description="folder under runs/folds for this table")


def n_folds(config):
    return config.folds or 5


def run_folds(config, run, folds):
    """[run(fold)], side by side where each is told to use but some of the cores."""
    return Parallel(max(os.cpu_count() // config.num_threads, 1) if config.num_threads else 1, backend="threading")(
        delayed(run)(fold) for fold in folds
    )


def run_fold(config, fold, folder):
    """One fold's report, through the scripts as a user runs them."""
    flags = {key: getattr(config, key) for key in Config.model_fields}
    flags |= {"folds": n_folds(config), "fold": fold, "data_path": folder / f"data_{fold}", "run_path": folder / f"fold_{fold}"}
    arguments = [f"--{key}={value}" for key, value in flags.items()]
    for script in ("generate_dataset.py", "train_model.py", "evaluate_model.py"):
        done = subprocess.run([sys.executable, ROOT / script, *arguments], stdout=subprocess.DEVNULL)
        if done.returncode:
            raise UserError(f"fold {fold}: {script} has failed, and said why above")
    return orjson.loads((folder / f"fold_{fold}" / "report.json").read_bytes())


def summarise(reports, models_of):
    """{model: {metric: [mean, standard deviation over folds]}} of the reports that have `models_of(report)`."""
    found = [models_of(report) for report in reports]
    return {
        name: {
            metric: [float(np.mean(values)), float(np.std(values, ddof=1))]
            for metric in TITLES
            if None not in (values := [models[name][metric] for models in found])
        }
        for name in found[0]
    }


def markdown(summary):
    metrics = ["mse_log", "r2_log", "median_ape", "spearman", "pairwise_accuracy", "top1_regret", "top5_regret", "correct_ordering_rate"]
    lines = ["| model | " + " | ".join(TITLES[m] for m in metrics) + " |", "|---" * (1 + len(metrics)) + "|"]
    for name, scores in summary.items():
        cells = ["{:.3f} ± {:.3f}".format(*scores[m]) if m in scores else "-" for m in metrics]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(summaries):
    """Markdown: a line a part of the rows, the LSTM beside the trees."""
    columns = ["mse_log", "median_ape", "spearman"]
    header = ["rows of", *(f"{TITLES[m]}: {model}" for m in columns for model in ("lstm", "trees")), "MSE log below the trees'"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, summary in summaries.items():
        lstm, trees = (summary[model] for model in RIVALS)
        cells = ["{:.3f} ± {:.3f}".format(*scores[m]) if m in scores else "-" for m in columns for scores in (lstm, trees)]
        lines.append(f"| {name} | {' | '.join(cells)} | {1 - lstm['mse_log'][0] / trees['mse_log'][0]:.1%} |")
    return "\n".join(lines)


def main():
    config = load_config(FoldsConfig)
    folder = ROOT / "runs" / "folds" / config.name
    reports = run_folds(config, lambda fold: run_fold(config, fold, folder), range(n_folds(config)))
    parts = {"test": reports} | {f"holdout {name}": [r["holdout"][name] for r in reports] for name in reports[0]["holdout"]}
    tables, groups = {part: summarise(found, lambda r: r["models"]) for part, found in parts.items()}, {}
    for part, found in parts.items():
        for kind in ("origins", "collections", "sizes"):
            names = [name for name in found[0][kind] if all(name in r[kind] for r in found)]
            for name in names if len(names) > 1 else []:
                groups[f"{part}, {name}"] = summarise(found, lambda r, k=kind, n=name: r[k][n]["models"])
    for name, summary in tables.items():
        print(f"{name}, {n_folds(config)} folds, mean ± standard deviation\n\n{markdown(summary)}\n")
    print(f"{compared(tables | groups)}\n")
    for part, found in parts.items():
        for kind in ("coverage", "coverage_by_program"):
            shares = [r["interval"][kind] for r in found]
            by_fold = ", ".join(f"{v:.1%}" for v in shares)
            print(f"{part}: {kind} of the {found[0]['interval']['level']:.0%} interval: {np.mean(shares):.1%} (by fold: {by_fold})")
        for i, line in enumerate(found[0]["few_shot"]):
            found_lines = [r["few_shot"][i] for r in found if len(r["few_shot"]) > i]
            errors, covered = ([line[key] for line in found_lines] for key in ("median_ape", "coverage"))
            print(
                f"{part}: after {line['k']} measured schedules: median error of the others {np.mean(errors):.1f} ± {np.std(errors):.1f} %, "
                f"{np.mean(covered):.1%} of them in their intervals"
            )
    (folder / "table.json").write_bytes(orjson.dumps(tables | groups, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    run_script(main)
