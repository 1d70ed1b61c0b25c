"""generate_dataset.py as a user runs it, in a temporary folder, on small dumps."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import expect_user_error, flags, json_tree, make_stages, meta_of, run, sample_bytes, write_json
from safetensors.numpy import load_file

from dumps.parsing import hex_id
from evaluation import metrics


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
    (tmp_path / "raw" / "y.sample").write_bytes(sample_bytes(make_stages(), 1))
    run("generate_dataset.py", *flags(tmp_path))  # an empty split is legal here
    before = meta_of(tmp_path)
    expect_user_error(run("generate_dataset.py", *flags(tmp_path), "--raw_path=misspelt", check=False), "misspelt")
    assert meta_of(tmp_path) == before  # a wrong path costs nothing that is there
