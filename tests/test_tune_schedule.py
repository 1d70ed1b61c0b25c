"""Tuning with the real Halide: a small Generator, few measurements, the shipped model."""

import dataclasses
import importlib.util
import math
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import halide as hl
import numpy as np
import orjson
import pytest
import torch
from conftest import BLUR, ROOT, expect_user_error, run
from html_pages import Page, visit

import train_utils
from config import usable_cores
from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from features import SCHEDULE_FEATURES, STAGE_BYTES, featurize
from halide_tools import schedules
from halide_tools.autoschedulers import LIBRARIES, Proposal, load_autoscheduler
from halide_tools.mutations import KINDS
from halide_tools.programs import find_programs
from measuring.machine import QUICK
from measuring.processes import Edit
from tuning import results
from tuning.pool import COUNTED_SHARE, Pool, read_measured
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


NUMBER = re.compile(r"_\d+\b")  # behind a Func's name where this process built the program before


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    (folder / "generators.py").write_text(GENERATORS)
    flags = [
        folder / "generators.py",
        "--generator=narrow_blur",
        "--budget=8",
        "--proposals=24",
        "--protocol=quick",
        f"--output={folder / 'out, für C'}",
        "--compare=true",
    ]
    return folder, flags, run("tune_schedule.py", *flags)


def output_of(tuned):
    return tuned[0] / "out, für C"


def report_of(tuned):
    return orjson.loads((output_of(tuned) / "report.json").read_bytes())


def spec_of(tuned):
    return find_programs(tuned[0] / "generators.py", "narrow_blur")[0]


def test_tuning_finds_measures_and_builds_a_schedule(tuned):
    folder, flags, done = tuned
    out, report = output_of(tuned), report_of(tuned)
    assert report["measured"] <= 8 < report["proposed"]
    assert set(report["rivals"]) == {"mullapudi2016", "li2018", "random", "random_changes", "adams2019_retrained"}
    assert all(rival["best_ms"] > 0 for rival in report["rivals"].values())
    assert report["search"] == sorted(report["search"], reverse=True) and len(report["search"]) == report["measured"]
    assert (out / "search.png").stat().st_size > 1000
    assert report["background"] >= 0 and report["threads"] >= 1 and report["protocol"] == "quick"
    assert report["changed"]["tried"] >= 40 > sum(report["changed"]["failed"].values())
    assert report["inputs"]["image"]["contents"].startswith("random") and report["inputs"]["gain"]["contents"] == "its estimate"
    assert all(1 <= n <= 256 for extents in report["minimum_extents"] for n in extents)

    link = folder / "link"  # without a comma, which separates paths in raw_path
    link.symlink_to(out)
    dumps = list(iter_dumps(str(link / "measurements")))
    schedules = [parse_dump(dump, 1e5) for dump in dumps]
    assert len(schedules) >= report["measured"] and len({(s.program, s.instance) for s in schedules}) == 1
    assert all(s.lowered is not None for s in schedules) and {dump.collection for dump in dumps} == {"measurements"}
    assert {"mutated", "hand_written", "mullapudi2016"} <= {s.origin for s in schedules}


def test_the_page_shows_what_the_report_holds(tuned):
    out, report = output_of(tuned), report_of(tuned)
    record = orjson.loads((out / "measurements" / "narrow_blur" / "program.json").read_bytes())
    page, explained, winner = Page((out / "report.html").read_text()), report["explained"], report["best"]["key"]
    assert not explained["left_out"], explained["left_out"]
    for ms in (report["best_ms"], report["adams2019_ms"], report["hand_written_ms"]):
        assert f"{ms:.4g} ms" in page.text
    assert f"{report['speedup']:.4g} times as fast" in page.text and report["target"] in page.text
    assert page.table("origin", "times it was the fastest so far") and all(table["sortable"] for table in page.tables)
    assert sum(row[1] for row in page.table("origin", "times it was the fastest so far")) == report["measured"]
    measured = {k: c["runtime_ms"] for k, c in record["candidates"].items() if k.isdecimal() and "runtime_ms" in c}
    assert {str(int(row[0])): row[2] for row in page.table("schedule", "measured, ms")} == measured
    assert {row[0]: row[2] for row in page.table("rival")} == {name: rival["best_ms"] for name, rival in report["rivals"].items()}
    assert set(explained["loop_nests"]) == set(explained["profile"]) == {"0", winner}
    assert all(nest.strip() in page.text and "produce" in nest for nest in explained["loop_nests"].values())
    assert {row[0] for row in page.table("Func")} >= set(explained["profile"][winner])
    assert (out / "best.schedule.h").read_text() in page.text
    assert (explained["undone"] is not None) == (report["origin"] == "mutated")
    if undone := explained["undone"]:
        assert [row[1] for row in page.table("without")] == [line["ms"] for line in undone["changes"][:3]]
    assert len(visit(out / "report.html")["figures"]) == 3


def test_the_reported_times_are_of_runs_that_chose_nothing(tuned):
    """The medians are those of the last runs, of which the record has more: the sets before, that the winner was chosen and checked on."""
    out, report = output_of(tuned), report_of(tuned)
    record = orjson.loads((out / "measurements" / "narrow_blur" / "program.json").read_bytes())
    winner = report["best"]["key"]
    for key, ms in ((winner, report["best_ms"]), ("0", report["adams2019_ms"])):
        runs = [r["runtime_ms"] for r in record["fresh_runs"][key]]
        assert report["runs_ms"][key] == runs[-len(report["runs_ms"][key]) :] and ms == np.median(report["runs_ms"][key])
        assert len(runs) > len(report["runs_ms"][key])
    assert report["speedup"] == report["adams2019_ms"] / report["best_ms"] and f"{report['speedup']:.2f} x" in tuned[2].stdout


def test_going_on_measures_nothing_twice_and_forgets_nothing(tuned):
    flags = [flag for flag in tuned[1] if not re.match("--(budget|compare)", str(flag))]
    path = output_of(tuned) / "measurements" / "narrow_blur" / "program.json"

    def read():
        record = orjson.loads(path.read_bytes())
        return {k: c for k, c in record["candidates"].items() if k.isdecimal()}, record["fresh_runs"], report_of(tuned)

    candidates, runs, report = read()
    run("tune_schedule.py", *flags, f"--budget={report['measured'] + 2}", "--keep_extents=false")
    more_candidates, more_runs, larger = read()
    assert {k: more_candidates[k] for k in candidates} == candidates
    assert larger["search"][: report["measured"]] == report["search"]
    assert report["measured"] < larger["measured"] <= report["measured"] + 2
    fastest = min((k for k, c in more_candidates.items() if "runtime_ms" in c), key=lambda k: more_candidates[k]["runtime_ms"])
    again = {key for key in more_runs if len(more_runs[key]) > len(runs.get(key, []))}
    assert {report["best"]["key"], "0", fastest} <= again, "the earlier answer and the fastest ever measured are among the finalists"


def test_another_program_protocol_or_thread_count_is_refused_and_nothing_touched(tuned, tmp_path):
    folder, flags, _ = tuned
    out = output_of(tuned)

    def contents():
        return {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    before, threads = contents(), report_of(tuned)["threads"]
    edited = tmp_path / "generators.py"
    edited.write_text(GENERATORS.replace("(0, 256), (0, 256)", "(0, 128), (0, 256)"))
    others = [flag for flag in flags[1:] if "generator" not in str(flag)]
    mistakes = [
        ([edited, "--generator=narrow_blur", *others], ["another program"]),
        ([*flags, f"--num_threads={threads + 1}"], [f"threads {threads}, here {threads + 1}"]),
        ([*flags, "--protocol=careful"], ["protocol quick, here careful"]),
        ([folder / "generators.py", "--generator=narrow_blur", f"--output={tmp_path}"], ["something else"]),
    ]
    with ThreadPoolExecutor(2) as both_cores:
        answers = both_cores.map(lambda mistake: run("tune_schedule.py", *mistake[0], check=False), mistakes)
        for done, (_, words) in zip(answers, mistakes):
            expect_user_error(done, *words)
    assert contents() == before


def apply_again(spec, autoscheduler, parameters, folder):
    os.chdir(folder)  # Halide aborts where a weights_path has a space in it
    load_autoscheduler(autoscheduler)
    pipeline = spec.build()
    unscheduled = schedules.read(pipeline)
    pipeline.apply_autoscheduler(hl.get_host_target(), hl.AutoschedulerParams(autoscheduler, parameters))
    return schedules.read(pipeline, unscheduled).to_json()


def applied_again(tuned, best, folder):
    """The Schedule that `best` of a report in `folder` says, from a process of its own: what aborts there does not take the tests along."""
    task = apply_again, spec_of(tuned), best["autoscheduler"], best["autoscheduler_params"], folder
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return schedules.Schedule.from_json(process.submit(*task).result())


def test_the_best_schedule_can_be_applied_again_and_linked(tuned, tmp_path):
    out, best = output_of(tuned), report_of(tuned)["best"]
    if best["autoscheduler_params"]:  # there are none where the author's own schedule has won
        record = orjson.loads((out / "measurements" / "narrow_blur" / "program.json").read_bytes())
        assert applied_again(tuned, best, out) == schedules.Schedule.from_json(record["candidates"][best["key"]]["schedule"])

    if shutil.which("g++"):
        (tmp_path / "main.cpp").write_text(MAIN)
        include = LIBRARIES.parent / "include"
        subprocess.run(
            ["g++", "-std=c++17", f"-I{include}", f"-I{out}", "main.cpp", out / "narrow_blur.a", "-o", "main", "-lpthread", "-ldl"],
            cwd=tmp_path,
            check=True,
        )
        assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout == "9\n"  # 3 x 3 x 2 / 2


def test_another_autoscheduler_may_win(tuned, tmp_path):
    spec = spec_of(tuned)
    run = TuningRun(spec, tmp_path / "measurements", 60, QUICK)
    run.measure(run.others[:1])
    for stale in ("best.weights", "mine.txt"):
        (tmp_path / stale).write_text("of an earlier search")
    best, no_library = results.build_best(run, run.others[0], tmp_path)
    run.end()
    assert best["autoscheduler"] == "Mullapudi2016" and "weights_path" not in best["autoscheduler_params"] and not no_library
    assert (tmp_path / "narrow_blur.a").exists() and not (tmp_path / "best.weights").exists() and (tmp_path / "mine.txt").exists()
    kept = schedules.Schedule.from_json(run.outcomes[run.others[0]]["schedule"])
    assert applied_again(tuned, best, tmp_path) == kept
    check_headers(tmp_path, "narrow_blur")


def check_headers(folder, name):
    """What a C++ Generator includes compiles, and the schedule's function has this name."""
    if shutil.which("g++"):
        include, file = LIBRARIES.parent / "include", folder / "user.cpp"
        call = f"void use(Halide::Pipeline p, Halide::Target t) {{ apply_schedule_{name}(p, t); }}\n"
        file.write_text(f'#include "best.schedule.h"\n#include "{name}.h"\n{call}')
        subprocess.run(["g++", "-std=c++17", "-fsyntax-only", f"-I{include}", "user.cpp"], cwd=folder, check=True)
        file.unlink()


def test_the_python_module_gives_the_schedule_that_was_measured(tuned):
    """As code: what the winner's schedule lowers to, and what apply(pipeline) of best_schedule.py does to a fresh pipeline."""
    spec, out = spec_of(tuned), output_of(tuned)
    loader = importlib.util.spec_from_file_location("best_schedule", out / "best_schedule.py")
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    pipeline = spec.build()
    module.apply(pipeline)
    record = orjson.loads((out / "measurements" / "narrow_blur" / "program.json").read_bytes())
    measured = spec.build()
    schedules.Schedule.from_json(record["candidates"][report_of(tuned)["best"]["key"]]["schedule"]).apply(measured)
    assert schedules.read(pipeline) == schedules.read(measured)


def test_any_name_gives_files_that_a_compiler_takes(tmp_path):
    name = "imaging::höhe"
    (tmp_path / "generators.py").write_text(GENERATORS.replace('name="blur"', f"name={name!r}"))
    spec = find_programs(tmp_path / "generators.py", name)[0]
    run = TuningRun(spec, tmp_path / "measurements", 60, QUICK)
    run.measure([run.key(Proposal.draw(1, 0))])
    best, no_library = results.build_best(run, run.measured()[0], tmp_path)
    run.end()
    assert not no_library and re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", best["header"].removesuffix(".h"))
    check_headers(tmp_path, best["header"].removesuffix(".h"))


FLOATS = """
import halide as hl

def build():
    x, y = hl.vars("x y")
    image = hl.ImageParam(hl.Float(32), 2, "image")
    across, out = hl.Func("across"), hl.Func("out")
    across[x, y] = hl.sqrt(image[x, y]) + hl.sqrt(image[x + 1, y]) + hl.sqrt(image[x + 2, y])
    out[x, y] = (across[x, y] + across[x, y + 1] + across[x, y + 2]) * hl.f32(0.3)
    out.set_estimates([(0, 1024), (0, 1024)])
    return hl.Pipeline(out)
"""


AVX = re.compile(r"%[yz]mm|\tv[a-z0-9]+ +.*%xmm")  # instructions that an older processor has not


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs a target of x86-64 that is not this machine's")
@pytest.mark.parametrize("threads, target", [(1, "x86-64-linux-sse41"), (2, "host")])
def test_threads_and_target_hold_for_schedules_code_measurements_and_records(tmp_path, threads, target):
    (tmp_path / "floats.py").write_text(FLOATS)
    out, resolved = tmp_path / "out", str(hl.Target(target))
    flags = ["--budget=2", "--proposals=6", "--protocol=quick", f"--num_threads={threads}", f"--target={target}"]
    run("tune_schedule.py", tmp_path / "floats.py", *flags, f"--output={out}")
    folder = out / "measurements" / "floats"
    report, note, record = (
        orjson.loads(path.read_bytes()) for path in (out / "report.json", folder.parent / "collection.json", folder / "program.json")
    )

    # Schedules: loops are parallel where there are threads for it, and vectors as long as the target has them.
    measured = {key: c for key, c in record["candidates"].items() if key.isdecimal() and c["outcome"] == "measured"}
    parallel = {key: ".parallel(" in (folder / f"{key.zfill(3)}.schedule.h").read_text() for key in measured}
    assert parallel["0"] == (threads > 1) and (threads > 1 or not any(parallel.values()))
    assert report["best"]["autoscheduler_params"].get("parallelism", str(threads)) == str(threads)  # a changed schedule has none
    column = SCHEDULE_FEATURES.index("native_vector_size")
    for dump in folder.glob("*.sample"):
        stages = np.frombuffer(dump.read_bytes()[:-12], "<f4").reshape(-1, STAGE_BYTES // 4)
        assert (stages[:, column] == hl.Target(target).natural_vector_size(hl.Float(32))).all(), (
            "the featurization was made for another target"
        )

    # Code: wide registers and calls of the thread pool where they were asked for, and nowhere else.
    if shutil.which("objdump"):
        listing = subprocess.run(["objdump", "-dr", out / "floats.a"], capture_output=True, text=True, check=True).stdout
        assert bool(AVX.search(listing)) == ("avx" in resolved), "Halide's runtime is for the same target, too"
        sections = listing.split("Disassembly of section ")
        code = "".join(section for section in sections if "floats" in section.partition("\n")[0])
        assert bool(re.search(r"\tvsqrtps .*%[yz]mm", code)) == ("avx" in resolved) and re.search(r"\tv?sqrtps ", code)
        assert ("halide_do_par_for" in code) == parallel[report["best"]["key"]]

    # Measurements.
    assert all(c["cpu_share"] < 1.2 for key, c in measured.items() if not parallel[key]), "it ran on more threads than asked for"
    shares = [c["cpu_share"] for key, c in measured.items() if parallel[key]]
    if threads > 1 and usable_cores() > 1 and report["background"] < 0.1:  # else others may have left one core
        assert max(shares) > 1.2, "it ran on one thread"  # of one quick pass the system may run both threads on one core

    # Records, and what is read of them with the measurements.
    for said in (report, note, note["machine"], record):
        assert (said["threads"], said["target"]) == (threads, resolved)
    dumps = [dump for dump in iter_dumps(str(out / "measurements")) if dump.file.endswith(".sample")]
    assert {(dump.machine["threads"], dump.machine["target"]) for dump in dumps} == {(threads, resolved)}


HAND_SCHEDULED = BLUR.replace(
    "    out.set_estimates",
    '    xi = hl.Var("xi")\n    out.split(x, x, xi, 16).vectorize(xi)\n    blur.compute_at(out, y)\n    out.set_estimates',
)


def test_the_authors_schedule_is_measured_and_can_be_the_answer(tmp_path):
    (tmp_path / "scheduled.py").write_text(HAND_SCHEDULED)
    spec = find_programs(tmp_path / "scheduled.py")[0]
    run = TuningRun(spec, tmp_path / "measurements", 60, QUICK)
    run.measure(run.baselines())
    assert len(run.baselines()) == 2 == len(run.measured()), run.outcomes
    best, no_library = results.build_best(run, run.hand_written, tmp_path)
    assert not no_library and best["autoscheduler"] == "hand_written" and run.outcomes[run.hand_written]["origin"] == "hand_written"
    assert "vectorize" in (tmp_path / "best.schedule.h").read_text() and "vectorize" in (tmp_path / "best_schedule.py").read_text()
    check_headers(tmp_path, "scheduled")
    [dump] = [d for d in iter_dumps(str(tmp_path / "measurements")) if d.file.endswith(".schedule.json")]
    schedule = parse_dump(dump, 1e5)
    assert schedule.origin == "hand_written" and schedule.runtime_ms == run.runtime_ms(run.hand_written) and schedule.lowered[:, 0].all()
    again = TuningRun(spec, tmp_path / "measurements", 60, QUICK)
    assert again.measure_again(again.baselines(), 1).keys() == set(again.baselines()), "neither is searched for once more"
    assert not again.not_restored
    for finished in (run, again):
        finished.end()


def test_an_authors_schedule_that_can_not_be_built_is_no_end(tmp_path):
    spec = find_programs(ROOT / "tests" / "difficult_pipelines.py", "wrong_directive")[0]
    run = TuningRun(spec, tmp_path / "measurements", 60, QUICK)
    run.measure([run.hand_written, run.key(Proposal.draw(1, 0))])
    assert len(run.measured()) == 1 and run.hand_written not in run.measured()
    assert "has no attribute 'vectorise'" in run.describe(run.hand_written), run.outcomes
    run.end()


REFUSED = """
from pathlib import Path
import halide as hl

def build():
    pipeline = hl.deserialize_pipeline(str(Path(__file__).with_suffix(".hlpipe")))
    for d in range(2):
        pipeline.outputs()[0].output_buffers()[0].dim(d).set_estimate(0, 256)
    return pipeline
"""


def write_refused(folder):
    """A program with a schedule in it that can't be left out, so that no autoscheduler takes it."""
    x, y, xi = hl.vars("x y xi")
    f = hl.Func("f")
    f[x, y] = hl.f32(x * y)
    f.split(x, x, xi, 16)
    hl.serialize_pipeline(hl.Pipeline(f), str(folder / "refused.hlpipe"))
    (folder / "refused.py").write_text(REFUSED)
    return folder / "refused.py"


def test_a_program_that_no_autoscheduler_takes_gets_one_line_in_halides_words(tmp_path):
    file, out = write_refused(tmp_path), tmp_path / "out"
    done = run("tune_schedule.py", file, "--proposals=1000", "--protocol=quick", f"--output={out}", check=False)
    expect_user_error(done, "refused.py", "3 halide_error", "scheduling directive(s) applied")
    assert not (out / "report.json").exists() and "(8 halide_error)" in done.stdout, "a thousand proposals have been tried"
    collected = tmp_path / "collected"
    done = run("collect_schedules.py", f"--pipeline={file}", "--schedules=100", "--protocol=quick", f"--output={collected}", check=False)
    expect_user_error(done, "no schedule of refused", "halide_error", "scheduling directive(s) applied")
    assert "0 schedules" not in done.stdout
    record = orjson.loads((collected / "refused" / "program.json").read_bytes())
    assert len(record["candidates"]) < 10


def test_the_authors_schedule_is_the_answer_where_no_autoscheduler_has_one(tmp_path):
    file, out = write_refused(tmp_path), tmp_path / "out"
    file.write_text(REFUSED.replace("    return", "    pipeline.outputs()[0].parallel(hl.Var('y'))\n    return"))
    done = run("tune_schedule.py", file, "--proposals=6", "--protocol=quick", f"--output={out}")
    report = orjson.loads((out / "report.json").read_bytes())
    assert report["origin"] == "hand_written" and report["best_ms"] == report["hand_written_ms"] > 0 and report["measured"] == 0
    assert report["adams2019_ms"] is report["speedup"] is None and "could not be measured" in done.stdout
    assert (out / "search.png").exists() and (out / "refused.a").exists()


def test_a_limit_of_minutes_holds_for_all_of_it(tmp_path, blur):
    """Whatever the machine is busy with: every step gives up in time, and what could be had is the answer."""
    began = time.monotonic()
    flags = ["--budget=50", "--proposals=5000", "--minutes=0.5", "--compile_seconds=1000"]
    done = run("tune_schedule.py", blur.path, *flags, f"--output={tmp_path / 'out'}", check=False)
    assert time.monotonic() - began < 30 + 40, done.stdout  # the imports come before
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    assert "first: Halide's own choice" in done.stdout
    if done.returncode == 0:
        report = orjson.loads((tmp_path / "out" / "report.json").read_bytes())
        assert report["best_ms"] > 0 and 0 <= report["background"] <= 1.1 and report["measured"] < 50


def test_minutes_that_are_over_before_anything_begins_are_said_to_be(tmp_path, blur):
    done = run("tune_schedule.py", blur.path, "--minutes=0.001", f"--output={tmp_path / 'out'}", check=False)
    expect_user_error(done, "--minutes 0.001 were over before blur could be measured")
    assert "blur: for " in done.stdout and "within" not in done.stdout


def test_proposals_that_look_fast_are_lowered_and_predicted_again(tuned, tmp_path):
    spec = spec_of(tuned)
    device = torch.device("cpu")
    pool = Pool(TuningRun(spec, tmp_path / "measurements", 60, QUICK), *train_utils.load_model(train_utils.SHIPPED_MODEL, device), device)
    pool.propose([Proposal.draw(1, k) for k in range(12)])
    at_first = train_utils.predict_sequences(pool.model, featurize([dataclasses.replace(s, lowered=None) for s in pool.schedules]), device)
    at_first = np.array([prediction.log_runtime for prediction in at_first])
    counted = [i for i, schedule in enumerate(pool.schedules) if schedule.lowered is not None]
    assert sorted(np.argsort(at_first)[: math.ceil(len(pool.keys) * COUNTED_SHARE)]) == counted and len(pool.keys) > 4
    changed = ~np.isclose(pool.log_predicted, at_first, atol=1e-4)
    assert changed[counted].all() and changed.sum() == len(counted)


def test_a_change_is_told_as_its_schedule_is_measured(tuned, tmp_path):
    """What is predicted of a changed schedule is what its own process finds."""
    device = torch.device("cpu")
    run_ = TuningRun(spec_of(tuned), tmp_path / "measurements", 60, QUICK)
    pool = Pool(run_, *train_utils.load_model(train_utils.SHIPPED_MODEL, device), device)
    run_.measure(["0"])
    pool.add([found for key in run_.measured() for found in read_measured(run_, key)])
    pool.change([Edit(run_.outcomes["0"]["schedule"], "0", 2, seed, tuple(dict.fromkeys(KINDS, 1.0).items())) for seed in range(8)])
    assert len(pool.keys) > 3 and pool.edited == 8 and np.isfinite(pool.log_predicted).all()
    told = dict(zip(pool.keys, pool.schedules))
    changed = pool.keys[1:3]
    run_.measure(changed)
    run_.end()
    for key in changed:
        assert run_.outcomes[key]["outcome"] == "measured" and run_.outcomes[key]["edit_of"] == "0", run_.outcomes[key]
        [(proposal, found)] = read_measured(run_, key)
        assert proposal == run_.proposals[key] and found.origin == "mutated"
        assert found.instance == told[key].instance
        assert np.allclose(found.lowered, told[key].lowered, rtol=1e-3, atol=0.5)  # dumps keep whole numbers of four digits


@pytest.mark.parametrize("ms", [1e-4, 0.1704, 5e4])
def test_equal_runtimes_are_drawn_without_a_warning(tmp_path, ms):
    measured = {"lstm": ["0", "1", "2"], "random": [], "li2018": ["4"]}
    outcomes = {key: {"origin": "adams2019"} for key in "01234"}
    drawn = SimpleNamespace(runtime_ms=lambda key: ms, baselines=lambda: ["0"], outcomes=outcomes, spec=SimpleNamespace(name="p"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.plot_search(tmp_path / "search.png", drawn, measured)
    assert (tmp_path / "search.png").stat().st_size > 1000


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
