"""Turn measured schedules into padded per-stage feature sequences, split into training, validation, test and holdout.

    python generate_dataset.py
    python generate_dataset.py --raw_path my_samples/,more.tar.xz --data_path data/mine

Reads raw_path (.sample, .featurization with bench.txt, JSON dumps, archives of them; see iter_dumps and parse_dump).
Writes data_path: SPLIT-NNNNN.safetensors (shards), programs-NNNNN.safetensors (each program's histograms by type), meta.json,
schedules.csv (a row a kept schedule, in shard order) and dropped.csv (a row a dump that can't be used, with its reason). Run again on
inputs that have not changed, it says so and leaves them as they are. In memory it holds some numbers a dump, never the features.
"""

import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

import data_utils
from config import UserError, load_config, make_folder, run_script
from dumps.files import inputs_hash
from dumps.parsing import hex_id
from features import FEATURE_UNITS, FEATURES, STAGE_COUNTS

PUBLIC = [
    "split",
    "collection",
    "file",
    "program",
    "instance",
    "schedule",
    "runtime_ms",
    "n_stages",
    "measurements",
    "log_variance",
    "log_range",
]
SETTINGS = ["raw_path", "split_by", "val_fraction", "test_fraction", "folds", "fold", "holdout", "max_runtime_ms", "shard_size"]


def merge_duplicates(rows):
    """Keep the fastest of several measurements of one schedule of one instance in one collection.

    Returns the kept rows, taken out of `rows`, with how many `measurements` each stands for, and how far apart those are: the variance
    and the range of their log-runtimes (NaN and 0 for a single one).
    """
    key = ["collection", "instance", "schedule"]
    order = sorted_by(rows, [*key, "runtime_ms", "label"])
    is_first = np.arange(len(rows)) == 0
    for values in (rows[name].to_numpy()[order] for name in key):
        is_first[1:] |= values[1:] != values[:-1]
    first = np.flatnonzero(is_first)
    n = np.diff(first, append=len(rows))
    log_runtime = np.log(rows.runtime_ms.to_numpy()[order])
    squares = (log_runtime - np.repeat(np.add.reduceat(log_runtime, first) / n, n)) ** 2
    variance = np.add.reduceat(squares, first) / np.where(n > 1, n - 1, np.nan)
    kept = take(rows, order[first])
    kept["measurements"], kept["log_variance"], kept["log_range"] = n, variance, log_runtime[first + n - 1] - log_runtime[first]
    return kept


def take(rows, order):
    """The rows of a DataFrame in this order. A column at a time and out of `rows`, which has none left, so that only one is held twice."""
    return pd.DataFrame({name: rows.pop(name).array.take(order) for name in list(rows)}, copy=False)


def sorted_by(rows, names):
    """The positions of the rows of a DataFrame, sorted by these columns; pandas' own sort holds several copies of all of them."""
    columns = [rows[name].cat.codes if rows[name].dtype == "category" else rows[name] for name in names]
    return np.lexsort(columns[::-1])


def write_shards(rows, spool, folder, shard_size):
    """Write `rows` (sorted by split and length) as shards; returns {split: [file names]}. Holds one shard in memory at a time."""
    for old in folder.iterdir():
        if data_utils.SHARD_NAME.fullmatch(old.name):
            old.unlink()
    names = {split: [] for split in data_utils.SPLITS}
    ends = np.searchsorted(rows.split.cat.codes, range(len(data_utils.SPLITS)), side="right").tolist()
    for split, begin, end in zip(data_utils.SPLITS, [0, *ends], ends):
        for start in range(begin, end, shard_size):
            shard = rows.iloc[start : min(start + shard_size, end)]
            stored = (spool.get(offset, n * data_utils.STAGE_SIZE) for offset, n in zip(shard.offset, shard.n_stages))
            sequences = [np.frombuffer(data, np.float32).reshape(-1, len(FEATURES)) for data in stored]
            names[split].append(f"{split}-{len(names[split]):05d}.safetensors")
            data_utils.write_shard(folder / names[split][-1], sequences, shard)
    return names


def write_programs(programs, spool, folder, shard_size):
    """Write the algorithm features of `programs` (as of data_utils.read_dumps), some in a file; returns the file names."""
    names, items = [], sorted(programs.items())
    for start in range(0, len(items), shard_size):
        names.append(f"programs-{start // shard_size:05d}.safetensors")
        stored = {p: spool.get(offset, 4 * n * STAGE_COUNTS) for p, (offset, n) in items[start : start + shard_size]}
        data_utils.write_programs(folder / names[-1], {p: np.frombuffer(data, np.float32) for p, data in stored.items()})
    return names


def write_rows(kept, collections, labels_spool, path, rows_at_a_time=4096):
    """schedules.csv: a row a kept schedule, in the order of the shards."""
    for start in range(0, len(kept), rows_at_a_time):
        part = kept.iloc[start : start + rows_at_a_time]
        part = part.assign(
            collection=[collections[number] for number in part.collection],
            file=[labels_spool.get(at, size).decode() for at, size in zip(part.label, part.label_size)],
            **{column: part[column].map(hex_id) for column in ("program", "instance", "schedule")},
        )
        part[PUBLIC].to_csv(path, index=False, mode="a" if start else "w", header=not start)


def made_from(config):
    """What the shards depend on: the settings, the files read, and this version's way to read them."""
    here = Path(__file__).resolve().parent
    code = [
        (here / name).read_bytes() for name in ("generate_dataset.py", "data_utils.py", "features.py", "dumps/files.py", "dumps/parsing.py")
    ]
    settings = [getattr(config, key) for key in SETTINGS]
    return hashlib.sha256(repr([settings, inputs_hash(config.raw_path), code]).encode()).hexdigest()


def unchanged_counts(folder, origin):
    """The counts of what `folder` holds where that was made from `origin` and is all there, else None."""
    try:
        meta = data_utils.read_meta(folder)
    except UserError:
        return None
    files = ["schedules.csv", "dropped.csv", *meta["program_files"], *itertools.chain(*meta["shards"].values())]
    if meta.get("made_from") != origin or not all((folder / name).exists() for name in files):
        return None
    return meta["counts"]


def print_summary(counts, folder):
    n_dropped = sum(counts["dropped"].values())
    print(f"read {counts['read']} dumps: kept {counts['kept']}, merged {counts['merged']}, dropped {n_dropped}")
    for reason, n in sorted(counts["dropped"].items(), key=lambda item: -item[1]):
        print(f"  dropped {n} {reason}")
    if n_dropped:
        print(f"  each is listed in {folder / 'dropped.csv'}")
    for name, split in counts["splits"].items():
        print(f"  {name:8s}{split['programs']:6d} programs{split['schedules']:8d} schedules")


def main():
    config = load_config()
    folder = make_folder(config.data_path, "data_path")
    origin = made_from(config)
    if counts := unchanged_counts(folder, origin):
        print(f"{folder}: made from these files with these settings already, left as it is")
        print_summary(counts, folder)
        return
    features_spool, programs_spool, labels_spool = (data_utils.Spool(folder) for _ in range(3))
    rows, dropped, sources, programs = data_utils.read_dumps(config, features_spool, programs_spool, labels_spool)
    reasons = Counter(dropped.reason)
    (folder / "meta.json").unlink(missing_ok=True)  # until everything else is there, so that it never describes other files
    dropped.to_csv(folder / "dropped.csv", index=False)
    if rows.empty:
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "no dumps in it"
        raise UserError(f"{config.raw_path}: nothing usable ({why}); README.md lists the formats that are read")
    n_usable, kept = len(rows), merge_duplicates(rows)
    collections = list(sources)
    kept["split"] = data_utils.split_rows(kept, collections, config)
    kept = take(kept, sorted_by(kept, ["split", "n_stages", "program", "instance", "schedule", "collection"]))
    shards = write_shards(kept, features_spool, folder, config.shard_size)
    program_files = write_programs(programs, programs_spool, folder, config.shard_size)
    write_rows(kept, collections, labels_spool, folder / "schedules.csv")

    programs_of = {split: kept.program[kept.split == split] for split in data_utils.SPLITS}
    counts = {
        "read": n_usable + len(dropped), "kept": len(kept), "merged": n_usable - len(kept), "dropped": dict(sorted(reasons.items())),
        "programs": kept.program.nunique(),
        "splits": {split: {"programs": part.nunique(), "schedules": len(part)} for split, part in programs_of.items()},
    }  # fmt: skip
    program_ids = {split: [hex_id(p) for p in np.unique(part)] for split, part in programs_of.items()}
    split = {key: getattr(config, key) for key in ("split_by", "val_fraction", "test_fraction", "folds", "fold", "holdout")}
    meta = {
        "features": FEATURES, "units": FEATURE_UNITS, "log_runtime": "natural logarithm of milliseconds",
        "made_from": origin, "settings": {key: getattr(config, key) for key in SETTINGS},
        "sources": sources, "counts": counts, "split": {**split, "programs": program_ids}, "shards": shards, "program_files": program_files,
    }  # fmt: skip
    (folder / "meta.json").write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2))
    print_summary(counts, folder)


if __name__ == "__main__":
    run_script(main)
