"""Settings: config.yaml, files beside it, flags; and the one line that a mistake gets."""

import pytest
from conftest import expect_user_error, run

from config import Config, UserError, load_config, usable_cores


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


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/box/inner\n", "sys/fs/cgroup/box/cpu.max": "150000 100000\n", "sys/fs/cgroup/box/inner/cpu.max": "max 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/../outside\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n2:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ({"proc/self/cgroup": "2:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_affinity_mask_and_the_container(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores
