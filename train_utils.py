"""What training and evaluation share: batches, losses, the learning-rate schedule, prediction, intervals and checkpoints.

Axes: N rows of a split, B batch, T stages (padded), F features.
"""

import collections
import functools
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits
from torch import distributed
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import data_utils
from config import UserError
from dumps.parsing import hex_id, stable_hash
from features import COST_COLUMNS, FEATURES, HAS_LOWERED_COUNTS_COLUMN, LOWERED_COLUMNS, N_SCHEDULE, PARALLEL_COLUMNS
from linear_costs import fit_linear_costs
from modeling import CostModel

SHIPPED_MODEL = Path(__file__).resolve().parent / "models" / "default.safetensors"
CHECKPOINT_FORMAT = "cost_model_LSTM 5"
REGRESSION_DELTA, CENTRED_DELTA = 1.0, 0.5  # where the Huber losses turn linear, in log-runtime
RANKING_TEMPERATURE = 0.2  # difference in predicted log-runtime that the ranking loss takes for a clear order
RANKING_MARGIN = math.log(1.05)  # pairs closer than this are not ranked
SCORING_BATCH = 128  # schedules scored at a time; what lies in between for more does not fit a core's caches
MODEL_KEYS = ("members", "embed_size", "hidden_size", "lstm_layers", "dropout")


# Batches

COLUMNS = ("lengths", "log_runtime", "program", "instance", "schedule")


@dataclass
class Batch:
    features: torch.Tensor  # (B, T, F) float32, raw
    lengths: torch.Tensor  # (B,) int64
    log_runtime: torch.Tensor  # (B,) float32
    instance: torch.Tensor  # (B,) int64, equal where two rows are schedules of one program at one size

    def to(self, device):
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))

    def without_lowered(self, rows):
        """The same with some rows, bool (B,) array, as if nobody had counted in their lowered code."""
        if not rows.any():
            return self
        features, rows = self.features.clone(), torch.from_numpy(rows)
        features[rows] = features[rows].index_fill(2, torch.tensor(LOWERED_COLUMNS), 0.0)
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
    def has_lowered_counts(self):
        """Which rows' lowered code was counted, bool (N,)."""
        parts = [(shard["features"][:, 0, HAS_LOWERED_COUNTS_COLUMN] > 0).numpy() for shard in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, bool)

    def sample_instances(self, share, rng):
        """Which rows, bool (N,), belong to a random share of the instances."""
        instances, place = np.unique(self.instance, return_inverse=True)
        return (rng.random(len(instances)) < share)[place]

    def subset(self, rows):
        """The columns (not the features) of some rows."""
        return SimpleNamespace(**{column: getattr(self, column)[rows] for column in COLUMNS})

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
        """Rows of one epoch's batches, each of groups of schedules of one program, programs of like length together."""
        order = np.lexsort([rng.random(len(self)), self.instance])
        starts = np.flatnonzero(np.r_[True, np.diff(self.instance[order]) != 0])
        place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        groups = np.split(order, np.flatnonzero(place % group_size == 0)[1:])
        # A little disorder in length mixes the batches from epoch to epoch; padding stays small.
        by_length = np.argsort([self.lengths[group[0]] * rng.uniform(1, 1.2) for group in groups], kind="stable")
        batches, current = [], []
        for group in (groups[i] for i in by_length):
            if current and len(current) + len(group) > batch_size:
                batches.append(np.array(current))
                current = []
            current.extend(group)
        batches.append(np.array(current))
        rng.shuffle(batches)
        return batches

    def halide_batches(self):
        """What Halide's own model takes, a shard at a time: schedule features (B, T, 39), algorithm features (B, T, 41, 8), lengths (B,)."""
        programs = data_utils.read_programs(self.data_path, self.meta)
        for shard in self.shards:
            schedule_features = torch.expm1(shard["features"][:, :, :N_SCHEDULE])
            algorithm = [programs[p] for p in shard["program"].tolist()]
            yield schedule_features, pad_sequence(algorithm, batch_first=True), shard["lengths"]

    def feature_statistics(self):
        """Mean and standard deviation of each feature over all stages, (F,) each; infinite where a feature never varies."""
        n, total, squares = 0, 0.0, 0.0
        for shard in self.shards:
            mask = torch.arange(shard["features"].shape[1]) < shard["lengths"][:, None]
            stages = shard["features"][mask].double()
            n, total, squares = n + len(stages), total + stages.sum(0), squares + (stages**2).sum(0)
        mean = total / n
        std = (squares / n - mean**2).clamp(min=0).sqrt()
        std = torch.where(std > 1e-4, std, torch.inf)
        std[HAS_LOWERED_COUNTS_COLUMN] = 1.0  # it varies in training, which hides the counts now and then
        return mean.float(), std.float()


def fingerprint(*splits):
    """A hash of which schedules are in each of the `splits` (Sequences), and of their runtimes."""
    return hex_id(stable_hash(*(column for rows in splits for column in (len(rows), *_identity(rows)))))


def _identity(rows):
    order = np.lexsort([rows.log_runtime, rows.schedule, rows.program])
    return [rows.program[order].tobytes(), rows.schedule[order].tobytes(), rows.log_runtime[order].tobytes()]


def prefetch(load, items):
    """load(item) of each of `items` in turn; while one is used, the next is loaded in a thread."""
    with ThreadPoolExecutor(1) as loader:
        waiting = collections.deque()
        for item in items:
            waiting.append(loader.submit(load, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


# Several processes, as torchrun starts them: each takes a part of every batch


@dataclass(frozen=True)
class Processes:
    """This process among the `world` that train together; alone, nothing is exchanged."""

    rank: int = 0
    world: int = 1

    @classmethod
    def init(cls, device):
        """Join those that torchrun started, if any; nccl connects GPUs, gloo anything else."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        distributed.init_process_group(backend, device_id=device_id)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def local_rows(self, rows, instance):
        """This process's rows of a batch: whole programs, since their schedules are compared with each other."""
        _, place = np.unique(instance[rows], return_inverse=True)
        return rows[place % self.world == self.rank]

    def all_reduce_sum(self, tensor):
        """The sum of every process's tensor."""
        if self.world > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def close(self):
        """Part from the others, all at the same time."""
        if distributed.is_initialized():
            # gloo's thread lets go of its last tensors under Python's lock, which the group's end would hold while it waits for that
            # thread (a deadlock of torch 2.13). The lock is free while this waits.
            distributed.barrier()
            distributed.destroy_process_group()


# Losses and learning rate


def loss_sums(log_predicted, batch):
    """Sums of the (regression, centred, ranking) losses of log-runtimes (B,) predicted for a batch, and how many terms each sums: (3,), (3,).

    regression: Huber on log-runtime. centred: Huber on residuals less their program's mean, which asks for the order and the
    ratios within a program whatever its offset. ranking: softplus over pairs of one program, as in RankNet (Burges et al. 2005).
    Parts of a batch that share no program add up to the whole.
    """
    residual = log_predicted - batch.log_runtime  # (B,)
    regression = huber(residual, REGRESSION_DELTA)
    same = (batch.instance[:, None] == batch.instance[None, :]).float()  # (B, B)
    centred = huber(residual - (same @ residual) / same.sum(1), CENTRED_DELTA)
    slower = batch.log_runtime[:, None] - batch.log_runtime[None, :]  # (B, B): how much slower row i is than row j
    pairs = (same > 0) & (slower > RANKING_MARGIN)
    predicted_slower = (log_predicted[:, None] - log_predicted[None, :])[pairs]
    ranking = functional.softplus(-predicted_slower / RANKING_TEMPERATURE).sum()
    n = len(residual)
    return torch.stack([regression, centred, ranking]), torch.tensor([n, n, len(predicted_slower)], device=residual.device)


def loss_terms(log_predicted, batch):
    """Means of the (regression, centred, ranking) losses over a batch, (3,)."""
    sums, counts = loss_sums(log_predicted, batch)
    return sums / counts.clamp(min=1)


def huber(residual, delta):
    """Sum of Huber losses with slope 1 far from zero."""
    return functional.huber_loss(residual, torch.zeros_like(residual), reduction="sum", delta=delta) / delta


def one_cycle(step, n_steps, config):
    """Learning rate at `step` of `n_steps`: up to the peak in the warm-up, then down to zero, both along a cosine."""
    warmup = max(1.0, config.warmup_fraction * n_steps)
    if step < warmup:
        return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / warmup)) / 2)
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1.0, n_steps - warmup))) / 2


# Prediction


@torch.no_grad()
def predict(model, sequences, device, lowered=True):
    """Predicted log-runtime of every row, (N,) float64, in the rows' order; without `lowered` as if nobody had counted in the lowered code."""
    model.eval()
    parts = []
    for rows in _in_order(sequences):
        batch = sequences.batch(rows)
        parts.append(model(*_inputs(batch if lowered else batch.without_lowered(np.ones(len(rows), bool)), device)).mean(0).cpu())
    return torch.cat(parts).double().numpy() if parts else np.zeros(0)


def _inputs(batch, device):
    return batch.features.to(device), batch.lengths.to(device)


def _in_order(sequences):
    return [np.arange(i, min(i + SCORING_BATCH, len(sequences))) for i in range(0, len(sequences), SCORING_BATCH)]


@torch.no_grad()
def predict_sequences(model, sequences, device):
    """For each sequence of features, (T, F) as featurize gives them: log-runtime, its stages' shares of that (T,), and the
    share of its features that lie outside what training has seen."""
    results = []
    for start in range(0, len(sequences), SCORING_BATCH):
        part = [torch.from_numpy(sequence) for sequence in sequences[start : start + SCORING_BATCH]]
        lengths = torch.tensor([len(s) for s in part], device=device)
        features = pad_sequence(part, batch_first=True).to(device)  # (B, T, F)
        members = model.stage_costs(features, lengths)
        predicted = members.logsumexp(2).mean(0)  # (B,)
        share = members.softmax(2).mean(0)  # (B, T), of each schedule's time
        outside = model.is_unfamiliar(features).float().mean(2)  # (B, T)
        results += [(p.item(), s[:n].cpu().numpy(), o[:n].mean().item()) for p, s, o, n in zip(predicted, share, outside, lengths.tolist())]
    return results


# Checkpoints: tensors and plain data in one safetensors file


def write_checkpoint(path, tensors, meta):
    """Write `tensors` {name: tensor} and `meta` (anything JSON can hold) to `path`, whole or not at all."""
    temporary = Path(f"{path}.tmp")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, {"meta": json.dumps(meta)})
    os.replace(temporary, path)


def read_checkpoint(path):
    """(tensors, meta) of a checkpoint. Raises UserError where `path` is none."""
    try:
        with safe_open(path, "pt") as f:
            meta = json.loads((f.metadata() or {}).get("meta", "{}"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run train_model.py first, with the same run_path") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint of this project ({error})") from None
    if meta.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: not a checkpoint of this project; give one that train_model.py wrote")
    if meta["features"] != FEATURES:
        raise UserError(f"{path}: was trained on other features than this version's; train again")
    return tensors, meta


def load_model(path, device, precision="float32"):
    """(CostModel, meta) from a checkpoint alone: its own settings count, not today's config.yaml, but for the precision."""
    tensors, meta = read_checkpoint(path)
    model = build_model(meta["config"]).to(device)
    model.precision = precision
    model.load_state_dict(model_tensors(tensors))
    return model.eval(), meta


def model_tensors(tensors):
    """The CostModel's state among a checkpoint's tensors, whose two LSTMs had other names in earlier versions."""
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    return {
        name.replace(".from_output.", ".forward_lstms.").replace(".from_inputs.", ".backward_lstms."): tensor
        for name, tensor in state.items()
    }


def build_model(settings):
    """A CostModel from settings, a dict with MODEL_KEYS."""
    columns = (COST_COLUMNS, PARALLEL_COLUMNS, HAS_LOWERED_COUNTS_COLUMN)
    return CostModel(len(FEATURES), *columns, **{key: settings[key] for key in MODEL_KEYS})


def optimizer_tensors(optimizer):
    """An optimizer's state as {name: tensor}; restore_optimizer is the inverse."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": torch.as_tensor(v) for i, values in state.items() for name, v in values.items()}


def restore_optimizer(optimizer, tensors):
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state["state"].setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict(state)


def pick_device(config):
    """torch.device for `device` and the number of threads set. Raises UserError for a GPU that is not there."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
        threadpool_limits(config.num_threads)  # of scikit-learn and numpy
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; give --device cpu or auto")
    kind = "cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu"
    if kind == "cpu":
        return torch.device(kind)
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))  # torchrun numbers the processes of a machine
    torch.cuda.set_device(device)
    return device


# Training


def train_epoch(network, optimizer, train, epoch, config, device, processes):
    """One pass over the training split; returns the mean of each loss over its batches, and the last learning rate.

    network : the model, or several processes' common view of it, which averages their gradients
    """
    network.train()
    # Batches and dropout depend on the seed and the epoch alone, so that a resumed run sees the same ones.
    rng = np.random.default_rng([config.seed, epoch])
    hidden = train.sample_instances(config.lowered_dropout, np.random.default_rng([config.seed, epoch, 1]))
    batches = train.grouped_batches(config.batch_size, min(config.schedules_per_group, config.batch_size), rng)
    torch.manual_seed(int(rng.integers(2**62)) + processes.rank)
    weights = torch.tensor([1.0, config.centred_loss_weight, config.ranking_loss_weight], device=device)
    losses = []

    def load(rows):
        part = processes.local_rows(rows, train.instance)
        part, counted = (part, True) if len(part) else (rows[:1], False)  # without a part of its own a process computes, but counts nothing
        return counted, train.batch(part).without_lowered(hidden[part])

    progress = tqdm(prefetch(load, batches), f"epoch {epoch}", len(batches), leave=False, disable=True if processes.rank else None)
    for i, (counted, batch) in enumerate(progress):
        done = epoch - 1 + i / len(batches)
        rate = one_cycle(done * len(batches), config.epochs * len(batches), config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(device)
        # Each member learns by itself; only their predictions are averaged.
        sums, counts = zip(*(loss_sums(member, batch) for member in network(batch.features, batch.lengths)))
        sums, counts = torch.stack(sums).mean(0) * counted, counts[0] * counted  # (3,), (3,)
        terms = sums / processes.all_reduce_sum(counts).clamp(min=1)  # this process's share of the batch's mean losses
        loss = terms @ weights
        optimizer.zero_grad()
        (loss * processes.world).backward()
        clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        losses.append(torch.cat([loss[None], terms]).detach())
    return [rate, *processes.all_reduce_sum(torch.stack(losses).mean(0)).tolist()]


def start_or_resume(config, train, val, device):
    """A fresh model and optimizer, or those of the last checkpoint with `resume`: (model, optimizer, meta)."""
    torch.manual_seed(config.seed)
    settings = config.model_dump()
    model = build_model(settings)
    model.precision = config.precision
    shown = shown_features(config.drop_features)
    mean, std = train.feature_statistics()
    std[~shown] = torch.finfo(torch.float32).max  # so that they are all zero once normalised
    model.set_statistics(mean, std, fit_linear_costs(train, shown))
    model.to(device)
    if config.init_from and not config.resume:
        load_weights(model, config, train, device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    meta = {
        "format": CHECKPOINT_FORMAT, "config": settings, "features": FEATURES, "epoch": 0,
        "data": fingerprint(train, val), "best_val_mse_log": None, "interval": config.interval,
    }  # fmt: skip
    if config.resume:
        path = Path(config.run_path) / "last.safetensors"
        data = meta["data"]
        tensors, meta = read_checkpoint(path)
        for key in MODEL_KEYS:
            if settings[key] != meta["config"][key]:
                raise UserError(
                    f"{key}: {path} was trained with {meta['config'][key]}, not {settings[key]}; a resumed run keeps its network"
                )
        if meta["data"] != data:
            raise UserError(f"{path}: was trained on other data than {config.data_path} holds now; train from the start, without --resume")
        meta["config"] = settings
        model.load_state_dict(model_tensors(tensors))
        restore_optimizer(optimizer, tensors)
    return model, optimizer, meta


def shown_features(drop_features):
    """Which features the model is shown, bool (F,). Raises UserError for a pattern that matches none."""
    shown = torch.ones(len(FEATURES), dtype=torch.bool)
    for pattern in (p.strip() for p in drop_features.split(",") if p.strip()):
        matching = [i for i, name in enumerate(FEATURES) if fnmatch(name, pattern)]
        if not matching:
            raise UserError(f"drop_features: {pattern!r} matches no feature; meta.json in data_path lists them")
        shown[matching] = False
    return shown


def load_weights(model, config, train, device):
    """Go on from the checkpoint `init_from`, trained on other data; its speed is first scaled to this machine's."""
    tensors, old = read_checkpoint(config.init_from)
    settings = config.model_dump()
    for key in MODEL_KEYS:
        if settings[key] != old["config"][key]:
            raise UserError(f"{key}: {config.init_from} was trained with {old['config'][key]}, not {settings[key]}; give the same")
    model.load_state_dict(model_tensors(tensors))
    model.scale(float(np.exp(np.mean(train.log_runtime - predict(model, train, device)))))
