"""How often each kind of change makes a schedule faster, in the shipped measurements of training programs.

    python benchmarks/changes_that_paid.py
    python benchmarks/changes_that_paid.py --archives data/raw/families.tar.xz

Takes the changed schedules whose parent was measured, too: Adams2019's or Mullapudi2016's. Each is changed again, to see which kinds of
change were drawn; where something else comes of it than was measured, it is left out. Nothing is compiled or measured. Half of the
programs tell what the shares of the other half are worth: the share of its changes that paid where kinds are drawn alike, and where they
are drawn by the first half's shares, each of them shrunk as tuning/search.py does. Writes benchmarks/results/changes_that_paid.md and
.json; tuning/search.py has the shares.
"""

import sys
from collections import Counter
from pathlib import Path

from pebble import ProcessExpired, ProcessPool
from pydantic import Field
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
from count_again import SECONDS, SPAWN, archives_in, read_records, spec_of

from config import Config, load_config, run_script, usable_cores
from dumps.collections import Collections
from halide_tools.mutations import KINDS
from measuring.candidate import from_fork, hash_of, proposal_of
from measuring.processes import prepare_worker
from tuning.search import FASTER, PAID_WEIGHT


class PaidConfig(Config):
    archives: str = Field("data/raw", description="packed collections, or folders of them; those of holdout are left out")


def with_measured_parent(record):
    """[(candidate's entry, its parent's milliseconds)] of a program.json."""
    measured = [c for c in record["candidates"].values() if c["outcome"] == "measured"]
    runtimes = {proposal_of(c): c["runtime_ms"] for c in measured if "parent" not in c}
    changed = [(c, runtimes.get(proposal_of(c).parent)) for c in measured if "parent" in c]
    return [(c, ms) for c, ms in changed if ms]


def kinds_of(spec, record):
    """Kinds of the changes that made a candidate's schedule; None where they make another one, or none, today.

    Made in a fork: Halide gives other names to a second program.
    """
    found, _ = from_fork(lambda: proposal_of(record).found_with_kinds(spec))
    if isinstance(found, tuple) and hash_of(b"", found[0].to_json()) == record["hash"]:
        return found[1]
    return None


def shares(outcomes):
    """{kind: share of the changed schedules with it that were faster}, shrunk towards the share of all by PAID_WEIGHT schedules."""
    tried, faster = counts(outcomes)
    mean = sum(paid for _, paid in outcomes) / max(len(outcomes), 1)
    return {kind: (mean * PAID_WEIGHT + faster[kind]) / (PAID_WEIGHT + tried[kind]) for kind in KINDS}


def counts(outcomes):
    """(Counter of schedules by kind, Counter of those that paid) of [(kinds, whether it paid)]."""
    tried, faster = Counter(), Counter()
    for kinds, paid in outcomes:
        tried.update(set(kinds))
        faster.update(set(kinds) if paid else ())
    return tried, faster


def paid_if_drawn_by(weights, outcomes):
    """Share of changed schedules that paid, each kind counted `weights` {kind: weight} times."""
    tried, faster = counts(outcomes)
    known = [kind for kind in KINDS if tried[kind]]
    return sum(weights[kind] * faster[kind] / tried[kind] for kind in known) / sum(weights[kind] for kind in known)


def main():
    config = load_config(PaidConfig)
    collections, found = Collections(config.holdout_names), {}
    with ProcessPool(config.num_threads or usable_cores(), context=SPAWN, initializer=prepare_worker) as pool:
        futures = []
        for path in archives_in(config.archives):
            if collections.is_held_out(path.name.removesuffix(".tar.xz")):
                continue
            note, records = read_records(path)
            for name, record in records.items():
                if pairs := with_measured_parent(record):
                    spec = spec_of(note, record)
                    futures += [(name, c, ms, pool.schedule(kinds_of, args=(spec, c), timeout=SECONDS)) for c, ms in pairs]
        for name, candidate, parent_ms, future in tqdm(futures, disable=None):
            try:
                kinds = future.result()
            except (TimeoutError, ProcessExpired):
                kinds = None
            if kinds:
                found.setdefault(name, []).append((kinds, candidate["runtime_ms"] < FASTER * parent_ms))
    outcomes, names = sum(found.values(), []), sorted(found)
    tried, faster = counts(outcomes)
    share = shares(outcomes)
    rows = [[kind, tried[kind], faster[kind], f"{share[kind]:.2f}"] for kind in sorted(KINDS, key=lambda kind: -share[kind])]
    common.write("changes_that_paid", ["kind of change", "schedules with it", "faster", "share, shrunk"], rows, {"shares": share})
    halves = [sum((found[name] for name in names[i::2]), []) for i in (0, 1)]
    for learnt, other in (halves, halves[::-1]):
        alike, by_share = (paid_if_drawn_by(w, other) for w in (dict.fromkeys(KINDS, 1.0), shares(learnt)))
        print(f"drawn alike {alike:.3f} of the changes paid, by the other half's shares {by_share:.3f}")
    print(f"{len(outcomes)} of {len(futures)} schedules of {len(found)} programs")


if __name__ == "__main__":
    run_script(main)
