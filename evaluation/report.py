"""The contents of report.json, report.md, report.html, the CSV files of predictions, and the plots, which evaluate_model.py writes."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from dumps.parsing import hex_id
from evaluation import intervals, metrics, pages
from evaluation.correction import few_shot_errors
from evaluation.metrics import TITLES

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

DEFAULT_ORIGIN = "adams2019"  # of schedules whose data do not say which autoscheduler proposed them
REPORT_FILES = [
    "report.json",
    "report.md",
    "report.html",
    "predictions.csv",
    "predictions_holdout.csv",
    "predicted_measured.png",
    "error_by_program.png",
    "regret_by_k.png",
]
PROGRAM_COLUMNS = ["name", "schedules", "stages", "fastest_ms", "median_ape", "spearman", "top1_regret", "top5_regret"]


def part_report(rows, table, predicted, own, meta, config):
    """What report.json says of one part of the data: {models, origins, collections, sizes, interval, few_shot, programs}.

    rows : Sequences, or a subset of them; table : their lines of schedules.csv; predicted : {model: log-runtimes (N,)}, with `lstm`, NaN
    where a model can't tell: it is left out where there is one;
    own : the LSTM's RowPredictions; meta : of its checkpoint
    """
    log_runtime, lstm = rows.log_runtime.astype(np.float64), own.log_runtime
    half_widths = intervals.half_widths(meta, rows.inputs, own.spread)

    def scores(at):
        told = {name: p[at] for name, p in predicted.items() if not np.isnan(p[at]).any()}
        return {name: metrics.all_metrics(rows.instance[at], log_runtime[at], p) for name, p in told.items()}

    def scores_by(groups):
        found = {group: np.flatnonzero(groups == group) for group in sorted(set(groups))}
        return {group: {"schedules": len(at), "models": scores(at)} for group, at in found.items()}

    inputs, counts = np.unique(rows.inputs, return_counts=True)
    covariance = meta["errors"][inputs[counts.argmax()]]["covariance"]  # of what most rows come with
    return {
        "models": scores(slice(None)),
        "origins": scores_by(table.get("origin", pd.Series(DEFAULT_ORIGIN, table.index))),
        "collections": scores_by(table.collection),
        "sizes": scores_by(pd.Series([size_of(n) for n in rows.lengths.tolist()], table.index)),
        "interval": intervals.coverage(rows, lstm, half_widths, meta["interval"])
        | {"unfamiliar": float(np.mean(own.outside > intervals.UNFAMILIAR_SHARE))},
        "few_shot": few_shot_errors(
            rows.instance, log_runtime - lstm, half_widths, own.event_shares, covariance, meta["interval"], config.seed
        ),
        "programs": program_lines(rows, names_of(table), lstm),
    }  # fmt: skip


def size_of(n_stages):
    """The size class of a program, in words."""
    return "1 to 5 stages" if n_stages <= 5 else "6 to 15 stages" if n_stages <= 15 else "more than 15 stages"


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
    """How many test programs, and test schedules (identical features), are in the training or validation split, too."""

    def ids(columns, *splits):
        return {row for rows in splits for row in zip(*(getattr(rows, column).tolist() for column in columns))}

    columns = {"programs": ["program"], "schedules": ["program", "schedule"]}
    return {name: len(ids(c, test) & ids(c, train, val)) for name, c in columns.items()}


def seen_programs(trained, here, tested):
    """How many of the `tested` program ids a checkpoint was trained on, by its meta; None where it does not record that.

    here : whether it was trained on the training split that belongs to the tested programs. Then only the checkpoint that it was
    fine-tuned from may have seen them.
    """
    recorded = trained.get("programs", {"train": None})  # earlier versions recorded none
    parts = [ids for name, ids in recorded.items() if name == "init_from" or not here]
    return None if None in parts else len(set(tested) & {program for ids in parts for program in ids})


def worst_misses(rows, table, log_predicted, n=10):
    """The `n` rows with the largest errors, with their files."""
    residual = log_predicted - rows.log_runtime
    worst = np.argsort(-np.abs(residual))[:n]
    return [
        {"file": table.file.iloc[i], "runtime_ms": float(np.exp(rows.log_runtime[i])), "predicted_ms": float(np.exp(log_predicted[i]))}
        for i in worst.tolist()
    ]


def write_predictions(path, rows, log_predicted, half_width):
    """A row a schedule: program, schedule, runtime_ms, predicted_ms, lower_ms, upper_ms."""
    table = pd.DataFrame({
        "program": [hex_id(p) for p in rows.program], "schedule": [hex_id(s) for s in rows.schedule],
        "runtime_ms": np.exp(rows.log_runtime.astype(np.float64)), "predicted_ms": np.exp(log_predicted),
        "lower_ms": np.exp(log_predicted - half_width), "upper_ms": np.exp(log_predicted + half_width),
    })  # fmt: skip
    table.to_csv(path, index=False)


# The report for people: blocks that report.md and report.html show alike


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Table:
    """rows : as long as `columns`, of text and numbers."""

    columns: tuple
    rows: list


TITLE = Heading(1, "Report")


def report_blocks(report, n_programs=None):
    """What report.json holds, for people: Headings, Tables, and lines of text. n_programs : how many test programs are listed."""
    n = report["counts"]["splits"]["test"]
    rows = f"{n['schedules']} schedules of {n['programs']} programs" if report["split_by"] == "program" else f"{n['schedules']} schedules"
    blocks = [TITLE, f"Split by {report['split_by']}; test: {rows} never trained on.", *report["notes"]]
    blocks += [models_table(report["models"]), *(f"Without {name}: {why}." for name, why in report["left_out"].items())]
    blocks += [*uncertainty_lines(report), *few_shot_blocks(report["few_shot"])]
    misses = [tuple(line[c] for c in ("file", "runtime_ms", "predicted_ms")) for line in report["worst_misses"]]
    blocks += [Heading(2, "Worst misses"), Table(("file", "measured ms", "predicted ms"), misses), *group_blocks(report)]
    blocks += [Heading(2, "Test programs, worst predicted first"), programs_table(report["programs"][:n_programs])]
    for collection, found in report["holdout"].items():
        blocks += [Heading(2, f"Holdout: {collection}"), models_table(found["models"]), interval_line(found["interval"], "rows")]
        blocks += [*few_shot_blocks(found["few_shot"]), *group_blocks(found), programs_table(found["programs"])]
    return blocks


def models_table(models):
    """The Table of {model: {metric: value}}."""
    return Table(("model", *TITLES.values()), [(name, *(scores[c] for c in TITLES)) for name, scores in models.items()])


def programs_table(lines):
    return Table(tuple(PROGRAM_COLUMNS), [tuple(line[c] for c in PROGRAM_COLUMNS) for line in lines])


def few_shot_blocks(lines):
    if not lines:
        return []
    columns = {
        "k": "k", "programs": "programs", "mse_log": "MSE log", "uncorrected_mse_log": "not corrected", "median_ape": "median APE %",
        "uncorrected_median_ape": "not corrected", "coverage": "in the intervals",
    }  # fmt: skip
    return [
        Heading(3, "After measuring k schedules of a new program"),
        "Errors on its other schedules, corrected by those k and not; and the share of them within their corrected intervals.",
        Table(tuple(columns.values()), [tuple(line[key] for key in columns) for line in lines]),
    ]


def group_blocks(found):
    """The metrics of each kind of schedule and of each size of program, where there is more than one."""
    return [
        block
        for title, groups in (("", found["origins"]), ("programs of ", found["sizes"]))
        for name, group in (groups.items() if len(groups) > 1 else ())
        for block in (Heading(3, f"{group['schedules']} schedules of {title}{name}"), models_table(group["models"]))
    ]


def uncertainty_lines(report):
    """Confidence intervals, noise ceiling, coverage and leakage, a line each."""
    lines = []
    if low_high := report["confidence"].get("lstm"):
        ranges = [f"{TITLES[k]} {_number(low)} to {_number(high)}" for k, (low, high) in low_high.items() if low is not None]
        lines.append(f"Confidence intervals of the LSTM (bootstrap over programs): {'; '.join(ranges)}.")
    if ceiling := report["noise_ceiling"]:
        lines.append(
            f"Noise ceiling, from {ceiling['repeated_schedules']} repeated schedules: MSE log {ceiling['mse_log']:.5f}, median APE "
            f"{ceiling['median_ape']:.2f} %; two measurements differ by {ceiling['median_difference']:.2f} % in the median, "
            f"{ceiling['p90_difference']:.2f} % at the 90th percentile."
        )
    else:
        lines.append("Noise ceiling: unknown, no schedule was measured twice.")
    lines.append(interval_line(report["interval"], "test rows"))
    seen = report["leakage"]
    expected = " (a split by schedule shares programs by design)" if report["split_by"] == "schedule" else ""
    shared = f"{seen['programs']} test programs and {seen['schedules']} test schedules"
    lines.append(f"Leakage: {shared} are in the training or validation split{expected}.")
    return lines


def interval_line(found, rows):
    return (
        f"Intervals: {found['coverage']:.1%} of the {rows} lie within the {found['level']:.0%} interval, "
        f"{found['coverage_by_program']:.1%} where each program weighs the same "
        f"(a factor of {np.exp(found['log_half_width']):.2f} either way). {found['unfamiliar']:.1%} have features far "
        "outside what was seen in training."
    )


def _number(value):
    return "-" if value is None or np.isnan(value) else f"{value:.3g}" if abs(value) >= 100 else f"{value:.3f}"


def write_markdown(path, blocks):
    """report.md."""
    path.write_text("\n".join(f"{_markdown(block)}\n" for block in blocks))


def _markdown(block):
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Table(columns, rows):
            cells = [[str(value) if isinstance(value, (str, int)) else _number(value) for value in row] for row in rows]
            lines = [" | ".join(row) for row in (columns, *cells)]
            return "\n".join([f"| {lines[0]} |", "|---" * len(columns) + "|", *(f"| {line} |" for line in lines[1:])])
    return block


def write_page(path, blocks, figures):
    """report.html: the blocks, with tables that sort, and below the first table the figures {name: (figure, caption)}, closed then."""
    blocks = [block for block in blocks if block != TITLE]
    at = next(i for i, block in enumerate(blocks, 1) if isinstance(block, Table))
    drawn = [pages.figure(figure, name, caption) for name, (figure, caption) in figures.items()]
    path.write_text(pages.page("Evaluation", [*map(_html, blocks[:at]), *drawn, *map(_html, blocks[at:])]))


def _html(block):
    match block:
        case Heading(level, text):
            return pages.element(f"h{level}", text)
        case Table(columns, rows):
            return pages.table(columns, rows)
    return pages.paragraph(block)


# Plots


def draw_predicted_measured(parts):
    """parts : (name, rows, log_predicted) each."""
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    for name, rows, log_predicted in parts:
        axis.loglog(
            np.exp(rows.log_runtime), np.exp(log_predicted), ".", ms=4, alpha=0.5, label=name, rasterized=True
        )  # thousands of points
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], "k-", lw=0.8)
    axis.set(xlabel="measured, ms", ylabel="predicted, ms")
    axis.legend()
    return figure


def draw_error_by_program(rows, log_predicted):
    residual = log_predicted - rows.log_runtime
    instances = np.unique(rows.instance)
    groups = sorted((residual[rows.instance == i] for i in instances), key=np.median)
    figure, axis = plt.subplots(figsize=(10, 3.5), layout="constrained")
    axis.boxplot(groups, widths=0.7, showfliers=False, medianprops={"color": "C3"})
    axis.axhline(0, color="k", lw=0.8)
    axis.set(xlabel="test programs", ylabel="ln predicted - ln measured", xticks=[])
    return figure


def draw_regret_by_k(rows, predicted):
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
    return figure


def names_of(rows):
    """A readable name of each row's program: the folder of its dump, or the dump itself."""
    return [Path(file).parent.name or file for file in rows.file]
