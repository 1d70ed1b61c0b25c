"""The rows of a split as padded batches, and what is computed over all of them.

Axes: N rows of a split, B batch, T stages (padded), F features.
"""

import collections
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import data_utils
from dumps.parsing import hex_id, stable_hash
from features import FEATURES, FLAG_COLUMNS, LOWERED_COLUMNS, N_SCHEDULE, SCHEDULE_COLUMNS, inputs_of

# Padded stages at a time, so that one program of thousands of stages costs no gigabytes: of a batch, and of what is computed once a shard.
BATCH_STAGES, PART_STAGES = 2**14, 2**16
COLUMNS = ("lengths", "log_runtime", "program", "instance", "schedule")


@dataclass
class Batch:
    features: torch.Tensor  # (B, T, F) float32, raw
    lengths: torch.Tensor  # (B,) int64
    log_runtime: torch.Tensor  # (B,) float32
    instance: torch.Tensor  # (B,) int64, equal where two rows are schedules of one program at one size

    def to(self, device):
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))

    def masked(self, without_counts, counts_alone):
        """The same batch with lowered-code counts masked where `without_counts`, Halide's schedule features where `counts_alone`.

        Bool (B,) arrays each: rows then look like plain dumps, or like schedules that Halide has no features of.
        """
        if not (without_counts.any() or counts_alone.any()):
            return self
        features = self.features.clone()
        for rows, columns in ((without_counts, LOWERED_COLUMNS), (counts_alone, SCHEDULE_COLUMNS)):
            rows = torch.from_numpy(rows)
            features[rows] = features[rows].index_fill(2, torch.tensor(columns), 0.0)
        return Batch(features, self.lengths, self.log_runtime, self.instance)


class Sequences:
    """The rows of one split, mapped from its shards; `self.column` arrays have shape (N,)."""

    def __init__(self, data_path, meta, split):
        self.data_path, self.meta = data_path, meta
        self.shards = data_utils.read_shards(data_path, meta, split)
        sizes = [len(shard["lengths"]) for shard in self.shards]
        self.shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self.row_of = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0, int)
        for column in COLUMNS:
            parts = [shard[column].numpy() for shard in self.shards]
            setattr(self, column, np.concatenate(parts) if parts else np.zeros(0, np.int64))

    def __len__(self):
        return len(self.lengths)

    @functools.cached_property
    def inputs(self):
        """Which of features.INPUTS each row has, (N,)."""
        flags = [(shard["features"][:, 0, list(FLAG_COLUMNS)] > 0).numpy() for shard in self.shards]
        return inputs_of(*np.concatenate([np.zeros((0, 2), bool), *flags]).T)

    def sample_masks(self, lowered_dropout, schedule_dropout, rng):
        """Masks (see Batch.masked) of all rows, bool (N,) each: random shares of the instances, none of them twice."""
        instances, place = np.unique(self.instance, return_inverse=True)
        drawn = rng.random(len(instances))[place]
        has_all = self.inputs == "all"
        return (drawn < lowered_dropout) & has_all, (drawn > 1 - schedule_dropout) & has_all

    def subset(self, rows):
        """The columns (not the features) of some rows."""
        return SimpleNamespace(**{column: getattr(self, column)[rows] for column in (*COLUMNS, "inputs")})

    def parts(self):
        """The shards as dicts of arrays; a large one in parts of at most PART_STAGES padded stages, each trimmed to its longest row."""
        for shard in self.shards:
            n, t = shard["features"].shape[:2]
            if n * t <= PART_STAGES:
                yield shard
                continue
            for rows in ranges_in_order(shard["lengths"].tolist(), n, PART_STAGES):
                part = {name: tensor[rows] for name, tensor in shard.items()}
                yield part | {"features": part["features"][:, : int(part["lengths"].max())]}

    def batch(self, rows):
        """A Batch of the given rows, padded to the longest among them."""
        t = int(self.lengths[rows].max())
        features = torch.zeros(len(rows), t, len(FEATURES))
        shards = self.shard_of[rows]
        for shard in np.unique(shards):  # mostly one or two: rows of like length lie together
            at = np.flatnonzero(shards == shard)
            part = self.shards[shard]["features"][:, :t][self.row_of[rows[at]]]
            features[at, : part.shape[1]] = part
        batch = Batch(features, *(torch.from_numpy(a[rows]) for a in (self.lengths, self.log_runtime, self.instance)))
        assert batch.features.shape[:2] == (len(rows), t) and batch.lengths.shape == batch.log_runtime.shape == (len(rows),)
        return batch

    def grouped_batches(self, batch_size, group_size, rng):
        """Rows of one epoch's batches, each of groups of schedules of one program, programs of like length together.

        A batch has at most `batch_size` rows and BATCH_STAGES padded stages; a group has at most `group_size` rows, fewer of long programs.
        """
        order = np.lexsort([rng.random(len(self)), self.instance])
        starts = np.flatnonzero(np.r_[True, np.diff(self.instance[order]) != 0])
        place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        sizes = np.clip(BATCH_STAGES // self.lengths[order], 1, group_size)
        groups = np.split(order, np.flatnonzero(place % sizes == 0)[1:])
        # A little disorder in length mixes the batches from epoch to epoch; padding stays small.
        by_length = np.argsort([self.lengths[group[0]] * rng.uniform(1, 1.2) for group in groups], kind="stable")
        batches, current, longest = [], [], 0
        for group in (groups[i] for i in by_length):
            n, longest = len(current) + len(group), max(longest, self.lengths[group[0]])
            if current and (n > batch_size or n * longest > BATCH_STAGES):
                batches.append(np.array(current))
                current, longest = [], self.lengths[group[0]]
            current.extend(group)
        batches.append(np.array(current))
        rng.shuffle(batches)
        return batches

    @property
    def featurized(self):
        """Which rows have Halide's schedule features, their numbers."""
        return np.flatnonzero(self.inputs != "counts_alone")

    def halide_batches(self):
        """Inputs of Halide's own model for the rows that are `featurized`, a shard or a part at a time: (schedule features (B, T, 39),
        algorithm features (B, T, 41, 8), lengths (B,))."""
        programs = data_utils.read_programs(self.data_path, self.meta)
        for shard in self.parts():
            rows = shard["features"][:, 0, FLAG_COLUMNS[1]] > 0
            if rows.any():
                algorithm = pad_sequence([programs[p] for p in shard["program"][rows].tolist()], batch_first=True)
                # The longest rows of the shard may not be among these.
                schedule_features = torch.expm1(shard["features"][rows][:, : algorithm.shape[1], :N_SCHEDULE])
                yield schedule_features, algorithm, shard["lengths"][rows]

    def feature_statistics(self):
        """Mean and standard deviation of each feature over all stages, (F,) each; infinite where a feature never varies."""
        n, total, squares = 0, 0.0, 0.0
        for shard in self.parts():
            mask = torch.arange(shard["features"].shape[1]) < shard["lengths"][:, None]
            stages = shard["features"][mask].double()
            n, total, squares = n + len(stages), total + stages.sum(0), squares + (stages**2).sum(0)
        mean = total / n
        std = (squares / n - mean**2).clamp(min=0).sqrt()
        std = torch.where(std > 1e-4, std, torch.inf)
        std[list(FLAG_COLUMNS)] = 1.0  # they vary in training, where inputs are masked
        return mean.float(), std.float()


def ranges_in_order(lengths, max_rows, max_stages):
    """Slices of consecutive rows, each of at most `max_rows` rows and `max_stages` padded stages; a row longer than that is alone.

    lengths : the stages of each row
    """
    slices, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i - start == max_rows or (i - start + 1) * longest > max_stages):
            slices.append(slice(start, i))
            start, longest = i, length
    return slices + [slice(start, len(lengths))] if len(lengths) else []


def fingerprint(*splits):
    """A hash of which schedules are in each of the `splits` (Sequences), and of their runtimes."""
    return hex_id(stable_hash(*(column for rows in splits for column in (len(rows), *_identity(rows)))))


def _identity(rows):
    order = np.lexsort([rows.log_runtime, rows.schedule, rows.program])
    return [rows.program[order].tobytes(), rows.schedule[order].tobytes(), rows.log_runtime[order].tobytes()]


def program_ids(rows):
    """The ids of the programs of Sequences, as meta.json and schedules.csv have them."""
    return [hex_id(program) for program in np.unique(rows.program)]


def prefetch(load, items):
    """load(item) of each of `items` in turn; while one is in use, a thread loads the next."""
    with ThreadPoolExecutor(1) as loader:
        waiting = collections.deque()
        for item in items:
            waiting.append(loader.submit(load, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
