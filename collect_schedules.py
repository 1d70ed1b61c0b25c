"""Measure schedules on this machine, or on a cluster of identical ones: random programs, or the user's own Halide pipelines.

    python collect_schedules.py --programs 200 --schedules 8 --output data/raw/mine
    python collect_schedules.py --pipeline pipelines/ --schedules 16 --output data/raw/applications
    python collect_schedules.py --output data/raw/mine --programs 200 --schedules 8 --pack true
    python collect_schedules.py --output /shared/mine --backend dask --scheduler_address tcp://host:8786
    python collect_schedules.py --programs 500 --schedules 12 --origins mutated,mullapudi2016,li2018 --output data/raw/others
    python collect_schedules.py --again data/raw/random_012.tar.xz --output data/raw/random_012_here --pack true

Writes a folder a program: for each schedule a `.sample` (a `.schedule.json` where Adams2019 did not propose it), which
generate_dataset.py reads, and a `.schedule.h`, which C++ users include. `program.json` has stage names, edges, and how every schedule was
proposed and measured. `collection.json` notes machine, versions, protocol and the times of the calibration programs. Stopped at any
moment and started again it goes on where it was. On another processor, or on one whose calibration has drifted, it goes on in a
collection of its own: OUTPUT-2, OUTPUT-3, ...
`--again` measures the schedules of a packed collection on this machine, today: faster than new ones, as nothing is compiled in vain.

Schedules of a few programs are compiled at a time on all cores, each in a process of its own that then waits; after that they are
measured, interleaved, each alone on the idle machine in several short passes. A process that crashes, hangs or eats memory costs its one
schedule. Another program under a name that has been measured in OUTPUT is refused.
"""

import dataclasses
import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import orjson
from joblib import Parallel, delayed
from pydantic import Field, field_validator
from tqdm import tqdm

from config import Config, UserError, load_config, make_folder, run_script, usable_cores
from halide_tools.programs import ProgramSpec, check_target, default_threads, find_programs, variants
from measuring import archives, collection
from measuring.collection import Plan
from measuring.fan_out import fan_out
from measuring.machine import PROTOCOLS, describe_machine
from measuring.origins import ORIGINS, parse_origins
from pipelines import random_programs

# Compiled, then measured in passes: the more, the further apart are the passes of one schedule. A candidate that waits takes some 30 MiB.
PROGRAMS_A_ROUND, SCHEDULES_A_ROUND = 32, 256
LONGEST_MESSAGE = 600  # characters of why nothing could be measured


class CollectConfig(Config):
    programs: int = Field(100, ge=1, description="random programs to measure (ignored with --pipeline)")
    schedules: int = Field(8, ge=1, description="distinct schedules of each program")
    output: str = Field("./data/raw/collected", min_length=1, description="the collection's folder; started again, it goes on")
    pipeline: str = Field(
        "", description="a file of Halide Generators or build(), an executable of C++ ones, or a folder of files, to measure instead"
    )
    generator: str = Field("", description="which of the file's Generators; empty: all")
    params: str = Field("", description='GeneratorParams and open types of the one Generator, as "NAME=VALUE NAME=VALUE"')
    variants: int = Field(
        0, ge=0, description="programs to draw of each Generator whose class has VARIANTS, {parameter: values}; 0: one, with its defaults"
    )
    inputs: str = Field(
        "", description='contents of inputs of the one Generator, as "NAME=FILE.npy NAME=VALUE NAME=LOW:HIGH"; others are drawn at random'
    )
    target: str = Field("host", description="Halide target that schedules and code are made for")
    origins: str = Field(
        ",".join(ORIGINS),
        description="where schedules come from: adams2019, mutated (one to eight directives changed), mullapudi2016, li2018, hand_written; "
        "a collection that is there goes on with its own",
    )
    protocol: Literal[*PROTOCOLS] = Field(
        "careful", description="how each schedule is measured: careful, or quick, for trying things out; the two are never mixed"
    )
    again: str = Field(
        "",
        description="a packed collection whose schedules to measure again, instead of new ones; with --pipeline if they are of pipelines",
    )
    first_program: int = Field(0, ge=0, description="number of the first random program")
    max_stages: int = Field(25, ge=3, description="most stages that a random program is drawn with")
    compile_seconds: float = Field(5, gt=0, description="longest time to schedule one candidate, and longest time to compile it")
    pack: bool = Field(False, description="when complete, pack the folder into OUTPUT.tar.xz and remove what is in the archive from it")

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, text):
        parse_origins(text)
        return text


def what_to_measure(config):
    """(what collection.json notes of it, [ProgramSpec], Plan.known)."""
    if config.again:
        return known_programs(config)
    if config.pipeline:
        source = {"pipeline": Path(config.pipeline).name} | ({"variants": True} if config.variants else {})
        return source, pipeline_specs(config, config.variants), {}
    numbers = range(config.first_program, config.first_program + config.programs)
    return {"random_programs": {"max_stages": config.max_stages}}, [random_spec(config, n, config.max_stages) for n in numbers], {}


def what_origins(config, output):
    """Where schedules come from: as the collection at `output` has begun, or as the flag says. Raises UserError where the two differ."""
    if config.again and config.was_given("origins"):
        raise UserError("--origins: --again measures the schedules that a collection holds, whatever their origins; leave it out")
    wanted, noted = parse_origins(config.origins), archives.noted_origins(output)
    if noted and config.was_given("origins") and wanted != noted:
        raise UserError(
            f"{output}: begun with --origins {','.join(noted)}, here {','.join(wanted)}; leave it out, or give another --output"
        )
    if not noted and not config.again and not config.pipeline and wanted == ("hand_written",):
        raise UserError("--origins hand_written: nobody has scheduled random programs by hand; give --pipeline, or other origins")
    return noted or wanted


def known_programs(config):
    """what_to_measure, for --again."""
    source, seeds, known = archives.known_schedules(config.again)
    if "random_programs" in source:
        return source, [random_spec(config, seeds[name], **source["random_programs"]) for name in known], known
    if not config.pipeline:
        raise UserError(f"{config.again}: measured from {source['pipeline']}; give --pipeline the file or folder of their Generators")
    specs = [spec for spec in pipeline_specs(config, sys.maxsize if source.get("variants") else 0) if spec.name in known]
    if not specs:
        raise UserError(f"{config.pipeline}: none of the programs of {config.again} is in it; give --pipeline what that was measured from")
    return source, specs, known


def random_spec(config, number, max_stages):
    for key in ("params", "inputs", "generator", "variants"):
        if getattr(config, key):
            raise UserError(f"--{key}: random programs take none; give it with --pipeline")
    try:
        target = check_target(config.target)
    except ValueError as error:
        raise UserError(str(error)) from None
    return ProgramSpec(f"random_{number:06d}", number, max_stages=max_stages, target=target, n_threads=n_threads(config))


def n_threads(config):
    return config.num_threads or default_threads()


def pipeline_specs(config, n_variants):
    path = Path(config.pipeline)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    files = [f for f in files if f.name != "__init__.py" and f.resolve() != Path(random_programs.__file__)]
    if not files or not files[0].exists():
        raise UserError(f"{path}: no Python file there; give --pipeline a file with Generators, or a folder of them")
    if len(files) > 1 and (config.generator or config.params or config.inputs):
        raise UserError(f"{path}: --generator, --params and --inputs belong to the Generators of one file; give --pipeline that file")
    if n_variants and (config.params or config.inputs):
        raise UserError("--variants draws the Generators' parameters; leave --params and --inputs out")
    options = config.generator, config.params, config.target, n_threads(config), config.inputs
    try:  # of several, one that can't be built costs itself alone
        specs = [spec for f in files for spec in find_programs(f, *options, checked=len(files) == 1)]
    except ValueError as error:
        raise UserError(str(error)) from None
    if not n_variants:
        return specs
    # The first of each, then the second: a collection that is stopped has some of all.
    return [spec for turn in itertools.zip_longest(*(variants(s, n_variants) for s in specs)) for spec in turn if spec]


def finish_packing(config, output):
    """Where the packed collection is there already, finish what was stopped after packing, or raise UserError. Returns whether it was."""
    archive = archives.archive_of(output)
    if not archive.exists():
        return False
    if not (config.pack and (output / archives.NOTE).exists()):
        raise UserError(f"{archive} is there already and packed collections are never rewritten; give another --output")
    print(f"packed into {archives.pack(output)}")
    return True


def collect(config, source, specs, plan):
    """Measure what is missing of `specs`, round after round, a new part of the collection wherever the machine has changed."""
    output, most = Path(plan.folder), max(map(len, plan.known.values()), default=config.schedules)
    n_programs = max(1, min(PROGRAMS_A_ROUND, SCHEDULES_A_ROUND // most))
    machine = describe_machine(plan.protocol, config.target, n_threads(config))
    packed = archives.packed_programs(output)
    missing = lambda: [s for s in specs if s.name not in packed and not archives.is_complete(s, archives.parts(output), plan)]
    progress = tqdm(total=len(specs), unit="program", initial=len(specs) - len(missing()), disable=None)
    measured = failed = n_drifted = 0
    while remaining := missing():
        folder, why = archives.open_part(output, source, machine, n_drifted, plan.origins)
        if why:
            tqdm.write(why)
        plan = dataclasses.replace(plan, folder=str(folder))
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
                progress.set_postfix(schedules=measured, failures=failed, background=result["background"])
    progress.close()


def report(output, specs):
    """Print what is in each part, and why programs have no schedules. Raises UserError where nothing was measured at all."""
    n_measured, lines, reasons = 0, [], []
    for folder in archives.parts(output):
        records = [orjson.loads(path.read_bytes()) for path in sorted(folder.glob(f"*/{archives.RECORD}"))]
        measured = [[c for k, c in r["candidates"].items() if c["outcome"] == "measured" and k.isdecimal()] for r in records]
        counts, by_origin = list(map(len, measured)), Counter(c.get("origin", ORIGINS[0]) for own in measured for c in own)
        for record, n in zip(records, counts):
            if reason := why_none(record) if not n else record.get("failure", ""):
                reasons.append(f"{record['name']}: {n} measured: {reason}")
        n_measured += sum(counts)
        lost = Counter(c["outcome"] for r in records for k, c in r["candidates"].items() if c["outcome"] != "measured" and k.isdecimal())
        kinds = ", ".join(f"{n} {name}" for name, n in by_origin.most_common()) if len(by_origin) > 1 else ""
        lines.append(f"{sum(counts)} schedules{f' ({kinds})' if kinds else ''} of {sum(n > 0 for n in counts)} programs in {folder}")
        if lost:
            lines.append(f"  not measured: {', '.join(f'{n} {outcome}' for outcome, n in lost.most_common())}")
    if not n_measured and not archives.packed_programs(output):
        told = "; ".join(reasons[:3])[:LONGEST_MESSAGE]
        raise UserError(f"no schedule of {'any program' if len(specs) > 1 else specs[0].name} could be measured: {told}")
    print("\n".join([*reasons, *lines]))


def why_none(record):
    """Why none of a program's candidates was measured: failures by reason, and the words of the first."""
    if "failure" in record:
        return record["failure"]
    failed = [c for c in record["candidates"].values() if c["outcome"] not in ("measured", "duplicate")]
    reasons = Counter(c["outcome"] for c in failed)
    told = next((c["detail"] for c in failed if c.get("detail")), "no candidate")
    return f"{', '.join(f'{n} {reason}' for reason, n in reasons.most_common())}: {told}"


def main():
    config = load_config(CollectConfig)
    output = Path(config.output).resolve()
    source, specs, known = what_to_measure(config)
    if finish_packing(config, output):
        return
    archives.check_output(output)
    archives.check_source(output, source)
    origins = what_origins(config, output)
    make_folder(output, "output")
    collection.prepare_processes()
    archives.check_identities(output, specs)
    cores = min(usable_cores(), config.num_threads or usable_cores())
    plan = Plan(str(output), config.schedules, config.compile_seconds, cores, PROTOCOLS[config.protocol], known, origins)
    collect(config, source, specs, plan)
    report(output, specs)
    for folder in reversed(archives.parts(output)) if config.pack else []:
        print(f"packed into {archives.pack(folder)}")
        if folder.exists():
            print(f"{folder} stays, for what is in it besides the collection")


if __name__ == "__main__":
    run_script(main)
