"""What Adams2019's own beam search finds with weights that export_model.py wrote, beside those it ships with.

    python export_model.py --format weights --output runs/exported.weights
    python benchmarks/exported_weights.py --weights runs/exported.weights

For each application in pipelines/ (never trained on), or those of --applications, an unmodified Halide schedules it twice, with a
beam of 32. Both schedules are measured several times, interleaved, and checked against the program stage by stage. Prints the
table and writes benchmarks/results/exported_weights.md and .json. Use the machine for nothing else meanwhile.
"""

import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common
from common import chosen_files

from config import Config, UserError, load_config, run_script
from halide_tools.autoschedulers import WithWeights
from halide_tools.programs import find_programs
from measuring.candidate import prepare_processes
from measuring.machine import PROTOCOLS
from tuning.run import (
    ADAMS2019,
    ADAMS2019_BEAM,
    TuningRun,
)


class WeightsConfig(Config):
    weights: str = Field(min_length=1, description="file that export_model.py --format weights wrote")
    applications: str = Field("", description="files of pipelines/ without their suffix, separated by commas; empty: all")
    repeats: int = Field(3, ge=1, description="measurements of each schedule")
    protocol: Literal[*PROTOCOLS] = Field("careful", description="as of tune_schedule.py")
    compile_seconds: float = Field(300, gt=0, description="longest time to schedule and compile one of them")


def compare(spec, config):
    """(milliseconds with the shipped weights, with the exported ones), medians, or why there is none."""
    names = {ADAMS2019: "shipped"}
    with tempfile.TemporaryDirectory() as folder:
        run = TuningRun(spec, Path(folder), config.compile_seconds, PROTOCOLS[config.protocol])
        try:
            exported = run.key(WithWeights(str(Path(config.weights).resolve()), ADAMS2019_BEAM))
            names[exported] = "exported"
            run.measure(names)
            if run.outcomes[exported]["outcome"] == "duplicate":
                return [run.runtime_ms(ADAMS2019)] * 2  # the same schedule
            for key, name in names.items():
                if key not in run.measured():
                    return f"{name} weights: {run.describe(key)}"
            times = run.measure_again(list(names), config.repeats)
        finally:
            run.end()
    missing = [name for key, name in names.items() if key not in times]
    return f"{missing[0]} weights: not measured again" if missing else [float(np.median(times[key])) for key in names]


def main():
    config = load_config(WeightsConfig)
    if not Path(config.weights).is_file():
        raise UserError(f"{config.weights}: no such file; write it with export_model.py --format weights")
    prepare_processes()
    rows, ratios = [], []
    for spec in (spec for file in chosen_files(config.applications).values() for spec in find_programs(file)):
        found = compare(spec, config)
        if isinstance(found, str):
            rows.append([spec.name, found, "", ""])
        else:
            ratios.append(found[0] / found[1])
            rows.append([spec.name, f"{found[0]:.3f}", f"{found[1]:.3f}", f"{ratios[-1]:.2f}"])
        print(*rows[-1], flush=True)
    rows.append(["geometric mean", "", "", f"{np.exp(np.mean(np.log(ratios))):.2f}" if ratios else "-"])
    common.write("exported_weights", ["application", "shipped weights, ms", "exported weights, ms", "times as fast"], rows)


if __name__ == "__main__":
    run_script(main)
