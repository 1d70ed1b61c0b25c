"""The machine that measures: what it is, whether others use it, and whether it still runs as it did.

Machines differ, and one machine differs from day to day. So a collection notes what it was measured on and how (`describe_machine`),
and the times of a few fixed calibration programs, at its beginning and throughout (`note_calibration`).
"""

import datetime
import functools
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import halide as hl
import numpy as np
import orjson
import psutil
from filelock import FileLock

import halide_utils
from config import replace_file

TRIES = 3  # measurements of one schedule on a busy machine before it is kept and flagged noisy
# Every schedule is measured in short passes through all that are compiled, so that those of one are half a minute apart: others on the
# host slow a machine by up to a fifth for seconds at a time, which it can't see. The fastest pass counts; there are more of them until
# the two fastest agree.
MIN_PASSES, MAX_PASSES, PASS_AGREEMENT = 4, 6, 0.02
REPEATED_SHARE = 0.05  # of the schedules are measured again in a fresh process, which tells the noise
MAX_DRIFT = 0.05  # of the calibration programs' times, beyond which measurements no longer belong to one collection


def is_noisy(measurement):
    return measurement["foreign_share"] > halide_utils.FOREIGN_SHARE_LIMIT


def wait_for_calm(seconds=3):
    """Until nobody else uses the machine, but not for ever: the measurement itself tells whether it was disturbed."""
    deadline = time.monotonic() + seconds
    while halide_utils.foreign_share() > halide_utils.FOREIGN_SHARE_LIMIT and time.monotonic() < deadline:
        pass


def describe_machine():
    """What a measurement depends on: processor, cores, versions, protocol."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    u = halide_utils
    return {
        "processor": model, "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(), "python": platform.python_version(), "halide": importlib.metadata.version("halide"),
        "target": str(hl.get_host_target()),
        "protocol": {
            "threads": "all cores", "freed_memory": "kept by the process", "batch_seconds": u.BATCH_SECONDS,
            "min_seconds": u.MIN_BENCHMARK_SECONDS, "max_seconds": u.MAX_BENCHMARK_SECONDS, "agreement": u.AGREEMENT,
            "foreign_share_limit": u.FOREIGN_SHARE_LIMIT, "tries": TRIES, "passes": [MIN_PASSES, MAX_PASSES], "pass_agreement": PASS_AGREEMENT,
            "repeated_share": REPEATED_SHARE, "runtime": "fastest batch of calls of all passes, its time a call, in milliseconds",
        },
    }  # fmt: skip


@functools.cache
def calibration_programs():
    """{name: compiled program} of a few fixed ones that need the memory, the arithmetic units, or the library of mathematics."""
    programs = {}
    for name, pipeline in halide_utils.calibration_pipelines().items():
        programs[name] = halide_utils.Program(pipeline)
    return programs


def calibrate():
    """{calibration program: milliseconds}, measured now by the protocol of the schedules."""
    passes = [{name: round(halide_utils.benchmark(program, 0).runtime_ms, 6) for name, program in calibration_programs().items()} for _ in range(MIN_PASSES)]
    return {name: min(times[name] for times in passes) for name in passes[0]}


def note_calibration(folder):
    """Measure the calibration programs and add their times to the collection's note.

    Returns by how much they have drifted: the median over the programs of their time over that of the collection's first
    measurement, less 1. On a machine that looks drifted it is measured again, up to three times; the nearest counts.
    """
    path = folder / "collection.json"
    first = orjson.loads(path.read_bytes())["calibration"][:1]
    best = None
    for _ in range(TRIES):
        times = calibrate()
        drift = float(np.median([times[name] / ms for name, ms in first[0]["ms"].items()])) - 1 if first else 0.0
        if best is None or abs(drift) < abs(best[0]):
            best = (drift, times)
        if abs(drift) <= MAX_DRIFT:
            break
        wait_for_calm()
    with FileLock(str(path) + ".lock"):
        note = orjson.loads(path.read_bytes())
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        note["calibration"].append({"when": now, "ms": best[1], "drift": round(best[0], 4)})
        replace_file(path, orjson.dumps(note, option=orjson.OPT_INDENT_2))
    return best[0]
