"""Turn measured schedules into padded per-stage feature sequences, split into training, validation, test and holdout.

    python generate_dataset.py
    python generate_dataset.py --raw_path my_samples/,more.tar.xz --data_path data/mine

Reads raw_path (.sample, .featurization with bench.txt, JSON dumps, archives of them; see data_utils.iter_dumps and parse_dump).
Writes data_path: SPLIT-NNNNN.safetensors (shards), programs-NNNNN.safetensors (each program's histograms by type), meta.json,
schedules.csv (a row a kept schedule, in shard order) and dropped.csv (a row a dump that can't be used, with its reason).
"""

import contextlib
import hashlib
import itertools
import tempfile
from collections import Counter

import numpy as np
import orjson
import pandas as pd
from joblib import Parallel, delayed

import data_utils
from config import UserError, load_config, make_folder, run_script
from fan_out import fan_out
from features import FEATURE_UNITS, FEATURES, STAGE_COUNTS, featurize

CHUNK = 64  # dumps a task of the readers
FEW_CHUNKS = 16  # with fewer, starting more processes takes longer than reading

COLUMNS = ["collection", "file", "program", "instance", "schedule", "features", "runtime_ms", "n_stages", "offset"]
PUBLIC = ["split", "collection", "file", "program", "instance", "schedule", "runtime_ms", "n_stages", "measurements", "log_variance", "log_range"]
SPLITS = ["train", "val", "test", "holdout"]


def parse_chunk(dumps, max_runtime_ms):
    """For each Dump: (hash of its contents, row, (features (T, F), algorithm features (T, 41, 8) or None)), or (hash, None,
    (reason, detail)) where it can't be used. The algorithm features come with the first schedule of a program alone."""
    results, schedules, programs = [], [], set()
    for dump in dumps:
        try:
            dump.data = data_utils.read_bytes(dump)
            schedule = data_utils.parse_dump(dump, max_runtime_ms)
        except data_utils.Unusable as unusable:
            results.append((_digest(dump), None, (unusable.reason, unusable.detail)))
            continue
        # Machines and collections are never mixed: an instance is one only within its collection.
        program = schedule.program
        instance = data_utils.stable_hash(schedule.instance, dump.root, dump.collection)
        both = data_utils.stable_hash(schedule.algorithm_features, schedule.schedule_features)
        row = (dump.collection, dump.file, program, instance, schedule.schedule, both, schedule.runtime_ms)
        results.append((_digest(dump), row, None if program in programs else schedule.algorithm_features))
        programs.add(program)
        schedules.append(schedule)
    features = iter(featurize(schedules))
    return [(digest, row, (next(features), value) if row else value) for digest, row, value in results]


def _digest(dump):
    return hashlib.sha256(dump.file.encode() + b"\0" + (dump.data or b"") + (dump.bench or b"")).digest()


def read_dumps(config, spool, program_spool):
    """Parse every dump under raw_path; features go to the file `spool`, those of the algorithms to `program_spool`, the rest into memory.

    Returns rows (DataFrame of COLUMNS), dropped (DataFrame: file, reason, detail), sources {collection: {dumps, sha256}} and programs
    {program: (offset in program_spool, stages)}.
    """
    dumps = data_utils.iter_dumps(config.raw_path, config.holdout_names)
    chunks = iter(lambda: list(itertools.islice(dumps, CHUNK)), [])
    chunks = ((chunk, [(dump.collection, dump.file) for dump in chunk]) for chunk in chunks)
    head = list(itertools.islice(chunks, FEW_CHUNKS))
    labels, rows, dropped, sources, programs = [], [], [], {}, {}

    def tasks():
        for chunk, names in itertools.chain(head, chunks):
            labels.append(names)
            yield delayed(parse_chunk)(chunk, config.max_runtime_ms)

    offset = 0
    with fan_out(config) if len(head) == FEW_CHUNKS else contextlib.nullcontext(1) as n_jobs:
        for results in Parallel(n_jobs=n_jobs, return_as="generator")(tasks()):
            for (collection, file), (digest, row, value) in zip(labels.pop(0), results):
                source = sources.setdefault(collection, {"dumps": 0, "sha256": 0})
                source["dumps"] += 1
                source["sha256"] = (source["sha256"] + int.from_bytes(digest)) % 2**256  # the same whatever the order
                if row is None:
                    dropped.append((file, *value))
                    continue
                features, algorithm = value
                rows.append((*row, len(features), offset))
                offset += spool.write(features.tobytes())
                program = row[COLUMNS.index("program")]
                if algorithm is not None and program not in programs:
                    programs[program] = (program_spool.tell(), len(algorithm))
                    program_spool.write(algorithm.tobytes())
    spool.flush(), program_spool.flush()
    for source in sources.values():
        source["sha256"] = f"{source['sha256']:064x}"
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(dropped, columns=["file", "reason", "detail"]), sources, programs


def merge_duplicates(rows):
    """Keep the fastest of several measurements of one schedule of one instance in one collection.

    Returns the kept rows with how many `measurements` each stands for, and how far apart those are: the variance and the range of
    their log-runtimes (NaN and 0 for a single one).
    """
    key = ["collection", "instance", "schedule"]
    rows = rows.sort_values([*key, "runtime_ms", "file"], kind="stable")
    groups = np.log(rows.runtime_ms).groupby([rows[k] for k in key])
    spread = pd.DataFrame({"measurements": groups.size(), "log_variance": groups.var(), "log_range": groups.max() - groups.min()})
    return rows.drop_duplicates(key).merge(spread, left_on=key, right_index=True)


def write_shards(rows, spool, folder, shard_size):
    """Write `rows` (sorted by split and length) as shards; returns {split: [file names]}. Holds one shard in memory at a time."""
    for old in folder.iterdir():
        if data_utils.SHARD_NAME.fullmatch(old.name):
            old.unlink()
    features = np.memmap(spool, np.float32, "r").reshape(-1, len(FEATURES))
    stage_bytes = 4 * len(FEATURES)
    names = {split: [] for split in SPLITS}
    for split in SPLITS:
        part = rows[rows.split == split]
        for start in range(0, len(part), shard_size):
            shard = part.iloc[start : start + shard_size]
            sequences = [features[o // stage_bytes :][:n] for o, n in zip(shard.offset, shard.n_stages)]
            names[split].append(f"{split}-{start // shard_size:05d}.safetensors")
            data_utils.write_shard(folder / names[split][-1], sequences, shard)
    return names


def write_programs(programs, spool, folder, shard_size):
    """Write the algorithm features of `programs` (as of read_dumps), some in a file; returns the file names."""
    values = np.memmap(spool, np.float32, "r")
    names, items = [], sorted(programs.items())
    for start in range(0, len(items), shard_size):
        names.append(f"programs-{start // shard_size:05d}.safetensors")
        data_utils.write_programs(folder / names[-1], {p: values[o // 4 :][: n * STAGE_COUNTS] for p, (o, n) in items[start : start + shard_size]})
    return names


def main():
    config = load_config()
    folder = make_folder(config.data_path, "data_path")
    with tempfile.TemporaryFile(dir=folder) as spool, tempfile.TemporaryFile(dir=folder) as program_spool:
        rows, dropped, sources, programs = read_dumps(config, spool, program_spool)
        dropped.to_csv(folder / "dropped.csv", index=False)
        reasons = Counter(dropped.reason)
        if rows.empty:
            why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "no dumps in it"
            raise UserError(f"{config.raw_path}: nothing usable ({why}); README.md lists the formats that are read")
        kept = merge_duplicates(rows)
        kept["split"] = data_utils.split_rows(kept, config)
        order = kept.split.map(SPLITS.index)
        kept = kept.assign(order=order).sort_values(["order", "n_stages", "program", "instance", "schedule", "collection"], kind="stable")
        (folder / "meta.json").unlink(missing_ok=True)  # until everything else is there, so that it never describes other shards
        shards = write_shards(kept, spool, folder, config.shard_size)
        program_files = write_programs(programs, program_spool, folder, config.shard_size)

    by_split = {split: kept[kept.split == split] for split in SPLITS}
    counts = {
        "read": len(rows) + len(dropped), "kept": len(kept), "merged": len(rows) - len(kept), "dropped": dict(sorted(reasons.items())),
        "programs": kept.program.nunique(),
        "splits": {split: {"programs": part.program.nunique(), "schedules": len(part)} for split, part in by_split.items()},
    }  # fmt: skip
    program_ids = {split: sorted({data_utils.hex_id(p) for p in part.program}) for split, part in by_split.items()}
    split = {key: getattr(config, key) for key in ("split_by", "val_fraction", "test_fraction", "folds", "fold", "holdout")}
    meta = {
        "features": FEATURES, "units": FEATURE_UNITS, "log_runtime": "natural logarithm of milliseconds",
        "sources": sources, "counts": counts, "split": {**split, "programs": program_ids}, "shards": shards,
        "program_files": program_files,
    }  # fmt: skip
    public = kept[PUBLIC].copy()
    for column in ("program", "instance", "schedule"):
        public[column] = public[column].map(data_utils.hex_id)
    public.to_csv(folder / "schedules.csv", index=False)
    (folder / "meta.json").write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2))

    print(f"read {counts['read']} dumps: kept {counts['kept']}, merged {counts['merged']}, dropped {len(dropped)}")
    for reason, n in reasons.most_common():
        print(f"  dropped {n} {reason}")
    if len(dropped):
        print(f"  each is listed in {folder / 'dropped.csv'}")
    for name, part in by_split.items():
        print(f"  {name:8s}{part.program.nunique():6d} programs{len(part):8d} schedules")


if __name__ == "__main__":
    run_script(main)
