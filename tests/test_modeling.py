"""The model, its losses and batches, and checkpoints."""

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import batches
import data_utils
import train_utils
from batches import Batch, Sequences
from config import UserError, load_config
from evaluation import baselines
from features import COST_COLUMNS, FEATURES, FLAG_COLUMNS, LOWERED_COLUMNS, PARALLEL_COLUMNS, SCHEDULE_COLUMNS
from linear_costs import LinearCosts, _fit, _least, fit_event_scales, fit_linear_costs
from modeling import CostModel, event_shares, sum_events

F = len(FEATURES)


def make_model(lstm_layers=1):
    torch.manual_seed(0)
    columns = (COST_COLUMNS, PARALLEL_COLUMNS, FLAG_COLUMNS[0])
    return CostModel(F, *columns, members=2, embed_size=16, hidden_size=8, lstm_layers=lstm_layers, dropout=0.0)


def linear_costs(fill):
    n = len(COST_COLUMNS)
    return LinearCosts(fill(2, 2, n), fill(2, n), fill(2), 2.0)


@pytest.fixture
def model():
    return make_model()


def random_batch(n=8, t=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, t + 1, (n,), generator=generator)
    lengths[0] = t
    features = torch.randn(n, t, F, generator=generator).abs()  # as counts and their logarithms are
    return Batch(features, lengths, torch.randn(n, generator=generator), torch.arange(n) // 4)


@pytest.mark.parametrize("lstm_layers", [1, 2])
def test_padding_changes_nothing(lstm_layers):
    model, batch = make_model(lstm_layers), random_batch()
    padded = torch.full((8, 11, F), 1e9)
    for i, n in enumerate(batch.lengths):
        padded[i, :n] = batch.features[i, :n]
    expected = torch.cat([model(batch.features[i : i + 1, :n], n[None]) for i, n in enumerate(batch.lengths)], 1)
    assert torch.allclose(model(padded, batch.lengths), expected, atol=1e-5)


def test_stage_costs_add_up(model):
    batch = random_batch()
    costs = model.stage_costs(batch.features, batch.lengths)
    assert costs.shape == (2, 8, 6) and (torch.isinf(costs).sum((1, 2)) == (6 - batch.lengths).sum()).all()
    total = costs.exp().sum(2)
    assert torch.allclose(model(batch.features, batch.lengths), total.log(), rtol=1e-4)


def test_each_kind_of_event_is_corrected_by_itself(model):
    """With a factor of three for one kind of event, a stage costs two times its milliseconds more than by the linear model."""
    batch, kind = random_batch(), 5
    model.set_statistics(torch.zeros(F), torch.ones(F), linear_costs(torch.rand))
    linear_ms = model.linear_log_costs(batch.features, batch.lengths)[0].exp()
    last = model.members[0].head[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.bias.data[1 + kind] = np.log(3)
    ms = model.stage_costs(batch.features, batch.lengths)[0].exp()
    expected = (linear_ms.sum(2) + 2 * linear_ms[:, :, kind]) * torch.isfinite(ms.log())
    assert torch.allclose(ms, expected, rtol=1e-4)


def test_an_event_share_is_what_its_cost_adds_to_the_runtime(model):
    batch, kind, more = random_batch(), 5, 0.01
    model.set_statistics(torch.zeros(F), torch.ones(F), linear_costs(torch.rand))
    costs = model.member_costs(batch.features, batch.lengths)
    shares = event_shares(costs)
    assert shares.shape == (8, len(COST_COLUMNS) + 1) and torch.allclose(shares.sum(1), torch.ones(8))
    dearer = [(events.clone(), of_stage) for events, of_stage in costs]
    for events, _ in dearer:
        events[:, :, kind] += more
    grown = (sum_events(dearer).logsumexp(2) - sum_events(costs).logsumexp(2)).mean(0)
    assert torch.allclose(grown, more * shares[:, kind], rtol=0.02)
    # A member that starts from a mean knows no kinds, so it has no say.
    mean_start = torch.zeros(8, 6, 1), costs[0][1]
    assert torch.equal(event_shares([*costs, mean_start]), shares)


def test_the_scales_of_another_machine_are_found():
    """Memory three times as slow there, arithmetic as fast, and one kind of event that takes no time at all."""
    generator = np.random.default_rng(0)
    log_costs = torch.from_numpy(generator.normal(0, 1.5, (2, 300, 3))).float() + torch.tensor([0, 0, -30.0])
    log_runtime = (log_costs + torch.tensor([3.0, 1.0, 1.0]).log()).logsumexp(2).mean(0).numpy()
    found = fit_event_scales(log_costs, log_runtime, np.arange(300) // 6)
    assert found[:2].numpy() == pytest.approx([3, 1], rel=0.05) and 1 < found[2] < 3  # nothing is known of it but the scale of all
    # From one schedule, only how much slower the machine is as a whole: kinds stay near each other.
    one = fit_event_scales(log_costs[:, :1], log_runtime[:1] + 2, np.zeros(1))
    assert (one.log() - one.log().mean()).abs().max() < 0.5


def test_kinds_of_event_are_scaled_each_by_its_own(model):
    batch, k = random_batch(), len(COST_COLUMNS)
    model.set_statistics(torch.zeros(F), torch.ones(F), linear_costs(torch.rand))
    before = model.linear_log_costs(batch.features, batch.lengths)[0]
    factors = torch.linspace(1, 4, k + 1)
    model.scale_events(factors)
    after = model.linear_log_costs(batch.features, batch.lengths)[0]
    occurs = before > -15
    assert torch.allclose((after - before)[occurs], factors.log().expand_as(before)[occurs], atol=1e-3)


def test_bfloat16_is_near_float32_and_stays_inside_the_members(model):
    batch = random_batch()
    expected = model(batch.features, batch.lengths)
    model.precision = "bfloat16"
    found = model(batch.features, batch.lengths)
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert torch.allclose(found, expected, atol=0.02)  # 2 % of the runtime
    train_utils.loss_terms(found.mean(0), batch).sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in model.parameters())


def test_every_parameter_gets_a_gradient(model):
    batch = random_batch()
    train_utils.loss_terms(model(batch.features, batch.lengths).mean(0), batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_eight_schedules_can_be_overfitted(model):
    batch = random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(300):
        # Without the ranking loss, which goes on pulling close runtimes apart.
        loss = train_utils.loss_terms(model(batch.features, batch.lengths).mean(0), batch)[:2].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(batch.features, batch.lengths).mean(0) - batch.log_runtime).abs().max() < 0.1


def test_losses_by_hand():
    batch = Batch(torch.zeros(4, 1, F), torch.ones(4, dtype=torch.long), torch.tensor([0.0, 1.0, 5.0, 5.01]), torch.tensor([0, 0, 1, 1]))
    regression, centred, ranking = train_utils.loss_terms(batch.log_runtime + 2, batch)
    assert regression == pytest.approx(2 - train_utils.REGRESSION_DELTA / 2)  # Huber, linear out here
    assert centred == pytest.approx(0, abs=1e-6)  # a shared offset within a program is no error of order
    # Only the first two differ by more than the margin; they are ordered rightly and one apart.
    assert ranking == pytest.approx(np.log1p(np.exp(-1 / train_utils.RANKING_TEMPERATURE)), rel=1e-4)


def test_learning_rate_rises_and_falls():
    config = load_config(argv=["--warmup_fraction", "0.2", "--learning_rate", "0.01"])
    rates = [train_utils.one_cycle(step, 100, config) for step in range(100)]
    assert max(rates) == pytest.approx(0.01) and int(np.argmax(rates)) == 20
    assert rates[0] < 0.001 and rates[-1] < 1e-5


@pytest.fixture
def sequences(tmp_path):
    """Twelve schedules of three programs, in two shards."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"runtime_ms": np.arange(1, 13), "program": np.repeat([5, 6, 7], 4), "instance": np.repeat([5, 6, 7], 4), "schedule": range(12)}
    )
    arrays = [rng.normal(size=(2 + i // 4, F)).astype(np.float32) for i in range(12)]
    data_utils.write_shard(tmp_path / "a", arrays[:7], rows[:7])
    data_utils.write_shard(tmp_path / "b", arrays[7:], rows[7:])
    return arrays, Sequences(tmp_path, {"shards": {"train": ["a", "b"]}}, "train")


def test_batches_hold_what_the_shards_hold(sequences):
    arrays, data = sequences
    batch = data.batch(np.array([11, 0]))
    assert batch.features.shape == (2, 4, F) and batch.lengths.tolist() == [4, 2]
    assert np.allclose(batch.features[0], arrays[11]) and np.allclose(batch.features[1, :2], arrays[0])
    assert batch.features[1, 2:].abs().sum() == 0
    assert batch.log_runtime.tolist() == pytest.approx([np.log(12), 0])


def test_statistics_are_of_stages_not_of_padding(sequences):
    arrays, data = sequences
    mean, std = data.feature_statistics()
    stages = np.concatenate(arrays)
    varies = ~np.isin(np.arange(F), FLAG_COLUMNS)
    assert np.allclose(mean, stages.mean(0), atol=1e-5) and np.allclose(std[varies], stages.std(0)[varies], atol=1e-4)


def test_a_feature_that_never_varied_changes_nothing(model):
    batch = random_batch()
    std = torch.ones(F)
    std[7] = torch.inf
    model.set_statistics(torch.zeros(F), std, linear_costs(torch.ones))
    before = model(batch.features, batch.lengths)
    batch.features[:, :, 7] = 1e6
    assert torch.equal(model(batch.features, batch.lengths), before)
    assert model.is_unfamiliar(batch.features)[:, :, 7].all()


def test_the_linear_model_is_used_only_where_it_explains_the_runtimes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [np.zeros((3, F), np.float32) for _ in range(60)]
    for array in arrays:
        array[:, COST_COLUMNS[:2]] = np.log1p(rng.uniform(0, 10 ** rng.uniform(1, 5), (3, 2)))
    programs = np.repeat(np.arange(12), 5)
    events = np.array([np.expm1(array[:, COST_COLUMNS[:2]]).sum(0) for array in arrays])

    def fit(runtime_ms):
        rows = pd.DataFrame({"runtime_ms": runtime_ms, "program": programs, "instance": programs, "schedule": range(60)})
        data_utils.write_shard(tmp_path / "a", arrays, rows)
        data = Sequences(tmp_path, {"shards": {"train": ["a"]}}, "train")
        return fit_linear_costs(data, torch.ones(F, dtype=torch.bool))

    assert np.allclose(fit(events @ [1e-3, 5e-3]).event_ms[0, 0, :2], [1e-3, 5e-3], rtol=1e-2)
    unrelated = fit(np.exp(rng.normal(0, 2, 60)))
    assert unrelated.event_ms.abs().sum() == 0 and np.allclose(unrelated.floor_ms, unrelated.stage_ms)


def test_every_kind_of_event_has_a_cost_that_can_be_corrected():
    """Least squares gives kinds that explain nothing no cost. For corrections they get a small one, where they occur at all."""
    rng = np.random.default_rng(0)
    events = rng.uniform(10, 1000, (200, 3))
    events[:, 2] = 0
    runtime_ms = events[:, 0] * 1e-3
    events, log_runtime = np.hstack([np.zeros((200, 3)), events]), np.log(runtime_ms)
    event_ms, least_ms = _fit(events, log_runtime).reshape(2, 3)[1], _least(events, log_runtime)
    assert np.allclose(event_ms, [1e-3, 0, 0], atol=1e-5) and least_ms[2] == 0
    assert np.allclose((least_ms[:2] * events[:, 3:5] / runtime_ms[:, None]).mean(0), 0.01)


def test_each_kind_of_dump_has_a_linear_model_of_its_own(tmp_path, model):
    """Schedules with lowered-code counts have linear weights for these alone, those without have others."""
    rng = np.random.default_rng(0)
    said, counted = COST_COLUMNS[0], LOWERED_COLUMNS[0]
    arrays = [np.zeros((1, F), np.float32) for _ in range(80)]
    for array in arrays:
        events = 10 ** rng.uniform(1, 5)
        array[:, [said, counted]] = np.log1p([events * rng.uniform(0.5, 1.5), events])
        array[:, FLAG_COLUMNS] = 1
    runtime_ms = np.array([np.expm1(array[0, counted]) * 1e-3 for array in arrays])
    rows = pd.DataFrame({"runtime_ms": runtime_ms, "program": range(80), "instance": range(80), "schedule": range(80)})
    data_utils.write_shard(tmp_path / "a", arrays, rows)
    data = Sequences(tmp_path, {"shards": {"train": ["a"]}}, "train")
    assert (data.inputs == "all").all()
    model.set_statistics(*data.feature_statistics(), fit_linear_costs(data, torch.ones(F, dtype=torch.bool)))
    batch = data.batch(np.arange(80))
    first, nothing = np.arange(80) < 40, np.zeros(80, bool)
    without_counts, counts_alone = batch.masked(first, nothing), batch.masked(nothing, first)
    for masked, columns in ((without_counts, LOWERED_COLUMNS), (counts_alone, SCHEDULE_COLUMNS)):
        assert torch.equal(masked.features[40:], batch.features[40:]) and not masked.features[:40, :, columns].any()
    exact, estimated, alone = (
        model.linear_log_costs(b.features, b.lengths)[1][:40, 0] - b.log_runtime[:40] for b in (batch, without_counts, counts_alone)
    )
    assert exact.abs().max() < 0.01 and alone.abs().max() < 0.01 and 0.1 < estimated.abs().mean() < 0.5


def test_events_that_are_rare_in_serial_stages_get_no_absurd_cost():
    rng = np.random.default_rng(0)
    cost_ms = np.array([1e-3, 5e-3])
    parallel = rng.uniform(10, 1000, (200, 2))
    serial = np.zeros((200, 2))
    serial[:5, 1] = 1  # in five schedules, which are slow for another reason
    runtime_ms = (parallel + serial) @ cost_ms
    runtime_ms[:5] *= 4
    serial_ms, parallel_ms = _fit(np.hstack([serial, parallel]), np.log(runtime_ms)).reshape(2, 2)
    assert np.allclose(parallel_ms, cost_ms, rtol=0.2)
    assert serial_ms[1] < 2 * parallel_ms[1], "one such event would cost more than a thousand in parallel stages"
    serial = rng.uniform(10, 1000, (200, 2))  # where the data say that serial ones cost three times as much, that is believed
    runtime_ms = (parallel + 3 * serial) @ cost_ms
    serial_ms, parallel_ms = _fit(np.hstack([serial, parallel]), np.log(runtime_ms)).reshape(2, 2)
    assert np.allclose(serial_ms, 3 * parallel_ms, rtol=0.3)


def test_grouped_batches_cover_an_epoch_once(sequences):
    _, data = sequences
    batches = data.grouped_batches(4, 2, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(12)) and all(len(b) <= 4 for b in batches)
    for batch in batches:  # neighbours are schedules of one program
        assert (data.instance[batch[0::2]] == data.instance[batch[1::2]]).all()


def test_inputs_are_masked_for_whole_programs(sequences):
    _, data = sequences
    data.inputs = np.full(len(data), "all")
    drawn = [data.sample_masks(0.3, 0.4, np.random.default_rng(seed)) for seed in range(40)]
    assert all(len(set(masked[data.instance == i])) == 1 for pair in drawn for masked in pair for i in data.instance)
    without_counts, counts_alone = np.array(drawn).mean((0, 2))
    assert 0.15 < without_counts < 0.45 and 0.25 < counts_alone < 0.55 and not any((a & b).any() for a, b in drawn)
    assert not np.any(data.sample_masks(0.0, 0.0, np.random.default_rng(0)))
    data.inputs = np.full(len(data), "counts_alone")  # where there is one kind alone, it is never masked
    assert not np.any(data.sample_masks(0.5, 0.5, np.random.default_rng(0)))


def test_a_checkpoint_gives_the_same_predictions_back(tmp_path, model):
    settings = {"members": 2, "embed_size": 16, "hidden_size": 8, "lstm_layers": 1, "dropout": 0.0}
    meta = {"format": train_utils.CHECKPOINT_FORMAT, "features": FEATURES, "config": settings}
    model.set_statistics(torch.randn(F), torch.rand(F) + 0.5, linear_costs(torch.rand))
    path = tmp_path / "model.safetensors"
    train_utils.write_checkpoint(path, {f"model.{k}": v for k, v in model.state_dict().items()}, meta)
    again, _ = train_utils.load_model(path, "cpu")
    batch = random_batch()
    assert torch.equal(again(batch.features, batch.lengths), model.eval()(batch.features, batch.lengths))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"nonsense", "not a checkpoint"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 12\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html lang='en'>", "web page"),
        (b"<HTML><body>Not found</body></HTML>", "web page"),
        (b"PK\x03\x04" + bytes(100), "PyTorch"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x08\x08\x12\x07pytorch\x1a\x06", "ONNX"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, data, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"x.safetensors: .*{words}") as caught:
        train_utils.read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there_or_damaged_is_refused(tmp_path, model):
    with pytest.raises(UserError, match="train_model.py"):
        train_utils.read_checkpoint(tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        train_utils.read_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    meta = {
        "format": train_utils.CHECKPOINT_FORMAT,
        "features": FEATURES,
        "config": dict.fromkeys(train_utils.MODEL_KEYS, 1) | {"dropout": 0.0},
    }
    train_utils.write_checkpoint(path, {f"model.{k}": v for k, v in model.state_dict().items()}, meta)
    with pytest.raises(UserError, match="damaged"):
        train_utils.load_model(path, "cpu")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="not a checkpoint"):
        train_utils.read_checkpoint(path)
    train_utils.write_checkpoint(path, {"x": torch.zeros(1)}, meta | {"format": "cost_model_LSTM 7"})
    with pytest.raises(UserError, match="another version .*train again"):
        train_utils.read_checkpoint(path)


def test_a_real_pytorch_file_is_named(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match="PyTorch"):
        train_utils.read_checkpoint(tmp_path / "x.pt")


def test_ranges_are_bounded_by_rows_and_by_padding():
    assert batches.ranges_in_order([], 4, 100) == []
    lengths = [5] * 9 + [60] + [5] * 3 + [500, 2]
    found = batches.ranges_in_order(lengths, 4, 100)
    assert [i for rows in found for i in range(rows.start, rows.stop)] == list(range(len(lengths)))
    for rows in found:
        part = lengths[rows]
        assert len(part) <= 4 and (len(part) == 1 or len(part) * max(part) <= 100)
    assert found[:2] == [slice(0, 4), slice(4, 8)]


@pytest.fixture
def one_long_program(tmp_path, monkeypatch):
    """31 schedules of short programs and 4 of one of 300 stages, in a shard; limits that those exceed, as 5,000 stages do the real ones."""
    monkeypatch.setattr(batches, "BATCH_STAGES", 640)
    monkeypatch.setattr(train_utils, "BATCH_STAGES", 640)
    rng = np.random.default_rng(0)
    lengths = [3] * 16 + [7] * 15 + [300] * 4
    programs = np.array([0] * 16 + [1] * 15 + [2] * 4)
    rows = pd.DataFrame({"runtime_ms": rng.uniform(1, 9, 35), "program": programs, "instance": programs, "schedule": range(35)})
    arrays = [np.abs(rng.normal(size=(n, F))).astype(np.float32) for n in lengths]
    data_utils.write_shard(tmp_path / "a", arrays, rows)
    return arrays, Sequences(tmp_path, {"shards": {"train": ["a"]}}, "train")


def test_a_long_program_does_not_make_large_batches(one_long_program, model):
    arrays, data = one_long_program
    epoch = data.grouped_batches(32, 4, np.random.default_rng(0))
    assert sorted(np.concatenate(epoch)) == list(range(35))
    assert all(len(rows) * data.lengths[rows].max() <= 640 for rows in epoch)
    # Predictions are made in small parts, too, and are those of each row alone.
    sizes = []
    model.members[0].register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0] * inputs[0].shape[1]))
    predicted = train_utils.predict(model, data, "cpu")
    assert max(sizes) <= 640 and len(sizes) == 3
    alone = [model(torch.from_numpy(a)[None], torch.tensor([len(a)])).mean().item() for a in arrays]
    assert np.allclose(predicted, alone, atol=1e-4)
    listed = train_utils.predict_sequences(model, [arrays[34], *arrays[:34]], "cpu")
    assert np.allclose([p.log_runtime for p in listed], [alone[34], *alone[:34]], atol=1e-4)
    rows = train_utils.predict_rows(model, data, "cpu")
    for column in ("spread", "event_shares", "outside"):
        found = np.array([getattr(p, column) for p in [*listed[1:], listed[0]]])
        assert found.shape == getattr(rows, column).shape and np.allclose(found, getattr(rows, column), atol=1e-4)


def test_fine_tuning_starts_from_each_kind_of_event_as_the_machine_has_it(one_long_program, model, tmp_path):
    """The other machine is twice as slow; of the two kinds of event that take time, one takes four times that, the other a fourth."""
    _, data = one_long_program
    two_kinds, factors = torch.zeros(len(COST_COLUMNS)), torch.ones(len(COST_COLUMNS) + 1)
    two_kinds[[-3, -5]], factors[[-4, -6]] = 1.0, torch.tensor([4.0, 0.25])
    costs = LinearCosts(two_kinds.expand(2, 2, -1), torch.zeros(2, len(COST_COLUMNS)), torch.full((2,), 1e-5), 1.0)
    model.set_statistics(torch.zeros(F), torch.full((F,), 10.0), costs)
    settings = {"members": 2, "embed_size": 16, "hidden_size": 8, "lstm_layers": 1, "dropout": 0.0, "drop_features": ""}
    meta = {"format": train_utils.CHECKPOINT_FORMAT, "config": settings, "features": FEATURES}
    path = tmp_path / "base.safetensors"
    train_utils.write_checkpoint(path, {f"model.{k}": v for k, v in model.state_dict().items()}, meta)
    model.scale(2.0)
    as_a_whole = train_utils.predict(model, data, "cpu")
    model.scale_events(factors)
    data.log_runtime = train_utils.predict(model, data, "cpu").astype(np.float32)
    flags = [f"--{key}={value}" for key, value in (settings | {"init_from": path}).items()]
    started = make_model()
    train_utils.load_weights(started, load_config(argv=flags), data, torch.ones(F, dtype=torch.bool), "cpu")
    error, residual = train_utils.predict(started, data, "cpu") - data.log_runtime, as_a_whole - data.log_runtime
    assert np.abs(error.mean()) < 0.1 and error.std() < 0.5 * residual.std()


def test_a_large_shard_is_taken_in_parts(one_long_program, monkeypatch):
    _, data = one_long_program
    shown = torch.ones(F, dtype=torch.bool)

    def computed():
        return [data.feature_statistics(), fit_linear_costs(data, shown).event_ms, baselines.pooled_features(data)]

    whole = computed()
    monkeypatch.setattr(batches, "PART_STAGES", 640)
    parts = list(data.parts())
    assert len(parts) > 2 and all(part["features"].shape[0] * part["features"].shape[1] <= 640 for part in parts)
    assert sum(len(part["lengths"]) for part in parts) == 35
    (mean, std), events, pooled = computed()
    assert torch.allclose(mean, whole[0][0]) and torch.allclose(std, whole[0][1]) and torch.allclose(events, whole[1])
    assert np.allclose(pooled, whole[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("processes, gpus, refused", [(4, 1, True), (2, 2, False), (1, 1, False)])
def test_no_more_processes_than_gpus(monkeypatch, processes, gpus, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(processes - 1))
    config = load_config(argv=[f"--num_threads={torch.get_num_threads()}"])
    if refused:
        with pytest.raises(UserError, match="--nproc_per_node 4: there are 1 GPUs"):
            train_utils.pick_device(config)
    else:
        assert train_utils.pick_device(config) == torch.device("cuda", processes - 1)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda"):
        train_utils.pick_device(load_config(argv=["--device=cuda", f"--num_threads={torch.get_num_threads()}"]))


def test_threads_are_no_more_than_usable_cores(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(train_utils, "usable_cores", lambda: 3)
    try:
        with threadpool_limits():
            torch.set_num_threads(16)  # as OMP_NUM_THREADS may ask for
            train_utils.set_threads(load_config(argv=[]))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_num_threads_is_for_every_library():
    torch_threads = torch.get_num_threads()
    with threadpool_limits():  # puts all but PyTorch's back
        train_utils.pick_device(load_config(argv=["--num_threads=3", "--device=cpu"]))
        assert torch.get_num_threads() == 3 and {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"} == {3}
        torch.set_num_threads(torch_threads)
