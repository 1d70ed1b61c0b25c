"""Processed data: dumps read in parallel, which split a schedule belongs to, and shards of padded per-stage sequences on disk.

Axes: N schedules, T stages (padded), F features.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import tempfile
from array import array
from collections import Counter, deque
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import xxhash
from joblib import Parallel, delayed
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from config import UserError
from dumps.files import Unusable, iter_dumps, read_bytes
from dumps.parsing import hex_id, parse_dump, stable_hash
from features import FEATURES, N_HISTOGRAMS, STAGE_COUNTS, TYPE_COLUMNS, featurize
from measuring.fan_out import fan_out

# Reading dumps

CHUNK, CHUNK_BYTES = 128, 2**24  # dumps a task of the readers, and about how much they may hold
FEW_CHUNKS = 8  # with fewer, starting more processes takes longer than reading
WINDOW = 32  # tasks under way: joblib keeps whatever the readers finish before it is taken, however much that is

STAGE_SIZE = 4 * len(FEATURES)  # bytes of a stage's features
# What is held of each dump, and as what. `label` is where its file's name begins in a spool, `offset` where its features do; `features` is
# a hash of all of them, `is_uncounted` whether nobody counted in its lowered code, `lowered_hash` what that is, `generator` a hash of the
# name of the Generator that its program is a variant of; UNKNOWN where nobody says.
COLUMNS = {
    "collection": "i",
    "origin": "i",
    "is_uncounted": "b",
    "program": "q",
    "instance": "q",
    "schedule": "q",
    "lowered_hash": "q",
    "generator": "q",
    "features": "q",
    "runtime_ms": "d",
    "n_stages": "i",
    "offset": "q",
    "label": "q",
    "label_size": "i",
}
UNKNOWN = -1
# Of those, what parse_chunk gives.
ROW_COLUMNS = ["is_uncounted", "program", "instance", "schedule", "lowered_hash", "generator", "features", "runtime_ms"]


class Spool:
    """Bytes put aside in a temporary file, that nothing of them stays in memory."""

    def __init__(self, folder):
        self.file = tempfile.TemporaryFile(dir=folder)
        self.size = 0

    def put(self, data):
        """Where in the file `data` now begins."""
        self.size += self.file.write(data)
        return self.size - len(data)

    def get(self, offset, size):
        self.file.flush()
        return os.pread(self.file.fileno(), size, offset)


def chunks(dumps):
    """Lists of as many of `dumps` as a task takes."""
    chunk, size = [], 0
    for dump in dumps:
        chunk.append(dump)
        size += _size(dump)
        if len(chunk) == CHUNK or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(dump):
    try:
        return os.path.getsize(dump.path) if dump.data is None else len(dump.data)
    except OSError:
        return 0


def parse_chunk(dumps, max_runtime_ms):
    """Of a list of Dumps: for each, (hash of its contents, row, (stages, algorithm features (T, 41, 8) or None, origin or "")), or (hash,
    None, (reason, detail)) where it can't be used; and the features (T, F) float32 of all that can, as bytes, end to end. The algorithm
    features come with the first schedule of a program alone."""
    results, schedules, programs = [], [], set()
    for dump in dumps:
        failure = ()
        try:
            dump.data = read_bytes(dump)
            schedule = parse_dump(dump, max_runtime_ms)
        except Unusable as unusable:
            failure = (unusable.reason, unusable.detail)
        digest, dump.data = _digest(dump), None
        if failure:
            results.append((digest, None, failure))
            continue
        # Machines and collections are never mixed: an instance is one only within its collection. (The 0 keeps the hashes of older data.)
        program = schedule.program
        instance = stable_hash(schedule.instance, 0, dump.collection)
        both = stable_hash(program, schedule.schedule)
        lowered_hash = UNKNOWN if schedule.lowered_hash is None else schedule.lowered_hash
        generator = stable_hash("generator", dump.generator) if dump.generator else UNKNOWN
        row = (schedule.lowered is None, program, instance, schedule.schedule, lowered_hash, generator, both, schedule.runtime_ms)
        algorithm = None if program in programs else schedule.algorithm_features
        results.append((digest, row, (len(schedule.schedule_features), algorithm, schedule.origin)))
        programs.add(program)
        schedules.append(schedule)
    return results, b"".join(features.tobytes() for features in featurize(schedules))


def _digest(dump):
    digest = xxhash.xxh3_128(dump.file.encode() + b"\0")
    digest.update(dump.data or b"")
    digest.update(dump.bench or b"")
    return digest.intdigest()


def parse_all(chunks, config):
    """(Dumps without their contents, results of parse_chunk) of each list of Dumps in `chunks`, in their order, several read at a time."""
    head = list(itertools.islice(chunks, FEW_CHUNKS))
    read = deque()

    def all_tasks():
        for chunk in itertools.chain(head, chunks):
            read.append([dataclasses.replace(dump, data=None, bench=None, calls=None, lowered=None) for dump in chunk])
            yield delayed(parse_chunk)(chunk, config.max_runtime_ms)

    tasks = all_tasks()
    with (
        fan_out(config) if len(head) == FEW_CHUNKS else contextlib.nullcontext(1) as n_jobs,
        Parallel(n_jobs, return_as="generator") as parallel,
    ):
        for first in tasks:
            for results in parallel(itertools.chain([first], itertools.islice(tasks, WINDOW - 1))):
                yield read.popleft(), results


class Sources:
    """The collections that dumps come from, in the order in which they were met."""

    def __init__(self):
        self.by_name = {}
        self.origins = {}  # {where schedules come from: number}

    def add(self, dump, digest, origin=""):
        """(number of its collection, number of its origin) of a Dump, which is counted; `origin` is what it says itself."""
        empty = {"number": len(self.by_name), "dumps": 0, "xxh3_128": 0, "machine": None, "is_held_out": False}
        source = self.by_name.setdefault(dump.collection, empty)
        source["dumps"] += 1
        source["xxh3_128"] = (source["xxh3_128"] + digest) % 2**128  # the same whatever the order
        source["machine"] = source["machine"] or dump.machine
        source["is_held_out"] |= dump.is_held_out
        return source["number"], self.origins.setdefault(origin or dump.origin, len(self.origins))

    def for_meta(self):
        """{collection: {dumps, xxh3_128, machine, is_held_out}}."""
        described = {name: {key: value for key, value in source.items() if key != "number"} for name, source in self.by_name.items()}
        return {name: source | {"xxh3_128": f"{source['xxh3_128']:032x}"} for name, source in described.items()}


def read_dumps(config, features_spool, programs_spool, labels_spool):
    """Parse every dump under raw_path; features, those of algorithms, and file names go to the spools, a few numbers a dump into memory.

    Returns rows (DataFrame of COLUMNS), dropped (DataFrame: file, reason, detail), Sources, which number a row's `collection` and
    `origin`, and programs {program: (offset in programs_spool, stages)}.
    """
    dropped, sources, programs = [], Sources(), {}
    columns = {name: array(kind) for name, kind in COLUMNS.items()}
    for dumps, (results, features) in parse_all(chunks(iter_dumps(config.raw_path, config.holdout_names)), config):
        offset, usable = features_spool.put(features), []
        for dump, (digest, row, value) in zip(dumps, results):
            source = sources.add(dump, digest, "" if row is None else value[2])
            if row is None:
                dropped.append((dump.file, *value))
                continue
            n_stages, algorithm, _ = value
            program = row[ROW_COLUMNS.index("program")]
            if algorithm is not None and program not in programs:
                programs[program] = (programs_spool.put(algorithm.tobytes()), len(algorithm))
            label = dump.file.encode()
            usable.append((*source, *row, n_stages, offset, labels_spool.put(label), len(label)))
            offset += n_stages * STAGE_SIZE
        for column, values in zip(columns.values(), zip(*usable)):
            column.extend(values)
    rows = pd.DataFrame({name: np.frombuffer(column, column.typecode) for name, column in columns.items()}, copy=False)
    return rows, pd.DataFrame(dropped, columns=["file", "reason", "detail"]), sources, programs


# Duplicates

SAME_RUNTIME = 1e-6  # relative difference up to which two dumps of one schedule are one measurement in two files
FAR_APART = 1.25  # ratio of two measurements of one schedule beyond what noise explains: of 622 shipped pairs two are further apart


def merge_duplicates(rows):
    """Keep the fastest of several measurements of one schedule of one instance in one collection.

    Two are of one schedule where their features are equal, or what they lower to. Returns the kept rows, taken out of `rows`, with how many
    `measurements` each stands for, in how many `files`, and how far apart those are: the variance and the range of their log-runtimes (NaN
    and 0 for a single one). The same runtime in two files is one measurement.
    """
    same = same_schedules(rows)
    order = np.lexsort([*(rows[name] for name in ("label", "is_uncounted", "runtime_ms")), same, rows.instance, rows.collection])
    is_first = np.arange(len(rows)) == 0
    for values in (column[order] for column in (rows.collection.to_numpy(), rows.instance.to_numpy(), same)):
        is_first[1:] |= values[1:] != values[:-1]
    first = np.flatnonzero(is_first)
    log_runtime = np.log(rows.runtime_ms.to_numpy()[order])
    is_new = is_first | (np.diff(log_runtime, prepend=-np.inf) > SAME_RUNTIME)
    files, n = np.diff(first, append=len(rows)), np.add.reduceat(is_new, first, dtype=np.int64)
    mean = np.add.reduceat(np.where(is_new, log_runtime, 0), first) / n
    squares = np.where(is_new, (log_runtime - np.repeat(mean, files)) ** 2, 0)
    variance = np.add.reduceat(squares, first) / np.where(n > 1, n - 1, np.nan)
    log_range = log_runtime[first + files - 1] - log_runtime[first]
    kept = take(rows, order[first])
    kept["measurements"], kept["files"], kept["log_variance"] = n, files, variance
    kept["log_range"] = np.where(n > 1, log_range, 0.0)
    return kept


def same_schedules(rows):
    """A number for each row, (N,) int64, that the rows of one schedule share, within an instance and collection: mostly `schedule`.

    Schedules that lower to the same code are one, and so are others through them: of a `.sample` whose lowered code nobody knows, one
    with the same features whose code is known, and a dump of our own with that code. They get the least `schedule` among them.
    """
    same = rows.schedule.to_numpy(np.int64, copy=True)
    at = np.flatnonzero(rows.lowered_hash.to_numpy() != UNKNOWN)
    if not len(at):
        return same
    collection, instance = rows.collection.to_numpy(np.int64), rows.instance.to_numpy()
    _, by_features = np.unique(np.stack([collection[at], instance[at], same[at]]), axis=1, return_inverse=True)
    _, by_code = np.unique(np.stack([collection[at], instance[at], rows.lowered_hash.to_numpy()[at]]), axis=1, return_inverse=True)
    n = int(by_features.max()) + 1
    edges = coo_array((np.ones(len(at), bool), (by_features, n + by_code)), shape=(n + int(by_code.max()) + 1,) * 2)
    component = connected_components(edges, directed=False)[1][by_features]
    least = np.full(component.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, component, same[at])
    changed = at[least[component] != same[at]]
    new = dict(zip(zip(collection[changed], instance[changed], same[changed]), least[component][least[component] != same[at]]))
    for i in np.flatnonzero(np.isin(same, same[changed])):
        same[i] = new.get((collection[i], instance[i], same[i]), same[i])
    return same


def take(rows, order):
    """The rows of a DataFrame in this order. A column at a time and out of `rows`, which has none left, so that only one is held twice."""
    return pd.DataFrame({name: rows.pop(name).array.take(order) for name in list(rows)}, copy=False)


def sorted_by(rows, names):
    """The positions of the rows of a DataFrame, sorted by these columns; pandas' own sort holds several copies of all of them."""
    columns = [rows[name].cat.codes if rows[name].dtype == "category" else rows[name] for name in names]
    return np.lexsort(columns[::-1])


def n_in_several_collections(kept):
    """How many schedules are in more than one collection with one and the same runtime, as if a collection had been copied."""
    same = kept[["program", "schedule", "runtime_ms"]].duplicated(keep=False)
    return int(kept[same].groupby(["program", "schedule", "runtime_ms"]).ngroups) if same.any() else 0


SPLITS = ["train", "val", "test", "holdout"]


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


def split_rows(rows, held_out, config):
    """The split of each row of a DataFrame with `collection` (its number), `program`, `generator` and `features` (a hash of all features),
    as a categorical.

    The rows of collections whose numbers are in `held_out` are `holdout`; what they hold is never trained on even where another collection
    has it too: there it goes to `test`. Everything else goes by a stable hash. Variants of one Generator are as good as one program.
    """
    is_held_out = rows.collection.isin(held_out)
    of_program = rows.groupby("program").generator.transform("max")  # told by one of the program's rows, it is known of all
    programs = rows.program.where(of_program == UNKNOWN, of_program)
    keys, place = np.unique(programs if config.split_by == "program" else rows.features, return_inverse=True)
    split = np.array([SPLITS.index(assign_split(key, config)) for key in keys.tolist()])[place]
    split[programs.isin(programs[is_held_out].unique())] = SPLITS.index("test")
    split[is_held_out] = SPLITS.index("holdout")
    return pd.Categorical.from_codes(split, SPLITS)


# Shards

SHARD_NAME = re.compile(r"(train|val|test|holdout|programs)-\d{5}\.safetensors")
SHARD_TENSORS = {"features", "lengths", "log_runtime", "program", "instance", "schedule"}
SHARD_BYTES = 2**26  # of padded features in a shard, unless a single schedule has more
# The columns of schedules.csv.
PUBLIC = [
    "split", "collection", "file", "program", "instance", "schedule", "runtime_ms", "n_stages", "measurements", "log_variance", "log_range",
    "origin",
]  # fmt: skip


def shard_starts(n_stages, shard_size):
    """Where shards begin, of rows with these numbers of stages, in ascending order: at most `shard_size` rows and SHARD_BYTES a shard."""
    starts = []
    for row, length in enumerate(n_stages):
        if not starts or row - starts[-1] == shard_size or (row - starts[-1] + 1) * length * STAGE_SIZE > SHARD_BYTES:
            starts.append(row)
    return starts


def write_shards(rows, spool, folder, shard_size):
    """Write `rows` (sorted by split and length) as shards; returns {split: [file names]}. Holds one shard in memory at a time."""
    names = {split: [] for split in SPLITS}
    ends = np.searchsorted(rows.split.cat.codes, range(len(SPLITS)), side="right").tolist()
    for split, begin, end in zip(SPLITS, [0, *ends], ends):
        part = rows.iloc[begin:end]
        starts = shard_starts(part.n_stages.tolist(), shard_size)
        for start, stop in zip(starts, [*starts[1:], len(part)]):
            shard = part.iloc[start:stop]
            stored = (spool.get(offset, n * STAGE_SIZE) for offset, n in zip(shard.offset, shard.n_stages))
            sequences = [np.frombuffer(data, np.float32).reshape(-1, len(FEATURES)) for data in stored]
            names[split].append(f"{split}-{len(names[split]):05d}.safetensors")
            write_shard(folder / names[split][-1], sequences, shard)
    return names


def write_shard(path, sequences, rows):
    """One shard: sequences (list of (T_i, F)) padded to the longest, and the columns of `rows`, a DataFrame in the same order."""
    lengths = np.array([len(s) for s in sequences], np.int64)
    features = np.zeros((len(sequences), lengths.max(), len(FEATURES)), np.float32)  # (N, T, F)
    for i, sequence in enumerate(sequences):
        features[i, : len(sequence)] = sequence
    tensors = {"features": features, "lengths": lengths, "log_runtime": np.log(rows.runtime_ms.to_numpy(np.float64)).astype(np.float32)}
    tensors |= {name: rows[name].to_numpy(np.int64) for name in ("program", "instance", "schedule")}
    save_file(tensors, path)


def write_programs(programs, spool, folder, shard_size):
    """Write the algorithm features of `programs` (as of read_dumps), some in a file; returns the file names."""
    names, items = [], sorted(programs.items())
    for start in range(0, len(items), shard_size):
        names.append(f"programs-{start // shard_size:05d}.safetensors")
        stored = {p: spool.get(offset, 4 * n * STAGE_COUNTS) for p, (offset, n) in items[start : start + shard_size]}
        arrays = {hex_id(p): np.frombuffer(data, np.float32).reshape(-1, N_HISTOGRAMS, len(TYPE_COLUMNS)) for p, data in stored.items()}
        save_file(arrays, folder / names[-1])
    return names


def write_rows(kept, sources, labels_spool, path, rows_at_a_time=4096):
    """schedules.csv: a row a kept schedule, in the order of the shards."""
    collections, origins = list(sources.by_name), list(sources.origins)
    for start in range(0, len(kept), rows_at_a_time):
        part = kept.iloc[start : start + rows_at_a_time]
        part = part.assign(
            collection=[collections[number] for number in part.collection],
            origin=[origins[number] for number in part.origin],
            file=[labels_spool.get(at, size).decode() for at, size in zip(part.label, part.label_size)],
            **{column: part[column].map(hex_id) for column in ("program", "instance", "schedule")},
        )
        part[PUBLIC].to_csv(path, index=False, mode="a" if start else "w", header=not start)


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


def measuring_cores(meta):
    """How many cores most of what is trained on was measured with, by the notes of its collections; None where none tells.

    Threads where a note gives their number, else cores; collections count by their dumps.
    """
    votes = Counter()
    for source in meta["sources"].values():
        machine = source.get("machine") or {}
        cores = machine.get("threads") or machine.get("cores")
        if cores and not source.get("is_held_out"):
            votes[cores] += source["dumps"]
    return votes.most_common(1)[0][0] if votes else None


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
    text = dict.fromkeys(("split", "collection", "origin", "file", "program", "instance", "schedule"), str)
    path = Path(data_path) / "schedules.csv"
    try:
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"log_variance": ""})
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); run generate_dataset.py again") from None
