"""How many schedules lower to the same code after they were taken apart into directives and applied to a fresh pipeline.

    nice -n 19 python benchmarks/reapplied.py
    python benchmarks/reapplied.py --applications harris,unsharp --random_programs 5

For each application in pipelines/, and for random programs: Adams2019's proposals, Mullapudi2016's and Li2018's schedule. Each is read from
the serialized pipeline (halide_tools/schedules.py), written as JSON, and applied to a fresh pipeline. Both pipelines are lowered in a
process of their own, forked from the same state, so that Halide gives both the same names; their texts must be equal but for the names of
loops. What an autoscheduler printed as C++ is read, too, and must be the same schedule. Writes benchmarks/results/reapplied.md and .json.
"""

import collections
import itertools
import re
import sys
import time
from pathlib import Path

import halide as hl
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

from config import Config, load_config, run_script
from halide_tools import schedule_source, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.buffers import lowered_text
from halide_tools.lowered_identity import IDENTIFIER, renamed
from halide_tools.programs import ProgramSpec, find_programs

ROUNDS = 4  # of telling identifiers apart by what they stand beside
MAX_STAGES = 14  # of a random program, as most that are shipped
KINDS = {
    "same text": "equal texts",
    "same but for order": "equal operations in equal loops; operands or statements come in another order, as Halide sorts some by name",
    "as printed": "the code that the autoscheduler's own C++ text gives, too; its own pipeline had the Funcs it inlines put into others",
    "other code": "none of these",
    "not data": "a directive that can't be kept as data",
    "refused": "Halide refuses the directives",
}
SAME = ("same text", "same but for order")
NOT_COMPARED = {
    "no schedule": "the autoscheduler fails, or Halide to lower what it proposes",
    "too slow": "over the limit of seconds",
    "left out": "time ran out",
}


class ReappliedConfig(Config):
    applications: str = Field("", description="names of pipelines/, separated by commas; empty: all")
    proposals: int = Field(12, ge=0, description="Adams2019's proposals for each application; a random program gets one")
    random_programs: int = Field(60, ge=0, description="random programs")
    seconds: float = Field(60, gt=0, description="limit for a process that schedules and lowers")
    minutes: float = Field(60, gt=0, description="limit for all; what is left then is left out")


def lowered(pipeline):
    return lowered_text(pipeline, hl.get_host_target())


def unordered(text):
    """The lines as a multiset of what they consist of, each identifier told by the lines it is in, and by what else those hold."""
    text = re.sub(r"(load_typed_struct_member\([^\n]*), \d+\)$", r"\1)", text, flags=re.M)  # members are sorted by name
    lines = [re.findall(r"[\w$.]+|[^\s\w]", line) for line in text.splitlines()]
    names = set(IDENTIFIER.findall(text))
    colours = dict.fromkeys(names, 0)
    for _ in range(ROUNDS):
        signatures = [hash(tuple(sorted(str(colours.get(token, token)) for token in line))) for line in lines]
        found = collections.defaultdict(list)
        for signature, line in zip(signatures, lines):
            for token in line:
                if token in names:
                    found[token].append(signature)
        colours = {name: hash(tuple(sorted(found[name]))) for name in names}
    return collections.Counter(signatures)


def original(spec, proposal):
    """(Schedule as JSON, whether the autoscheduler's text says the same, lowered code)."""
    pipeline = spec.build()
    unscheduled = schedules.read(pipeline)
    source = proposal.apply(pipeline, spec)[1]
    # Where loops were split before rfactor, the text alone tells.
    created = schedule_source.read_source(source, spec.build(), unscheduled).created if ".rfactor(" in source else ()
    schedule = schedules.read(pipeline, unscheduled, created)
    result = lowered(pipeline)
    return schedule.to_json(), schedule_source.read_source(source, spec.build(), unscheduled) == schedule, result


def reapplied(spec, text):
    """(What the directives are once they were applied, lowered code of the pipeline that they were applied to)."""
    pipeline = spec.build()
    schedule = schedules.Schedule.from_json(text)
    schedule.apply(pipeline)
    return schedules.read(pipeline, created=schedule.created) == schedule, lowered(pipeline)


def printed(spec, proposal):
    """(Schedule, lowered code) of a fresh pipeline that was scheduled by the autoscheduler's text."""
    pipeline, fresh = spec.build(), spec.build()
    unscheduled = schedules.read(pipeline)
    source = proposal.apply(pipeline, spec)[1]
    return schedule_source.read_source(source, fresh, unscheduled).to_json(), lowered(fresh)


def compare(spec, proposal, seconds):
    """(Kind of KINDS or NOT_COMPARED, detail, whether the autoscheduler's text gives the same schedule)."""
    first = common.in_fork(seconds, original, spec, proposal)
    if first is None:
        return "too slow", "", None
    if first[0] == "failed":
        return ("not data" if first[1] == "ValueError" else "no schedule"), first[2], None
    schedule, agrees, want = first
    second = common.in_fork(seconds, reapplied, spec, schedule)
    if second is None:
        return "too slow", "", agrees
    if second[0] == "failed":
        return "refused", second[2], agrees
    if renamed(second[1]) == renamed(want):
        return "same text", "" if second[0] else "read again, it is another schedule", agrees
    kind = SAME[1] if unordered(second[1]) == unordered(want) else "other code"
    if kind == "other code":
        third = common.in_fork(2 * seconds, printed, spec, proposal)
        kind = "as printed" if third and unordered(third[1]) == unordered(second[1]) else kind
    return kind, difference(renamed(want), renamed(second[1])), agrees


def difference(want, got):
    """The first lines that differ."""
    return next((f"{a.strip()[:150]} | {b.strip()[:150]}" for a, b in zip(want.splitlines(), got.splitlines()) if a != b), "one is longer")


def cases(config):
    """(Kind of program, name, ProgramSpec, proposal) of all schedules: the first of each program, then the second, and so on."""
    others = [OtherAutoscheduler("Mullapudi2016"), OtherAutoscheduler("Li2018")]
    specs = [spec for file in common.chosen_files(config.applications).values() for spec in find_programs(file)]
    found = [[("application", s, p) for p in [*others, *(Proposal.draw(s.seed, k) for k in range(config.proposals))]] for s in specs]
    for seed in range(config.random_programs):
        spec = ProgramSpec(f"random_{seed}", seed, max_stages=MAX_STAGES)
        found.append([("random program", spec, p) for p in [*others, Proposal.draw(seed, seed % 7)]])
    return [case for row in itertools.zip_longest(*found) for case in row if case]


def main():
    config = load_config(ReappliedConfig)
    found, texts, details = collections.Counter(), collections.Counter(), []
    deadline = time.monotonic() + 60 * config.minutes
    for where, spec, proposal in cases(config):
        if time.monotonic() > deadline:
            found[where, proposal.autoscheduler, "left out"] += 1
            continue
        kind, detail, agrees = compare(spec, proposal, config.seconds)
        found[where, proposal.autoscheduler, kind] += 1
        texts[proposal.autoscheduler, agrees] += agrees is not None
        if detail:
            details.append({"program": spec.name, "proposal": str(proposal), "kind": kind, "detail": detail})
            print(f"{spec.name}, {proposal.autoscheduler}: {kind}: {detail[:200]}", file=sys.stderr, flush=True)
    rows = []
    for where, autoscheduler in sorted({key[:2] for key in found}):
        n = {kind: found[where, autoscheduler, kind] for kind in (*KINDS, *NOT_COMPARED)}
        rows.append([where, autoscheduler, *n.values(), share(n)])
    total = {kind: sum(v for key, v in found.items() if key[2] == kind) for kind in (*KINDS, *NOT_COMPARED)}
    rows.append(["all", "", *total.values(), share(total)])
    rows.append(["text read", "", *[""] * (len(total)), f"{sum(n for (_, agrees), n in texts.items() if agrees)} of {sum(texts.values())}"])
    common.write(
        "reapplied", ["of", "autoscheduler", *total, "share of the same code"], rows, {"kinds": KINDS | NOT_COMPARED, "details": details}
    )


def share(n):
    compared = sum(n[kind] for kind in KINDS)
    return f"{sum(n[kind] for kind in SAME) / compared:.2%}" if compared else ""


if __name__ == "__main__":
    run_script(main)
