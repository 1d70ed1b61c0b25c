"""A collection's folders and archives: what is never overwritten, what is removed, and which program measurements belong to."""

import dataclasses
import tarfile

import orjson
import pytest
from conftest import BLUR

from config import UserError
from halide_tools.programs import find_programs
from measuring import archives, machine
from measuring.candidate import prepare_processes
from measuring.processes import identities


def make_collection(folder, program="p", runtime_ms=1.0, **record):
    """A folder as a collection writes it, with one program of one schedule."""
    (folder / program).mkdir(parents=True)
    (folder / "collection.json").write_bytes(orjson.dumps({"source": {"pipeline": "p.py"}, "machine": {}, "calibration": []}))
    candidates = {"0": {"outcome": "measured", "runtime_ms": runtime_ms, "hash": "h"}}
    content = {"name": program, "seed": 1, "complete": True, "candidates": candidates} | record
    (folder / program / "program.json").write_bytes(orjson.dumps(content))
    for suffix in (".sample", ".schedule.h", ".lowered.json", ".schedule.json"):
        (folder / program / f"000{suffix}").write_bytes(b"of " + suffix.encode())
    (folder / program / "00r.sample").write_bytes(b"again")
    return folder


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_only_what_is_in_the_archive_is_removed_and_only_what_the_collection_wrote(tmp_path):
    out = make_collection(tmp_path / "out")
    (out / "collection.json.lock").touch()
    (out / "p" / "000.sample.tmp").write_bytes(b"half")
    (out / "notes.txt").write_text("mine")
    (out / "p" / "my.sample").write_text("mine, too")
    (out / "photos").mkdir()
    (out / "photos" / "000.sample").write_text("in no program's folder")
    before = files(out)
    archive = archives.pack(out)
    assert files(out) == {name: before[name] for name in ("notes.txt", "p/my.sample", "photos/000.sample")}
    with tarfile.open(archive) as tar:
        packed = {m.name.removeprefix("out/"): tar.extractfile(m).read() for m in tar}
    own = (
        "collection.json",
        "p/program.json",
        "p/000.sample",
        "p/000.schedule.h",
        "p/000.lowered.json",
        "p/000.schedule.json",
        "p/00r.sample",
    )
    assert packed == {name: before[name] for name in own}
    assert list(packed)[1] == "p/program.json", "before the program's schedules"

    clean = make_collection(tmp_path / "clean")
    archives.pack(clean)
    assert not clean.exists()


@pytest.mark.parametrize("damage", ["changed", "left out", "no archive"])
def test_a_folder_that_differs_from_the_archive_is_kept(tmp_path, damage):
    out = make_collection(tmp_path / "out")
    archive = tmp_path / "out.tar.xz"
    if damage == "no archive":
        archive.write_bytes(b"somebody's")
    else:
        make_collection(tmp_path / "other" / "out", runtime_ms=2.0 if damage == "changed" else 1.0)
        if damage == "left out":
            (tmp_path / "other" / "out" / "p" / "00r.sample").unlink()
        archives.pack(tmp_path / "other" / "out").rename(archive)
    before, packed = files(out), archive.read_bytes()
    with pytest.raises(UserError, match="out.tar.xz is there already"):
        archives.pack(out)
    assert files(out) == before and archive.read_bytes() == packed


def test_a_new_part_takes_a_name_that_nobody_has(tmp_path):
    out = make_collection(tmp_path / "out")
    (tmp_path / "out-2").mkdir()
    (tmp_path / "out-2" / "mine.txt").write_text("mine")
    (tmp_path / "out-3.tar.xz").write_bytes(b"a packed part")
    folder, why = archives.open_part(out, {"pipeline": "p.py"}, {"processor": "B"}, n_drifted=1)
    assert folder == tmp_path / "out-4" and archives.parts(out) == [out, folder] and not why
    assert files(tmp_path / "out-2") == {"mine.txt": b"mine"}
    note = orjson.loads((folder / "collection.json").read_bytes())
    assert note["machine"] == {"processor": "B"}
    folder, why = archives.open_part(out, {"pipeline": "p.py"}, {"processor": "C"}, n_drifted=0)
    assert folder == tmp_path / "out-5" and "processor B, here C" in why
    assert archives.open_part(out, {"pipeline": "p.py"}, {"processor": "C"}, n_drifted=0) == (folder, "")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "blur").mkdir()
    (tmp_path / "blur" / "program.json").write_text("{}")
    with pytest.raises(UserError, match="something else"):
        archives.check_output(tmp_path)
    archives.check_output(tmp_path / "new")
    (tmp_path / "stopped_at_once").mkdir()
    (tmp_path / "stopped_at_once" / "collection.json.tmp").touch()
    archives.check_output(tmp_path / "stopped_at_once")
    archives.check_output(make_collection(tmp_path / "out"))


def test_programs_in_packed_parts_are_not_measured_again(tmp_path):
    out = make_collection(tmp_path / "out")
    archives.pack(make_collection(tmp_path / "out-2", "q"))
    archives.pack(make_collection(tmp_path / "out-4", "r"))  # of somebody else: there is no out-3
    assert archives.packed_programs(out) == {"q"}


def test_measurements_of_another_program_are_noticed(tmp_path, blur):
    """By size, parameters, threads, target, or an algorithm that has been edited; one that was never measured may change."""
    prepare_processes()
    spec = find_programs(blur.path)[0]
    identity = identities([spec])[spec]
    out = make_collection(tmp_path / "out", "blur", identity=identity, threads=spec.threads, target=str(spec.halide_target()))
    archives.check_identities(out, [spec])
    with pytest.raises(UserError, match=f"threads {spec.threads}, here {spec.threads + 1}"):
        archives.check_identities(out, [dataclasses.replace(spec, n_threads=spec.threads + 1)])
    with pytest.raises(UserError, match="target .*sse41"):
        archives.check_identities(out, [dataclasses.replace(spec, target="x86-64-linux-sse41")])
    for i, edited in enumerate((BLUR.replace("256", "128"), BLUR.replace("0.3", "0.25"))):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "blur.py").write_text(edited)
        with pytest.raises(UserError, match="algorithm, sizes or inputs"):
            archives.check_identities(out, find_programs(tmp_path / f"{i}" / "blur.py"))
    old = make_collection(tmp_path / "old", "blur")
    with pytest.raises(UserError, match="earlier version"):
        archives.check_identities(old, [spec])
    failed = make_collection(tmp_path / "failed", "blur", candidates={"0": {"outcome": "halide_error"}}, identity="another")
    archives.check_identities(failed, [spec])


def test_an_identity_does_not_depend_on_what_was_built_before(blur):
    prepare_processes()
    spec = find_programs(blur.path)[0]
    others = [dataclasses.replace(spec, n_threads=n) for n in (1, 2, 3)]
    together = identities([*others, spec])
    assert together[spec] == identities([spec])[spec] and len({together[s] for s in others}) == 3


def test_what_differs_between_two_machines_is_named():
    note = machine.describe_machine()
    assert machine.differences(note, note) == []
    assert machine.differences(note | {"cores": 64, "system": "X"}, note) == sorted(
        [f"cores 64, here {note['cores']}", f"system X, here {note['system']}"]
    )
