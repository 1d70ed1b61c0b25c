"""Train the LSTM on processed data.

    python train_model.py
    python train_model.py --epochs 10 --learning_rate 0.001 --run_path runs/short
    python train_model.py --resume true
    torchrun --nproc_per_node=2 train_model.py                 # several processes or GPUs: the same batches, shared
    python train_model.py --init_from models/default.safetensors --data_path data/other_machine --epochs 5

Reads data_path (generate_dataset.py). Writes run_path: best.safetensors (lowest validation error once the learning rate has come down) and
last.safetensors (to resume from), config.yaml (as resolved), metrics.csv (a row an epoch), TensorBoard events, learning_curve.png.
"""

import time
from fnmatch import fnmatch
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import correction
import data_utils
import metrics
import train_utils
from config import UserError, load_config, make_folder, run_script
from features import FEATURES

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CHOOSE_FROM = 2 / 3  # of the epochs, after which the best on the validation split is kept
COLUMNS = ["epoch", "learning_rate", "train_loss", "regression_loss", "centred_loss", "ranking_loss", "val_mse_log", "val_median_ape", "val_spearman", "seconds"]  # fmt: skip


def train_epoch(network, optimizer, train, epoch, config, device, processes):
    """One pass over the training split; returns the mean of each loss over its batches, and the last learning rate.

    network : the model, or several processes' common view of it, which averages their gradients
    """
    network.train()
    # Batches and dropout depend on the seed and the epoch alone, so that a resumed run sees the same ones.
    rng = np.random.default_rng([config.seed, epoch])
    hidden = train.some_programs(config.lowered_dropout, np.random.default_rng([config.seed, epoch, 1]))
    batches = train.grouped_batches(config.batch_size, min(config.schedules_per_group, config.batch_size), rng)
    torch.manual_seed(int(rng.integers(2**62)) + processes.rank)
    weights = torch.tensor([1.0, config.centred_loss_weight, config.ranking_loss_weight], device=device)
    losses = []

    def load(rows):
        part = processes.part_of(rows, train.instance)
        part, counted = (part, True) if len(part) else (rows[:1], False)  # without a part of its own a process computes, but counts nothing
        return counted, train.batch(part).without_lowered(hidden[part])

    progress = tqdm(train_utils.ahead(load, batches), f"epoch {epoch}", len(batches), leave=False, disable=True if processes.rank else None)
    for i, (counted, batch) in enumerate(progress):
        done = epoch - 1 + i / len(batches)
        rate = train_utils.one_cycle(done * len(batches), config.epochs * len(batches), config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batch.to(device)
        # Each member learns by itself; only their predictions are averaged.
        sums, counts = zip(*(train_utils.loss_sums(member, batch) for member in network(batch.features, batch.lengths)))
        sums, counts = torch.stack(sums).mean(0) * counted, counts[0] * counted  # (3,), (3,)
        terms = sums / processes.add_up(counts).clamp(min=1)  # this process's share of the batch's mean losses
        loss = terms @ weights
        optimizer.zero_grad()
        (loss * processes.world).backward()
        clip_grad_norm_(network.parameters(), config.gradient_clip)
        optimizer.step()
        losses.append(torch.cat([loss[None], terms]).detach())
    return [rate, *processes.add_up(torch.stack(losses).mean(0)).tolist()]


def start(config, train, val, device):
    """A fresh model and optimizer, or those of the last checkpoint with `resume`: (model, optimizer, meta)."""
    torch.manual_seed(config.seed)
    settings = config.model_dump()
    model = train_utils.build_model(settings)
    model.precision = config.precision
    shown = shown_features(config.drop_features)
    mean, std = train.feature_statistics()
    std[~shown] = torch.finfo(torch.float32).max  # so that they are all zero once normalised
    model.set_statistics(mean, std, train_utils.fit_linear_costs(train, shown))
    model.to(device)
    if config.init_from and not config.resume:
        load_weights(model, config, train, device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    meta = {
        "format": train_utils.CHECKPOINT_FORMAT, "config": settings, "features": FEATURES, "epoch": 0,
        "data": train_utils.fingerprint(train, val), "best_val_mse_log": None, "interval": config.interval,
    }  # fmt: skip
    if config.resume:
        path = Path(config.run_path) / "last.safetensors"
        data = meta["data"]
        tensors, meta = train_utils.read_checkpoint(path)
        for key in train_utils.MODEL_KEYS:
            if settings[key] != meta["config"][key]:
                raise UserError(f"{key}: {path} was trained with {meta['config'][key]}, not {settings[key]}; a resumed run keeps its network")
        if meta["data"] != data:
            raise UserError(f"{path}: was trained on other data than {config.data_path} holds now; train from the start, without --resume")
        meta["config"] = settings
        model.load_state_dict(train_utils.model_tensors(tensors))
        train_utils.restore_optimizer(optimizer, tensors)
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
    tensors, old = train_utils.read_checkpoint(config.init_from)
    settings = config.model_dump()
    for key in train_utils.MODEL_KEYS:
        if settings[key] != old["config"][key]:
            raise UserError(f"{key}: {config.init_from} was trained with {old['config'][key]}, not {settings[key]}; give the same")
    model.load_state_dict(train_utils.model_tensors(tensors))
    model.scale(float(np.exp(np.mean(train.log_runtime - train_utils.predict(model, train, device)))))


def write_log(path, log):
    temporary = path.with_name(path.name + ".tmp")
    log.to_csv(temporary, index=False)
    temporary.replace(path)


def plot_learning_curve(log, path):
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for name in ("regression_loss", "centred_loss", "ranking_loss"):
        axes[0].plot(log.epoch, log[name], label=name.removesuffix("_loss"))
    axes[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes[0].legend()
    axes[1].plot(log.epoch, log.val_mse_log, "C3")
    axes[1].set(xlabel="epoch", ylabel="validation mse_log", yscale="log")
    twin = axes[1].twinx()
    twin.plot(log.epoch, log.val_spearman, "C4")
    twin.set_ylabel("validation spearman", color="C4")
    figure.savefig(path, dpi=110)
    plt.close(figure)


class Recorder:
    """What a run leaves behind in run_path: metrics.csv, TensorBoard events, checkpoints, and a line an epoch for whoever watches."""

    def __init__(self, config, val, device, epochs_done):
        self.config, self.val, self.device = config, val, device
        self.run = make_folder(config.run_path, "run_path")
        self.log_path = self.run / "metrics.csv"
        if not config.resume:
            for old in [*self.run.glob("events.out.tfevents.*"), *(self.run / name for name in ("best.safetensors", "last.safetensors", "metrics.csv"))]:
                old.unlink(missing_ok=True)  # so that nothing of an earlier run is taken for this one's
        (self.run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
        self.log = pd.read_csv(self.log_path).query("epoch <= @epochs_done") if self.log_path.exists() else pd.DataFrame(columns=COLUMNS)
        self.board = SummaryWriter(str(self.run), purge_step=epochs_done + 1)

    def note_epoch(self, model, optimizer, meta, losses, began):
        """Validate, write the epoch's row and checkpoints, and print its line. `meta` takes in what was found."""
        epoch = meta["epoch"]
        log_predicted = train_utils.predict(model, self.val, self.device)
        scores = metrics.all_metrics(self.val.instance, self.val.log_runtime.astype(np.float64), log_predicted)
        row = [epoch, *losses, scores["mse_log"], scores["median_ape"], scores["spearman"], time.perf_counter() - began]
        self.log.loc[len(self.log)] = row
        write_log(self.log_path, self.log)
        for name, value in zip(COLUMNS[1:], row[1:]):
            self.board.add_scalar(name, value, epoch)

        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        # While the rate is high an epoch may do well on the few validation programs by luck: until it has come down, newer is better.
        best = meta["best_val_mse_log"] is None or epoch <= self.config.epochs * CHOOSE_FROM or scores["mse_log"] < meta["best_val_mse_log"]
        if best:
            meta["best_val_mse_log"] = scores["mse_log"]
            uncounted = train_utils.predict(model, self.val, self.device, lowered=False)
            for name, predicted in (("errors", log_predicted), ("errors_uncounted", uncounted)):
                residuals = self.val.log_runtime - predicted
                half_width = train_utils.conformal_half_width(residuals, self.val.program, self.config.interval)
                meta[name] = {"log_half_width": half_width, "offset_variance": correction.variance_components(residuals, self.val.instance)}
            train_utils.write_checkpoint(self.run / "best.safetensors", tensors, meta)
        train_utils.write_checkpoint(self.run / "last.safetensors", tensors | train_utils.optimizer_tensors(optimizer), meta)
        print(
            f"epoch {epoch:3d}/{self.config.epochs}  loss {row[2]:.4f}  val mse_log {scores['mse_log']:.4f}  "
            f"median_ape {scores['median_ape']:5.1f} %  spearman {scores['spearman']:.3f}  {row[-1]:.1f} s{'  best' if best else ''}",
            flush=True,
        )

    def close(self, meta):
        self.board.close()
        plot_learning_curve(self.log, self.run / "learning_curve.png")
        print(f"best validation mse_log {meta['best_val_mse_log']:.4f}; checkpoint {self.run / 'best.safetensors'}")


def print_header(config, device, model, counts, processes):
    together = f", {processes.world} processes" if processes.world > 1 else ""
    print(f"{device}, {torch.get_num_threads()} threads{together}; {sum(p.numel() for p in model.parameters()):,} parameters, {len(FEATURES)} features a stage")
    for name, c in counts["splits"].items():
        print(f"  {name:8s}{c['programs']:6d} programs{c['schedules']:8d} schedules")
    dropped = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items())
    print(f"  dropped: {dropped or 'none'}; {counts['merged']} merged")


def main():
    config = load_config()
    device = train_utils.pick_device(config)
    meta_data = data_utils.read_meta(config.data_path)
    train, val = (train_utils.Sequences(config.data_path, meta_data, split) for split in ("train", "val"))
    for name, split in (("train", train), ("val", val)):
        if len(split) == 0:
            raise UserError(f"{config.data_path}: its {name} split is empty; measure more programs, or generate with another val_fraction or test_fraction")
    model, optimizer, meta = start(config, train, val, device)
    processes = train_utils.Processes.join(device)
    network = DistributedDataParallel(model, broadcast_buffers=False) if processes.world > 1 else model
    recorder = Recorder(config, val, device, meta["epoch"]) if processes.rank == 0 else None  # one process writes
    if recorder:
        print_header(config, device, model, meta_data["counts"], processes)
    for epoch in range(meta["epoch"] + 1, config.epochs + 1):
        began = time.perf_counter()
        losses = train_epoch(network, optimizer, train, epoch, config, device, processes)
        if not np.isfinite(losses[1]):
            processes.leave()
            raise UserError(f"epoch {epoch}: the loss is no longer finite; give a smaller --learning_rate than {config.learning_rate}")
        meta["epoch"] = epoch
        if recorder:
            recorder.note_epoch(model, optimizer, meta, losses, began)
    if recorder:
        recorder.close(meta)
    processes.leave()


if __name__ == "__main__":
    run_script(main)
