"""The project's own dump format: what is written is read, the same schedule by two roads is one, and damage is dropped by its reason."""

import gzip
import json
import tarfile

import numpy as np
import orjson
import pandas as pd
import pytest
from conftest import expect_user_error, make_stages, parse, run, sample_bytes

import data_utils
from batches import Sequences
from dumps import own
from dumps.files import ArchiveReader, Dump, Unusable
from features import LOWERED, SCHEDULE_FEATURES, featurize

COUNTS = {"bytes_stored": [1, 2, 3], "points_stored": [8, 16, 24]}
KINDS = dict.fromkeys(LOWERED, [0, 0, 0]) | COUNTS


def dump_of(stages, runtime_ms=2.0, lowered_hash=77, origin="mutated", counts=COUNTS, **more):
    names = ["out", "f.update(0)", "f"][: len(stages)]
    program = own.Program.of_featurization(np.asarray(stages, "<f4").tobytes(), names, {"exp": [0, 2, 1][: len(stages)]})
    return own.OwnDump(program, lowered_hash, "by name", counts, '{"outputs":["out"],"funcs":{}}', origin, runtime_ms, [2.5, 2.0], **more)


def own_bytes(*arguments, **options):
    return own.write(dump_of(*arguments, **options))


def test_what_is_written_is_read():
    stages = make_stages(3, 1, size=2**24 + 2)
    stages[1, 39:60] = 0.5  # float counts survive exactly
    dump = dump_of(stages)
    again = own.read(orjson.loads(own.write(dump)))
    assert np.array_equal(again.program.sizes, stages[:, SCHEDULE_FEATURES.index("points_computed_minimum")])
    assert np.array_equal(again.program.algorithm, stages[:, 39:].reshape(3, 41, 7))
    assert again.counts == KINDS and again.program.stages == dump.program.stages and again.program.calls == dump.program.calls
    for name in ("lowered_hash", "normalisation", "directives", "origin", "runtime_ms", "passes_ms"):
        assert getattr(again, name) == getattr(dump, name), name
    unmeasured = own.read(orjson.loads(own_bytes(stages, None, counts=None)))
    assert unmeasured.runtime_ms is None and unmeasured.counts is None


def test_program_and_instance_are_those_of_a_sample_and_the_schedule_is_its_lowered_code():
    stages = make_stages(3, 1)
    sample, mine = parse(sample_bytes(stages, 1.5)), parse(own_bytes(stages), "x.schedule.json")
    assert (mine.program, mine.instance) == (sample.program, sample.instance)
    assert np.array_equal(mine.algorithm_features, sample.algorithm_features)
    assert mine.schedule == mine.lowered_hash == 77 and mine.origin == "mutated" and mine.runtime_ms == 2.0
    assert not mine.has_schedule_features and sample.has_schedule_features and sample.lowered_hash is None
    sizes = SCHEDULE_FEATURES.index("points_computed_minimum")
    assert (mine.schedule_features[:, sizes] == 1024).all() and not np.delete(mine.schedule_features, sizes, 1).any()
    assert mine.lowered[:, LOWERED.index("bytes_stored")].tolist() == [1, 2, 3] and mine.calls.sum() == 3
    other_size = parse(own_bytes(make_stages(3, 1, size=512)), "x.schedule.json")
    assert other_size.program == mine.program and other_size.instance != mine.instance
    assert np.isfinite(featurize([mine, sample])[0]).all()


def test_it_is_recognised_by_content_and_says_when_nothing_was_measured():
    assert parse(own_bytes(make_stages()), "renamed.bin").schedule == 77
    assert parse(gzip.compress(own_bytes(make_stages())), "x.schedule.json.gz").schedule == 77
    for name in ("x.schedule.json", "renamed.bin"):
        with pytest.raises(Unusable) as caught:
            parse(own_bytes(make_stages(), None), name)
        assert caught.value.reason == "no_runtime"


def test_counts_of_another_version_are_no_counts():
    tree = orjson.loads(own_bytes(make_stages()))
    del tree["lowered"]["counts"]["bytes_stored"]
    with pytest.raises(Unusable, match="no_counts"):  # a kind was not counted: 0 would be wrong
        parse(orjson.dumps(tree), "x.json")
    tree["lowered"]["counts"] |= {"bytes_stored": [1, 2, 3], "of a later version": [9, 9, 9]}
    del tree["lowered"]["counts"]["masked_stores"]  # not counted by the first version, and mostly 0
    lowered = parse(orjson.dumps(tree), "x.json").lowered
    assert lowered[:, LOWERED.index("bytes_stored")].tolist() == [1, 2, 3] and not lowered[:, LOWERED.index("masked_stores")].any()


def damaged(change):
    tree = orjson.loads(own_bytes(make_stages()))
    change(tree)
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda t: t.update(version=2), "unknown_format"),
        (lambda t: t.update(format="another"), "unknown_format"),
        (lambda t: t.pop("program"), "missing_field"),
        (lambda t: t.pop("origin"), "missing_field"),
        (lambda t: t.update(origin=" "), "missing_field"),
        (lambda t: t.update(runtime_ms="fast"), "missing_field"),
        (lambda t: t.update(runtime_ms=True), "missing_field"),
        (lambda t: t.update(runtime_ms=0), "zero_runtime"),
        (lambda t: t.update(runtime_ms=-1), "implausible_runtime"),
        (lambda t: t.update(runtime_ms=float("nan")), "not_a_number"),
        (lambda t: t["lowered"].pop("hash"), "missing_field"),
        (lambda t: t["lowered"].update(hash="ffffffffffffffffff"), "missing_field"),
        (lambda t: t["lowered"].update(hash="words"), "missing_field"),
        (lambda t: t["lowered"].update(counts=[1]), "missing_field"),
        (lambda t: t["lowered"]["counts"].update(bytes_stored=[1, 2]), "bad_feature"),
        (lambda t: t["lowered"]["counts"].update(bytes_stored=[1, -2, 3]), "bad_feature"),
        (lambda t: t["lowered"].update(counts={kind: [1, 2] for kind in LOWERED}), "missing_field"),
        (lambda t: t["program"].update(stages=["out"]), "missing_field"),
        (lambda t: t["program"].update(sizes=[1, 2]), "bad_feature"),
        (lambda t: t["program"].update(sizes=[1, 2, -3]), "bad_feature"),
        (lambda t: t["program"].update(sizes=[1, 2, float("inf")]), "not_a_number"),
        (lambda t: t["program"].update(sizes=[]), "bad_feature"),
        (lambda t: t["program"].update(sizes=[[1], [2], [3]]), "missing_field"),
        (lambda t: t["program"].update(sizes=[1.0] * 60_000), "too_large"),
        (lambda t: t["program"]["calls"].update(exp=[1]), "missing_field"),
        (lambda t: t["program"]["calls"].update(exp=["a", 1, 2]), "bad_feature"),
        (lambda t: t["program"]["algorithm"].update(types=9), "missing_field"),
        (lambda t: t["program"]["algorithm"]["at"].append(-1), "missing_field"),
        (lambda t: t["program"]["algorithm"]["at"].__setitem__(0, -1), "bad_feature"),
        (lambda t: t["program"]["algorithm"]["at"].__setitem__(0, 10**6), "bad_feature"),
        (lambda t: t["program"]["algorithm"]["at"].__setitem__(0, 10**30), "missing_field"),
        (lambda t: t["program"]["algorithm"]["at"].__setitem__(0, t["program"]["algorithm"]["at"][1]), "bad_feature"),
        (lambda t: t["program"]["algorithm"]["values"].__setitem__(0, 1e300), "not_a_number"),
        (lambda t: t["program"]["algorithm"]["values"].__setitem__(0, 1e20), "bad_feature"),
    ],
)
def test_damage_is_dropped_by_its_reason(change, reason):
    with pytest.raises(Unusable) as caught:
        parse(damaged(change), "x.schedule.json")
    assert caught.value.reason == reason, caught.value


def write_collection(folder):
    """A program of two Adams2019 schedules and five dumps of our own, of which two are of the same schedules."""
    folder.mkdir(parents=True)
    for i, runtime_ms in enumerate((5.0, 3.0)):
        (folder / f"00{i}.sample").write_bytes(sample_bytes(make_stages(1, i), runtime_ms))
    (folder / "00r.sample").write_bytes(sample_bytes(make_stages(1, 0), 6.0))
    (folder / "000.lowered.json").write_text(json.dumps(COUNTS | {"hash": f"{100:016x}"}))
    (folder / "002.schedule.json").write_bytes(own_bytes(make_stages(1, 9), 4.0, lowered_hash=100))  # 000 by another road, faster
    (folder / "003.schedule.json").write_bytes(own_bytes(make_stages(1, 9), 7.0, lowered_hash=101, origin="li2018"))
    (folder / "03r.schedule.json").write_bytes(own_bytes(make_stages(1, 9), 6.5, lowered_hash=101, origin="li2018"))
    (folder / "004.schedule.json").write_bytes(own_bytes(make_stages(1, 9, size=64), 1.0, lowered_hash=101))  # another instance
    (folder / "005.schedule.json").write_bytes(own_bytes(make_stages(1, 9), 1.0, lowered_hash=102)[:-9])
    (folder / "program.json").write_text('{"candidates": {"2": {"origin": "something else"}}}')


def generate(raw, folder):
    run("generate_dataset.py", f"--raw_path={raw}", f"--data_path={folder}", "--val_fraction=0", "--test_fraction=0", "--num_threads=1")
    rows = pd.read_csv(folder / "schedules.csv", dtype={"schedule": str})
    return orjson.loads((folder / "meta.json").read_bytes())["counts"], rows.sort_values("runtime_ms")


def test_the_same_schedule_found_by_two_roads_is_one(tmp_path):
    write_collection(tmp_path / "raw" / "mine" / "p")
    counts, rows = generate(tmp_path / "raw", tmp_path / "data")
    assert counts["read"] == 8 and counts["kept"] == 4 and counts["merged"] == 3 and counts["dropped"] == {"malformed_json": 1}
    assert rows.runtime_ms.tolist() == [1.0, 3.0, 4.0, 6.5] and rows.measurements.tolist() == [1, 1, 3, 2]
    assert rows.origin.tolist() == ["mutated", "adams2019", "mutated", "li2018"], "what a dump says itself, else what program.json says"
    assert rows.program.nunique() == 1 and rows.instance.nunique() == 2

    (tmp_path / "raw" / "theirs").mkdir()
    (tmp_path / "raw" / "theirs" / "x.schedule.json").write_bytes(own_bytes(make_stages(1, 9), 1.0, lowered_hash=100))
    assert generate(tmp_path / "raw", tmp_path / "data")[0]["kept"] == 5, "nothing is merged across collections"


def test_archives_give_the_same_and_need_not_be_held_back(tmp_path):
    write_collection(tmp_path / "mine" / "p")
    (tmp_path / "mine" / "collection.json").write_text('{"name": "mine"}')
    loose = generate(tmp_path / "mine", tmp_path / "data")
    order = sorted((tmp_path / "mine").rglob("*.json"), key=lambda f: "schedule" in f.name) + sorted((tmp_path / "mine").rglob("*.sample"))
    with tarfile.open(tmp_path / "mine.tar.xz", "w:xz") as tar:
        for path in order:
            tar.add(path, path.relative_to(tmp_path))
    packed = generate(tmp_path / "mine.tar.xz", tmp_path / "data")
    assert packed[0] == loose[0] and packed[1].schedule.tolist() == loose[1].schedule.tolist()

    reader = ArchiveReader(Dump("x.tar", ""), None, None, {})
    for folder, name in (("c", "collection.json"), ("c/p", "program.json"), ("c/p", "000.schedule.json")):
        reader.put(folder, name, b"{}", ())
    assert reader.has_all("c/p"), "nothing has to come beside it"
    reader.put("c/p", "001.sample", b"", ())
    assert not reader.has_all("c/p")


def test_a_file_of_a_later_version_is_one_line(tmp_path):
    (tmp_path / "x.schedule.json").write_bytes(damaged(lambda t: t.update(version=9)))
    done = run("generate_dataset.py", f"--raw_path={tmp_path}", f"--data_path={tmp_path / 'data'}", check=False)
    expect_user_error(done, "nothing usable", "version 9")


def test_halides_network_reads_the_shorter_ones_among_longer_schedules(tmp_path):
    """Of a shard that holds schedules with Halide's features and longer ones without."""
    raw = tmp_path / "raw"
    for program in range(4):
        stages = make_stages(program)
        for schedule in range(3):
            file = raw / f"p{program}" / f"{schedule}.sample"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample_bytes(make_stages(program, schedule), 1.0 + schedule))
        longer = np.concatenate([stages, stages])
        counts = {kind: [1] * len(longer) for kind in LOWERED}
        program_ = own.Program(longer[:, own.SIZES], longer[:, 39:].reshape(len(longer), -1, 7), [f"s{i}" for i in range(len(longer))])
        dump = own.OwnDump(program_, 7 + program, "test", counts, "", "mutated", 2.0)
        (raw / f"p{program}" / "9.schedule.json").write_bytes(own.write(dump))
    run("generate_dataset.py", f"--raw_path={raw}", f"--data_path={tmp_path / 'data'}")
    meta, seen = data_utils.read_meta(tmp_path / "data"), 0
    for split in data_utils.SPLITS:
        rows = Sequences(tmp_path / "data", meta, split)
        batches = list(rows.halide_batches())
        assert all(features.shape[:2] == algorithm.shape[:2] and len(lengths) == len(features) for features, algorithm, lengths in batches)
        assert sum(len(lengths) for *_, lengths in batches) == len(rows.featurized)
        seen += len(rows) - len(rows.featurized)
    assert seen == 4
