"""Why the answer is fast: its loops and Adams2019's, the time that each Func takes in both, and what its changes are worth.

A schedule that the search has made of another one differs from it Func by Func, in its loops and in where it is computed. Each of these
differences is undone alone, and what is left is measured as any candidate is: how much slower it is says what the change was worth.
Changes that help only together both look valuable then. What is measured here is kept as every measurement is, but counts against no
budget and is not the answer of this run.
"""

import dataclasses
import math
import time

import train_utils
from features import featurize
from halide_tools.directives import OUTERMOST, ROOT, FuncSchedule, Level, labels_of
from halide_tools.mutations import Edited
from halide_tools.schedules import Schedule
from measuring.messages import Profiled
from measuring.processes import count, on_all_cores
from tuning.run import ADAMS2019

# Nothing more is begun after this share of --minutes, since the page has to be drawn, or after so many seconds.
EXPLAINING_SHARE, EXPLAINING_SECONDS = 0.97, 180
PROFILE_SECONDS = 1.0
N_PREDICTED, N_UNDONE = 24, 6  # changes whose loss is predicted, and those of them, the costliest, that are measured
NO_TIME = "there was no time left for it"
UNDONE = "undone"  # the name of these measurements among the record's searches, and their kind of change
# What of a Func is undone together.
PARTS = {
    "its loops": ("stages",),
    "where it is computed and stored": (
        "compute", "store", "hoist", "memory_type", "storage", "bounds", "memoize", "async_", "ring_buffer",
    ),
}  # fmt: skip

WHOLE = {"its schedule": tuple(field.name for field in dataclasses.fields(FuncSchedule))}


@dataclasses.dataclass(frozen=True)
class Undone:
    """A schedule without one of its changes. label : of the Func that was changed; what : for a person."""

    label: str
    what: str
    schedule: Schedule


def explain(run, pool, key, clock, say):
    """What report.json has under `explained`: {"loop_nests", "profile", "predicted_ms", "history", "undone", "left_out"}.

    run : TuningRun; key : of the winner; say : called with a line for a person. Each part that fails, or for which --minutes leaves no
    time, is left out; `left_out` says which and why.
    """
    run.set_deadline(min(clock.after(EXPLAINING_SHARE), time.monotonic() + EXPLAINING_SECONDS))
    keys = [k for k in dict.fromkeys([ADAMS2019, key]) if k in run.measured()]
    explained = {
        "loop_nests": {},
        "profile": {},
        "predicted_ms": predicted_ms(run, pool, key),
        "history": history(run, key),
        "left_out": [],
    }
    if ADAMS2019 not in keys:
        explained["left_out"].append(f"{run.name_of(ADAMS2019)}, beside the fastest schedule: it could not be measured")
    for k in keys:
        if run.is_late():
            explained["left_out"].append(f"the loops and the time per Func of {run.name_of(k)}: {NO_TIME}")
            continue
        say(f"looking where {run.name_of(k)} spends its time")
        nest = run.loop_nest(k)
        if nest:
            explained["loop_nests"][k] = nest
        else:
            explained["left_out"].append(f"the loops of {run.name_of(k)}: Halide did not print them in time")
        found = run.profile(k, PROFILE_SECONDS)
        if isinstance(found, Profiled):
            explained["profile"][k] = found.func_ms
        else:
            explained["left_out"].append(f"the time per Func of {run.name_of(k)}: {found.reason}: {found.detail}")
    explained["undone"] = undone_changes(run, pool, key, explained["left_out"], say)
    return explained


def predicted_ms(run, pool, key):
    """{label of the Func: milliseconds that the model predicts for its stages} of a schedule; None where it is not in the pool."""
    if key not in pool.keys:
        return None
    row, funcs = pool.keys.index(key), [stage.partition(".update(")[0] for stage in run.record["stages"]]
    labels, found = labels_of(dict.fromkeys(funcs)), {}
    for func, share in zip(funcs, pool.shares[row]):
        found[labels[func]] = found.get(labels[func], 0.0) + float(share * math.exp(pool.log_predicted[row]))
    return found


def history(run, key):
    """[{"key", "origin", "kinds", "ms"}] of a schedule and what it was made of, the first ancestor first."""
    chain = []
    while key in run.outcomes and key not in [step["key"] for step in chain]:
        found = run.outcomes[key]
        chain.insert(0, {"key": key, "origin": found["origin"], "kinds": found.get("kinds", []), "ms": found.get("runtime_ms")})
        key = found.get("edit_of")
    return chain


# What its changes were worth


def undone_changes(run, pool, key, left_out, say):
    """What its changes are worth, None for a schedule that the search has not changed:

    {"ancestor", "how", "winner_ms", "changes": [{"what", "lost", "back", "ms", "slower"}, ...], "refused": [line, ...], "not_tried"}.
    how : `measured`, or `predicted` by the model alone; slower : by what share, against the winner beside it; refused : lines about those
    that can't be undone alone; not_tried : how many others there are.
    """
    ancestor = history(run, key)[0]["key"]
    stored = [run.outcomes[k].get("schedule") for k in (key, ancestor)]
    if not isinstance(run.proposals[key], Edited) or not all(stored):
        return None
    if run.is_late():
        left_out.append(f"what the changes were worth: {NO_TIME}")
        return None
    winner, first = map(Schedule.from_json, stored)
    changes = without_each_change(winner, first)
    say(f"undoing what makes it differ from {run.name_of(ancestor)}, one by one")
    ms, how, refused = predict_losses(run, pool, key, changes), "predicted", []
    winner_ms = math.exp(pool.log_predicted[pool.keys.index(key)]) if key in pool.keys else None
    if not run.is_late():
        order = [*sorted(ms, key=ms.get, reverse=True), *(change for change in changes if change not in ms)]
        measured, winner_now, refused = measure_losses(run, key, order[:N_UNDONE])
        if measured and winner_now:
            ms, winner_ms, how = measured, winner_now, "measured"
    lines = [
        {"what": change.what, **directives_apart(winner, change.schedule), "ms": ms[change], "slower": ms[change] / winner_ms - 1}
        for change in (sorted(ms, key=ms.get, reverse=True)[:N_UNDONE] if winner_ms else [])
    ]
    found = {"ancestor": ancestor, "how": how, "winner_ms": winner_ms, "changes": lines, "refused": refused}
    return found | {"not_tried": len(changes) - len(lines) - len(refused)}


def predict_losses(run, pool, key, changes):
    """{Undone: predicted milliseconds} of those, among the N_PREDICTED where the model sees most of the time, that can be lowered."""
    weight = predicted_ms(run, pool, key) or {}
    changes = sorted(changes, key=lambda change: -weight.get(change.label, 0.0))[:N_PREDICTED]
    if not pool.schedules:
        return {}  # Adams2019 has featurized nothing, so there is nothing to predict by
    like = pool.schedules[0]
    proposals = {Edited(change.schedule.to_json(), key, (UNDONE,)): change for change in changes}
    counts = on_all_cores(count, run.spec, list(proposals), run.deadline, cores=run.cores)
    counted = {proposals[p]: like.another(found, None) for p, found in counts.items() if len(found) == len(like.calls)}
    predictions = train_utils.predict_sequences(pool.model, featurize(list(counted.values())), pool.device) if counted else []
    return {change: math.exp(prediction.log_runtime) for change, prediction in zip(counted, predictions)}


def measure_losses(run, key, changes):
    """({Undone: milliseconds}, the winner's beside them, lines about those that failed)."""
    keys = {change: run.key(Edited(change.schedule.to_json(), key, (UNDONE,))) for change in changes}
    now = run.measure_interleaved([key, *keys.values()])
    run.searches[UNDONE] = [k for k in keys.values() if k in run.measured()]
    run.save()
    ms, refused = {}, []
    for change, own in keys.items():
        found = run.outcomes.get(own, {"outcome": "deadline"})
        if (same := found.get("of", own)) in now:
            ms[change] = now[same]
        elif found["outcome"] not in ("measured", "duplicate", "deadline"):
            refused.append(f"{change.what}: can't be undone alone ({run.describe(own)})")
    return ms, now.get(key), refused


def without_each_change(winner, ancestor):
    """[Undone] for each part of each Func that differs: the winner with this part as the ancestor has it."""
    found = []
    for label in [*winner.funcs, *(label for label in ancestor.funcs if label not in winner.funcs)]:
        if label in winner.funcs and label in ancestor.funcs:
            mine, before = winner.funcs[label], ancestor.funcs[label]
            for part, names in (PARTS if mine.args == before.args else WHOLE).items():
                func = dataclasses.replace(mine, **{name: getattr(before, name) for name in names})
                found.append(Undone(label, f"{label}: {part}", with_funcs(winner, ancestor, {**winner.funcs, label: func}, winner.created)))
        else:
            found.append(Undone(label, f"{label}: the Func that the schedule adds", without_created(winner, ancestor, label)))
    distinct = {change.schedule: change for change in reversed(found) if change.schedule != winner}
    return [change for change in found if change in distinct.values()]


def without_created(winner, ancestor, label):
    """The winner without a Func that its schedule adds, or with one that only its ancestor's does."""
    source, other = (winner, ancestor) if label in winner.funcs else (ancestor, winner)
    made = next(c for c in source.created if c.label == label)
    funcs = dict(winner.funcs)
    if source is winner:
        del funcs[label]
        created = tuple(c for c in winner.created if c != made)
    else:
        funcs[label] = ancestor.funcs[label]
        created = (*winner.created, made)
    if made.method == "rfactor" and made.base in other.funcs:  # which changes the update that it is made of
        funcs[made.base] = dataclasses.replace(funcs[made.base], stages=ancestor.funcs[made.base].stages)
    return with_funcs(winner, ancestor, funcs, created)


def with_funcs(winner, ancestor, funcs, created):
    """The winner with these Funcs. What was computed or stored in a loop that is no more, is where the ancestor has it."""

    def is_there(where):
        if not isinstance(where, Level) or where.func not in funcs:
            return not isinstance(where, Level)
        return where.loop == OUTERMOST or any(loop.name == where.loop for stage in funcs[where.func].stages for loop in stage.loops)

    settled = dict(funcs)
    for label, func in funcs.items():
        if not all(map(is_there, (func.compute, func.store, func.hoist))):
            before = ancestor.funcs.get(label)
            place = (
                {name: getattr(before, name) for name in ("compute", "store", "hoist")}
                if before
                else {"compute": ROOT, "store": None, "hoist": None}
            )
            settled[label] = dataclasses.replace(func, **place)
    return dataclasses.replace(winner, funcs=settled, created=created)


def directives_apart(winner, other):
    """{"lost": directives that only the winner has, "back": those that only the other one has}, as text."""
    mine, others = ([str(d) for d in s.directives()] for s in (winner, other))
    return {"lost": [d for d in mine if d not in others], "back": [d for d in others if d not in mine]}
