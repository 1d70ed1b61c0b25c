"""A trained model in other hands: ONNX Runtime, and Halide's own autoscheduler."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT, expect_user_error, make_stages, run, sample_bytes
from torch.nn.utils.rnn import pad_sequence

import train_utils
from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from evaluation import intervals
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
    for batch in (measured[:1], measured[20:22], measured):
        features = pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(x) for x in batch])
        expected = model(features, lengths).mean(0).exp().detach().numpy()
        got = session.run(["predicted_ms", "lower_ms", "upper_ms"], {"features": features.numpy(), "lengths": lengths.numpy()})
        assert np.allclose(got[0], expected, rtol=1e-4, atol=0)
        factor = np.exp(intervals.errors_of(meta, counted=True)["log_half_width"])
        assert np.allclose(got[1], expected / factor, rtol=1e-4, atol=0) and np.allclose(got[2], expected * factor, rtol=1e-4, atol=0)


def test_halide_takes_the_exported_weights(tmp_path):
    for program in range(6):
        for schedule in range(4):
            file = tmp_path / "raw" / str(program) / f"{schedule}.sample"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample_bytes(make_stages(program, schedule), 0.1 * (1 + schedule)))
    data = f"--data_path={tmp_path / 'data'}"
    run("generate_dataset.py", f"--raw_path={tmp_path / 'raw'}", data)
    path = tmp_path / "exported.weights"
    done = run(
        "export_model.py",
        "--format=weights",
        f"--output={path}",
        data,
        "--unmeasured_programs=1",
        "--unmeasured_schedules=3",
        "--fit_epochs=2",
    )
    assert " predicted schedules" in done.stdout and " and 0 predicted" not in done.stdout
    changed = [not np.array_equal(a, b) for a, b in zip(read_weights(path), baseline_weights())]
    assert all(changed)
    run(
        "export_model.py",
        "--format=weights",
        f"--output={tmp_path / 'shipped.weights'}",
        data,
        "--unmeasured_programs=0",
        "--fit_epochs=2",
        "--fit_share=0",
    )
    assert all(np.array_equal(a, b) for a, b in zip(read_weights(tmp_path / "shipped.weights"), baseline_weights()))

    spec = next(iter(find_programs(ROOT / "pipelines" / "blur.py")))
    _, source = WithWeights(str(path), beam_size=1).apply(spec.build(), spec)
    assert "pipeline.get_func" in source


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--format=tflite"], ["format"]),
        (["--checkpoint=none.safetensors"], ["none.safetensors"]),
        (["--output=/proc/x/y.onnx"], ["/proc/x", "output"]),
        (["--output=/tmp"], ["/tmp", "folder"]),
    ],
)
def test_mistakes_get_one_clear_line(arguments, words):
    expect_user_error(run("export_model.py", *arguments, check=False), *words)
