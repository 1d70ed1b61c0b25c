"""What tuning is worth on real applications that the model was never trained on, beside other ways to spend the same measurements.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --applications blur,harris --budget 16

Runs tune_schedule.py with --compare for each application in pipelines/, in runs/tuning/NAME, and prints the table. Writes tuning.json
(which docs/draw_figures.py draws), tuning.md and tuning.png to benchmarks/results, or to --results. Speed-ups are over Adams2019 with
its beam of 32, in the same run. Started again it goes on.
"""

import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import orjson
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")

import matplotlib.pyplot as plt
from common import chosen_files

from config import Config, UserError, load_config, make_folder, run_script

RIVALS = ("random", "adams2019_retrained", "mullapudi2016", "li2018")


class TuningConfig(Config):
    name: str = Field("applications", min_length=1, description="folder under runs/tuning for this table")
    applications: str = Field("", description="files of pipelines/ without their suffix, separated by commas; empty: all")
    budget: int = Field(32, ge=1, description="measurements for each way to choose")
    proposals: int = Field(400, ge=1, description="as of tune_schedule.py")
    results: str = Field("benchmarks/results", min_length=1, description="folder for tuning.json, tuning.md and tuning.png")


def tune(config, file, folder):
    """The report of one application, or None where it could not be tuned (it has said why)."""
    report = folder / "report.json"
    if not report.exists():
        flags = [f"--{key}={getattr(config, key)}" for key in ("budget", "proposals", "num_threads")]
        flags += [f"--output={folder}", "--compare=true"]
        if subprocess.run([sys.executable, ROOT / "tune_schedule.py", file, *flags]).returncode:
            return None
    return orjson.loads(report.read_bytes())


def adams2019_ms(report):
    """Its choice's time: the first measurement or those at the end, whichever is faster, so that nobody gains by a slow first one."""
    return min(report["search"][0], report["adams2019_ms"])


def speedups_found(report):
    """{way to choose: times as fast as Adams2019} of what each found in one application; a way that found nothing is left out.

    "tuned" and the rivals are what the search measured, over the faster of Adams2019's measurements; "confirmed" is the tuned
    schedule over Adams2019's, both measured again in fresh processes, interleaved.
    """
    best = {name: rival["best_ms"] for name, rival in report["rivals"].items()} | {"tuned": report["search"][-1]}
    return {name: adams2019_ms(report) / ms for name, ms in best.items() if ms} | {"confirmed": report["speedup"]}


def summary(report):
    """What tuning.json keeps of one application; `rivals` are {name: times as fast as Adams2019}."""
    found = speedups_found(report)
    return {
        "name": report["program"], "stages": report["stages"], "adams2019_ms": report["adams2019_ms"],
        "hand_written_ms": report.get("hand_written_ms"), "best_ms": report["best_ms"], "speedup": report["speedup"],
        "rivals": {name: found[name] for name in RIVALS if name in found},
    }  # fmt: skip


def table(reports):
    """Markdown: a line an application, and the geometric means; the columns are those of speedups_found."""
    columns = ["confirmed", "tuned", *RIVALS]
    header = "| application | stages | Adams2019, ms | tuned, ms | " + " | ".join(columns) + " | needed: tuned, random, retrained |"
    lines = [header, "|---" * (5 + len(columns)) + "|"]
    speedups = {name: [] for name in columns}
    for report in reports:
        found = speedups_found(report)
        for name, speedup in found.items():
            speedups[name].append(speedup)
        cells = [f"{found[name]:.2f}" if name in found else "-" for name in columns]
        needed = ", ".join(str(report["within_5_percent"][name] or "-") for name in ("lstm", "random", "adams2019_retrained"))
        ms = f"{report['adams2019_ms']:.3f} | {report['best_ms']:.3f}"
        lines.append(f"| {report['program']} | {report['stages']} | {ms} | " + " | ".join(cells) + f" | {needed} |")
    means = [f"{np.exp(np.mean(np.log(speedups[name]))):.2f}" if speedups[name] else "-" for name in columns]
    lines.append("| geometric mean | | | | " + " | ".join(means) + " | |")
    return "\n".join(lines)


def comparison(reports):
    """How the tuned schedules compare with what each other way to choose found: a line each."""
    lines = []
    for name in ("lstm", "random", "adams2019_retrained"):
        needed = [report["within_5_percent"][name] or math.inf for report in reports]
        median = f"{np.median(needed):g} measurements" if np.isfinite(np.median(needed)) else "more than were made"
        line = f"{name}: within 5 % of the fastest known on {np.isfinite(needed).sum()} of {len(reports)}, after {median} in the median"
        if name != "lstm":
            ratios = [report["rivals"][name]["best_ms"] / report["search"][-1] for report in reports if report["rivals"][name]["best_ms"]]
            line += f"; tuned is {np.exp(np.mean(np.log(ratios))):.2f} x as fast"
        lines.append(f"- {line}")
    return "\n".join(lines)


def plot(path, reports):
    """Speed-up over Adams2019 against measurements, the geometric mean over applications."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name, label in (("lstm", "tuned"), ("random", "random choice"), ("adams2019_retrained", "Adams2019 retrained")):
        curves = [r["search"] if name == "lstm" else r["rivals"][name]["search"] for r in reports]
        length = max(map(len, curves))
        padded = [curve + [curve[-1]] * (length - len(curve)) for curve in curves]
        ratio = np.array([[adams2019_ms(report) / ms for ms in curve] for report, curve in zip(reports, padded)])
        axis.plot(range(1, length + 1), np.exp(np.log(ratio).mean(0)), ".-", label=label)
    axis.set(xlabel="schedules measured", ylabel="times as fast as Adams2019")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    config = load_config(TuningConfig)
    files, folder = chosen_files(config.applications), ROOT / "runs" / "tuning" / config.name
    reports = [report for name, file in files.items() if (report := tune(config, file, folder / name)) and report["speedup"]]
    if not reports:
        raise UserError("none of the applications could be tuned")
    text = f"{table(reports)}\n\n{comparison(reports)}"
    print(text)
    results = make_folder(ROOT / config.results, "results")
    (results / "tuning.md").write_text(text + "\n")
    settings = {"budget": config.budget, "proposals": config.proposals}
    written = settings | {"applications": [summary(report) for report in reports]}
    (results / "tuning.json").write_bytes(orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    plot(results / "tuning.png", reports)


if __name__ == "__main__":
    run_script(main)
