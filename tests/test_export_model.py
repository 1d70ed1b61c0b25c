"""A trained model in other hands: ONNX Runtime, and Halide's own autoscheduler."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, expect_user_error, json_tree, make_stages, run, sample_bytes, write_json
from torch.nn.utils.rnn import pad_sequence

import data_utils
import train_utils
from batches import Sequences
from config import usable_cores
from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from evaluation import adams2019, intervals
from features import FEATURES, featurize
from halide_tools.autoschedulers import WithWeights, baseline_weights, read_weights
from halide_tools.programs import find_programs


def test_onnx_gives_the_predictions_of_pytorch(tmp_path):
    path = tmp_path / "model.onnx"
    done = run("export_model.py", f"--output={path}")
    assert done.stderr == ""
    session = onnxruntime.InferenceSession(str(path))
    assert json.loads(session.get_modelmeta().custom_metadata_map["features"]) == FEATURES
    model, meta = train_utils.load_model(train_utils.SHIPPED_MODEL, "cpu")
    # Measured schedules that the model was never trained on, of 2 to 52 stages.
    dumps = iter_dumps(str(ROOT / "data" / "raw" / "applications.tar.xz"))
    measured = [torch.from_numpy(x) for x in featurize([parse_dump(dump, 1e5) for dump in dumps])]
    assert len({len(x) for x in measured}) > 4
    names = ["predicted_ms", "lower_ms", "upper_ms"]
    for stages in (0, 1, 7):  # an empty batch
        got = session.run(names, {"features": np.zeros((0, stages, len(FEATURES)), np.float32), "lengths": np.zeros(0, np.int64)})
        assert [part.shape for part in got] == [(0,)] * 3
    for batch in (measured[:1], measured[20:22], measured):
        features = pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(x) for x in batch])
        members = model(features, lengths).detach()
        expected, spread = members.mean(0).exp().numpy(), members.std(0, correction=0).numpy()
        got = session.run(names, {"features": features.numpy(), "lengths": lengths.numpy()})
        assert np.allclose(got[0], expected, rtol=1e-4, atol=0)
        factor = np.exp(meta["errors"]["all"]["width_per_spread"] * (intervals.SPREAD_FLOOR + spread))
        assert np.allclose(got[1], expected / factor, rtol=1e-4, atol=0) and np.allclose(got[2], expected * factor, rtol=1e-4, atol=0)


@pytest.fixture
def data(tmp_path):
    """Processed data of six programs, whose schedules' runtimes have nothing to do with what Halide's weights make of their features."""
    for program in range(6):
        for schedule in range(4):
            file = tmp_path / "raw" / str(program) / f"{schedule}.sample"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample_bytes(make_stages(program, schedule), 0.1 * (1 + schedule)))
    run("generate_dataset.py", f"--raw_path={tmp_path / 'raw'}", f"--data_path={tmp_path / 'data'}")
    return tmp_path / "data"


def export_weights(data, path, *more):
    return run("export_model.py", "--format=weights", f"--output={path}", f"--data_path={data}", *more)


def test_exported_weights_predict_better_than_those_halide_ships(data, tmp_path):
    fit = ["--unmeasured_programs=0", "--fit_epochs=150", "--fit_share=1", "--fit_learning_rate=0.01", "--num_threads=1"]
    export_weights(data, tmp_path / "mine.weights", *fit)
    train = Sequences(data, data_utils.read_meta(data), "train")

    def error(weights):
        """Mean squared error of log-runtimes within programs: what is left of it after each program's own offset."""
        residuals = adams2019.log_predictions(weights, train.halide_batches(), usable_cores()) - train.log_runtime
        return np.mean([residuals[train.program == p].var() for p in np.unique(train.program)])

    assert error(read_weights(tmp_path / "mine.weights")) < 0.5 * error(baseline_weights())


def test_halide_takes_the_exported_weights(data, tmp_path):
    path = tmp_path / "exported.weights"
    done = export_weights(data, path, "--unmeasured_programs=1", "--unmeasured_schedules=3", "--fit_epochs=2")
    assert " predicted schedules" in done.stdout and " and 0 predicted" not in done.stdout
    export_weights(data, tmp_path / "shipped.weights", "--unmeasured_programs=0", "--fit_epochs=2", "--fit_share=0")
    assert all(np.array_equal(a, b) for a, b in zip(read_weights(tmp_path / "shipped.weights"), baseline_weights()))

    spec = next(iter(find_programs(ROOT / "pipelines" / "blur.py")))
    _, source = WithWeights(str(path), beam_size=1).apply(spec.build(), spec)
    assert "pipeline.get_func" in source


def test_weights_are_not_trained_on_dumps_without_types(tmp_path):
    (tmp_path / "raw").mkdir()
    for schedule in range(4):
        write_json(tmp_path / "raw" / f"{schedule}.json", json_tree(1.0 + schedule, schedule))
    data = [f"--data_path={tmp_path / 'data'}", "--val_fraction=0", "--test_fraction=0"]
    run("generate_dataset.py", f"--raw_path={tmp_path / 'raw'}", *data)
    done = run("export_model.py", "--format=weights", f"--output={tmp_path / 'x.weights'}", *data, check=False)
    expect_user_error(done, "types", ".sample")
    assert not (tmp_path / "x.weights").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--format=tflite"], ["format"]),
        (["--checkpoint=none.safetensors"], ["none.safetensors"]),
        (["--output=/proc/x/y.onnx"], ["/proc/x", "output"]),
        (["--output=/tmp"], ["/tmp", "folder"]),
        (["--interval=0.5"], ["--interval", "0.9"]),
        (["--precision=bfloat16"], ["--precision", "float32"]),
    ],
)
def test_mistakes_get_one_clear_line(arguments, words):
    expect_user_error(run("export_model.py", *arguments, check=False), *words)
