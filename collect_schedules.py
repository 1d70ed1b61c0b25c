"""Measure schedules on this machine, or on a cluster of identical ones: random programs, or the user's own Halide pipelines.

    python collect_schedules.py --programs 200 --schedules 8 --output data/raw/mine
    python collect_schedules.py --pipeline pipelines/ --schedules 16 --output data/raw/applications
    python collect_schedules.py --output data/raw/mine --programs 200 --schedules 8 --pack true
    python collect_schedules.py --output /shared/mine --backend dask --scheduler_address tcp://host:8786
    python collect_schedules.py --again data/raw/random_012.tar.xz --output data/raw/random_012_here --pack true

Writes a folder a program: a `.sample` and a `.schedule.h` for each schedule (what generate_dataset.py reads and C++ users
include), and `program.json` with stage names, edges, and how every schedule was proposed and measured. `collection.json` notes
machine, versions, protocol and the times of the calibration programs. Stopped at any moment and started again it goes on where it
was. On another processor, or on one whose calibration has drifted, it goes on in a collection of its own: OUTPUT-2, OUTPUT-3, ...
`--again` measures the schedules of a packed collection on this machine, today: faster than new ones, as nothing is compiled in vain.

Schedules of a few programs are compiled at a time on all cores, each in a process of its own that then waits; after that they take
turns on the idle machine, each measured alone in several short passes. A process that crashes, hangs or eats memory costs its one schedule.
"""

import dataclasses
import shutil
from pathlib import Path

import orjson
from joblib import Parallel, delayed
from pydantic import Field
from tqdm import tqdm

from config import Config, UserError, load_config, make_folder, run_script
from halide_tools.programs import ProgramSpec, find_programs
from measuring import archives, collection
from measuring.collection import Plan
from measuring.fan_out import fan_out
from pipelines import random_programs

# Compiled, then measured in passes: the more, the further apart are the passes of one schedule. A candidate that waits takes some 30 MiB.
PROGRAMS_A_ROUND, SCHEDULES_A_ROUND = 32, 256


class CollectConfig(Config):
    programs: int = Field(100, ge=1, description="random programs to measure (ignored with --pipeline)")
    schedules: int = Field(8, ge=1, description="distinct schedules of each program")
    output: str = Field("./data/raw/collected", min_length=1, description="the collection's folder; started again, it goes on")
    pipeline: str = Field("", description="a file, or a folder of files, of Halide Python Generators or build() to measure instead")
    again: str = Field(
        "",
        description="a packed collection whose schedules to measure again, instead of new ones; with --pipeline if they are of pipelines",
    )
    first_program: int = Field(0, ge=0, description="number of the first random program")
    max_stages: int = Field(25, ge=3, description="most stages that a random program is drawn with")
    compile_seconds: float = Field(5, gt=0, description="longest time to schedule and compile one candidate")
    pack: bool = Field(False, description="when complete, pack the folder into OUTPUT.tar.xz and delete it")


def what_to_measure(config):
    """(what collection.json notes of it, [ProgramSpec], Plan.known)."""
    source = {"pipeline": Path(config.pipeline).name} if config.pipeline else {"random_programs": {"max_stages": config.max_stages}}
    if not config.again:
        numbers = range(config.first_program, config.first_program + config.programs)
        random = [ProgramSpec(f"random_{n:06d}", n, max_stages=config.max_stages) for n in numbers]
        return source, pipeline_specs(config.pipeline) if config.pipeline else random, {}
    source, seeds, known = archives.known_schedules(config.again)
    if "random_programs" in source:
        return source, [ProgramSpec(name, seeds[name], **source["random_programs"]) for name in known], known
    if not config.pipeline:
        raise UserError(f"{config.again}: measured from {source['pipeline']}; give --pipeline the file or folder of their Generators")
    specs = [spec for spec in pipeline_specs(config.pipeline) if spec.name in known]
    if not specs:
        raise UserError(f"{config.pipeline}: none of the programs of {config.again} is in it; give --pipeline what that was measured from")
    return source, specs, known


def pipeline_specs(pipeline):
    path = Path(pipeline)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{path}: no Python file there; give --pipeline a file with Generators, or a folder of them")
    own = Path(random_programs.__file__)
    try:
        return [spec for f in files if f.name != "__init__.py" and f.resolve() != own for spec in find_programs(f)]
    except ValueError as error:
        raise UserError(str(error)) from None


def main():
    config = load_config(CollectConfig)
    output = Path(config.output).resolve()
    source, specs, known = what_to_measure(config)
    plan = Plan(str(output), config.schedules, config.compile_seconds, known)
    most = max(map(len, known.values()), default=config.schedules)
    n_programs = max(1, min(PROGRAMS_A_ROUND, SCHEDULES_A_ROUND // most))
    archive = output.with_name(output.name + ".tar.xz")
    if archive.exists():
        if config.pack and output.exists():  # killed after packing, before the folder was gone
            shutil.rmtree(output)
            return
        raise UserError(f"{archive} is there already and packed collections are never rewritten; give another --output")
    make_folder(output, "output")
    progress = tqdm(total=len(specs), unit="program", initial=sum(archives.is_complete(s, archives.parts(output), plan) for s in specs))
    measured = failed = n_drifted = 0
    while remaining := [spec for spec in specs if not archives.is_complete(spec, archives.parts(output), plan)]:
        plan = dataclasses.replace(plan, folder=str(archives.open_part(output, source, n_drifted)))
        rounds = [remaining[i : i + n_programs] for i in range(0, len(remaining), n_programs)]
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
    for folder in archives.parts(output):
        records = [orjson.loads(path.read_bytes()) for path in sorted(folder.glob("*/program.json"))]
        counts = [sum(c["outcome"] == "measured" and k.isdecimal() for k, c in r["candidates"].items()) for r in records]
        for record, n in zip(records, counts):
            if "failure" in record:
                print(f"{record['name']}: {n} measured: {record['failure']}")
        print(f"{sum(counts)} schedules of {sum(n > 0 for n in counts)} programs in {folder}")
    for folder in reversed(archives.parts(output)) if config.pack else []:
        print(f"packed into {archives.pack(folder)}")


if __name__ == "__main__":
    run_script(main)
