"""The search for the fastest schedule of one program: many proposals, a prediction for each, measurements of a few.

Adams2019 with noise on its weights proposes schedules by the hundred and featurizes them without compiling. The LSTM predicts them
all; those that look fast are lowered, too, so that it knows what their code does and predicts them better. What has been measured
corrects it, through a Gaussian process over the schedules' features that also says how sure the corrected prediction is; the next to
be measured are those that may be fastest. Then the best so far are varied, and so on.
"""

import itertools
import math
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pebble import ProcessExpired, ProcessPool
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

import adams2019
import collection
import data_utils
import halide_utils
import train_utils
from candidate import Candidate, count, propose, silence
from collection import Plan, ProgramRun
from features import featurize
from halide_utils import OtherAutoscheduler, Proposal

PROPOSAL_SECONDS = 60  # for Adams2019 to come up with one, or for counting in its code; it is left out if it takes longer
COUNTED_SHARE = 0.5  # of new proposals, those predicted fastest, are lowered and counted, which takes several times as long as to propose them
ADAMS2019, ADAMS2019_SECONDS = "0", 3600  # key of its own choice, and the longest that may take
ADAMS2019_BEAM = 32  # what Halide uses unless told otherwise
OTHERS = ("Mullapudi2016", "Li2018")  # Halide's other autoschedulers, with one choice each: each is worth an eighth of a budget
NOISE = 0.03  # of a measurement, in log-runtime
OPTIMISM = 0.5  # standard deviations by which a prediction that is less sure may be faster
MIN_RESIDUALS = 8  # measured schedules before the kernel is fitted to them
VARIED = 3  # of the fastest schedules are varied after each round
RETRAIN_RATE, RETRAIN_EPOCHS = 1e-4, 32  # of Halide's autotune loop


class TuningRun(ProgramRun):
    """One program's tuning. Like the collection of a program, but its proposals are chosen one by one, and none makes it give up."""

    def __init__(self, spec, folder, seconds):
        super().__init__(spec, Plan(str(folder), 0, seconds))
        self.proposals = {ADAMS2019: Proposal(sigma=0.0, dropout=100, beam_size=ADAMS2019_BEAM, seed=0)}
        for key, c in self.decided.items():
            if key.isdecimal():
                self.proposals[key] = OtherAutoscheduler(c["autoscheduler"]) if "autoscheduler" in c else Proposal.from_record(c)
        self.numbers = {proposal: key for key, proposal in self.proposals.items()}
        self.next_number = 1 + max(map(int, self.proposals))
        self.others = [self.key(OtherAutoscheduler(name)) for name in OTHERS]
        self.workspace = tempfile.TemporaryDirectory()

    def proposal(self, key):
        return self.proposals[key]

    def seconds_for(self, key):
        return ADAMS2019_SECONDS if key.rstrip("r") == ADAMS2019 else self.seconds

    def gives_up(self):
        return self.failed

    def key(self, proposal):
        """The number of a proposal, a new one if it has none yet."""
        if proposal not in self.numbers:
            self.numbers[proposal] = str(self.next_number)
            self.proposals[self.numbers[proposal]] = proposal
            self.next_number += 1
        return self.numbers[proposal]

    def measure(self, keys):
        """Compile and measure these candidates, those that were before left out."""
        compiled = collection.compile_candidates({self: [key for key in keys if key not in self.decided]}, self.workspace.name)
        for _, candidate in compiled:
            collection.measure(self, candidate)
        collection.further_passes(compiled)

    def runtime_ms(self, key):
        """Measured milliseconds of a candidate; infinite where it gave none."""
        return self.decided.get(key, {}).get("runtime_ms", math.inf)

    def describe(self, key):
        """How a candidate ended, for a person."""
        c = self.decided.get(key, {"outcome": "never tried"})
        return f"{c['runtime_ms']:.4g} ms" if "runtime_ms" in c else f"{c['outcome']} {c.get('detail', '')}".strip()

    def measure_again(self, keys, times):
        """{key: [milliseconds, ...]} of new measurements, each in a fresh process, the candidates taking turns."""
        found = {key: [] for key in keys}
        for _ in range(times):
            repeats = {}
            for key in keys:
                repeats[key] = key + "r"
                while repeats[key] in self.decided:
                    repeats[key] += "r"
            self.measure(repeats.values())
            for key, repeat in repeats.items():
                found[key].append(self.runtime_ms(repeat))
        return found


def on_all_cores(function, spec, proposals, deadline=math.inf):
    """{proposal: function(spec, proposal)}, where that is not None, worked out on all cores until the deadline (time.monotonic())."""
    found = {}
    with ProcessPool(os.cpu_count(), context=Candidate.context, initializer=silence) as processes:
        results = processes.map(partial(function, spec), proposals, timeout=PROPOSAL_SECONDS)
        iterator = results.result()
        for proposal in proposals:
            if time.monotonic() > deadline:
                results.cancel()
                break
            try:
                result = next(iterator)
            except (TimeoutError, ProcessExpired):
                continue
            if result is not None:
                found[proposal] = result
    return found


def proposed_schedule(featurization, calls, lowered):
    """The data_utils.Schedule in featurization bytes, its runtime not known; `calls` and `lowered` as data_utils.stage_counts gives them, or None."""
    dump = data_utils.Dump("proposed.featurization", "", data=featurization, calls=calls, lowered=lowered)
    return data_utils.parse_dump(dump, math.inf, need_runtime=False)


class Pool:
    """Distinct schedules proposed for one program, and what the model says of them.

    keys : number of each one's proposal, as of TuningRun; schedules : data_utils.Schedule each; features : (T, F) each;
    log_predicted : (N,) ln of ms; shares : (T,) each, of the stages in it
    """

    def __init__(self, run, model, meta, device):
        self.run, self.model, self.meta, self.device = run, model, meta, device
        self.keys, self.schedules, self.features, self.hashes = [], [], [], set()
        self.log_predicted, self.shares = np.zeros(0), []
        self.calls = data_utils.call_counts(halide_utils.describe_stages(run.spec.build())["calls"])
        self.seconds = {"propose": 0.0, "predict": 0.0}

    def propose(self, proposals, deadline=math.inf):
        """Schedule the program as each of `proposals` says, on all cores, until the deadline (time.monotonic()).

        What is new is kept and predicted; the COUNTED_SHARE of it that looks fastest is lowered, counted and predicted again.
        """
        began = time.monotonic()
        proposed = on_all_cores(propose, self.run.spec, proposals, deadline)
        self.seconds["propose"] += time.monotonic() - began
        rows = self.add([(proposal, featurization, None) for proposal, (featurization, _) in proposed.items()])
        fastest = sorted(rows, key=lambda i: self.log_predicted[i])[: math.ceil(len(rows) * COUNTED_SHARE)]
        began = time.monotonic()
        counted = on_all_cores(count, self.run.spec, [self.run.proposals[self.keys[i]] for i in fastest], deadline)
        self.seconds["propose"] += time.monotonic() - began
        for i in fastest:
            lowered = counted.get(self.run.proposals[self.keys[i]])
            if lowered is not None and len(lowered) == len(self.schedules[i].calls):  # a row a stage, as data_utils asks of dumps
                self.schedules[i].lowered = lowered
        self.predict(fastest)

    def add(self, featurized):
        """Take in and predict [(proposal, featurization bytes, counts in the lowered code or None)], those that are new. Returns their rows."""
        first = len(self.keys)
        for proposal, featurization, lowered in featurized:
            if not featurization:
                continue
            schedule = proposed_schedule(featurization, self.calls, lowered)
            if schedule.schedule not in self.hashes:
                self.hashes.add(schedule.schedule)
                self.keys.append(self.run.key(proposal))
                self.schedules.append(schedule)
        rows = range(first, len(self.keys))
        self.features += [None] * len(rows)
        self.shares += [None] * len(rows)
        self.log_predicted = np.r_[self.log_predicted, np.zeros(len(rows))]
        self.predict(rows)
        return rows

    def predict(self, rows):
        """Featurize and predict the schedules of these rows, anew where they were before."""
        began = time.monotonic()
        features = featurize([self.schedules[i] for i in rows])
        predictions = train_utils.predict_sequences(self.model, features, self.device)
        self.seconds["predict"] += time.monotonic() - began
        for i, own, (log_predicted, share, _) in zip(rows, features, predictions):
            self.features[i], self.log_predicted[i], self.shares[i] = own, log_predicted, share

    def descriptors(self):
        """What tells these schedules apart, (N, T F): normalised features, each stage's weighed by its share of the predicted time.

        Scaled so that two schedules are a distance of 1 apart in the median.
        """
        features = torch.from_numpy(np.stack(self.features))  # (N, T, F)
        weight = torch.tensor(np.mean(self.shares, 0)).sqrt()[:, None]
        x = (self.model.normalise(features.to(self.device)).cpu() * weight).flatten(1)
        some = x[torch.linspace(0, len(x) - 1, min(len(x), 200)).long()]
        return (x / torch.pdist(some).median().clamp(min=1e-6)).double().numpy() if len(x) > 1 else x.double().numpy()

    def halide_batches(self):
        """The schedules as Halide's own model takes them: one batch of adams2019.log_predictions."""
        schedule_features = torch.from_numpy(np.stack([s.schedule_features for s in self.schedules]))
        algorithm = torch.from_numpy(np.stack([s.algorithm_features for s in self.schedules]))
        return [(schedule_features, algorithm, torch.full((len(self.schedules),), schedule_features.shape[1]))]


# Which of the pool's schedules to measure next: each takes (pool, keys measured so far, keys still open, how many) and returns keys


def choose_by_model(pool, measured, still_open, n):
    """By the LSTM's predictions, corrected by what was measured.

    The prediction's error is taken for a Gaussian process: an offset of the program, and a part that schedules share the more, the
    nearer they are, with the variances found on validation programs. A batch is chosen one by one, each believed to turn out as
    predicted, so that it is not of one kind (the "kriging believer" of Ginsbourger et al. 2010).
    """
    x, row = pool.descriptors(), {key: i for i, key in enumerate(pool.keys)}
    candidates = [row[key] for key in still_open if key in row]
    counted = [i for i in candidates if pool.schedules[i].lowered is not None]
    if len(counted) >= n:  # the others looked slow at a first glance
        candidates = counted
    rows = [row[key] for key in measured if key in row]
    residuals = [math.log(pool.run.runtime_ms(pool.keys[i])) - pool.log_predicted[i] for i in rows]
    between, within = (max(train_utils.errors_of(pool.meta, True)["offset_variance"][part], 1e-3) for part in ("between", "within"))
    kernel = ConstantKernel(between, "fixed") + ConstantKernel(within, (within / 10, within * 10)) * RBF(1.0, (0.2, 5.0))
    optimizer = "fmin_l_bfgs_b" if len(rows) >= MIN_RESIDUALS else None
    chosen = []
    while candidates and len(chosen) < n:
        process = GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=optimizer)
        if rows:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at the end of its range is a good one, too
                process.fit(x[rows], residuals)
            kernel, optimizer = process.kernel_, None
        error, deviation = process.predict(x[candidates], return_std=True)
        best = int(np.argmin(pool.log_predicted[candidates] + error - OPTIMISM * deviation))
        chosen.append(candidates.pop(best))
        rows, residuals = [*rows, chosen[-1]], [*residuals, float(error[best])]
    return [pool.keys[i] for i in chosen]


def choose_at_random(pool, measured, still_open, n):
    """Any of them, with the same chance."""
    rng = np.random.default_rng([pool.run.spec.seed, len(measured)])
    return [still_open[i] for i in rng.permutation(len(still_open))[:n]]


class ChooseByHalide:
    """By the cost that Adams2019's own model predicts, its weights retrained on what was measured as Halide's autotune loop does."""

    def __init__(self):
        self.weights = halide_utils.baseline_weights()

    def __call__(self, pool, measured, still_open, n):
        samples = [pool.run.folder / f"{key.zfill(3)}.sample" for key in measured if key not in pool.run.others]
        if len(samples) >= adams2019.MIN_SCHEDULES:
            self.weights = adams2019.retrain(samples, RETRAIN_RATE, RETRAIN_EPOCHS, os.cpu_count(), self.weights)
        cost = dict(zip(pool.keys, adams2019.log_predictions(self.weights, pool.halide_batches(), os.cpu_count())))
        return sorted(still_open, key=lambda key: cost[key])[:n]


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


def read_measured(run, key):
    """What the pool takes in of a measured schedule: (proposal, featurization bytes, b"" where there is none, counts in the lowered code or None)."""
    path = Path(run.folder, f"{key.zfill(3)}.sample")
    dump = next(data_utils.iter_dumps(str(path)), None) if path.exists() else None
    return run.proposals[key], path.read_bytes()[:-12] if dump else b"", dump.lowered if dump else None
