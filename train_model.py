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

import matplotlib
import numpy as np
import pandas as pd
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from config import UserError, load_config, make_folder, run_script
from features import FEATURES

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import data_utils
import train_utils
from evaluation import intervals, metrics

CHOOSE_FROM = 2 / 3  # of the epochs, after which the best on the validation split is kept
COLUMNS = ["epoch", "learning_rate", "train_loss", "regression_loss", "centred_loss", "ranking_loss", "val_mse_log", "val_median_ape", "val_spearman", "seconds"]  # fmt: skip


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
            for old in [
                *self.run.glob("events.out.tfevents.*"),
                *(self.run / name for name in ("best.safetensors", "last.safetensors", "metrics.csv")),
            ]:
                old.unlink(missing_ok=True)  # so that nothing of an earlier run is taken for this one's
        (self.run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
        self.log = pd.read_csv(self.log_path).query("epoch <= @epochs_done") if self.log_path.exists() else pd.DataFrame(columns=COLUMNS)
        self.board = SummaryWriter(str(self.run), purge_step=epochs_done + 1)

    def record_epoch(self, model, optimizer, meta, losses, began):
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
                half_width = intervals.conformal_half_width(residuals, self.val.program, self.config.interval)
                meta[name] = {"log_half_width": half_width, "offset_variance": intervals.variance_components(residuals, self.val.instance)}
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
    print(
        f"{device}, {torch.get_num_threads()} threads{together}; {sum(p.numel() for p in model.parameters()):,} parameters, {len(FEATURES)} features a stage"
    )
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
            raise UserError(
                f"{config.data_path}: its {name} split is empty; measure more programs, or generate with another val_fraction or test_fraction"
            )
    model, optimizer, meta = train_utils.start_or_resume(config, train, val, device)
    processes = train_utils.Processes.init(device)
    network = DistributedDataParallel(model, broadcast_buffers=False) if processes.world > 1 else model
    recorder = Recorder(config, val, device, meta["epoch"]) if processes.rank == 0 else None  # one process writes
    if recorder:
        print_header(config, device, model, meta_data["counts"], processes)
    for epoch in range(meta["epoch"] + 1, config.epochs + 1):
        began = time.perf_counter()
        losses = train_utils.train_epoch(network, optimizer, train, epoch, config, device, processes)
        if not np.isfinite(losses[1]):
            processes.close()
            raise UserError(f"epoch {epoch}: the loss is no longer finite; give a smaller --learning_rate than {config.learning_rate}")
        meta["epoch"] = epoch
        if recorder:
            recorder.record_epoch(model, optimizer, meta, losses, began)
    if recorder:
        recorder.close(meta)
    processes.close()


if __name__ == "__main__":
    run_script(main)
