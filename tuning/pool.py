"""The pool of schedules proposed for one program, and what the model predicts of each."""

import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pebble import ProcessExpired, ProcessPool

import train_utils
from dumps.files import Dump, call_counts, iter_dumps
from dumps.parsing import parse_dump
from features import featurize
from halide_tools.programs import describe_stages
from measuring.candidate import Candidate, count, propose, silence

PROPOSAL_SECONDS = 60  # for Adams2019 to come up with one, or for counting in its code; it is left out if it takes longer
COUNTED_SHARE = (
    0.5  # of new proposals, those predicted fastest, are lowered and counted, which takes several times as long as to propose them
)


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
    """The Schedule in featurization bytes, its runtime not known; `calls` and `lowered` as stage_counts gives them, or None."""
    dump = Dump("proposed.featurization", "", data=featurization, calls=calls, lowered=lowered)
    return parse_dump(dump, math.inf, need_runtime=False)


class Pool:
    """Distinct schedules proposed for one program, and what the model says of them.

    keys : number of each one's proposal, as of TuningRun; schedules : Schedule each; features : (T, F) each;
    log_predicted : (N,) ln of ms; shares : (T,) each, of the stages in it
    """

    def __init__(self, run, model, meta, device):
        self.run, self.model, self.meta, self.device = run, model, meta, device
        self.keys, self.schedules, self.features, self.hashes = [], [], [], set()
        self.log_predicted, self.shares = np.zeros(0), []
        self.calls = call_counts(describe_stages(run.spec.build())["calls"])
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


def read_measured(run, key):
    """What the pool takes in of a measured schedule: (proposal, featurization bytes, b"" where there is none, counts in the lowered code or None)."""
    path = Path(run.folder, f"{key.zfill(3)}.sample")
    dump = next(iter_dumps(str(path)), None) if path.exists() else None
    return run.proposals[key], path.read_bytes()[:-12] if dump else b"", dump.lowered if dump else None
