"""The pool of schedules proposed for one program, and what the model predicts of each.

All that is counted in its lowered code is predicted from these counts alone, so that schedules of all origins are told the same.
"""

import dataclasses
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

import train_utils
from dumps.companions import LOWERED_SUFFIX, SCHEDULE_SUFFIX, call_counts, lowered_in, read_or_none
from dumps.files import Dump
from dumps.parsing import parse_dump
from features import featurize
from halide_tools.programs import describe_stages
from measuring.processes import count, edit, on_all_cores, propose

REPORT_SECONDS = 15  # between two lines about how far the proposals are
PROPOSING_SHARE = 0.6  # of the time there is; counting takes the rest
FIRST_PROPOSALS = 8  # if Halide refuses all of them, no more are tried
# Of new proposals, those predicted fastest, that are lowered and counted, which takes several times as long as to propose them.
COUNTED_SHARE = 0.5


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
        self.composed = set()  # keys of schedules that have had the composite changes of search.change_the_best
        self.refused, self.words = Counter(), ""  # how many proposals failed, by reason; the words about the first
        self.edited, self.edits_failed = 0, Counter()  # how many changes of schedules were tried, and how many failed, by reason
        self.log_predicted, self.shares = np.zeros(0), []
        self.calls = call_counts(describe_stages(run.spec.build())["calls"])
        self.seconds = {"propose": 0.0, "predict": 0.0}

    def propose(self, proposals, deadline=math.inf):
        """Schedule the program as each of `proposals` says, on all cores, until the deadline (time.monotonic()).

        What is new is kept and predicted; the COUNTED_SHARE of it that looks fastest is lowered, counted and predicted again. Where Halide
        refuses the first few of them all, the others are not tried.
        """
        rows, now = [], time.monotonic()
        until = now + (deadline - now) * PROPOSING_SHARE
        while proposals:
            part = proposals if self.keys else proposals[:FIRST_PROPOSALS]
            proposed = self._on_all_cores("proposed", propose, part, until)
            rows += self.add([(p, proposed_schedule(data, self.calls, None)) for p, (data, _) in proposed.items()])
            proposals = proposals[len(part) :] if self.keys else []
        fastest = sorted(rows, key=lambda i: self.log_predicted[i])[: math.ceil(len(rows) * COUNTED_SHARE)]
        counted = self._on_all_cores("counted", count, [self.run.proposals[self.keys[i]] for i in fastest], deadline)
        for i in fastest:
            lowered = counted.get(self.run.proposals[self.keys[i]])
            if lowered is not None and len(lowered) == len(self.schedules[i].calls):  # a row a stage, as data_utils asks of dumps
                self.schedules[i].lowered = lowered
        self.predict(fastest)

    def part(self, keys):
        """Another Pool with the schedules of these `keys` alone."""
        part = Pool(self.run, self.model, self.meta, self.device)
        part.add([(self.run.proposals[key], self.schedules[self.keys.index(key)]) for key in keys])
        return part

    def change(self, edits, deadline=math.inf):
        """Change schedules as each of `edits` (processes.Edit) says, on all cores, until the deadline.

        What is new is counted and predicted.
        """
        if not self.schedules:
            return  # Adams2019 has featurized nothing, so there is nothing to predict by
        found = self._on_all_cores("changed", edit, edits, deadline).values()
        like = self.schedules[0]
        self.add([(edited, like.another(counts, number)) for edited, number, counts in found if len(counts) == len(like.calls)])

    def _on_all_cores(self, what, function, proposals, deadline):
        began, failures, told = time.monotonic(), [], time.monotonic()

        def report(n_done, n):
            nonlocal told
            if self.run.report and time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                self.run.report(f"  {what} {n_done} of {n}")

        found = on_all_cores(function, self.run.spec, proposals, deadline, failures, self.run.cores, report)
        self.seconds["propose"] += time.monotonic() - began
        if function is edit:
            self.edited += len(proposals)
            self.edits_failed.update(failure.reason for failure in failures)
        if function is propose:
            self.refused.update(failure.reason for failure in failures)
            self.words = self.words or next((failure.detail for failure in failures), "")
        return found

    def add(self, found):
        """Take in and predict those of [(proposal, Schedule)] that are new; returns their rows."""
        first = len(self.keys)
        for proposal, schedule in found:
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
        schedules = (self.schedules[i] for i in rows)
        features = featurize([dataclasses.replace(s, has_schedule_features=s.lowered is None) for s in schedules])
        predictions = train_utils.predict_sequences(self.model, features, self.device)
        self.seconds["predict"] += time.monotonic() - began
        for i, own, prediction in zip(rows, features, predictions):
            self.features[i], self.log_predicted[i], self.shares[i] = own, prediction.log_runtime, prediction.shares

    def descriptors(self):
        """What tells these schedules apart, (N, T F): normalised features, each stage's weighed by its share of the predicted time.

        Scaled so that two schedules are a distance of 1 apart in the median.
        """
        if not self.keys:
            return np.zeros((0, 1))
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
    """[(proposal, Schedule)] of what the pool takes in of a measured schedule; empty where it has left no dump."""
    stem = Path(run.folder, key.zfill(3))
    sample, own = (read_or_none(stem.with_suffix(suffix)) for suffix in (".sample", SCHEDULE_SUFFIX))
    if sample:
        lowered, _ = lowered_in(read_or_none(stem.with_suffix(LOWERED_SUFFIX)))
        return [(run.proposals[key], proposed_schedule(sample[:-12], call_counts(run.record["calls"]), lowered))]
    return [(run.proposals[key], parse_dump(Dump(f"{key}{SCHEDULE_SUFFIX}", "", data=own), math.inf, need_runtime=False))] if own else []
