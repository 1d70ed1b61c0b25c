"""Processed data: dumps read in parallel, which split a schedule belongs to, and shards of padded per-stage sequences on disk.

Axes: N schedules, T stages (padded), F features.
"""

import contextlib
import itertools
import os
import re
import tempfile
from array import array
from collections import deque
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import xxhash
from joblib import Parallel, delayed
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from config import UserError
from dumps.files import Unusable, iter_dumps, read_bytes
from dumps.parsing import hex_id, parse_dump, stable_hash
from features import FEATURES, N_HISTOGRAMS, TYPE_COLUMNS, featurize
from measuring.fan_out import fan_out

# Reading dumps

CHUNK = 128  # dumps a task of the readers
FEW_CHUNKS = 8  # with fewer, starting more processes takes longer than reading
WINDOW = 32  # tasks under way: joblib keeps whatever the readers finish before it is taken, however much that is

STAGE_SIZE = 4 * len(FEATURES)  # bytes of a stage's features
# What is held of each dump, and as what; `label` is where its file's name begins in a spool, `offset` where its features do.
COLUMNS = {
    "collection": "i",
    "program": "q",
    "instance": "q",
    "schedule": "q",
    "features": "q",
    "runtime_ms": "d",
    "n_stages": "i",
    "offset": "q",
    "label": "q",
    "label_size": "i",
}


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


def parse_chunk(dumps, max_runtime_ms):
    """Of a list of Dumps: for each, (hash of its contents, row, (stages, algorithm features (T, 41, 8) or None)), or (hash, None, (reason,
    detail)) where it can't be used; and the features (T, F) float32 of all that can, as bytes, end to end. The algorithm features come
    with the first schedule of a program alone."""
    results, schedules, programs = [], [], set()
    for dump in dumps:
        try:
            dump.data = read_bytes(dump)
            schedule = parse_dump(dump, max_runtime_ms)
        except Unusable as unusable:
            results.append((_digest(dump), None, (unusable.reason, unusable.detail)))
            continue
        # Machines and collections are never mixed: an instance is one only within its collection.
        program = schedule.program
        instance = stable_hash(schedule.instance, dump.root, dump.collection)
        both = stable_hash(program, schedule.schedule)
        row = (program, instance, schedule.schedule, both, schedule.runtime_ms)
        results.append(
            (_digest(dump), row, (len(schedule.schedule_features), None if program in programs else schedule.algorithm_features))
        )
        programs.add(program)
        schedules.append(schedule)
    return results, b"".join(features.tobytes() for features in featurize(schedules))


def _digest(dump):
    digest = xxhash.xxh3_128(dump.file.encode() + b"\0")
    digest.update(dump.data or b"")
    digest.update(dump.bench or b"")
    return digest.intdigest()


def parse_all(chunks, config):
    """([(collection, file)], results of parse_chunk) of each list of Dumps in `chunks`, in their order, several read at a time."""
    head = list(itertools.islice(chunks, FEW_CHUNKS))
    labels = deque()

    def all_tasks():
        for chunk in itertools.chain(head, chunks):
            labels.append([(dump.collection, dump.file) for dump in chunk])
            yield delayed(parse_chunk)(chunk, config.max_runtime_ms)

    tasks = all_tasks()
    with (
        fan_out(config) if len(head) == FEW_CHUNKS else contextlib.nullcontext(1) as n_jobs,
        Parallel(n_jobs, return_as="generator") as parallel,
    ):
        for first in tasks:
            for results in parallel(itertools.chain([first], itertools.islice(tasks, WINDOW - 1))):
                yield labels.popleft(), results


def read_dumps(config, features_spool, programs_spool, labels_spool):
    """Parse every dump under raw_path; features, those of the algorithms, and file names go to the spools, a few numbers a dump into memory.

    Returns rows (DataFrame of COLUMNS), dropped (DataFrame: file, reason, detail), sources {collection: {dumps, xxh3_128}}, in the order
    that a row's `collection` counts, and programs {program: (offset in programs_spool, stages)}.
    """
    dumps = iter_dumps(config.raw_path, config.holdout_names)
    dropped, sources, programs = [], {}, {}
    columns = {name: array(kind) for name, kind in COLUMNS.items()}
    for names, (results, features) in parse_all(iter(lambda: list(itertools.islice(dumps, CHUNK)), []), config):
        offset, usable = features_spool.put(features), []
        for (collection, file), (digest, row, value) in zip(names, results):
            source = sources.setdefault(collection, {"number": len(sources), "dumps": 0, "xxh3_128": 0})
            source["dumps"] += 1
            source["xxh3_128"] = (source["xxh3_128"] + digest) % 2**128  # the same whatever the order
            if row is None:
                dropped.append((file, *value))
                continue
            n_stages, algorithm = value
            program = row[0]
            if algorithm is not None and program not in programs:
                programs[program] = (programs_spool.put(algorithm.tobytes()), len(algorithm))
            label = file.encode()
            usable.append((source["number"], *row, n_stages, offset, labels_spool.put(label), len(label)))
            offset += n_stages * STAGE_SIZE
        for column, values in zip(columns.values(), zip(*usable)):
            column.extend(values)
    for source in sources.values():
        del source["number"]
        source["xxh3_128"] = f"{source['xxh3_128']:032x}"
    rows = pd.DataFrame({name: np.frombuffer(column, column.typecode) for name, column in columns.items()}, copy=False)
    return rows, pd.DataFrame(dropped, columns=["file", "reason", "detail"]), sources, programs


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


def measuring_cores(meta):
    """Processor cores of the machine that measured the collections of a meta.json; None where that is unknown or not one number."""
    cores = {source.get("machine", {}).get("cores") for source in meta.get("sources", {}).values()}
    return cores.pop() if len(cores) == 1 else None
