"""Finding dumps: every file or archive member under raw_path that may hold a schedule, with what lies beside it.

`iter_dumps` is the way in. Archives are read without unpacking; a damaged member or archive costs itself alone.
"""

import functools
import hashlib
import itertools
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from config import UserError
from features import CALLS, LOWERED

CALLS_FILE = "calls.json"  # of programs whose program.json does not tell: {name: {kind of call: [calls a point of each stage]}}
LOWERED_SUFFIX = ".lowered.json"  # of what was counted in a schedule's lowered code: {kind of count: [of each stage]}
EVERYWHERE = "body_cycles"  # a kind in features.EXECUTED that every schedule has
COMPANION_NAMES = ("bench.txt", "collection.json", "program.json", CALLS_FILE)
COMPANION_SUFFIXES = (LOWERED_SUFFIX, ".schedule.h", ".weights", ".log", ".lock", ".tmp")  # .tmp: a file somebody is still writing
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, RuntimeError, TypeError, ValueError)
MAX_DUMP_BYTES = 2**28


class Unusable(Exception):
    """A dump that can't be used: a reason to count it under, and a detail for a person."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class Dump:
    """A file that may hold a schedule, before it is parsed. `file` is its label; `data` is None where it lies at `path`."""

    file: str
    collection: str
    root: int = 0
    path: str = ""
    data: bytes | None = None
    bench: bytes | None = None
    calls: np.ndarray | None = None
    lowered: np.ndarray | None = None
    error: tuple = ()


# Finding dumps


def iter_dumps(raw_path, names=frozenset()):
    """Every dump under `raw_path` in a stable order, companions left out; archives are read without unpacking.

    `raw_path` : a folder (searched in depth), one file, or several separated by commas. Raises UserError where one is missing.
    `names` : folders that are collections of their own wherever they lie (those held out).
    """
    roots, marked = {}, set()
    listed_calls = functools.lru_cache(1)(_listed_calls)  # a root's folders come together
    for root, folder, files in iter_folders(raw_path):
        number = roots.setdefault(root.resolve(), len(roots))
        if "collection.json" in files:
            marked.add(folder)
        within = "".join(f"{part}/" for part in folder.relative_to(root).parts)
        collection, topmost = _collection_of(folder, root, marked, names), within.split("/")[0] or root.resolve().name
        listed = listed_calls(root)
        calls = _calls_in(_read_or_none(folder / "program.json"), listed.get(folder.name))
        present = set(files)
        for name in files:
            if is_companion(name):
                continue
            file, label = os.path.join(folder, name), printable(within + name)
            if is_archive(file):
                yield from _archive_members(file, Dump(label, printable(collection or without_suffixes(label)), number), listed)
            else:
                bench = _read_or_none(folder / "bench.txt") if name.endswith(".featurization") else None
                counts = schedule_of(name) + LOWERED_SUFFIX
                lowered = _lowered_in(_read_or_none(folder / counts)) if counts in present else None
                yield Dump(label, printable(collection or topmost), number, path=file, bench=bench, calls=calls, lowered=lowered)


def iter_folders(raw_path):
    """(what was given, folder in it, names of the files in that folder) for every folder under `raw_path`, in a stable order.

    A file that is given by itself comes with its companions, on which it depends.
    """
    for part in (part.strip() for part in raw_path.split(",") if part.strip()):
        path = Path(part)
        if path.is_dir():
            for folder, subfolders, names in os.walk(path):
                subfolders.sort()
                yield path, Path(folder), sorted(name for name in names if os.path.isfile(os.path.join(folder, name)))
        elif path.exists():
            companions = *COMPANION_NAMES, schedule_of(path.name) + LOWERED_SUFFIX
            yield path.parent, path.parent, [name for name in (*companions, path.name) if path.with_name(name).is_file()]
        else:
            raise UserError(f"{part}: no such file or folder; give the path of measured schedules")


def inputs_hash(raw_path):
    """A hash of which files are under `raw_path`, with their sizes and times of change: the same where nothing has been touched."""
    digest = hashlib.sha256()
    for _, folder, files in iter_folders(raw_path):
        for file in (os.path.join(folder, name) for name in files):
            found = os.stat(file)
            digest.update(f"{printable(file)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def printable(name):
    """A file's name as text that can be written anywhere, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_companion(name):
    return name in COMPANION_NAMES or name.endswith(COMPANION_SUFFIXES)


def is_archive(path):
    """By name, or by the first bytes of the compressed formats."""
    if path.lower().endswith(ARCHIVE_SUFFIXES):
        return True
    if path.endswith((".sample", ".featurization", ".json")):
        return False  # spares opening thousands of files twice
    try:
        with open(path, "rb") as f:
            head = f.read(6)
    except OSError:
        return False
    return head[:4] == b"PK\x03\x04" or head[:3] == b"\x1f\x8b\x08" or head == b"\xfd7zXZ\x00"


def without_suffixes(label):
    """`a/b.tar.xz` -> `a/b`."""
    for suffix in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True):
        if label.lower().endswith(suffix):
            return label[: -len(suffix)]
    return str(Path(label).with_suffix(""))


def _collection_of(folder, root, marked, names):
    """The folder on the way from `root` to `folder` that is one of `names` (held out), or has a collection.json (`marked`), else None."""
    if root.resolve().name in names:
        return root.resolve().name
    folders = folder.relative_to(root).parts
    depths = range(len(folders) + 1)
    held_out = (d for d in depths[1:] if folders[d - 1] in names)
    with_note = (d for d in depths if root.joinpath(*folders[:d]) in marked)
    depth = next(itertools.chain(held_out, with_note), None)
    return None if depth is None else "/".join(folders[:depth]) or root.resolve().name


def _read_or_none(path):
    try:
        return path.read_bytes()
    except OSError:
        return None


def schedule_of(name):
    """What a dump's name, say `07r.sample`, calls its schedule: `007`, as collections call it where it is measured the first time."""
    stem = os.path.splitext(name)[0]
    repeated = re.fullmatch(r"(\d+)r+", stem)
    return repeated[1].zfill(3) if repeated else stem


def stage_counts(counts_by_kind, kinds):
    """(T, K) float32, a column for each of `kinds`, from {kind: [number for each stage]}, kinds that nobody tells 0; None from an empty one.

    Raises ValueError, TypeError or AttributeError where it is anything else.
    """
    if unknown := sorted(counts_by_kind.keys() - set(kinds)):
        raise ValueError(f"no kind of count is named {unknown[0]!r}; there are {', '.join(kinds)}")
    nothing = [0] * max(map(len, counts_by_kind.values()), default=0)
    counts = np.array([counts_by_kind.get(kind, nothing) for kind in kinds], np.float32).T
    if not (counts.ndim == 2 and np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("a count is negative or no number, or kinds have different numbers of stages")
    return counts if len(counts) else None


def call_counts(counts_by_kind):
    return stage_counts(counts_by_kind, CALLS)


def _calls_in(program_json, otherwise):
    """call_counts of what a program.json (bytes) tells; `otherwise` where it tells none."""
    try:
        return call_counts(orjson.loads(program_json)["calls"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return otherwise


def _lowered_in(text):
    """stage_counts of what a schedule's file beside it tells; None where it makes no sense, or was counted before there was EXECUTED.

    Kinds that don't occur are left out, but no code runs in no cycles: so a file without any is an earlier version's, whose counts would
    pass for zeros. benchmarks/count_again.py counts such again.
    """
    try:
        counts_by_kind = orjson.loads(text)
        return stage_counts(counts_by_kind, LOWERED) if EVERYWHERE in counts_by_kind else None
    except (AttributeError, TypeError, ValueError):
        return None


def _listed_calls(folder):
    """{program: call_counts} that the folder given as raw_path lists. Raises UserError where the list makes no sense."""
    text = _read_or_none(folder / CALLS_FILE)
    try:
        return {name: call_counts(counts_by_kind) for name, counts_by_kind in orjson.loads(text or b"{}").items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f'{folder / CALLS_FILE}: {error}; it should hold {{"FOLDER OF A PROGRAM": {{"exp": [calls a point of each stage], ...}}}}'
        ) from None


def _archive_members(path, archive, listed_calls):
    """The archive's dumps, and a Dump with an error for what can't be read in it; its readable members are kept.

    A packed collection has the program.json of a program before its schedules, and what was counted of a schedule before that.
    """
    benches, waiting, calls, lowered = {}, [], {}, {}
    try:
        with open(path, "rb") as f:
            is_zip = f.read(4) == b"PK\x03\x04" or path.lower().endswith(".zip")
        for name, data, error in _zip_files(path) if is_zip else _tar_files(path):
            folder, _, base = name.rpartition("/")
            if base == "bench.txt":
                benches[folder] = data
            elif base == "program.json":
                calls = {folder: _calls_in(data, listed_calls.get(folder.rpartition("/")[2]))}
            elif base.endswith(LOWERED_SUFFIX):
                if folder not in lowered:
                    lowered = {folder: {}}  # of one program at a time
                lowered[folder][base.removesuffix(LOWERED_SUFFIX)] = _lowered_in(data)
            elif not is_companion(base):
                dump = Dump(f"{archive.file}/{printable(name)}", archive.collection, archive.root, data=data, error=error)
                program, schedule = folder.rpartition("/")[2], schedule_of(base)
                dump.calls = calls[folder] if folder in calls else listed_calls.get(program)
                dump.lowered = lowered.get(folder, {}).get(schedule)
                if base.endswith(".featurization"):
                    waiting.append((folder, dump))  # its bench.txt may come later
                else:
                    yield dump
    except ARCHIVE_ERRORS as error:
        archive.error = ("unreadable_archive", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        yield archive
    for folder, dump in waiting:
        dump.bench = benches.get(folder)
        yield dump


def _tar_files(path):
    with tarfile.open(path, "r|*", tarinfo=_StrictTarInfo) as tar:
        for member in tar:
            if member.isfile():
                if member.size > MAX_DUMP_BYTES:
                    yield member.name, b"", ("too_large", f"{member.size} bytes")
                else:
                    yield member.name, tar.extractfile(member).read(), ()


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive, and all behind it would be lost without a word."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError, tarfile.EmptyHeaderError) as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from None


def _zip_files(path):
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.file_size > MAX_DUMP_BYTES:
                yield member.filename, b"", ("too_large", f"{member.file_size} bytes")
                continue
            try:
                yield member.filename, archive.read(member), ()
            except ARCHIVE_ERRORS as error:
                yield member.filename, b"", ("truncated", f"damaged in its archive: {error}")


# Parsing dumps


def read_bytes(dump):
    """The contents of a Dump. Raises Unusable where they can't be had."""
    if dump.error:
        raise Unusable(*dump.error)
    if dump.data is not None:
        return dump.data
    try:
        with open(dump.path, "rb", buffering=0) as f:
            if os.fstat(f.fileno()).st_size > MAX_DUMP_BYTES:
                raise Unusable("too_large", f"more than {MAX_DUMP_BYTES} bytes")
            return f.read()
    except OSError as error:
        raise Unusable("unreadable", error.strerror or str(error)) from None
