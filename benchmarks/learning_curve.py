"""What more measurements are worth: the error on the same test programs, learnt from an eighth, a quarter, a half and all of the others.

With --init_from also what a model of another machine is worth. "{fold}" in its path is the fold's number: the folds of
cross_validation.py hold the same programs for the test, so their models have not seen these on the other machine either.

    python benchmarks/learning_curve.py
    python benchmarks/learning_curve.py --first_folds 2 --plot benchmarks/results/learning_curve.png
    python benchmarks/learning_curve.py --raw_path dumps.tar.xz --name json_dumps
    python benchmarks/learning_curve.py --raw_path data/other --init_from "runs/folds/shipped/fold_{fold}/best.safetensors" --name other

For each share and fold (of 5, or --folds; all of them, or the --first_folds) it copies the dumps of the fold's test programs and of that
share of all others into runs/learning_curve/NAME, runs the three scripts on them, and writes table.json and learning_curve.png there.
Which split a program is in depends on the program alone, so leaving others out changes nothing for those that stay.
"""

import shutil
from functools import partial

import matplotlib
import numpy as np
import orjson
from cross_validation import ROOT, n_folds, run_fold, run_folds
from pydantic import Field

from config import Config, UserError, load_config, run_script
from features import CALLS, LOWERED

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import data_utils
from dumps.companions import LOWERED_SUFFIX, schedule_of
from dumps.files import Unusable, iter_dumps, read_bytes
from dumps.parsing import parse_dump

MODELS = ("lstm", "hist_gradient_boosting")


class CurveConfig(Config):
    name: str = Field("shipped", min_length=1, description="folder under runs/learning_curve")
    shares: str = Field("0.125,0.25,0.5,1", description="of the programs that are not for the test, separated by commas")
    first_folds: int = Field(0, ge=0, description="how many of the folds to run, two or more; 0: all")
    plot: str = Field("", description="file for the plot; empty: learning_curve.png in that folder")


def copy_share(config, share, folder):
    """Copy the dumps of the test programs and of `share` of the others to `folder`, which becomes a raw_path."""
    shutil.rmtree(folder, ignore_errors=True)
    for dump in iter_dumps(config.raw_path, config.holdout_names):
        try:
            dump.data = read_bytes(dump)
            program = parse_dump(dump, config.max_runtime_ms).program
        except Unusable:
            continue
        is_test = data_utils.assign_split(program, config) == "test"
        if is_test or data_utils.hash_share("learning curve", program) < share:
            path = folder / dump.collection / dump.file.replace("/", "_") / dump.file.split("/")[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(dump.data)
            if dump.bench is not None:
                (path.parent / "bench.txt").write_bytes(dump.bench)
            if dump.calls is not None:
                calls = dict(zip(CALLS, dump.calls.T.tolist()))
                (path.parent / "program.json").write_bytes(orjson.dumps({"calls": calls}))
            if dump.lowered is not None:
                counts = dict(zip(LOWERED, dump.lowered.T.tolist()))
                (path.parent / (schedule_of(path.name) + LOWERED_SUFFIX)).write_bytes(orjson.dumps(counts))


def run_on_share(config, share, folder, fold):
    """The report of a fold that learns from `share` of its programs."""
    raw = folder / f"raw_{fold}"
    copy_share(config.model_copy(update={"folds": n_folds(config), "fold": fold}), share, raw)
    own = {"raw_path": str(raw), "init_from": config.init_from.replace("{fold}", str(fold))}
    return run_fold(config.model_copy(update=own), fold, folder / f"share_{share:g}")


def plot(points, path):
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for model in MODELS:
        programs, mean, spread = np.array([[p["programs"], *p[model]] for p in points]).T
        axis.errorbar(programs, mean, spread, fmt="o-", capsize=3, label=model)
    axis.set(xlabel="programs learnt from", ylabel="mse_log on unseen programs", xscale="log")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    config = load_config(CurveConfig)
    if config.first_folds == 1:
        raise UserError("--first_folds 1: one fold has no spread; give 2 or more, or 0 for all")
    try:
        shares = [float(share) for share in config.shares.split(",")]
    except ValueError:
        raise UserError(f"--shares {config.shares}: give numbers up to 1, separated by commas") from None
    folder = ROOT / "runs" / "learning_curve" / config.name
    points = []
    for share in shares:
        reports = run_folds(config, partial(run_on_share, config, share, folder), range(config.first_folds or n_folds(config)))
        errors = {m: [r["models"][m]["mse_log"] for r in reports] for m in MODELS}
        medians = {m: np.mean([r["models"][m]["median_ape"] for r in reports]) for m in MODELS}
        programs = np.mean([r["counts"]["splits"]["train"]["programs"] + r["counts"]["splits"]["val"]["programs"] for r in reports])
        points.append({"share": share, "programs": programs, **{m: [np.mean(e), np.std(e, ddof=1)] for m, e in errors.items()}})
        cells = ", ".join(f"{m} {np.mean(e):.3f} ± {np.std(e, ddof=1):.3f} ({medians[m]:.1f} %)" for m, e in errors.items())
        print(f"{share:g} of the programs, {programs:.0f} in the mean: mse_log (median error) {cells}", flush=True)
    (folder / "table.json").write_bytes(orjson.dumps(points, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    path = config.plot or folder / "learning_curve.png"
    plot(points, path)
    print(f"plot: {path}")


if __name__ == "__main__":
    run_script(main)
