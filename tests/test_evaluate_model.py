"""evaluate_model.py as a user runs it, in a temporary folder, on small dumps."""

import shutil

import numpy as np
import orjson
import pandas as pd
import pytest
from conftest import SMALL, expect_user_error, flags, meta_of, run
from html_pages import Page, visit

import data_utils
import train_utils
from batches import Sequences
from config import UserError, load_config
from evaluation import intervals, metrics
from features import INPUTS


def test_generate_train_evaluate(trained):
    folder, (generated, trained_output, evaluated) = trained
    assert "kept 104" in generated and "epoch   3/3" in trained_output and "hist_gradient_boosting" in evaluated
    run_path = folder / "run"
    for name in (
        "best.safetensors",
        "last.safetensors",
        "config.yaml",
        "learning_curve.png",
        "report.json",
        "report.md",
        "regret_by_k.png",
    ):
        assert (run_path / name).stat().st_size > 0
    assert list(run_path.glob("events.out.tfevents.*"))
    log = pd.read_csv(run_path / "metrics.csv")
    assert log.epoch.tolist() == [1, 2, 3] and log.val_mse_log.notna().all()

    report = orjson.loads((run_path / "report.json").read_bytes())
    assert set(report["models"]) == {
        "lstm",
        "lstm_without_lowered_counts",
        "lstm_lowered_counts_alone",
        "constant",
        "hist_gradient_boosting",
        "adams2019",
    }
    assert report["models"]["lstm"] != report["models"]["lstm_without_lowered_counts"]
    assert "8 schedules" in report["left_out"]["adams2019_retrained"]
    names = {
        "mse_log",
        "r2_log",
        "mse",
        "mape",
        "median_ape",
        "spearman",
        "kendall",
        "pairwise_accuracy",
        "top1_regret",
        "top5_regret",
        "correct_ordering_rate",
    }
    assert all(set(scores) == names for scores in report["models"].values())
    assert report["models"]["constant"]["spearman"] == 0
    assert report["holdout"]["applications"]["models"]["lstm"]["mse_log"] > 0 and len(report["holdout"]["applications"]["programs"]) == 2
    assert report["split_by"] == "program" and report["counts"]["kept"] == 104
    assert report["leakage"] == {"programs": 0, "schedules": 0}
    assert [line["k"] for line in report["few_shot"]] == [1, 3] and len(report["worst_misses"]) == 10
    assert all((folder / "raw" / miss["file"]).exists() for miss in report["worst_misses"])
    low, high = report["confidence"]["lstm"]["mse_log"]
    assert low <= report["models"]["lstm"]["mse_log"] <= high


def test_report_agrees_with_its_predictions(trained):
    folder, _ = trained
    report = orjson.loads((folder / "run" / "report.json").read_bytes())
    rows = pd.read_csv(folder / "run" / "predictions.csv", dtype={"program": str, "schedule": str})
    assert rows.columns.tolist() == ["program", "schedule", "runtime_ms", "predicted_ms", "lower_ms", "upper_ms"]
    residual = np.log(rows.predicted_ms / rows.runtime_ms)
    assert report["models"]["lstm"]["mse_log"] == pytest.approx(float(np.mean(residual**2)), rel=1e-5)
    assert (rows.lower_ms < rows.predicted_ms).all() and (rows.predicted_ms < rows.upper_ms).all()
    assert set(rows.program) == set(meta_of(folder)["split"]["programs"]["test"])
    assert len(pd.read_csv(folder / "run" / "predictions_holdout.csv")) == 8


def test_the_page_shows_what_the_report_holds(trained):
    folder, _ = trained
    report, page = report_of(folder / "run"), Page((folder / "run" / "report.html").read_text())
    assert all(table["sortable"] for table in page.tables) and {"Worst misses", "Holdout: applications"} <= set(page.headings)
    models = {row[0]: row[1:] for row in page.table("model")}
    assert models == {name: [scores[metric] for metric in metrics.TITLES] for name, scores in report["models"].items()}
    misses = [[miss["file"], miss["runtime_ms"], miss["predicted_ms"]] for miss in report["worst_misses"]]
    assert page.table("file", "measured ms") == misses
    assert [row[0] for row in page.table("name", "stages")] == [line["name"] for line in report["programs"]]
    assert all(note in page.text for note in report["notes"])
    visited = visit(folder / "run" / "report.html")
    assert len(visited["figures"]) == 3 and len(visited["tables"]) == len(page.tables)


def test_the_same_seed_gives_the_same_report(trained):
    folder, _ = trained
    again = folder / "again"
    arguments = [f"--run_path={again}", f"--data_path={folder / 'data'}", *SMALL]
    run("train_model.py", *arguments)
    run("evaluate_model.py", *arguments)
    for name in ("report.json", "report.md", "report.html"):
        assert (again / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_split_by_schedule_reports_the_program_mean(trained, tmp_path):
    folder, _ = trained
    arguments = [*flags(tmp_path, folder / "raw"), "--split_by=schedule"]
    for script in ("generate_dataset.py", "train_model.py", "evaluate_model.py"):
        run(script, *arguments)
    report = orjson.loads((tmp_path / "run" / "report.json").read_bytes())
    assert report["models"]["program_mean"]["mse_log"] < report["models"]["constant"]["mse_log"]


def test_a_checkpoint_is_not_tested_on_what_it_was_trained_on(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    arguments = [*flags(tmp_path, folder / "raw"), "--folds=2", "--fold=1"]
    run("generate_dataset.py", *arguments)
    expect_user_error(run("evaluate_model.py", *arguments, check=False), "trained on")


def test_evaluating_without_a_checkpoint(trained, tmp_path):
    folder, _ = trained
    arguments = [f"--data_path={folder / 'data'}", f"--run_path={tmp_path / 'none'}", *SMALL]
    expect_user_error(run("evaluate_model.py", *arguments, check=False), "best.safetensors", "train_model.py")
    expect_user_error(run("train_model.py", *arguments, "--resume=true", check=False), "last.safetensors")


def evaluate(folder, run_path, *more, check=True):
    own = [f"--data_path={folder / 'data'}", f"--run_path={run_path}", "--bootstrap_samples=5", "--device=cpu"]
    return run("evaluate_model.py", *own, *more, check=check)


def report_of(run_path):
    return orjson.loads((run_path / "report.json").read_bytes())


def test_coverage_is_that_of_the_predictions(trained):
    folder, _ = trained
    report = report_of(folder / "run")
    for found, name in ((report["interval"], "predictions"), (report["holdout"]["applications"]["interval"], "predictions_holdout")):
        rows = pd.read_csv(folder / "run" / f"{name}.csv", dtype={"program": str})
        inside = rows.runtime_ms.between(rows.lower_ms, rows.upper_ms)
        assert found["coverage"] == pytest.approx(inside.mean())
        assert found["coverage_by_program"] == pytest.approx(inside.groupby(rows.program).mean().mean())
        widths = np.log(rows.upper_ms / rows.lower_ms)
        assert widths.mean() == pytest.approx(2 * found["log_half_width"]) and widths.std() > 0, "wider where members disagree"
    _, meta = train_utils.read_checkpoint(folder / "run" / "best.safetensors")
    assert meta["coverage"]["applications"] == report["holdout"]["applications"]["interval"]
    assert meta["errors"]["all"]["programs"] == len(meta_of(folder)["split"]["programs"]["val"])


def test_each_part_says_the_same_things(trained):
    folder, _ = trained
    report = report_of(folder / "run")
    for part in (report, report["holdout"]["applications"]):
        assert {"models", "origins", "interval", "few_shot", "programs"} <= set(part)
        assert set(part["origins"]) == {"adams2019"} and part["origins"]["adams2019"]["models"] == part["models"]
    assert report["assumed_cores"] >= 1 and "how many cores" in (folder / "run" / "report.md").read_text()


def test_another_interval_is_calibrated_anew(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    evaluate(folder, tmp_path / "run", "--interval=0.5")
    half, usual = report_of(tmp_path / "run")["interval"], report_of(folder / "run")["interval"]
    assert half["level"] == 0.5 and usual["level"] == 0.9
    assert 0 < half["log_half_width"] < usual["log_half_width"] and half["coverage"] < usual["coverage"]
    # Half of the validation rows lie within, where every program weighs the same.
    model, meta = train_utils.load_model(tmp_path / "run" / "best.safetensors", "cpu")
    val = Sequences(folder / "data", data_utils.read_meta(folder / "data"), "val")
    predicted = {inputs: train_utils.predict_rows(model, val, "cpu", inputs) for inputs in INPUTS}
    widths = intervals.half_widths(intervals.calibrations(predicted, val, 0.5), val.inputs, predicted["all"].spread)
    errors = np.abs(predicted["all"].log_runtime - val.log_runtime)
    _, program, count = np.unique(val.program, return_inverse=True, return_counts=True)
    inside = np.bincount(program, errors <= widths + 1e-9) / count
    assert inside.sum() / (len(count) + 1) == pytest.approx(0.5, abs=1 / len(count))


def test_flags_that_contradict_the_model_are_refused(trained):
    folder, _ = trained
    path = folder / "run" / "best.safetensors"
    _, meta = train_utils.read_checkpoint(path)
    for flag in ("--hidden_size=9", "--drop_features=log_*", "--init_from=x", "--members=7"):
        with pytest.raises(UserError, match=f"{flag.split('=')[0]} .* was trained with"):
            train_utils.agree_with_checkpoint(load_config(argv=[flag]), meta, path)
    assert train_utils.agree_with_checkpoint(load_config(argv=["--hidden_size=8", "--epochs=99"]), meta, path).members == 2
    expect_user_error(evaluate(folder, folder / "run", "--hidden_size=9", check=False), "--hidden_size", "8")
    expect_user_error(evaluate(folder, folder / "run", "--val_fraction=0.1", check=False), "--val_fraction", "0.3")


@pytest.fixture
def other_split(trained, tmp_path):
    """The same dumps split into folds: processed data in `data`, whose test programs the model of `trained` has partly seen."""
    folder, _ = trained
    run("generate_dataset.py", f"--raw_path={folder / 'raw'}", f"--data_path={tmp_path / 'data'}", "--folds=2", "--val_fraction=0.4")
    return tmp_path


def test_another_checkpoint_is_evaluated_where_it_has_not_seen_the_programs(trained, other_split, tmp_path):
    folder, _ = trained
    other = f"--checkpoint={folder / 'run' / 'best.safetensors'}"
    expect_user_error(evaluate(other_split, tmp_path / "run", other, check=False), "was trained on", "programs")
    # On the data it was trained on it gives its own report, which takes the place of none on another model.
    shutil.copytree(folder / "run", tmp_path / "run")
    report = report_of(folder / "run")
    evaluate(folder, tmp_path / "run", other, "--bootstrap_samples=20")
    again = report_of(tmp_path / "run")
    assert again["models"] == report["models"] and again["checkpoint"]["trained_here"]
    assert report_of(tmp_path / "run" / "previous-1") == report
    # A model of the same split by another seed is known not to have seen the test programs.
    tensors, meta = train_utils.read_checkpoint(folder / "run" / "best.safetensors")
    unseen, unknown = tmp_path / "unseen.safetensors", tmp_path / "unknown.safetensors"
    train_utils.write_checkpoint(unseen, tensors, meta | {"data": "other"})
    train_utils.write_checkpoint(unknown, tensors, {k: v for k, v in meta.items() if k != "programs"} | {"data": "other"})
    expect_user_error(evaluate(folder, tmp_path / "run", f"--checkpoint={unseen}", "--interval=0.5", check=False), "--interval")
    evaluate(folder, tmp_path / "run", f"--checkpoint={unseen}")
    assert report_of(tmp_path / "run")["checkpoint"]["programs_seen"] == 0
    assert "It was trained on none of the test and holdout programs" in (tmp_path / "run" / "report.md").read_text()
    before = unknown.read_bytes()
    evaluate(folder, tmp_path / "run", f"--checkpoint={unknown}")
    assert report_of(tmp_path / "run")["checkpoint"]["programs_seen"] is None and unknown.read_bytes() == before
    assert "does not record its training programs" in (tmp_path / "run" / "report.md").read_text()
