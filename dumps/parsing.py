"""From dumps on disk to schedules, and from their features to shards: read, check, identify, split, store as padded sequences.

Pure functions, except `iter_dumps` and the `read_*` and `write_*` functions, which touch files. The stage order everywhere is that
of Halide's featurizations: the output Func first, and within a Func the last update first and the pure stage last.

Axes: N schedules, T stages (padded), F features.
"""

import functools
import hashlib
import itertools
import json
import lzma
import math
import operator
import os
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from config import UserError
from features import CALLS, FEATURES, LOWERED, N_HISTOGRAMS, N_SCHEDULE, OPS, PATTERNS, SCHEDULE_FEATURES, STAGE_BYTES, TYPE_COLUMNS, TYPES

ANDERSON_STAGE_BYTES = 1440  # Anderson2021, for GPUs: 73 + 287 floats

CALLS_FILE = "calls.json"  # of programs whose program.json does not tell: {name: {kind of call: [calls a point of each stage]}}
LOWERED_SUFFIX = ".lowered.json"  # of what was counted in a schedule's lowered code: {kind of count: [of each stage]}
COMPANION_NAMES = ("bench.txt", "collection.json", "program.json", CALLS_FILE)
COMPANION_SUFFIXES = (LOWERED_SUFFIX, ".schedule.h", ".weights", ".log", ".lock", ".tmp")  # .tmp: a file somebody is still writing
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
ARCHIVE_ERRORS = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, RuntimeError, TypeError, ValueError)
MAX_DUMP_BYTES = 2**28
MAX_SCHEDULE_FEATURE = 1e14  # what Halide's own trainer accepts
SPLITS = ["train", "val", "test", "holdout"]
MIN_RUNTIME_MS = 1e-6  # less than a nanosecond is no measurement
IN_ORDER = operator.itemgetter(*SCHEDULE_FEATURES)


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


@dataclass
class Schedule:
    """One measured schedule of one program.

    schedule_features : (T, 39) float32, as Halide computes them
    algorithm_features : (T, 41, 8) float32: types in use, operation and access histograms, by type; other schedules may share the array
    program : a hash of the algorithm features, never an id from the file
    runtime_ms : float; NaN where the dump need not tell
    calls : (T, 7) float32, calls a point of each kind in features.CALLS; zeros where nobody says
    lowered : (T, K) float32, counts in the lowered code of each kind in features.LOWERED; None where nobody counted
    """

    schedule_features: np.ndarray
    algorithm_features: np.ndarray
    program: int
    runtime_ms: float
    calls: np.ndarray | None = None
    lowered: np.ndarray | None = None

    def __post_init__(self):
        if self.calls is None:
            self.calls = np.zeros((len(self.schedule_features), len(CALLS)), np.float32)

    @functools.cached_property
    def schedule(self):
        return stable_hash(self.schedule_features)

    @property
    def instance(self):
        """The program at these sizes."""
        return stable_hash(self.program, self.schedule_features[:, SCHEDULE_FEATURES.index("points_computed_minimum")])


def stable_hash(*parts):
    """63 bits that depend on the contents (float arrays, bytes, text or numbers) alone, the same on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part + np.float32(0), "<f4").tobytes()  # + 0: -0 is 0
        digest.update(part if isinstance(part, bytes) else str(part).encode())
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def hex_id(number):
    return f"{int(number):016x}"


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


def stage_counts(told, kinds):
    """(T, K) float32, a column for each of `kinds`, from {kind: [number for each stage]}, kinds that nobody tells 0; None from an empty one.

    Raises ValueError, TypeError or AttributeError where it is anything else.
    """
    if unknown := sorted(told.keys() - set(kinds)):
        raise ValueError(f"no kind of count is named {unknown[0]!r}; there are {', '.join(kinds)}")
    nothing = [0] * max(map(len, told.values()), default=0)
    counts = np.array([told.get(kind, nothing) for kind in kinds], np.float32).T
    if not (counts.ndim == 2 and np.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("a count is negative or no number, or kinds have different numbers of stages")
    return counts if len(counts) else None


def call_counts(told):
    return stage_counts(told, CALLS)


def _calls_in(program_json, otherwise):
    """call_counts of what a program.json (bytes) tells; `otherwise` where it tells none."""
    try:
        return call_counts(orjson.loads(program_json)["calls"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return otherwise


def _lowered_in(text):
    """stage_counts of what a schedule's file beside it tells; None where it makes no sense."""
    try:
        return stage_counts(orjson.loads(text), LOWERED)
    except (AttributeError, TypeError, ValueError):
        return None


def _listed_calls(folder):
    """{program: call_counts} that the folder given as raw_path lists. Raises UserError where the list makes no sense."""
    text = _read_or_none(folder / CALLS_FILE)
    try:
        return {name: call_counts(told) for name, told in orjson.loads(text or b"{}").items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f'{folder / CALLS_FILE}: {error}; it should hold {{"FOLDER OF A PROGRAM": {{"exp": [calls a point of each stage], ...}}}}') from None


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


def parse_dump(dump, max_runtime_ms, need_runtime=True):
    """The Schedule in a Dump, recognised by content. Raises Unusable with one of the reasons README.md lists."""
    data = read_bytes(dump)
    suffix = os.path.splitext(dump.file)[1].lower()
    if not data:
        raise Unusable("truncated", "the file is empty")
    if suffix == ".json" or data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        try:
            schedule = parse_json(data)
        except Unusable as unusable:
            if suffix == ".json" or unusable.reason != "malformed_json":
                raise
            schedule = parse_binary(data, suffix, dump.bench)  # floats whose first byte happens to be a brace
    else:
        schedule = parse_binary(data, suffix, dump.bench)
    _check(schedule, max_runtime_ms, need_runtime)
    if dump.calls is not None and len(dump.calls) == len(schedule.calls):
        schedule.calls = dump.calls
    if dump.lowered is not None and len(dump.lowered) == len(schedule.calls):
        schedule.lowered = dump.lowered
    return schedule


def parse_binary(data, suffix, bench=None):
    """A `.sample` (stages, runtime in ms, two ids) or a `.featurization` (stages only; its runtime is in `bench`)."""
    footer = 12 if len(data) % STAGE_BYTES == 12 else 0
    if suffix in (".sample", ".featurization") and len(data) % STAGE_BYTES != (12 if suffix == ".sample" else 0):
        if len(data) % ANDERSON_STAGE_BYTES == (12 if suffix == ".sample" else 0):
            raise Unusable("other_featurization", "360 floats a stage: Anderson2021's, for GPUs; this project reads Adams2019's 326")
        raise Unusable("truncated", f"{len(data)} bytes is no whole number of stages of {STAGE_BYTES} bytes")
    if len(data) % STAGE_BYTES not in (0, 12):
        if len(data) % ANDERSON_STAGE_BYTES in (0, 12) and _plausible(data[: len(data) // 1440 * 1440]):
            raise Unusable("other_featurization", "360 floats a stage: Anderson2021's, for GPUs; this project reads Adams2019's 326")
        raise Unusable("unknown_format", "neither a .sample, a .featurization nor a JSON dump")
    body = data[: len(data) - footer]
    if suffix not in (".sample", ".featurization") and not _plausible(body):
        raise Unusable("unknown_format", "neither a .sample, a .featurization nor a JSON dump")
    stages = np.frombuffer(body, "<f4").reshape(-1, STAGE_BYTES // 4)  # (T, 326)
    if footer:
        runtime_ms = float(np.frombuffer(data, "<f4", 1, len(body))[0])
    else:
        runtime_ms = _bench_runtime(bench)
    return Schedule(stages[:, :N_SCHEDULE].astype(np.float32), *_algorithm_in_binary(stages[:, N_SCHEDULE:].tobytes()), runtime_ms)


@functools.lru_cache(32)  # the schedules of a program come together, and all say the same of it
def _algorithm_in_binary(data):
    """(algorithm features (T, 41, 8), their hash) from the bytes of the histograms of all stages."""
    histograms = np.frombuffer(data, "<f4").reshape(-1, N_HISTOGRAMS, len(TYPES))
    features = np.zeros((*histograms.shape[:2], len(TYPE_COLUMNS)), np.float32)
    features[:, :, : len(TYPES)] = histograms
    return features, stable_hash(features)


def _plausible(body):
    """Whether bytes without a telling name look like features: finite, not negative and not huge."""
    values = np.frombuffer(body[: len(body) // 4 * 4], "<f4")
    with np.errstate(invalid="ignore"):
        return bool(len(values) and np.isfinite(values).all() and (values >= 0).all() and (values <= MAX_SCHEDULE_FEATURE).all())


def _bench_runtime(bench):
    """Milliseconds from an autotune loop's bench.txt: the eighth word, in seconds. None where there is no such file or number."""
    try:
        return float(bench.decode(errors="replace").split()[7]) * 1e3
    except (AttributeError, IndexError, ValueError):
        return None


def parse_json(data):
    """A JSON dump: programming_details.Nodes and scheduling_data, closed by total_execution_time_ms."""
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            tree = json.loads(data)  # slower, but takes NaN and Infinity, which deserve a better reason
        except (ValueError, RecursionError):
            raise Unusable("malformed_json", str(error)) from None
    if not isinstance(tree, dict) or not {"programming_details", "scheduling_data"} <= tree.keys():
        raise Unusable("unknown_format", "JSON, but without programming_details and scheduling_data")
    try:
        return _schedule_from_json(tree)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise Unusable("missing_field", f"{type(error).__name__}: {error}"[:200]) from None


def _schedule_from_json(tree):
    runtime_ms, stages = None, []
    for entry in tree["scheduling_data"]:
        if entry.get("name") == "total_execution_time_ms":
            runtime_ms = None if entry["value"] is None else float(entry["value"])
        else:
            features = entry["Details"]["scheduling_feature"]
            stages.append((entry["Name"], IN_ORDER(features)))
    histograms = {}
    for node in tree["programming_details"]["Nodes"]:
        details = node["Details"]
        histograms[node["Name"]] = "\n".join(details["Op histogram"]), "\n".join(details["Memory access patterns"])
    rows, funcs = [], []
    # The dump puts a Func's pure stage first; and it keeps one histogram a Func, that of its last definition.
    for name, group in itertools.groupby(stages, key=lambda stage: stage[0].partition(".update(")[0]):
        first = len(rows)
        rows += [features for _, features in group][::-1]
        funcs.append((*histograms[name], len(rows) - first))
    with np.errstate(over="ignore"):
        schedule_features = np.fromiter(itertools.chain.from_iterable(rows), np.float32, len(rows) * N_SCHEDULE).reshape(-1, N_SCHEDULE)
    return Schedule(schedule_features, *_algorithm_in_json(tuple(funcs)), runtime_ms)


@functools.lru_cache(32)  # as _algorithm_in_binary
def _algorithm_in_json(funcs):
    """(algorithm features (T, 41, 8), their hash) of Funcs, each (lines such as `Add:  3`, lines such as `Pointwise:  1 0 0 1`, stages)."""
    features, first = np.zeros((sum(n for *_, n in funcs), N_HISTOGRAMS, len(TYPE_COLUMNS)), np.float32), 0
    for operations, patterns, n_stages in funcs:
        ops = np.array([float(line.rsplit(":", 1)[1]) for line in operations.split("\n")])
        accesses = np.array([[float(v) for v in line.rsplit(":", 1)[1].split()] for line in patterns.split("\n")])
        features[first, 1:, -1] = np.concatenate([ops.reshape(-1, len(OPS)).sum(0), accesses.reshape(-1, len(PATTERNS)).sum(0)])
        first += n_stages
    return features, stable_hash(features)


def _check(schedule, max_runtime_ms, need_runtime):
    """Raises Unusable for what can't be trained on; the limits are those of Halide's own trainer."""
    features, algorithm, runtime_ms = schedule.schedule_features, schedule.algorithm_features, schedule.runtime_ms
    if len(features) == 0:
        raise Unusable("no_stages", "not a single stage in it")
    extremes = [features.min(), features.max(), algorithm.min(), algorithm.max()]  # NaN where there is one
    if not all(map(math.isfinite, extremes)):
        raise Unusable("not_a_number", "a feature is NaN or infinite")
    if max(-extremes[2], extremes[3]) > MAX_SCHEDULE_FEATURE:
        raise Unusable("bad_feature", f"an operation or access count is above {MAX_SCHEDULE_FEATURE:g}")
    if extremes[0] < 0 or extremes[1] > MAX_SCHEDULE_FEATURE:
        stage, column = np.argwhere((features < 0) | (features > MAX_SCHEDULE_FEATURE))[0]
        raise Unusable("bad_feature", f"{SCHEDULE_FEATURES[column]} of stage {stage} is {features[stage, column]:g}")
    if not need_runtime:
        schedule.runtime_ms = math.nan if runtime_ms is None else runtime_ms
        return
    if runtime_ms is None:
        raise Unusable("no_runtime", "no total_execution_time_ms in it, or no bench.txt beside it whose eighth word is a number")
    if not math.isfinite(runtime_ms):
        raise Unusable("not_a_number", f"the runtime is {runtime_ms}")
    if runtime_ms == 0:
        raise Unusable("zero_runtime", "the runtime is 0: its benchmark failed")
    if not MIN_RUNTIME_MS <= runtime_ms <= max_runtime_ms:
        raise Unusable("implausible_runtime", f"the runtime is {runtime_ms:g} ms; from {MIN_RUNTIME_MS:g} to {max_runtime_ms:g} is believed")


# Splits


def hash_share(*parts):
    """A number in [0, 1) that depends on `parts` alone, so that more data never moves anything across splits."""
    return stable_hash(*parts) / 2**63


def assign_split(key, config):
    """`train`, `val` or `test` for a program (or schedule) hash."""
    u = hash_share("split", key)
    if config.folds:
        if int(u * config.folds) == config.fold:
            return "test"
        return "val" if hash_share(f"val {config.fold}", key) < config.val_fraction else "train"  # others in every fold
    if u < config.test_fraction:
        return "test"
    return "val" if u < config.test_fraction + config.val_fraction else "train"


def split_rows(rows, collections, config):
    """The split of each row of a DataFrame with `collection` (a position in `collections`), `program` and `features` (a hash of all
    features), as a categorical.

    A held-out collection's rows are `holdout`; what they hold is never trained on even where another collection has it too: there
    it goes to `test`. Everything else goes by a stable hash.
    """
    held_out = rows.collection.isin([i for i, name in enumerate(collections) if holdout_name(name, config.holdout_names)])
    keys, place = np.unique(rows["program" if config.split_by == "program" else "features"], return_inverse=True)
    split = np.array([SPLITS.index(assign_split(key, config)) for key in keys.tolist()])[place]
    split[rows.program.isin(rows.program[held_out].unique())] = SPLITS.index("test")
    split[held_out] = SPLITS.index("holdout")
    return pd.Categorical.from_codes(split, SPLITS)


def holdout_name(collection, names):
    """The name in `names` that a collection goes by (any folder on its path, or its own name), or ''."""
    return next((part for part in Path(collection).parts if part in names), "")


# Shards

SHARD_NAME = re.compile(r"(train|val|test|holdout|programs)-\d{5}\.safetensors")


def write_shard(path, sequences, rows):
    """One shard: sequences (list of (T_i, F)) padded to the longest, and the columns of `rows`, a DataFrame in the same order."""
    lengths = np.array([len(s) for s in sequences], np.int64)
    features = np.zeros((len(sequences), lengths.max(), len(FEATURES)), np.float32)  # (N, T, F)
    for i, sequence in enumerate(sequences):
        features[i, : len(sequence)] = sequence
    tensors = {"features": features, "lengths": lengths, "log_runtime": np.log(rows.runtime_ms.to_numpy(np.float64)).astype(np.float32)}
    tensors |= {name: rows[name].to_numpy(np.int64) for name in ("program", "instance", "schedule")}
    save_file(tensors, path)


def write_programs(path, programs):
    """The algorithm features of some programs: {program hash: (T * 41 * 8,) float32}."""
    save_file({hex_id(p): np.array(values).reshape(-1, N_HISTOGRAMS, len(TYPE_COLUMNS)) for p, values in programs.items()}, path)


def read_programs(data_path, meta):
    """{program hash: algorithm features (T, 41, 8)} of every program of processed data, mapped from disk."""
    return {int(name, 16): tensor for file in meta["program_files"] for name, tensor in _read_tensors(Path(data_path) / file).items()}


def read_meta(data_path):
    """meta.json of processed data. Raises UserError where there is none, or where it was made by another version."""
    path = Path(data_path) / "meta.json"
    try:
        meta = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run generate_dataset.py first, with the same data_path") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error}); run generate_dataset.py again") from None
    if meta.get("features") != FEATURES:
        raise UserError(f"{path}: was made with other features than this version's; run generate_dataset.py again")
    return meta


def read_shards(data_path, meta, split):
    """Arrays of every shard of `split`: a list of dicts as write_shard wrote them, mapped from disk, shortest sequences first."""
    return [_read_tensors(Path(data_path) / name) for name in meta["shards"][split]]


def _read_tensors(path):
    try:
        with safe_open(path, "pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: can't be read ({error}); run generate_dataset.py again") from None


def read_rows(data_path):
    """schedules.csv: a row a kept schedule, in the order of the shards, with its split, collection, file, ids and measurements."""
    text = dict.fromkeys(("split", "collection", "file", "program", "instance", "schedule"), str)
    path = Path(data_path) / "schedules.csv"
    try:
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"log_variance": ""})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); run generate_dataset.py again") from None
