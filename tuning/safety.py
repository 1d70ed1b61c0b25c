"""Whether a schedule is fit to be the answer: right at other sizes than the estimates, and for outputs as small as its author's takes.

What was found out about a schedule is in the record's `checks`, and not found out again.
"""

from measuring.messages import Failed

MOST_CHECKED = 12  # of the fastest, until as many as are wanted are fit


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


def objection(run, key, keep_extents):
    """Why a schedule can't be the answer, in words, or "".

    keep_extents : whether it has to take all outputs that its author's schedule takes.
    """
    found = checks_of(run, key)
    for size in found["sizes"]:
        if size["outcome"] == "differs":
            return f"is wrong for an output of {_product(size['extents'])}: {size['detail']}"
    if found["failed"].startswith("crashed"):
        return f"crashes for outputs of another size: {found['failed']}"
    if keep_extents and run.hand_written in run.measured():
        theirs = checks_of(run, run.hand_written)["minimum_extents"]
        mine = found["minimum_extents"]
        if mine and theirs and any(a > b for own, other in zip(mine, theirs) for a, b in zip(own, other)):
            return (
                f"takes outputs from {_product(mine[0])} on, the author's schedule from {_product(theirs[0])}; "
                "--keep_extents false allows that"
            )
    return ""


def fit_ones(run, keys, n, keep_extents, report):
    """The fastest `n` of `keys` that nothing speaks against; `report` is called with a line about each of the others."""
    fit = []
    for key in sorted(keys, key=run.runtime_ms)[:MOST_CHECKED]:
        if len(fit) == n:
            break
        if why := objection(run, key, keep_extents):
            report(f"{run.name_of(key)} ({run.describe(key)}) {why}")
        else:
            fit.append(key)
    return fit


def _product(extents):
    return " x ".join(map(str, extents))
