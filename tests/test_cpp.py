"""A Generator in C++, built with the headers and libraries of the halide package."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_a_generator_in_cpp_gets_the_schedule_that_ranks_first(tmp_path):
    done = subprocess.run(
        [ROOT / "examples/cpp/run.sh", tmp_path], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every pixel is 3" in done.stdout
    ranked = pd.read_csv(tmp_path / "ranked.csv")
    assert len(ranked) == 16 and ranked.program.nunique() == 1
    winner = tmp_path / "samples" / ranked.file[0].removeprefix("samples/").replace("blur.featurization", "blur.schedule.h")
    assert (tmp_path / "best.schedule.h").read_bytes() == winner.read_bytes()
