"""The model: an LSTM over the stages of a scheduled program that predicts the logarithm of its runtime.

Axes: M members, B batch, T stages (padded), F features, E embedding, H hidden, K kinds of event. The time of a program is the sum
of its stages' times, so every stage gets a log cost and the prediction is their logsumexp: it says which stage costs what. A
stage's cost starts from a linear model, milliseconds an event for K kinds of event; what the LSTM learns is how far that is off,
given the stage and those around it. Where the lowered code was not counted, other weights are for the events that Halide's features tell. A few members, trained side by side from different starts, are averaged: with few programs to
learn from, what one start makes of a new program is partly luck.
"""

import torch
from torch import nn

CLIP = 6.0  # standard deviations; further out, a feature carries no more meaning than "very large"


class StageCosts(nn.Module):
    """One member: how far each stage's log cost is from where it starts."""

    def __init__(self, n_inputs, embed_size, hidden_size, lstm_layers, dropout):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(n_inputs, 2 * embed_size), nn.GELU(), nn.LayerNorm(2 * embed_size), nn.Dropout(dropout),
            nn.Linear(2 * embed_size, embed_size), nn.GELU(),
        )  # fmt: skip
        sizes = [embed_size] + [2 * hidden_size] * (lstm_layers - 1)
        self.forward_lstms = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.backward_lstms = nn.ModuleList(nn.LSTM(size, hidden_size, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * hidden_size + 2 * embed_size, 64), nn.GELU(), nn.Linear(64, 1))
        with torch.no_grad():
            self.head[-1].weight.mul_(0.1)  # close to the start

    def forward(self, inputs, lengths):
        """(B, T) corrections from inputs (B, T, n_inputs) and lengths (B,); meaningless where padded."""
        embedded = self.embed(inputs)  # (B, T, E)
        hidden = self.read_stages(embedded, lengths)  # (B, T, 2H)
        padded = torch.arange(inputs.shape[1], device=lengths.device) >= lengths[:, None]  # (B, T)
        mean = embedded.masked_fill(padded[:, :, None], 0).sum(1, keepdim=True) / lengths[:, None, None]  # (B, 1, E)
        return self.head(torch.cat([hidden, embedded, mean.expand_as(embedded)], 2)).squeeze(2)

    def read_stages(self, embedded, lengths):
        """What a bidirectional LSTM makes of each stage among the others, (B, T, 2H), from (B, T, E).

        The direction that starts at the inputs gets every sequence reversed within its length, so that both read padding last and
        no packing is needed, which is slower on a CPU.
        """
        place = torch.arange(embedded.shape[1], device=lengths.device).expand(embedded.shape[:2])
        reverse_index = lengths[:, None] - 1 - place
        reverse_index = torch.where(reverse_index >= 0, reverse_index, place)[:, :, None]  # (B, T, 1); applied twice, all is in place again
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
    cost_columns : which K features are log1p of events that take time
    parallel_columns : which features tell whether a stage runs in parallel, where its lowered code was not counted and where it was
    has_lowered_counts_column : which feature tells whether it was
    members, embed_size, hidden_size, lstm_layers, dropout : as in config.yaml

    `precision`, float32 unless set, is what the members compute in; what goes in and comes out is float32 in any case.
    """

    def __init__(
        self, n_features, cost_columns, parallel_columns, has_lowered_counts_column, members, embed_size, hidden_size, lstm_layers, dropout
    ):
        super().__init__()
        # Statistics of the training split; they travel with the weights.
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_std", torch.ones(n_features))
        self.register_buffer("event_ms", torch.ones(2, 2, len(cost_columns)))
        self.register_buffer("floor_ms", torch.ones(2))
        self.register_buffer("stage_ms", torch.ones(()))
        self.cost_columns, self.parallel_columns, self.has_lowered_counts_column = cost_columns, parallel_columns, has_lowered_counts_column
        self.precision = "float32"
        self.members = nn.ModuleList(StageCosts(n_features + 2, embed_size, hidden_size, lstm_layers, dropout) for _ in range(members))

    def set_statistics(self, mean, std, linear):
        """Take the training split's statistics: of each feature over stages, (F,) each, and its LinearCosts.

        A feature that never varies has an infinite `std`: nothing was learnt about what it may say later, so it is left out.
        """
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)
        self.event_ms.copy_(linear.event_ms)
        self.floor_ms.copy_(linear.floor_ms)
        self.stage_ms.fill_(linear.stage_ms)

    def scale(self, factor):
        """Take a machine to be `factor` times as slow, all else alike."""
        for ms in (self.event_ms, self.floor_ms, self.stage_ms):
            ms *= factor

    def normalise(self, features):
        """Raw features in standard deviations from the training split's mean, cut off far out; same shape."""
        return ((features - self.feature_mean) / self.feature_std).clamp(-CLIP, CLIP)

    def is_unfamiliar(self, features):
        """Which raw features, bool (B, T, F), lie further out than the model tells apart, or never varied in training and do here."""
        never_varied = torch.isinf(self.feature_std)
        far = ((features - self.feature_mean) / self.feature_std).abs() > CLIP
        return far | (never_varied & ((features - self.feature_mean).abs() > 1e-3))

    def linear_log_costs(self, features):
        """Log milliseconds of each stage by the linear model, (B, T)."""
        events = torch.exp(features[:, :, self.cost_columns].clamp(0, 80)) - 1  # (B, T, K); ONNX knows no expm1, and these are counts
        counted, *parallel = (features[:, :, column] > 0 for column in (self.has_lowered_counts_column, *self.parallel_columns))
        parallel = torch.where(counted, parallel[1], parallel[0])
        uncounted_ms, counted_ms = (torch.where(parallel, events @ weights[1], events @ weights[0]) for weights in self.event_ms)
        return torch.log(torch.where(counted, counted_ms + self.floor_ms[1], uncounted_ms + self.floor_ms[0]))

    def stage_costs(self, features, lengths):
        """Log milliseconds of each stage by each member, (M, B, T); -inf where a sequence is padded.

        features : float (B, T, F), raw; lengths : int64 (B,), each from 1 to T
        """
        assert features.ndim == 3 and features.shape[2] == len(self.feature_mean) and lengths.shape == features.shape[:1]
        normalised = self.normalise(features)
        padded = torch.arange(features.shape[1], device=lengths.device) >= lengths[:, None]  # (B, T)
        linear = self.linear_log_costs(features).masked_fill(padded, -torch.inf)
        # A stage that takes a thousandth of the program's time matters little whatever its features say, so the members see that.
        total = torch.logsumexp(linear, 1, keepdim=True)  # (B, 1)
        share = (linear - total).clamp(min=-12) / 4 + 1
        inputs = torch.cat([normalised, torch.stack([share, total.expand_as(share) / 2], 2)], 2)  # (B, T, F + 2)
        nothing = self.stage_ms.log().expand_as(linear).masked_fill(padded, -torch.inf)
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            corrections = [member(inputs, lengths) for member in self.members]
        # Members that start alike err alike: one in four starts from what a stage takes on average, whatever it is.
        return torch.stack([correction.float() + (nothing if i % 4 == 3 else linear) for i, correction in enumerate(corrections)])

    def forward(self, features, lengths):
        """Each member's log-runtime (natural logarithm of milliseconds), (M, B); their mean is the prediction. Arguments as of stage_costs."""
        log_runtime = torch.logsumexp(self.stage_costs(features, lengths), 2)
        assert log_runtime.shape == (len(self.members), len(lengths))
        return log_runtime
