"""Finding dumps: every file or archive member under raw_path that may hold a schedule, with what lies beside it.

`iter_dumps` is the way in. Archives are read without unpacking (archives.py); a damaged member or archive costs itself alone.
"""

import functools
import os
import tempfile
from dataclasses import dataclass

import numpy as np

from config import UserError
from dumps import archives
from dumps.archives import ARCHIVE_ERRORS, MAX_DUMP_BYTES, without_suffixes
from dumps.bench import bench_runtime
from dumps.collections import Collections, Where, folders_above
from dumps.companions import (
    ADAMS2019,
    BENCH_FILE,
    COLLECTION_FILE,
    DUMP_SUFFIXES,
    LOWERED_SUFFIX,
    PROGRAM_FILE,
    SCHEDULE_SUFFIX,
    dump_suffix,
    is_built,
    is_companion,
    listed_calls,
    lowered_in,
    printable,
    program_record,
    read_note,
    read_or_none,
    schedule_of,
    stands_for_a_file,
    stem_of,
)
from dumps.folders import SKIPPED_FOLDERS, iter_folders

HELD_BYTES = 2**25  # of an archive's members that wait in memory for what belongs to them; more wait on disk


class Unusable(Exception):
    """A dump that can't be used: a reason to count it under, and a detail for a person."""

    def __init__(self, reason, detail):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class Dump:
    """A file that may hold a schedule, before it is parsed. `file` is its label; `data` is None where it lies at `path`.

    bench : the bytes of the bench.txt beside it; bench_is_shared : whether others lie beside that, too
    calls, lowered, lowered_hash : as of Schedule; origin : where the schedule comes from, as far as what lies beside it tells
    generator : name of the Generator that its program is one variant of, or ""
    machine : {processor, cores, target, threads} of what measured its collection; None where nobody says
    is_held_out : whether its collection is held out, or is a part of one that is
    error : (reason, detail) where its contents can't be had
    """

    file: str
    collection: str
    path: str = ""
    data: bytes | None = None
    bench: bytes | None = None
    bench_is_shared: bool = False
    calls: np.ndarray | None = None
    lowered: np.ndarray | None = None
    lowered_hash: int | None = None
    origin: str = ADAMS2019
    generator: str = ""
    machine: dict | None = None
    is_held_out: bool = False
    error: tuple = ()


# Dumps with what lies beside them


def iter_dumps(raw_path, names=frozenset()):
    """Every dump under `raw_path` in a stable order, companions left out; archives are read without unpacking.

    `raw_path` : a folder (searched in depth), one file, or several separated by commas. Raises UserError where one is missing.
    `names` : collections that are held out, wherever they lie, with their parts NAME-2, NAME-3, ...
    """
    collections = Collections(names)
    calls_at = functools.lru_cache(1)(listed_calls)  # a root's folders come together
    for found in iter_folders(raw_path):
        root, folder, listed = found.root, found.folder, calls_at(found.root)
        read = functools.partial(_read_present, str(folder), found.present)
        if COLLECTION_FILE in found.present:
            place = os.path.join(os.path.realpath(root), *folder.relative_to(root).parts)
            collections.notes[place] = read_note(read(COLLECTION_FILE))
        where = collections.on_disk(root, folder)
        within = "".join(f"{part}/" for part in folder.relative_to(root).parts)
        if found.error:
            yield collections.assign(Dump(printable(within or str(root)), "", error=("unreadable", found.error)), where)
        kinds = {name: _kind(folder, name) for name in found.files}
        entries = [
            (name, functools.partial(Dump, printable(within + name), "", os.path.join(folder, name)))
            for name, kind in kinds.items()
            if kind == "dump"
        ]
        record = program_record(read(PROGRAM_FILE), listed.get(folder.name))
        for dump in _with_companions(entries, read, record):
            yield collections.assign(dump, where)
        for name in (name for name, kind in kinds.items() if kind == "archive"):
            archive = Dump(printable(within + name), "", os.path.join(folder, name))
            outer = where
            if not where.is_marked:
                stem = without_suffixes(name)
                outer = Where(os.path.join(os.path.realpath(folder), stem), within + stem, None, collections.is_held_out(stem))
            yield from ArchiveReader(archive, outer, collections, listed)


def _kind(folder, name):
    """`dump`, `archive`, or `companion`, of a file on disk; its content tells where its name does not."""
    if is_companion(name):
        return "companion"
    if dump_suffix(name) in DUMP_SUFFIXES:
        return "dump"  # spares opening thousands of files twice
    if archives.is_archive_name(name):
        return "archive"
    head = archives.head(os.path.join(folder, name))
    if archives.looks_like_an_archive(head):
        return "archive"
    return "companion" if is_built(head) else "dump"


def _with_companions(entries, read, record):
    """The Dumps of one folder, one for each measurement, with what lies beside them.

    entries : [(file name, function that makes its Dump)]; read : bytes of a companion by its name, or None; record : ProgramRecord
    """
    is_featurization = [".featurization" in name and dump_suffix(name) == ".featurization" for name, _ in entries]
    bench = read(BENCH_FILE) if any(is_featurization) else None
    is_shared = sum(is_featurization) > 1
    left_out = _second_files(dict(entries), bench, is_shared) if any(is_featurization) else ()
    for (name, make), has_bench in zip(entries, is_featurization):
        if name in left_out:
            continue
        dump, schedule = make(), schedule_of(name)
        if has_bench:
            dump.bench, dump.bench_is_shared = bench, is_shared
        dump.calls, (dump.lowered, dump.lowered_hash) = record.calls, lowered_in(read(schedule + LOWERED_SUFFIX))
        dump.generator = record.generator
        if record.origins:
            dump.origin = record.origins.get(stem_of(name)) or record.origins.get(schedule, ADAMS2019)
        yield dump


def _second_files(make, bench, is_shared):
    """Names to leave out, as another file holds the same measurement: a `.featurization` and the `.sample` made from it are one.

    The runtime of the first is in bench.txt. The autotune loop copies a word from there into the second, which is the wrong one if
    anything else was printed; so the first counts where its time can be read.
    """
    left_out = set()
    samples = {stem_of(name): name for name in make if dump_suffix(name) == ".sample"}
    for name in (name for name in make if dump_suffix(name) == ".featurization" and stem_of(name) in samples):
        sample = samples[stem_of(name)]
        try:
            if read_bytes(make[sample]())[:-12] != read_bytes(make[name]()):
                continue
        except Unusable:
            continue
        try:
            has_time = 0 < bench_runtime(bench, stem_of(name), is_shared) < float("inf")
        except ValueError:
            has_time = False
        left_out.add(sample if has_time else name)
    return left_out


class Spooled:
    """Bytes put aside, in memory as far as HELD_BYTES, else in a temporary file."""

    def __init__(self):
        self.file, self.size = tempfile.SpooledTemporaryFile(HELD_BYTES), 0

    def put(self, data):
        """(where `data` begins, its size)."""
        self.file.seek(self.size)
        try:
            self.file.write(data)
        except OSError as error:
            raise UserError(f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with more room") from None
        self.size += len(data)
        return self.size - len(data), len(data)

    def get(self, place):
        self.file.seek(place[0])
        return self.file.read(place[1])

    def clear(self):
        self.size = 0
        self.file.seek(0)
        self.file.truncate()


class ArchiveReader:
    """The dumps of one archive, whatever the order of its members.

    A dump waits for what belongs to it: the note of the collection, the record of its program, its lowered counts. Where that has all come,
    as in a packed collection, its folder is handed on; else at the archive's end. Companions are kept until then.
    """

    def __init__(self, archive, outer, collections, calls):
        self.archive, self.outer, self.collections, self.calls = archive, outer, collections, calls
        self.notes = {}  # {folder: Note}
        self.dumps, self.waiting = Spooled(), {}  # {folder: [(base name, place in `dumps`, error)]}
        self.beside, self.companions = Spooled(), {}  # {folder: {base name: place in `beside`}}

    def __iter__(self):
        """Every Dump; one with an error where the archive can't be read any further."""
        members, current = archives.iter_members(self.archive.path), None
        while True:
            try:
                name, data, error = next(members, (None, b"", ()))
            except ARCHIVE_ERRORS as problem:
                yield from self.hand_on_all()
                yield self.failed(problem)
                return
            if name is None:
                yield from self.hand_on_all()
                if current is None:
                    yield self.failed(ValueError("not a single file in it"))
                return
            folder, _, base = name.rpartition("/")
            if folder != current and current in self.waiting and self.has_all(current):
                yield from self.hand_on(current)
            current = folder
            self.put(folder, base, data, error)

    def put(self, folder, base, data, error):
        if not SKIPPED_FOLDERS.isdisjoint(folder.split("/")):
            return
        if is_companion(base):
            if base == COLLECTION_FILE:
                self.notes[folder] = read_note(data)
            elif base in (BENCH_FILE, PROGRAM_FILE) or base.endswith(LOWERED_SUFFIX):
                self.companions.setdefault(folder, {})[base] = self.beside.put(data)
        elif dump_suffix(base) in DUMP_SUFFIXES or not is_built(data):
            if not self.waiting:
                self.dumps.clear()
            self.waiting.setdefault(folder, []).append((base, self.dumps.put(data), error))

    def has_all(self, folder):
        """Whether all that a packed collection has beside its dumps has come for those of a folder."""
        known = self.companions.get(folder, {})
        counted = all(base.endswith(SCHEDULE_SUFFIX) or schedule_of(base) + LOWERED_SUFFIX in known for base, *_ in self.waiting[folder])
        return PROGRAM_FILE in known and counted and any(path in self.notes for path in folders_above(folder))

    def hand_on_all(self):
        for folder in list(self.waiting):
            yield from self.hand_on(folder)

    def hand_on(self, folder):
        """The dumps of a folder that wait."""
        entries = [(base, functools.partial(self.dump, folder, base, *rest)) for base, *rest in self.waiting.pop(folder)]
        read = functools.partial(self.companion, folder)
        record = program_record(read(PROGRAM_FILE), self.calls.get(folder.rpartition("/")[2]))
        where = self.collections.in_archive(self.outer, folder, self.notes)
        for dump in _with_companions(entries, read, record):
            yield self.collections.assign(dump, where)

    def dump(self, folder, base, place, error):
        name = printable(f"{folder}/{base}" if folder else base) or "(no name)"
        return Dump(f"{self.archive.file}/{name}", "", data=self.dumps.get(place), error=error)

    def companion(self, folder, base):
        place = self.companions.get(folder, {}).get(base)
        return None if place is None else self.beside.get(place)

    def failed(self, problem):
        """The archive itself as a Dump that says why it can't be read."""
        detail = f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:200]
        self.archive.error = stands_for_a_file(_read_start(self.archive.path)) or ("unreadable_archive", detail)
        return self.collections.assign(self.archive, self.outer)


def _read_present(folder, present, name):
    return read_or_none(os.path.join(folder, name)) if name in present else None


def _read_start(path):
    try:
        with open(path, "rb") as f:
            return f.read(1024)
    except OSError:
        return b""


# Contents


def read_bytes(dump):
    """The contents of a Dump, decompressed where it is a `.gz`, `.xz` or `.bz2`. Raises Unusable where they can't be had."""
    if dump.error:
        raise Unusable(*dump.error)
    data = dump.data
    if data is None:
        try:
            with open(dump.path, "rb", buffering=0) as f:
                size = os.fstat(f.fileno()).st_size
                if size > MAX_DUMP_BYTES:
                    raise Unusable("too_large", archives.too_large(size))
                data = f.read()
        except OSError as error:
            raise Unusable("unreadable", error.strerror or str(error)) from None
    if dump.file.endswith(DUMP_SUFFIXES) or not archives.opener_of(data):
        return data
    try:
        return archives.decompress(data)
    except OverflowError as error:
        raise Unusable("too_large", str(error)) from None
    except ARCHIVE_ERRORS as error:
        raise Unusable("truncated", f"damaged or cut off: {type(error).__name__}: {error}"[:200]) from None
