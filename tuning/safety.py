"""Whether a schedule is fit to be the answer: right at other sizes than the estimates, and for outputs as small as its author's takes.

What was found out about a schedule is in the record's `checks`, and not found out again. Many schedules need large outputs only because of
how they split the output. Those are measured once more with that split left out, or with a guard there.
"""

from halide_tools.mutations import Edited, fitted
from halide_tools.schedules import Schedule
from measuring.messages import Failed

MOST_CHECKED = 12  # of the fastest, until as many as are wanted are fit
HOPELESS = 1.1  # times the fastest baseline: what took longer in the search will not win against it


def checks_of(run, key):
    """{"minimum_extents": as of execution.minimum_extents or None, "sizes": as of execution.compare_sizes, "failed": why not or ""}."""
    known = run.record.setdefault("checks", {})
    if key in known:
        return known[key]
    extents = run.minimum_extents(key)
    sizes = run.compare_sizes(key, extents[0] if extents else None)
    failed = isinstance(sizes, Failed)
    found = {"minimum_extents": extents, "sizes": [] if failed else sizes, "failed": f"{sizes.reason}: {sizes.detail}" if failed else ""}
    if not failed or sizes.reason not in ("deadline", "timeout"):
        known[key] = found
        run.save()
    return found


def fault(run, key):
    """What is wrong with a schedule at another size, in words, or ""."""
    found = checks_of(run, key)
    for size in found["sizes"]:
        if size["outcome"] == "differs":
            return f"is wrong for an output of {_product(size['extents'])}: {size['detail']}"
    if not _crashes(run, key) or all(_crashes(run, one) for one in run.baselines() if one in run.measured()):
        return ""  # where they all do, it is the program
    return f"crashes for outputs of another size: {found['failed']}"


def _crashes(run, key):
    return checks_of(run, key)["failed"].startswith("crashed")


def demand(run, key):
    """What outputs a schedule asks for that its author's does not, in words, or ""."""
    if run.hand_written not in run.measured():
        return ""
    mine, theirs = (checks_of(run, one)["minimum_extents"] for one in (key, run.hand_written))
    if run.is_late() and not (mine and theirs):
        return "may take other outputs than the author's schedule: there was no time to look"
    if not (mine and theirs and any(a > b for own, other in zip(mine, theirs) for a, b in zip(own, other))):
        return ""
    return f"takes outputs from {_product(mine[0])} on, the author's schedule from {_product(theirs[0])}; --keep_extents false allows that"


def made_to_fit(run, key):
    """The key of the same schedule for outputs as small as the author's takes, measured; None where there is none, or it has not run."""
    stored, extents = run.outcomes[key].get("schedule"), (checks_of(run, run.hand_written)["minimum_extents"] or [None])[0]
    schedule = Schedule.from_json(stored) if stored and extents else None
    if not schedule or fitted(schedule, extents) == schedule:
        return None
    new = run.key(Edited(fitted(schedule, extents).to_json(), key, ("fitted",)))
    run.measure([new])
    same = run.outcomes.get(new, {}).get("of", new)  # a schedule that was measured before may lower to the same code
    return same if same in run.measured() else None


def fit_ones(run, keys, n, keep_extents, report):
    """The fastest `n` of `keys` that nothing speaks against; `report` is called with a line about each of the others.

    keep_extents : whether they have to take all outputs that the author's schedule takes. Where one does not, the same with its output
    split otherwise may.
    """
    fit, limit = [], HOPELESS * min(map(run.runtime_ms, run.baselines()))
    for key in [key for key in sorted(keys, key=run.runtime_ms) if run.runtime_ms(key) <= limit][:MOST_CHECKED]:
        if len(fit) == n:
            break
        why = fault(run, key) or (demand(run, key) if keep_extents else "")
        if not why:
            fit.append(key)
            continue
        report(f"{run.name_of(key)} ({run.describe(key)}) {why}")
        other = made_to_fit(run, key) if not fault(run, key) else None
        if other and other not in fit and not fault(run, other) and not demand(run, other):
            report(f"  with its output split otherwise it takes {run.describe(other)} and the same outputs as the author's")
            fit.append(other)
    return list(dict.fromkeys(fit))


def _product(extents):
    return " x ".join(map(str, extents))
