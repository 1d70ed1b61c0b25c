"""Measuring with the real Halide: small programs, few schedules."""

import itertools
import signal
import subprocess
import sys
import tarfile
import time

import halide as hl
import numpy as np
import orjson
import pytest
from conftest import ROOT, expect_user_error, run
from distributed import LocalCluster

import collect_schedules
import collection
import data_utils
import halide_utils
import machine
from candidate import Candidate
from collection import Plan
from features import STAGE_BYTES
from halide_utils import ProgramSpec, Proposal
from pipelines import random_programs

BLUR = '''
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
'''


@pytest.fixture
def blur(tmp_path):
    path = tmp_path / "blur.py"
    path.write_text(BLUR)
    return halide_utils.programs_in(path)[0]


def test_the_shipped_weights_are_found():
    weights = halide_utils.baseline_weights()
    assert [w.shape[0] for w in weights] == [np.prod(s) for s in halide_utils.WEIGHT_SHAPES]
    assert all(np.isfinite(w).all() and w.std() > 0 for w in weights)


def test_equal_proposals_give_equal_schedules_and_others_differ(blur):
    def apply(k):
        return Proposal.draw(1, k).apply(blur.build())

    featurization, source = apply(0)
    assert featurization == apply(0)[0] and len(featurization) == 2 * STAGE_BYTES and ".compute_root()" in source
    assert len({apply(k)[0] for k in range(8)}) > 2


def test_a_compiled_schedule_computes_what_the_reference_does(blur):
    scheduled, reference = blur.build(), blur.build()
    Proposal.draw(1, 2).apply(scheduled)
    halide_utils.schedule_everything_at_root(reference)
    results = []
    for pipeline in (scheduled, reference):
        program = halide_utils.Program(pipeline)
        program.allocate(seed=3)
        program()
        results.append(program.results())
    assert halide_utils.mismatch(*results) == ""
    assert "100.00%" in halide_utils.mismatch([results[0][0] + 1], results[1])
    one_pass = halide_utils.benchmark(program, 0)
    assert len(one_pass.batch_ms) >= 1 and 0 < one_pass.ms < 1000
    assert sum(one_pass.batch_ms) * one_pass.batch >= 1000 * (halide_utils.PASS_SECONDS - halide_utils.BATCH_SECONDS)


def test_random_programs_are_reproducible_and_of_many_kinds():
    assert len(random_programs.STAGE_KINDS) >= 15
    kinds = set()
    for seed in range(60):
        pipeline, drawn = random_programs.build(seed)
        assert random_programs.build(seed)[1] == drawn
        assert len(halide_utils.functions(pipeline)) >= 2
        kinds.update(drawn)
    assert len(kinds) >= 20


def test_numbers_still_draw_the_programs_that_were_measured():
    with tarfile.open(ROOT / "data" / "raw" / "random_008.tar.xz") as tar:
        records = (orjson.loads(tar.extractfile(member).read()) for member in tar if member.name.endswith("/program.json"))
        for record in itertools.islice(records, 8):
            assert random_programs.build(record["seed"], max_stages=14)[1] == record["stage_kinds"]


def test_numbers_from_rich_from_on_draw_more_reductions():
    def share(first):
        drawn = [kind for seed in range(first, first + 60) for kind in random_programs.build(seed)[1]]
        return sum(kind in ("matmul", "equalize", "channel_mix") for kind in drawn) / len(drawn)

    assert share(random_programs.RICH_FROM) > 1.5 * share(0)


def test_stages_and_edges_are_those_of_the_featurization(blur):
    pipeline = blur.build()
    description = halide_utils.describe_stages(pipeline)
    stages, edges = description["stages"], description["edges"]
    assert [s.split("$")[0] for s in stages] == ["out", "blur"] and [[a.split("$")[0], b.split("$")[0]] for a, b in edges] == [["blur", "out"]]
    for seed in range(6):
        pipeline = random_programs.build(seed)[0]
        description = halide_utils.describe_stages(pipeline)
        stages, edges = description["stages"], description["edges"]
        assert len(Proposal.draw(0, 0).apply(pipeline)[0]) == len(stages) * STAGE_BYTES
        assert {name for edge in edges for name in edge} <= set(stages)


def test_calls_that_features_do_not_tell_apart_are_counted():
    x = hl.Var("x")
    f, g = hl.Func("f"), hl.Func("g")
    f[x] = hl.tanh(hl.f32(x)) + hl.exp(hl.f32(x))
    g[x] = hl.sqrt(f[x]) * hl.sin(f[x]) * hl.cos(f[x + 1])
    g[x] += hl.pow(f[x], 2.5) + hl.log(f[x] / 3) + hl.f32(x % 37 + (x + 5) // 60 + x // 4 + hl.i32(hl.u8(x) / hl.u8(7)))
    g.set_estimates([(0, 100)])
    description = halide_utils.describe_stages(hl.Pipeline(g))
    assert len(description["stages"]) == 3
    calls = description["calls"]
    assert calls == {"sin_cos": [0, 2, 0], "library": [0, 0, 1], "exp": [0, 0, 1], "log": [1, 0, 0], "pow": [1, 0, 0], "sqrt": [0, 1, 0], "int_division": [3, 0, 0]}


def test_applications_build(tmp_path):
    specs = [s for f in sorted((ROOT / "pipelines").glob("*.py")) if f.stem not in ("random_programs",) for s in halide_utils.programs_in(f)]
    assert len(specs) >= 15
    for spec in specs:
        inputs, outputs = halide_utils.estimated_arguments(spec.build())
        assert inputs and outputs


def test_missing_estimates_are_named():
    x = hl.Var("x")
    f = hl.Func("nameless")
    f[x] = hl.cast(hl.Int(32), x)
    with pytest.raises(ValueError, match="nameless.* has no estimates"):
        halide_utils.estimated_arguments(hl.Pipeline(f))


def collected(folder):
    """{program/schedule: outcome} and the sample files of a collection."""
    records = [orjson.loads(p.read_bytes()) for p in sorted(folder.glob("*/program.json"))]
    outcomes = {f"{r['name']}/{k}": c["outcome"] for r in records for k, c in r["candidates"].items()}
    return outcomes, sorted(str(p.relative_to(folder)) for p in folder.rglob("*.sample"))


def test_a_killed_collection_goes_on_and_packs(tmp_path, blur):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [f"--pipeline={blur.path}", "--schedules=3", "--compile_seconds=60"]
    run("collect_schedules.py", *arguments, f"--output={whole}")
    command = [sys.executable, ROOT / "collect_schedules.py", *arguments, f"--output={killed}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(killed.glob("*/*.sample")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    run("collect_schedules.py", *arguments, f"--output={killed}")
    newest = max(path for path in tmp_path.iterdir() if path.name.startswith("killed"))  # killed-2 where the machine became slower meanwhile
    assert collected(newest) == collected(whole) and len(collected(whole)[1]) >= 3

    schedules = [data_utils.parse_dump(d, 1e5) for d in data_utils.iter_dumps(str(whole))]
    assert len({s.schedule for s in schedules}) == 3 and all(len(s.schedule_features) == 2 for s in schedules)
    assert all(len(s.lowered) == 2 and s.lowered[0].any() for s in schedules), "what was counted in the lowered code lies beside each"
    record = orjson.loads((whole / "blur" / "program.json").read_bytes())
    assert record["complete"] and [e[0] for e in record["edges"]] == ["blur"]

    run("collect_schedules.py", *arguments, f"--output={killed}", "--pack=true")
    packed = [data_utils.parse_dump(d, 1e5) for d in data_utils.iter_dumps(f"{newest}.tar.xz")]
    assert len({s.schedule for s in packed}) == 3 and not killed.exists()
    assert sorted(s.lowered.tolist() for s in packed) == sorted(s.lowered.tolist() for s in schedules)
    expect_user_error(run("collect_schedules.py", *arguments, f"--output={killed}", check=False), "never rewritten")


def test_known_schedules_are_measured_again(tmp_path, blur):
    first, again = tmp_path / "first.tar.xz", tmp_path / "again"
    run("collect_schedules.py", f"--pipeline={blur.path}", "--schedules=3", f"--output={tmp_path / 'first'}", "--compile_seconds=60", "--pack=true")
    source, _, known = collect_schedules.known_schedules(str(first))
    assert source == {"pipeline": "blur.py"} and all(k.lowered["stores"] for k in known["blur"].values())

    expect_user_error(run("collect_schedules.py", f"--again={first}", f"--output={again}", check=False), "first.tar.xz", "blur.py", "--pipeline")
    (tmp_path / "other.py").write_text(BLUR)
    expect_user_error(run("collect_schedules.py", f"--again={first}", f"--pipeline={tmp_path / 'other.py'}", check=False), "other.py", "none of the programs")
    run("collect_schedules.py", f"--again={first}", f"--pipeline={blur.path}", f"--output={again}", "--compile_seconds=60")
    outcomes = collected(again)[0]
    assert {key for key in outcomes if not key.endswith("r")} == {f"blur/{key}" for key in known["blur"]} and set(outcomes.values()) == {"measured"}
    before, now = ({s.schedule: s for s in (data_utils.parse_dump(d, 1e5) for d in data_utils.iter_dumps(str(path)) if not d.file.endswith("r.sample"))} for path in (first, again))
    assert before.keys() == now.keys() and len(now) == 3
    for name, schedule in now.items():
        assert np.array_equal(schedule.schedule_features, before[name].schedule_features) and np.array_equal(schedule.lowered, before[name].lowered)
    assert any(schedule.runtime_ms != before[name].runtime_ms for name, schedule in now.items())


def test_a_known_schedule_that_comes_out_otherwise_is_not_measured(tmp_path):
    known = {str(k): collection.Known(Proposal.draw(1, k), f"hash {k}", None) for k in (2, 5, 7)}
    run_ = collection.ProgramRun(ProgramSpec("p", 1), Plan(str(tmp_path), 8, 5.0, {"p": known}))
    assert run_.next_keys() == ["2", "5", "7"]
    for key in run_.next_keys():
        candidate = Scripted(key, [], [])
        candidate.hash = "hash 2" if key == "2" else "another"
        run_.undecided.append(candidate)
    assert [c.key for c in run_.decide_proposals()] == ["5", "7"]
    assert [run_.decided[key]["outcome"] for key in ("5", "7")] == ["changed", "changed"] and "2" not in run_.decided


def test_all_schedules_of_a_shipped_collection_are_known():
    source, seeds, known = collect_schedules.known_schedules(str(ROOT / "data" / "raw" / "random_012.tar.xz"))
    assert source == {"random_programs": {"max_stages": 10}} and len(seeds) >= len(known) == 97
    assert sum(map(len, known.values())) == 1428 and sum(k.lowered is not None for schedules in known.values() for k in schedules.values()) >= 1420


def test_a_program_that_crashes_costs_itself_alone(tmp_path, blur):
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "good.py").write_text(BLUR)
    (folder / "crashes.py").write_text("import os\ndef build():\n    os.abort()\n")
    (folder / "no_estimates.py").write_text(BLUR.replace("    out.set_estimates([(0, 256), (0, 256)])\n", ""))
    done = run("collect_schedules.py", f"--pipeline={folder}", "--schedules=1", f"--output={tmp_path / 'out'}", "--compile_seconds=60")
    assert "crashes: 0 measured: reference: crashed" in done.stdout
    assert "no_estimates: 0 measured" in done.stdout
    assert collected(tmp_path / "out")[1] == ["good/000.sample"]


def test_mistakes_get_one_clear_line(tmp_path):
    expect_user_error(run("collect_schedules.py", "--pipeline=missing.py", check=False), "missing.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    expect_user_error(run("collect_schedules.py", f"--pipeline={tmp_path / 'empty.py'}", check=False), "no @hl.generator")
    (tmp_path / "broken.py").write_text("def build(:\n")
    expect_user_error(run("collect_schedules.py", f"--pipeline={tmp_path / 'broken.py'}", check=False), "broken.py", "SyntaxError")
    expect_user_error(run("collect_schedules.py", "--programs=0", check=False), "programs")
    expect_user_error(run("collect_schedules.py", "--again=missing.tar.xz", check=False), "missing.tar.xz")
    expect_user_error(run("collect_schedules.py", f"--again={tmp_path / 'empty.py'}", check=False), "empty.py", "not a packed collection")


class Scripted(Candidate):
    """A candidate whose passes take these milliseconds, and that then crashes."""

    def __init__(self, key, runtimes, order):
        self.key, self.proposal, self.passes, self.has_ended = key, Proposal.draw(1, int(key)), [], False
        self.featurization, self.source, self.hash, self.schedule_seconds, self.compile_seconds = b"", "", key, 0.1, 0.2
        self.has_proposed, self.lowered, self.seconds = True, None, 5.0
        self.runtimes, self.order = list(runtimes), order

    def send(self, word):
        self.order.append(self.key)

    def receive(self, seconds):
        if not self.runtimes:
            return ("failed", "crashed", "exit code 1")
        return ("measured", halide_utils.Pass([self.runtimes.pop(0)] * 25, 1, 2.0, 0.0))

    def end(self):
        self.has_ended = True


def test_the_fastest_moments_of_all_passes_count(tmp_path):
    run_, order = collection.ProgramRun(ProgramSpec("p", 1), Plan(str(tmp_path), 5, 5.0)), []
    # Three agree at once but five are the least; the seventh is the third that agrees; always faster; it crashes; slow ones need but two.
    scripts = {"0": [1.3, 1.3, 1.31, 1.5, 1.6, 0.5], "1": [1.3, 1.0, 1.1, 1.2, 1.3, 1.01, 1.015, 0.5], "2": [2 / 1.1**i for i in range(20)], "3": [2.0], "4": [150.0, 151.0, 170.0, 0.5]}
    passes = {"0": 5, "1": 7, "2": machine.MAX_PASSES, "3": 1, "4": 3}
    candidates = [(run_, Scripted(key, runtimes, order)) for key, runtimes in scripts.items()]
    for _, candidate in candidates:
        collection.measure(run_, candidate)
        assert collection.ProgramRun(run_.spec, Plan(str(tmp_path), 5, 5.0)).decided[candidate.key]["outcome"] == "measured"  # whatever happens next
    collection.further_passes(candidates)
    assert order[:10] == ["0", "1", "2", "3", "4"] * 2  # some seconds apart in a real collection
    found = {key: (c["runtime_ms"], c["samples"], c["passes_ms"]) for key, c in run_.decided.items()}
    assert {key: f[1:] for key, f in found.items()} == {key: (25 * n, [round(ms, 6) for ms in scripts[key][:n]]) for key, n in passes.items()}
    assert (found["0"][0], found["1"][0], found["3"][0]) == (1.3, 1.0, 2.0) and found["2"][0] == round(2 / 1.1**15, 6)
    assert all(candidate.has_ended for _, candidate in candidates)


def test_buffers_begin_at_distances_drawn_anew():
    estimated = halide_utils.estimated_arguments(halide_utils.calibration_pipelines()["memory"])

    def distance():
        inputs, outputs = halide_utils.make_buffers(estimated, 0)
        return np.array(outputs[0], copy=False).ctypes.data - np.array(inputs[0], copy=False).ctypes.data

    assert len({distance() for _ in range(5)}) >= 4  # of some thousand


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32", "bool"])
def test_inputs_are_random_to_their_last_point_and_the_same_again(dtype):
    region = halide_utils.Region(np.dtype(dtype), [(0, 1000), (-3, 200)])  # three times as many points as are drawn

    def filled(seed):
        (buffer,), _ = halide_utils.make_buffers(([region], []), seed)
        assert [buffer.dim(i).min() for i in range(2)] == [0, -3]
        return np.array(buffer)

    found = filled(1)
    assert found.shape == (200, 1000) and np.array_equal(found, filled(1)) and not np.array_equal(found, filled(2))
    assert len(np.unique(found, axis=0)) == 200 and (found != 0).any(axis=1).all()


def test_neither_one_fast_moment_nor_a_pass_on_a_busy_machine_counts():
    calm, busy = halide_utils.Pass([1.0] * 2 + [2.0] * 98, 3, 2.0, 0.01), halide_utils.Pass([1.0] * 100, 3, 2.0, 0.2)
    found = machine.summary([calm, busy])
    assert (found["runtime_ms"], found["calls"], found["spread"], found["noisy"]) == (2.0, 300, 0.0, False)
    found = machine.summary([busy])
    assert (found["runtime_ms"], found["foreign_share"], found["noisy"]) == (1.0, 0.2, True)


def test_candidates_that_wait_hold_no_buffers_and_die_as_their_forks_do():
    """A hundred of them wait side by side between their passes."""
    code = """
import os
import halide as hl
import psutil
import candidate
import halide_utils

class Connection:
    def send(self, message):
        print(message[0], psutil.Process().memory_info().rss / 2**20, flush=True)

halide_utils.keep_memory()
x, y, image, f = hl.Var("x"), hl.Var("y"), hl.ImageParam(hl.Float(32), 2, "image"), hl.Func("f")
f[x, y] = image[x, y] + 1
image.set_estimates([(0, 4096), (0, 4096)])
f.set_estimates([(0, 4096), (0, 4096)])
program = halide_utils.Program(hl.Pipeline(f))
Connection().send(["before"])
candidate._send_from_fork(Connection(), lambda: ["measured", halide_utils.benchmark(program, 0)])
Connection().send(["waiting"])
candidate._send_from_fork(Connection(), lambda: halide_utils.load_autoscheduler("none"))
candidate._send_from_fork(Connection(), os.abort)
print("not here")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    (_, before), (_, measured), (_, waiting), (outcome, _) = (line.split() for line in done.stdout.splitlines())
    assert float(measured) > 128 and float(waiting) < float(before) + 20  # MiB; the two buffers have 64 each
    assert outcome == "failed" and done.returncode == -signal.SIGABRT


def test_repeats_are_drawn_by_a_hash(tmp_path):
    run_ = collection.ProgramRun(ProgramSpec("p", 1), Plan(str(tmp_path), 8, 5.0))
    run_.decided.update({str(k): {"outcome": "measured"} for k in range(400)})
    keys = run_.repeat_keys()
    assert 8 <= len(keys) <= 35 and all(k.endswith("r") for k in keys)
    run_.decided[keys[0]] = {"outcome": "measured"}
    assert run_.repeat_keys() == keys[1:]  # the same draw, less what is done


def test_timeouts_of_a_killed_collection_are_forgotten(tmp_path):
    """They were weighed against candidates that had compiled but were not measured yet."""
    plan = Plan(str(tmp_path), 4, 5.0)
    first = collection.ProgramRun(ProgramSpec("p", 1), plan)
    first.decided.update({str(k): {"outcome": "timeout"} for k in range(4)})
    first.save()
    assert first.gives_up() and first.next_keys() == []
    assert collection.ProgramRun(ProgramSpec("p", 1), plan).next_keys() == ["0", "1", "2", "3"]
    first.record["complete"] = True
    first.save()
    assert collection.ProgramRun(ProgramSpec("p", 1), plan).next_keys() == []


def test_a_drifted_machine_opens_a_collection_of_its_own(tmp_path, blur):
    """Half of the programs are measured, then the first calibration is rewritten as if the machine had been twice as fast."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "first.py").write_text(BLUR)
    arguments = [f"--pipeline={folder}", "--schedules=1", f"--output={tmp_path / 'out'}", "--compile_seconds=60"]
    run("collect_schedules.py", *arguments)
    path = tmp_path / "out" / "collection.json"
    note = orjson.loads(path.read_bytes())
    assert set(note["calibration"][0]["ms"]) == set(halide_utils.calibration_pipelines())
    assert all(ms > 0.05 for ms in note["calibration"][0]["ms"].values())
    note["calibration"][0]["ms"] = {name: ms / 2 for name, ms in note["calibration"][0]["ms"].items()}
    path.write_bytes(orjson.dumps(note))

    (folder / "second.py").write_text(BLUR)
    done = run("collect_schedules.py", *arguments)
    assert "go to a new collection" in done.stderr + done.stdout
    assert collected(tmp_path / "out")[1] == ["first/000.sample"]
    assert collected(tmp_path / "out-2")[1] == ["second/000.sample"]
    dumps = list(data_utils.iter_dumps(str(tmp_path)))
    assert {d.collection for d in dumps if d.file.endswith(".sample")} == {"out", "out-2"}


def test_a_dask_cluster_measures_and_reads_the_same(tmp_path, blur):
    folder = tmp_path / "programs"
    folder.mkdir()
    for i in range(9):  # two rounds
        (folder / f"program_{i}.py").write_text(BLUR.replace("258), (0, 256)", f"258), (0, {256 - i})").replace("(0, 256), (0, 256)", f"(0, 256), (0, {256 - i})"))
    output = tmp_path / "out"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster_flags = ["--backend=dask", f"--scheduler_address={cluster.scheduler_address}"]
        run("collect_schedules.py", f"--pipeline={folder}", "--schedules=1", f"--output={output}", "--compile_seconds=60", *cluster_flags)
        samples = [name for part in tmp_path.glob("out*") for name in collected(part)[1]]  # out-2, too, where the machine became slower meanwhile
        assert {name.split("/")[0] for name in samples} == {f"program_{i}" for i in range(9)}
        data_utils.parse_dump(next(data_utils.iter_dumps(str(output))), 1e5)
    expect_user_error(run("collect_schedules.py", "--backend=dask", f"--output={output}", check=False), "scheduler_address")
