"""Draw the pictures of README.md: what tuning is worth, and how data flows through the project.

    python docs/draw_figures.py
    python docs/draw_figures.py --format png --folder /tmp

Reads benchmarks/results/tuning.json (written by benchmarks/tuning.py). Writes speedup.svg and flow.svg to docs/figures.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Patch  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TUNING = ROOT / "benchmarks" / "results" / "tuning.json"
GREY, ORANGE, BLUE, INK = "#b8bec6", "#e08e45", "#2f6db5", "#24292f"
SERIES = {"Halide's Adams2019 = 1": GREY, "hand-written": ORANGE, "tuned by this project": BLUE}
OUTLINE = withStroke(linewidth=2, foreground="white")
BAR = 0.3  # width
WIDTH = 9.2  # inches, which GitHub shows at about 90 pixels each
STYLE = {"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "svg.hashsalt": "cost_model_LSTM"}


def bars(applications):
    """[(label, hand-written or None, tuned)] in times as fast as Adams2019, the greatest gain first, then the geometric mean."""
    rows = []
    for application in sorted(applications, key=lambda a: -a["speedup"]):
        written = application["hand_written_ms"]
        rows.append((application["name"], application["adams2019_ms"] / written if written else None, application["speedup"]))
    written = [row[1] for row in rows if row[1]]
    mean = [float(np.exp(np.mean(np.log(values)))) if values else None for values in (written, [row[2] for row in rows])]
    # The mean over those that have a hand-written schedule compares with nothing else in its column unless all have one.
    return [*rows, ("geometric mean", mean[0] if len(written) == len(rows) else None, mean[1])]


def draw_speedup(path, applications):
    """A group of bars an application: Adams2019 is 1, the hand-written schedule where there is one, and the tuned one."""
    rows = bars(applications)
    place = np.arange(len(rows), dtype=float)
    place[-1] += 0.5  # the mean stands apart
    figure, axis = plt.subplots(figsize=(WIDTH, 3.9), layout="constrained")
    for x, (_, *heights) in zip(place, rows):
        shown = [(height, color) for height, color in zip([1, *heights], SERIES.values()) if height]
        for i, (height, color) in enumerate(shown):
            at = x + BAR * (i - (len(shown) - 1) / 2)
            axis.bar(at, height, BAR, color=color)
        axis.text(at, height, f"{height:.2f}", ha="center", va="bottom", fontsize=8.5, path_effects=[OUTLINE])  # of the tuned one, the last
    axis.axhline(1, color=GREY, lw=0.8, zorder=0)
    axis.set_xticks(place, [row[0].replace("_", " ") for row in rows], rotation=35, ha="right", rotation_mode="anchor")
    axis.get_xticklabels()[-1].set_fontweight("bold")
    axis.set_ylabel("times as fast as Adams2019")
    axis.margins(x=0.015, y=0.12)
    axis.tick_params(length=0)
    axis.spines[["top", "right"]].set_visible(False)
    has_series = [any(column) for column in zip(*([1, *heights] for _, *heights in rows))]
    handles = [Patch(color=color, label=label) for (label, color), has in zip(SERIES.items(), has_series) if has]
    axis.legend(handles=handles, frameon=False, loc="upper right")
    save(figure, path)


BOXES = {  # what, in the order in which data flows: (column, row, what it is and where its code lives)
    "programs": (0, 1, "Python Generators,\nbuild(), random ones"),
    "schedules": (1, 1, "of Halide's\nautoschedulers"),
    "measurements": (2, 1, "checked and timed:\nmeasuring/"),
    "dumps": (3, 1, ".sample, .json,\narchives: dumps/"),
    "processed shards": (3, 0, "features.py,\ndata_utils.py"),
    "batches": (2, 0, "padded, by program:\ntrain_utils.py"),
    "predictions": (1, 0, "ms, with intervals:\nmodeling.py"),
    "report": (0, 0, "errors, beside rivals:\nevaluation/"),
}
COMMAND = {"fontsize": 9, "family": "DejaVu Sans Mono"}
BOX_WIDTH, BOX_HEIGHT, COLUMN, ROW = 1.72, 0.92, 2.36, 2.0


def draw_flow(path):
    """Boxes in the order in which data flows, the first row to the right, the second back to the left, and the tuner's loop."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.9), layout="constrained")
    center = {name: (column * COLUMN, row * ROW) for name, (column, row, _) in BOXES.items()}
    for name, (_, _, note) in BOXES.items():
        x, y = center[name]
        corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
        axis.add_patch(FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, "round,pad=0,rounding_size=0.1", fc="#eef3f9", ec=BLUE, lw=1.2))
        axis.text(x, y + 0.24, name, ha="center", va="center", weight="bold", fontsize=11)
        axis.text(x, y - 0.17, note, ha="center", va="center", fontsize=9, linespacing=1.15)
    for start, end in zip(list(BOXES), list(BOXES)[1:]):
        arrow(axis, center[start], center[end], INK)
    # A command that takes several steps stands above or below them, one that takes a single step beside its arrow.
    x = {name: at for name, (at, _) in center.items()}
    top, bottom, middle = ROW + BOX_HEIGHT / 2 + 0.16, -BOX_HEIGHT / 2 - 0.16, ROW / 2
    bracket(axis, x["programs"], x["dumps"], top, "collect_schedules.py", up=True)
    bracket(axis, x["predictions"] + 0.12, x["processed shards"], bottom, "train_model.py", up=False)
    bracket(axis, x["report"], x["predictions"] - 0.12, bottom, "evaluate_model.py", up=False)
    axis.text(x["dumps"] - 0.12, middle, "generate_dataset.py", ha="right", va="center", **COMMAND)
    arrow(axis, center["predictions"], center["schedules"], ORANGE)
    axis.text(x["schedules"] + 0.12, middle + 0.13, "tune_schedule.py", va="center", **COMMAND)
    axis.text(x["schedules"] + 0.12, middle - 0.13, "measures what is predicted fastest", va="center", fontsize=9)
    axis.set(xlim=(-1.0, 3 * COLUMN + 1.0), ylim=(-1.0, ROW + 1.0), aspect="equal")
    axis.axis("off")
    save(figure, path)


def arrow(axis, start, end, color):
    """From the border of the box around `start` to the border of the one around `end`, which lies beside or above or below it."""
    (x0, y0), (x1, y1) = start, end
    dx, dy = np.sign(x1 - x0) * BOX_WIDTH / 2, np.sign(y1 - y0) * BOX_HEIGHT / 2
    properties = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "color": color, "lw": 1.8, "shrinkA": 1, "shrinkB": 1}
    axis.annotate("", (x1 - dx, y1 - dy), (x0 + dx, y0 + dy), arrowprops=properties)


def bracket(axis, left, right, y, command, up):
    """A line with ends that spans the boxes a command takes data through, its name beyond the line."""
    tick = -0.08 if up else 0.08
    axis.plot([left, left, right, right], [y + tick, y, y, y + tick], color=GREY, lw=1.2)
    text = y + 0.06 if up else y - 0.06
    axis.text((left + right) / 2, text, command, ha="center", va="bottom" if up else "top", **COMMAND)


def save(figure, path):
    """Without the time of drawing, so that the same figures give the same file."""
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "figures", help="where the pictures go")
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        draw_speedup(arguments.folder / f"speedup.{arguments.format}", json.loads(TUNING.read_text())["applications"])
        draw_flow(arguments.folder / f"flow.{arguments.format}")


if __name__ == "__main__":
    main()
