"""How fast the model trains, beside plainer ways to write the same and beside a recursive tree-LSTM.

    python benchmarks/training.py                  # on data_path, as generate_dataset.py leaves it
    python benchmarks/training.py --device cuda

- ours: train_utils.train_epoch, as it is.
- naive: the same network and losses on batches that a Python loop takes from a list, every sequence padded to the longest of the
  data set.
- tree-LSTM: a stand-in, written here, for the kind of model that Tiramisu's cost model is: an LSTM cell applied recursively to a
  tree (here the stages as a binary heap, since nobody knows what its loops would be), one program's schedules at a time, which share
  the tree. One member of the same widths, and the regression loss alone: less work than ours.

Writes benchmarks/results/training.md and .json.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn.utils import clip_grad_norm_

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

import data_utils
import train_utils
from batches import Sequences
from config import Config, load_config, run_script


class TrainingConfig(Config):
    rounds: int = Field(5, ge=1, description="epochs that each rival is timed for")


def naive_epoch(model, optimizer, batches, config):
    model.train()
    for batch in batches:
        sums, counts = zip(*(train_utils.loss_sums(member, batch) for member in model(batch.features, batch.lengths)))
        loss = (torch.stack(sums).mean(0) / counts[0].clamp(min=1)).sum()
        step(model, optimizer, loss, config)


def step(model, optimizer, loss, config):
    optimizer.zero_grad()
    loss.backward()
    clip_grad_norm_(model.parameters(), config.gradient_clip)
    optimizer.step()


class TreeLSTM(nn.Module):
    """Log-runtime of one program's schedules (B, T, F), recursively over a tree of its stages."""

    def __init__(self, n_inputs, embed_size, hidden_size):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(n_inputs, 2 * embed_size), nn.GELU(), nn.Linear(2 * embed_size, embed_size), nn.GELU())
        self.cell = nn.LSTMCell(embed_size + hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, inputs):
        embedded = self.embed(inputs)
        zeros = torch.zeros(len(inputs), self.cell.hidden_size, device=inputs.device)

        def visit(node):
            if node >= embedded.shape[1]:
                return zeros, zeros
            (h1, c1), (h2, c2) = visit(2 * node + 1), visit(2 * node + 2)
            return self.cell(torch.cat([embedded[:, node], h1 + h2], 1), (h1 + h2, c1 + c2))

        return self.head(visit(0)[0]).squeeze(1)


def tree_epoch(tree, optimizer, programs, config):
    for inputs, log_runtime in programs:
        step(tree, optimizer, train_utils.huber(tree(inputs) - log_runtime, 1.0) / len(inputs), config)


def main():
    config = load_config(TrainingConfig)
    device = train_utils.pick_device(config)
    train = Sequences(config.data_path, data_utils.read_meta(config.data_path), "train")
    model, optimizer, _ = train_utils.start_or_resume(config, train, train, device)
    naive, naive_optimizer, _ = train_utils.start_or_resume(config, train, train, device)
    longest = int(train.lengths.max())
    batches = []
    for rows in train.grouped_batches(config.batch_size, config.schedules_per_group, np.random.default_rng(config.seed)):
        batch = train.batch(rows)
        batch.features = nn.functional.pad(batch.features, (0, 0, 0, longest - batch.features.shape[1]))
        batches.append(batch.to(device))
    np.random.default_rng(config.seed).shuffle(batches)
    tree = TreeLSTM(len(model.feature_mean), config.embed_size, config.hidden_size).to(device)
    tree_optimizer = torch.optim.AdamW(tree.parameters())
    programs = []
    for instance in np.unique(train.instance):
        batch = train.batch(np.flatnonzero(train.instance == instance)).to(device)
        programs.append((model.normalise(batch.features), batch.log_runtime))
    alone = train_utils.Processes()
    rivals = {
        "ours": lambda: train_utils.train_epoch(model, optimizer, train, 1, config, device, alone),
        "naive: padded to the longest, batches from a list": lambda: naive_epoch(naive, naive_optimizer, batches, config),
        "recursive tree-LSTM, one member (stand-in)": lambda: tree_epoch(tree, tree_optimizer, programs, config),
    }
    seconds = common.interleave(rivals, config.rounds)
    ours = seconds["ours"]
    rows = [[name, common.spread(len(train) / values), common.spread(values / ours)] for name, values in seconds.items()]
    facts = {"device": str(device), "threads": torch.get_num_threads(), "schedules": len(train)}
    facts |= {
        name: {"schedules_per_second": (len(train) / values).tolist(), "times_as_long": (values / ours).tolist()}
        for name, values in seconds.items()
    }
    common.write("training", ["training", "schedules a second", "times as long as ours"], rows, facts)


if __name__ == "__main__":
    run_script(main)
