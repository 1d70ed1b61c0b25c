"""Measuring with the real Halide: small programs, few schedules."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import orjson
import pandas as pd
import pytest
from conftest import BLUR, ROOT, expect_user_error, run
from distributed import LocalCluster
from pebble import ProcessPool

from benchmarks import count_again
from dumps import own
from dumps.files import iter_dumps
from dumps.parsing import parse_dump
from halide_tools.buffers import lowered_text
from halide_tools.lowered_identity import lowered_hash, skip_short_numbers
from halide_tools.programs import find_programs
from halide_tools.schedules import Schedule
from measuring import archives, machine
from measuring.origins import ORIGINS
from measuring.processes import prepare_worker


def collected(folder):
    """{program/schedule: outcome} and the sample files of a collection."""
    records = [orjson.loads(p.read_bytes()) for p in sorted(folder.glob("*/program.json"))]
    outcomes = {f"{r['name']}/{k}": c["outcome"] for r in records for k, c in r["candidates"].items()}
    return outcomes, sorted(str(p.relative_to(folder)) for p in folder.rglob("*.sample"))


def test_a_killed_collection_goes_on_and_packs(tmp_path, blur):
    whole, killed = tmp_path / "whole", tmp_path / "killed, für später"
    arguments = [f"--pipeline={blur.path}", "--schedules=5", "--compile_seconds=60", "--protocol=quick", "--origins=adams2019"]
    run("collect_schedules.py", *arguments, f"--output={whole}")
    process = kill_midway(["collect_schedules.py", *arguments, f"--output={killed}"], killed)
    before = collected(killed)
    record = orjson.loads((killed / "blur" / "program.json").read_bytes())
    assert not record["complete"] and 1 <= len(before[1]) < 5, "the kill did not hit midway"
    assert process.returncode == -signal.SIGKILL
    run("collect_schedules.py", *arguments, f"--output={killed}")
    assert collected(killed) == collected(whole) and len(collected(whole)[1]) >= 5
    assert set(before[1]) <= set(collected(killed)[1])

    schedules = [parse_dump(d, 1e5) for d in iter_dumps(str(whole))]
    assert len({s.schedule for s in schedules}) == 5 and all(len(s.schedule_features) == 2 for s in schedules)
    assert all(len(s.lowered) == 2 and s.lowered[0].any() for s in schedules), "what was counted in the lowered code lies beside each"
    record = orjson.loads((whole / "blur" / "program.json").read_bytes())
    assert record["complete"] and [e[0] for e in record["edges"]] == ["blur"] and record["identity"]
    assert record["reference"] == "root" and record["inputs"]["image"]["contents"].startswith("random")
    machine_note = orjson.loads((whole / "collection.json").read_bytes())["machine"]
    assert machine_note["protocol"]["name"] == "quick" and machine_note["threads"] == record["threads"] and machine_note["cores"] >= 1
    assert machine_note["target"] == record["target"]

    (whole / "mine.txt").write_text("mine")
    done = run("collect_schedules.py", *arguments, f"--output={whole}", "--pack=true")
    packed = [parse_dump(d, 1e5) for d in iter_dumps(f"{whole}.tar.xz")]
    assert len({s.schedule for s in packed}) == 5 and [p.name for p in whole.iterdir()] == ["mine.txt"] and "stays" in done.stdout
    assert sorted(s.lowered.tolist() for s in packed) == sorted(s.lowered.tolist() for s in schedules)
    expect_user_error(run("collect_schedules.py", *arguments, f"--output={whole}", check=False), "never rewritten")


def kill_midway(command, output, what="*/*.sample"):
    """Start a collection and kill it once something is measured, but not all: it is stopped there while the records are looked at."""
    process = subprocess.Popen([sys.executable, ROOT / command[0], *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(output.glob(what)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    return process


def test_known_schedules_are_measured_again(tmp_path, blur):
    first, again = tmp_path / "first.tar.xz", tmp_path / "again"
    run(
        "collect_schedules.py",
        f"--pipeline={blur.path}",
        "--schedules=3",
        f"--output={tmp_path / 'first'}",
        "--compile_seconds=60",
        "--protocol=quick",
        "--protocol=quick",
        "--pack=true",
    )
    source, _, known = archives.known_schedules(str(first))
    assert source == {"pipeline": "blur.py"} and all(k.lowered["body_cycles"] for k in known["blur"].values())

    expect_user_error(
        run("collect_schedules.py", f"--again={first}", f"--output={again}", check=False), "first.tar.xz", "blur.py", "--pipeline"
    )
    (tmp_path / "other.py").write_text(BLUR)
    expect_user_error(
        run("collect_schedules.py", f"--again={first}", f"--pipeline={tmp_path / 'other.py'}", check=False),
        "other.py",
        "none of the programs",
    )
    run(
        "collect_schedules.py",
        f"--again={first}",
        f"--pipeline={blur.path}",
        f"--output={again}",
        "--compile_seconds=60",
        "--protocol=quick",
    )
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
    done = run(
        "collect_schedules.py",
        f"--pipeline={folder}",
        "--schedules=1",
        f"--output={tmp_path / 'out'}",
        "--compile_seconds=60",
        "--protocol=quick",
    )
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
    expect_user_error(run("collect_schedules.py", "--origins=adams2019,mutant", check=False), "--origins", "mutant", "li2018")
    expect_user_error(run("collect_schedules.py", "--origins=,", check=False), "--origins", "at least one")
    expect_user_error(run("collect_schedules.py", "--origins=hand_written", check=False), "random programs", "--pipeline")
    expect_user_error(run("collect_schedules.py", "--again=missing.tar.xz", check=False), "missing.tar.xz")
    expect_user_error(run("collect_schedules.py", f"--again={tmp_path / 'empty.py'}", check=False), "empty.py", "not a packed collection")
    expect_user_error(
        run("collect_schedules.py", "--params=radius=3", f"--output={tmp_path / 'new'}", check=False), "--params", "random programs"
    )
    expect_user_error(run("collect_schedules.py", "--target=6502", f"--output={tmp_path / 'new'}", check=False), "6502")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    expect_user_error(run("collect_schedules.py", f"--output={tmp_path / 'full'}", check=False), "full", "something else")


def test_a_drifted_machine_opens_a_collection_of_its_own(tmp_path, blur):
    """Half of the programs are measured, then the first calibration is rewritten as if the machine had been twice as fast."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "first.py").write_text(BLUR)
    arguments = [f"--pipeline={folder}", "--schedules=1", f"--output={tmp_path / 'out'}", "--compile_seconds=60", "--protocol=quick"]
    run("collect_schedules.py", *arguments)
    path = tmp_path / "out" / "collection.json"
    note = orjson.loads(path.read_bytes())
    assert set(note["calibration"][0]["ms"]) == set(machine.calibration_pipelines())
    assert all(ms > 0.05 for ms in note["calibration"][0]["ms"].values())
    note["calibration"][0]["ms"] = {name: ms / 100 for name, ms in note["calibration"][0]["ms"].items()}
    path.write_bytes(orjson.dumps(note))

    (folder / "second.py").write_text(BLUR)
    done = run("collect_schedules.py", *arguments)
    assert "go to a new collection" in done.stderr + done.stdout
    assert collected(tmp_path / "out")[1] == ["first/000.sample"]
    assert collected(tmp_path / "out-2")[1] == ["second/000.sample"]
    dumps = list(iter_dumps(str(tmp_path)))
    assert {d.collection for d in dumps if d.file.endswith(".sample")} == {"out", "out-2"}


def test_a_dask_cluster_measures_and_reads_the_same(tmp_path, blur):
    """Collected by its workers, then read by them: generate_dataset.py writes what it writes without a cluster."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for i in range(2):
        (folder / f"program_{i}.py").write_text(BLUR.replace("(0, 256), (0, 256)", f"(0, 256), (0, {256 - i})"))
    output = tmp_path / "out"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster_flags = ["--backend=dask", f"--scheduler_address={cluster.scheduler_address}"]
        flags = [f"--pipeline={folder}", "--schedules=1", "--compile_seconds=60", "--protocol=quick", f"--output={output}"]
        run("collect_schedules.py", *flags, *cluster_flags)
        assert {name.split("/")[0] for name in collected(output)[1]} == {"program_0", "program_1"}
        reading = [f"--raw_path={output}", "--val_fraction=0", "--test_fraction=0"]
        run("generate_dataset.py", *reading, f"--data_path={tmp_path / 'cluster'}", *cluster_flags)
    run("generate_dataset.py", *reading, f"--data_path={tmp_path / 'here'}")
    metas = [orjson.loads((tmp_path / name / "meta.json").read_bytes()) for name in ("cluster", "here")]
    assert metas[0]["counts"] == metas[1]["counts"] and metas[0]["counts"]["kept"] >= 2
    shards = [
        {(tmp_path / name / shard).read_bytes() for shard in meta["shards"]["train"]} for name, meta in zip(("cluster", "here"), metas)
    ]
    assert shards[0] == shards[1] and shards[0]
    expect_user_error(run("collect_schedules.py", "--backend=dask", f"--output={output}", check=False), "scheduler_address")


# The same program, with a schedule that its author wrote.
SCHEDULED = BLUR.replace(
    "    out.set_estimates",
    '    xi = hl.Var("xi")\n    out.split(x, x, xi, 16).vectorize(xi)\n    blur.compute_at(out, y)\n    out.set_estimates',
)
QUICK = ["--compile_seconds=60", "--protocol=quick"]


def by_origin(folder, outcome="measured"):
    """{origin: [number of each candidate that ended so]}."""
    found = {}
    for path in sorted(folder.glob("*/program.json")):
        for key, c in orjson.loads(path.read_bytes())["candidates"].items():
            if c["outcome"] == outcome and key.isdecimal():
                found.setdefault(c["origin"], []).append(key)
    return {name: sorted(keys, key=int) for name, keys in found.items()}


@pytest.fixture(scope="module")
def of_all_origins(tmp_path_factory):
    """(The file of a program, a collection of its schedules from everywhere, what was printed)."""
    folder = tmp_path_factory.mktemp("origins")
    (folder / "scheduled.py").write_text(SCHEDULED)
    flags = [f"--pipeline={folder / 'scheduled.py'}", "--schedules=8", *QUICK, f"--output={folder / 'out'}"]
    return folder / "scheduled.py", folder / "out", run("collect_schedules.py", *flags).stdout


def test_schedules_of_every_origin_are_measured_and_read(of_all_origins, tmp_path):
    _, out, printed = of_all_origins
    found = by_origin(out)
    assert set(found) == set(ORIGINS) and sum(map(len, found.values())) == 8 and len(found["mutated"]) >= 2
    assert all(f"{len(keys)} {name}" in printed for name, keys in found.items())
    assert (found["adams2019"][0], found["mullapudi2016"], found["li2018"], found["hand_written"]) == ("0", ["1"], ["2"], ["3"])
    record = orjson.loads((out / "scheduled" / "program.json").read_bytes())
    measured = {k: c for k, c in record["candidates"].items() if c["outcome"] == "measured" and k.isdecimal()}
    codes = [c["lowered_hash"] for c in measured.values()]
    assert len(set(codes)) == 8, "what lowers to the same code is measured once"
    for key, c in measured.items():
        stem = out / "scheduled" / key.zfill(3)
        assert stem.with_suffix(".sample").exists() == (c["origin"] == "adams2019") != stem.with_suffix(".schedule.json").exists()
        assert "vectorize" in stem.with_suffix(".schedule.h").read_text() or c["origin"] == "mutated"
        if c["origin"] != "adams2019":
            dump = own.read(orjson.loads(stem.with_suffix(".schedule.json").read_bytes()))
            assert dump.runtime_ms == c["runtime_ms"] and dump.origin == c["origin"] and dump.counts["bytes_stored"][0] > 0
            assert dump.directives and dump.program.stages == record["stages"] and f"{dump.lowered_hash:016x}" == c["lowered_hash"]
    dumps = {d.file.rsplit("/", 1)[-1].partition(".")[0]: parse_dump(d, 1e5) for d in iter_dumps(str(out))}
    assert {key: f"{dumps[key.zfill(3)].lowered_hash:016x}" for key in measured} == {k: c["lowered_hash"] for k, c in measured.items()}
    mutated = measured[found["mutated"][0]]
    assert 1 <= mutated["changes"] <= 8 and mutated["parent"] and Schedule.from_json(mutated["schedule"]).directives()

    run("generate_dataset.py", f"--raw_path={out}", f"--data_path={tmp_path}", "--val_fraction=0", "--test_fraction=0")
    rows = pd.read_csv(tmp_path / "schedules.csv")
    assert rows.program.nunique() == rows.instance.nunique() == 1 and rows.schedule.nunique() == len(rows) == 8
    assert {name: int((rows.origin == name).sum()) for name in ORIGINS} == {name: len(found[name]) for name in ORIGINS}
    assert orjson.loads((tmp_path / "meta.json").read_bytes())["counts"]["dropped"] == {}


def test_a_mutation_lowers_and_computes_the_same_as_what_it_was_made_of(of_all_origins):
    """What is kept of it gives the code that was measured, from a fresh pipeline."""
    file, out, _ = of_all_origins
    spec = find_programs(file)[0]
    skip_short_numbers()
    for key in by_origin(out)["mutated"][:2]:
        dump = own.read(orjson.loads((out / "scheduled" / f"{key.zfill(3)}.schedule.json").read_bytes()))
        pipeline = spec.build()
        Schedule.from_json(dump.directives).apply(pipeline)
        assert lowered_hash(lowered_text(pipeline, spec.halide_target())) == dump.lowered_hash


def test_other_origins_are_measured_again_from_what_was_kept(of_all_origins, tmp_path):
    file, out, _ = of_all_origins
    shutil.copytree(out, tmp_path / "first")
    run("collect_schedules.py", f"--pipeline={file}", "--schedules=8", *QUICK, f"--output={tmp_path / 'first'}", "--pack=true")
    again = tmp_path / "again"
    flags = [f"--again={tmp_path / 'first.tar.xz'}", f"--pipeline={file}", *QUICK, f"--output={again}"]
    expect_user_error(run("collect_schedules.py", *flags, "--origins=mutated", check=False), "--origins", "--again")
    run("collect_schedules.py", *flags)
    assert by_origin(again) == by_origin(out)
    for path in sorted(again.glob("*/*.schedule.json")):
        now, before = (own.read(orjson.loads(p.read_bytes())) for p in (path, out / path.relative_to(again)))
        assert (now.lowered_hash, now.counts, now.origin) == (before.lowered_hash, before.counts, before.origin)
        assert json.loads(now.directives) == json.loads(before.directives)


def test_counts_are_made_again_as_they_were(of_all_origins, tmp_path, monkeypatch):
    """Of an archive whose counts are lost: all that was measured is made again, and what is counted in it is what was."""
    file, out, _ = of_all_origins
    [spec] = find_programs(file)
    lost = shutil.copytree(out, tmp_path / "lost")
    for path in lost.glob("*/*.lowered.json"):
        path.unlink()
    for path in lost.glob("*/*.schedule.json"):
        path.write_bytes(own.write(dataclasses.replace(own.read(orjson.loads(path.read_bytes())), counts=None)))
    packed = archives.pack(lost)
    note, records = count_again.read_records(packed)
    monkeypatch.setattr(count_again, "spec_of", lambda *_: spec)
    for name, record in records.items():
        with ProcessPool(1, context=count_again.SPAWN, initializer=prepare_worker) as pool:
            count_again.count_program(tmp_path / "parts" / f"{name}.json", note, record, pool)
    assert count_again.write_archive(packed, tmp_path / "parts", tmp_path / "counted.tar.xz") == {"counted": 8}
    with tarfile.open(tmp_path / "counted.tar.xz") as archive:
        archive.extractall(tmp_path / "counted", filter="data")
    found = {path.name: path.read_bytes() for path in (tmp_path / "counted").rglob("*.json") if path.parent.name == "scheduled"}
    kept = {path.name: path.read_bytes() for path in out.glob("scheduled/*.json")}
    assert found.keys() == kept.keys() and sum(name.endswith(".schedule.json") for name in found) >= 4
    assert {name: orjson.loads(data) for name, data in found.items()} == {name: orjson.loads(data) for name, data in kept.items()}


def test_a_stopped_collection_of_mutations_goes_on_with_the_same_set(tmp_path, blur):
    arguments = [f"--pipeline={blur.path}", "--schedules=4", "--origins=mutated", *QUICK]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("collect_schedules.py", *arguments, f"--output={whole}")
    kill_midway(["collect_schedules.py", *arguments, f"--output={killed}"], killed, "*/*.schedule.json")
    noted = orjson.loads((killed / "blur" / "program.json").read_bytes())["candidates"]  # a dump is written, and then noted
    files = [killed / "blur" / f"{key.zfill(3)}.schedule.json" for key, c in noted.items() if c["outcome"] == "measured"]
    before = {path: path.read_bytes() for path in files}
    done = run("collect_schedules.py", f"--pipeline={blur.path}", "--schedules=4", *QUICK, f"--output={killed}")
    assert collected(killed) == collected(whole) and by_origin(killed).keys() == {"mutated"}, "with its own origins"
    assert len(by_origin(killed)["mutated"]) == 4 and "4 schedules" in done.stdout
    assert all(path.read_bytes() == data for path, data in before.items())
    expect_user_error(
        run("collect_schedules.py", *arguments, f"--output={killed}", "--origins=adams2019", check=False),
        "killed: begun with --origins mutated, here adams2019",
    )
    note = orjson.loads((killed / "collection.json").read_bytes())
    del note["origins"]  # as earlier versions wrote it, which knew Adams2019 alone
    (killed / "collection.json").write_bytes(orjson.dumps(note))
    expect_user_error(run("collect_schedules.py", *arguments, f"--output={killed}", check=False), "begun with --origins adams2019")
