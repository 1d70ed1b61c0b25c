"""What the measurements in raw_path are: the counts, distributions and noise of data/README.md.

    python benchmarks/data_sheet.py
    python benchmarks/data_sheet.py --plot data/distributions.png

Reads the `program.json` records of the collections that collect_schedules.py packed (archives under raw_path). Prints a table with a
line a collection, and draws how stages, runtimes and slowest/fastest ratios of the training programs lie beside those of applications.
"""

import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import orjson
import pandas as pd
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")

import matplotlib.pyplot as plt

from config import Config, UserError, load_config, run_script
from dumps.archives import without_suffixes
from dumps.companions import ADAMS2019
from measuring import machine


class SheetConfig(Config):
    plot: str = Field("", description="write the plot of the distributions to this file; empty: none")


def read_candidates(path):
    """A row for each candidate of a packed collection: collection, program, key, origin, outcome, runtime_ms, noisy, stages, first_pass_ms,
    machine: the processor in its target, as_now: whether its passes were those of today."""
    rows, as_now, today, processor = [], False, machine.describe_machine()["protocol"], ""
    with tarfile.open(path) as archive:
        for member in archive:
            if Path(member.name).name == "collection.json":
                noted = orjson.loads(archive.extractfile(member).read())["machine"]
                protocol, tuned = noted["protocol"], re.search(r"tune_(\w+)", noted.get("target", ""))
                processor = tuned[1] if tuned else "unknown"
                as_now = all(protocol.get(key) == today[key] for key in ("pass", "pass_seconds", "runtime"))
            elif Path(member.name).name == "program.json":
                record = orjson.loads(archive.extractfile(member).read())
                for key, c in record["candidates"].items():
                    rows.append({
                        "collection": without_suffixes(path.name), "program": record["name"], "key": key, "outcome": c["outcome"],
                        "origin": c.get("origin", ADAMS2019),
                        "runtime_ms": c.get("runtime_ms", np.nan), "noisy": c.get("noisy", False), "stages": len(record["stages"]),
                        "first_pass_ms": c.get("passes_ms", [np.nan])[0],
                    })  # fmt: skip
    return [row | {"as_now": as_now, "machine": processor} for row in rows]


def repeat_differences(rows):
    """Share by which the second measurement of a schedule, in a fresh process, differs from the first, (n,)."""
    runtime = {(r.program, r.key): r.runtime_ms for r in rows.itertuples() if r.outcome == "measured"}
    pairs = [(runtime[program, key], runtime.get((program, key.rstrip("r")))) for program, key in runtime if key.endswith("r")]
    return np.array([abs(np.log(second / first)) for second, first in pairs if first])


def median_p90(shares):
    return f"{np.median(shares):.1%}, {np.quantile(shares, 0.9):.1%}"


def describe(name, rows):
    """A line of the table, {column: text}."""
    measured = rows[(rows.outcome == "measured") & rows.key.str.isdecimal()]
    failures = Counter(rows.outcome[~rows.outcome.isin(["measured", "duplicate"])])
    differences = repeat_differences(rows)
    sizes = measured.groupby(["collection", "program"]).size()
    spread = measured.groupby(["collection", "program"]).runtime_ms.agg(lambda ms: ms.max() / ms.min())
    noise = f"{median_p90(differences)} ({len(differences)})" if len(differences) else "-"
    excess = (measured.first_pass_ms / measured.runtime_ms - 1).dropna()
    stages, ms = measured.stages, measured.runtime_ms
    return {
        "collection": name,
        "programs": f"{len(sizes):,}",
        "schedules": f"{len(measured):,}",
        "of them not Adams2019's": f"{(measured.origin != ADAMS2019).sum():,}",
        "programs with 8 or more": f"{(sizes >= 8).sum():,}",
        "stages, median (range)": f"{stages.median():.0f} ({stages.min()}-{stages.max()})",
        "ms, median (range)": f"{ms.median():.2g} ({ms.min():.2g}-{ms.max():,.0f})",
        "slowest/fastest, median": f"{spread.median():.1f}",
        "noisy": f"{measured.noisy.mean():.1%}",
        "repeats differ: median, p90 (n)": noise,
        "one pass alone is slower by: median, p90": median_p90(excess) if len(excess) else "-",
        "failures": ", ".join(f"{n} {reason}" for reason, n in failures.most_common()) or "-",
    }


def plot(path, rows):
    measured = rows[(rows.outcome == "measured") & rows.key.str.isdecimal()]
    programs = (
        measured.groupby(["collection", "program"])
        .agg(stages=("stages", "first"), fastest=("runtime_ms", "min"), slowest=("runtime_ms", "max"))
        .reset_index()
    )
    programs["ratio"] = programs.slowest / programs.fastest
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    is_application = programs.collection.str.startswith("app")
    for axis, column, title in zip(
        axes, ("stages", "fastest", "ratio"), ("stages of a program", "its fastest schedule, ms", "slowest / fastest")
    ):
        bins = np.geomspace(programs[column].min(), programs[column].max() * 1.001, 24)
        for part, label in ((programs[~is_application], "training programs"), (programs[is_application], "applications")):
            if len(part):
                axis.hist(part[column], bins, weights=np.full(len(part), 1 / len(part)), histtype="step", label=f"{label} ({len(part)})")
        axis.set(xscale="log", xlabel=title, ylabel="share of programs")
    axes[0].set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axes[0].minorticks_off()
    axes[2].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    config = load_config(SheetConfig)
    archives = sorted(path for path in Path(config.raw_path).rglob("*.tar.xz"))
    rows = pd.DataFrame([row for path in archives for row in read_candidates(path)])
    if rows.empty:
        raise UserError(f"{config.raw_path}: no packed collection in it; collect_schedules.py --pack true makes them")
    training = rows[~rows.collection.str.startswith("app")]
    parts = [*rows.groupby("collection"), ("**training programs**", training)]
    parts += [(f"those of the machine `{name}`", own) for name, own in training.groupby("machine")]
    parts += [("those measured in the passes of today", training[training.as_now])] if training.as_now.any() else []
    lines = [describe(name, part) for name, part in parts]
    print("\n".join([f"| {' | '.join(lines[0])} |", "|---" * len(lines[0]) + "|", *(f"| {' | '.join(line.values())} |" for line in lines)]))
    if config.plot:
        plot(config.plot, rows)


if __name__ == "__main__":
    run_script(main)
