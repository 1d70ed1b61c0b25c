"""What training and evaluation share: processes, losses, the learning rate schedule, prediction, checkpoints, and the training loop.

Axes: N rows of a split, B batch, T stages (padded), F features. batches.py makes the batches.
"""

import json
import math
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from threadpoolctl import threadpool_limits
from torch import distributed
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from batches import BATCH_STAGES, fingerprint, prefetch, program_ids, ranges_in_order
from config import UserError, replace_file, usable_cores
from features import COST_COLUMNS, FEATURES, FLAG_COLUMNS, PARALLEL_COLUMNS
from linear_costs import fit_event_scales, fit_linear_costs
from modeling import CostModel, event_costs, event_shares, sum_events

SHIPPED_MODEL = Path(__file__).resolve().parent / "models" / "default.safetensors"
CHECKPOINT_FORMAT = "cost_model_LSTM 9"
MODEL_KEYS = ("members", "embed_size", "hidden_size", "lstm_layers", "dropout")
# What a flag may not contradict where a checkpoint is read.
FIXED_KEYS = (*MODEL_KEYS, "drop_features", "init_from")
# How files that people take for checkpoints begin, and what to say of them.
FOREIGN_FILES = [
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    (b"<!doctype html", "is a web page; download the raw file instead"),
    (b"<html", "is a web page; download the raw file instead"),
    (b"PK\x03\x04", "is a PyTorch file (.pt) or another zip archive; checkpoints of this project are .safetensors files of train_model.py"),
    (b"\x80\x02", "is a pickle (an old PyTorch file); checkpoints of this project are .safetensors files of train_model.py"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it first"),
]
REGRESSION_DELTA, CENTRED_DELTA = 1.0, 0.5  # where the Huber losses turn linear, in log-runtime
RANKING_TEMPERATURE = 0.2  # difference in predicted log-runtime that the ranking loss takes for a clear order
RANKING_MARGIN = math.log(1.05)  # pairs closer than this are not ranked
SCORING_BATCH = 128  # schedules scored at a time; the activations of more do not fit a core's caches
# The settings of generate_dataset.py that say which schedules are in which split.
DATA_KEYS = ("raw_path", "split_by", "val_fraction", "test_fraction", "folds", "fold", "holdout", "max_runtime_ms")


# Several processes, as torchrun starts them: each takes a part of every batch


@dataclass(frozen=True)
class Processes:
    """This process's rank among the `world` processes that train together; a single process exchanges nothing."""

    rank: int = 0
    world: int = 1

    @classmethod
    def init(cls, device):
        """Join the processes that torchrun started, if any; nccl connects GPUs, gloo anything else."""
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
        """Leave the process group, all processes at the same time."""
        if distributed.is_initialized():
            # gloo's thread frees its last tensors under Python's global lock. Destroying the group holds that lock while it waits for
            # the thread: a deadlock of torch 2.13. The barrier waits without the lock.
            distributed.barrier()
            distributed.destroy_process_group()


# Losses and learning rate


def loss_sums(log_predicted, batch):
    """Sums of the (regression, centred, ranking) losses of log-runtimes (B,) predicted for a batch, (3,), and their numbers of terms, (3,).

    regression: Huber on log-runtime. centred: Huber on residuals less their program's mean: it depends on the order and the ratios
    within a program, not on the program's offset. ranking: softplus over pairs of one program, as in RankNet (Burges et al. 2005).
    The sums over parts of a batch that share no program add up to those of the whole.
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
    """Learning rate at `step` of `n_steps`: a cosine rise to the peak in the warm-up, then a cosine decay to zero (Smith & Topin 2018)."""
    warmup = max(1.0, config.warmup_fraction * n_steps)
    if step < warmup:
        return config.learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * step / warmup)) / 2)
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1.0, n_steps - warmup))) / 2


# Prediction


class RowPredictions(NamedTuple):
    """Of N rows, float64. log_runtime : (N,), natural logarithm of ms; spread : (N,), standard deviation of the members' log-runtimes;
    event_shares : (N, K + 1), of each kind of event in the runtime; outside : (N,), as of Prediction."""

    log_runtime: np.ndarray
    spread: np.ndarray
    event_shares: np.ndarray
    outside: np.ndarray

    def subset(self, rows):
        return RowPredictions(*(column[rows] for column in self))


class Prediction(NamedTuple):
    """Of one schedule. log_runtime, spread : as of RowPredictions; shares : (T,), of each stage in the runtime; event_shares : (K + 1,),
    of each kind of event; outside : share of the features that lie outside the range seen in training."""

    log_runtime: float
    spread: float
    shares: np.ndarray
    event_shares: np.ndarray
    outside: float


def predict(model, sequences, device, inputs="all"):
    """Predicted log-runtime of every row of `sequences`, (N,) float64; `inputs` as of predict_rows."""
    return predict_rows(model, sequences, device, inputs).log_runtime


def score_batches(sequences):
    """All rows of `sequences` in turn, in batches to score."""
    return (np.arange(r.start, r.stop) for r in ranges_in_order(sequences.lengths.tolist(), SCORING_BATCH, BATCH_STAGES))


@torch.no_grad()
def predict_rows(model, sequences, device, inputs="all"):
    """RowPredictions of every row of `sequences`. inputs : what is shown of rows that have all (features.INPUTS)."""
    model.eval()
    parts = []
    for rows in score_batches(sequences):
        has_all = sequences.inputs[rows] == "all"
        masks = (has_all & (inputs == masked) for masked in ("without_counts", "counts_alone"))
        batch = sequences.batch(rows).masked(*masks)
        features, lengths = batch.features.to(device), batch.lengths.to(device)
        costs = model.member_costs(features, lengths)
        members = sum_events(costs).logsumexp(2)  # (M, B)
        of_rows = members.mean(0), members.std(0, correction=0), event_shares(costs), model.outside(features, lengths)
        parts.append([part.cpu().double() for part in of_rows])
    if not parts:
        return RowPredictions(np.zeros(0), np.zeros(0), np.zeros((0, len(COST_COLUMNS) + 1)), np.zeros(0))
    return RowPredictions(*(torch.cat(part).numpy() for part in zip(*parts)))


@torch.no_grad()
def predict_sequences(model, sequences, device):
    """The Prediction of each sequence of features, (T, F) as featurize gives them."""
    results = []
    for rows in ranges_in_order([len(s) for s in sequences], SCORING_BATCH, BATCH_STAGES):
        part = [torch.from_numpy(sequence) for sequence in sequences[rows]]
        lengths = torch.tensor([len(s) for s in part], device=device)
        features = pad_sequence(part, batch_first=True).to(device)  # (B, T, F)
        costs = model.member_costs(features, lengths)
        members = sum_events(costs)  # (M, B, T)
        predicted = members.logsumexp(2)  # (M, B)
        share = members.softmax(2).mean(0).cpu()  # (B, T), of each schedule's time
        outside = model.outside(features, lengths).tolist()
        each = predicted.mean(0).tolist(), predicted.std(0, correction=0).tolist(), share, event_shares(costs).cpu(), outside
        results += [Prediction(p, d, s[:n].numpy(), e.numpy(), o) for p, d, s, e, o, n in zip(*each, lengths.tolist())]
    return results


# Checkpoints: a model's tensors and plain data about it, in one safetensors file
#
# The plain data, `meta`, holds: format, config (the settings it was trained with), features (their names), epoch, cycles (the last epoch
# of each cycle of the learning rate), data (fingerprint of the training and validation rows), programs {train, val, init_from: [ids]},
# best_val_mse_log, interval (its level), errors {one of features.INPUTS: {width_per_spread, log_half_width, covariance, programs}} of
# predictions from these inputs, and coverage {part: {level, coverage, coverage_by_program}} once evaluated.


def write_checkpoint(path, tensors, meta):
    """Write `tensors` {name: tensor} and `meta` (anything JSON can hold) to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace_file(Path(path), save(tensors, {"meta": json.dumps(meta)}))


def read_checkpoint(path):
    """(tensors, meta) of a checkpoint. Raises UserError where `path` is none, and says what it is instead."""
    try:
        with safe_open(path, "pt") as f:
            meta = json.loads((f.metadata() or {}).get("meta", "{}"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run train_model.py first, with the same run_path") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: {_what_it_is(path) or f'not a checkpoint of this project ({error})'}") from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if isinstance(found, str) and found != CHECKPOINT_FORMAT and found.startswith(CHECKPOINT_FORMAT.split()[0]):
        raise UserError(
            f"{path}: was written by another version of this project ({found}; this one reads {CHECKPOINT_FORMAT}); train again"
        )
    if found != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: not a checkpoint of this project; give one that train_model.py wrote")
    if meta["features"] != FEATURES:
        raise UserError(f"{path}: was trained on other features than this version's; train again")
    return tensors, meta


def _what_it_is(path):
    """What a file that is no checkpoint seems to be, and what to do; "" where that is unknown."""
    if Path(path).is_dir():
        return "is a folder; give the file, say best.safetensors in it"
    try:
        with open(path, "rb") as f:
            start = f.read(256)
    except OSError:
        return ""
    if not start:
        return "is empty; copy or download it again"
    for beginning, text in FOREIGN_FILES:
        if start.lstrip().lower().startswith(beginning.lower()):
            return text
    if Path(path).suffix == ".onnx" or (start[0] == 8 and start[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a")):  # ModelProto's fields
        return "is an ONNX model; give the checkpoint that it was exported from"
    return ""


def load_model(path, device, precision="float32"):
    """(CostModel, meta) from a checkpoint alone: its own settings count, not today's config.yaml, but for the precision."""
    tensors, meta = read_checkpoint(path)
    try:
        model = build_model(meta["config"]).to(device)
        model.load_state_dict(model_tensors(tensors))
    except (KeyError, TypeError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: is damaged: its tensors do not fit its settings ({type(error).__name__}: {why})") from None
    model.precision = precision
    return model.eval(), meta


def agree_with_checkpoint(config, meta, path, *more):
    """`config` with the FIXED_KEYS, and `more`, that the checkpoint at `path` was trained with. Raises UserError for other flags."""
    recorded = {key: meta["config"][key] for key in (*FIXED_KEYS, *more)}
    return config.agreeing_with(recorded, f"{path} was trained with", "train another model with train_model.py")


def build_model(settings):
    """A CostModel from settings, a dict with MODEL_KEYS."""
    columns = (COST_COLUMNS, PARALLEL_COLUMNS, FLAG_COLUMNS[0])
    return CostModel(len(FEATURES), *columns, **{key: settings[key] for key in MODEL_KEYS})


def model_tensors(tensors):
    """The CostModel's state among a checkpoint's tensors, whose two LSTMs had other names in earlier versions."""
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    return {
        name.replace(".from_output.", ".forward_lstms.").replace(".from_inputs.", ".backward_lstms."): tensor
        for name, tensor in state.items()
    }


def optimizer_tensors(optimizer):
    """An optimizer's state as {name: tensor}; restore_optimizer is the inverse."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": torch.as_tensor(v) for i, values in state.items() for name, v in values.items()}


def restore_optimizer(optimizer, tensors):
    """Load what optimizer_tensors returned."""
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            state["state"].setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict(state)


# Settings


def set_threads(config):
    """Limit the threads of PyTorch and every other library to num_threads, or, where that is 0, to the cores that are usable."""
    n = config.num_threads or min(torch.get_num_threads(), usable_cores())
    torch.set_num_threads(n)
    threadpool_limits(n)  # of scikit-learn and numpy


def pick_device(config):
    """torch.device for `device`, and the number of threads set. Raises UserError where there is no GPU, or fewer than processes."""
    set_threads(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; give --device cpu or auto")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()  # torchrun says how many processes it started
    if here > gpus:
        raise UserError(f"--nproc_per_node {here}: there are {gpus} GPUs here; start at most {gpus} processes, or give --device cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def agree_with_data(config, meta):
    """`config` with the settings that the data with this meta.json was split by. Raises UserError for a flag that contradicts them."""
    recorded = {key: value for key, value in meta.get("settings", meta["split"]).items() if key in DATA_KEYS}
    return config.agreeing_with(recorded, f"{config.data_path} holds other data, made with", "run generate_dataset.py with this flag")


# Training


def train_epoch(network, optimizer, train, epoch, config, device, processes, cycles=None):
    """One pass over the training split; returns the last learning rate, and the means over the batches of the loss and of its three terms.

    network : the model, or its DistributedDataParallel, which averages the gradients of several processes
    cycles : the last epoch of each cycle of the learning rate; None for a single one of config.epochs
    """
    network.train()
    # Batches and dropout depend on the seed and the epoch alone, so that a resumed run sees the same ones.
    rng = np.random.default_rng([config.seed, epoch])
    masks = train.sample_masks(config.lowered_dropout, config.schedule_dropout, np.random.default_rng([config.seed, epoch, 1]))
    batches = train.grouped_batches(config.batch_size, min(config.schedules_per_group, config.batch_size), rng)
    torch.manual_seed(int(rng.integers(2**62)) + processes.rank)
    weights = torch.tensor([1.0, config.centred_loss_weight, config.ranking_loss_weight], device=device)
    losses = []

    def load(rows):
        part = processes.local_rows(rows, train.instance)
        weight = float(len(part) > 0)  # a process without rows of its own computes one that weighs nothing
        part = part if len(part) else rows[:1]
        return weight, train.batch(part).masked(*(rows[part] for rows in masks))

    progress = tqdm(prefetch(load, batches), f"epoch {epoch}", len(batches), leave=False, disable=True if processes.rank else None)
    begin, end = cycle_of(epoch, cycles or [config.epochs])
    for i, (weight, batch) in enumerate(progress):
        done = epoch - 1 - begin + i / len(batches)
        rate = one_cycle(done * len(batches), (end - begin) * len(batches), config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(device)
        # Each member learns by itself; only their predictions are averaged.
        sums, counts = zip(*(loss_sums(member, batch) for member in network(batch.features, batch.lengths)))
        sums, counts = torch.stack(sums).mean(0) * weight, counts[0] * weight  # (3,), (3,)
        terms = sums / processes.all_reduce_sum(counts).clamp(min=1)  # this process's share of the batch's mean losses
        loss = terms @ weights
        optimizer.zero_grad()
        (loss * processes.world).backward()
        clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        losses.append(torch.cat([loss[None], terms]).detach())
    return [rate, *processes.all_reduce_sum(torch.stack(losses).mean(0)).tolist()]


def cycle_of(epoch, cycles):
    """(epochs before, last epoch) of the cycle of the learning rate that `epoch` belongs to; `cycles` are their last epochs."""
    return next((begin, end) for begin, end in zip([0, *cycles], cycles) if epoch <= end)


def start_or_resume(config, train, val, device):
    """(model, optimizer, meta of the checkpoint to be) of a new run, or with `resume` those of the run in run_path."""
    return (resume_run if config.resume else new_run)(config, train, val, device)


def new_run(config, train, val, device):
    """A model with random weights, or those of `init_from`, and the training split's statistics: (model, optimizer, meta)."""
    torch.manual_seed(config.seed)
    settings = config.model_dump()
    model = build_model(settings)
    model.precision = config.precision
    shown = shown_features(config.drop_features)
    model.set_statistics(*train.feature_statistics(), fit_linear_costs(train, shown))
    model.mask_features(shown)
    model.to(device)
    programs = {"train": program_ids(train), "val": program_ids(val)}
    if config.init_from:
        before = load_weights(model, config, train, shown, device).get("programs", {"train": None})
        programs["init_from"] = None if None in before.values() else sorted({program for ids in before.values() for program in ids})
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    meta = {
        "format": CHECKPOINT_FORMAT, "config": settings, "features": FEATURES, "epoch": 0, "cycles": [config.epochs],
        "data": fingerprint(train, val), "programs": programs,
        "best_val_mse_log": None, "interval": config.interval,
    }  # fmt: skip
    return model, optimizer, meta


def resume_run(config, train, val, device):
    """Model, optimizer and meta of run_path's last checkpoint. Raises UserError where network, input features or data are not its own."""
    path = Path(config.run_path) / "last.safetensors"
    tensors, meta = read_checkpoint(path)
    settings = config.model_dump()
    for key in (*MODEL_KEYS, "drop_features"):
        if settings[key] != meta["config"][key]:
            then = repr(meta["config"][key])
            raise UserError(f"{key}: {path} was trained with {then}, not {settings[key]!r}; a resumed run keeps its network and features")
    if meta["data"] != fingerprint(train, val):
        raise UserError(f"{path}: was trained on other data than {config.data_path} holds now; train from the start, without --resume")
    meta.setdefault("cycles", [meta["config"]["epochs"]])  # earlier versions had one cycle
    model = build_model(settings)
    model.precision = config.precision
    model.load_state_dict(model_tensors(tensors))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    restore_optimizer(optimizer, tensors)
    return model, optimizer, meta


def shown_features(drop_features):
    """Which features the model sees, bool (F,). Raises UserError for a pattern that matches none."""
    shown = torch.ones(len(FEATURES), dtype=torch.bool)
    for pattern in (p.strip() for p in drop_features.split(",") if p.strip()):
        matching = [i for i, name in enumerate(FEATURES) if fnmatch(name, pattern)]
        if not matching:
            raise UserError(f"drop_features: {pattern!r} matches no feature; meta.json in data_path lists them")
        shown[matching] = False
    return shown


def load_weights(model, config, train, shown, device):
    """Start from the checkpoint `init_from`, scaled to this machine's runtimes as a whole, then each kind of event; returns its meta."""
    tensors, old = read_checkpoint(config.init_from)
    settings = config.model_dump()
    for key in MODEL_KEYS:
        if settings[key] != old["config"][key]:
            raise UserError(f"{key}: {config.init_from} was trained with {old['config'][key]}, not {settings[key]}; give the same")
    if (shown & ~shown_features(old["config"]["drop_features"])).any():
        raise UserError(f"drop_features: {config.init_from} was trained with {old['config']['drop_features']!r}; drop these features, too")
    model.load_state_dict(model_tensors(tensors))
    model.mask_features(shown)
    model.scale(float(np.exp(np.mean(train.log_runtime - predict(model, train, device)))))
    model.scale_events(fit_event_scales(predict_event_costs(model, train, device), train.log_runtime, train.program).to(device))
    return old


@torch.no_grad()
def predict_event_costs(model, sequences, device):
    """Predicted log milliseconds of each kind of event in every row of `sequences`, (M, N, K + 1): event_costs."""
    model.eval()
    batches = (sequences.batch(rows) for rows in score_batches(sequences))
    return torch.cat([event_costs(model.member_costs(b.features.to(device), b.lengths.to(device))).cpu() for b in batches], 1)
