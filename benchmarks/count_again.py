"""Count again in the lowered code of every schedule of packed collections, without measuring: after a change of what is counted.

    python benchmarks/count_again.py --archives data/raw/random_000.tar.xz,data/raw/applications.tar.xz --output counted
    python benchmarks/count_again.py --archives data/raw/ --output counted --num_threads 2

Each schedule is proposed again as its collection's program.json tells, for the machine that collection.json names, and lowered. Only where
the same featurization comes out (its hash is on record) do the new counts stand beside it; where it does not, or Halide refuses, it has
none. Writes OUTPUT/NAME.tar.xz: the archive with its `.lowered.json` replaced, all else as it was. An archive that is there already is
left alone, and nothing is ever written over another. What is counted of a program lies in OUTPUT/NAME.parts/ until its archive is
complete, so that a run that was stopped goes on where it was. Run it on a machine with as many cores as the collection's: Adams2019 is
told their number.
"""

import contextlib
import io
import os
import shutil
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import orjson
from joblib import Parallel, delayed
from pydantic import Field
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import Config, UserError, load_config, make_folder, replace_file, run_script
from dumps.archives import ARCHIVE_ERRORS
from dumps.companions import COLLECTION_FILE, LOWERED_SUFFIX, PROGRAM_FILE

REASONS = ("counted", "not countable", "another schedule comes out", "Halide refuses it")


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
    note, records = None, {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name in (COLLECTION_FILE, PROGRAM_FILE):
                    record = orjson.loads(archive.extractfile(member).read())
                    note, records = (record, records) if name == COLLECTION_FILE else (note, records | {record["name"]: record})
        machine = note["machine"]
        return {"source": note["source"], "target": machine["target"], "threads": machine.get("threads") or machine["cores"]}, records
    except (*ARCHIVE_ERRORS, AttributeError, KeyError) as error:
        raise UserError(f"{path}: not a packed collection of collect_schedules.py ({type(error).__name__}: {error})") from None


@contextlib.contextmanager
def quiet():
    """Send what Halide prints meanwhile nowhere."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        for descriptor in (*kept, nowhere):
            os.close(descriptor)


def count_program(path, note, record):
    """Write {key: counts as of as_dict, or a reason of REASONS} of a program's measured schedules to `path`; seconds of CPU that took."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # in a process that joblib has started
    from halide_tools import lowered_features
    from halide_tools.autoschedulers import Proposal
    from halide_tools.programs import ProgramSpec, find_programs
    from measuring.candidate import HALIDE_ERRORS, hash_of

    began, machine, found = time.process_time(), {"target": note["target"], "n_threads": note["threads"]}, {}
    if "random_programs" in note["source"]:
        spec = ProgramSpec(record["name"], record["seed"], max_stages=note["source"]["random_programs"]["max_stages"], **machine)
    else:
        files = [file for file in (ROOT / "pipelines").glob("*.py") if file.stem not in ("__init__", "random_programs")]
        spec = next((spec for file in files for spec in find_programs(file, **machine) if spec.name == record["name"]), None)
    for key, candidate in record["candidates"].items():
        if candidate["outcome"] != "measured" or not key.isdecimal():
            continue
        try:
            with quiet():
                pipeline = spec.build()
                proposed = Proposal.from_record(candidate).apply(pipeline, spec)
                counts = lowered_features.count_lowered(pipeline, spec) if hash_of(*proposed) == candidate["hash"] else ""
        except (*HALIDE_ERRORS, AttributeError):  # a program that is not here any more among them
            found[key.zfill(3)] = "Halide refuses it"
            continue
        uncounted = "not countable" if counts is None else "another schedule comes out"
        found[key.zfill(3)] = lowered_features.as_dict(counts) if counts is not None and len(counts) else uncounted
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, orjson.dumps(found))
    return time.process_time() - began


def write_archive(source, parts, destination):
    """`source` with the counts in `parts` in place of its own, each before its schedule's `.sample`. Returns {reason: number}."""
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
            key = name.split(".")[0]
            if name.endswith(".sample") and isinstance(found.get(key), dict):
                write_member(new, member, f"{member.name.rpartition('/')[0]}/{key}{LOWERED_SUFFIX}", orjson.dumps(found.pop(key)))
            write_member(new, member, member.name, old.extractfile(member).read())
    temporary.replace(destination)
    return outcomes


def write_member(archive, like, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), like.mode, like.mtime
    archive.addfile(info, io.BytesIO(data))


def main():
    config = load_config(CountConfig)
    output = make_folder(config.output, "output")
    for path in archives_in(config.archives):
        destination, parts = output / path.name, output / f"{path.name.removesuffix('.tar.xz')}.parts"
        if destination.exists():
            print(f"{destination}: there already, left as it is")
            continue
        note, records = read_records(path)
        waiting = [(parts / f"{name}.json", note, record) for name, record in records.items() if not (parts / f"{name}.json").exists()]
        chosen = waiting[: config.most_programs or len(waiting)]
        began = time.perf_counter()
        tasks = (delayed(count_program)(*task) for task in chosen)
        results = Parallel(config.num_threads or -1, return_as="generator_unordered")(tasks)
        seconds = list(tqdm(results, path.name, len(chosen), disable=None))
        n = sum(len(orjson.loads(part.read_bytes())) for part, *_ in chosen)
        if n:
            elapsed = time.perf_counter() - began
            print(f"{path.name}: {n} schedules in {elapsed:.0f} s, {n / elapsed:.1f} a second; {sum(seconds) / n:.3f} s of CPU each")
        if len(chosen) == len(waiting):
            outcomes = write_archive(path, parts, destination)
            print(f"{destination}: {', '.join(f'{outcomes[reason]} {reason}' for reason in REASONS if outcomes[reason])}")
            shutil.rmtree(parts)


if __name__ == "__main__":
    run_script(main)
