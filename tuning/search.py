"""The search for the fastest schedule of one program: many proposals, a prediction for each, measurements of a few.

Adams2019 with noise on its weights proposes schedules by the hundred and featurizes them without compiling. The LSTM predicts them
all; those that look fast are lowered, too, so that it knows what their code does and predicts them better. What has been measured
corrects it, through a Gaussian process over the schedules' features that also says how sure the corrected prediction is; the next to
be measured are those that may be fastest. Then the best so far are varied, and so on.
"""

import itertools
import time

import numpy as np

from tuning.run import ADAMS2019

VARIED = 3  # of the fastest schedules are varied after each round
VARIATION_SHARE = 0.3  # of the time that is left, for proposing and counting these


def search(pool, name, choose, budget, round_size, deadline, vary=0, among=None, report=None):
    """Measure schedules in rounds, until `budget` are: Adams2019's own choice and those of OTHERS, then the pool's.

    Returns their keys in that order.


    name : of the search in the record; what it measured before is the beginning of what it measures now, and counts.
    vary : how many variations of the fastest so far the pool gets after each round; with 0 it stays as it is. among : the keys to
    choose from; None is the whole pool. report : called with a line after each round. A candidate that fails costs no measurement,
    but after as many failures as the budget is large the search ends.
    """
    run = pool.run
    measured = run.searches.setdefault(name, [])
    tried = {key for key in run.outcomes if key not in run.measured()} | set(measured)
    keys, n_tried = [key for key in (ADAMS2019, *run.others[: budget // 8]) if key not in tried][: max(budget - len(measured), 0)], 0
    while True:
        n = min(round_size, budget - len(measured), 2 * budget - n_tried)
        if run.failed or n <= 0 or time.monotonic() > deadline:
            break
        if n_tried and vary and len(measured) > 1:
            vary_the_best(pool, measured, vary, deadline)
        keys = keys or choose(pool, measured, [key for key in among or pool.keys if key not in tried], n)
        if not keys:
            break
        run.measure(keys)
        tried |= set(keys)
        n_tried += len(keys)
        measured += [key for key in keys if key in run.measured()]
        keys = []
        run.save()
        if report and measured:
            report(f"  measured {len(measured)} of {budget}: {standing(run, measured)}")
    return measured


def standing(run, measured):
    """The fastest so far beside Halide's own choice, for a person."""
    fastest, halide = min(map(run.runtime_ms, measured)), run.runtime_ms(ADAMS2019)
    return f"fastest {fastest:.4g} ms" + (f", Adams2019's own choice {halide:.4g} ms" if ADAMS2019 in run.measured() else "")


def vary_the_best(pool, measured, n, deadline):
    """Add to the pool up to `n` variations of the fastest schedules measured so far."""
    rng = np.random.default_rng([pool.run.spec.seed, len(pool.keys)])
    fastest = sorted((key for key in measured if key in pool.keys and key != ADAMS2019), key=pool.run.runtime_ms)[:VARIED]
    parents = itertools.islice(itertools.cycle(fastest), n if fastest else 0)
    now = time.monotonic()
    pool.propose([pool.run.proposals[key].varied(rng) for key in parents], now + (deadline - now) * VARIATION_SHARE)


def best_so_far(run, keys):
    """Milliseconds of the fastest of the first 1, 2, ... of `keys`."""
    return list(itertools.accumulate((run.runtime_ms(key) for key in keys), min))
