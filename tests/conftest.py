"""Small dumps the tests make themselves, in every format, from one description of a schedule."""

import atexit
import json
import multiprocessing
import os
import runpy
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import orjson
import pytest

from dumps.files import Dump
from dumps.parsing import parse_dump
from features import OPS, SCHEDULE_FEATURES
from halide_tools.programs import find_programs

ROOT = Path(__file__).resolve().parent.parent
BLUR = """
import halide as hl

def build():
    x, y = hl.vars("x y")
    image = hl.ImageParam(hl.Float(32), 2, "image")
    image.set_estimates([(0, 258), (0, 256)])
    blur, out = hl.Func("blur"), hl.Func("out")
    blur[x, y] = image[x, y] + image[x + 1, y] + image[x + 2, y]
    out[x, y] = blur[x, y] * hl.f32(0.3)
    out.set_estimates([(0, 256), (0, 256)])
    return hl.Pipeline(out)
"""


def make_stages(program=0, schedule=0, n_stages=3, size=1024):
    """(T, 326) float32 in Halide's layout: the program decides the histograms, the schedule the schedule features."""
    stages = np.zeros((n_stages, 326), np.float32)
    rng = np.random.default_rng([program, schedule])
    stages[:, :39] = np.floor(rng.uniform(0, 100, (n_stages, 39)))
    stages[:, SCHEDULE_FEATURES.index("points_computed_minimum")] = size
    stages[:, SCHEDULE_FEATURES.index("points_computed_total")] = size * (1 + schedule)
    stages[:, 39:] = np.random.default_rng(program).integers(0, 3, (n_stages, 287))
    return stages


def sample_bytes(stages, runtime_ms, program_id=0, schedule_id=0):
    return np.asarray(stages, "<f4").tobytes() + struct.pack("<fii", runtime_ms, program_id, schedule_id)


def json_tree(runtime_ms=2.0, schedule=0):
    """A dump of `blur`, with an update, reading `input`'s wrapper: pure stage first within a Func, as the real ones have it."""

    def node(name, add):
        ops = [f"      {op}:   {add if op == 'add' else 0}" for op in OPS]
        return {"Name": name, "Details": {"Op histogram": ops, "Memory access patterns": ["      Pointwise:      1 0 0 1"] * 4}}

    def stage(name, points):
        features = {feature: float(schedule + i) for i, feature in enumerate(SCHEDULE_FEATURES)}
        return {"Name": name, "Details": {"scheduling_feature": features | {"points_computed_minimum": float(points)}}}

    stages = [stage("output", 10), stage("blur", 20), stage("blur.update(0)", 30), {"name": "total_execution_time_ms", "value": runtime_ms}]
    return {"programming_details": {"Nodes": [node("output", 1), node("blur", 5)], "Edges": []}, "scheduling_data": stages}


# Scripts run in processes that have these loaded already: importing them takes longer than most of what is tested.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "torch",
        "pandas",
        "sklearn.ensemble",
        "scipy.stats",
        "matplotlib.pyplot",
        "pydantic_settings",
        "joblib",
        "pytest",
        "measuring.warm_up",
        "measuring.collection",
    ]
)


def run(script, *arguments, cwd=ROOT, check=True):
    """Run a script as a user does; returns the finished process."""
    arguments = [str(ROOT / script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = PROCESSES.Process(target=_run_here, args=(arguments, cwd, outputs))
        process.start()
        process.join(250)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{arguments} takes too long")
        done = subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in outputs))
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    return done


def _run_here(arguments, cwd, outputs):
    for descriptor, path in zip((1, 2), outputs):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        threading._shutdown()  # as the interpreter does when it ends, and multiprocessing does not
        atexit._run_exitfuncs()


def expect_user_error(done, *words):
    """Exit code 2 and one line on standard error that holds `words`."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def write_json(path, tree):
    path.write_text(json.dumps(tree))


def parse(data, name="x.sample", **options):
    return parse_dump(Dump(name, "c", data=data, **options), max_runtime_ms=1e5)


@pytest.fixture
def blur(tmp_path):
    path = tmp_path / "blur.py"
    path.write_text(BLUR)
    return find_programs(path)[0]


# Small and quick, with enough programs in every split; on the CPU, whose results are the same each time, also where there is a GPU.
SMALL = [
    "--val_fraction=0.3", "--test_fraction=0.3", "--epochs=3", "--embed_size=8", "--hidden_size=8", "--members=2", "--bootstrap_samples=20",
    "--num_threads=1", "--device=cpu",
]  # fmt: skip


def flags(folder, raw=None):
    return [f"--raw_path={raw or folder / 'raw'}", f"--data_path={folder / 'data'}", f"--run_path={folder / 'run'}", *SMALL]


def meta_of(folder):
    return orjson.loads((folder / "data" / "meta.json").read_bytes())


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which all three scripts have run once."""
    folder = tmp_path_factory.mktemp("trained")
    for program in range(26):
        collection = folder / "raw" / ("applications" if program >= 24 else "random") / str(program)
        collection.mkdir(parents=True)
        for schedule in range(4):
            stages = make_stages(program, schedule, n_stages=2 + program % 4)
            (collection / f"{schedule}.sample").write_bytes(sample_bytes(stages, 0.1 * (1 + program) * (1 + schedule)))
            counts = {"body_cycles": [1000 * (1 + program) * (1 + schedule)] * len(stages)}
            (collection / f"{schedule}.lowered.json").write_text(json.dumps(counts))
    outputs = [run(script, *flags(folder)).stdout for script in ("generate_dataset.py", "train_model.py", "evaluate_model.py")]
    return folder, outputs
