"""rank_schedules.py as a user runs it, on small dumps."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import BLUR, ROOT, expect_user_error, json_tree, make_stages, run, sample_bytes, write_json

import train_utils
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import find_programs


def test_ranking_schedules_that_were_never_run(trained, tmp_path):
    folder, _ = trained
    checkpoint = f"--checkpoint={folder / 'run' / 'best.safetensors'}"
    raw = tmp_path / "new"
    raw.mkdir()
    for schedule in range(3):
        (raw / f"{schedule}.featurization").write_bytes(make_stages(1, schedule).tobytes())
    (raw / "0_again.sample").write_bytes(sample_bytes(make_stages(1, 0), 0))  # never merged, its runtime not needed
    (raw / "other.sample").write_bytes(sample_bytes(make_stages(2, 0, n_stages=60), 0))
    (raw / "cut.sample").write_bytes(b"123")
    done = run("rank_schedules.py", raw, checkpoint, f"--output={tmp_path / 'ranked.csv'}", "--stages=true")
    assert "left out cut.sample: truncated" in done.stderr
    rows = pd.read_csv(tmp_path / "ranked.csv", dtype={"program": str})
    assert len(rows) == 5 and rows.program.nunique() == 2
    for _, program in rows.groupby("program"):
        assert program["rank"].tolist() == list(range(1, len(program) + 1)) and program.predicted_ms.is_monotonic_increasing
    assert (rows.lower_ms < rows.predicted_ms).all() and (rows.predicted_ms < rows.upper_ms).all()
    assert done.stdout.count("stage  ") == 4 * 3 + 60
    same = rows[rows.file.isin(["0.featurization", "0_again.sample"])].predicted_ms
    assert same.iloc[0] == pytest.approx(same.iloc[1], rel=1e-5)

    # Two of its schedules were measured and took ten times what was predicted: all its predictions rise, those of no other program.
    measured = tmp_path / "measured"
    measured.mkdir()
    for schedule in range(2):
        predicted = rows[rows.file == f"{schedule}.featurization"].predicted_ms.item()
        (measured / f"{schedule}.sample").write_bytes(sample_bytes(make_stages(1, schedule), 10 * predicted))
    run("rank_schedules.py", raw, checkpoint, f"--output={tmp_path / 'corrected.csv'}", f"--measured={measured}")
    ratio = pd.read_csv(tmp_path / "corrected.csv").set_index("file").predicted_ms / rows.set_index("file").predicted_ms
    assert ratio["other.sample"] == pytest.approx(1) and ratio.drop("other.sample").between(1.5, 10).all()
    expect_user_error(run("rank_schedules.py", raw, checkpoint, f"--measured={tmp_path / 'none'}", check=False), "none")

    write_json(tmp_path / "foreign.json", json_tree())
    assert "far outside" in run("rank_schedules.py", tmp_path / "foreign.json", checkpoint).stderr
    expect_user_error(run("rank_schedules.py", raw / "cut.sample", checkpoint, check=False), "nothing usable")
    expect_user_error(run("rank_schedules.py", checkpoint, check=False), "PATHS")
    expect_user_error(run("rank_schedules.py", tmp_path / "missing", checkpoint, check=False), "missing")
    expect_user_error(run("rank_schedules.py", raw, "--checkpoint=none.safetensors", check=False), "none.safetensors")


@pytest.fixture
def dumps(tmp_path):
    """Schedules of two programs to rank; a function that writes some of them as measured, `factor` times slower than predicted."""
    raw, measured = tmp_path / "new", tmp_path / "measured"
    raw.mkdir()
    measured.mkdir()
    for program in range(2):
        for schedule in range(6):
            (raw / f"{program}_{schedule}.featurization").write_bytes(make_stages(program, schedule).tobytes())

    def measure(rows, factor):
        for row in rows[rows.file.str.startswith("0_")].itertuples():
            schedule = int(row.file[2])
            (measured / f"{schedule}.sample").write_bytes(sample_bytes(make_stages(0, schedule), factor(schedule) * row.predicted_ms))
        return measured

    return raw, measure


def ranked(tmp_path, *paths, flags):
    done = run("rank_schedules.py", *paths, f"--output={tmp_path / 'ranked.csv'}", *flags)
    return pd.read_csv(tmp_path / "ranked.csv", dtype={"program": str}), done


def test_measurements_lie_within_the_corrected_intervals(trained, dumps, tmp_path):
    folder, _ = trained
    raw, measure = dumps
    checkpoint = f"--checkpoint={folder / 'run' / 'best.safetensors'}"
    rows, _ = ranked(tmp_path, raw, flags=[checkpoint])
    factors = [1e4, 1.1e4, 0.9e4, 1.05e4, 0.8e4, 1.2e4]  # another machine: far outside of any interval, but alike
    corrected, done = ranked(tmp_path, raw, flags=[checkpoint, f"--measured={measure(rows, lambda k: factors[k])}"])
    assert "contradict the intervals" in done.stderr and "1 of 2 programs" in done.stderr
    both = corrected.merge(rows, on="file", suffixes=("", "_before"))
    known = both[both.file.str.startswith("0_")]
    runtime_ms = np.array([factors[int(file[2])] for file in known.file]) * known.predicted_ms_before
    assert runtime_ms.between(known.lower_ms, known.upper_ms).mean() >= 0.9
    assert np.allclose(known.predicted_ms / known.predicted_ms_before, 1e4, rtol=0.2)  # the prior does not hold the correction back
    # Schedules that differ as nobody expected keep the intervals wide enough to hold them.
    spread = [1e3, 1e-3, 1.0, 1e2, 1e-2, 30.0]
    corrected, done = ranked(tmp_path, raw, flags=[checkpoint, f"--measured={measure(rows, lambda k: spread[k])}"])
    known = corrected[corrected.file.str.startswith("0_")].merge(rows, on="file", suffixes=("", "_before"))
    runtime_ms = np.array([spread[int(file[2])] for file in known.file]) * known.predicted_ms_before
    assert "contradict" in done.stderr and runtime_ms.between(known.lower_ms * 0.999, known.upper_ms * 1.001).mean() >= 0.9


def test_measurements_as_predicted_make_intervals_narrower(trained, dumps, tmp_path):
    folder, _ = trained
    raw, measure = dumps
    checkpoint = f"--checkpoint={folder / 'run' / 'best.safetensors'}"
    rows, _ = ranked(tmp_path, raw, flags=[checkpoint])
    corrected, done = ranked(tmp_path, raw, flags=[checkpoint, f"--measured={measure(rows, lambda k: 1.01)}"])
    assert "contradict" not in done.stderr
    both = corrected.merge(rows, on="file", suffixes=("", "_before"))
    width, before = (np.log(both[f"upper_ms{when}"] / both[f"lower_ms{when}"]) for when in ("", "_before"))
    measured_program = both.file.str.startswith("0_")
    assert (width < before)[measured_program].all() and np.allclose(width[~measured_program], before[~measured_program])


def test_what_is_known_against_the_intervals_is_said(trained, dumps, tmp_path):
    folder, _ = trained
    raw, _ = dumps
    tensors, meta = train_utils.read_checkpoint(folder / "run" / "best.safetensors")
    holds = {"level": 0.9, "log_half_width": 0.5, "coverage": 0.91, "coverage_by_program": 0.9}
    meta |= {"coverage": {"test": holds, "cameras": holds | {"coverage": 0.61, "coverage_by_program": 0.57}}}
    meta["errors"]["without_counts"] |= {"programs": 40}
    path = tmp_path / "model.safetensors"
    train_utils.write_checkpoint(path, tensors, meta)
    lines = run("rank_schedules.py", raw, f"--checkpoint={path}").stderr.splitlines()
    assert [line for line in lines if "too narrow" in line] == [
        "warning: the 90% intervals are too narrow for programs like those of `cameras`: they cover 57% of a program's schedules there "
        "(61% of the rows)"
    ]
    meta["errors"]["without_counts"] |= {"programs": 2}
    train_utils.write_checkpoint(path, tensors, meta | {"coverage": {}})
    assert "calibrated on 2 programs" in run("rank_schedules.py", raw, f"--checkpoint={path}").stderr


def test_flags_that_contradict_the_checkpoint_are_refused(dumps):
    raw, _ = dumps
    expect_user_error(run("rank_schedules.py", raw, "--interval=0.5", check=False), "--interval", "default.safetensors", "0.9")
    run("rank_schedules.py", raw, "--interval=0.9", "--hidden_size=48", "--epochs=3")


def test_a_reader_that_goes_ends_the_output_quietly(dumps, tmp_path):
    raw, _ = dumps
    for schedule in range(400):  # more than a pipe holds back
        (raw / f"more_{schedule}.featurization").write_bytes(make_stages(3, schedule).tobytes())
    command = f"'{sys.executable}' rank_schedules.py '{raw}' --stages true --output '{tmp_path / 'ranked.csv'}' | head -2"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert len(done.stdout.splitlines()) == 2 and "Traceback" not in done.stderr and "Broken" not in done.stderr
    assert len(pd.read_csv(tmp_path / "ranked.csv")) == 412


def test_a_program_stands_for_the_schedule_that_its_author_wrote(trained, tmp_path):
    folder, _ = trained
    checkpoint = f"--checkpoint={folder / 'run' / 'best.safetensors'}"
    (tmp_path / "plain.py").write_text(BLUR)
    (tmp_path / "tiled.py").write_text(BLUR.replace("    out.set_est", "    blur.compute_root().vectorize(x, 8)\n    out.set_est"))
    (tmp_path / "broken.py").write_text("def build():\n    return 3\n")
    rows, done = ranked(tmp_path, tmp_path / "plain.py", tmp_path / "tiled.py", flags=[checkpoint, "--stages=true"])
    assert len(rows) == 2 and rows.instance.nunique() == 1, "the same program, scheduled in two ways"
    assert {file.partition("plain (")[2] or file.partition("tiled (")[2] for file in rows.file} == {
        "as it stands)", "as its author scheduled it)",
    }  # fmt: skip
    assert rows.predicted_ms.iloc[0] != rows.predicted_ms.iloc[1]
    assert [line.split()[-1] for line in done.stdout.splitlines() if "stage" in line] == ["out", "blur"] * 2
    # One that can't be kept as data.
    rows, _ = ranked(tmp_path, ROOT / "tests" / "difficult_pipelines.py", flags=[checkpoint, "--generator=specialized"])
    assert len(rows) == 1 and "as its author scheduled it" in rows.file[0]
    # Among dumps of the same program.
    spec = find_programs(tmp_path / "plain.py")[0]
    (tmp_path / "own.featurization").write_bytes(Proposal.draw(0, 0).apply(spec.build(), spec)[0])
    rows, _ = ranked(tmp_path, tmp_path / "tiled.py", tmp_path / "own.featurization", flags=[checkpoint])
    assert sorted(rows["rank"]) == [1, 2]
    mistakes = [
        ([tmp_path / "broken.py"], ["broken.py", "int"]),
        ([tmp_path / "plain.py", "--generator=nothing"], ["nothing"]),
        ([tmp_path / "plain.py", "--target=x87"], ["x87"]),
        ([tmp_path / "own.featurization", "--target=host"], ["--target", "programs"]),
    ]
    for arguments, words in mistakes:
        expect_user_error(run("rank_schedules.py", *arguments, checkpoint, check=False), *words)
