"""Everything that talks to Halide: pipelines in, diverse schedules, compiled programs and measured runtimes out.

Used by the scripts that measure; the scripts that learn never import it. Needs nothing but `pip install halide`, which brings
the compiler, the Python bindings and the Adams2019 autoscheduler with its trained weights inside.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import math
import os
import random
import re
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import halide as hl
import numpy as np
import psutil
from halide import _generator_helpers

from features import CALLS
from pipelines import random_programs

LIBRARIES = Path(hl.install_dir()) / "lib64"

# How features.CALLS look in the text of a definition. For the first two Halide calls the C library on a CPU, a lane at a time; the others
# it computes in vectors. Division by a constant that is a power of two is a shift; what divides by a value can't be told from float division.
CALL_PATTERNS = {
    "sin_cos": r"\b(?:sin|cos)_f\d+\(",
    "library": r"\b(?:(?:a(?:sin|cos|tan)h?|(?:sin|cos|tan)h|tan|atan2)_f\d+|(?:exp|log|pow)_f64)\(",
    **{name: rf"\b{name}_f(?:16|32)\(" for name in ("exp", "log", "pow")},
    "sqrt": r"\bsqrt_f\d+\(",
    "int_division": r"% ?\((?!u?int\d)|[/%] ?(?:\(u?int\d+\))?(?!(?:" + "|".join(str(2**i) for i in range(31)) + r")\b)\d+(?![\d.])",
}

# A `.weights` file: this header, then per buffer its number of dimensions, extents and float32 values (Halide's Weights.cpp).
WEIGHTS_HEADER = struct.pack("<4I", 0x68776631, 3, 3, 6)
WEIGHT_SHAPES = [(8, 40, 7), (8,), (24, 39), (24,), (32, 32), (32,)]

# One pass of a measurement: batches of calls for so long, one at least.
PASS_SECONDS, BATCH_SECONDS = 0.02, 0.002
# What counts of it is what its batches reach in their fastest moments, but not in the very fastest alone, which may be one that does not
# come again: the quantile of this share.
FAST_SHARE = 0.05
MAX_OFFSET, ALIGNMENT = 2**18, 128  # bytes: from where memory is allocated to where a buffer begins, and what hl.Buffer aligns its own to
RANDOM_POINTS = 65537  # drawn for an input, and repeated; a prime, so that its rows differ
# More of the machine than this used by others while a schedule runs spoils its measurement.
FOREIGN_SHARE_LIMIT = 0.05
TICK = 0.01  # seconds in which the system counts the time that processors are busy

# A schedule is right if its output is the reference's within these; a few points may differ where a computed value sits on a
# threshold and the last bit decides.
FLOAT_TOLERANCE, INTEGER_TOLERANCE, WRONG_POINTS_ALLOWED = 1e-3, 1, 1e-3


# Pipelines


@dataclass(frozen=True)
class ProgramSpec:
    """How to build a program afresh in any process: a random program by its seed, or a Generator (or build()) in a file."""

    name: str
    seed: int
    path: str = ""
    generator: str = ""
    max_stages: int = 25

    def build(self):
        """The unscheduled hl.Pipeline; `using_autoscheduler()` is true in a Generator, which so leaves out its own schedule."""
        if not self.path:
            return random_programs.build(self.seed, self.max_stages)[0]
        return self.build_with_arguments()[0]

    def build_with_arguments(self):
        """(hl.Pipeline, its hl.Arguments in the order in which the Generator declares them), for a program in a file."""
        module, generators = load_module(self.path)
        if not self.generator:
            pipeline = module.build()
            return pipeline, pipeline.infer_arguments()
        with hl.GeneratorContext(hl.get_host_target(), autoscheduler_params()):
            generator = generators[self.generator]()
            pipeline = generator._build_pipeline()
        declared = list(generator._input_parameters)
        return pipeline, sorted(pipeline.infer_arguments(), key=lambda argument: declared.index(argument.name))


@functools.cache
def load_module(path):
    """(module, {name: Generator class}) of a Python file.

    Halide keeps one table of names a process and refuses a second Generator of the same name; here each file has its own.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    table = _generator_helpers._python_generators
    others = dict(table)
    table.clear()
    try:
        spec.loader.exec_module(module)
        return module, dict(table)
    finally:
        table.clear()
        table.update(others)


def programs_in(path):
    """The ProgramSpecs of a file: one for each Generator it registers, or one for its `build()`.

    Raises ValueError, in one line, where the file holds neither or can't be imported.
    """
    try:
        module, generators = load_module(str(Path(path).resolve()))
    except Exception as error:  # whatever a user's file may raise
        raise ValueError(f"{path}: can't be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error
    names = sorted(generators)
    stem = Path(path).stem
    seed = int.from_bytes(stem.encode()[:3], "little")
    if not names and not hasattr(module, "build"):
        raise ValueError(f"{path}: no @hl.generator class and no build() in it; add one of them")
    return [ProgramSpec(name, seed, str(Path(path).resolve()), name) for name in names] or [
        ProgramSpec(stem, seed, str(Path(path).resolve()))
    ]


def functions(pipeline):
    """The pipeline's Funcs from output to inputs, without the wrappers of its input images: the order of a featurization."""
    inputs = {a.name for a in pipeline.infer_arguments()}
    found, index = [], 0
    while True:
        try:
            func = pipeline.get_func(index)
        except (hl.HalideError, IndexError):
            break
        index += 1
        if re.sub(r"_im(\$\d+)?$", "", func.name()) not in inputs:
            found.append(func)
    return found[::-1]


def describe_stages(pipeline):
    """What a featurization leaves out: {"stages", "edges", "calls"}.

    stages : names in featurization order (a Func's last update first); edges : [from, to] between Funcs; calls : {kind: [calls a point
    of each stage]} for the kinds in features.CALLS.
    """
    funcs = functions(pipeline)
    names = {f.name() for f in funcs}
    stages, edges, calls = [], [], {kind: [] for kind in CALLS}
    for func in funcs:
        updates = [(f"{func.name()}.update({i})", func.update_values(i), func.update_args(i)) for i in range(func.num_update_definitions())]
        texts = []
        for name, *parts in [*reversed(updates), (func.name(), func.values())]:
            texts.append(" ".join(map(str, parts)))
            stages.append(name)
            for kind, pattern in CALL_PATTERNS.items():
                calls[kind].append(len(re.findall(pattern, texts[-1])))
        called = set(re.findall(r"([\w$.]+)\(", " ".join(texts))) & names
        edges += [[producer, func.name()] for producer in sorted(called - {func.name()})]
    return {"stages": stages, "edges": edges, "calls": calls}


# Schedules


def autoscheduler_params(name="Adams2019", **extra):
    """hl.AutoschedulerParams on all cores; `extra` are the autoscheduler's own parameters, as text or numbers."""
    return hl.AutoschedulerParams(name, {k: str(v) for k, v in (parallelism() | extra).items()})


def parallelism():
    return {"parallelism": os.cpu_count()}


@functools.cache
def load_autoscheduler(name):
    hl.load_plugin(str(LIBRARIES / f"libautoschedule_{name.lower()}.so"))


@functools.cache
def baseline_weights():
    """The weights Adams2019 ships with, cut out of its plug-in: list of float32 arrays of WEIGHT_SHAPES."""
    data = (LIBRARIES / "libautoschedule_adams2019.so").read_bytes()
    at = data.rfind(WEIGHTS_HEADER)
    if at < 0:
        raise RuntimeError("no trained weights found in libautoschedule_adams2019.so: is this halide==21.0.0?")
    return _parse_weights(data, at, "libautoschedule_adams2019.so")


def read_weights(path):
    """The arrays of a `.weights` file, as baseline_weights gives them. Raises RuntimeError where `path` is no such file."""
    data = Path(path).read_bytes()
    if not data.startswith(WEIGHTS_HEADER):
        raise RuntimeError(f"{path}: not weights of Adams2019 as of Halide 21")
    return _parse_weights(data, 0, path)


def _parse_weights(data, at, where):
    at += len(WEIGHTS_HEADER)
    arrays = []
    for shape in WEIGHT_SHAPES:
        n_dims, *extents = struct.unpack_from(f"<{1 + len(shape)}I", data, at)
        if n_dims != len(shape) or tuple(extents) != shape:
            raise RuntimeError(f"{where}: unexpected shape {extents} among its weights")
        at += 4 * (1 + len(shape))
        arrays.append(np.frombuffer(data, "<f4", int(np.prod(shape)), at))
        at += arrays[-1].nbytes
    return arrays


def write_weights(path, arrays):
    """Write a `.weights` file that `weights_path` of an unmodified Halide takes."""
    with open(path, "wb") as f:
        f.write(WEIGHTS_HEADER)
        for shape, array in zip(WEIGHT_SHAPES, arrays):
            f.write(struct.pack(f"<{1 + len(shape)}I", len(shape), *shape) + array.astype("<f4").tobytes())


def add_noise(weights, sigma, rng):
    """`weights` with Gaussian noise of `sigma` standard deviations of each buffer."""
    return [w + np.float32(sigma * w.std()) * rng.standard_normal(w.shape, dtype=np.float32) for w in weights]


@dataclass(frozen=True)
class Proposal:
    """One way to ask Adams2019 for a schedule; equal proposals give equal schedules.

    sigma: how much noise the trained weights get, in standard deviations of each buffer; 0 leaves them, -1 replaces them.
    dropout: Adams2019's random_dropout in percent (100 plain search, 1 a random walk led by the weights).
    steps: (sigma, seed) of more noise on top of that, one for each time a proposal was varied.
    """

    autoscheduler: ClassVar = "Adams2019"
    sigma: float
    dropout: int
    beam_size: int
    seed: int
    steps: tuple = ()

    @classmethod
    def draw(cls, program_seed, k):
        """The k-th proposal for a program. The 0th is Adams2019 as shipped with a greedy search."""
        if k == 0:
            return cls(sigma=0.0, dropout=100, beam_size=1, seed=0)
        rng = np.random.default_rng([program_seed, k])
        sigma = float(rng.choice([0.0, 0.1, 0.3, 1.0, 1.0, -1.0], p=[0.1, 0.15, 0.25, 0.2, 0.1, 0.2]))
        dropout = 1 if sigma == 0.0 else int(rng.choice([1, 100]))
        return cls(sigma=sigma, dropout=dropout, beam_size=1, seed=int(rng.integers(2**31 - 1)))

    @classmethod
    def from_record(cls, record):
        """The proposal in a candidate's entry of program.json."""
        return cls(record["sigma"], record["dropout"], record["beam_size"], record["seed"], tuple(map(tuple, record.get("steps", ()))))

    def varied(self, rng):
        """A proposal for a schedule like this one's in most places: a little more noise on the same weights."""
        step = (float(rng.choice([0.03, 0.1, 0.3])), int(rng.integers(2**31 - 1)))
        return dataclasses.replace(self, steps=(*self.steps, step))

    def weights(self):
        rng = np.random.default_rng(self.seed)
        if self.sigma < 0:
            weights = [rng.uniform(-0.5, 0.5, w.shape).astype(np.float32) for w in baseline_weights()]
        else:
            weights = add_noise(baseline_weights(), self.sigma, rng)
        for sigma, seed in self.steps:
            weights = add_noise(weights, sigma, np.random.default_rng(seed))
        return weights

    def parameters(self, weights_path):
        """What Adams2019 must be told, {name: value}; `weights_path` is where its weights are, if they are not those it ships with."""
        values = {"beam_size": self.beam_size, "random_dropout": self.dropout, "random_dropout_seed": self.seed}
        return values | ({"weights_path": weights_path} if self.sigma or self.steps else {})

    def apply(self, pipeline):
        """Schedule `pipeline` in place; returns (featurization bytes, C++ schedule source). Raises hl.HalideError."""
        load_autoscheduler("Adams2019")
        with tempfile.TemporaryDirectory() as folder:
            # Adams2019 only warns where the file is missing and goes on with random weights, so it is written right here.
            path = f"{folder}/proposed.weights"
            write_weights(path, self.weights())
            result = pipeline.apply_autoscheduler(hl.get_host_target(), autoscheduler_params(**self.parameters(path)))
        return bytes(result.featurization), result.schedule_source


@dataclass(frozen=True)
class OtherAutoscheduler:
    """The schedule of another of Halide's autoschedulers, Mullapudi2016 or Li2018. They give no featurization."""

    autoscheduler: str

    def parameters(self, weights_path):
        """As of Proposal: it needs none."""
        return {}

    def apply(self, pipeline):
        load_autoscheduler(self.autoscheduler)
        return b"", pipeline.apply_autoscheduler(hl.get_host_target(), autoscheduler_params(self.autoscheduler)).schedule_source


@dataclass(frozen=True)
class WithWeights:
    """What Adams2019's beam search finds with the weights in a file."""

    weights_path: str
    beam_size: int

    def apply(self, pipeline):
        load_autoscheduler("Adams2019")
        result = pipeline.apply_autoscheduler(hl.get_host_target(), autoscheduler_params(**vars(self)))
        return bytes(result.featurization), result.schedule_source


def schedule_everything_at_root(pipeline):
    """The schedule of the reference: every Func computed in full before its readers. Slow, but it always compiles."""
    for func in functions(pipeline):
        func.compute_root()


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


# Running


@dataclass(frozen=True)
class Region:
    """Of a buffer: its element type (np.dtype) and (minimum, extent) of each dimension, innermost first."""

    dtype: np.dtype
    bounds: list


def estimated_arguments(pipeline):
    """What a call of `pipeline` takes, as large as the estimates say: (inputs, outputs), a Region for each buffer, a number for each scalar.

    Raises ValueError, in one line, for a missing estimate.
    """
    inputs, outputs = [], []
    for argument in pipeline.infer_arguments():
        estimates = argument.argument_estimates
        if argument.dimensions:
            bounds = [(r.min, r.extent) for r in estimates.buffer_estimates]
            inputs.append(_region(argument.type, bounds, f"input {argument.name}"))
            continue
        value = estimates.scalar_estimate if estimates.scalar_estimate.defined() else estimates.scalar_def
        if not value.defined():
            raise ValueError(f"input {argument.name} has no estimate: call set_estimate on it")
        inputs.append(hl.evaluate(value))
    for func in pipeline.outputs():
        for buffer, type in zip(func.output_buffers(), func.types()):
            p = buffer.parameter()
            bounds = [(p.min_constraint_estimate(i), p.extent_constraint_estimate(i)) for i in range(p.dimensions())]
            outputs.append(_region(type, bounds, f"output {func.name()}"))
    return inputs, outputs


def _region(type, bounds, what):
    if not all(m.defined() and e.defined() for m, e in bounds):
        raise ValueError(f"{what} has no estimates: call set_estimates on it")
    return Region(np.array(hl.Buffer(type, [1]), copy=False).dtype, [(_constant(m), _constant(e)) for m, e in bounds])


def _constant(expression):
    """Its value; what isn't a plain number is compiled and run, which takes a tenth of a second."""
    number = re.fullmatch(r"<halide.Expr of type int32: (-?\d+)>", str(expression))
    return int(number[1]) if number else hl.evaluate(expression)


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
    """A scheduled pipeline, compiled for this machine: call it to run it once on its buffers."""

    def __init__(self, pipeline, target=None):
        self.callable = pipeline.compile_to_callable(pipeline.infer_arguments(), target or hl.get_host_target())
        self.pipeline, self.estimated = pipeline, estimated_arguments(pipeline)

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

    cpu_share is CPU time over wall time of the process: near the number of cores where all of a schedule runs in parallel. foreign_share is
    the part of the machine that others used meanwhile, less what rounding could make of none.
    """

    batch_ms: list
    batch: int
    cpu_share: float
    foreign_share: float

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


def run_under_profiler(pipeline, seed, seconds):
    """Run a scheduled `pipeline` for a while; Halide's profiler prints how long each Func took."""
    program = Program(pipeline, hl.get_host_target().with_feature(hl.TargetFeature.Profile))
    program.allocate(seed)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        program()


def foreign_share(seconds=0.1):
    """The share of the machine in use over the next moment, this process asleep."""
    before, _ = _cpu_seconds()
    time.sleep(seconds)
    return max(0.0, _cpu_seconds()[0] - before) / (seconds * os.cpu_count())
