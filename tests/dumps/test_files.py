"""Dumps in folders and archives, and what lies beside them."""

import io
import json
import math
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import json_tree, make_stages, sample_bytes

from config import UserError
from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from features import CALLS, FEATURES, LOWERED, featurize


def test_archives_give_the_same_dumps_as_folders(tmp_path):
    folder = tmp_path / "raw" / "mine"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.sample").write_bytes(sample_bytes(make_stages(0, i), 1 + i))
    (folder / "a.featurization").write_bytes(make_stages(0, 9).tobytes())
    (folder / "bench.txt").write_text("1 2 3 4 5 6 7 0.5")
    (folder / "0.schedule.h").write_text("companion")
    loose = [parse_dump(d, 1e5) for d in iter_dumps(str(tmp_path / "raw"))]
    with tarfile.open(tmp_path / "mine.tar.xz", "w:xz") as tar:
        tar.add(folder, "../../mine")  # a member's name is a label, never a path
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for f in sorted(folder.iterdir()):
            archive.write(f, f.name)
    for name in ("mine.tar.xz", "mine.zip"):
        dumps = list(iter_dumps(str(tmp_path / name)))
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
        dumps = list(iter_dumps(str(path)))
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
        return {d.file: d.collection for d in iter_dumps(raw_path, names)}

    raw = tmp_path / "raw"
    assert collections(str(raw), {"c"}) == {"a/deep/x.sample": "a/deep", "b/c/y.sample": "b/c", "z.sample": "raw"}
    assert collections(f"{raw}/b/c,{raw}/a", {"c"}) == {"y.sample": "c", "deep/x.sample": "deep"}
    assert collections(f"{raw}/z.sample", set()) == {"z.sample": "raw"}
    (raw / "a" / "collection.json").write_text("{}")
    assert collections(f"{raw}/a", {"deep"}) == {"deep/x.sample": "deep"}


def test_companions_are_named_exactly(tmp_path):
    for name in ("program.json", "collection.json", "bench.txt", "x.log", "x.schedule.h", "my_program.json"):
        (tmp_path / name).write_text(json.dumps(json_tree()))
    assert [d.file for d in iter_dumps(str(tmp_path))] == ["my_program.json"]


def test_calls_are_read_from_beside_the_dumps(tmp_path):
    def told(raw_path):
        return {d.file.split("/")[-1]: parse_dump(d, 1e5).calls[:, CALLS.index("exp")].tolist() for d in iter_dumps(str(raw_path))}

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
    features = pd.DataFrame(featurize([parse_dump(next(iter_dumps(str(tmp_path / "raw"))), 1e5)])[0], columns=FEATURES)
    assert features.log_exp_calls.tolist() == pytest.approx([0, math.log(3), math.log(2)])


def test_counts_in_the_lowered_code_are_read_from_beside_the_dumps(tmp_path):
    def told(raw_path):
        dumps = iter_dumps(str(raw_path))
        found = {d.file.rsplit("/", 1)[-1]: parse_dump(d, 1e5).lowered for d in dumps}
        return {name: None if counts is None else counts[:, LOWERED.index("bytes_stored")].tolist() for name, counts in found.items()}

    folder = tmp_path / "raw" / "p"
    folder.mkdir(parents=True)
    for name in ("000", "00r", "0rr", "001", "002", "003", "004"):
        (folder / f"{name}.sample").write_bytes(sample_bytes(make_stages(), 1))
    for name, stores in (("000", [1, 2, 3]), ("001", [4, 5]), ("002", [-1, 0, 0])):  # 001: of other stages; 002: nonsense
        (folder / f"{name}.lowered.json").write_text(json.dumps({"bytes_stored": stores, "body_cycles": [7] * len(stores)}))
    (folder / "004.lowered.json").write_text('{"bytes_stored": [1, 2, 3]}')  # counted before cycles were
    expected = {
        "000.sample": [1, 2, 3],
        "00r.sample": [1, 2, 3],
        "0rr.sample": [1, 2, 3],
        "001.sample": None,
        "002.sample": None,
        "003.sample": None,
        "004.sample": None,
    }
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
    features = pd.DataFrame(featurize([parse_dump(d, 1e5) for d in iter_dumps(str(folder / "000.sample"))])[0], columns=FEATURES)
    assert features.log_cost_lowered_bytes_stored.tolist() == pytest.approx(np.log([2, 3, 4]).tolist())
    assert (features.lowered_is_counted == 1).all()
