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
from pebble import ProcessPool
from pydantic import Field
from pydantic_settings import CliPositionalArg

import halide_utils
import search
import train_utils
from candidate import Candidate, build_library, prepare_processes, silence
from config import Config, UserError, load_config, make_folder, replace_file, run_script
from halide_utils import Proposal
from machine import describe_machine
from search import ADAMS2019

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROUNDS = 4  # in which the budget is spent: what one measures guides the next
FINALISTS = 3  # of the fastest are measured again beside Adams2019's choice
REPEATS = 3  # fresh processes for each of them
BUILD_SECONDS = 3600
# What Halide's own command line wraps a schedule's directives in, so that a C++ Generator can include it.
SCHEDULE_HEADER = """#ifndef {name}_SCHEDULE_H
#define {name}_SCHEDULE_H

#include "Halide.h"

inline void apply_schedule_{name}(::Halide::Pipeline pipeline, ::Halide::Target target) {{
using ::Halide::Func;
using ::Halide::MemoryType;
using ::Halide::RVar;
using ::Halide::TailStrategy;
using ::Halide::Var;

{directives}
}}

#endif  // {name}_SCHEDULE_H
"""


class TuneConfig(Config):
    file: CliPositionalArg[str] = Field(min_length=1, description="GENERATOR.py: Halide Python Generators, or build()")
    generator: str = Field("", description="which of the file's Generators; needed where it holds several")
    budget: int = Field(32, ge=1, description="schedules to measure at most, Halide's own choice included")
    minutes: float = Field(0, ge=0, description="begin no more measurements after this time; 0: no limit")
    proposals: int = Field(400, ge=1, description="schedules to propose at the start; half as many again as variations of the fastest")
    compile_seconds: float = Field(60, gt=0, description="longest time to schedule and compile one candidate; Halide's own choice may take longer")
    checkpoint: str = Field("models/default.safetensors", description="model to rank with")
    output: str = Field("./tuned", min_length=1, description="folder for the results; started again, the search goes on there")
    compare: bool = Field(False, description="measure other autoschedulers and other ways to choose, too: for each as many schedules again")


def find_program(config):
    """The ProgramSpec to tune. Raises UserError where it can't be found or built, or where it lacks estimates."""
    for name in ("adams2019", "mullapudi2016", "li2018"):
        plugin = halide_utils.LIBRARIES / f"libautoschedule_{name}.so"
        if not plugin.exists():
            raise UserError(f"{plugin}: this autoscheduler is missing; install halide==21.0.0 with pip")
    if not Path(config.file).is_file():
        raise UserError(f"{config.file}: no such file; give a Python file with Halide Generators or build()")
    try:
        specs = {spec.name: spec for spec in halide_utils.programs_in(config.file)}
    except ValueError as error:
        raise UserError(str(error)) from None
    if config.generator not in specs and (config.generator or len(specs) > 1):
        raise UserError(f"{config.file}: --generator {config.generator!r} is not in it; there are {', '.join(specs)}")
    spec = specs[config.generator or next(iter(specs))]
    try:
        halide_utils.estimated_arguments(spec.build())
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
    replace_file(note, orjson.dumps({"name": folder.name, "source": {"tuned": Path(config.file).name}, "machine": machine}, option=orjson.OPT_INDENT_2))
    return folder


def compare(pool, initial, config, deadline):
    """{rival: its keys in the order of measuring}: other autoschedulers, and other ways to choose among the `initial` keys of the pool."""
    run = pool.run
    run.measure(run.others)
    measured = {name.lower(): [key] for name, key in zip(search.OTHERS, run.others)}
    for name, choose in (("random", search.choose_at_random), ("adams2019_retrained", search.ChooseByHalide())):
        measured[name] = search.search(pool, choose, config.budget, round_size(config), deadline, among=initial)
    return measured


def round_size(config):
    return max(2, math.ceil(config.budget / ROUNDS))


def final_duel(run, measured):
    """(key of the winner, {key: milliseconds}) of the fastest and of Adams2019's choice, measured anew: the median of fresh processes."""
    fastest = sorted((key for key in measured if key != ADAMS2019), key=run.runtime_ms)[:FINALISTS]
    finalists = [*([ADAMS2019] if ADAMS2019 in measured else []), *fastest]
    times = {key: float(np.median(values)) for key, values in run.measure_again(finalists, REPEATS).items()}
    return min(finalists, key=lambda key: times[key]), times


def build_best(run, key, output):
    """Write the winner for those who will use it; returns {what: file or parameters} for the report."""
    name = run.spec.name.replace(".", "_")
    directives = (run.folder / f"{key.zfill(3)}.schedule.h").read_text()
    (output / "best.schedule.h").write_text(SCHEDULE_HEADER.format(name=name, directives=directives))
    proposal = run.proposals[key]
    (output / "best.weights").unlink(missing_ok=True)
    if proposal.autoscheduler == "Adams2019":
        halide_utils.write_weights(output / "best.weights", proposal.weights())
    with ProcessPool(1, context=Candidate.context, initializer=silence) as processes:
        processes.schedule(build_library, args=(run.spec, proposal, str(output / name), name), timeout=BUILD_SECONDS).result()
    parameters = {k: str(v) for k, v in (halide_utils.parallelism() | proposal.parameters("best.weights")).items()}
    return {
        "key": key, "autoscheduler": proposal.autoscheduler, "autoscheduler_params": parameters, "proposal": vars(proposal),
        "library": f"{name}.a", "header": f"{name}.h",
    }  # fmt: skip


def plot_search(path, run, measured):
    """Best runtime against measurements: a curve for each way to choose, a line for each other autoscheduler."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, keys in measured.items():
        best = search.best_so_far(run, keys)
        if len(keys) > 1:
            axis.plot(range(1, len(best) + 1), best, ".-", label=name)
        elif keys and math.isfinite(best[0]):
            axis.axhline(best[0], color="gray", ls={"mullapudi2016": ":", "li2018": "-."}.get(name, "-"), label=name)
    if math.isfinite(run.runtime_ms(ADAMS2019)):
        axis.axhline(run.runtime_ms(ADAMS2019), color="k", lw=0.8, label="adams2019")
    axis.set(xlabel="schedules measured", ylabel="fastest so far, ms", yscale="log", title=run.spec.name)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    run = search.TuningRun(spec, prepare(output, config), config.compile_seconds)
    run.measure([ADAMS2019])
    if run.failed:
        raise UserError(f"{config.file}: {spec.name} can't be measured: {run.record['failure']}")
    print(f"{spec.name}: {len(run.record['stages'])} stages; Adams2019 with beam {search.ADAMS2019_BEAM}: {run.describe(ADAMS2019)}")

    pool = search.Pool(run, model, meta, device)
    pool.add([search.read_measured(run, ADAMS2019)])
    pool.propose([Proposal.draw(spec.seed, k) for k in range(config.proposals)], deadline)
    initial = list(pool.keys)
    print(f"{len(initial)} distinct schedules proposed in {pool.seconds['propose']:.1f} s, predicted in {pool.seconds['predict']:.1f} s")
    vary = math.ceil(config.proposals / 2 / ROUNDS)
    measured = {"lstm": search.search(pool, search.choose_by_model, config.budget, round_size(config), deadline, vary=vary, report=print)}
    if not measured["lstm"]:
        raise UserError(f"{config.file}: no schedule of {spec.name} could be measured; {run.path} says why each failed")
    search_seconds = time.monotonic() - began
    if config.compare:
        measured |= compare(pool, initial, config, deadline)

    winner, times = final_duel(run, measured["lstm"])
    best = build_best(run, winner, output)
    everything = [run.runtime_ms(key) for keys in measured.values() for key in keys]
    outcomes = [c["outcome"] for key, c in run.decided.items() if key.isdecimal()]
    report = {
        "program": spec.name, "stages": len(run.record["stages"]),
        "adams2019_ms": times.get(ADAMS2019), "best_ms": times[winner],
        "speedup": times[ADAMS2019] / times[winner] if ADAMS2019 in times else None,
        "measured": len(measured["lstm"]), "proposed": len(pool.keys), "best": best,
        "failed": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes) - {"measured"})},
        "within_5_percent": {name: within(search.best_so_far(run, keys), 1.05 * min(everything)) for name, keys in measured.items()},
        "search": search.best_so_far(run, measured["lstm"]),
        "rivals": {name: {"best_ms": min(map(run.runtime_ms, keys), default=None), "measured": len(keys), "search": search.best_so_far(run, keys)} for name, keys in measured.items() if name != "lstm"},
        "seconds": {"search": search_seconds, **pool.seconds, "model_share": pool.seconds["predict"] / search_seconds},
    }  # fmt: skip
    # orjson writes null for the infinite runtime of what could not be measured.
    (output / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    plot_search(output / "search.png", run, measured)
    if report["speedup"] is None:
        print(f"best: {report['best_ms']:.4g} ms; Adams2019's own choice could not be measured")
    else:
        print(f"best: {report['best_ms']:.4g} ms, {report['speedup']:.2f} x as fast as Adams2019's {report['adams2019_ms']:.4g} ms (medians of {REPEATS} fresh processes)")
    print(f"written to {output}: best.schedule.h ({best['autoscheduler']}), {best['library']}, {best['header']}, report.json, search.png, measurements")


def within(best, limit):
    """How many measurements it took to come within the limit, or None."""
    return next((i + 1 for i, ms in enumerate(best) if ms <= limit), None)


if __name__ == "__main__":
    run_script(main)
