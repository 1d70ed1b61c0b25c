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

RIVALS = ("random", "random_changes", "adams2019_retrained", "mullapudi2016", "li2018")
EARLY = 32  # measurements


class TuningConfig(Config):
    name: str = Field("applications", min_length=1, description="folder under runs/tuning for this table")
    applications: str = Field("", description="files of pipelines/ without their suffix, separated by commas; empty: all")
    budget: int = Field(32, ge=1, description="measurements for each way to choose")
    proposals: int = Field(400, ge=1, description="as of tune_schedule.py")
    minutes: float = Field(0, ge=0, description="as of tune_schedule.py, for each application; 0: no limit")
    compare: bool = Field(True, description="measure the rivals, too: for each as many schedules again")
    results: str = Field("benchmarks/results", min_length=1, description="folder for tuning.json, tuning.md and tuning.png")


def tune(config, file, folder):
    """The report of one application, or None where it could not be tuned (it has said why)."""
    report = folder / "report.json"
    if not report.exists():
        flags = [f"--{key}={getattr(config, key)}" for key in ("budget", "proposals", "num_threads", "minutes", "compare")]
        flags.append(f"--output={folder}")
        if subprocess.run([sys.executable, ROOT / "tune_schedule.py", file, *flags]).returncode:
            return None
    return orjson.loads(report.read_bytes())


def fastest_of_adams2019(report):
    """Milliseconds of Adams2019's own choice: the faster of its measurement in the search, where it is noted, and of the fresh runs."""
    return min(report["adams2019_ms"], report.get("adams2019_search_ms") or math.inf)


def found_by_search(report, n=None):
    """{way to choose: times as fast as Adams2019} of the fastest that each way measured, told by the measurements that it searched with.

    n : of the first so many that the LSTM chose; None: of all. Those are what it chose by, so a little optimistic, for every way alike.
    """
    adams2019_ms = fastest_of_adams2019(report)
    best = {"lstm": report["search"][:n][-1]} | {name: rival["best_ms"] for name, rival in report["rivals"].items()}
    return {name: adams2019_ms / ms for name, ms in best.items() if ms}


def summary(report):
    """What tuning.json keeps of one application. Times are of fresh runs that took no part in choosing; rivals as found_by_search."""
    baselines = [ms for ms in (report["adams2019_ms"], report.get("hand_written_ms")) if ms]
    kept = {key: report.get(key) for key in ("stages", "adams2019_ms", "hand_written_ms", "best_ms", "speedup", "origin", "measured")}
    found = found_by_search(report)
    rivals = {name: found[name] for name in ("lstm", *RIVALS) if name in found}
    return {"name": report["program"], **kept, "against_better": min(baselines) / report["best_ms"], "rivals": rivals}


def geometric_mean(values):
    return f"{np.exp(np.mean(np.log(values))):.2f}" if values else "-"


def table(reports):
    """Markdown: a line an application, and the geometric means; columns are those of summary."""
    rows = [summary(report) for report in reports]
    rivals = [name for name in ("lstm", *RIVALS) if any(name in row["rivals"] for row in rows)]
    ratios = ["against Adams2019", "against the better of both"]
    header = ["application", "stages", "measured", "Adams2019, ms", "hand-written, ms", "tuned, ms", *ratios, "origin", *rivals]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        ms = [f"{row[key]:.3f}" if row[key] else "-" for key in ("adams2019_ms", "hand_written_ms", "best_ms")]
        found = [f"{row['rivals'][name]:.2f}" if name in row["rivals"] else "-" for name in rivals]
        cells = [row["name"], str(row["stages"]), str(row["measured"]), *ms, f"{row['speedup']:.2f}", f"{row['against_better']:.2f}"]
        lines.append(f"| {' | '.join([*cells, row['origin'], *found])} |")
    means = [geometric_mean([row[key] for row in rows]) for key in ("speedup", "against_better")]
    means += ["", *(geometric_mean([row["rivals"][name] for row in rows if name in row["rivals"]]) for name in rivals)]
    lines.append(f"| geometric mean | | | | | | {' | '.join(means)} |")
    return "\n".join(lines)


def comparison(reports):
    """What was found within 32 measurements, the worst answer, and how soon each way to choose came near the fastest known: a line each."""
    early = [found_by_search(report, EARLY)["lstm"] for report in reports]
    worst = min((summary(report) for report in reports), key=lambda row: row["against_better"])
    lines = [
        f"- within {EARLY} measurements: {geometric_mean(early)} times as fast as Adams2019, by the measurements of the search",
        f"- the worst against the better of both: {worst['against_better']:.2f}, {worst['name']}",
    ]
    for name in ("lstm", "random", "random_changes", "adams2019_retrained"):
        needed = [report["within_5_percent"][name] or math.inf for report in reports if name in report["within_5_percent"]]
        if needed:
            median = f"{np.median(needed):g} measurements" if np.isfinite(np.median(needed)) else "more than were made"
            near = np.isfinite(needed).sum()
            lines.append(f"- {name}: within 5 % of the fastest known on {near} of {len(needed)}, after {median} in the median")
    return "\n".join(lines)


def plot(path, reports):
    """Speed-up over Adams2019 against measurements, the geometric mean over applications."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    labels = {"lstm": "tuned", "random": "random choice", "random_changes": "random changes", "adams2019_retrained": "Adams2019 retrained"}
    for name, label in labels.items():
        curves = [(r, r["search"] if name == "lstm" else r["rivals"].get(name, {}).get("search")) for r in reports]
        curves = [(r, curve) for r, curve in curves if curve]
        length = max((len(curve) for _, curve in curves), default=0)
        ratio = [[fastest_of_adams2019(r) / ms for ms in curve + curve[-1:] * (length - len(curve))] for r, curve in curves]
        if ratio:
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
