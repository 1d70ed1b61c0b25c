"""generate_dataset.py as a user runs it: what is read, kept, merged and dropped, how it is split, and that nothing of before is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import orjson
import pandas as pd
import pytest
from conftest import ROOT, expect_user_error, json_tree, make_stages, run, sample_bytes, write_json
from filelock import FileLock
from safetensors.numpy import load_file

import data_utils
from dumps.parsing import hex_id
from evaluation import metrics

SMALL = ["--val_fraction=0.3", "--test_fraction=0.3", "--num_threads=1"]
BENCH = "Benchmark for f produces best case of 0.002 sec/iter (over 9 samples, 90 iterations, accuracy 1.2%).\n"


def flags(folder, raw=None):
    return [f"--raw_path={raw or folder / 'raw'}", f"--data_path={folder / 'data'}", *SMALL]


def meta_of(folder):
    return orjson.loads((folder / "data" / "meta.json").read_bytes())


def generate(folder, *more, raw=None):
    """Run the script; (counts, schedules.csv, its output)."""
    output = run("generate_dataset.py", *flags(folder, raw), *more).stdout
    counts = meta_of(folder)["counts"]
    assert counts["read"] == counts["kept"] + counts["merged"] + sum(counts["dropped"].values())
    return counts, pd.read_csv(folder / "data" / "schedules.csv", dtype=str, keep_default_na=False), output


def dropped_of(folder):
    rows = pd.read_csv(folder / "data" / "dropped.csv")
    assert rows.columns.tolist() == ["file", "reason", "detail"]
    return dict(zip(rows.file, rows.reason))


def write_sample(path, program=0, schedule=0, runtime_ms=1.0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sample_bytes(make_stages(program, schedule, **options), runtime_ms))


def write_loop(folder, app, batch, programs=1, start=0):
    """What Halide's autotune loop leaves of three schedules of a batch."""
    for i in range(3):
        name = f"{app}_batch_{batch:04d}_sample_{i:04d}"
        sample = folder / f"batch_{batch}_0" / str(i)
        sample.mkdir(parents=True)
        stages = make_stages(programs, start + 10 * batch + i)
        (sample / f"{name}.featurization").write_bytes(stages.tobytes())
        (sample / f"{name}.sample").write_bytes(sample_bytes(stages, np.float32(0.002) * 1000))
        (sample / "bench.txt").write_text(BENCH.replace(" f ", f" {name} "))
        for leftover in (".schedule.h", ".h", ".s", ".stmt", ".registration.cpp", ".a"):
            (sample / f"{name}{leftover}").write_bytes(b"anything at all")
        (sample / "bench").write_bytes(b"\x7fELF" + bytes(2000))
        (sample / "other_bench").write_bytes(b"\x7fELF" + bytes(2000))
        (sample / "compile_log.txt").write_text("Adams2019.parallelism:32\n")
    (folder / f"batch_{batch}_0" / "used.weights").write_bytes(bytes(100))
    (folder / f"batch_{batch}_0" / "extra_generator_args.txt").write_text("\n")


def write_note(folder, name=None, **machine):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "collection.json").write_text(json.dumps({"name": name or folder.name, "machine": machine}))


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


# What is held out


def test_parts_of_a_held_out_collection_are_held_out_with_it(tmp_path):
    """A drift opens NAME-2: its programs are not trained on, and neither is what it holds where others hold it, too."""
    raw = tmp_path / "raw"
    write_sample(raw / "applications" / "a.sample", 1)
    write_sample(raw / "applications-2" / "p" / "b.sample", 2)
    write_sample(raw / "deep" / "applications-13" / "c.sample", 3)
    write_sample(raw / "renamed" / "d.sample", 4)
    write_note(raw / "renamed", "applications-3")
    with tarfile.open(raw / "all.tar.xz", "w:xz") as tar:  # packed collections of collections
        write_sample(tmp_path / "e.sample", 5)
        write_sample(tmp_path / "f.sample", 6)
        tar.add(tmp_path / "e.sample", "applications-4/p/e.sample")
        tar.add(tmp_path / "f.sample", "other/p/f.sample")
        write_note(tmp_path / "note", "applications")
        write_sample(tmp_path / "g.sample", 7)
        tar.add(tmp_path / "g.sample", "moved/p/g.sample")
        tar.add(tmp_path / "note" / "collection.json", "moved/collection.json")
    for program in range(1, 40):
        write_sample(raw / "mine" / f"{program}.sample", program)
    for name in ("applications_2", "applications-1", "applications-2026", "my_applications"):  # no parts of it
        write_sample(raw / name / "x.sample", 100 + len(name))
    _, rows, _ = generate(tmp_path, "--test_fraction=0.1")
    held_out = {1, 2, 3, 4, 5, 7}
    names = {"a", "b", "c", "d", "e", "g"}
    of_file = dict(zip(rows.file, rows.split))
    assert {file.split("/")[-1][0] for file, split in of_file.items() if split == "holdout"} == names
    assert all(of_file[f"mine/{program}.sample"] == "test" for program in held_out)
    assert {of_file[f"mine/{program}.sample"] for program in range(8, 40)} == {"train", "val", "test"}
    assert "holdout" not in {split for file, split in of_file.items() if "x.sample" in file}
    sources = meta_of(tmp_path)["sources"]
    assert {name for name, source in sources.items() if source["is_held_out"]} == {
        "applications", "applications-2", "deep/applications-13", "renamed", "all/applications-4", "all/moved",
    }  # fmt: skip


def test_a_program_of_a_held_out_collection_given_by_itself_is_held_out(tmp_path):
    write_note(tmp_path / "applications-2", cores=4)
    write_sample(tmp_path / "applications-2" / "blur" / "000.sample", 1)
    write_sample(tmp_path / "mine" / "000.sample", 2)
    _, rows, _ = generate(tmp_path, raw=f"{tmp_path / 'applications-2' / 'blur'},{tmp_path / 'mine'}")
    assert dict(zip(rows.collection, rows.split))["applications-2"] == "holdout"


# Machines


def test_the_machine_travels_from_the_note_to_the_meta(tmp_path):
    raw = tmp_path / "raw"
    for i, name in enumerate(("a", "b", "plain")):
        write_sample(raw / name / "p" / "000.sample", i)
    write_note(raw / "a", processor="P", cores=16, target="x86-64-linux", threads=8, other=1)
    write_note(raw / "b", processor="P", cores=4, target="x86-64-linux", protocol={"threads": "all cores"})
    generate(tmp_path)
    machines = {name: source["machine"] for name, source in meta_of(tmp_path)["sources"].items()}
    assert machines == {
        "a": {"processor": "P", "cores": 16, "target": "x86-64-linux", "threads": 8},
        "b": {"processor": "P", "cores": 4, "target": "x86-64-linux", "threads": 4},
        "plain": None,
    }


def test_nothing_is_merged_across_machines(tmp_path):
    """Two collections in one folder, one of them packed under the name of the other's folder: apart, by their notes."""
    raw = tmp_path / "raw"
    write_sample(raw / "x" / "p" / "000.sample", 1, runtime_ms=1.0)
    write_note(raw / "x", processor="slow", cores=2)
    write_sample(tmp_path / "y" / "000.sample", 1, runtime_ms=2.5)
    write_note(tmp_path / "y", "x", processor="fast", cores=2)
    with tarfile.open(raw / "x.tar", "w") as tar:
        tar.add(tmp_path / "y" / "000.sample", "x/p/000.sample")
        tar.add(tmp_path / "y" / "collection.json", "x/collection.json")
    write_note(raw / "x" / "nested", processor="third", cores=2)
    write_sample(raw / "x" / "nested" / "000.sample", 1, runtime_ms=4.0)
    counts, rows, _ = generate(tmp_path)
    assert (counts["kept"], counts["merged"]) == (3, 0) and sorted(rows.runtime_ms) == ["1.0", "2.5", "4.0"]
    assert {source["machine"]["processor"] for source in meta_of(tmp_path)["sources"].values()} == {"slow", "fast", "third"}


def test_measurements_too_far_apart_for_noise_are_said_to_be_so(tmp_path):
    raw = tmp_path / "raw" / "mine"
    for program in range(3):
        write_sample(raw / f"{program}.sample", program, runtime_ms=1.0)
        write_sample(raw / f"{program}_again.sample", program, runtime_ms=1.03)
    counts, _, output = generate(tmp_path)
    assert counts["far_apart"] == 0 and "apart" not in output
    for program in range(2):
        write_sample(raw / f"{program}_elsewhere.sample", program, runtime_ms=2.5)
    counts, rows, output = generate(tmp_path)
    assert counts["far_apart"] == 2 and "2 of 3 schedules" in output and "2.50 x" in output
    assert set(rows.runtime_ms) == {"1.0"} and counts["merged"] == 5
    assert "2.50 x" in generate(tmp_path)[2]  # where nothing has changed, too


# Copies


def test_copies_are_one_measurement(tmp_path):
    """An archive unpacked beside itself says nothing of the noise."""
    raw = tmp_path / "raw"
    write_note(raw / "mine")
    for i in range(3):
        write_sample(raw / "mine" / "p" / f"{i:03d}.sample", 1, i)
    write_sample(raw / "mine" / "p" / "00r.sample", 1, 0, runtime_ms=1.1)  # measured again in earnest
    with tarfile.open(raw / "mine.tar.xz", "w:xz") as tar:
        tar.add(raw / "mine", "mine")
    counts, rows, output = generate(tmp_path)
    assert (counts["read"], counts["kept"], counts["merged"], counts["copies"]) == (8, 3, 5, 4)
    assert sorted(rows.measurements) == ["1", "1", "2"] and sorted(rows.log_variance)[:2] == ["", ""]
    assert "4 dumps are copies" in output
    assert float(max(rows.log_variance)) == pytest.approx(np.log(1.1) ** 2 / 2)
    (raw / "mine.tar.xz").rename(tmp_path / "raw" / "other.tar.xz")
    counts, _, output = generate(tmp_path)
    assert counts["kept"] == 6 and "3 schedules are in several collections" in output


def test_of_copies_the_one_with_counts_is_kept(tmp_path):
    raw = tmp_path / "raw" / "mine"
    write_sample(raw / "a" / "000.sample", 1)
    write_sample(raw / "b" / "000.sample", 1)
    (raw / "b" / "000.lowered.json").write_text(json.dumps({"body_cycles": [1, 2, 3]}))
    _, rows, _ = generate(tmp_path)
    assert rows.file.tolist() == ["mine/b/000.sample"]


def test_overlapping_roots_and_links_are_read_once(tmp_path):
    raw, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    write_sample(raw / "b" / "0.sample", 1)
    write_sample(raw / "1.sample", 2)
    write_sample(elsewhere / "2.sample", 3)
    (tmp_path / "same").symlink_to(raw)
    (raw / "linked").symlink_to(elsewhere)
    (raw / "a_loop").symlink_to(raw)
    (elsewhere / "back").symlink_to(raw / "b")
    (raw / "b" / "again.sample").symlink_to(raw / "b" / "0.sample")
    (raw / "b" / "gone.sample").symlink_to(raw / "nowhere")
    roots = [raw, raw / "b", tmp_path / "same", raw / "1.sample", raw / "linked"]
    counts, rows, _ = generate(tmp_path, raw=",".join(map(str, roots)))
    assert (counts["read"], counts["kept"], counts["merged"]) == (4, 3, 0)
    assert dict(zip(rows.file, rows.collection)) == {"b/0.sample": "b", "1.sample": "raw", "2.sample": "elsewhere"}
    assert dropped_of(tmp_path) == {"b/gone.sample": "unreadable"}
    counts, rows, _ = generate(tmp_path, raw=raw)
    assert counts["kept"] == 3 and dict(zip(rows.file, rows.collection))["linked/2.sample"] == "linked"


# Halide's autotune loop


def test_what_the_autotune_loop_leaves_is_one_measurement_a_schedule(tmp_path):
    for i, app in enumerate(("blur", "unsharp")):
        for batch in (1, 2):
            write_loop(tmp_path / app / "samples", app, batch, programs=i)
        (tmp_path / app / "samples" / f"best.{app}.benchmark.txt").write_text("Benchmark for it ...")
        (tmp_path / app / "samples" / f"best.{app}.schedule.h").write_text("// best")
    counts, rows, _ = generate(tmp_path, raw=f"{tmp_path / 'blur' / 'samples'},{tmp_path / 'unsharp' / 'samples'}")
    assert (counts["read"], counts["kept"], counts["dropped"]) == (12, 12, {})
    assert set(rows.collection) == {"samples", "unsharp/samples"} and set(rows.measurements) == {"1"}
    assert rows.groupby("collection").program.nunique().tolist() == [1, 1]
    counts, rows, _ = generate(tmp_path, raw=tmp_path / "blur")
    assert counts["kept"] == 6 and set(rows.collection) == {"samples"}
    batches = ",".join(str(tmp_path / "blur" / "samples" / f"batch_{batch}_0") for batch in (1, 2))
    counts, rows, _ = generate(tmp_path, raw=batches)
    assert counts["kept"] == 6 and set(rows.collection) == {"samples"}
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "blur" / "samples", "samples")
    counts, rows, _ = generate(tmp_path, raw=tmp_path / "packed.tar.gz")
    assert (counts["read"], counts["kept"], counts["dropped"]) == (6, 6, {})


def test_the_loops_sample_is_used_where_its_bench_txt_is_of_no_use(tmp_path):
    raw = tmp_path / "raw"
    write_loop(raw, "f", 1)
    folders = sorted((raw / "batch_1_0").glob("[0-9]"))
    (folders[0] / "bench.txt").write_text("Benchmarking failed or timed out for it\n")
    (folders[1] / "bench.txt").write_text(f"Warning: 0 for the scalar named alpha\n{BENCH}")  # the loop takes another word from it
    sample = next(folders[1].glob("*.sample"))
    sample.write_bytes(sample.read_bytes()[:-12] + sample_bytes(make_stages()[:0], 0.0))
    stages = make_stages(0, 99)
    (folders[2] / "another.sample").write_bytes(sample_bytes(stages, 7.0))  # of no .featurization there
    counts, rows, _ = generate(tmp_path)
    assert (counts["read"], counts["kept"]) == (4, 4)
    assert sorted(map(float, rows.runtime_ms)) == pytest.approx([2, 2, 2, 7])


# Where schedules come from


def test_origins_are_in_schedules_csv(tmp_path):
    raw = tmp_path / "raw"
    write_sample(raw / "plain" / "000.sample", 0)
    candidates = {
        "0": {"sigma": 0.0, "outcome": "measured"}, "1": {"autoscheduler": "Mullapudi2016", "outcome": "measured"},
        "2": {"autoscheduler": "Adams2019", "origin": "mutated"}, "3r": {"origin": "hand_written"}, "3": {"origin": "hand_written"}, "4": 7,
    }  # fmt: skip
    program = raw / "mine" / "p"
    for i in range(5):
        write_sample(program / f"{i:03d}.sample", 1, i)
    write_sample(program / "03r.sample", 1, 3, runtime_ms=0.9)
    (program / "program.json").write_text(json.dumps({"candidates": candidates}))
    with tarfile.open(raw / "packed.tar.xz", "w:xz") as tar:
        tar.add(program, "packed/p")
    expected = {"000": "adams2019", "001": "mullapudi2016", "002": "mutated", "03r": "hand_written", "004": "adams2019"}
    _, rows, _ = generate(tmp_path)
    for collection in ("mine", "packed"):
        part = rows[rows.collection == collection]
        assert dict(zip(part.file.str.extract(r"(\w+)\.sample$")[0], part.origin)) == expected
    assert set(rows[rows.collection == "plain"].origin) == {"adams2019"}


# What is no dump


def test_what_stands_for_a_file_is_named(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 618060\n"
    page = b"\xef\xbb\xbf \n<!-- cached --><!DOCTYPE html>\n<html><head><title>Not found</title></head></html>"
    for name, data in (("x.sample", pointer), ("x.json", page), ("a.tar.xz", pointer), ("b.zip", page), ("c.tar.gz", page.lower())):
        (raw / name).write_bytes(data)
    done = run("generate_dataset.py", *flags(tmp_path), check=False)
    expect_user_error(done, "nothing usable", "3 web_page", "2 lfs_pointer", "web page", "dropped.csv")
    assert dropped_of(tmp_path) == {
        "x.sample": "lfs_pointer", "x.json": "web_page", "a.tar.xz": "lfs_pointer", "b.zip": "web_page", "c.tar.gz": "web_page",
    }  # fmt: skip
    expect_user_error(run("generate_dataset.py", *flags(tmp_path, raw / "a.tar.xz"), check=False), "git lfs pull")


def test_paths_may_hold_commas_spaces_and_umlauts(tmp_path):
    names = ["a, b", "größe ü", "c,d.sample", "e.sample", "f,"]
    for i, name in enumerate(names):
        file = tmp_path / name if "." in name else tmp_path / name / "x.sample"
        write_sample(file, i)
    paths = [str(tmp_path / name) for name in names]
    assert generate(tmp_path, raw=",".join(paths))[0]["kept"] == 5
    assert generate(tmp_path, raw=f" {paths[0]} , {paths[3]},")[0]["kept"] == 2
    assert generate(tmp_path, raw=paths[2])[0]["kept"] == 1
    expect_user_error(run("generate_dataset.py", *flags(tmp_path, f"{paths[0]},missing, too"), check=False), "missing")


# Shards


def test_shards_and_counts(tmp_path):
    for program in range(26):
        for schedule in range(4):
            collection = "applications" if program >= 24 else "random"
            file = tmp_path / "raw" / collection / str(program) / f"{schedule}.sample"
            write_sample(file, program, schedule, n_stages=2 + program % 4)
    counts, _, _ = generate(tmp_path)
    meta = meta_of(tmp_path)
    programs = meta["split"]["programs"]
    assert sum(len(p) for p in programs.values()) == counts["programs"] == 26  # no program in two splits
    for split, names in meta["shards"].items():
        shards = [load_file(tmp_path / "data" / name) for name in names]
        assert sum(len(s["lengths"]) for s in shards) == counts["splits"][split]["schedules"] > 0
        for s in shards:
            assert s["features"].shape == (len(s["lengths"]), s["lengths"].max(), len(meta["features"]))
            assert (np.diff(s["lengths"]) >= 0).all()
            assert {hex_id(p) for p in s["program"]} <= set(programs[split])
    assert all(len(meta["units"][name]) for name in meta["features"])
    stored = data_utils.read_programs(tmp_path / "data", data_utils.read_meta(tmp_path / "data"))
    assert {hex_id(program) for program in stored} == {program for part in programs.values() for program in part}


def test_one_long_schedule_costs_its_own_padding_alone(tmp_path):
    raw = tmp_path / "raw"
    for i in range(40):
        write_sample(raw / f"{i}.sample", i % 5, i)
    write_sample(raw / "long.sample", 7, 0, n_stages=3000)
    generate(tmp_path, "--val_fraction=0", "--test_fraction=0")
    shards = [load_file(tmp_path / "data" / name) for name in meta_of(tmp_path)["shards"]["train"]]
    assert [len(shard["lengths"]) for shard in shards] == [40, 1] or sum(shard["features"].nbytes for shard in shards) < 2**27
    assert all(shard["features"].nbytes <= data_utils.SHARD_BYTES for shard in shards)
    assert sum(len(shard["lengths"]) for shard in shards) == 41


# What was there stays


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.endswith(".lock")}


def test_failing_loses_nothing_of_an_earlier_run(tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    for i in range(8):
        write_sample(raw / f"{i}.sample", i)
    write_sample(raw / "zero.sample", 1, 1, runtime_ms=0)
    generate(tmp_path)
    (data / "notes of mine.txt").write_text("keep")
    (data / "train-99999.safetensors").write_bytes(b"somebody's")
    before = contents(data)
    useless = tmp_path / "useless"
    write_sample(useless / "x.sample", runtime_ms=0)
    done = run("generate_dataset.py", *flags(tmp_path, useless), check=False)
    expect_user_error(done, "nothing usable", "1 zero_runtime", "dropped.failed.csv")
    after = contents(data)
    assert after.pop("dropped.failed.csv").startswith(b"file,reason,detail") and after == before
    (data / "dropped.failed.csv").unlink()
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "misspelt"):
        expect_user_error(run("generate_dataset.py", *flags(tmp_path, tmp_path / wrong), check=False), wrong)
        assert contents(data) == before
    generate(tmp_path, "--shard_size=1")
    expect_user_error(run("generate_dataset.py", *flags(tmp_path, useless), check=False), "dropped.failed.csv")
    generate(tmp_path)
    assert contents(data) == before  # files of more shards are gone, others' are not


def test_a_disk_that_is_full_loses_nothing(tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    for i in range(8):
        write_sample(raw / f"{i}.sample", i)
    generate(tmp_path)
    before = contents(data)
    for i in range(8, 300):
        write_sample(raw / f"{i}.sample", i)
    limited = f"import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.argv[0] = {str(ROOT / 'generate_dataset.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", limited, *flags(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    expect_user_error(done, str(data), "can't be written", "too large")
    assert contents(data) == before


def test_killed_on_the_way_it_loses_nothing(tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    for i in range(6):
        write_sample(raw / f"{i}.sample", i)
    generate(tmp_path)
    before = contents(data)
    with tarfile.open(raw / "many.tar", "w") as tar:
        for i in range(3000):
            tar.add(raw / "0.sample", f"{i}.sample")
    process = subprocess.Popen([sys.executable, ROOT / "generate_dataset.py", *flags(tmp_path)], stdout=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 100
    while not (data / ".generate_dataset.new").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and (data / ".generate_dataset.new").exists()  # it was killed on its way
    assert {name: contents(data)[name] for name in before} == before
    (raw / "many.tar").unlink()
    generate(tmp_path)
    assert contents(data) == before


@pytest.mark.parametrize("moved, placed", [(1, 0), (3, 0), (99, 0), (99, 1), (99, 3)])
def test_killed_while_files_are_moved_what_was_there_comes_back(tmp_path, moved, placed):
    """As if the process had died after so many files had been moved away, and so many new ones into place: the next run has the old
    ones back before it does anything."""
    raw, data = tmp_path / "raw", tmp_path / "data"
    for i in range(4):
        write_sample(raw / f"{i}.sample", i)
    generate(tmp_path)
    before = contents(data)
    (data / ".generate_dataset.old").mkdir()
    for name in sorted(before, key=lambda name: name != "meta.json")[:moved]:
        os.replace(data / name, data / ".generate_dataset.old" / name)
    if placed:
        coming = ["dropped.csv", "schedules.csv", "train-00000.safetensors", "train-00001.safetensors"]
        (data / ".generate_dataset.old" / ".coming.json").write_text(json.dumps([*coming, "meta.json"]))
        for name in coming[-placed:]:
            (data / name).write_bytes(b"new")
    expect_user_error(run("generate_dataset.py", *flags(tmp_path, tmp_path / "missing"), check=False), "missing")
    (tmp_path / "empty").mkdir()
    expect_user_error(run("generate_dataset.py", *flags(tmp_path, tmp_path / "empty"), check=False), "nothing usable")
    assert contents(data) == before


def test_files_of_others_are_never_replaced(tmp_path):
    raw, data = tmp_path / "raw", tmp_path / "data"
    write_sample(raw / "0.sample")
    data.mkdir()
    for name, theirs in (("meta.json", b'{"mine": 1}'), ("schedules.csv", b"a,b\n1,2\n"), ("programs-00000.safetensors", b"bytes")):
        (data / name).write_bytes(theirs)
        expect_user_error(run("generate_dataset.py", *flags(tmp_path), check=False), name, "--data_path")
        assert contents(data) == {name: theirs}
        (data / name).unlink()
    generate(tmp_path)
    (data / "meta.json").unlink()  # what it has written itself it writes again
    generate(tmp_path)


def test_two_at_a_time_are_refused(tmp_path):
    write_sample(tmp_path / "raw" / "0.sample")
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".generate_dataset.lock"):
        expect_user_error(run("generate_dataset.py", *flags(tmp_path), check=False), "another generate_dataset.py")


def test_a_copied_dataset_is_whole(tmp_path):
    """meta.json names all that belongs to it."""
    write_sample(tmp_path / "raw" / "0.sample")
    generate(tmp_path)
    meta = meta_of(tmp_path)
    named = {"meta.json", "schedules.csv", "dropped.csv", *meta["program_files"], *sum(meta["shards"].values(), [])}
    assert set(contents(tmp_path / "data")) == named
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert len(data_utils.read_rows(tmp_path / "copy")) == 1
