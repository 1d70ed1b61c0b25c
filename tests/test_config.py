"""Settings: config.yaml, files beside it, flags; and the one line that a mistake gets."""

import subprocess
import sys

import pytest
from conftest import ROOT, expect_user_error, run

from config import Config, UserError, key_comments, load_config, set_aside, usable_cores


def test_flags_win_over_file_over_shipped(tmp_path):
    shipped = load_config(argv=[])
    (tmp_path / "my.yaml").write_text("epochs: 3\nbatch_size: 7\n")
    config = load_config(argv=["--config", str(tmp_path / "my.yaml"), "--epochs", "5"])
    assert (config.epochs, config.batch_size, config.learning_rate) == (5, 7, shipped.learning_rate)


def test_environment_changes_nothing(monkeypatch):
    monkeypatch.setenv("EPOCHS", "999")
    assert load_config(argv=[]).epochs != 999


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--epochs", "0"], ["epochs", "0"]),
        (["--epochs", "many"], ["epochs", "many"]),
        (["--epoch", "3"], ["--epoch", "epochs"]),
        (["--learning_rate", "-1"], ["learning_rate"]),
        (["--split_by", "file"], ["split_by", "program"]),
        (["--folds", "5", "--fold", "5"], ["fold", "0 to 4"]),
        (["--val_fraction", "0.5", "--test_fraction", "0.5"], ["val_fraction"]),
        (["stray"], ["stray"]),
        (["--config", "missing.yaml"], ["missing.yaml"]),
    ],
)
def test_mistakes_name_their_key(flags, words):
    with pytest.raises(UserError) as caught:
        load_config(argv=flags)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, word", [("epocs: 3", "epocs"), ("epochs: [1]", "epochs"), ("epochs: {", "yaml"), ("- 1", "key: value")])
def test_mistakes_in_a_file_name_the_file(tmp_path, text, word):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(argv=["--config", str(path)])
    assert "bad.yaml" in str(caught.value) and word in str(caught.value)


def test_scripts_list_every_key_and_refuse_others():
    text = run("train_model.py", "--help").stdout
    for name in Config.model_fields:
        assert f"--{name}" in text
    expect_user_error(run("train_model.py", "--lerning_rate", "1", check=False), "learning_rate")


QUOTA, PERIOD = "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us"


@pytest.mark.parametrize(
    "group, files, cores",
    [
        (None, {}, 8),
        ("0::/box/inner", {"sys/fs/cgroup/box/cpu.max": "150000 100000", "sys/fs/cgroup/box/inner/cpu.max": "max 100000"}, 2),
        ("0::/", {"sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        ("0::/../outside", {"sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ("4:memory:/m\n2:cpu,cpuacct:/docker/x", {QUOTA: "400000", PERIOD: "100000"}, 4),
        ("2:cpu,cpuacct:/", {QUOTA: "-1", PERIOD: "100000"}, 8),
        ("0::/", {"sys/fs/cgroup/cpu.max": "3200000 100000"}, 8),
    ],
)
def test_cores_are_those_of_the_affinity_mask_and_the_container(tmp_path, monkeypatch, group, files, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in (files | ({"proc/self/cgroup": group} if group else {})).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path) == cores


def test_every_key_is_described_in_the_yaml_and_in_help():
    comments = key_comments()
    assert set(comments) == set(Config.model_fields)
    shown = " ".join(run("rank_schedules.py", "--help").stdout.split())
    for key, comment in comments.items():
        assert f"{comment} (default:" in shown, key
    assert all(field.description is None for field in Config.model_fields.values())  # one place


def test_a_flag_that_contradicts_what_is_recorded_is_refused(tmp_path):
    (tmp_path / "my.yaml").write_text("fold: 1\nfolds: 5\n")
    config = load_config(argv=[f"--config={tmp_path / 'my.yaml'}", "--epochs=3", "--raw_path=./a/../data/raw , b"])
    recorded = {"folds": 0, "fold": 0, "epochs": 3, "raw_path": "b,data/raw"}
    agreed = config.agreeing_with(recorded, "D was made with", "make it anew")
    assert (agreed.folds, agreed.fold, agreed.epochs) == (0, 0, 3) and agreed.was_given("epochs") and not agreed.was_given("fold")
    with pytest.raises(UserError, match="--epochs 3: D was made with 4; make it anew, or leave the flag out"):
        config.agreeing_with({"epochs": 4}, "D was made with", "make it anew")


def test_what_is_set_aside_is_kept(tmp_path):
    assert set_aside(tmp_path, ["*.csv", "x"]) is None and not list(tmp_path.iterdir())
    for i in (1, 2):
        (tmp_path / "a.csv").write_text(str(i))
        (tmp_path / "x").mkdir(exist_ok=True)  # a folder of that name is the user's own
        assert set_aside(tmp_path, ["*.csv", "x"]) == tmp_path / f"previous-{i}"
    assert [(tmp_path / f"previous-{i}" / "a.csv").read_text() for i in (1, 2)] == ["1", "2"] and (tmp_path / "x").is_dir()


SPEAKS = """
import subprocess, sys
from config import run_script

def speak():
    for i in range(100_000):
        print(i, file=sys.{stream})

def other_pipe():
    process = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    process.wait()
    process.stdin.write(bytes(1_000_000))

run_script({main})
"""


@pytest.mark.parametrize("stream, pipe", [("stdout", "|"), ("stderr", "2>&1 |")])
def test_a_reader_that_has_gone_ends_a_script_quietly(stream, pipe):
    command = f'"$0" -c "$1" {pipe} head -1; exit ${{PIPESTATUS[0]}}'
    program = SPEAKS.format(stream=stream, main="speak")
    done = subprocess.run(["bash", "-c", command, sys.executable, program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 1)


def test_another_broken_pipe_is_not_hidden():
    program = SPEAKS.format(stream="stdout", main="other_pipe")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr
