"""The search for the fastest schedule of one program: many proposals, a prediction for each, measurements of a few.

Adams2019 with noise on its weights proposes schedules by the hundred and featurizes them without compiling. The LSTM predicts them
all; those that look fast are lowered, too, so that it knows what their code does and predicts them better. What has been measured
corrects it, through a Gaussian process over the schedules' features that also says how sure the corrected prediction is; the next to
be measured are those that may be fastest. Then the best so far are varied: Adams2019's by more noise, and those of any origin directive by
directive, which leads to schedules that no autoscheduler proposes. And so on.
"""

import itertools
import time
from collections import Counter

import numpy as np

from halide_tools.autoschedulers import Proposal
from measuring.processes import Edit
from tuning.run import ADAMS2019

VARIED = 3  # of the fastest schedules are varied after each round by more noise,
PARENTS, PARENT_DECAY = 6, 0.7  # and so many are changed directive by directive, each rank so many times as often as the one before
VARIATION_SHARE = 0.3  # of the time that is left, for proposing and counting these
CHANGES = (1, 1, 2, 3, 4)  # how many at once, drawn
JOIN_SHARE = 0.15  # of the changed schedules that get parts of another one first
COMPOSITE = ("register_tile", "strip")  # kinds of change that rewrite a Func and what it reads together: each is tried on each parent
COMPOSITE_TRIES = 3  # with so many sizes
# Share of the changed schedules with a kind of change that were faster than what they were made of, in the shipped measurements of training
# programs (benchmarks/changes_that_paid.py); and how many schedules of this run that is worth.
PAID = {
    "register_tile": 0.23, "strip": 0.18, "unroll": 0.15, "parallel": 0.13, "store_at": 0.11, "order": 0.11, "inline": 0.11,
    "vector_width": 0.11, "in": 0.11, "compute_at": 0.10, "factor": 0.10, "split": 0.09, "rfactor": 0.07,
}  # fmt: skip
PAID_WEIGHT = 8
FASTER = 0.97  # of the other's runtime


def search(pool, name, choose, budget, round_size, deadline, vary=0, change=0, among=None, report=None):
    """Measure schedules in rounds, until `budget` are: Adams2019's own choice and those of OTHERS, then the pool's.

    Returns their keys in the order of measuring; where Adams2019's own search takes long, its choice comes when it is found.

    name : of the search in the record; what it measured before is the beginning of what it measures now, and counts.
    vary, change : how many variations of the fastest so far the pool gets after each round, by more noise and by changed directives; with
    0 it stays as it is. among : the keys to choose from; None is the whole pool. report : called with a line after each round. A candidate
    that fails costs no measurement, but after as many failures as the budget is large the search ends.
    """
    run = pool.run
    measured = run.searches.setdefault(name, [])
    tried = {key for key in run.outcomes if key not in run.measured()} | set(measured)
    keys, n_tried = [key for key in (ADAMS2019, *run.others[: budget // 8]) if key not in tried][: max(budget - len(measured), 0)], 0
    while True:
        n = min(round_size, budget - len(measured) - run.is_pending(ADAMS2019), 2 * budget - n_tried)
        if n <= 0 and run.is_pending(ADAMS2019):
            run.wait_for_background()
            take_late(run, measured, budget)
            continue
        if run.failed or n <= 0 or time.monotonic() > deadline:
            break
        if n_tried and vary and len(measured) > 1:
            vary_the_best(pool, measured, vary, deadline)
        if n_tried and change and measured:
            change_the_best(pool, measured, change, deadline)
        keys = keys or choose(pool, measured, [key for key in among or pool.keys if key not in tried], n)
        if not keys:
            break
        run.measure(keys)
        tried |= set(keys)
        n_tried += len(keys)
        measured += [key for key in keys if key in run.measured()]
        take_late(run, measured, budget)
        keys = []
        run.save()
        if report and measured:
            report(f"  measured {len(measured)} of {budget}: {standing(run, measured)}")
    run.wait_for_background()
    take_late(run, measured, budget)
    return measured


def take_late(run, measured, budget):
    """Add Adams2019's own choice to what a search has `measured`, once it has been, where there is room for it."""
    if ADAMS2019 in run.measured() and ADAMS2019 not in measured and len(measured) < budget:
        measured.append(ADAMS2019)


def standing(run, measured):
    """The fastest so far beside Halide's own choice, for a person."""
    fastest, halide = min(map(run.runtime_ms, measured)), run.runtime_ms(ADAMS2019)
    return f"fastest {fastest:.4g} ms" + (f", Adams2019's own choice {halide:.4g} ms" if ADAMS2019 in run.measured() else "")


def vary_the_best(pool, measured, n, deadline):
    """Add to the pool up to `n` variations of the fastest schedules measured so far."""
    rng = np.random.default_rng([pool.run.spec.seed, len(pool.keys)])
    noisy = [key for key in measured if isinstance(pool.run.proposals[key], Proposal) and key != ADAMS2019]
    fastest = sorted(noisy, key=pool.run.runtime_ms)[:VARIED]
    parents = itertools.islice(itertools.cycle(fastest), n if fastest else 0)
    now = time.monotonic()
    pool.propose([pool.run.proposals[key].varied(rng) for key in parents], now + (deadline - now) * VARIATION_SHARE)


def change_the_best(pool, measured, n, deadline):
    """Add to the pool up to `n` schedules made of the fastest measured so far, of any origin, by changes of their directives.

    Each parent gets the COMPOSITE changes once; the others are drawn, those kinds more often that have paid.
    """
    run, rng = pool.run, np.random.default_rng([pool.run.spec.seed, len(pool.keys), 1])
    kept = [key for key in dict.fromkeys([*run.baselines(), *measured]) if run.outcomes.get(key, {}).get("schedule")]
    parents = sorted((key for key in kept if key in run.measured()), key=run.runtime_ms)[:PARENTS]
    if not parents:
        return
    text = {key: run.outcomes[key]["schedule"] for key in parents}
    draw = lambda: int(rng.integers(2**31 - 1))
    edits = []
    for key in parents:
        if key not in pool.composed:
            pool.composed.add(key)
            edits += [Edit(text[key], key, 1, draw(), ((kind, 1.0),)) for kind in COMPOSITE for _ in range(COMPOSITE_TRIES)]
    weights = tuple(kind_weights(run, measured).items())
    shares = PARENT_DECAY ** np.arange(len(parents))
    for key, other in rng.choice(parents, (max(n - len(edits), 0), 2), p=shares / shares.sum()).tolist():
        joined = text[other] if rng.random() < JOIN_SHARE and other != key else ""
        edits.append(Edit(text[key], key, int(rng.choice(CHANGES)), draw(), weights, joined))
    now = time.monotonic()
    pool.change(edits, now + (deadline - now) * VARIATION_SHARE)


def kind_weights(run, measured):
    """{kind of change: how often it is drawn}: the share of schedules with it that were faster than what they were made of.

    That of PAID at first, and of the `measured` the more, the more of them there are.
    """
    tried, faster = Counter(), Counter()
    for key in measured:
        made_of, kinds = run.outcomes[key].get("edit_of"), set(run.outcomes[key].get("kinds", ()))
        tried.update(kinds if made_of else ())
        faster.update(kinds if made_of and run.runtime_ms(key) < FASTER * run.runtime_ms(made_of) else ())
    return {kind: (share * PAID_WEIGHT + faster[kind]) / (PAID_WEIGHT + tried[kind]) for kind, share in PAID.items()}


def best_so_far(run, keys):
    """Milliseconds of the fastest of the first 1, 2, ... of `keys`."""
    return list(itertools.accumulate((run.runtime_ms(key) for key in keys), min))
