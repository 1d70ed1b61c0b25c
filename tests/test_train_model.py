"""train_model.py as a user runs it, in a temporary folder, on small dumps."""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, SMALL, expect_user_error, flags, make_stages, run, sample_bytes
from safetensors.numpy import load_file

import data_utils
import train_utils
from batches import Sequences
from config import UserError, load_config
from features import FEATURES


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


@pytest.mark.parametrize("asked, taken", [(0, 1), (2, 2)])
def test_training_takes_one_thread_unless_told(trained, tmp_path, asked, taken):
    folder, _ = trained
    flags = [f"--data_path={folder / 'data'}", f"--run_path={tmp_path}", *SMALL, "--epochs=1", f"--num_threads={asked}"]
    assert f"cpu, {taken} threads;" in run("train_model.py", *flags).stdout


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
    rows = Sequences(tmp_path / "data", data_utils.read_meta(tmp_path / "data"), "train")
    models = [train_utils.load_model(where / "run" / "best.safetensors", "cpu")[0] for where in (folder, tmp_path)]
    trained_elsewhere, tuned = (train_utils.predict(model, rows, "cpu") for model in models)
    assert (tuned - trained_elsewhere).std() < 1e-3 and (tuned - trained_elsewhere).mean() > 2  # it was scaled, and hardly trained
    assert (tuned - rows.log_runtime).mean() == pytest.approx(0, abs=0.01)
    expect_user_error(run("train_model.py", *arguments, "--init_from=none.safetensors", check=False), "none.safetensors")
    other = f"--init_from={folder / 'run' / 'best.safetensors'}"
    expect_user_error(run("train_model.py", *arguments, other, "--hidden_size=9", check=False), "hidden_size")


def train(folder, *more, check=True):
    """train_model.py on the processed data in `folder`, in a run of its own; no flag of the split."""
    own = [flag for flag in SMALL if "fraction" not in flag and "bootstrap" not in flag]
    return run("train_model.py", f"--data_path={folder / 'data'}", *own, *more, check=check)


def test_an_earlier_run_is_kept(trained, tmp_path):
    folder, _ = trained
    run_path = tmp_path / "run"
    (run_path / "previous-1").mkdir(parents=True)  # of a run before
    (run_path / "my notes.txt").write_text("a user's own")
    for learning_rate in ("0.001", "0.002"):
        done = train(folder, f"--run_path={run_path}", "--epochs=1", f"--learning_rate={learning_rate}")
    previous = run_path / "previous-2"
    assert str(previous) in done.stdout
    assert yaml.safe_load((previous / "config.yaml").read_text())["learning_rate"] == 0.001
    _, meta = train_utils.read_checkpoint(previous / "best.safetensors")
    assert meta["config"]["learning_rate"] == 0.001
    assert len(pd.read_csv(previous / "metrics.csv")) == 1 and list(previous.glob("events.out.tfevents.*"))
    assert yaml.safe_load((run_path / "config.yaml").read_text())["learning_rate"] == 0.002
    assert (run_path / "my notes.txt").exists() and len(list(run_path.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    "flags, made_with",
    [
        (["--fold=1", "--folds=3"], "0"),
        (["--split_by=schedule"], "program"),
        (["--val_fraction=0.1"], "0.3"),
        (["--test_fraction=0.1"], "0.3"),
        (["--holdout=none"], "applications"),
        (["--max_runtime_ms=7"], "100000"),
        (["--raw_path=elsewhere"], "raw"),
    ],
)
def test_flags_that_contradict_the_data_are_refused(trained, flags, made_with):
    folder, _ = trained
    meta, config = data_utils.read_meta(folder / "data"), load_config(argv=flags)
    with pytest.raises(UserError, match=f"{flags[0].split('=')[0]} .*: .*{made_with}.*generate_dataset.py"):
        train_utils.agree_with_data(config, meta)


def test_what_is_recorded_of_the_split_is_true(trained, tmp_path):
    folder, _ = trained
    run_path = f"--run_path={tmp_path / 'run'}"
    expect_user_error(train(folder, run_path, "--fold=1", "--folds=3", check=False), "--fold", "generate_dataset.py")
    assert not (tmp_path / "run").exists()
    # A flag that agrees is taken, however it is spelt; what a file says gives way.
    (tmp_path / "my.yaml").write_text("fold: 1\nfolds: 3\nepochs: 1\n")
    spelt = f"--raw_path={folder}/./raw/"
    train(folder, run_path, "--val_fraction=0.3", spelt, "--epochs=1", "--shard_size=9", f"--config={tmp_path / 'my.yaml'}")
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    _, meta = train_utils.read_checkpoint(tmp_path / "run" / "best.safetensors")
    for settings in (recorded, meta["config"]):
        assert (settings["folds"], settings["fold"], settings["val_fraction"], settings["test_fraction"]) == (0, 0, 0.3, 0.3)


def test_a_finished_run_goes_on_for_longer(trained, tmp_path):
    folder, _ = trained
    run_path, resume = tmp_path / "run", [f"--run_path={tmp_path / 'run'}", "--resume=true"]
    train(folder, f"--run_path={run_path}", "--epochs=6")
    _, six = train_utils.read_checkpoint(run_path / "best.safetensors")
    done = train(folder, *resume, "--epochs=12")
    assert "further cycle" in done.stdout
    log = pd.read_csv(run_path / "metrics.csv")
    assert log.epoch.tolist() == list(range(1, 13))
    peak = log.learning_rate.max()
    assert log.learning_rate[5] < 0.1 * peak and log.learning_rate[11] < 0.1 * peak
    # The second cycle is like the first, warm-up included: the rate rises from near 0, not to the middle of a cycle of 12.
    assert np.allclose(log.learning_rate[:6], log.learning_rate[6:])
    _, twelve = train_utils.read_checkpoint(run_path / "best.safetensors")
    assert twelve["best_val_mse_log"] == min(six["best_val_mse_log"], log.val_mse_log[6:].min())

    before = {path.name: path.read_bytes() for path in run_path.iterdir() if path.is_file()}
    assert "nothing to do" in train(folder, *resume, "--epochs=4", "--batch_size=8").stdout
    assert {path.name: path.read_bytes() for path in run_path.iterdir() if path.is_file()} == before

    done = train(folder, *resume, "--epochs=13", "--batch_size=8", "--learning_rate=0.01")
    assert "batch_size 8 (was 32)" in done.stdout and "learning_rate 0.01 (was 0.0012)" in done.stdout
    expect_user_error(train(folder, *resume, "--epochs=14", "--drop_features=log_cost_*", check=False), "drop_features")


def test_a_worse_epoch_never_replaces_the_best_of_a_finished_run(trained, tmp_path):
    folder, _ = trained
    run_path = tmp_path / "run"
    train(folder, f"--run_path={run_path}", "--epochs=2")
    tensors, meta = train_utils.read_checkpoint(run_path / "last.safetensors")
    train_utils.write_checkpoint(run_path / "last.safetensors", tensors, meta | {"best_val_mse_log": 0.0})  # as if none could be better
    best = (run_path / "best.safetensors").read_bytes()
    # Two thirds of 6 epochs would take in epochs 3 and 4.
    train(folder, f"--run_path={run_path}", "--resume=true", "--epochs=6")
    assert (run_path / "best.safetensors").read_bytes() == best


def test_training_that_diverges_leaves_no_model(trained, tmp_path):
    folder, _ = trained
    run_path = tmp_path / "run"
    train(folder, f"--run_path={run_path}", "--epochs=1")
    done = train(folder, f"--run_path={run_path}", "--epochs=12", "--learning_rate=9", check=False)
    expect_user_error(done, "diverges", "--learning_rate")
    assert not (run_path / "best.safetensors").exists() and (run_path / "previous-1" / "best.safetensors").exists()


def test_dropped_features_stay_dropped_in_fine_tuning(trained, tmp_path):
    folder, _ = trained
    init = f"--init_from={folder / 'run' / 'best.safetensors'}"
    train(folder, init, f"--run_path={tmp_path / 'tuned'}", "--drop_features=log_cost_*", "--epochs=1")
    model, meta = train_utils.load_model(tmp_path / "tuned" / "best.safetensors", "cpu")
    assert meta["programs"]["init_from"] == sorted(meta["programs"]["train"] + meta["programs"]["val"])  # the same data, here
    rows = Sequences(folder / "data", data_utils.read_meta(folder / "data"), "val")
    batch = rows.batch(np.arange(4))
    before = model(batch.features, batch.lengths)
    batch.features[:, :, [i for i, name in enumerate(FEATURES) if name.startswith("log_cost_")]] += 3
    assert (model(batch.features, batch.lengths) == before).all()
    # The other way round, what the checkpoint has never seen can't be shown.
    init = f"--init_from={tmp_path / 'tuned' / 'best.safetensors'}"
    expect_user_error(train(folder, init, f"--run_path={tmp_path / 'x'}", check=False), "drop_features", "log_cost_*")


def test_mistakes_get_one_clear_line(trained, tmp_path):
    folder, _ = trained
    expect_user_error(run("train_model.py", *flags(tmp_path), check=False), "meta.json", "generate_dataset.py")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "y.sample").write_bytes(sample_bytes(make_stages(), 1))
    run("generate_dataset.py", *flags(tmp_path))  # an empty split is legal there
    expect_user_error(run("train_model.py", *flags(tmp_path), check=False), "split is empty")
