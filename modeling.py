"""The model: an LSTM over the stages of a scheduled program that predicts the logarithm of its runtime.

Axes: M members, B batch, T stages (padded), F features, E embedding, H hidden, K kinds of event, R trees.

The runtime of a program is the sum of its stages' times. So every stage gets a log cost, and the prediction is their logsumexp; it also
says which stage costs what. A stage's cost is a sum over K kinds of event. It starts from a linear model, milliseconds an event; schedules
without lowered-code counts have linear weights of their own. The LSTM predicts corrections from the stage and its neighbours: a factor for
each kind, as Adams2019's network does for its terms, and one for the stage. A few members with different initial weights are trained side
by side and averaged, as a deep ensemble (Lakshminarayanan et al. 2017). Boosted trees, which are fitted before, are averaged with them.
"""

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

NO_STD = torch.finfo(torch.float32).max  # standard deviation of a feature that is masked
CLIP = 6.0  # standard deviations at which a feature is cut off
NOTHING_MS = 1e-9  # of events that do not occur, so that they have a logarithm
# Of boosted trees
ROUNDS, LEAVES, DEPTH = 300, 31, 10
LEARNING_RATE = 0.08
POOLED_STEPS = 1024  # to the unit, to which pooled features are rounded: no tree may tell schedules apart by errors of arithmetic
FEATURE_SHARE = 0.3  # of the features, drawn for each split
ROWS_A_THREAD = 20000  # with fewer rows, threads wait for each other longer than they compute


class StageCosts(nn.Module):
    """One member: corrections to each stage's log costs."""

    def __init__(self, n_inputs, n_outputs, embed_size, hidden_size, lstm_layers, dropout):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(n_inputs, 2 * embed_size), nn.GELU(), nn.LayerNorm(2 * embed_size), nn.Dropout(dropout),
            nn.Linear(2 * embed_size, embed_size), nn.GELU(),
        )  # fmt: skip
        sizes = [embed_size] + [2 * hidden_size] * (lstm_layers - 1)
        self.forward_lstms = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.backward_lstms = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * hidden_size + 2 * embed_size, 64), nn.GELU(), nn.Linear(64, n_outputs)
        )  # fmt: skip
        with torch.no_grad():
            self.head[-1].weight.mul_(0.1)  # small corrections at first

    def forward(self, inputs, lengths):
        """(B, T, n_outputs) corrections from inputs (B, T, n_inputs) and lengths (B,); meaningless where padded."""
        embedded = self.embed(inputs)  # (B, T, E)
        hidden = self.read_stages(embedded, lengths)  # (B, T, 2H)
        padded = torch.arange(inputs.shape[1], device=lengths.device) >= lengths[:, None]  # (B, T)
        mean = embedded.masked_fill(padded[:, :, None], 0).sum(1, keepdim=True) / lengths[:, None, None]  # (B, 1, E)
        return self.head(torch.cat([hidden, embedded, mean.expand_as(embedded)], 2))

    def read_stages(self, embedded, lengths):
        """Hidden states of a bidirectional LSTM, (B, T, 2H), from embedded stages (B, T, E).

        The backward LSTM gets every sequence reversed within its length. So both directions read padding last, and need no packed
        sequences, which are slower on a CPU.
        """
        place = torch.arange(embedded.shape[1], device=lengths.device).expand(embedded.shape[:2])
        reverse_index = lengths[:, None] - 1 - place
        reverse_index = torch.where(reverse_index >= 0, reverse_index, place)[:, :, None]  # (B, T, 1); its own inverse
        hidden = embedded
        for layer, (forward_lstms, backward_lstms) in enumerate(zip(self.forward_lstms, self.backward_lstms)):
            hidden = self.dropout(hidden) if layer else hidden
            forward = forward_lstms(hidden)[0]  # (B, T, H)
            backward = backward_lstms(hidden.gather(1, reverse_index.expand_as(hidden)))[0]
            hidden = torch.cat([forward, backward.gather(1, reverse_index.expand_as(backward))], 2)
        return hidden


class BoostedTrees(nn.Module):
    """The sum of R regression trees on a schedule's pooled features; 0 until they are fitted.

    Members of another kind, whose errors differ from the LSTMs'. Scikit-learn fits them. They are evaluated in PyTorch, so that a
    checkpoint and an ONNX file hold the whole model.
    """

    def __init__(self):
        super().__init__()
        shape = ROUNDS, 2 * LEAVES - 1  # nodes of a tree
        self.register_buffer("feature", torch.zeros(shape, dtype=torch.int16))
        self.register_buffer("threshold", torch.zeros(shape))
        # Of each node. A leaf's are the leaf itself.
        self.register_buffer("left", torch.zeros(shape, dtype=torch.int16))
        self.register_buffer("right", torch.zeros(shape, dtype=torch.int16))
        self.register_buffer("value", torch.zeros(shape))

    def fit(self, features, target, seed):
        """Fit to `target` (B,) from `features` (B, D), both numpy."""
        from sklearn.ensemble import HistGradientBoostingRegressor  # takes half a second, and only training needs it

        with threadpool_limits(min(torch.get_num_threads(), 1 + len(target) // ROWS_A_THREAD), "openmp"):
            fitted = HistGradientBoostingRegressor(
                learning_rate=LEARNING_RATE, max_iter=ROUNDS, max_leaf_nodes=LEAVES, max_depth=DEPTH, max_features=FEATURE_SHARE,
                early_stopping=False, random_state=seed,
            ).fit(features, target)  # fmt: skip
        for name in ("feature", "threshold", "left", "right", "value"):
            getattr(self, name).zero_()
        for round, (predictor,) in enumerate(fitted._predictors):  # scikit-learn (pinned) has no public way to a tree's nodes
            nodes = predictor.nodes
            n, is_leaf = len(nodes), nodes["is_leaf"] > 0
            itself = np.arange(n)
            for name, values in (
                ("feature", np.where(is_leaf, 0, nodes["feature_idx"])),
                # The largest float32 that is no larger: what is at or below the one is at or below the other.
                ("threshold", _rounded_down(np.where(is_leaf, 0, nodes["num_threshold"]))),
                ("left", np.where(is_leaf, itself, nodes["left"])),
                ("right", np.where(is_leaf, itself, nodes["right"])),
                ("value", nodes["value"]),
            ):
                buffer = getattr(self, name)
                buffer[round, :n] = torch.from_numpy(values.astype(np.float64)).to(buffer.dtype)
        self.value[0] += float(fitted._baseline_prediction.item())

    def forward(self, features):
        """The prediction for `features` (B, D), (B,)."""
        first = torch.arange(ROUNDS, device=features.device) * self.feature.shape[1]  # (R,) the number of each tree's root
        feature, left, right = (nodes.flatten().long() for nodes in (self.feature, self.left, self.right))
        threshold, node = self.threshold.flatten(), first + torch.zeros_like(features[:, :1], dtype=torch.long)  # (B, R)
        for _ in range(DEPTH):
            goes_left = features.gather(1, feature[node]) <= threshold[node]
            node = first + torch.where(goes_left, left[node], right[node])
        return self.value.flatten()[node].sum(1)


def _rounded_down(values):
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(-np.inf)), rounded)


class CostModel(nn.Module):
    """Log-runtime of schedules from raw (not normalised) per-stage features.

    Parameters
    ----------
    n_features : F
    cost_columns : the columns of the K features that are log1p of events that take time
    parallel_columns : the columns that tell whether a stage runs in parallel, of schedules without and with lowered-code counts
    counts_column : the column of the flag that a schedule has lowered-code counts
    members, trees, embed_size, hidden_size, lstm_layers, dropout : as in config.yaml

    In training mode the trees are left out: nothing of them is learnt by gradients. `precision`, float32 unless set, is the number format
    of the LSTMs; inputs and outputs are float32 in any case.
    """

    def __init__(
        self, n_features, cost_columns, parallel_columns, counts_column, members, trees, embed_size, hidden_size, lstm_layers, dropout
    ):  # fmt: skip
        super().__init__()
        # Statistics of the training split; they travel with the weights.
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_std", torch.ones(n_features))
        self.register_buffer("event_ms", torch.ones(2, 2, len(cost_columns)))
        self.register_buffer("least_ms", torch.ones(2, len(cost_columns)))
        self.register_buffer("floor_ms", torch.ones(2))
        self.register_buffer("stage_ms", torch.ones(()))
        self.cost_columns, self.parallel_columns, self.counts_column = cost_columns, parallel_columns, counts_column
        self.precision = "float32"
        sizes = n_features + 2, len(cost_columns) + 2, embed_size, hidden_size, lstm_layers, dropout
        self.members = nn.ModuleList(StageCosts(*sizes) for _ in range(members))
        self.trees = nn.ModuleList(BoostedTrees() for _ in range(trees))

    def set_statistics(self, mean, std, linear):
        """Set the training split's statistics: mean and standard deviation of each feature over stages, (F,) each, and its LinearCosts.

        A feature that never varies has an infinite `std`, which masks it: nothing can be learnt from it.
        """
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)
        self.event_ms.copy_(linear.event_ms)
        self.least_ms.copy_(linear.least_ms)
        self.floor_ms.copy_(linear.floor_ms)
        self.stage_ms.fill_(linear.stage_ms)

    def mask_features(self, shown):
        """Mask all features but those that are `shown`, bool (F,): they are 0 once normalised, and never unfamiliar."""
        self.feature_std[~shown] = NO_STD
        for ms in (self.event_ms, self.least_ms):
            ms[..., ~shown[self.cost_columns]] = 0.0

    def scale(self, factor):
        """Multiply all predicted runtimes by `factor`, for a machine that is so much slower."""
        for ms in (self.event_ms, self.least_ms, self.floor_ms, self.stage_ms):
            ms *= factor

    def normalise(self, features):
        """Raw features in standard deviations from the training split's mean, cut off far out; same shape."""
        return ((features - self.feature_mean) / self.feature_std).clamp(-CLIP, CLIP)

    def is_unfamiliar(self, features):
        """Which raw features, bool (B, T, F), lie more than CLIP standard deviations out, or never varied in training and do here."""
        never_varied = torch.isinf(self.feature_std)
        far = ((features - self.feature_mean) / self.feature_std).abs() > CLIP
        return far | (never_varied & ((features - self.feature_mean).abs() > 1e-3))

    def linear_log_costs(self, features, lengths):
        """Log milliseconds of stages by the linear model: (those of each kind of event, and the least of a stage, (B, T, K + 1), where no
        event that occurs is without cost; their sum as the linear model has it, (B, T), -inf where a sequence is padded)."""
        padded = torch.arange(features.shape[1], device=lengths.device) >= lengths[:, None]
        events = torch.exp(features[:, :, self.cost_columns].clamp(0, 80)) - 1  # (B, T, K); ONNX knows no expm1, and these are counts
        has_counts, *parallel = (features[:, :, column] > 0 for column in (self.counts_column, *self.parallel_columns))
        parallel = has_counts & parallel[1] | ~has_counts & parallel[0]  # ONNX Runtime has no Where of booleans
        has_counts = has_counts.long()
        weights, floor = self.event_ms.flatten(0, 1)[2 * has_counts + parallel.long()], self.floor_ms[has_counts]  # (B, T, K), (B, T)
        total = torch.log((events * weights).sum(2) + floor).masked_fill(padded, -torch.inf)
        by_event = events * torch.maximum(weights, self.least_ms[has_counts])
        return torch.log(torch.cat([by_event + NOTHING_MS, floor[:, :, None]], 2)), total

    def pooled_features(self, features, lengths):
        """What the trees see of schedules, (B, 2 F + 1): each feature's mean over the stages, weighted by their shares in the time by the
        linear model; its log-sum-exp; and the log-runtime by the linear model, to which they predict a correction. Features that are
        masked or never varied are 0."""
        _, linear = self.linear_log_costs(features, lengths)
        share, padded = linear.softmax(1)[:, :, None], torch.isinf(linear)[:, :, None]
        features = features.masked_fill(self.feature_std >= NO_STD, 0)
        mean = (share * features.masked_fill(padded, 0)).sum(1)
        pooled = torch.cat([mean, features.masked_fill(padded, -torch.inf).logsumexp(1), linear.logsumexp(1, keepdim=True)], 1)
        return torch.round(pooled * POOLED_STEPS) / POOLED_STEPS

    def stage_costs(self, features, lengths):
        """Log milliseconds of each stage by each member, (M, B, T), the trees last; -inf where a sequence is padded.

        features : float (B, T, F), raw; lengths : int64 (B,), each from 1 to T
        """
        assert features.ndim == 3 and features.shape[2] == len(self.feature_mean) and lengths.shape == features.shape[:1]
        by_event, linear = self.linear_log_costs(features, lengths)
        # The members also see each stage's share of the time by the linear model, and the program's total.
        total = torch.logsumexp(linear, 1, keepdim=True)  # (B, 1)
        share = (linear - total).clamp(min=-12) / 4 + 1
        inputs = torch.cat([self.normalise(features), torch.stack([share, total.expand_as(share) / 2], 2)], 2)  # (B, T, F + 2)
        average = self.stage_ms.log().expand_as(linear)
        costs = []
        for i, member in enumerate(self.members):
            with torch.autocast(features.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                of_stage, of_events = member(inputs, lengths).split([1, by_event.shape[2]], 2)
            # Members with the same start make similar errors: one in four starts from a stage's mean time instead of the linear model.
            start = average if i % 4 == 3 else (by_event + of_events.float()).logsumexp(2)
            costs.append((start + of_stage.squeeze(2).float()).masked_fill(torch.isinf(linear), -torch.inf))
        costs = torch.stack(costs)
        if self.training or not self.trees:
            return costs
        # Trees tell no stages apart: what they predict is shared out as the LSTMs share theirs out, in the mean.
        pooled = self.pooled_features(features, lengths)
        runtimes = pooled[:, -1] + torch.stack([trees(pooled) for trees in self.trees])  # (number of trees, B)
        return torch.cat([costs, costs.softmax(2).mean(0).log() + runtimes[:, :, None]])

    def forward(self, features, lengths):
        """Each member's log-runtime (natural logarithm of milliseconds), (M, B); their mean is the prediction.

        features, lengths : as of stage_costs
        """
        log_runtime = torch.logsumexp(self.stage_costs(features, lengths), 2)
        return log_runtime
