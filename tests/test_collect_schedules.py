"""Measuring with the real Halide: small programs, few schedules."""

import subprocess
import sys
import time

import numpy as np
import orjson
from conftest import BLUR, ROOT, expect_user_error, run
from distributed import LocalCluster

from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from measuring import archives, machine


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
    newest = max(
        path for path in tmp_path.iterdir() if path.name.startswith("killed")
    )  # killed-2 where the machine became slower meanwhile
    assert collected(newest) == collected(whole) and len(collected(whole)[1]) >= 3

    schedules = [parse_dump(d, 1e5) for d in iter_dumps(str(whole))]
    assert len({s.schedule for s in schedules}) == 3 and all(len(s.schedule_features) == 2 for s in schedules)
    assert all(len(s.lowered) == 2 and s.lowered[0].any() for s in schedules), "what was counted in the lowered code lies beside each"
    record = orjson.loads((whole / "blur" / "program.json").read_bytes())
    assert record["complete"] and [e[0] for e in record["edges"]] == ["blur"]

    run("collect_schedules.py", *arguments, f"--output={killed}", "--pack=true")
    packed = [parse_dump(d, 1e5) for d in iter_dumps(f"{newest}.tar.xz")]
    assert len({s.schedule for s in packed}) == 3 and not killed.exists()
    assert sorted(s.lowered.tolist() for s in packed) == sorted(s.lowered.tolist() for s in schedules)
    expect_user_error(run("collect_schedules.py", *arguments, f"--output={killed}", check=False), "never rewritten")


def test_known_schedules_are_measured_again(tmp_path, blur):
    first, again = tmp_path / "first.tar.xz", tmp_path / "again"
    run(
        "collect_schedules.py",
        f"--pipeline={blur.path}",
        "--schedules=3",
        f"--output={tmp_path / 'first'}",
        "--compile_seconds=60",
        "--pack=true",
    )
    source, _, known = archives.known_schedules(str(first))
    assert source == {"pipeline": "blur.py"} and all(k.lowered["stores"] for k in known["blur"].values())

    expect_user_error(
        run("collect_schedules.py", f"--again={first}", f"--output={again}", check=False), "first.tar.xz", "blur.py", "--pipeline"
    )
    (tmp_path / "other.py").write_text(BLUR)
    expect_user_error(
        run("collect_schedules.py", f"--again={first}", f"--pipeline={tmp_path / 'other.py'}", check=False),
        "other.py",
        "none of the programs",
    )
    run("collect_schedules.py", f"--again={first}", f"--pipeline={blur.path}", f"--output={again}", "--compile_seconds=60")
    outcomes = collected(again)[0]
    assert {key for key in outcomes if not key.endswith("r")} == {f"blur/{key}" for key in known["blur"]} and set(outcomes.values()) == {
        "measured"
    }
    before, now = (
        {s.schedule: s for s in (parse_dump(d, 1e5) for d in iter_dumps(str(path)) if not d.file.endswith("r.sample"))}
        for path in (first, again)
    )
    assert before.keys() == now.keys() and len(now) == 3
    for name, schedule in now.items():
        assert np.array_equal(schedule.schedule_features, before[name].schedule_features) and np.array_equal(
            schedule.lowered, before[name].lowered
        )
    assert any(schedule.runtime_ms != before[name].runtime_ms for name, schedule in now.items())


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


def test_a_drifted_machine_opens_a_collection_of_its_own(tmp_path, blur):
    """Half of the programs are measured, then the first calibration is rewritten as if the machine had been twice as fast."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "first.py").write_text(BLUR)
    arguments = [f"--pipeline={folder}", "--schedules=1", f"--output={tmp_path / 'out'}", "--compile_seconds=60"]
    run("collect_schedules.py", *arguments)
    path = tmp_path / "out" / "collection.json"
    note = orjson.loads(path.read_bytes())
    assert set(note["calibration"][0]["ms"]) == set(machine.calibration_pipelines())
    assert all(ms > 0.05 for ms in note["calibration"][0]["ms"].values())
    note["calibration"][0]["ms"] = {name: ms / 2 for name, ms in note["calibration"][0]["ms"].items()}
    path.write_bytes(orjson.dumps(note))

    (folder / "second.py").write_text(BLUR)
    done = run("collect_schedules.py", *arguments)
    assert "go to a new collection" in done.stderr + done.stdout
    assert collected(tmp_path / "out")[1] == ["first/000.sample"]
    assert collected(tmp_path / "out-2")[1] == ["second/000.sample"]
    dumps = list(iter_dumps(str(tmp_path)))
    assert {d.collection for d in dumps if d.file.endswith(".sample")} == {"out", "out-2"}


def test_a_dask_cluster_measures_and_reads_the_same(tmp_path, blur):
    folder = tmp_path / "programs"
    folder.mkdir()
    for i in range(9):  # two rounds
        (folder / f"program_{i}.py").write_text(
            BLUR.replace("258), (0, 256)", f"258), (0, {256 - i})").replace("(0, 256), (0, 256)", f"(0, 256), (0, {256 - i})")
        )
    output = tmp_path / "out"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster_flags = ["--backend=dask", f"--scheduler_address={cluster.scheduler_address}"]
        run("collect_schedules.py", f"--pipeline={folder}", "--schedules=1", f"--output={output}", "--compile_seconds=60", *cluster_flags)
        samples = [
            name for part in tmp_path.glob("out*") for name in collected(part)[1]
        ]  # out-2, too, where the machine became slower meanwhile
        assert {name.split("/")[0] for name in samples} == {f"program_{i}" for i in range(9)}
        parse_dump(next(iter_dumps(str(output))), 1e5)
    expect_user_error(run("collect_schedules.py", "--backend=dask", f"--output={output}", check=False), "scheduler_address")
