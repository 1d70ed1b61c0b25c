"""Turn measured schedules into padded per-stage feature sequences, split into training, validation, test and holdout.

    python generate_dataset.py
    python generate_dataset.py --raw_path my_samples/,more.tar.xz --data_path data/mine

Reads raw_path (.sample, .featurization with bench.txt, JSON dumps, archives of them; see iter_dumps and parse_dump).
Writes data_path: SPLIT-NNNNN.safetensors (shards), programs-NNNNN.safetensors (each program's histograms by type), meta.json,
schedules.csv (a row a kept schedule, in shard order) and dropped.csv (a row a dump that can't be used, with its reason). Run again on
inputs that have not changed, it says so and leaves them as they are. In memory it holds some numbers a dump, never the features.
All is written beside what is there and moved into place at the end: who fails or is killed on the way loses nothing.
"""

import contextlib
import hashlib
import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

import data_utils
from config import UserError, load_config, make_folder, replace_file, run_script
from dumps.folders import inputs_hash
from dumps.parsing import hex_id
from features import FEATURE_UNITS, FEATURES

SETTINGS = ["raw_path", "split_by", "val_fraction", "test_fraction", "folds", "fold", "holdout", "max_runtime_ms", "shard_size"]
SPLIT_SETTINGS = ["split_by", "val_fraction", "test_fraction", "folds", "fold", "holdout"]
DROPPED, DROPPED_IN_VAIN = "dropped.csv", "dropped.failed.csv"  # the second where nothing is usable and data_path holds an earlier run's
# Folders in data_path while it is written to: what is new, what it replaces; and the lock of who writes.
NEW, OLD, LOCK = ".generate_dataset.new", ".generate_dataset.old", ".generate_dataset.lock"
COMING = ".coming.json"  # in OLD, once all of before is there: the names of what comes in its place


# Replacing what is in data_path


@contextlib.contextmanager
def staged(folder):
    """A folder to write in, whose files replace those of the same names in `folder` when all has gone well.

    Whoever is killed, or has no room left, leaves in `folder` what was there. `meta.json` is the first file that goes and the last that
    comes: it never describes others' files. Raises UserError where another process is at it, or where somebody's own file is in the way.
    """
    try:
        with FileLock(folder / LOCK, timeout=0):
            put_back_interrupted(folder)
            (folder / NEW).mkdir()
            try:
                yield folder / NEW
                replace_processed(folder)
            finally:
                shutil.rmtree(folder / NEW, ignore_errors=True)
    except Timeout:
        raise UserError(f"{folder}: another generate_dataset.py is writing to it; wait for it, or give another --data_path") from None
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # not of a file
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: can't be written to ({why}); what was there is left as it was") from None


def put_back_interrupted(folder):
    """Clean up after a process that was killed: what it had moved away comes back, unless all that was new was in place."""
    old = folder / OLD
    if old.exists() and not (folder / "meta.json").exists():
        if (old / COMING).exists():  # all of before is here, and some of these may be there
            for name in orjson.loads((old / COMING).read_bytes()):
                (folder / name).unlink(missing_ok=True)
            (old / COMING).unlink()
        for file in sorted(old.iterdir(), key=lambda file: file.name == "meta.json"):
            file.replace(folder / file.name)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder / NEW, ignore_errors=True)


def replace_processed(folder):
    """Move what is in NEW into place, and what a run before has written out of the way."""
    new, old = folder / NEW, folder / OLD
    names = {file.name for file in new.iterdir()}
    earlier = names_in(folder / "meta.json") | ({DROPPED_IN_VAIN} if is_own(folder / DROPPED_IN_VAIN) else set())
    for name in sorted(names):
        if (folder / name).exists() and name not in earlier and not is_own(folder / name):
            raise UserError(f"{folder / name}: is not of generate_dataset.py, which would replace it; give another --data_path")
    old.mkdir()
    present = (name for name in {*earlier, *names} if (folder / name).exists())
    for name in sorted(present, key=lambda name: name != "meta.json"):
        (folder / name).replace(old / name)
    replace_file(old / COMING, orjson.dumps(sorted(names)))
    for name in sorted(names, key=lambda name: name == "meta.json"):
        (new / name).replace(folder / name)
    shutil.rmtree(old)


def names_in(meta_path):
    """The names of the files that the meta.json of an earlier run describes, itself included; none where there is no such meta.json."""
    try:
        meta = orjson.loads(meta_path.read_bytes())
        names = ["meta.json", "schedules.csv", DROPPED, *meta["program_files"], *itertools.chain(*meta["shards"].values())]
    except (OSError, AttributeError, KeyError, TypeError, ValueError):
        return set()
    return {name for name in names if name == Path(name).name}


def is_own(path):
    """Whether a file that no meta.json describes is one that generate_dataset.py has written, by its contents."""
    try:
        if data_utils.SHARD_NAME.fullmatch(path.name):
            with safe_open(path, "np") as f:
                keys = set(f.keys())
            return data_utils.SHARD_TENSORS <= keys or (path.name.startswith("programs") and all(len(key) == 16 for key in keys))
        with open(path, "rb") as f:
            head = f.read(256)
        starts = {"schedules.csv": b"split,collection,", DROPPED: b"file,reason,detail\n", DROPPED_IN_VAIN: b"file,reason,detail\n"}
        return head.startswith(starts[path.name])
    except (OSError, KeyError, SafetensorError):
        return False


# Generating


def made_from(config):
    """What the shards depend on: the settings, the files read, and this version's way to read them."""
    here = Path(__file__).resolve().parent
    code = [here / name for name in ("generate_dataset.py", "data_utils.py", "features.py")] + sorted((here / "dumps").glob("*.py"))
    settings = [getattr(config, key) for key in SETTINGS]
    return hashlib.sha256(repr([settings, inputs_hash(config.raw_path), [file.read_bytes() for file in code]]).encode()).hexdigest()


def unchanged_meta(folder, origin):
    """The meta.json of what `folder` holds where that was made from `origin` and is all there, else None."""
    try:
        meta = data_utils.read_meta(folder)
    except UserError:
        return None
    if meta.get("made_from") != origin or not all((folder / name).exists() for name in names_in(folder / "meta.json")):
        return None
    return meta


def nothing_usable(config, folder, new, dropped):
    """The UserError where no dump can be used; dropped.csv tells why of each, beside that of an earlier run if there is one."""
    if dropped.empty:
        return UserError(f"{config.raw_path}: nothing usable (no dumps in it); docs/data_formats.md lists the formats that are read")
    is_free = not names_in(folder / "meta.json") and (is_own(folder / DROPPED) or not (folder / DROPPED).exists())
    path = folder / (DROPPED if is_free else DROPPED_IN_VAIN)
    if path.exists() and not is_own(path):
        raise UserError(f"{path}: is not of generate_dataset.py, which would replace it; give another --data_path")
    (new / DROPPED).replace(path)
    reasons = Counter(dropped.reason).most_common()
    why = ", ".join(f"{n} {reason}" for reason, n in reasons)
    first = dropped[dropped.reason == reasons[0][0]].iloc[0]
    return UserError(
        f"{config.raw_path}: nothing usable ({why}; {first.file}: {first.detail}); "
        f"{path} lists them, docs/data_formats.md lists the formats that are read"
    )


def count(kept, n_usable, dropped):
    """The `counts` of meta.json. `merged` are all dumps that are not kept; of them `copies` repeat another's runtime, too."""
    programs_of = {split: kept.program[kept.split == split] for split in data_utils.SPLITS}
    return {
        "read": n_usable + len(dropped), "kept": len(kept), "merged": n_usable - len(kept),
        "dropped": dict(sorted(Counter(dropped.reason).items())), "programs": kept.program.nunique(),
        "copies": int((kept.files - kept.measurements).sum()), "far_apart": int((kept.log_range > np.log(data_utils.FAR_APART)).sum()),
        "splits": {split: {"programs": part.nunique(), "schedules": len(part)} for split, part in programs_of.items()},
    }  # fmt: skip


def remarks(kept, counts, labels_spool):
    """Lines on what should not be in measurements: copies, and measurements of one schedule that no noise explains."""
    lines = []
    if counts["copies"]:
        lines.append(f"{counts['copies']} dumps are copies of another, its runtime included: each such schedule counts as measured once")
    if n := data_utils.n_in_several_collections(kept):
        lines.append(f"{n} schedules are in several collections with one and the same runtime: copies count once in each")
    if counts["far_apart"]:
        worst = kept.iloc[int(np.argmax(kept.log_range))]
        file = labels_spool.get(int(worst.label), int(worst.label_size)).decode()
        lines.append(
            f"{counts['far_apart']} of {int((kept.measurements > 1).sum())} schedules that were measured more than once have runtimes "
            f"more than {data_utils.FAR_APART} x apart (at most {np.exp(worst.log_range):.2f} x, {file}), which noise does not explain; "
            "the fastest is kept. Measurements of several machines belong in a folder each"
        )
    return lines


def generate(config, folder, origin):
    """Read raw_path and write all files to data_path, `folder`; returns what meta.json says."""
    with staged(folder) as new:
        features_spool, programs_spool, labels_spool = (data_utils.Spool(new) for _ in range(3))
        rows, dropped, sources, programs = data_utils.read_dumps(config, features_spool, programs_spool, labels_spool)
        dropped.to_csv(new / DROPPED, index=False)
        if rows.empty:
            raise nothing_usable(config, folder, new, dropped)
        n_usable, kept = len(rows), data_utils.merge_duplicates(rows)
        held_out = [number for number, source in enumerate(sources.by_name.values()) if source["is_held_out"]]
        kept["split"] = data_utils.split_rows(kept, held_out, config)
        kept = data_utils.take(kept, data_utils.sorted_by(kept, ["split", "n_stages", "program", "instance", "schedule", "collection"]))
        shards = data_utils.write_shards(kept, features_spool, new, config.shard_size)
        program_files = data_utils.write_programs(programs, programs_spool, new, config.shard_size)
        data_utils.write_rows(kept, sources, labels_spool, new / "schedules.csv")
        counts = count(kept, n_usable, dropped)
        program_ids = {split: [hex_id(p) for p in np.unique(kept.program[kept.split == split])] for split in data_utils.SPLITS}
        meta = {
            "features": FEATURES,
            "units": FEATURE_UNITS,
            "log_runtime": "natural logarithm of milliseconds",
            "made_from": origin,
            "settings": {key: getattr(config, key) for key in SETTINGS},
            "sources": sources.for_meta(),
            "counts": counts,
            "remarks": remarks(kept, counts, labels_spool),
            "split": {key: getattr(config, key) for key in SPLIT_SETTINGS} | {"programs": program_ids},
            "shards": shards,
            "program_files": program_files,
        }
        (new / "meta.json").write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2))
    return meta


def print_summary(meta, folder):
    counts = meta["counts"]
    n_dropped = sum(counts["dropped"].values())
    print(f"read {counts['read']} dumps: kept {counts['kept']}, merged {counts['merged']}, dropped {n_dropped}")
    for reason, n in sorted(counts["dropped"].items(), key=lambda item: -item[1]):
        print(f"  dropped {n} {reason}")
    if n_dropped:
        print(f"  each is listed in {folder / DROPPED}")
    for line in meta["remarks"]:
        print(f"  {line}")
    for name, split in counts["splits"].items():
        print(f"  {name:8s}{split['programs']:6d} programs{split['schedules']:8d} schedules")


def main():
    config = load_config()
    folder = make_folder(config.data_path, "data_path")
    origin = made_from(config)
    if meta := unchanged_meta(folder, origin):
        print(f"{folder}: made from these files with these settings already, left as it is")
    else:
        meta = generate(config, folder, origin)
    print_summary(meta, folder)


if __name__ == "__main__":
    run_script(main)
