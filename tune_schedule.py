"""Find a faster schedule for a Halide pipeline of your own, and build the library with it.

    python tune_schedule.py my_generator.py
    python tune_schedule.py pipelines/blur.py --budget 64 --output tuned/blur
    python tune_schedule.py my_generators.py --generator blur --minutes 10 --compare true

GENERATOR.py holds Halide Python Generators (@hl.generator), or a function build() that returns an hl.Pipeline with estimates. Many
schedules are proposed, the model predicts all of them, and at most --budget are measured, Halide's own choice (Adams2019) always
among them, so the answer is never slower than that. Each one's output is compared with that of the program stage by stage.

Writes to --output: best.schedule.h (for C++ Generators), best.weights (which give the same schedule again through Adams2019 itself,
with the parameters in report.json; none where another autoscheduler won), a static library and its header, report.json, search.png,
and a folder of every measurement that generate_dataset.py reads. Started again with the same output it goes on from the measurements
there. Use the machine for nothing else.
"""

import math
import time
from pathlib import Path

import matplotlib
import numpy as np
import orjson
from pydantic import Field
from pydantic_settings import CliPositionalArg

from config import Config, UserError, load_config, make_folder, replace_file, run_script

matplotlib.use("Agg")
import train_utils
from halide_tools.autoschedulers import LIBRARIES, Proposal
from halide_tools.programs import estimated_arguments, find_programs
from measuring.candidate import prepare_processes
from measuring.machine import describe_machine
from tuning import results, search
from tuning.choosing import ChooseByHalide, choose_at_random, choose_by_model
from tuning.pool import Pool, read_measured
from tuning.run import ADAMS2019, ADAMS2019_BEAM, OTHERS, TuningRun

ROUNDS = 4  # in which the budget is spent: what one measures guides the next
FINALISTS = 3  # of the fastest are measured again beside Adams2019's choice
REPEATS = 3  # fresh processes for each of them


class TuneConfig(Config):
    file: CliPositionalArg[str] = Field(min_length=1, description="GENERATOR.py: Halide Python Generators, or build()")
    generator: str = Field("", description="which of the file's Generators; needed where it holds several")
    budget: int = Field(32, ge=1, description="schedules to measure at most, Halide's own choice included")
    minutes: float = Field(0, ge=0, description="begin no more measurements after this time; 0: no limit")
    proposals: int = Field(400, ge=1, description="schedules to propose at the start; half as many again as variations of the fastest")
    compile_seconds: float = Field(
        60, gt=0, description="longest time to schedule and compile one candidate; Halide's own choice may take longer"
    )
    checkpoint: str = Field("models/default.safetensors", description="model to rank with")
    output: str = Field("./tuned", min_length=1, description="folder for the results; started again, the search goes on there")
    compare: bool = Field(False, description="measure other autoschedulers and other ways to choose, too: for each as many schedules again")


def find_program(config):
    """The ProgramSpec to tune. Raises UserError where it can't be found or built, or where it lacks estimates."""
    for name in ("adams2019", "mullapudi2016", "li2018"):
        plugin = LIBRARIES / f"libautoschedule_{name}.so"
        if not plugin.exists():
            raise UserError(f"{plugin}: this autoscheduler is missing; install halide==21.0.0 with pip")
    if not Path(config.file).is_file():
        raise UserError(f"{config.file}: no such file; give a Python file with Halide Generators or build()")
    try:
        specs = {spec.name: spec for spec in find_programs(config.file)}
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.generator not in specs and (config.generator or len(specs) > 1):
        raise UserError(f"{config.file}: --generator {config.generator!r} is not in it; there are {', '.join(specs)}")
    spec = specs[config.generator or next(iter(specs))]
    try:
        estimated_arguments(spec.build())
    except Exception as error:  # whatever a user's Generator may raise
        raise UserError(f"{config.file}: {spec.name} can't be built: {type(error).__name__}: {' '.join(str(error).split())}") from None
    return spec


def prepare(output, config):
    """The folder of the measurements, with the note on machine and protocol that every collection has."""
    folder = make_folder(output / "measurements", "output")
    note = folder / "collection.json"
    machine = describe_machine()
    if note.exists() and orjson.loads(note.read_bytes())["machine"] != machine:
        raise UserError(f"{note}: was measured on another machine; give another --output")
    replace_file(
        note,
        orjson.dumps({"name": folder.name, "source": {"tuned": Path(config.file).name}, "machine": machine}, option=orjson.OPT_INDENT_2),
    )
    return folder


def compare(pool, initial, config, deadline):
    """{rival: its keys in the order of measuring}: other autoschedulers, and other ways to choose among the `initial` keys of the pool."""
    run = pool.run
    run.measure(run.others)
    measured = {name.lower(): [key] for name, key in zip(OTHERS, run.others)}
    for name, choose in (("random", choose_at_random), ("adams2019_retrained", ChooseByHalide())):
        measured[name] = search.search(pool, choose, config.budget, round_size(config), deadline, among=initial)
    return measured


def round_size(config):
    return max(2, math.ceil(config.budget / ROUNDS))


def remeasure_finalists(run, measured):
    """(key of the winner, {key: milliseconds}) of the fastest and of Adams2019's choice, measured anew: the median of fresh processes."""
    fastest = sorted((key for key in measured if key != ADAMS2019), key=run.runtime_ms)[:FINALISTS]
    finalists = [*([ADAMS2019] if ADAMS2019 in measured else []), *fastest]
    times = {key: float(np.median(values)) for key, values in run.measure_again(finalists, REPEATS).items()}
    return min(finalists, key=lambda key: times[key]), times


def main():
    config = load_config(TuneConfig)
    began = time.monotonic()
    deadline = began + 60 * config.minutes if config.minutes else math.inf
    device = train_utils.pick_device(config)
    checkpoint = config.checkpoint if "checkpoint" in config.model_fields_set else train_utils.SHIPPED_MODEL
    model, meta = train_utils.load_model(checkpoint, device, config.precision)
    spec = find_program(config)
    output = make_folder(config.output, "output").resolve()
    prepare_processes()
    run = TuningRun(spec, prepare(output, config), config.compile_seconds)
    run.measure([ADAMS2019])
    if run.failed:
        raise UserError(f"{config.file}: {spec.name} can't be measured: {run.record['failure']}")
    print(f"{spec.name}: {len(run.record['stages'])} stages; Adams2019 with beam {ADAMS2019_BEAM}: {run.describe(ADAMS2019)}")

    pool = Pool(run, model, meta, device)
    pool.add([read_measured(run, ADAMS2019)])
    pool.propose([Proposal.draw(spec.seed, k) for k in range(config.proposals)], deadline)
    initial = list(pool.keys)
    print(f"{len(initial)} distinct schedules proposed in {pool.seconds['propose']:.1f} s, predicted in {pool.seconds['predict']:.1f} s")
    vary = math.ceil(config.proposals / 2 / ROUNDS)
    measured = {"lstm": search.search(pool, choose_by_model, config.budget, round_size(config), deadline, vary=vary, report=print)}
    if not measured["lstm"]:
        raise UserError(f"{config.file}: no schedule of {spec.name} could be measured; {run.path} says why each failed")
    search_seconds = time.monotonic() - began
    if config.compare:
        measured |= compare(pool, initial, config, deadline)

    winner, times = remeasure_finalists(run, measured["lstm"])
    best = results.build_best(run, winner, output)
    everything = [run.runtime_ms(key) for keys in measured.values() for key in keys]
    outcomes = [c["outcome"] for key, c in run.outcomes.items() if key.isdecimal()]
    report = {
        "program": spec.name, "stages": len(run.record["stages"]),
        "adams2019_ms": times.get(ADAMS2019), "best_ms": times[winner],
        "speedup": times[ADAMS2019] / times[winner] if ADAMS2019 in times else None,
        "measured": len(measured["lstm"]), "proposed": len(pool.keys), "best": best,
        "failed": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes) - {"measured"})},
        "within_5_percent": {name: results.within(search.best_so_far(run, keys), 1.05 * min(everything)) for name, keys in measured.items()},
        "search": search.best_so_far(run, measured["lstm"]),
        "rivals": {name: {"best_ms": min(map(run.runtime_ms, keys), default=None), "measured": len(keys), "search": search.best_so_far(run, keys)} for name, keys in measured.items() if name != "lstm"},
        "seconds": {"search": search_seconds, **pool.seconds, "model_share": pool.seconds["predict"] / search_seconds},
    }  # fmt: skip
    # orjson writes null for the infinite runtime of what could not be measured.
    (output / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    results.plot_search(output / "search.png", run, measured)
    if report["speedup"] is None:
        print(f"best: {report['best_ms']:.4g} ms; Adams2019's own choice could not be measured")
    else:
        print(
            f"best: {report['best_ms']:.4g} ms, {report['speedup']:.2f} x as fast as Adams2019's {report['adams2019_ms']:.4g} ms (medians of {REPEATS} fresh processes)"
        )
    print(
        f"written to {output}: best.schedule.h ({best['autoscheduler']}), {best['library']}, {best['header']}, report.json, search.png, measurements"
    )


if __name__ == "__main__":
    run_script(main)
