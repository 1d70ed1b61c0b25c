"""What evaluate_model.py writes: tables, predictions, plots, and the lines of report.json about programs."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from dumps.parsing import hex_id
from evaluation import metrics
from evaluation.metrics import TITLES

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def program_lines(rows, names, log_predicted):
    """A line a program instance: its name, size and the LSTM's scores, worst median error first."""
    lines = []
    within = {g: scores for g, _, scores in metrics.by_program(rows.instance, np.exp(rows.log_runtime), np.exp(log_predicted))}
    for instance in np.unique(rows.instance):
        at = np.flatnonzero(rows.instance == instance)
        scores = metrics.error_metrics(rows.log_runtime[at], log_predicted[at])
        line = {"program": hex_id(rows.program[at[0]]), "name": names[at[0]], "schedules": len(at), "stages": int(rows.lengths[at[0]])}
        line |= {"fastest_ms": float(np.exp(rows.log_runtime[at].min())), "mse_log": scores["mse_log"], "median_ape": scores["median_ape"]}
        order = within.get(instance, {})
        line |= {name: order.get(name) for name in ("spearman", "pairwise_accuracy", "top1_regret", "top5_regret")}
        lines.append({k: v.item() if isinstance(v, np.generic) else v for k, v in line.items()})
    return sorted(lines, key=lambda line: -line["median_ape"])


def leakage(test, train, val):
    """How much of the test split the model has seen in training or validation: programs, and schedules (identical features)."""

    def ids(columns, *splits):
        return {row for rows in splits for row in zip(*(getattr(rows, column).tolist() for column in columns))}

    columns = {"programs": ["program"], "schedules": ["program", "schedule"]}
    return {name: len(ids(c, test) & ids(c, train, val)) for name, c in columns.items()}


def worst_misses(rows, table, log_predicted, n=10):
    """The `n` rows whose predictions are furthest off: their files, so that somebody can look at the schedule."""
    residual = log_predicted - rows.log_runtime
    worst = np.argsort(-np.abs(residual))[:n]
    return [
        {"file": table.file.iloc[i], "runtime_ms": float(np.exp(rows.log_runtime[i])), "predicted_ms": float(np.exp(log_predicted[i]))}
        for i in worst.tolist()
    ]


def write_predictions(path, rows, log_predicted, half_width):
    """The contract's columns, a row a schedule; bounds in milliseconds."""
    table = pd.DataFrame({
        "program": [hex_id(p) for p in rows.program], "schedule": [hex_id(s) for s in rows.schedule],
        "runtime_ms": np.exp(rows.log_runtime.astype(np.float64)), "predicted_ms": np.exp(log_predicted),
        "lower_ms": np.exp(log_predicted - half_width), "upper_ms": np.exp(log_predicted + half_width),
    })  # fmt: skip
    table.to_csv(path, index=False)


def table(models, columns=TITLES):
    """A Markdown table of {model: {metric: value}}."""
    lines = ["| model | " + " | ".join(TITLES[c] for c in columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, scores in models.items():
        lines.append(f"| {name} | " + " | ".join(_number(scores[c]) for c in columns) + " |")
    return "\n".join(lines)


def _number(value):
    return "-" if value is None or np.isnan(value) else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"


def write_markdown(path, report):
    n = report["counts"]["splits"]["test"]
    parts = [
        f"# Report\n\nSplit by {report['split_by']}; test: {n['schedules']} {'schedules of ' + str(n['programs']) + ' programs' if report['split_by'] == 'program' else 'schedules'} never trained on.\n",
        table(report["models"]), "",
    ]  # fmt: skip
    parts += [f"Without {name}: {why}.\n" for name, why in report["left_out"].items()]
    low_high = report["confidence"].get("lstm")
    if low_high:
        parts.append("Confidence intervals of the LSTM (bootstrap over programs): " + "; ".join(f"{TITLES[k]} {_number(a)} to {_number(b)}" for k, (a, b) in low_high.items() if a is not None) + ".\n")  # fmt: skip
    ceiling = report["noise_ceiling"]
    if ceiling:
        parts.append(f"Noise ceiling, from {ceiling['repeated_schedules']} repeated schedules: MSE log {ceiling['mse_log']:.5f}, median APE {ceiling['median_ape']:.2f} %; two measurements differ by {ceiling['median_difference']:.2f} % in the median, {ceiling['p90_difference']:.2f} % at the 90th percentile.\n")  # fmt: skip
    else:
        parts.append("Noise ceiling: unknown, no schedule was measured twice.\n")
    interval = report["interval"]
    parts.append(f"Intervals: {interval['coverage']:.1%} of the test rows lie within the {interval['level']:.0%} interval (a factor of {np.exp(interval['log_half_width']):.2f} either way).\n")  # fmt: skip
    seen = report["leakage"]
    expected = " (a split by schedule shares programs by design)" if report["split_by"] == "schedule" else ""
    parts.append(
        f"Leakage: {seen['programs']} test programs and {seen['schedules']} test schedules are in the training or validation split{expected}.\n"
    )
    if report["few_shot"]:
        parts.append("## After measuring k schedules of a new program\n\nErrors on its other schedules, corrected by those k and not.\n")
        parts.append("| k | programs | MSE log | not corrected | median APE % | not corrected |\n|---|---|---|---|---|---|")
        keys = ("mse_log", "uncorrected_mse_log", "median_ape", "uncorrected_median_ape")
        parts += [
            f"| {line['k']} | {line['programs']} | " + " | ".join(_number(line[key]) for key in keys) + " |" for line in report["few_shot"]
        ]
        parts.append("")
    parts.append("## Worst misses\n\n| file | measured ms | predicted ms |\n|---|---|---|")
    parts += [f"| {line['file']} | {_number(line['runtime_ms'])} | {_number(line['predicted_ms'])} |" for line in report["worst_misses"]]
    parts.append("")
    columns = ["name", "schedules", "stages", "fastest_ms", "median_ape", "spearman", "top1_regret", "top5_regret"]
    for title, lines in [("Test programs, worst predicted first", report["programs"][:20])] + [
        (f"Holdout: {c}", h["programs"]) for c, h in report["holdout"].items()
    ]:
        parts.append(f"## {title}\n")
        if title.startswith("Holdout"):
            parts += [table(report["holdout"][title.removeprefix("Holdout: ")]["models"]), ""]
        parts.append("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        parts += [
            "| " + " | ".join(str(v) if isinstance(v, (str, int)) else _number(v) for v in (line[c] for c in columns)) + " |"
            for line in lines
        ]
        parts.append("")
    path.write_text("\n".join(parts))


def plot_predicted_measured(path, parts):
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    for name, rows, log_predicted in parts:
        axis.loglog(np.exp(rows.log_runtime), np.exp(log_predicted), ".", ms=4, alpha=0.5, label=name)
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], "k-", lw=0.8)
    axis.set(xlabel="measured, ms", ylabel="predicted, ms")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_error_by_program(path, rows, log_predicted):
    residual = log_predicted - rows.log_runtime
    instances = np.unique(rows.instance)
    groups = sorted((residual[rows.instance == i] for i in instances), key=np.median)
    figure, axis = plt.subplots(figsize=(10, 3.5), layout="constrained")
    axis.boxplot(groups, widths=0.7, showfliers=False, medianprops={"color": "C3"})
    axis.axhline(0, color="k", lw=0.8)
    axis.set(xlabel="test programs", ylabel="ln predicted - ln measured", xticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_regret_by_k(path, rows, predicted):
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    largest = min(16, int(np.unique(rows.instance, return_counts=True)[1].max()))
    for name, log_predicted in predicted.items():
        regret = []
        for k in range(1, largest + 1):
            values = [
                metrics.top_k_regret(np.exp(rows.log_runtime[at]), log_predicted[at], k)
                for at in (np.flatnonzero(rows.instance == i) for i in np.unique(rows.instance)) if len(at) > 1
            ]  # fmt: skip
            regret.append(np.exp(np.mean(np.log(values))) if values else np.nan)
        axis.plot(range(1, largest + 1), regret, "o-", ms=3, label=name)
    axis.set(xlabel="k schedules measured", ylabel="best of them / fastest of all")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def names_of(rows):
    """What a person calls each row's program: the folder its dump lies in, or the dump itself."""
    return [Path(file).parent.name or file for file in rows.file]
