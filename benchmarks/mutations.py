"""How many changes of schedules lower, by kind of change (halide_tools/mutations.py); nothing is compiled or measured.

    python benchmarks/mutations.py
    python benchmarks/mutations.py --applications harris,unsharp --mutations 400 --changes 4

Parents are Adams2019's greedy schedule and Mullapudi2016's of each application, and what they were changed to before (--changes). The same
number is drawn of each kind. Writes benchmarks/results/mutations.md and .json.
"""

import collections
import sys
import tempfile
from pathlib import Path

import halide as hl
import numpy as np
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

from config import Config, load_config, run_script
from halide_tools import mutations, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.programs import find_programs

APPLICATIONS = "blur,mat_mul,conv_layer,harris,unsharp,hist_equalize,max_filter,stencil_chain"
OUTCOMES = {
    "lowers": "lowers to other code than its parent",
    "same schedule": "read back, it is its parent",
    "refused": "Halide refuses it",
    "not possible": "a directive names what is not there",
    "too slow": "over the limit of seconds",
    "does not apply": "the parent has nothing that this kind could change",
}


class MutationsConfig(Config):
    applications: str = Field(APPLICATIONS, description="names of pipelines/, separated by commas; empty: all")
    mutations: int = Field(208, ge=1, description="changes that are tried")
    changes: int = Field(1, ge=1, description="changes between an autoscheduler's schedule and the last parent")
    seconds: float = Field(20, gt=0, description="limit for applying and lowering a schedule")


def proposed(spec, proposal):
    pipeline = spec.build()
    unscheduled = schedules.read(pipeline)
    proposal.apply(pipeline, spec)
    return schedules.read(pipeline, unscheduled).to_json()


def lower(spec, text):
    """The schedule as Halide has it once it is applied to a pipeline that lowers."""
    pipeline, schedule = spec.build(), schedules.Schedule.from_json(text)
    schedule.apply(pipeline)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "lowered.stmt"))
        pipeline.compile_to_lowered_stmt(path, pipeline.infer_arguments(), hl.StmtOutputFormat.Text, spec.halide_target())
    return "lowered", schedules.read(pipeline, created=schedule.created).to_json(), ""


def main():
    config = load_config(MutationsConfig)
    rng, found, refusals = np.random.default_rng(config.seed), collections.Counter(), collections.Counter()
    parents = []
    for file in common.chosen_files(config.applications).values():
        for spec in find_programs(file):
            known = mutations.facts(spec.build(), spec.halide_target())
            for proposal in (Proposal.draw(spec.seed, 0), OtherAutoscheduler("Mullapudi2016")):
                text = common.in_fork(4 * config.seconds, proposed, spec, proposal)
                if isinstance(text, str):
                    parents.append((spec, known, schedules.Schedule.from_json(text), 0))
    for n in range(config.mutations):
        kind = list(mutations.KINDS)[n % len(mutations.KINDS)]
        at = int(rng.integers(len(parents)))
        spec, known, parent, depth = parents[at]
        mutated = mutations.mutate(parent, known, rng, {kind: 1.0})
        if mutated is None:
            found[kind, "does not apply"] += 1
            continue
        outcome = common.in_fork(config.seconds, lower, spec, mutated[0].to_json())
        if outcome is None:
            found[kind, "too slow"] += 1
        elif outcome[0] == "failed":
            found[kind, "not possible" if outcome[1] == "ValueError" else "refused"] += 1
            refusals[kind, " ".join(outcome[2].split())[:120]] += 1
        else:
            child = schedules.Schedule.from_json(outcome[1])
            found[kind, "lowers" if child != parent else "same schedule"] += 1
            if depth + 1 < config.changes:
                parents.append((spec, known, child, depth + 1))
    rows = [[kind, *(found[kind, outcome] for outcome in OUTCOMES)] for kind in mutations.KINDS]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 1 + len(OUTCOMES)))])
    reasons = [{"kind": kind, "reason": reason, "times": times} for (kind, reason), times in refusals.most_common()]
    common.write("mutations", ["kind of change", *OUTCOMES], rows, {"outcomes": OUTCOMES, "refusals": reasons})


if __name__ == "__main__":
    run_script(main)
