"""The machine that measures: what it is, whether others use it, and whether it still runs as it did.

Machines differ, and one machine differs from day to day. So a collection notes what it was measured on and how (`describe_machine`),
and the times of a few fixed calibration programs, at its beginning and throughout (`record_calibration`).
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

from config import replace_file
from halide_tools import execution

TRIES = 3  # measurements of one schedule on a busy machine before it is kept and flagged noisy
# Every schedule is measured in short passes through all that are compiled, so that those of one are some seconds apart: others on
# the host slow a machine for seconds at a time, which it can't see. There are so many at least, and more until the three fastest agree.
# What counts is the fastest pass. Fewer do for schedules that are slow: a few of them would take as long as a hundred others, and a
# moment of disturbance is a smaller part of their calls.
PASSES, MAX_PASSES, AGREEING, AGREEMENT = 5, 16, 3, 0.02
SLOW_MS, SLOW_PASSES, SLOW_AGREEING = 100, 3, 2
REPEATED_SHARE = 0.05  # of the schedules are measured again in a fresh process, which tells the noise
MAX_DRIFT = 0.05  # of the calibration programs' times, beyond which measurements no longer belong to one collection


def is_noisy(one_pass):
    return one_pass.background_cpu_share > execution.BACKGROUND_CPU_LIMIT


def runtime_ms(passes):
    """Milliseconds that a call takes, of several execution.Pass."""
    return min(p.ms for p in passes)


def has_converged(passes):
    """Whether several execution.Pass are enough: the fastest of those on a quiet machine agree."""
    fastest = sorted(p.ms for p in passes if not is_noisy(p))
    least, agreeing = (SLOW_PASSES, SLOW_AGREEING) if fastest and fastest[0] > SLOW_MS else (PASSES, AGREEING)
    agree = len(fastest) >= agreeing and fastest[agreeing - 1] <= fastest[0] * (1 + AGREEMENT)
    return len(passes) >= MAX_PASSES or (len(passes) >= least and agree)


def summary(passes):
    """What is noted of a measurement in several execution.Pass, of which those on a quiet machine count, if there are any.

    {"runtime_ms", "samples": batches, "calls", "spread": by how much the median batch of all passes is slower, "cpu_share", "foreign_share", "noisy",
    "passes_ms": runtime_ms of each pass}
    """
    calm = [p for p in passes if not is_noisy(p)]
    counted = calm or [min(passes, key=lambda p: p.background_cpu_share)]
    ms, times = runtime_ms(counted), np.concatenate([p.batch_ms for p in counted])
    return {
        "runtime_ms": round(ms, 6), "samples": len(times), "calls": sum(p.batch * len(p.batch_ms) for p in counted),
        "spread": round(float(np.median(times)) / ms - 1, 4), "cpu_share": round(float(np.mean([p.cpu_share for p in counted])), 4),
        "foreign_share": max(p.background_cpu_share for p in counted), "noisy": not calm, "passes_ms": [round(p.ms, 6) for p in passes],
    }  # fmt: skip


def wait_for_calm(seconds=3):
    """Until nobody else uses the machine, but not for ever: the measurement itself tells whether it was disturbed."""
    deadline = time.monotonic() + seconds
    while execution.background_cpu_share_now() > execution.BACKGROUND_CPU_LIMIT and time.monotonic() < deadline:
        pass


def describe_machine():
    """What a measurement depends on: processor, cores, versions, protocol."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    u = execution
    return {
        "processor": model, "cores": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(), "python": platform.python_version(), "halide": importlib.metadata.version("halide"),
        "target": str(hl.get_host_target()),
        "protocol": {
            "threads": "all cores", "freed_memory": "kept by the process", "batch_seconds": u.BATCH_SECONDS, "pass_seconds": u.PASS_SECONDS,
            "foreign_share_limit": u.BACKGROUND_CPU_LIMIT, "tries": TRIES, "passes": [PASSES, MAX_PASSES], "agreement": [AGREEING, AGREEMENT],
            "slow": {"ms": SLOW_MS, "passes": SLOW_PASSES, "agreement": SLOW_AGREEING}, "pass": "a fork, buffers at drawn offsets",
            "repeated_share": REPEATED_SHARE, "runtime": f"of the fastest pass: milliseconds a call that a share of {u.FAST_SHARE} of its batches is faster than",
        },
    }  # fmt: skip


def calibration_pipelines():
    """{name: hl.Pipeline}: fixed work with a fixed schedule on all cores, whose time tells how fast the machine is today."""
    x, y, xi, yi = hl.vars("x y xi yi")
    r = hl.RDom([(0, 64)])
    image = hl.ImageParam(hl.Float(32), 2, "image")
    image.set_estimates([(0, 4096), (0, 2048)])
    memory, arithmetic, mathematics = hl.Func("memory"), hl.Func("arithmetic"), hl.Func("mathematics")
    memory[x, y] = image[x, y] + image[4095 - x, y]
    memory.set_estimates([(0, 4096), (0, 2048)]).parallel(y, 64).vectorize(x, 8)
    arithmetic[x, y] = 0.0
    arithmetic[x, y] += image[x + r, y] * image[r, y]
    arithmetic.set_estimates([(0, 2048), (0, 128)]).parallel(y, 8).vectorize(x, 8)
    arithmetic.update().tile(x, y, xi, yi, 32, 1).reorder(xi, r.x, yi, x, y).vectorize(xi, 8).unroll(xi).parallel(y, 8)
    mathematics[x, y] = hl.exp(image[x, y]) * hl.log(image[x, y] + 1.0)
    mathematics.set_estimates([(0, 2048), (0, 256)]).parallel(y, 16).vectorize(x, 8)
    return {f.name().split("$")[0]: hl.Pipeline(f) for f in (memory, arithmetic, mathematics)}


@functools.cache
def calibration_programs():
    """{name: compiled program} of a few fixed ones that need the memory, the arithmetic units, or the library of mathematics."""
    programs = {}
    for name, pipeline in calibration_pipelines().items():
        programs[name] = execution.Program(pipeline)
    return programs


def calibrate():
    """{calibration program: milliseconds}, measured now by the protocol of the schedules."""
    programs = calibration_programs()
    passes = [[execution.benchmark(program, 0) for program in programs.values()] for _ in range(MAX_PASSES)]
    return {name: round(runtime_ms(own), 6) for name, own in zip(programs, zip(*passes))}


def record_calibration(folder):
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
