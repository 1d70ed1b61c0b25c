"""Report how well a trained model predicts: on test programs it has never seen, and on held-out collections, beside rivals.

    python evaluate_model.py
    python evaluate_model.py --run_path runs/short

Reads data_path (generate_dataset.py) and run_path/best.safetensors (train_model.py). Writes into run_path: report.json, report.md,
predictions.csv, predictions_holdout.csv, and the plots predicted_measured.png, error_by_program.png and regret_by_k.png.
"""

from pathlib import Path

import matplotlib
import numpy as np
import orjson
import pandas as pd

import baselines
import correction
import data_utils
import metrics
import train_utils
from config import UserError, load_config, make_folder, run_script
from metrics import TITLES

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def predict_all(config, model, device, train, val, others):
    """({model name: [predicted log-runtime of each of `others`]}, the LSTM first; {rival left out: why})."""
    predicted = {"lstm": [train_utils.predict(model, rows, device) for rows in others]}
    if any(rows.counted.any() for rows in others):
        predicted["lstm_plain_dumps"] = [train_utils.predict(model, rows, device, lowered=False) for rows in others]
    predicted["constant"] = baselines.constant(train, val, others)
    if config["split_by"] == "schedule":
        predicted["program_mean"] = baselines.program_mean(train, val, others)
    predicted["hist_gradient_boosting"] = baselines.hist_gradient_boosting(train, val, others)
    left_out = {}
    if why := baselines.why_no_halide_model(train, val, others):
        left_out["adams2019"] = why
    else:
        predicted["adams2019"] = baselines.adams2019(train, val, others)
    if why := why or baselines.why_no_retraining(train):
        left_out["adams2019_retrained"] = why
    else:
        predicted["adams2019_retrained"] = baselines.adams2019_retrained(train, val, others)
    return predicted, left_out


def program_lines(rows, names, log_predicted):
    """A line a program instance: its name, size and the LSTM's scores, worst median error first."""
    lines = []
    within = {g: scores for g, _, scores in metrics.by_program(rows.instance, np.exp(rows.log_runtime), np.exp(log_predicted))}
    for instance in np.unique(rows.instance):
        at = np.flatnonzero(rows.instance == instance)
        scores = metrics.error_metrics(rows.log_runtime[at], log_predicted[at])
        line = {"program": data_utils.hex_id(rows.program[at[0]]), "name": names[at[0]], "schedules": len(at), "stages": int(rows.lengths[at[0]])}
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
        "program": [data_utils.hex_id(p) for p in rows.program], "schedule": [data_utils.hex_id(s) for s in rows.schedule],
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
    parts.append(f"Leakage: {seen['programs']} test programs and {seen['schedules']} test schedules are in the training or validation split{expected}.\n")
    if report["few_shot"]:
        parts.append("## After measuring k schedules of a new program\n\nErrors on its other schedules, corrected by those k and not.\n")
        parts.append("| k | programs | MSE log | not corrected | median APE % | not corrected |\n|---|---|---|---|---|---|")
        keys = ("mse_log", "uncorrected_mse_log", "median_ape", "uncorrected_median_ape")
        parts += [f"| {line['k']} | {line['programs']} | " + " | ".join(_number(line[key]) for key in keys) + " |" for line in report["few_shot"]]
        parts.append("")
    parts.append("## Worst misses\n\n| file | measured ms | predicted ms |\n|---|---|---|")
    parts += [f"| {line['file']} | {_number(line['runtime_ms'])} | {_number(line['predicted_ms'])} |" for line in report["worst_misses"]]
    parts.append("")
    columns = ["name", "schedules", "stages", "fastest_ms", "median_ape", "spearman", "top1_regret", "top5_regret"]
    for title, lines in [("Test programs, worst predicted first", report["programs"][:20])] + [(f"Holdout: {c}", h["programs"]) for c, h in report["holdout"].items()]:
        parts.append(f"## {title}\n")
        if title.startswith("Holdout"):
            parts += [table(report["holdout"][title.removeprefix("Holdout: ")]["models"]), ""]
        parts.append("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
        parts += ["| " + " | ".join(str(v) if isinstance(v, (str, int)) else _number(v) for v in (line[c] for c in columns)) + " |" for line in lines]
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


def main():
    config = load_config()
    device = train_utils.pick_device(config)
    meta = data_utils.read_meta(config.data_path)
    checkpoint = Path(config.run_path) / "best.safetensors"
    model, trained = train_utils.load_model(checkpoint, device, config.precision)
    train, val, test, holdout = (train_utils.Sequences(config.data_path, meta, split) for split in ("train", "val", "test", "holdout"))
    if len(test) == 0:
        raise UserError(f"{config.data_path}: its test split is empty; measure more programs, or generate with a larger test_fraction")
    # The rivals are fitted on the very rows the model has seen, and nothing it has seen is among the test rows.
    if trained["data"] != train_utils.fingerprint(train, val):
        raise UserError(f"{checkpoint}: was trained on other schedules than the training split of {config.data_path}; run train_model.py again")
    run = make_folder(config.run_path, "run_path")
    predicted, left_out = predict_all(meta["split"], model, device, train, val, [test, holdout])
    half_widths = {split: np.array([train_utils.errors_of(trained, c)["log_half_width"] for c in rows.counted]) for split, rows in (("test", test), ("holdout", holdout))}

    def coverage(rows, log_predicted, half_width):
        return float(np.mean(np.abs(log_predicted - rows.log_runtime) <= half_width)) if len(rows) else None

    log_runtime = test.log_runtime.astype(np.float64)
    rows = data_utils.read_rows(config.data_path)
    test_rows, holdout_rows = (rows[rows.split == split] for split in ("test", "holdout"))
    report = {
        "split_by": meta["split"]["split_by"],
        "counts": meta["counts"],
        "models": {name: metrics.all_metrics(test.instance, log_runtime, p) for name, (p, _) in predicted.items()},
        "left_out": left_out,
        "confidence": {
            name: metrics.bootstrap(test.program, test.instance, log_runtime, p, config.bootstrap_samples, 0.95, config.seed)
            for name, (p, _) in predicted.items()
        },
        "noise_ceiling": metrics.noise_ceiling(rows[rows.collection.isin(test_rows.collection)], log_runtime),
        "interval": {
            "level": trained["interval"], "log_half_width": float(half_widths["test"].mean()),
            "coverage": coverage(test, predicted["lstm"][0], half_widths["test"]), "coverage_holdout": coverage(holdout, predicted["lstm"][1], half_widths["holdout"]),
        },
        "few_shot": correction.few_shot_errors(test.instance, log_runtime, predicted["lstm"][0], train_utils.errors_of(trained, test.counted.all())["offset_variance"], config.seed),
        "leakage": leakage(test, train, val),
        "worst_misses": worst_misses(test, test_rows, predicted["lstm"][0]),
        "programs": program_lines(test, _names(test_rows), predicted["lstm"][0]),
        "holdout": {},
    }  # fmt: skip
    for collection in sorted(set(holdout_rows.collection)):
        at = np.flatnonzero(holdout_rows.collection == collection)
        part = holdout.subset(at)
        report["holdout"][collection] = {
            "models": {name: metrics.all_metrics(part.instance, part.log_runtime.astype(np.float64), p[at]) for name, (_, p) in predicted.items()},
            "programs": program_lines(part, _names(holdout_rows.iloc[at]), predicted["lstm"][1][at]),
        }  # fmt: skip

    (run / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    write_markdown(run / "report.md", report)
    write_predictions(run / "predictions.csv", test, predicted["lstm"][0], half_widths["test"])
    write_predictions(run / "predictions_holdout.csv", holdout, predicted["lstm"][1], half_widths["holdout"])
    parts = [("test", test, predicted["lstm"][0])] + ([("holdout", holdout, predicted["lstm"][1])] if len(holdout) else [])
    plot_predicted_measured(run / "predicted_measured.png", parts)
    plot_error_by_program(run / "error_by_program.png", test, predicted["lstm"][0])
    plot_regret_by_k(run / "regret_by_k.png", test, {name: p for name, (p, _) in predicted.items()})
    print((run / "report.md").read_text())


def _names(rows):
    """What a person calls each row's program: the folder its dump lies in, or the dump itself."""
    return [Path(file).parent.name or file for file in rows.file]


if __name__ == "__main__":
    run_script(main)
