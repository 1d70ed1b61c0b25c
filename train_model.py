"""Train the LSTM on processed data.

    python train_model.py
    python train_model.py --epochs 10 --learning_rate 0.001 --run_path runs/short
    python train_model.py --resume true
    torchrun --nproc_per_node=2 train_model.py                 # several processes or GPUs: each takes a part of every batch
    python train_model.py --init_from models/default.safetensors --data_path data/other_machine --epochs 5

Reads data_path (generate_dataset.py). Writes run_path: best.safetensors (lowest validation error once the learning rate has come down) and
last.safetensors (to resume from), config.yaml (as resolved), metrics.csv (a row an epoch), TensorBoard events, learning_curve.png.

An earlier run in run_path is moved to run_path/previous-N. With --resume true it is continued instead. More epochs than it was planned
for are a further cycle of the learning rate; the best checkpoint is then replaced by a better one only.
"""

import time

import matplotlib
import numpy as np
import pandas as pd
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from config import UserError, load_config, make_folder, replace_file, run_script, set_aside
from features import FEATURES, INPUTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import data_utils
import train_utils
from batches import Sequences
from evaluation import intervals, metrics
from evaluation.report import REPORT_FILES

CHOOSE_FROM = 2 / 3  # of the epochs of the first cycle, after which the best on the validation split is kept
DIVERGED = 10  # times 1 + the validation error of a constant prediction: an error beyond it is no model's
COLUMNS = [
    "epoch", "learning_rate", "train_loss", "regression_loss", "centred_loss", "ranking_loss", "val_mse_log", "val_median_ape",
    "val_spearman", "seconds",
]  # fmt: skip
RUN_FILES = ["best.safetensors", "last.safetensors", "config.yaml", "metrics.csv", "learning_curve.png", "events.out.tfevents.*"]
# Settings that a resumed run may change; each change is printed.
TRAINING_KEYS = (
    "batch_size", "schedules_per_group", "learning_rate", "warmup_fraction", "weight_decay", "gradient_clip", "centred_loss_weight",
    "ranking_loss_weight", "lowered_dropout", "schedule_dropout", "seed", "precision", "interval",
)  # fmt: skip


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
    """Writes run_path: metrics.csv, TensorBoard events and checkpoints; prints a line an epoch."""

    def __init__(self, config, meta, val, device):
        self.config, self.meta, self.val, self.device = config, meta, val, device
        self.run = make_folder(config.run_path, "run_path")
        self.log_path = self.run / "metrics.csv"
        if not config.resume and (previous := set_aside(self.run, RUN_FILES + REPORT_FILES)):
            print(f"{self.run}: the earlier run in it is now in {previous}; --resume true would have continued it")
        replace_file(self.run / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False).encode())
        if not (self.run / "best.safetensors").exists():
            meta["best_val_mse_log"] = None
        done = meta["epoch"]
        self.log = pd.read_csv(self.log_path).query("epoch <= @done") if self.log_path.exists() else pd.DataFrame(columns=COLUMNS)
        self.board = SummaryWriter(str(self.run), purge_step=done + 1)

    def record_epoch(self, model, optimizer, losses, predicted, began):
        """Write the epoch's row and checkpoints, and print its line. predicted : RowPredictions of the validation rows."""
        meta, epoch = self.meta, self.meta["epoch"]
        scores = metrics.all_metrics(self.val.instance, self.val.log_runtime.astype(np.float64), predicted.log_runtime)
        row = [epoch, *losses, scores["mse_log"], scores["median_ape"], scores["spearman"], time.perf_counter() - began]
        self.log.loc[len(self.log)] = row
        replace_file(self.log_path, self.log.to_csv(index=False).encode())
        for name, value in zip(COLUMNS[1:], row[1:]):
            self.board.add_scalar(name, value, epoch)

        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        # At a high learning rate an epoch may do well on the few validation programs by chance. So in the first two thirds of the first
        # cycle the newest is kept, and from then on the best.
        early = epoch <= meta["cycles"][0] * CHOOSE_FROM
        best = meta["best_val_mse_log"] is None or early or scores["mse_log"] < meta["best_val_mse_log"]
        if best:
            masked = {inputs: train_utils.predict_rows(model, self.val, self.device, inputs) for inputs in INPUTS[1:]}
            meta |= intervals.calibrations({"all": predicted} | masked, self.val, self.config.interval)
            meta |= {"best_val_mse_log": scores["mse_log"], "interval": self.config.interval}
            meta.pop("coverage", None)  # of an earlier checkpoint
            train_utils.write_checkpoint(self.run / "best.safetensors", tensors, meta)
        train_utils.write_checkpoint(self.run / "last.safetensors", tensors | train_utils.optimizer_tensors(optimizer), meta)
        print(
            f"epoch {epoch:3d}/{self.config.epochs}  loss {row[2]:.4f}  val mse_log {scores['mse_log']:.4f}  "
            f"median_ape {scores['median_ape']:5.1f} %  spearman {scores['spearman']:.3f}  {row[-1]:.1f} s{'  best' if best else ''}",
            flush=True,
        )

    def close(self):
        self.board.close()
        plot_learning_curve(self.log, self.run / "learning_curve.png")
        print(f"best validation mse_log {self.meta['best_val_mse_log']:.4f}; checkpoint {self.run / 'best.safetensors'}")
        for inputs in np.unique(self.val.inputs):
            if warning := intervals.calibration_warning(self.meta, [inputs]):
                print(warning)

    def discard(self):
        """After a training that has diverged: what a new run has kept as best goes; what a resumed one has kept stays."""
        self.board.close()
        if not self.config.resume:
            (self.run / "best.safetensors").unlink(missing_ok=True)


def print_header(config, device, model, counts, processes):
    together = f", {processes.world} processes" if processes.world > 1 else ""
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{device}, {torch.get_num_threads()} threads{together}; {n_parameters:,} parameters, {len(FEATURES)} features a stage")
    for name, c in counts["splits"].items():
        print(f"  {name:8s}{c['programs']:6d} programs{c['schedules']:8d} schedules")
    dropped = ", ".join(f"{n} {reason}" for reason, n in counts["dropped"].items())
    print(f"  dropped: {dropped or 'none'}; {counts['merged']} merged")


def plan_further_epochs(config, meta):
    """Take the settings of a resumed run into its `meta`; returns lines that say what changes."""
    old, lines = meta["config"], []
    settings = config.model_dump()
    if changes := [f"{key} {settings[key]} (was {old[key]})" for key in TRAINING_KEYS if settings[key] != old[key]]:
        lines.append(f"resumed with other settings: {', '.join(changes)}")
    planned = meta["cycles"][-1]
    if config.epochs > planned:
        meta["cycles"].append(config.epochs)
        lines.append(
            f"planned for {planned} epochs: epochs {planned + 1} to {config.epochs} are a further cycle of the learning rate, with its own "
            "warm-up; best.safetensors is replaced by a better epoch only"
        )
    elif config.epochs < planned:
        lines.append(f"planned for {planned} epochs: stops after {config.epochs}, before the learning rate has come down")
    meta["config"] = settings
    return lines


def read_splits(config, meta):
    """The training and validation Sequences of data_path. Raises UserError where one is empty."""
    train, val = (Sequences(config.data_path, meta, split) for split in ("train", "val"))
    for name, split in (("train", train), ("val", val)):
        if len(split) == 0:
            raise UserError(
                f"{config.data_path}: its {name} split is empty; measure more programs, or generate with another val_fraction or "
                "test_fraction"
            )
    return train, val


def train_on(config, meta, model, optimizer, train, val, device, processes, recorder):
    """Train to the last epoch, recording each. Raises UserError where the loss or the validation error diverges."""
    network = DistributedDataParallel(model, broadcast_buffers=False) if processes.world > 1 else model
    constant_error = np.mean((val.log_runtime - train.log_runtime.mean(dtype=np.float64)) ** 2)
    for epoch in range(meta["epoch"] + 1, config.epochs + 1):
        began = time.perf_counter()
        losses = train_utils.train_epoch(network, optimizer, train, epoch, config, device, processes, meta["cycles"])
        error = 0.0
        if recorder:
            predicted = train_utils.predict_rows(model, val, device)
            error = float(np.mean((predicted.log_runtime - val.log_runtime) ** 2))
        error = processes.all_reduce_sum(torch.tensor(error, device=device)).item()  # one process validates, all end together
        if not (np.isfinite(losses[1]) and error <= DIVERGED * (1 + constant_error)):
            if recorder:
                recorder.discard()
            processes.close()
            raise UserError(
                f"epoch {epoch}: the training diverges (loss {losses[1]:.3g}, validation mse_log {error:.3g}); give a smaller "
                f"--learning_rate than {config.learning_rate}"
            )
        meta["epoch"] = epoch
        if recorder:
            recorder.record_epoch(model, optimizer, losses, predicted, began)
    if recorder and meta["best_val_mse_log"] >= constant_error:
        print(f"warning: the model predicts no better than the mean of the training runtimes (validation mse_log {constant_error:.4f})")


def main():
    config = load_config()
    device = train_utils.pick_device(config)
    if device.type == "cpu" and not config.num_threads:
        torch.set_num_threads(1)  # batches are small: an epoch took twice as long with two (docs/performance.md)
    meta_data = data_utils.read_meta(config.data_path)
    config = train_utils.agree_with_data(config, meta_data)
    train, val = read_splits(config, meta_data)
    model, optimizer, meta = train_utils.start_or_resume(config, train, val, device)
    processes = train_utils.Processes.init(device)
    first = processes.rank == 0  # one process writes and prints
    if config.resume and meta["epoch"] >= config.epochs:
        if first:
            print(
                f"{config.run_path}: has {meta['epoch']} epochs already: nothing to do for --epochs {config.epochs}; give more to continue"
            )
        processes.close()
        return
    lines = []
    if config.resume:
        config = train_utils.agree_with_checkpoint(config, meta, f"{config.run_path}/last.safetensors")
        lines = plan_further_epochs(config, meta)
    recorder = Recorder(config, meta, val, device) if first else None
    if first:
        print_header(config, device, model, meta_data["counts"], processes)
        print(*lines, sep="\n", end="\n" if lines else "")
    train_on(config, meta, model, optimizer, train, val, device, processes, recorder)
    if recorder:
        recorder.close()
    processes.close()


if __name__ == "__main__":
    run_script(main)
