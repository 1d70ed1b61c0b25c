"""Find a faster schedule for a Halide pipeline of your own, and build the library with it.

    python tune_schedule.py my_generator.py
    python tune_schedule.py pipelines/blur.py --budget 64 --output tuned/blur
    python tune_schedule.py my_generators.py --generator blur --params "radius=3" --num_threads 1 --minutes 10

A Python file holds Halide Generators (@hl.generator), or a function build() that returns an hl.Pipeline with estimates. Many
schedules are proposed, the model predicts all of them, and at most --budget are measured, Halide's own choice (Adams2019) always
among them. Each one's output is compared with that of the program stage by stage. A schedule that its author wrote is measured, too:
the answer is never slower than that or Halide's own choice. The fastest are measured again at the end: one set of runs chooses the
winner, and another, that took no part in the choice, is reported.

Writes to --output: best.schedule.h (for C++ Generators), best_schedule.py (with apply(pipeline), for Python), best.weights (which give
the same schedule again through Adams2019 itself, with the parameters in report.json; none where another autoscheduler won), a static
library and its header, report.json, report.html (the search, the schedule, where the time goes, what its changes are worth), search.png,
and a folder of every measurement that generate_dataset.py reads. The fresh runs at the end are noted in its program.json. Started again
with the same output it goes on from the measurements there; another program, size, parameter, target or number of threads is refused.
Use the machine for nothing else.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import orjson
from pydantic import Field
from pydantic_settings import CliPositionalArg
from tqdm import tqdm

from config import Config, UserError, load_config, make_folder, replace_file, run_script, usable_cores

matplotlib.use("Agg")
import train_utils
from halide_tools import execution
from halide_tools.autoschedulers import LIBRARIES, Proposal
from halide_tools.programs import default_threads, find_programs
from measuring.archives import NOTE, is_free, otherwise
from measuring.candidate import origin, prepare_processes
from measuring.machine import BACKGROUND_SECONDS, PROTOCOLS, describe_machine, differences
from measuring.processes import identities
from tuning import results, safety, search
from tuning.choosing import ChooseByHalide, choose_at_random, choose_by_model
from tuning.duel import FINALISTS, REPEATS, remeasure_finalists
from tuning.explaining import explain
from tuning.page import tuning_page
from tuning.pool import Pool, read_measured
from tuning.progress import Progress
from tuning.run import ADAMS2019, ADAMS2019_BEAM, ADAMS2019_PATIENCE, OTHERS, Clock, TuningRun

ROUNDS = 8  # in which the budget is spent: what one measures guides the next
CHANGED = 40  # schedules made of the fastest so far in each round, directive by directive
# Shares of --minutes after which the author's schedule, the proposals, the search (Adams2019's own, too) and the checks at other sizes have
# to be through; the fresh runs at the end and the library take the rest.
HALIDE_SHARE, PROPOSALS_SHARE, SEARCH_SHARE, FIT_SHARE = 0.3, 0.42, 0.58, 0.74
REFERENCE_SHARE = 0.55  # after which the program itself, with which all are compared, has to have run


class TuneConfig(Config):
    file: CliPositionalArg[str] = Field(
        min_length=1, description="Python file of Halide Generators or build(), or executable of C++ Generators"
    )
    generator: str = Field("", description="which of the file's Generators; needed where it holds several")
    params: str = Field("", description='GeneratorParams and open types, as "NAME=VALUE NAME=VALUE"')
    inputs: str = Field("", description='contents of inputs, as "NAME=FILE.npy NAME=VALUE NAME=LOW:HIGH"; others are drawn at random')
    target: str = Field("host", description="Halide target that schedules, code and library are made for")
    budget: int = Field(
        32,
        ge=1,
        description="schedules to measure at most, earlier runs in this folder and Halide's own choice included, the author's own left out",
    )
    minutes: float = Field(0, ge=0, description="longest time for all of it, Halide's own search and the library included; 0: no limit")
    proposals: int = Field(400, ge=1, description="schedules to propose at the start; half as many again as variations of the fastest")
    protocol: Literal[*PROTOCOLS] = Field(
        "careful", description="how each schedule is measured: careful, or quick, for trying things out; the two are never mixed"
    )
    compile_seconds: float = Field(
        60, gt=0, description="longest time to schedule one candidate, and to compile it; Halide's own choice may be searched for longer"
    )
    checkpoint: str = Field("models/default.safetensors", description="model to rank with")
    output: str = Field("./tuned", min_length=1, description="folder for the results; started again, the search goes on there")
    keep_extents: bool = Field(
        True, description="whether the answer has to take outputs as small as the author's own schedule does, where there is one"
    )
    compare: bool = Field(
        False,
        description="measure other autoschedulers and ways to choose, too, each as many schedules again; the answer is the model's alone",
    )


@dataclass
class Tuning:
    """All that the steps of one tuning share."""

    config: TuneConfig
    clock: Clock
    run: TuningRun
    pool: Pool
    output: Path


# Getting ready


def find_program(config):
    """The ProgramSpec to tune. Raises UserError where it can't be found, built or scheduled."""
    for name in ("adams2019", "mullapudi2016", "li2018"):
        plugin = LIBRARIES / f"libautoschedule_{name}.so"
        if not plugin.exists():
            raise UserError(f"{plugin}: this autoscheduler is missing; install halide==21.0.0 with pip")
    threads = config.num_threads or default_threads()
    try:
        specs = find_programs(config.file, config.generator, config.params, config.target, threads, config.inputs)
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(specs) > 1:
        raise UserError(f"{config.file}: several Generators are in it; give --generator, one of {', '.join(spec.name for spec in specs)}")
    return specs[0]


def open_folder(config, spec):
    """(folder of the results, folder of the measurements), with the note on program, machine and protocol.

    Raises UserError, and touches nothing, where something else lies there, or measurements of another program or machine.
    """
    output = Path(config.output).resolve()
    note = output / "measurements" / NOTE
    machine, identity = describe_machine(PROTOCOLS[config.protocol], spec.target, spec.threads), identities([spec]).get(spec)
    if not identity:
        raise UserError(f"{config.file}: {spec.name} can't be built in a process of its own, as it was a moment ago in this one")
    if note.exists():
        noted = orjson.loads(note.read_bytes())
        if noted.get("identity") != identity:
            raise UserError(f"{note}: {otherwise(spec, noted)}; give another --output")
        if differing := differences(noted["machine"], machine):
            raise UserError(f"{note}: measured otherwise: {'; '.join(differing)}; give another --output")
        return output, note.parent
    if output.exists() and not is_free(output):
        raise UserError(f"{output}: there is something else than a tuning in it, which is left alone; give another --output")
    make_folder(output, "output")
    make_folder(note.parent, "output")
    content = {
        "name": note.parent.name, "source": {"tuned": Path(config.file).name}, "identity": identity, "program": spec.name,
        "params": dict(spec.params), "target": str(spec.halide_target()), "threads": spec.threads, "machine": machine,
    }  # fmt: skip
    replace_file(note, orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return output, note.parent


def say(line):
    tqdm.write(line)
    sys.stdout.flush()


# The steps


def measure_baselines(tuning):
    """Measure Adams2019's own choice and the author's schedule. Raises UserError where the program itself can't be run."""
    run, clock, config = tuning.run, tuning.clock, tuning.config
    busy = min(1.0, execution.background_cpu_share_now(BACKGROUND_SECONDS))
    run.stopwatch.background.shares.append(busy)
    if busy > execution.BACKGROUND_CPU_LIMIT:
        say(f"others use {busy:.0%} of this machine: measurements will be less sure, and are flagged; nothing is waited for in vain")
    if any(key not in run.outcomes for key in run.baselines()):
        limit = f", within {clock.minutes(SEARCH_SHARE):.2g} minutes" if config.minutes else ""
        say(f"first: Halide's own choice (Adams2019 with beam {ADAMS2019_BEAM}), searched for, compiled and measured{limit}")
    run.set_deadline(clock.after(HALIDE_SHARE), reference=clock.after(REFERENCE_SHARE))
    run.patience, run.background_deadline = min(time.monotonic() + ADAMS2019_PATIENCE, run.deadline), clock.after(SEARCH_SHARE)
    run.measure(run.baselines())
    if run.failed:
        raise UserError(f"{tuning.config.file}: {run.spec.name} can't be measured: {run.record['failure']}")
    found = "still searched for, beside other work" if run.is_pending(ADAMS2019) else run.describe(ADAMS2019)
    say(f"{len(run.record['stages'])} stages; Adams2019's own choice: {found}")
    if run.hand_written:
        say(f"the author's schedule: {run.describe(run.hand_written)}")


def propose_schedules(tuning):
    """Fill the pool: with what has been measured here before, and, where the budget has room for more, with new proposals."""
    run, pool, config = tuning.run, tuning.pool, tuning.config
    deadline = tuning.clock.after(PROPOSALS_SHARE)
    pool.add([found for key in run.measured() for found in read_measured(run, key)])
    if len(run.searches.get("lstm", [])) < config.budget or config.compare:
        say(f"proposing {config.proposals} schedules")
        pool.propose([Proposal.draw(run.spec.seed, k) for k in range(config.proposals)], deadline)
        say(
            f"{len(pool.keys)} distinct schedules proposed in {pool.seconds['propose']:.1f} s, predicted in {pool.seconds['predict']:.1f} s"
        )
    if not pool.keys:
        say(f"Adams2019 takes none of its proposals ({failures_in_words(pool.refused)}): {pool.words}")


def search_schedules(tuning):
    """{way to choose: its keys in the order of measuring}."""
    run, pool, config, initial = tuning.run, tuning.pool, tuning.config, list(tuning.pool.keys)
    rounds, deadline = max(2, math.ceil(config.budget / ROUNDS)), tuning.clock.after(SEARCH_SHARE)
    vary = math.ceil(config.proposals / 2 / ROUNDS)
    run.set_deadline(deadline)
    measured = {"lstm": search.search(pool, "lstm", choose_by_model, config.budget, rounds, deadline, vary, CHANGED, report=say)}
    if config.compare:
        run.measure(run.others)
        for name, choose in (("random", choose_at_random), ("adams2019_retrained", ChooseByHalide())):
            measured[name] = search.search(pool, name, choose, config.budget, rounds, deadline, among=initial)
        name, others = "random_changes", pool.part(initial)  # the same changes, but nobody predicts which
        measured[name] = search.search(others, name, choose_at_random, config.budget, rounds, deadline, change=CHANGED)
    elif not measured["lstm"] and not pool.keys:
        run.measure(run.others)  # what Adams2019 can't schedule, another autoscheduler may
    measured |= {name.lower(): [key] for name, key in zip(OTHERS, run.others) if key in run.measured()}
    if not run.measured():
        words = pool.words or run.outcomes.get(ADAMS2019, {}).get("detail", "")
        failed = dict(pool.refused) | run.failures()
        raise UserError(f"{config.file}: no schedule of {run.spec.name} could be measured ({failures_in_words(failed)}): {words}")
    return measured


def failures_in_words(failed):
    return ", ".join(f"{n} {reason}" for reason, n in failed.items()) or "nothing was tried"


def choose_answer(tuning, measured):
    """The Answer: chosen and reported on fresh runs."""
    run, keep_extents = tuning.run, tuning.config.keep_extents
    found = measured["lstm"] if tuning.config.compare else run.measured()
    previous = run.record.get("answer")
    say("checking the fastest at other sizes")
    run.set_deadline(tuning.clock.after(FIT_SHARE))
    rivals = {*run.baselines(), previous}
    finalists = safety.fit_ones(run, [key for key in found if key not in rivals], FINALISTS, keep_extents, say)
    if previous and previous not in run.baselines():
        why = safety.fault(run, previous) or (safety.demand(run, previous) if keep_extents else "")
        previous = None if why else previous
    say(f"measuring the fastest again: {REPEATS} runs to choose, {REPEATS} to check, {REPEATS} to report")
    answer = remeasure_finalists(run, finalists, previous, tuning.clock)
    for line in answer.notes:
        say(line)
    run.record["answer"] = answer.key
    run.save()
    return answer


def write_results(tuning, measured, answer, search_seconds):
    """Everything in the output folder; returns the report."""
    run, pool, output = tuning.run, tuning.pool, tuning.output
    say("building the library")
    run.set_deadline(tuning.clock.after(1))
    best, no_library = results.build_best(run, answer.key, output)
    checks = safety.checks_of(run, answer.key)
    if no_library:
        say(f"no library could be built ({no_library}); start again to build it")
    report = describe_answer(run, answer) | describe_search(tuning, measured) | {
        "best": best, "minimum_extents": checks["minimum_extents"], "other_sizes": checks["sizes"], "protocol": tuning.config.protocol,
        "seconds": {"search": search_seconds, **pool.seconds, "model_share": pool.seconds["predict"] / search_seconds},
    }  # fmt: skip
    (output / "report.html").unlink(missing_ok=True)  # of an earlier answer
    write_report(output, report)
    results.plot_search(output / "search.png", run, measured)
    report["explained"] = explain(run, pool, answer.key, tuning.clock, say)
    text = tuning_page(run, pool, measured, report, (output / "best.schedule.h").read_text())
    replace_file(output / "report.html", text.encode())
    write_report(output, report)
    return report


def write_report(output, report):
    replace_file(output / "report.json", orjson.dumps(report, option=orjson.OPT_INDENT_2))


def describe_answer(run, answer):
    """What the report says of the program and of the answer's runs."""
    adams2019_ms, best_ms = answer.ms(ADAMS2019), answer.ms(answer.key)
    return {
        "program": run.spec.name, "stages": len(run.record["stages"]), "params": dict(run.spec.params),
        "target": str(run.spec.halide_target()), "threads": run.spec.threads,
        "inputs": run.record.get("inputs"), "reference": run.record.get("reference"),
        "adams2019_ms": adams2019_ms, "hand_written_ms": answer.ms(run.hand_written), "best_ms": best_ms,
        "speedup": adams2019_ms / best_ms if adams2019_ms else None, "origin": origin(run.proposals[answer.key]),
        "runs_ms": answer.times, "notes": answer.notes, "background": run.stopwatch.background.share(),
    }  # fmt: skip


def describe_search(tuning, measured):
    """What the report says of the search and of its rivals."""
    run, pool = tuning.run, tuning.pool
    curves = {name: search.best_so_far(run, keys) for name, keys in measured.items()}
    fastest = min((min(curve) for curve in curves.values() if curve), default=math.inf)
    return {
        "adams2019_search_ms": run.runtime_ms(ADAMS2019) if ADAMS2019 in run.measured() else None,
        "measured": len(measured["lstm"]), "proposed": len(pool.keys), "search": curves["lstm"],
        "changed": {"tried": pool.edited, "failed": dict(pool.edits_failed)},
        "failed": run.failures() | ({"refused": pool.refused.total()} if pool.refused else {}),
        "within_5_percent": {name: results.within(curve, 1.05 * fastest) for name, curve in curves.items()},
        "rivals": {
            name: {"best_ms": min(curve, default=None), "measured": len(curve), "search": curve}
            for name, curve in curves.items() if name != "lstm"
        },
    }  # fmt: skip


def summarise(report, output):
    """The last lines for a person."""
    best, speedup = report["best"], report["speedup"]
    line = f"best: {report['best_ms']:.4g} ms ({report['origin']})"
    if speedup is None:
        line += "; Adams2019's own choice could not be measured"
    else:
        line += f", {speedup:.2f} x as fast as Adams2019's {report['adams2019_ms']:.4g} ms"
        line += ": no faster, in these runs" if speedup <= 1 else ""
    if report["hand_written_ms"]:
        line += f"; the author's schedule takes {report['hand_written_ms']:.4g} ms"
    say(f"{line} (medians of {REPEATS} fresh runs that took no part in the choice)")
    if report["background"] > execution.BACKGROUND_CPU_LIMIT:
        say(f"others used {report['background']:.0%} of the machine meanwhile: measure again on an idle one before you rely on these times")
    if sizes := [size for size in report["other_sizes"] if size["outcome"] != "not_taken"]:
        told = ", ".join(f"{' x '.join(map(str, size['extents']))}: {size['outcome']}" for size in sizes)
        say(f"compared with the program stage by stage for outputs of other sizes: {told}")
    if report["minimum_extents"]:
        say(f"the library takes outputs of at least {report['minimum_extents']}")
    files = [best[kind] for kind in ("schedule", "python", "library", "header") if best[kind]] + [
        "report.html",
        "report.json",
        "search.png",
        "measurements",
    ]
    say(f"written to {output}: {', '.join(files)}")


def main():
    config = load_config(TuneConfig)
    spec = find_program(config)
    say(f"{spec.name}: for {spec.threads} threads and {spec.halide_target()}")
    device = train_utils.pick_device(config)
    checkpoint = config.checkpoint if "checkpoint" in config.model_fields_set else train_utils.SHIPPED_MODEL
    model, meta = train_utils.load_model(checkpoint, device, config.precision)
    prepare_processes()
    output, folder = open_folder(config, spec)
    clock = Clock.start(config.minutes)
    if clock.minutes(1) <= 0:
        raise UserError(f"--minutes {config.minutes:g} were over before {spec.name} could be measured: building it took longer")
    cores = min(usable_cores(), config.num_threads or usable_cores())
    run = TuningRun(spec, folder, config.compile_seconds, PROTOCOLS[config.protocol], cores, say)
    run.record["identity"] = orjson.loads((folder / NOTE).read_bytes())["identity"]
    tuning, progress = Tuning(config, clock, run, Pool(run, model, meta, device), output), Progress(run, config.budget)
    try:
        progress.begin("Halide's choice")
        measure_baselines(tuning)
        progress.begin("proposing")
        propose_schedules(tuning)
        progress.begin("searching")
        measured = search_schedules(tuning)
        search_seconds = time.monotonic() - clock.began
        progress.begin("choosing")
        answer = choose_answer(tuning, measured)
        progress.begin("writing")
        report = write_results(tuning, measured, answer, search_seconds)
    finally:
        progress.close()
        run.end()
    summarise(report, output)


if __name__ == "__main__":
    run_script(main)
