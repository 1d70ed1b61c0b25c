"""The model: an LSTM over the stages of a scheduled program that predicts the logarithm of its runtime.

Axes: M members, B batch, T stages (padded), F features, E embedding, H hidden, K kinds of event.

The runtime of a program is the sum of its stages' times. So every stage gets a log cost, and the prediction is their logsumexp; it also
says which stage costs what. A stage's cost is a sum over K kinds of event. It starts from a linear model, milliseconds an event; schedules
without lowered-code counts have linear weights of their own. The LSTM predicts corrections from the stage and its neighbours: a factor for
each kind, as Adams2019's network does for its terms, and one for the stage. A few members with different initial weights are trained side
by side and averaged, as a deep ensemble (Lakshminarayanan et al. 2017).
"""

import torch
from torch import nn

CLIP = 6.0  # standard deviations at which a feature is cut off
NOTHING_MS = 1e-9  # of events that do not occur, so that they have a logarithm


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
        padded = is_padded(inputs, lengths)
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


class CostModel(nn.Module):
    """Log-runtime of schedules from raw (not normalised) per-stage features.

    Parameters
    ----------
    n_features : F
    cost_columns : the columns of the K features that are log1p of events that take time
    parallel_columns : the columns that tell whether a stage runs in parallel, of schedules without and with lowered-code counts
    counts_column : the column of the flag that a schedule has lowered-code counts
    members, embed_size, hidden_size, lstm_layers, dropout : as in config.yaml

    `precision`, float32 unless set, is the number format of the members; inputs and outputs are float32 in any case.
    """

    def __init__(self, n_features, cost_columns, parallel_columns, counts_column, members, embed_size, hidden_size, lstm_layers, dropout):
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
        self.feature_std[~shown] = torch.finfo(torch.float32).max
        for ms in (self.event_ms, self.least_ms):
            ms[..., ~shown[self.cost_columns]] = 0.0

    def scale(self, factor):
        """Multiply all predicted runtimes by `factor`, for a machine that is so much slower."""
        for ms in (self.event_ms, self.least_ms, self.floor_ms, self.stage_ms):
            ms *= factor

    def scale_events(self, factors):
        """Multiply what each kind of event, and the floor, is predicted to take by its own of the `factors`, (K + 1,)."""
        for ms in (self.event_ms, self.least_ms):
            ms *= factors[:-1]
        self.floor_ms *= factors[-1]

    def normalise(self, features):
        """Raw features in standard deviations from the training split's mean, cut off far out; same shape."""
        return ((features - self.feature_mean) / self.feature_std).clamp(-CLIP, CLIP)

    def is_unfamiliar(self, features):
        """Which raw features, bool (B, T, F), lie more than CLIP standard deviations out, or never varied in training and do here."""
        never_varied = torch.isinf(self.feature_std)
        far = ((features - self.feature_mean) / self.feature_std).abs() > CLIP
        return far | (never_varied & ((features - self.feature_mean).abs() > 1e-3))

    def outside(self, features, lengths):
        """Which share of a schedule's raw features is_unfamiliar, (B,). features, lengths : as of member_costs"""
        stages = self.is_unfamiliar(features).float().mean(2)  # (B, T)
        padded = is_padded(features, lengths)
        return stages.masked_fill(padded, 0).sum(1) / lengths

    def linear_log_costs(self, features, lengths):
        """Log milliseconds of stages by the linear model: (those of each kind of event, and the least of a stage, (B, T, K + 1), where no
        event that occurs is without cost; their sum as the linear model has it, (B, T), -inf where a sequence is padded)."""
        padded = is_padded(features, lengths)
        events = torch.exp(features[:, :, self.cost_columns].clamp(0, 80)) - 1  # (B, T, K); ONNX knows no expm1, and these are counts
        has_counts, *parallel = (features[:, :, column] > 0 for column in (self.counts_column, *self.parallel_columns))
        parallel = has_counts & parallel[1] | ~has_counts & parallel[0]  # ONNX Runtime has no Where of booleans
        has_counts = has_counts.long()
        weights, floor = self.event_ms.flatten(0, 1)[2 * has_counts + parallel.long()], self.floor_ms[has_counts]  # (B, T, K), (B, T)
        total = torch.log((events * weights).sum(2) + floor).masked_fill(padded, -torch.inf)
        by_event = events * torch.maximum(weights, self.least_ms[has_counts])
        return torch.log(torch.cat([by_event + NOTHING_MS, floor[:, :, None]], 2)), total

    def member_costs(self, features, lengths):
        """Each member's log milliseconds: [(of each kind of event in a stage, (B, T, K + 1), or of the mean stage, (B, T, 1), that some
        members start from; what is added to them in a stage, (B, T), -inf where a sequence is padded)].

        features : float (B, T, F), raw; lengths : int64 (B,), each from 1 to T
        """
        assert features.ndim == 3 and features.shape[2] == len(self.feature_mean) and lengths.shape == features.shape[:1]
        by_event, linear = self.linear_log_costs(features, lengths)
        # The members also see each stage's share of the time by the linear model, and the program's total.
        total = torch.logsumexp(linear, 1, keepdim=True)  # (B, 1)
        share = (linear - total).clamp(min=-12) / 4 + 1
        inputs = torch.cat([self.normalise(features), torch.stack([share, total.expand_as(share) / 2], 2)], 2)  # (B, T, F + 2)
        average = self.stage_ms.log().expand_as(linear)[:, :, None]
        costs = []
        for i, member in enumerate(self.members):
            with torch.autocast(features.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                of_stage, of_events = member(inputs, lengths).split([1, by_event.shape[2]], 2)
            # Members with the same start make similar errors: one in four starts from a stage's mean time instead of the linear model.
            start = average if i % 4 == 3 else by_event + of_events.float()
            costs.append((start, of_stage.squeeze(2).float().masked_fill(torch.isinf(linear), -torch.inf)))
        return costs

    def stage_costs(self, features, lengths):
        """Log milliseconds of each stage by each member, (M, B, T); -inf where a sequence is padded. features, lengths : of member_costs"""
        return sum_events(self.member_costs(features, lengths))

    def forward(self, features, lengths):
        """Each member's log-runtime (natural logarithm of milliseconds), (M, B); their mean is the prediction.

        features, lengths : as of member_costs
        """
        return self.stage_costs(features, lengths).logsumexp(2)


def is_padded(sequences, lengths):
    """Where sequences (B, T, anything) of these lengths (B,) are padded, bool (B, T)."""
    return torch.arange(sequences.shape[1], device=lengths.device) >= lengths[:, None]


def sum_events(member_costs):
    """Log milliseconds of each stage by each member, (M, B, T), of CostModel.member_costs."""
    return torch.stack([events.logsumexp(2) + of_stage for events, of_stage in member_costs])


def event_costs(member_costs):
    """Log milliseconds of each kind of event in a schedule, the floor last, by the members that tell kinds, (M, B, K + 1)."""
    told = [events + of_stage[:, :, None] for events, of_stage in member_costs if events.shape[2] > 1]
    return torch.stack([costs.logsumexp(1) for costs in told])


def event_shares(member_costs):
    """What share of a schedule's time each kind of event takes, the floor last, (B, K + 1), in the mean of the members that tell kinds."""
    return event_costs(member_costs).softmax(2).mean(0)
