"""Running scheduled pipelines: buffers, compiled programs, the comparison with a reference, and timing."""

import copy
import ctypes
import dataclasses
import functools
import os
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import halide as hl
import numpy as np
import psutil

from halide_tools.buffers import (
    PATTERNS,
    Region,
    allocate,
    draw,
    estimated_arguments,
    index_inputs,
    lowered_text,
    meet,
    put_contents,
    query,
)
from halide_tools.comparison import comparisons, mismatch
from halide_tools.programs import HOST, reference_schedules, schedule_everything_at_root

# One pass of a measurement: batches of calls for so long, one at least.
PASS_SECONDS, BATCH_SECONDS = 0.02, 0.002
# What counts of it is what its batches reach in their fastest moments, but not in the very fastest alone, which may be one that does not
# come again: the quantile of this share.
FAST_SHARE = 0.05
# More of the machine than this used by others while a schedule runs spoils its measurement.
BACKGROUND_CPU_LIMIT = 0.05
FEW_POINTS = 8  # extents up to this are numbers of channels and the like: no other size of them is tried
TICK = 0.01  # seconds in which the system counts the time that processors are busy
# Of the profiler's report: how many calls it is of, and the milliseconds that a Func took in all of them, or waiting for threads did.
PROFILED_CALLS, PROFILED_FUNC = re.compile(r"\bruns: (\d+)"), re.compile(r"^\s+(\S.*?):\s+([\d.]+)\s*ms\s+\(")
UNALIGNED = re.compile(r"host pointer of (\S+) is not aligned to a (\d+) bytes")  # Halide's refusal of a buffer


class Program:
    """A scheduled pipeline, compiled for the target of its ProgramSpec: call it to run it once, on so many threads, on its buffers.

    is_reference : whether it is what others are compared with; then promises about its inputs are checked, so that contents that break
    them are an error and not a crash. Raises hl.HalideError where it can't be compiled, ValueError where its buffers can't be had.
    """

    def __init__(self, pipeline, spec=HOST, is_reference=False):
        os.environ["HL_NUM_THREADS"] = str(spec.threads)  # Halide's runtime reads it when it starts its threads
        self.pipeline, self.spec, self.target = pipeline, spec, spec.halide_target()
        if is_reference:
            self.target = self.target.without_feature(hl.TargetFeature.NoAsserts).with_feature(hl.TargetFeature.CheckUnsafePromises)
        self.callable = pipeline.compile_to_callable(pipeline.infer_arguments(), self.target)
        self._regions, self.extents = {}, {}  # {seed: what a call takes}; what `resized` was told
        self.alignments = {}  # of buffers that Halide has refused: {name: bytes}
        self.regions(spec.seed)  # once, for all the forks of this process that will run it

    def resized(self, extents):
        """The same compiled program for other outputs: `extents` {dimension: of the first output}; others grow and shrink with it."""
        other = copy.copy(self)
        other._regions, other.extents = {}, extents
        return other

    def regions(self, seed):
        """What a call takes: (inputs, outputs), a Region or a number each, as large and laid out as the compiled pipeline demands.

        It may depend on the contents of inputs, and so on the seed. Raises ValueError, in one line, where that can't be had.
        """
        if seed not in self._regions:
            self._regions[seed] = self._meet_demand(seed)
        return self._regions[seed]

    def _meet_demand(self, seed):
        inputs, outputs = estimated_arguments(self.pipeline, self.spec.inputs)
        arguments = [*inputs, *(resize(output, outputs[0].extents, self.extents) for output in outputs)]
        if not self.target.has_feature(hl.TargetFeature.NoBoundsQuery):
            demanded = iter(query(self.callable, arguments, self._read_early(inputs, seed)))
            for i, region in enumerate(arguments):
                if isinstance(region, Region):
                    needed = next(demanded)
                    if i >= len(inputs) and [tuple(n[:2]) for n in needed] != list(region.bounds):
                        demand = dataclasses.replace(region, bounds=tuple((low, n) for low, n, _ in needed))
                        raise ValueError(f"output {region.name.partition('$')[0]} must be {demand}, where its estimates say {region}")
                    arguments[i] = meet(region, needed)
        for region in arguments:
            if isinstance(region, Region) and region.n_bytes > self.target.maximum_buffer_size():
                raise ValueError(
                    f"{region.name} takes {region.n_bytes / 2**30:.1f} GiB; "
                    f"buffers of 2 GiB and more need --target {self.spec.target}-large_buffers"
                )
        return arguments[: len(inputs)], arguments[len(inputs) :]

    def _read_early(self, inputs, seed):
        """{index: buffer} of the inputs whose contents a bounds query reads, since they say where others are read."""
        indexing = index_inputs(self.pipeline)
        if not indexing:
            return {}
        before = lowered_text(self.pipeline, self.target).rpartition("\nexternal")[2].split("produce ")[0]  # what comes first are tasks
        given, found = dict(self.spec.inputs), {}
        for i, region in enumerate(inputs):
            if isinstance(region, Region) and region.name in indexing and re.search(rf"(?<![\w.$]){re.escape(region.name)}\[", before):
                found[i] = allocate(region)
                put_contents(found[i], given.get(region.name), [seed, i])
        return found

    @functools.cached_property
    def comparisons(self):
        """How to compare each output."""
        return comparisons(self.pipeline)

    def allocate(self, seed):
        """Buffers for a call: inputs with reproducible contents, outputs with whatever lies in memory."""
        inputs, outputs = self.regions(seed)
        given, self.outputs, self.arguments = dict(self.spec.inputs), [], []
        for i, region in enumerate([*inputs, *outputs]):
            if not isinstance(region, Region):
                self.arguments.append(region)
                continue
            allocation = allocate(dataclasses.replace(region, alignment=max(region.alignment, self.alignments.get(region.name, 1))))
            self.arguments.append(allocation.buffer)
            if i >= len(inputs):
                self.outputs.append(allocation)
            else:
                put_contents(allocation, given.get(region.name), [seed, i])

    def start(self, seed, pattern=None):
        """Allocate, and call for the first time. Alignments of inputs, which nothing tells but Halide's refusal, are found on the way.

        pattern : a byte that the outputs hold before.
        """
        while True:
            self.allocate(seed)
            for output in self.outputs if pattern is not None else []:
                output.set_bytes(pattern)
            try:
                return self()
            except hl.HalideError as error:
                found = UNALIGNED.search(str(error))
                if not found or self.alignments.get(found[1]) == int(found[2]):
                    raise
                self.alignments[found[1]] = int(found[2])

    def __call__(self):
        self.callable(*self.arguments)

    def results(self):
        """Copies of the outputs, as numpy has them: the outermost dimension first."""
        return [o.contents() for o in self.outputs]

    def results_of_two_runs(self, seed):
        """Outputs of a run on memory that holds the first of PATTERNS, then of one on the second: what was never written shows."""
        found = []
        for pattern in PATTERNS:
            self.start(seed, pattern)
            found += self.results()
        return found

    def mismatch(self, seed, reference):
        """What is wrong with its results, in one line, or ''; `reference` : results_of_two_runs of the program's reference."""
        results, reference = self.results_of_two_runs(seed), list(reference)
        wrong, n = mismatch(results, reference, self.comparisons), len(self.outputs)
        races = wrong and any(
            not np.array_equal(a, b, equal_nan=a.dtype.kind == "f") and np.array_equal(c, d, equal_nan=a.dtype.kind == "f")
            for a, b, c, d in zip(results[:n], results[n:], reference[:n], reference[n:])
        )
        return wrong + ("; it differs from run to run" if races else "")


def describe_inputs(spec):
    """What the inputs of a program hold, for its record: {name: {"type", "dimensions", "contents", "indexes"}}.

    indexes : whether it says where others are read or written.
    """
    pipeline, given, found = spec.build(), dict(spec.inputs), {}
    indexing = index_inputs(pipeline)
    for a in pipeline.infer_arguments():
        if a.name in given:
            text = given[a.name]
            contents = f"file {Path(text).name}" if text.endswith(".npy") else f"{'drawn from' if ':' in text else 'the value'} {text}"
        elif a.kind == hl.ArgumentKind.InputScalar:
            contents = "its estimate"
        else:
            contents = "random, " + draw(str(a.type), np.random.default_rng(0))[1]
        found[a.name] = {"type": str(a.type), "dimensions": a.dimensions, "contents": contents, "indexes": a.name in indexing}
    return found


def index_hint(spec):
    """What to say where a program crashes or refuses its inputs: which of them it indexes by, while they are random. Else ''."""
    names = [name for name, i in describe_inputs(spec).items() if i["indexes"] and i["contents"].startswith("random")]
    if not names:
        return ""
    how = f"{names[0]}=FILE.npy or {names[0]}=LOW:HIGH"
    return f"it indexes by {', '.join(names)}, whose contents are random: give them with --inputs {how}"


def minimum_extents(spec, pipeline):
    """The smallest output, by dimension, that a scheduled `pipeline` of `spec` can be called with: a list for each output buffer.

    Extents are looked for one dimension after the other, the later ones as large as their estimates, so that all of them hold
    together. Outputs of one size are made smaller together. A size will do where the compiled pipeline asks for no larger output, and for
    no more of its inputs than the unscheduled algorithm reads for that size. Inputs whose size the algorithm reads (boundary conditions)
    are taken to shrink as the output does.
    """
    reference = spec.build()
    schedule_everything_at_root(reference)
    programs = [Program(p, spec) for p in (pipeline, reference)]
    inputs, outputs = programs[0].regions(spec.seed)
    read_early = [p._read_early(inputs, spec.seed) for p in programs]
    full = outputs[0].extents

    def demanded(i, extents):
        """What the schedule (0) or the algorithm (1) demands of [inputs, outputs] for a first output of these extents."""
        smaller = dict(enumerate(extents))
        arguments = [
            a if not isinstance(a, Region) else resize(a, full, smaller) if k >= len(inputs) or any(a.is_fixed) else a
            for k, a in enumerate([*inputs, *outputs])
        ]
        return [a for a in arguments if isinstance(a, Region)], query(programs[i].callable, arguments, read_early[i])

    def will_do(extents):
        try:
            asked, got = demanded(0, extents)
            _, needed = demanded(1, extents)
        except hl.HalideError:
            return False
        n_inputs = len(asked) - len(outputs)
        for k, (region, of_schedule, of_algorithm) in enumerate(zip(asked, got, needed)):
            for (low, n), (start, size, _), (first, least, _) in zip(region.bounds, of_schedule, of_algorithm):
                if k >= n_inputs and (start, size) != (low, n):
                    return False
                if k < n_inputs and size and not (min(first, low) <= start and start + size <= max(first + least, low + n)):
                    return False
        return True

    extents = list(full)
    for i in range(len(full)):
        extents[i] = next((n for n in range(1, full[i]) if will_do([*extents[:i], n, *extents[i + 1 :]])), full[i])
    return [[-(-n * e // f) if f else n for n, e, f in zip(o.extents, extents, full)] + list(o.extents[len(full) :]) for o in outputs]


def resize(region, full, extents):
    """A Region of other extents where a first output of extents `full` is to have `extents`, {dimension: n}: it changes in proportion."""

    def resized(i, n):
        return max(1, -(-n * extents[i] // full[i])) if i in extents and full[i] else n

    return dataclasses.replace(region, bounds=tuple((low, resized(i, n)) for i, (low, n) in enumerate(region.bounds)))


def compare_sizes(program, way, smallest=None):
    """Whether a compiled Program is right for outputs of other sizes than its estimates: one smaller, one larger, and one of odd extents.

    way : of programs.reference_schedules, to compute what it is compared with; smallest : the first of minimum_extents, or None where that
    is not known. Dimensions of few points, and those that the algorithm itself does not take otherwise, stay as they are. Returns a list of
    {"extents": of the first output, "outcome": "same", "differs", "refused" or "not_taken" (by the algorithm), "detail": in words}.
    """
    spec, seed = program.spec, program.spec.seed
    pipeline = spec.build()
    reference_schedules()[way](pipeline, spec)
    reference = Program(pipeline, spec, is_reference=True)
    full = reference.regions(seed)[1][0].extents
    least = smallest or full

    def takes(i):
        try:
            return reference.resized({i: full[i] + 1}).regions(seed) is not None
        except (hl.HalideError, ValueError):
            return False

    free = [i for i, n in enumerate(full) if n > FEW_POINTS and takes(i)]
    sizes = [{i: max(least[i], full[i] // 2) for i in free}, {i: full[i] + full[i] // 4 for i in free}]
    sizes.append({i: max(least[i], full[i] * 3 // 4) | 1 for i in free})
    found = []
    for size in sizes if free else []:
        extents = [size.get(i, n) for i, n in enumerate(full)]
        outcome, detail = "not_taken", ""
        try:
            expected = reference.resized(size).results_of_two_runs(seed)
            outcome = "refused"
            detail = program.resized(size).mismatch(seed, expected)
            outcome = "differs" if detail else "same"
        except (hl.HalideError, ValueError) as error:
            detail = " ".join(str(error).split()).removeprefix("Error: ")
        found.append({"extents": extents, "outcome": outcome, "detail": detail})
    return found


@dataclass
class Pass:
    """Batches of calls, one after the other: milliseconds a call in each, and calls a batch.

    cpu_share is CPU time over wall time of the process: near the number of cores where all of a schedule runs in parallel.
    background_cpu_share is the part of the machine that others used meanwhile, less what rounding could make of none.
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
    program.start(seed)  # the first call may start threads and touch memory for the first time
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


def printed(work):
    """What is printed while `work()` runs, by C and C++, too; sent nowhere else."""
    flush = ctypes.CDLL(None).fflush
    sys.stdout.flush(), sys.stderr.flush(), flush(None)
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            work()
        finally:
            flush(None)
            for number, old in enumerate(kept, 1):
                os.dup2(old, number), os.close(old)
        file.seek(0)
        return file.read().decode(errors="replace")


def profile(pipeline, spec, seconds):
    """{Func: milliseconds a call} of a scheduled `pipeline` that runs for so long under Halide's profiler.

    The profiler looks about once a millisecond at what is running, so only the sum over many calls tells something. A Func that is inlined
    counts as part of its readers. `waiting for parallel tasks to finish` is one of the keys. Raises ValueError where nothing is reported.
    """
    target = spec.halide_target().with_feature(hl.TargetFeature.Profile)
    program = Program(pipeline, dataclasses.replace(spec, target=str(target)))
    printed(lambda: program.start(spec.seed))  # with a report of a call that is not like the others
    deadline = time.monotonic() + seconds

    def calls():
        program()
        while time.monotonic() < deadline:
            program()

    return read_profile(printed(calls))


def read_profile(text):
    """What `profile` returns, from one or more reports of Halide's profiler."""
    calls, totals = sum(map(int, PROFILED_CALLS.findall(text))), Counter()
    for line in text.splitlines():
        if found := PROFILED_FUNC.match(line):
            totals[found[1]] += float(found[2])
    if not calls or not totals:
        raise ValueError("Halide's profiler has reported nothing")
    return {name: total / calls for name, total in totals.items()}


def background_cpu_share_now(seconds=0.1):
    """The share of the machine in use over the next moment, this process asleep."""
    before, _ = _cpu_seconds()
    time.sleep(seconds)
    return max(0.0, _cpu_seconds()[0] - before) / (seconds * os.cpu_count())
