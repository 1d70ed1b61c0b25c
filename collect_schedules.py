"""Measure schedules on this machine, or on a cluster of identical ones: random programs, or the user's own Halide pipelines.

    python collect_schedules.py --programs 200 --schedules 8 --output data/raw/mine
    python collect_schedules.py --pipeline pipelines/ --schedules 16 --output data/raw/applications
    python collect_schedules.py --output data/raw/mine --programs 200 --schedules 8 --pack true
    python collect_schedules.py --output /shared/mine --backend dask --scheduler_address tcp://host:8786

Writes a folder a program: a `.sample` and a `.schedule.h` for each schedule (what generate_dataset.py reads and C++ users
include), and `program.json` with stage names, edges, and how every schedule was proposed and measured. `collection.json` notes
machine, versions, protocol and the times of the calibration programs. Stopped at any moment and started again it goes on where it
was. On another processor, or on one whose calibration has drifted, it goes on in a collection of its own: OUTPUT-2, OUTPUT-3, ...

Schedules of a few programs are compiled at a time on all cores, each in a process of its own that then waits; after that they take
turns on the idle machine, each measured alone in several short passes. A process that crashes, hangs or eats memory costs its one schedule.
"""

import datetime
import shutil
import tarfile
from pathlib import Path

import orjson
from joblib import Parallel, delayed
from pydantic import Field
from tqdm import tqdm

import collection
import halide_utils
from collection import Plan
from config import Config, UserError, load_config, make_folder, replace_file, run_script
from fan_out import fan_out
from halide_utils import ProgramSpec
from machine import describe_machine

PROGRAMS_A_ROUND = 16


class CollectConfig(Config):
    programs: int = Field(100, ge=1, description="random programs to measure (ignored with --pipeline)")
    schedules: int = Field(8, ge=1, description="distinct schedules of each program")
    output: str = Field("./data/raw/collected", min_length=1, description="the collection's folder; started again, it goes on")
    pipeline: str = Field("", description="a file, or a folder of files, of Halide Python Generators or build() to measure instead")
    first_program: int = Field(0, ge=0, description="number of the first random program")
    max_stages: int = Field(25, ge=3, description="most stages that a random program is drawn with")
    compile_seconds: float = Field(5, gt=0, description="longest time to schedule and compile one candidate")
    pack: bool = Field(False, description="when complete, pack the folder into OUTPUT.tar.xz and delete it")


def program_specs(config):
    if not config.pipeline:
        numbers = range(config.first_program, config.first_program + config.programs)
        return [ProgramSpec(f"random_{n:06d}", n, max_stages=config.max_stages) for n in numbers]
    path = Path(config.pipeline)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{path}: no Python file there; give --pipeline a file with Generators, or a folder of them")
    own = Path(halide_utils.random_programs.__file__)
    try:
        return [spec for f in files if f.name != "__init__.py" and f.resolve() != own for spec in halide_utils.programs_in(f)]
    except ValueError as error:
        raise UserError(str(error)) from None


def parts(output):
    """The folders of this collection, oldest first: OUTPUT, OUTPUT-2, ..."""
    found = [output]
    while (following := output.with_name(f"{output.name}-{len(found) + 1}")).exists():
        found.append(following)
    return [folder for folder in found if (folder / "collection.json").exists()]


def open_part(output, config, n_drifted):
    """The folder to go on in: the newest part if this is its machine, else a new one. Raises UserError for other programs' part."""
    machine = describe_machine()
    source = {"pipeline": Path(config.pipeline).name} if config.pipeline else {"random_programs": {"max_stages": config.max_stages}}
    found = parts(output)
    if found:
        note = orjson.loads((found[-1] / "collection.json").read_bytes())
        if note["source"] != source:
            raise UserError(f"{found[-1]}: measured from other programs ({note['source']}); give another --output")
        if note["machine"] == machine and not n_drifted:
            return found[-1]
    folder = make_folder(output if not found else output.with_name(f"{output.name}-{len(found) + 1}"), "output")
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {"name": folder.name, "started": started, "source": source, "machine": machine, "calibration": []}
    replace_file(folder / "collection.json", orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return folder


def is_complete(spec, folders, n_schedules):
    """Whether a program has been measured in one of the parts: all it can give, or as many schedules as wanted."""
    for path in (folder / spec.name / "program.json" for folder in folders):
        if path.exists():
            run = collection.ProgramRun(spec, Plan(str(path.parent.parent), n_schedules, 1.0))
            if run.record["complete"] and not run.next_keys():
                return True
    return False


def pack(folder):
    """`folder` as FOLDER.tar.xz, always the same bytes for the same files; the folder is deleted."""
    archive = folder.with_name(folder.name + ".tar.xz")
    temporary = archive.with_name(archive.name + ".tmp")
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".tmp", ".lock")]
    files.sort(key=lambda f: (f.parent, f.name != "program.json", f))  # what a reader wants to know of a program before its schedules

    def anonymous(info):
        info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
        return info

    with tarfile.open(temporary, "w:xz", preset=9) as tar:
        for f in files:
            tar.add(f, f.relative_to(folder.parent), filter=anonymous)
    temporary.replace(archive)
    shutil.rmtree(folder)
    return archive


def main():
    config = load_config(CollectConfig)
    output = Path(config.output).resolve()
    specs = program_specs(config)
    archive = output.with_name(output.name + ".tar.xz")
    if archive.exists():
        if config.pack and output.exists():  # killed after packing, before the folder was gone
            shutil.rmtree(output)
            return
        raise UserError(f"{archive} is there already and packed collections are never rewritten; give another --output")
    make_folder(output, "output")
    progress = tqdm(total=len(specs), unit="program", initial=sum(is_complete(s, parts(output), config.schedules) for s in specs))
    measured = failed = n_drifted = 0
    while remaining := [spec for spec in specs if not is_complete(spec, parts(output), config.schedules)]:
        plan = Plan(str(open_part(output, config, n_drifted)), config.schedules, config.compile_seconds)
        rounds = [remaining[i : i + PROGRAMS_A_ROUND] for i in range(0, len(remaining), PROGRAMS_A_ROUND)]
        n_drifted = 0
        with fan_out(config) as workers:
            tasks = (delayed(collection.measure_programs)(part, plan) for part in rounds)
            for part, result in zip(rounds, Parallel(n_jobs=workers if config.backend == "dask" else 1, return_as="generator")(tasks)):
                if "drift" in result:
                    n_drifted += 1
                    tqdm.write(f"the calibration programs take {result['drift']:+.1%} time: {len(part)} programs go to a new collection")
                    continue
                measured, failed = measured + result["measured"], failed + result["failed"]
                progress.update(len(part))
                progress.set_postfix(schedules=measured, failures=failed)
    progress.close()
    for folder in parts(output):
        records = [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*/program.json"))]
        counts = [sum(c["outcome"] == "measured" and k.isdecimal() for k, c in r["candidates"].items()) for r in records]
        for record, n in zip(records, counts):
            if "failure" in record:
                print(f"{record['name']}: {n} measured: {record['failure']}")
        print(f"{sum(counts)} schedules of {sum(n > 0 for n in counts)} programs in {folder}")
    for folder in reversed(parts(output)) if config.pack else []:
        print(f"packed into {pack(folder)}")


if __name__ == "__main__":
    run_script(main)
