"""The search for the fastest schedule of one program: many proposals, a prediction for each, measurements of a few.

Adams2019 with noise on its weights proposes schedules by the hundred and featurizes them without compiling. The LSTM predicts them
all; those that look fast are lowered, too, so that it knows what their code does and predicts them better. What has been measured
corrects it, through a Gaussian process over the schedules' features that also says how sure the corrected prediction is; the next to
be measured are those that may be fastest. Then the best so far are varied, and so on.
"""

import itertools
import math
import time

import numpy as np

from tuning.run import ADAMS2019

VARIED = 3  # of the fastest schedules are varied after each round


# The search


def search(pool, choose, budget, round_size, deadline, vary=0, among=None, report=None):
    """Measure `budget` schedules in rounds: Adams2019's own choice and those of OTHERS, then the pool's. Returns their keys in that order.

    vary : how many variations of the fastest so far the pool gets after each round; with 0 it stays as it is. among : the keys to
    choose from; None is the whole pool. report : called with a line after each round. A candidate that fails costs no measurement,
    but after as many failures as the budget is large the search ends.
    """
    run, measured, tried = pool.run, [], set()
    keys = [ADAMS2019, *run.others[: budget // 8]]
    while keys:
        run.measure(keys)
        tried |= set(keys)
        measured += [key for key in keys if math.isfinite(run.runtime_ms(key))]
        if report and measured:
            report(f"  measured {len(measured)} of {budget}: fastest {min(map(run.runtime_ms, measured)):.4g} ms")
        n = min(round_size, budget - len(measured), 2 * budget - len(tried))
        if run.failed or n <= 0 or time.monotonic() > deadline:
            break
        if len(measured) > 1 and vary:
            vary_the_best(pool, measured, vary, deadline)
        keys = choose(pool, measured, [key for key in among or pool.keys if key not in tried], n)
    return measured


def vary_the_best(pool, measured, n, deadline):
    """Add to the pool up to `n` variations of the fastest schedules measured so far."""
    rng = np.random.default_rng([pool.run.spec.seed, len(pool.keys)])
    fastest = sorted((key for key in measured if key not in (ADAMS2019, *pool.run.others)), key=pool.run.runtime_ms)[:VARIED]
    parents = itertools.islice(itertools.cycle(fastest), n if fastest else 0)
    pool.propose([pool.run.proposals[key].varied(rng) for key in parents], deadline)


def best_so_far(run, keys):
    """Milliseconds of the fastest of the first 1, 2, ... of `keys`."""
    return list(itertools.accumulate((run.runtime_ms(key) for key in keys), min))
