"""Running scheduled pipelines: buffers, compiled programs, the comparison with a reference, and timing."""

import ctypes
import dataclasses
import functools
import math
import os
import random
import sys
import time
from dataclasses import dataclass

import halide as hl
import numpy as np
import psutil

from halide_tools.programs import HOST, Region, estimated_arguments

# One pass of a measurement: batches of calls for so long, one at least.
PASS_SECONDS, BATCH_SECONDS = 0.02, 0.002
# What counts of it is what its batches reach in their fastest moments, but not in the very fastest alone, which may be one that does not
# come again: the quantile of this share.
FAST_SHARE = 0.05
MAX_OFFSET, ALIGNMENT = 2**18, 128  # bytes: from where memory is allocated to where a buffer begins, and what hl.Buffer aligns its own to
RANDOM_POINTS = 65537  # drawn for an input, and repeated; a prime, so that its rows differ
# More of the machine than this used by others while a schedule runs spoils its measurement.
BACKGROUND_CPU_LIMIT = 0.05
TICK = 0.01  # seconds in which the system counts the time that processors are busy

# A schedule is right if its output is the reference's within these; a few points may differ where a computed value sits on a
# threshold and the last bit decides.
FLOAT_TOLERANCE, INTEGER_TOLERANCE, WRONG_POINTS_ALLOWED = 1e-3, 1, 1e-3


def make_buffers(arguments, seed):
    """The arguments of a call, of what estimated_arguments returned: (inputs with reproducible random contents, empty outputs)."""
    rng = np.random.default_rng(seed)
    inputs = [_allocate(a, rng) if isinstance(a, Region) else a for a in arguments[0]]
    return inputs, [_allocate(a) for a in arguments[1]]


def _allocate(region, rng=None):
    """A buffer that begins at a distance drawn anew from where memory is allocated: some distances between buffers are bad for the caches."""
    extents = [extent for _, extent in region.bounds]
    size = math.prod(extents) * region.dtype.itemsize
    memory = np.empty(size + MAX_OFFSET + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + random.randrange(0, MAX_OFFSET, ALIGNMENT)
    array = memory[start : start + size].view(region.dtype)
    if rng:
        _fill(array, rng)
    buffer = hl.Buffer(array.reshape(extents[::-1]))  # numpy names the outermost dimension first
    buffer.set_min([minimum for minimum, _ in region.bounds])
    return buffer


def _fill(array, rng):
    """Random numbers, a few of them over and over: a schedule takes as long with them, and copying is ten times as fast as drawing."""
    n = min(RANDOM_POINTS, array.size)
    if array.dtype.kind == "f":
        drawn = rng.random(n, dtype=np.float32)
    elif array.dtype == bool:
        drawn = rng.random(n) < 0.5
    else:
        # All values of the small types; wider ones are indices or sums more often than pixels.
        highest = min(int(np.iinfo(array.dtype).max), 65535)
        drawn = rng.integers(0, highest, n, dtype=array.dtype, endpoint=True)
    for start in range(0, array.size, RANDOM_POINTS):
        array[start : start + RANDOM_POINTS] = drawn[: array.size - start]


class Program:
    """A scheduled pipeline, compiled for the target of its ProgramSpec: call it to run it once, on so many threads, on its buffers."""

    def __init__(self, pipeline, spec=HOST):
        os.environ["HL_NUM_THREADS"] = str(spec.threads)  # Halide's runtime reads it when it starts its threads
        self.callable = pipeline.compile_to_callable(pipeline.infer_arguments(), spec.halide_target())
        self.pipeline, self.spec, self.estimated = pipeline, spec, estimated_arguments(pipeline)

    def allocate(self, seed):
        inputs, self.outputs = make_buffers(self.estimated, seed)
        self.arguments = [*inputs, *self.outputs]

    def __call__(self):
        self.callable(*self.arguments)

    def results(self):
        return [np.array(o) for o in self.outputs]


def mismatch(outputs, reference):
    """'' where `outputs` are the reference's within tolerance, else one line that says how far they are off."""
    for i, (got, want) in enumerate(zip(outputs, reference)):
        if got.dtype.kind == "f":
            finite = want[np.isfinite(want)]
            tolerance = FLOAT_TOLERANCE * (np.abs(want) + (np.abs(finite).mean() if len(finite) else 0))
            with np.errstate(invalid="ignore"):
                near = np.isfinite(want) & (np.abs(got - want) <= tolerance)
            wrong = ~(near | (got == want) | (np.isnan(got) & np.isnan(want)))
        else:
            tolerance = 0 if got.dtype == bool else INTEGER_TOLERANCE
            wrong = np.abs(got.astype(np.int64) - want.astype(np.int64)) > tolerance
        if wrong.mean() > WRONG_POINTS_ALLOWED:
            return f"output {i} differs from the reference at {wrong.mean():.2%} of its points"
    return ""


@dataclass
class Pass:
    """Batches of calls, one after the other: milliseconds a call in each, and calls a batch.

    cpu_share is CPU time over wall time of the process: near the number of cores where all of a schedule runs in parallel. background_cpu_share is
    the part of the machine that others used meanwhile, less what rounding could make of none.
    """

    batch_ms: list
    batch: int
    cpu_share: float
    background_cpu_share: float

    @functools.cached_property
    def ms(self):
        """Milliseconds that a call takes."""
        return float(np.quantile(self.batch_ms, FAST_SHARE))


def _cpu_seconds():
    """(all cores' busy seconds since boot, those of this process): the difference is what others used."""
    t = psutil.cpu_times()
    return sum(t) - t.idle - getattr(t, "iowait", 0.0) - getattr(t, "guest", 0.0) - getattr(t, "guest_nice", 0.0), time.process_time()


def keep_memory():
    """Make this process keep what it frees (glibc): else a schedule may or may not return its buffers to the system at every run.

    Which of the two depends on what else lies on the heap, and getting the pages back can take longer than the schedule itself.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-4, 0)  # M_MMAP_MAX


def benchmark(program, seed):
    """Run a Program for PASS_SECONDS, on buffers allocated afresh. Returns a Pass."""
    program.allocate(seed)
    program()  # the first call may start threads and touch memory for the first time
    before = _cpu_seconds()
    start = time.perf_counter()
    program()
    now = time.perf_counter()
    batch = max(1, int(BATCH_SECONDS / max(now - start, 1e-7)))
    times = [round((now - start) * 1e3, 6)] if batch == 1 else []
    while not times or now - start < PASS_SECONDS:
        for _ in range(batch):
            program()
        began, now = now, time.perf_counter()
        times.append(round((now - began) / batch * 1e3, 6))
    busy, own = (b - a for a, b in zip(before, _cpu_seconds()))
    return Pass(times, batch, round(own / (now - start), 4), round(max(0.0, busy - own - TICK) / ((now - start) * os.cpu_count()), 4))


def run_under_profiler(pipeline, spec, seconds):
    """Run a scheduled `pipeline` for a while; Halide's profiler prints how long each Func took."""
    target = spec.halide_target().with_feature(hl.TargetFeature.Profile)
    program = Program(pipeline, dataclasses.replace(spec, target=str(target)))
    program.allocate(spec.seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        program()


def background_cpu_share_now(seconds=0.1):
    """The share of the machine in use over the next moment, this process asleep."""
    before, _ = _cpu_seconds()
    time.sleep(seconds)
    return max(0.0, _cpu_seconds()[0] - before) / (seconds * os.cpu_count())
