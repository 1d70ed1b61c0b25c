"""The scripts as a user runs them, in a temporary folder, on small dumps."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import orjson
import pandas as pd
import pytest
from conftest import ROOT, expect_user_error, json_tree, make_stages, run, sample_bytes, write_json
from safetensors.numpy import load_file

import data_utils
import train_utils
from dumps.parsing import hex_id
from evaluation import metrics

# Small and quick, with enough programs in every split.
SMALL = [
    "--val_fraction=0.3",
    "--test_fraction=0.3",
    "--epochs=3",
    "--embed_size=8",
    "--hidden_size=8",
    "--members=2",
    "--bootstrap_samples=20",
    "--num_threads=1",
]


def flags(folder, raw=None):
    return [f"--raw_path={raw or folder / 'raw'}", f"--data_path={folder / 'data'}", f"--run_path={folder / 'run'}", *SMALL]


def meta_of(folder):
    return orjson.loads((folder / "data" / "meta.json").read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which all three scripts have run once."""
    folder = tmp_path_factory.mktemp("trained")
    for program in range(26):
        collection = folder / "raw" / ("applications" if program >= 24 else "random") / str(program)
        collection.mkdir(parents=True)
        for schedule in range(4):
            stages = make_stages(program, schedule, n_stages=2 + program % 4)
            (collection / f"{schedule}.sample").write_bytes(sample_bytes(stages, 0.1 * (1 + program) * (1 + schedule)))
            counts = {kind: [1000 * (1 + program) * (1 + schedule)] * len(stages) for kind in ("stores", "body_cycles")}
            (collection / f"{schedule}.lowered.json").write_text(json.dumps(counts))
    outputs = [run(script, *flags(folder)).stdout for script in ("generate_dataset.py", "train_model.py", "evaluate_model.py")]
    return folder, outputs


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
    assert set(report["models"]) == {"lstm", "lstm_without_lowered_counts", "constant", "hist_gradient_boosting", "adams2019"}
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


def test_shards_and_counts(trained):
    folder, _ = trained
    meta = meta_of(folder)
    counts, programs = meta["counts"], meta["split"]["programs"]
    assert counts["read"] == counts["kept"] + counts["merged"] + sum(counts["dropped"].values())
    assert sum(len(p) for p in programs.values()) == counts["programs"] == 26  # no program in two splits
    for split, names in meta["shards"].items():
        shards = [load_file(folder / "data" / name) for name in names]
        assert sum(len(s["lengths"]) for s in shards) == counts["splits"][split]["schedules"]
        for s in shards:
            assert s["features"].shape == (len(s["lengths"]), s["lengths"].max(), len(meta["features"]))
            assert (np.diff(s["lengths"]) >= 0).all()
            assert {hex_id(p) for p in s["program"]} <= set(programs[split])
    assert all(len(meta["units"][name]) for name in meta["features"])


def test_the_same_seed_gives_the_same_report(trained):
    folder, _ = trained
    again = folder / "again"
    arguments = [f"--run_path={again}", f"--data_path={folder / 'data'}", *SMALL]
    run("train_model.py", *arguments)
    run("evaluate_model.py", *arguments)
    assert (again / "report.json").read_bytes() == (folder / "run" / "report.json").read_bytes()


def test_a_killed_run_resumes_exactly(trained, tmp_path):
    folder, _ = trained
    long = [f"--data_path={folder / 'data'}", *SMALL, "--epochs=8"]
    run("train_model.py", *long, f"--run_path={folder / 'whole'}")
    command = [sys.executable, ROOT / "train_model.py", *long, f"--run_path={folder / 'killed'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (folder / "killed" / "last.safetensors").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert len(pd.read_csv(folder / "killed" / "metrics.csv")) < 8  # it was killed on its way
    run("train_model.py", *long, f"--run_path={folder / 'killed'}", "--resume=true")
    whole, resumed = (pd.read_csv(folder / name / "metrics.csv").drop(columns="seconds") for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(whole, resumed)
    tensors = [load_file(folder / name / "best.safetensors") for name in ("whole", "killed")]
    assert all(np.array_equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    resume = [*long, f"--run_path={folder / 'killed'}", "--resume=true"]
    assert "epoch   9/9" in run("train_model.py", *resume, "--epochs=9").stdout
    expect_user_error(run("train_model.py", *resume, "--hidden_size=9", check=False), "hidden_size")
    run("generate_dataset.py", *flags(tmp_path, folder / "raw"), "--folds=2", "--val_fraction=0.4")
    expect_user_error(run("train_model.py", *resume, f"--data_path={tmp_path / 'data'}", check=False), "other data")


def test_two_processes_learn_what_one_does(trained):
    folder, _ = trained
    arguments = [f"--data_path={folder / 'data'}", *SMALL, "--dropout=0", "--batch_size=20"]  # uneven parts, and a smaller last batch
    run("train_model.py", *arguments, f"--run_path={folder / 'one'}")
    both = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        ROOT / "train_model.py",
        *arguments,
        f"--run_path={folder / 'two'}",
    ]
    done = subprocess.run(both, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and done.stdout.count("epoch   3/3") == 1, done.stderr
    one, two = (pd.read_csv(folder / name / "metrics.csv").drop(columns="seconds") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)
    done = subprocess.run([*both, "--resume=true", "--epochs=4"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "epoch   4/4" in done.stdout and "epoch   3/4" not in done.stdout, done.stderr


def test_a_checkpoint_is_fine_tuned_on_another_machine(trained, tmp_path):
    folder, _ = trained
    for program in range(6):  # the same programs, forty times slower
        for schedule in range(4):
            runtime_ms = 4 * (1 + program) * (1 + schedule)
            file = tmp_path / "raw" / str(program) / f"{schedule}.sample"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample_bytes(make_stages(program, schedule, n_stages=2 + program % 4), runtime_ms))
    arguments = [*flags(tmp_path), "--split_by=schedule", "--epochs=1", "--learning_rate=1e-9"]
    run("generate_dataset.py", *arguments)
    run("train_model.py", *arguments, f"--init_from={folder / 'run' / 'best.safetensors'}")
    rows = train_utils.Sequences(tmp_path / "data", data_utils.read_meta(tmp_path / "data"), "train")
    models = [train_utils.load_model(where / "run" / "best.safetensors", "cpu")[0] for where in (folder, tmp_path)]
    trained_elsewhere, tuned = (train_utils.predict(model, rows, "cpu") for model in models)
    assert (tuned - trained_elsewhere).std() < 1e-3 and (tuned - trained_elsewhere).mean() > 2  # it was scaled, and hardly trained
    assert (tuned - rows.log_runtime).mean() == pytest.approx(0, abs=0.01)
    expect_user_error(run("train_model.py", *arguments, "--init_from=none.safetensors", check=False), "none.safetensors")
    other = f"--init_from={folder / 'run' / 'best.safetensors'}"
    expect_user_error(run("train_model.py", *arguments, other, "--hidden_size=9", check=False), "hidden_size")


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


def test_a_mixed_folder(tmp_path):
    raw = tmp_path / "raw"
    (raw / "loop").mkdir(parents=True)
    good = make_stages(1, 1)
    (raw / "good.sample").write_bytes(sample_bytes(good, 1))
    (raw / "slower_again.sample").write_bytes(sample_bytes(good, 1.5))
    (raw / "loop" / "x.featurization").write_bytes(make_stages(1, 2).tobytes())
    (raw / "loop" / "bench.txt").write_text("Benchmark for x produces best case of 0.002 sec/iter\n")
    write_json(raw / "good.json", json_tree())
    (raw / "cut.sample").write_bytes(sample_bytes(good, 1)[:-9])
    bad = good.copy()
    bad[0, 3] = np.nan
    (raw / "nan.sample").write_bytes(sample_bytes(bad, 1))
    (raw / "zero.sample").write_bytes(sample_bytes(good, 0))
    (raw / "broken.json").write_text(json.dumps(json_tree())[:-20])
    (raw / "empty.sample").write_bytes(b"")
    (raw / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    (raw / "note.log").write_text("a companion")
    (raw / "broken.tar.xz").write_bytes(b"not an archive")
    run("generate_dataset.py", *flags(tmp_path))

    dropped = pd.read_csv(tmp_path / "data" / "dropped.csv")
    assert dropped.columns.tolist() == ["file", "reason", "detail"]
    assert dict(zip(dropped.file, dropped.reason)) == {
        "cut.sample": "truncated", "nan.sample": "not_a_number", "zero.sample": "zero_runtime", "broken.json": "malformed_json",
        "empty.sample": "truncated", "picture.png": "unknown_format", "broken.tar.xz": "unreadable_archive",
    }  # fmt: skip
    meta = meta_of(tmp_path)
    assert (meta["counts"]["read"], meta["counts"]["kept"], meta["counts"]["merged"]) == (11, 3, 1)
    rows = pd.read_csv(tmp_path / "data" / "schedules.csv")
    assert sorted(rows.runtime_ms) == [1.0, 2.0, 2.0]  # the faster of the two measurements of one schedule
    assert rows.measurements.tolist().count(2) == 1
    ceiling = metrics.noise_ceiling(rows, np.log(rows.runtime_ms))
    assert ceiling["log_sigma"] == pytest.approx(np.log(1.5) / np.sqrt(2)) and ceiling["median_difference"] == pytest.approx(50)


def test_a_held_out_program_is_held_out_by_schedule_too(tmp_path):
    for collection, first in (("mine", 0), ("applications", 4)):
        (tmp_path / "raw" / collection).mkdir(parents=True)
        for program in range(6):
            for schedule in range(first, first + 4):
                path = tmp_path / "raw" / collection / f"{program}_{schedule}.sample"
                if collection == "mine" or program == 0:
                    path.write_bytes(sample_bytes(make_stages(program, schedule), 1 + schedule))
    run("generate_dataset.py", *flags(tmp_path), "--split_by=schedule")
    rows = pd.read_csv(tmp_path / "data" / "schedules.csv", dtype=str)
    program_0 = rows[rows.collection == "applications"].program.iloc[0]
    assert set(rows[rows.program == program_0].split) == {"holdout", "test"}


def test_nothing_is_merged_across_collections(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "x.sample").write_bytes(sample_bytes(make_stages(), 1))
    run("generate_dataset.py", *flags(tmp_path))
    meta = meta_of(tmp_path)
    assert (meta["counts"]["kept"], meta["counts"]["merged"], meta["counts"]["programs"]) == (2, 0, 1)


def test_the_number_of_readers_changes_nothing(tmp_path):
    """Many dumps go through several processes; the shards are those of one."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(1100):
        (raw / f"{i:04d}.sample").write_bytes(sample_bytes(make_stages(i % 50, i, n_stages=1), 1 + i))
    for jobs in ("1", "2"):
        run("generate_dataset.py", *flags(tmp_path), f"--data_path={tmp_path / jobs}", f"--num_threads={jobs}")
    files = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "2").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_unchanged_dumps_are_not_read_again(tmp_path):
    (tmp_path / "raw").mkdir()
    for i in range(3):
        (tmp_path / "raw" / f"{i}.sample").write_bytes(sample_bytes(make_stages(program=i), 1.0))

    def generate(*more):
        was_left = "left as it is" in run("generate_dataset.py", *flags(tmp_path), *more).stdout
        return was_left, meta_of(tmp_path)["counts"]["read"]

    assert generate() == (False, 3)
    assert generate() == (True, 3)
    assert generate("--fold=1", "--folds=2") == (False, 3)
    (tmp_path / "raw" / "3.sample").write_bytes(sample_bytes(make_stages(program=3), 1.0))
    assert generate("--fold=1", "--folds=2") == (False, 4)
    next((tmp_path / "data").glob("*-00000.safetensors")).unlink()
    assert generate("--fold=1", "--folds=2") == (False, 4)


def test_mistakes_get_one_clear_line(tmp_path):
    expect_user_error(run("generate_dataset.py", *flags(tmp_path), check=False), "raw", "no such file or folder")
    (tmp_path / "raw").mkdir()
    expect_user_error(run("generate_dataset.py", *flags(tmp_path), check=False), "nothing usable")
    (tmp_path / "raw" / "x.sample").write_bytes(sample_bytes(make_stages(), 0))
    expect_user_error(run("generate_dataset.py", *flags(tmp_path), check=False), "1 zero_runtime")
    expect_user_error(run("train_model.py", *flags(tmp_path), check=False), "meta.json", "generate_dataset.py")
    (tmp_path / "raw" / "y.sample").write_bytes(sample_bytes(make_stages(), 1))
    run("generate_dataset.py", *flags(tmp_path))  # an empty split is legal here
    expect_user_error(run("train_model.py", *flags(tmp_path), check=False), "split is empty")
    expect_user_error(run("train_model.py", *flags(tmp_path), "--device=cuda", check=False), "cuda")
    before = meta_of(tmp_path)
    expect_user_error(run("generate_dataset.py", *flags(tmp_path), "--raw_path=misspelt", check=False), "misspelt")
    assert meta_of(tmp_path) == before  # a wrong path costs nothing that is there


def test_evaluating_without_a_checkpoint(trained, tmp_path):
    folder, _ = trained
    arguments = [f"--data_path={folder / 'data'}", f"--run_path={tmp_path / 'none'}", *SMALL]
    expect_user_error(run("evaluate_model.py", *arguments, check=False), "best.safetensors", "train_model.py")
    expect_user_error(run("train_model.py", *arguments, "--resume=true", check=False), "last.safetensors")


def test_ranking_schedules_that_were_never_run(trained, tmp_path):
    folder, _ = trained
    checkpoint = f"--checkpoint={folder / 'run' / 'best.safetensors'}"
    raw = tmp_path / "new"
    raw.mkdir()
    for schedule in range(3):
        (raw / f"{schedule}.featurization").write_bytes(make_stages(1, schedule).tobytes())
    (raw / "0_again.sample").write_bytes(sample_bytes(make_stages(1, 0), 0))  # never merged, its runtime not needed
    (raw / "other.sample").write_bytes(sample_bytes(make_stages(2, 0, n_stages=60), 0))
    (raw / "cut.sample").write_bytes(b"123")
    done = run("rank_schedules.py", raw, checkpoint, f"--output={tmp_path / 'ranked.csv'}", "--stages=true")
    assert "left out cut.sample: truncated" in done.stderr
    rows = pd.read_csv(tmp_path / "ranked.csv", dtype={"program": str})
    assert len(rows) == 5 and rows.program.nunique() == 2
    for _, program in rows.groupby("program"):
        assert program["rank"].tolist() == list(range(1, len(program) + 1)) and program.predicted_ms.is_monotonic_increasing
    assert (rows.lower_ms < rows.predicted_ms).all() and (rows.predicted_ms < rows.upper_ms).all()
    assert done.stdout.count("stage  ") == 4 * 3 + 60
    same = rows[rows.file.isin(["0.featurization", "0_again.sample"])].predicted_ms
    assert same.iloc[0] == pytest.approx(same.iloc[1], rel=1e-5)

    # Two of its schedules were measured and took ten times what was predicted: all its predictions rise, those of no other program.
    measured = tmp_path / "measured"
    measured.mkdir()
    for schedule in range(2):
        predicted = rows[rows.file == f"{schedule}.featurization"].predicted_ms.item()
        (measured / f"{schedule}.sample").write_bytes(sample_bytes(make_stages(1, schedule), 10 * predicted))
    run("rank_schedules.py", raw, checkpoint, f"--output={tmp_path / 'corrected.csv'}", f"--measured={measured}")
    ratio = pd.read_csv(tmp_path / "corrected.csv").set_index("file").predicted_ms / rows.set_index("file").predicted_ms
    assert ratio["other.sample"] == pytest.approx(1) and ratio.drop("other.sample").between(1.5, 10).all()
    expect_user_error(run("rank_schedules.py", raw, checkpoint, f"--measured={tmp_path / 'none'}", check=False), "none")

    write_json(tmp_path / "foreign.json", json_tree())
    assert "far outside" in run("rank_schedules.py", tmp_path / "foreign.json", checkpoint).stderr
    expect_user_error(run("rank_schedules.py", raw / "cut.sample", checkpoint, check=False), "no usable dump")
    expect_user_error(run("rank_schedules.py", checkpoint, check=False), "PATHS")
    expect_user_error(run("rank_schedules.py", tmp_path / "missing", checkpoint, check=False), "missing")
    expect_user_error(run("rank_schedules.py", raw, "--checkpoint=none.safetensors", check=False), "none.safetensors")
