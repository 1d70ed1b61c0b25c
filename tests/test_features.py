"""Dumps in, features out: formats, identities, drops, splits."""

import io
import json
import math
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import json_tree, make_stages, sample_bytes

import data_utils
from config import UserError, load_config
from data_utils import Dump, Unusable, parse_dump
from features import CALLS, FEATURES, LOWERED, OPS, SCHEDULE_FEATURES, featurize


def parse(data, name="x.sample", **options):
    return parse_dump(Dump(name, "c", data=data, **options), max_runtime_ms=1e5)


def test_sample_by_hand():
    stages = np.zeros((2, 326), np.float32)
    stages[0, 0], stages[1, 38] = 3, 7  # num_realizations of the output; working_set_at_root of the other stage
    stages[0, 39 + 5] = 1  # uses float
    stages[0, 39 + 7 + 4 * 7 + 5] = 2  # two float additions: op 4, type 5
    schedule = parse(sample_bytes(stages, 2.5))
    assert schedule.runtime_ms == 2.5 and schedule.schedule_features.shape == (2, 39)
    assert schedule.algorithm_features.shape == (2, 41, 8) and schedule.algorithm_features.sum() == 3

    features = pd.DataFrame(featurize([schedule])[0], columns=FEATURES)
    assert features.log_num_realizations.tolist() == pytest.approx([math.log(4), 0])
    assert features.log_working_set_at_root.tolist() == pytest.approx([0, math.log(8)])
    assert features.uses_float.tolist() == [1, 0]
    assert features.log_add.tolist() == features.log_float_add.tolist() == pytest.approx([math.log(3), 0])
    assert features.log_stages_after.tolist() == pytest.approx([math.log(2), 0])


def test_loops_run_longer_than_what_is_asked_for():
    # 486 points in a row by vectors of 32: 15 whole vectors and one with 6 points in it, 20 rows a production, 144 productions.
    names = SCHEDULE_FEATURES
    consumer = {"num_productions": 144, "points_computed_per_production": 20 * 512, "points_computed_total": 144 * 20 * 486, "vector_size": 32}
    consumer |= {"num_vectors": 144 * 20 * 15, "num_scalars": 144 * 20 * 6}
    inlined = {"inlined_calls": 3 * 144 * 20 * 486, "vector_size": 32, "num_vectors": 144 * 20 * 15, "num_scalars": 144 * 20 * 6}
    scalar = {"num_productions": 288, "points_computed_per_production": 7, "points_computed_total": 288 * 7, "vector_size": 1, "num_scalars": 288 * 7}
    stages = np.zeros((3, 326), np.float32)
    for stage, values in zip(stages, (consumer, inlined, scalar)):
        for name, value in values.items():
            stage[names.index(name)] = value
    features = pd.DataFrame(featurize([parse(sample_bytes(stages, 1))])[0], columns=FEATURES)
    counts = np.expm1(features.astype(float))
    assert counts.log_cost_vector_points.tolist() == pytest.approx([32 * 144 * 20 * 16, 0, 0], rel=1e-4)
    assert counts.log_cost_inlined_vector_points.tolist() == pytest.approx([0, 3 * 32 * 144 * 20 * 16, 0], rel=1e-4)
    assert counts.log_cost_scalar_points.tolist() == pytest.approx([0, 0, 288 * 7], rel=1e-4)
    assert features.partial_share.tolist() == pytest.approx([1 / 16, 1 / 16, 0], rel=1e-4)
    assert features.padding[0] == pytest.approx(math.log(512 / 486), rel=1e-2)
    assert features.outer_padding.tolist() == pytest.approx([0, 0, math.log(512 / 486)], rel=1e-2)  # produced inside the consumer's loops


def test_features_do_not_depend_on_the_schedules_beside():
    schedules = [parse(sample_bytes(make_stages(program, schedule, n_stages), 1)) for program, schedule, n_stages in [(0, 0, 5), (0, 1, 5), (1, 0, 1), (2, 7, 9)]]
    for alone, together in zip(schedules, featurize(schedules)):
        np.testing.assert_array_equal(featurize([alone])[0], together)


def test_features_are_finite_for_extreme_values():
    stages = np.zeros((1, 326), np.float32)
    stages[0, :39] = 1e14
    assert np.isfinite(featurize([parse(sample_bytes(stages, 1))])[0]).all()
    assert np.isfinite(featurize([parse(sample_bytes(stages * 0, 1))])[0]).all()


def test_json_stages_are_brought_into_halides_order():
    schedule = parse(json.dumps(json_tree()).encode(), "x.json")
    points = schedule.schedule_features[:, SCHEDULE_FEATURES.index("points_computed_minimum")]
    assert points.tolist() == [10, 30, 20]  # output, blur's update, blur
    add = 1 + OPS.index("add")
    assert schedule.algorithm_features[:, add, -1].tolist() == [1, 5, 0]
    assert schedule.runtime_ms == 2.0


def test_featurization_takes_its_runtime_from_bench_txt():
    stages = make_stages()
    bench = b"Benchmark for x produces best case of 0.0125 sec/iter"
    assert parse(stages.tobytes(), "x.featurization", bench=bench).runtime_ms == pytest.approx(12.5)
    same = parse(sample_bytes(stages, 12.5))
    assert parse(stages.tobytes(), "x.featurization", bench=bench).schedule == same.schedule


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("x.sample", sample_bytes(make_stages(), 0), "zero_runtime"),
        ("x.sample", sample_bytes(make_stages(), 2e5), "implausible_runtime"),
        ("x.sample", sample_bytes(make_stages(), -1), "implausible_runtime"),
        ("x.sample", sample_bytes(make_stages(), math.nan), "not_a_number"),
        ("x.sample", sample_bytes(make_stages() * np.float32(np.nan), 1), "not_a_number"),
        ("x.sample", sample_bytes(make_stages() - 200, 1), "bad_feature"),
        ("x.sample", sample_bytes(np.where(np.arange(326) == 50, np.float32(3e38), make_stages()), 1), "bad_feature"),
        ("x.sample", sample_bytes(make_stages(), 1)[:-5], "truncated"),
        ("x.sample", b"", "truncated"),
        ("x.sample", sample_bytes(make_stages(n_stages=1)[:0], 1), "no_stages"),
        ("x.sample", np.ones(360 * 2, "<f4").tobytes() + b"\0" * 12, "other_featurization"),
        ("x.featurization", make_stages().tobytes(), "no_runtime"),
        ("x.json", b'{"programming_details": ', "malformed_json"),
        ("x.json", b'{"a": 1}', "unknown_format"),
        ("x.json", json.dumps(json_tree(0)).encode(), "zero_runtime"),
        ("x.json", json.dumps(json_tree(math.nan)).encode(), "not_a_number"),
        ("x.json", json.dumps(json_tree() | {"scheduling_data": [{"Name": "f"}]}).encode(), "missing_field"),
        ("x.json", json.dumps(json_tree() | {"scheduling_data": []}).encode(), "no_stages"),
        ("x.json", b"\0" * 100, "malformed_json"),
        ("x.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "unknown_format"),
    ],
)
def test_unusable_dumps_are_dropped_with_their_reason(name, data, reason):
    with pytest.raises(Unusable) as caught:
        parse(data, name)
    assert caught.value.reason == reason


def test_formats_are_recognised_by_content():
    assert parse(sample_bytes(make_stages(), 1.5), "renamed.bin").runtime_ms == 1.5
    assert parse(json.dumps(json_tree()).encode(), "renamed.txt").runtime_ms == 2.0


def test_identity():
    small, large = (parse(sample_bytes(make_stages(1, 0, size=s), 1)) for s in (64, 128))
    again = parse(sample_bytes(make_stages(1, 0, size=64), 9, program_id=77, schedule_id=5))
    other = parse(sample_bytes(make_stages(2, 0, size=64), 1))
    assert small.program == large.program != other.program
    assert small.instance != large.instance
    assert (again.instance, again.schedule) == (small.instance, small.schedule)


def test_archives_give_the_same_dumps_as_folders(tmp_path):
    folder = tmp_path / "raw" / "mine"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.sample").write_bytes(sample_bytes(make_stages(0, i), 1 + i))
    (folder / "a.featurization").write_bytes(make_stages(0, 9).tobytes())
    (folder / "bench.txt").write_text("1 2 3 4 5 6 7 0.5")
    (folder / "0.schedule.h").write_text("companion")
    loose = [parse_dump(d, 1e5) for d in data_utils.iter_dumps(str(tmp_path / "raw"))]
    with tarfile.open(tmp_path / "mine.tar.xz", "w:xz") as tar:
        tar.add(folder, "../../mine")  # a member's name is a label, never a path
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for f in sorted(folder.iterdir()):
            archive.write(f, f.name)
    for name in ("mine.tar.xz", "mine.zip"):
        dumps = list(data_utils.iter_dumps(str(tmp_path / name)))
        assert {d.collection for d in dumps} == {"mine"}
        packed = [parse_dump(d, 1e5) for d in dumps]
        assert sorted((s.schedule, s.runtime_ms) for s in packed) == sorted((s.schedule, s.runtime_ms) for s in loose)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.tar.xz", "mine.zip", "raw"]


def test_a_damaged_archive_keeps_its_readable_members(tmp_path):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(20):
            data = sample_bytes(make_stages(i, 0) + rng.integers(0, 50, (3, 326)).astype(np.float32), 1)
            info = tarfile.TarInfo(f"{i}.sample")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "cut.tar"
    header = 10 * (512 + 4096)  # of the eleventh member
    damaged = bytearray(buffer.getvalue())
    damaged[header + 150] ^= 1  # in its checksum
    for contents in (buffer.getvalue()[:50_000], buffer.getvalue()[: header + 100], bytes(damaged)):
        path.write_bytes(contents)
        dumps = list(data_utils.iter_dumps(str(path)))
        good = [d for d in dumps if not d.error]
        assert len(good) == 10 and all(parse_dump(d, 1e5) for d in good)
        assert [d.error[0] for d in dumps if d.error] == ["unreadable_archive"]


def test_collections(tmp_path):
    for name in ("a/deep/x.sample", "b/c/y.sample", "z.sample"):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample_bytes(make_stages(), 1))
    (tmp_path / "raw" / "a" / "deep" / "collection.json").write_text("{}")
    def collections(raw_path, names):
        return {d.file: d.collection for d in data_utils.iter_dumps(raw_path, names)}

    raw = tmp_path / "raw"
    assert collections(str(raw), {"c"}) == {"a/deep/x.sample": "a/deep", "b/c/y.sample": "b/c", "z.sample": "raw"}
    assert collections(f"{raw}/b/c,{raw}/a", {"c"}) == {"y.sample": "c", "deep/x.sample": "deep"}
    assert collections(f"{raw}/z.sample", set()) == {"z.sample": "raw"}
    (raw / "a" / "collection.json").write_text("{}")
    assert collections(f"{raw}/a", {"deep"}) == {"deep/x.sample": "deep"}


def test_companions_are_named_exactly(tmp_path):
    for name in ("program.json", "collection.json", "bench.txt", "x.log", "x.schedule.h", "my_program.json"):
        (tmp_path / name).write_text(json.dumps(json_tree()))
    assert [d.file for d in data_utils.iter_dumps(str(tmp_path))] == ["my_program.json"]


def test_calls_are_read_from_beside_the_dumps(tmp_path):
    def told(raw_path):
        return {d.file.split("/")[-1]: parse_dump(d, 1e5).calls[:, CALLS.index("exp")].tolist() for d in data_utils.iter_dumps(str(raw_path))}

    for program, calls in (("a", [0, 2, 1]), ("b", None), ("c", None), ("d", [1, 2])):
        (tmp_path / "raw" / program).mkdir(parents=True)
        (tmp_path / "raw" / program / f"{program}.sample").write_bytes(sample_bytes(make_stages(), 1))
        if calls:
            (tmp_path / "raw" / program / "program.json").write_text(json.dumps({"calls": {"exp": calls}}))
    (tmp_path / "raw" / "calls.json").write_text(json.dumps({"b": {"exp": [3, 0, 0], "log": [0, 1, 0]}}))
    expected = {"a.sample": [0, 2, 1], "b.sample": [3, 0, 0], "c.sample": [0, 0, 0], "d.sample": [0, 0, 0]}  # d: of another program
    assert told(tmp_path / "raw") == expected
    with tarfile.open(tmp_path / "raw" / "packed.tar.xz", "w:xz") as tar:
        for name in ("a/program.json", "a/a.sample", "b/b.sample", "c/c.sample", "d/program.json", "d/d.sample"):
            tar.add(tmp_path / "raw" / name, f"packed/{name}")
    assert told(tmp_path / "raw" / "packed.tar.xz") == expected
    (tmp_path / "raw" / "a" / "program.json").write_text('{"calls": {"exp": [-5, 0, 0]}}')
    assert told(tmp_path / "raw" / "a") == {"a.sample": [0, 0, 0]}
    for wrong in ('{"exp": [-5, 0, 0]}', '{"exp": [1, 2], "log": [1]}', '{"sinh": [1]}', "[1]"):
        (tmp_path / "raw" / "a" / "calls.json").write_text(f'{{"a": {wrong}}}')
        with pytest.raises(UserError, match="calls.json"):
            told(tmp_path / "raw" / "a")
    (tmp_path / "raw" / "a" / "calls.json").unlink()
    (tmp_path / "raw" / "a" / "program.json").write_text('{"calls": {"exp": [0, 2, 1]}}')
    features = pd.DataFrame(featurize([parse_dump(next(data_utils.iter_dumps(str(tmp_path / "raw"))), 1e5)])[0], columns=FEATURES)
    assert features.log_exp_calls.tolist() == pytest.approx([0, math.log(3), math.log(2)])


def test_counts_in_the_lowered_code_are_read_from_beside_the_dumps(tmp_path):
    def told(raw_path):
        dumps = data_utils.iter_dumps(str(raw_path))
        found = {d.file.rsplit("/", 1)[-1]: parse_dump(d, 1e5).lowered for d in dumps}
        return {name: None if counts is None else counts[:, LOWERED.index("stores")].tolist() for name, counts in found.items()}

    folder = tmp_path / "raw" / "p"
    folder.mkdir(parents=True)
    for name in ("000", "00r", "0rr", "001", "002", "003"):
        (folder / f"{name}.sample").write_bytes(sample_bytes(make_stages(), 1))
    for name, stores in (("000", [1, 2, 3]), ("001", [4, 5]), ("002", [-1, 0, 0])):  # 001: of other stages; 002: nonsense
        (folder / f"{name}.lowered.json").write_text(json.dumps({"stores": stores}))
    expected = {"000.sample": [1, 2, 3], "00r.sample": [1, 2, 3], "0rr.sample": [1, 2, 3], "001.sample": None, "002.sample": None, "003.sample": None}
    assert told(tmp_path / "raw") == expected
    assert told(folder / "00r.sample") == {"00r.sample": [1, 2, 3]}
    (tmp_path / "raw" / "q").mkdir()
    (tmp_path / "raw" / "q" / "003.sample").write_bytes(sample_bytes(make_stages(), 1))
    (folder / "003.sample").unlink()
    archive = tmp_path / "packed" / "mine.tar.xz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:xz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, f"mine/p/{file.name}")
        tar.add(tmp_path / "raw" / "q" / "003.sample", "mine/q/03r.sample")
    expected["03r.sample"] = expected.pop("003.sample")
    assert told(archive) == expected
    features = pd.DataFrame(featurize([parse_dump(d, 1e5) for d in data_utils.iter_dumps(str(folder / "000.sample"))])[0], columns=FEATURES)
    assert features.log_cost_lowered_stores.tolist() == pytest.approx(np.log([2, 3, 4]).tolist()) and (features.lowered_is_counted == 1).all()


def split_of(programs, *flags):
    rows = pd.DataFrame({"collection": 0, "program": programs, "features": [p * 1000 + i for i, p in enumerate(programs)]})
    return rows, pd.Series(data_utils.split_rows(rows, ["c"], load_config(argv=list(flags))))


def test_splits_are_stable_and_keep_programs_together():
    few, many = list(range(100)) * 2, list(range(500)) * 2
    rows, split = split_of(few)
    assert (split.groupby(rows.program).nunique() == 1).all()
    assert split.value_counts(normalize=True)["test"] == pytest.approx(0.2, abs=0.12)
    more_rows, more = split_of(many)
    assert dict(zip(rows.program, split)).items() <= dict(zip(more_rows.program, more)).items()


def test_folds_cover_every_program_once_and_validate_on_others():
    tested, validated = [], []
    for fold in range(4):
        rows, split = split_of(list(range(200)), "--folds", "4", "--fold", str(fold))
        tested += rows.program[split == "test"].tolist()
        validated.append(set(rows.program[split == "val"]))
        assert {"train", "val", "test"} == set(split)
    assert sorted(tested) == list(range(200))
    assert len(set.union(*validated)) > 2 * max(map(len, validated))  # one lucky draw would touch every fold


def test_held_out_programs_are_never_trained_on():
    rows = pd.DataFrame({"collection": [1] * 5 + [0] * 50, "program": list(range(5)) + list(range(50)), "features": range(55)})
    split = data_utils.split_rows(rows, ["c", "applications"], load_config(argv=[]))
    assert (split[:5] == "holdout").all()
    assert (split[5:10] == "test").all()  # the same programs in another collection


def test_split_by_schedule_keeps_identical_features_together():
    rows = pd.DataFrame({"collection": 0, "program": [1] * 400, "features": list(range(200)) * 2})
    split = pd.Series(data_utils.split_rows(rows, ["c"], load_config(argv=["--split_by", "schedule"])))
    assert (split.groupby(rows.features).nunique() == 1).all() and set(split) == {"train", "val", "test"}
