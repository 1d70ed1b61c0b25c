"""Count again in the lowered code of every schedule of packed collections, without measuring: after a change of what is counted.

    python benchmarks/count_again.py --archives data/raw/random_000.tar.xz,data/raw/applications.tar.xz --output counted
    python benchmarks/count_again.py --archives data/raw/ --output counted --num_threads 2

Each schedule is made again from its directives, or from the text that its autoscheduler printed, for the machine that collection.json
names, and lowered. From text it has to be as it was: the hash of the code, or what it says of its statements. Else it is proposed
again as program.json tells, and the hash of its featurization, or of its lowered code, has to be the one on record. Where that fails,
too, or Halide refuses, the schedule has no counts. Writes OUTPUT/NAME.tar.xz: the archive with its `.lowered.json`, and the counts in
each `.schedule.json`, replaced, all else as it was. An archive that is there already is left alone, and nothing is ever written over
another. What is counted of a program lies in OUTPUT/NAME.parts/ until its archive is complete, so that a run that was stopped goes on
where it was. Run it on a machine with as many cores as the collection's: Adams2019 is told their number.
"""

import dataclasses
import functools
import io
import multiprocessing
import shutil
import sys
import tarfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import orjson
from pebble import ProcessExpired, ProcessPool
from pydantic import Field
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, UserError, load_config, make_folder, replace_file, run_script, usable_cores
from dumps import own
from dumps.archives import ARCHIVE_ERRORS
from dumps.companions import COLLECTION_FILE, HASH, LOWERED_SUFFIX, PROGRAM_FILE, SCHEDULE_SUFFIX, schedule_of
from dumps.parsing import hex_id
from halide_tools import lowered_features
from halide_tools.programs import ProgramSpec, find_programs, variants
from halide_tools.schedule_source import read_source
from measuring.candidate import HALIDE_ERRORS, GivenUp, Scheduled, StoredSchedule, failure, from_fork, hash_of, proposal_of, scheduled
from measuring.processes import count_scheduled, prepare_worker

SPAWN = multiprocessing.get_context("spawn")
HEADER_SUFFIX = ".schedule.h"
AS_WRITTEN = (
    "iterations",
    "statements",
    "bytes_loaded",
    "bytes_stored",
    "points_stored",
    "tasks",
)  # what the code says, whatever is made of it
SECONDS = 120  # for a schedule to be found again, lowered and counted
TASKS_A_PROCESS = 300  # Halide keeps what it has built


class CountConfig(Config):
    archives: str = Field("data/raw", description="packed collections, or folders of them, separated by commas")
    output: str = Field("counted", min_length=1, description="folder for the new archives")
    most_programs: int = Field(0, ge=0, description="programs of each archive to count in this run, to see how fast it is; 0: all")


def archives_in(paths):
    """The packed collections that `paths` names. Raises UserError where there are none."""
    found = []
    for path in (Path(part.strip()) for part in paths.split(",") if part.strip()):
        if not path.exists():
            raise UserError(f"--archives: {path}: no such file or folder")
        found += sorted(path.glob("*.tar.xz")) if path.is_dir() else [path]
    if not found:
        raise UserError(f"--archives {paths}: no .tar.xz in it; give collections packed by collect_schedules.py")
    return found


def read_records(path):
    """(collection.json, {program: program.json}) of an archive. Raises UserError where it is no packed collection."""
    note, records, beside = None, {}, defaultdict(dict)
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in (COLLECTION_FILE, PROGRAM_FILE):
                    record = orjson.loads(archive.extractfile(member).read())
                    note, records = (record, records) if name == COLLECTION_FILE else (note, records | {record["name"]: record})
                elif name.endswith((HEADER_SUFFIX, LOWERED_SUFFIX)):
                    *_, program, _ = member.name.split("/")
                    beside[program][name] = archive.extractfile(member).read()
        for name, record in records.items():
            for key, candidate in record["candidates"].items():
                header, counts = (beside[name].get(key.zfill(3) + suffix) for suffix in (HEADER_SUFFIX, LOWERED_SUFFIX))
                if header and counts:
                    candidate |= {"text": header.decode(), "counts": orjson.loads(counts)}
        machine = note["machine"]
        return {"source": note["source"], "target": machine["target"], "threads": machine.get("threads") or machine["cores"]}, records
    except (*ARCHIVE_ERRORS, AttributeError, KeyError) as error:
        raise UserError(f"{path}: not a packed collection of collect_schedules.py ({type(error).__name__}: {error})") from None


def spec_of(note, record):
    """The ProgramSpec of a program.json, for the machine that measured it. Raises UserError where it is in this version no more."""
    machine = {"target": note["target"], "n_threads": note["threads"]}
    if "random_programs" in note["source"]:
        return ProgramSpec(record["name"], record["seed"], max_stages=note["source"]["random_programs"]["max_stages"], **machine)
    if spec := shipped_programs(**machine).get(record["name"]):
        return spec
    raise UserError(f"{record['name']}: no program of this name in pipelines/; its collection can't be counted again")


@functools.cache
def shipped_programs(**machine):
    """{name: ProgramSpec} of the Generators in pipelines/ and of all variants of those in pipelines/families/."""
    files = [file for file in (ROOT / "pipelines").glob("*.py") if file.stem not in ("__init__", "random_programs")]
    specs = [spec for file in files for spec in find_programs(file, **machine)]
    families = [spec for file in (ROOT / "pipelines" / "families").glob("*.py") for spec in find_programs(file, checked=False, **machine)]
    return {spec.name: spec for spec in [*specs, *(variant for spec in families for variant in variants(spec, sys.maxsize))]}


def count_schedule(spec, record):
    """What lies beside a dump: lowered_features.as_dict, and the hash of the code; or why nothing. `record` : of a candidate.

    What is proposed again is so in a fork: Halide gives other names to a second program, and so another order to what it does.
    """
    return _from_text(spec, record) or from_fork(lambda: _from_record(spec, record))[0] or "crashed"


def _from_text(spec, record):
    """count_schedule of one whose text is kept, None where something else comes of it."""
    if "text" in record:
        pipeline = spec.build()
        try:
            read_source(record["text"], pipeline)
            found = _counted(Scheduled(pipeline, b"", "", ""), spec)
        except (*HALIDE_ERRORS, ValueError, LookupError):
            return None
        counts = record["counts"]
        if isinstance(found, dict) and (found[HASH] == counts.get(HASH) or all(found.get(k) == counts.get(k) for k in AS_WRITTEN)):
            return found
    return None


def _from_record(spec, record):
    try:
        data = record.get("schedule")
        made = scheduled(spec, StoredSchedule(data) if data else proposal_of(record))
        found, code = _counted(made, spec), record.get("lowered_hash")
    except GivenUp as given_up:
        return given_up.failed.reason
    except HALIDE_ERRORS as error:
        return failure(error).reason
    is_known = hash_of(made.featurization, made.source) == record["hash"] or isinstance(found, dict) and found[HASH] == code
    if not data and not is_known:
        return "another schedule comes out"
    return found | {HASH: code or found[HASH]} if isinstance(found, dict) else found


def _counted(made, spec):
    """lowered_features.as_dict of a candidate.Scheduled, and the hash of its code, or why there is none."""
    number, counts = count_scheduled(made.pipeline, spec)
    if counts is not None and made.by_stage:
        counts = made.by_stage(counts)
    return "not countable" if counts is None else lowered_features.as_dict(counts) | {HASH: hex_id(number)}


def count_program(path, note, record, pool):
    """Write {key: what count_schedule found} of a program's measured schedules to `path`; returns their number."""
    measured, found = {key: c for key, c in record["candidates"].items() if c["outcome"] == "measured" and key.isdecimal()}, {}
    spec = spec_of(note, record) if measured else None
    futures = {key.zfill(3): pool.schedule(count_schedule, args=(spec, c), timeout=SECONDS) for key, c in measured.items()}
    for key, future in futures.items():
        try:
            found[key] = future.result()
        except (TimeoutError, ProcessExpired) as error:
            found[key] = type(error).__name__
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, orjson.dumps(found))
    return len(found)


def write_archive(source, parts, destination):
    """`source` with the counts in `parts` in place of its own, a `.lowered.json` before its `.sample`. Returns {reason: number}."""
    outcomes, found = Counter(), {}
    temporary = destination.with_name(destination.name + ".tmp")
    with tarfile.open(source) as old, tarfile.open(temporary, "w:xz", preset=9) as new:
        for member in old:
            *_, program, name = member.name.split("/")
            if name == PROGRAM_FILE:
                found = orjson.loads((parts / f"{program}.json").read_bytes())
                outcomes.update("counted" if isinstance(counts, dict) else counts for counts in found.values())
            if name.endswith(LOWERED_SUFFIX):
                continue
            key, data = name.split(".")[0], old.extractfile(member).read()
            if name.endswith(SCHEDULE_SUFFIX):
                data = with_counts(data, found.get(schedule_of(f"{key}.json")))
            elif name.endswith(".sample") and isinstance(found.get(key), dict):
                write_member(new, member, f"{member.name.rpartition('/')[0]}/{key}{LOWERED_SUFFIX}", orjson.dumps(found.pop(key)))
            write_member(new, member, member.name, data)
    temporary.replace(destination)
    return outcomes


def with_counts(data, found):
    """A dump of our own, its bytes, with other counts: `found` as count_schedule tells, none where it says why there are none."""
    dump, counts = own.read(orjson.loads(data)), None
    if isinstance(found, dict):
        counts = {kind: values for kind, values in found.items() if kind != HASH}
        counts = counts if all(len(values) == len(dump.program.sizes) for values in counts.values()) else None
    return own.write(dataclasses.replace(dump, counts=counts))


def write_member(archive, like, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), like.mode, like.mtime
    archive.addfile(info, io.BytesIO(data))


def main():
    config = load_config(CountConfig)
    output, cores = make_folder(config.output, "output"), config.num_threads or usable_cores()
    for path in archives_in(config.archives):
        destination, parts = output / path.name, output / f"{path.name.removesuffix('.tar.xz')}.parts"
        if destination.exists():
            print(f"{destination}: there already, left as it is")
            continue
        note, records = read_records(path)
        waiting = [(parts / f"{name}.json", note, record) for name, record in records.items() if not (parts / f"{name}.json").exists()]
        chosen, began = waiting[: config.most_programs or len(waiting)], time.perf_counter()
        with ProcessPool(cores, context=SPAWN, max_tasks=TASKS_A_PROCESS, initializer=prepare_worker) as pool:
            n = sum(count_program(*task, pool) for task in tqdm(chosen, path.name, disable=None))
        if n:
            elapsed = time.perf_counter() - began
            print(f"{path.name}: {n} schedules in {elapsed:.0f} s, {n / elapsed:.1f} a second", flush=True)
        if len(chosen) == len(waiting):
            outcomes = write_archive(path, parts, destination)
            print(f"{destination}: {', '.join(f'{n} {reason}' for reason, n in outcomes.most_common())}", flush=True)
            shutil.rmtree(parts)


if __name__ == "__main__":
    run_script(main)
