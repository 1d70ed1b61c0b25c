"""Tuning with the real Halide: a small Generator, few measurements, the shipped model."""

import dataclasses
import math
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import halide as hl
import numpy as np
import orjson
import pytest
import torch
from conftest import expect_user_error, run

import train_utils
from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from features import featurize
from halide_tools.autoschedulers import LIBRARIES, Proposal, load_autoscheduler
from halide_tools.programs import find_programs
from tuning import results
from tuning.pool import COUNTED_SHARE, Pool
from tuning.run import TuningRun

GENERATORS = """
import halide as hl

x, y = hl.vars("x y")


@hl.alias(narrow_blur={"taps": 3})
@hl.generator(name="blur")
class Blur:
    taps = hl.GeneratorParam(5)
    gain = hl.InputScalar(hl.Float(32))
    image = hl.InputBuffer(hl.Float(32), 2)
    result = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        across, down = hl.Func("across"), hl.Func("down")
        across[x, y] = sum((self.image[x + i, y] for i in range(1, self.taps)), self.image[x, y])
        down[x, y] = sum((across[x, y + i] for i in range(1, self.taps)), across[x, y])
        self.result[x, y] = down[x, y] * self.gain
        self.gain.set_estimate(0.25)
        self.image.set_estimates([(0, 300), (0, 300)])
        self.result.set_estimates([(0, 256), (0, 256)])
        if not self.using_autoscheduler():
            across.compute_root()


@hl.generator(name="without_estimates")
class WithoutEstimates:
    image = hl.InputBuffer(hl.Float(32), 2)
    result = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        self.result[x, y] = self.image[x, y] + 1.0


@hl.generator(name="raising")
class Raising:
    result = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        raise KeyError("no such thing")
"""

MAIN = """
#include <cstdio>
#include <vector>
#include "HalideBuffer.h"
#include "narrow_blur.h"

int main() {
    Halide::Runtime::Buffer<float, 2> image(300, 300), result(256, 256);
    image.fill(2.0f);
    if (narrow_blur(0.5f, image, result)) return 1;
    std::printf("%g\\n", result(100, 100));
}
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    (folder / "generators.py").write_text(GENERATORS)
    flags = [
        folder / "generators.py",
        "--generator=narrow_blur",
        "--budget=8",
        "--proposals=24",
        f"--output={folder / 'out'}",
        "--compare=true",
    ]
    return folder, flags, run("tune_schedule.py", *flags)


def test_tuning_finds_measures_and_builds_a_schedule(tuned):
    folder, flags, done = tuned
    out = folder / "out"
    report = orjson.loads((out / "report.json").read_bytes())
    assert report["measured"] <= 8 < report["proposed"] and report["speedup"] == pytest.approx(report["adams2019_ms"] / report["best_ms"])
    assert report["speedup"] >= 1 and f"{report['speedup']:.2f} x" in done.stdout
    assert set(report["rivals"]) == {"mullapudi2016", "li2018", "random", "adams2019_retrained"}
    assert all(rival["best_ms"] > 0 for rival in report["rivals"].values())
    assert report["search"] == sorted(report["search"], reverse=True) and len(report["search"]) == report["measured"]
    assert (out / "search.png").stat().st_size > 1000

    dumps = list(iter_dumps(str(out)))
    schedules = [parse_dump(dump, 1e5) for dump in dumps if dump.file.endswith(".sample")]
    assert len(schedules) >= report["measured"] and len({s.program for s in schedules}) == 1
    assert all(s.lowered is not None for s in schedules)
    assert {dump.collection for dump in dumps if dump.file.endswith(".sample")} == {"measurements"}

    again = run("tune_schedule.py", *flags)  # everything is measured already, but for the comparison at the end
    assert orjson.loads((out / "report.json").read_bytes())["search"] == report["search"], again.stdout


def test_the_best_schedule_can_be_applied_again_and_linked(tuned, tmp_path):
    folder, _, _ = tuned
    out = folder / "out"
    best = orjson.loads((out / "report.json").read_bytes())["best"]
    parameters = best["autoscheduler_params"] | (
        {"weights_path": str(out / "best.weights")} if "weights_path" in best["autoscheduler_params"] else {}
    )
    spec = next(spec for spec in find_programs(folder / "generators.py") if spec.name == "narrow_blur")
    load_autoscheduler(best["autoscheduler"])
    applied = spec.build().apply_autoscheduler(hl.get_host_target(), hl.AutoschedulerParams(best["autoscheduler"], parameters))
    assert applied.schedule_source in (out / "best.schedule.h").read_text()

    if shutil.which("g++"):
        (tmp_path / "main.cpp").write_text(MAIN)
        include = LIBRARIES.parent / "include"
        subprocess.run(
            ["g++", "-std=c++17", f"-I{include}", f"-I{out}", "main.cpp", out / "narrow_blur.a", "-o", "main", "-lpthread", "-ldl"],
            cwd=tmp_path,
            check=True,
        )
        # A C++ Generator can include the schedule and apply it.
        (tmp_path / "user.cpp").write_text(
            '#include "best.schedule.h"\nvoid use(Halide::Pipeline p, Halide::Target t) { apply_schedule_narrow_blur(p, t); }\n'
        )
        subprocess.run(["g++", "-std=c++17", "-fsyntax-only", f"-I{include}", f"-I{out}", "user.cpp"], cwd=tmp_path, check=True)
        assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout == "9\n"  # 3 x 3 x 2 / 2


def test_another_autoscheduler_may_win(tuned, tmp_path):
    spec = next(spec for spec in find_programs(tuned[0] / "generators.py") if spec.name == "narrow_blur")
    run = TuningRun(spec, tmp_path / "measurements", 60)
    run.measure(run.others[:1])
    (tmp_path / "best.weights").write_text("of an earlier search")
    best = results.build_best(run, run.others[0], tmp_path)
    assert best["autoscheduler"] == "Mullapudi2016" and "weights_path" not in best["autoscheduler_params"]
    assert (tmp_path / "narrow_blur.a").exists() and not (tmp_path / "best.weights").exists()
    load_autoscheduler(best["autoscheduler"])
    parameters = hl.AutoschedulerParams(best["autoscheduler"], best["autoscheduler_params"])
    applied, kept = (
        spec.build().apply_autoscheduler(hl.get_host_target(), parameters).schedule_source,
        (tmp_path / "best.schedule.h").read_text(),
    )
    number = re.compile(r"_\d+\b")  # behind a Func's name where this process built the program before
    assert number.sub("", applied) in number.sub("", kept)
    if shutil.which("g++"):
        (tmp_path / "user.cpp").write_text(
            '#include "best.schedule.h"\nvoid use(Halide::Pipeline p, Halide::Target t) { apply_schedule_narrow_blur(p, t); }\n'
        )
        include = LIBRARIES.parent / "include"
        subprocess.run(["g++", "-std=c++17", "-fsyntax-only", f"-I{include}", "user.cpp"], cwd=tmp_path, check=True)


def test_proposals_that_look_fast_are_lowered_and_predicted_again(tuned, tmp_path):
    spec = next(spec for spec in find_programs(tuned[0] / "generators.py") if spec.name == "narrow_blur")
    device = torch.device("cpu")
    pool = Pool(TuningRun(spec, tmp_path / "measurements", 60), *train_utils.load_model(train_utils.SHIPPED_MODEL, device), device)
    pool.propose([Proposal.draw(1, k) for k in range(12)])
    at_first = train_utils.predict_sequences(pool.model, featurize([dataclasses.replace(s, lowered=None) for s in pool.schedules]), device)
    at_first = np.array([log_predicted for log_predicted, _, _ in at_first])
    counted = [i for i, schedule in enumerate(pool.schedules) if schedule.lowered is not None]
    assert sorted(np.argsort(at_first)[: math.ceil(len(pool.keys) * COUNTED_SHARE)]) == counted and len(pool.keys) > 4
    changed = ~np.isclose(pool.log_predicted, at_first, atol=1e-4)
    assert changed[counted].all() and changed.sum() == len(counted)


def test_variations_are_reproducible_and_near():
    parent = Proposal(sigma=0.3, dropout=1, beam_size=1, seed=5)
    child = parent.varied(np.random.default_rng(0))
    assert child == parent.varied(np.random.default_rng(0)) == Proposal.from_record(orjson.loads(orjson.dumps(vars(child))))
    far = Proposal(sigma=0.3, dropout=1, beam_size=1, seed=6)

    def distance(other):
        return sum(float(((a - b) ** 2).sum()) for a, b in zip(parent.weights(), other.weights()))

    assert 0 < distance(child) < distance(far)


def test_mistakes_get_one_clear_line(tmp_path):
    (tmp_path / "generators.py").write_text(GENERATORS)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    file, output = tmp_path / "generators.py", f"--output={tmp_path / 'out'}"
    mistakes = [
        ([file, "--budget=0"], ["budget", "0"]),
        ([tmp_path / "none.py"], ["none.py", "no such file"]),
        ([tmp_path / "broken.py"], ["nothing_of_that_name"]),
        ([file], ["narrow_blur", "raising"]),
        ([file, "--generator=blurr"], ["blurr", "narrow_blur"]),
        ([file, "--generator=without_estimates"], ["without_estimates", "estimates"]),
        ([file, "--generator=raising"], ["raising", "no such thing"]),
    ]
    with ThreadPoolExecutor(2) as both_cores:
        answers = both_cores.map(lambda mistake: run("tune_schedule.py", *mistake[0], output, check=False), mistakes)
        for done, (_, words) in zip(answers, mistakes):
            expect_user_error(done, *words)
