"""Archives and compressed files: whatever is wrong with a member costs it alone, and never much memory."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
from conftest import json_tree, make_stages, sample_bytes

from dumps import archives
from dumps.files import Unusable, iter_dumps
from dumps.parsing import parse_dump

SAMPLE = sample_bytes(make_stages(), 1.5)


def read(path):
    """{label: runtime, or the reason why there is none}."""
    found = {}
    for dump in iter_dumps(str(path)):
        try:
            found[dump.file] = parse_dump(dump, 1e5).runtime_ms
        except Unusable as unusable:
            found[dump.file] = unusable.reason
    return found


def add(tar, name, data=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("compress, suffix", [(gzip.compress, ".gz"), (lzma.compress, ".xz"), (bz2.compress, ".bz2")])
def test_a_compressed_dump_is_read(tmp_path, compress, suffix):
    tree = io.BytesIO(str(json_tree()).replace("'", '"').encode()).getvalue()
    for name, data in (("a.sample", SAMPLE), ("b.json", tree), ("c", SAMPLE)):
        (tmp_path / (name + suffix)).write_bytes(compress(data))
    (tmp_path / f"cut.sample{suffix}").write_bytes(compress(SAMPLE)[:-20])
    (tmp_path / f"D.SAMPLE{suffix.upper()}").write_bytes(compress(SAMPLE))
    with tarfile.open(tmp_path / "packed", "w") as tar:  # an archive by its content
        add(tar, f"e.sample{suffix}", compress(SAMPLE))
        add(tar, f"nested{suffix}", compress(b"\0" * 257 + b"ustar" + b"\0" * 250))
    assert read(tmp_path) == {
        f"a.sample{suffix}": 1.5, f"b.json{suffix}": 2.0, f"c{suffix}": 1.5, f"cut.sample{suffix}": "truncated",
        f"D.SAMPLE{suffix.upper()}": 1.5, f"packed/e.sample{suffix}": 1.5, f"packed/nested{suffix}": "nested_archive",
    }  # fmt: skip


def test_a_compressed_featurization_has_its_companions(tmp_path):
    (tmp_path / "x.featurization.gz").write_bytes(gzip.compress(make_stages().tobytes()))
    (tmp_path / "x.sample.xz").write_bytes(lzma.compress(sample_bytes(make_stages(), 7)))
    (tmp_path / "bench.txt").write_text("Benchmark for x produces best case of 0.002 sec/iter (over 2 samples")
    assert read(tmp_path) == {"x.featurization.gz": 2.0}


def patch(data, name, format, central, local, values):
    """A zip with other values in a member's two headers; `central` and `local` : where they begin in each."""
    data = bytearray(data)
    struct.pack_into(format, data, data.rindex(name) - 46 + central, *values)
    struct.pack_into(format, data, data.index(name) - 30 + local, *values)
    return bytes(data)


def test_members_of_a_zip_that_are_no_files_cost_themselves_alone(tmp_path):
    path = tmp_path / "x.zip"
    link = zipfile.ZipInfo("link.sample")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.sample", SAMPLE)
        archive.writestr("NONAME", SAMPLE)
        archive.writestr("NUL.sample", SAMPLE)
        archive.writestr("__MACOSX/._good.sample", b"resource fork")
        archive.writestr("secret.sample", SAMPLE)
        archive.writestr("strange.sample", SAMPLE)
        archive.writestr(link, "good.sample")
        archive.writestr("inner.zip", b"PK\x03\x04" + bytes(100))
        archive.writestr("packed.sample", SAMPLE, zipfile.ZIP_LZMA)
    data = path.read_bytes().replace(b"NUL.sample", b"\0UL.sample").replace(b"NONAME", b"\x99\x99\x02\0--")  # an extra field
    data = patch(data, b"\x99\x99\x02\0--", "<HH", 28, 26, (0, 6))  # the lengths of its name and its extra fields
    data = patch(data, b"secret.sample", "<H", 8, 6, (1,))
    data = patch(data, b"strange.sample", "<H", 10, 8, (99,))
    path.write_bytes(data)
    found = read(path)
    assert found.pop("x.zip/good.sample") == 1.5 and found.pop("x.zip/packed.sample") == 1.5
    assert found.pop("x.zip/secret.sample") == "encrypted" and found.pop("x.zip/strange.sample") == "unsupported_compression"
    assert found.pop("x.zip/link.sample") == "link" and found.pop("x.zip/inner.zip") == "nested_archive"
    assert set(found) == {"x.zip/(no name)"}  # a name that is empty, or that begins with NUL


def test_members_of_a_tar_that_are_no_files_cost_themselves_alone(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "before.sample", SAMPLE)
        add(tar, "soft.sample", type=tarfile.SYMTYPE, linkname="before.sample")
        add(tar, "hard.sample", type=tarfile.LNKTYPE, linkname="before.sample")
        add(tar, "pipe.sample", type=tarfile.FIFOTYPE)
        add(tar, "sparse.sample", SAMPLE, pax_headers={"GNU.sparse.map": "0,9", "GNU.sparse.size": str(2**40)})
        add(tar, "broken.sample", SAMPLE, pax_headers={"GNU.sparse.map": "0,4,9,x", "GNU.sparse.size": "12"})
    found = read(tmp_path)
    assert found["x.tar/before.sample"] == 1.5 and found["x.tar/soft.sample"] == found["x.tar/hard.sample"] == "link"
    assert found["x.tar/pipe.sample"] == "no_file" and found["x.tar/sparse.sample"] == "too_large"
    assert found["x.tar"] == "unreadable_archive"


def test_names_of_any_bytes_are_labels_of_one_line(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a\nb\x1b[31m\udcff.sample", SAMPLE)
    assert read(tmp_path) == {r"x.tar/a\x0ab\x1b[31m\udcff.sample": 1.5}


def peak_memory(function):
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_bombs_cost_no_more_memory_than_the_largest_dump(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_DUMP_BYTES", 2**20)
    zeros = bytes(2**25)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.sample", SAMPLE)
        archive.writestr("honest.sample", zeros, zipfile.ZIP_DEFLATED)
        archive.writestr("lies.sample", zeros, zipfile.ZIP_DEFLATED)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(patch(data, b"lies.sample", "<I", 24, 22, (1000,)))  # a small size where the contents are large
    (tmp_path / "b.sample.gz").write_bytes(gzip.compress(zeros))
    (tmp_path / "c.sample.xz").write_bytes(lzma.compress(zeros))
    with tarfile.open(tmp_path / "d.tar.xz", "w:xz") as tar:
        add(tar, "large.sample", zeros)
        add(tar, "good.sample", SAMPLE)
        add(tar, "header.sample", SAMPLE, pax_headers={"comment": "x" * 2**24})
    del zeros, data
    found, peak = peak_memory(lambda: read(tmp_path))
    assert found.pop("a.zip/good.sample") == found.pop("d.tar.xz/good.sample") == 1.5
    assert found.pop("a.zip/lies.sample") == "truncated"
    assert found.pop("d.tar.xz") == "unreadable_archive" and set(found.values()) == {"too_large"} and len(found) == 4
    assert peak < 2**24


def test_the_order_of_an_archives_members_does_not_matter(tmp_path):
    """What lies beside a dump is found wherever in the archive it comes; so is the note of the collection."""
    files = {"mine/collection.json": b'{"name": "applications-2", "machine": {"cores": 3}}'}
    for program in ("p", "q"):
        files[f"mine/{program}/program.json"] = b'{"calls": {"exp": [1, 2, 3]}, "candidates": {"1": {"origin": "mutated"}}}'
        for i in range(3):
            files[f"mine/{program}/{i:03d}.sample"] = sample_bytes(make_stages(ord(program), i), 1 + i)
            files[f"mine/{program}/{i:03d}.lowered.json"] = b'{"body_cycles": [4, 5, 6]}'
            files[f"mine/{program}/{i:03d}.schedule.h"] = b"// directives"
    files["mine/q/x.featurization"] = make_stages(9, 9).tobytes()
    files["mine/q/bench.txt"] = b"Benchmark for x produces best case of 0.002 sec/iter (over"
    orders = [
        list(files),
        sorted(files),
        sorted(files, reverse=True),
        *(random.Random(i).sample(list(files), len(files)) for i in range(3)),
    ]

    def facts(path):
        return sorted(
            (d.file.split("/", 1)[1], d.calls.tolist(), d.lowered is not None and d.lowered.sum().item(), d.origin, d.machine["cores"], d.is_held_out, d.collection)  # noqa: E501
            for d in iter_dumps(str(path), {"applications"})
        )  # fmt: skip

    expected = None
    for order in orders:
        with tarfile.open(tmp_path / "mine.tar.xz", "w:xz", preset=0) as tar, zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for name in order:
                add(tar, name, files[name])
                archive.writestr(name, files[name])
        for path in (tmp_path / "mine.tar.xz", tmp_path / "mine.zip"):
            expected = expected or facts(path)
            assert facts(path) == expected and len(expected) == 7
    assert {row[2] for row in expected} == {15, False} and [row[3] for row in expected].count("mutated") == 2
    assert all(row[1][0][2] == 1 and row[4:] == (3, True, "mine") for row in expected)


def test_a_program_that_comes_back_later_in_an_archive_is_the_same_program(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:  # as tar --append leaves it
        add(tar, "collection.json", b"{}")
        for i, program in enumerate(("p", "q", "p")):
            if i < 2:
                add(tar, f"{program}/program.json", b'{"calls": {"exp": [1, 2, 3]}}')
            add(tar, f"{program}/{i:03d}.sample", SAMPLE)
            add(tar, f"{program}/{i:03d}.lowered.json", b'{"body_cycles": [4, 5, 6]}')
    dumps = list(iter_dumps(str(tmp_path / "x.tar")))
    assert len(dumps) == 3 and all(dump.calls is not None and dump.lowered is not None for dump in dumps)
