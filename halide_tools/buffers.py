"""Buffers of a call: how large, how laid out and with what contents.

Outputs are as large as their estimates. What inputs must hold is asked of the compiled pipeline (a bounds query, as Halide's RunGen does)
or read in the lowered code, since schedules may read beyond what the algorithm needs. Contents depend on coordinates alone, so that every
schedule sees the same numbers at the same places.
"""

import ctypes
import math
import random
import re
import tempfile
import weakref
import zipfile
from dataclasses import dataclass
from pathlib import Path

import halide as hl
import numpy as np

MAX_OFFSET, ALIGNMENT = 2**18, 128  # bytes: from where memory is allocated to where a buffer begins, and what hl.Buffer aligns its own to
RANDOM_POINTS = 65537  # drawn for an input, and repeated; a prime, so that its rows differ
# By how many of the drawn points neighbours in each dimension lie apart; all differ modulo the prime.
STEPS = (1, 7919, 31337, 11113, 50021, 23789, 60169, 43711)
# Bytes that output memory holds before two runs: a point that holds first the one and then the other was never written.
PATTERNS = (0xA5, 0x5A)
TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4}  # of halide_type_t
# Of random integers, beyond 16 bits: such inputs are counts, sums and indices, and their products should fit.
WIDE_SIGNED, WIDE_UNSIGNED = 4096, 65535
FILL_CHUNK = 2**22  # points filled at a time


class RawBuffer(ctypes.Structure):
    """The beginning of halide_buffer_t (HalideRuntime.h)."""

    _fields_ = [
        ("device", ctypes.c_uint64), ("device_interface", ctypes.c_void_p), ("host", ctypes.c_void_p), ("flags", ctypes.c_uint64),
        ("type_code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("dimensions", ctypes.c_int32),
    ]  # fmt: skip


@dataclass(frozen=True)
class Region:
    """A buffer: name, element type in Halide's words, (minimum, extent) and stride (in elements) of each dimension, innermost first.

    strides : None where they are dense. source : where the bounds come from, "estimate", "file" or "guess" (an input without
    estimates is taken to be as large as the output until the pipeline says what it needs). is_fixed : for each dimension, whether the
    bounds must stay because results depend on them. alignment : of the first element, in bytes.
    """

    name: str
    type: str
    bounds: tuple
    strides: tuple | None = None
    source: str = "estimate"
    is_fixed: tuple = ()
    alignment: int = 1

    @property
    def dtype(self):
        """What numpy holds its elements in: the bits of bfloat16 in uint16, bool in bytes, which need not be 0 or 1."""
        return np.dtype({"bfloat16": "uint16", "bool": "uint8"}.get(self.type, self.type))

    @property
    def extents(self):
        return tuple(extent for _, extent in self.bounds)

    @property
    def element_strides(self):
        """Strides in elements, dense ones where none are given."""
        return self.strides if self.strides is not None else tuple(math.prod(self.extents[:i]) for i in range(len(self.bounds)))

    @property
    def n_bytes(self):
        """From the lowest address to the end of the highest."""
        return (
            1 + sum((extent - 1) * abs(stride) for extent, stride in zip(self.extents, self.element_strides) if extent)
        ) * self.dtype.itemsize

    @property
    def n_bytes_before(self):
        """From the lowest address to that of the element at the minima, behind which dimensions of negative stride begin."""
        return sum(max(extent - 1, 0) * max(-stride, 0) for extent, stride in zip(self.extents, self.element_strides)) * self.dtype.itemsize

    def __str__(self):
        return " x ".join(map(str, self.extents)) + " from " + ", ".join(str(minimum) for minimum, _ in self.bounds)


def estimated_arguments(pipeline, given=()):
    """What a call of `pipeline` takes, as far as estimates say: (inputs, outputs), a Region for each buffer, a number for each scalar.

    given : ((name, "FILE.npy" or number as text), ...), contents of inputs. Raises ValueError, in one line, for an output or a scalar
    without estimate and for contents that don't fit their input.
    """
    given, outputs = dict(given), []
    for func in pipeline.outputs():
        for buffer, type in zip(func.output_buffers(), func.types()):
            p = buffer.parameter()
            bounds = [(p.min_constraint_estimate(i), p.extent_constraint_estimate(i)) for i in range(p.dimensions())]
            if not all(m.defined() and e.defined() for m, e in bounds):
                raise ValueError(f"output {func.name().partition('$')[0]} has no estimates: call set_estimates on it")
            bounds = tuple((_constant(m), _constant(e)) for m, e in bounds)
            if any(extent <= 0 for _, extent in bounds):
                region = Region(func.name().partition("$")[0], str(type), bounds)
                raise ValueError(f"output {region.name} has estimates without a point, {region}: give all extents 1 or more")
            outputs.append(Region(func.name(), str(type), bounds, is_fixed=(True,) * len(bounds), alignment=p.host_alignment()))
    arguments = pipeline.infer_arguments()
    read = _sizes_read(pipeline) if any(a.kind == hl.ArgumentKind.InputBuffer for a in arguments) else set()
    inputs = []
    for a in arguments:
        if a.kind == hl.ArgumentKind.InputScalar:
            inputs.append(_scalar(a, given.get(a.name)))
        else:
            inputs.append(_input_region(a, given.get(a.name), outputs[0].bounds, read))
    return inputs, outputs


def complete_estimates(pipeline, parameters, given=()):
    """Give estimates to inputs (hl.Parameter) that autoschedulers ask for and their author has left out, or Halide has garbled.

    These are inputs whose size the algorithm reads, as _input_region takes them to be, and scalars: those with a value in `given`, those
    whose estimate has lost its type, and those without one that have a default. A default of 0 is also what Halide takes where none is
    told, so it is no estimate.
    """
    used, given = {a.name: a for a in pipeline.infer_arguments()}, dict(given)
    bounds = pipeline.outputs()[0].output_buffers()[0].parameter()
    like = [(bounds.min_constraint_estimate(i), bounds.extent_constraint_estimate(i)) for i in range(bounds.dimensions())]
    read = {name for name, _ in _sizes_read(pipeline)}
    for p in (p for p in parameters if p.name() in used and not p.type().is_handle()):
        if p.is_buffer():
            for i in range(p.dimensions() if p.name() in read else 0):
                minimum, extent = like[i] if i < len(like) else (hl.i32(0), hl.i32(1))
                if not p.min_constraint_estimate(i).defined() and minimum.defined():
                    p.set_min_constraint_estimate(i, minimum)
                if not p.extent_constraint_estimate(i).defined() and extent.defined():
                    p.set_extent_constraint_estimate(i, extent)
        elif p.name() in given:
            p.set_estimate(hl.cast(p.type(), hl.Expr(parse_number(p.name(), str(p.type()), given[p.name()]))))
        elif p.estimate().defined() and p.estimate().type() != p.type():
            p.set_estimate(hl.cast(p.type(), p.estimate()))
        elif not p.estimate().defined() and (default := used[p.name()].argument_estimates.scalar_def).defined() and hl.evaluate(default):
            p.set_estimate(default)


def _input_region(argument, given, like, sizes_read):
    """The Region of an input; `like` are the bounds of an output, for one without estimates."""
    name, type, n = argument.name, str(argument.type), argument.dimensions
    estimates = argument.argument_estimates.buffer_estimates
    known = len(estimates) == n and all(r.min.defined() and r.extent.defined() for r in estimates)
    bounds = tuple((_constant(r.min), _constant(r.extent)) for r in estimates) if known else (*like, *[(0, 1)] * n)[:n]
    if given is not None and given.endswith(".npy"):
        array = read_array(name, given)
        expected = np.dtype("uint16" if type == "bfloat16" else type)
        if array.dtype != expected:
            raise ValueError(f"--inputs: {given} holds {array.dtype}, but {name} is of type {type}" + ", as uint16" * (type == "bfloat16"))
        if array.ndim != n:
            raise ValueError(f"--inputs: {given} has {array.ndim} dimensions, but {name} has {n}")
        minima = [minimum for minimum, _ in bounds] if known else [0] * n
        return Region(name, type, tuple(zip(minima, array.shape[::-1])), source="file", is_fixed=(True,) * n)
    if given is not None:
        parse_contents(name, type, given)
    fixed = tuple((name, i) in sizes_read for i in range(n))
    return Region(name, type, bounds, source="estimate" if known else "guess", is_fixed=fixed)


def read_array(name, path):
    """The array in a `.npy` file, mapped, not read. Raises ValueError, in one line."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--inputs: {name}={path}: can't be read as a .npy file: {' '.join(str(error).split())}") from None
    if not isinstance(found, np.ndarray):
        raise ValueError(f"--inputs: {name}={path}: can't be read as a .npy file: it holds several arrays, as np.savez writes them")
    return found


def parse_number(name, type, text):
    """A number of `type`, of its text. Raises ValueError, in one line."""
    try:
        if type == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if "float" in type:
            return float(text)
        number, kind = int(text), np.iinfo(type)
        if kind.min <= number <= kind.max:
            return number
    except (ValueError, KeyError):
        pass
    raise ValueError(f"--inputs: {name}={text}: neither a .npy file nor a number of type {type}")


def parse_contents(name, type, text):
    """(low, high) that an input's numbers are to be drawn from, of "LOW:HIGH"; low is high for a single number. Raises ValueError."""
    low, is_range, high = text.partition(":")
    found = parse_number(name, type, low), parse_number(name, type, high if is_range else low)
    if is_range and (type == "bool" or not (math.isfinite(found[1] - found[0]) and found[0] <= found[1])):
        raise ValueError(f"--inputs: {name}={text}: not a range of type {type} from a smaller to a larger number")
    return found


def _scalar(argument, given):
    if argument.type.is_handle():
        raise ValueError(f"input {argument.name} is a pointer, which can point to nothing here: build the program without it")
    if given is not None:
        return parse_number(argument.name, str(argument.type), given)
    value = argument.argument_estimates.scalar_estimate
    if not value.defined():
        raise ValueError(f"input {argument.name} has no estimate: call set_estimate on it, or give --inputs {argument.name}=VALUE")
    return hl.evaluate(value)


def _constant(expression):
    """Its value; what isn't a plain number is compiled and run, which takes a tenth of a second."""
    number = re.fullmatch(r"<halide.Expr of type int32: (-?\d+)>", str(expression))
    return int(number[1]) if number else hl.evaluate(expression)


def definitions(func):
    """The text of each of a Func's definitions, the pure one first: what it stores, and where where that is not plain."""
    if func.is_extern():
        return [""]
    updates = [(*func.update_values(i), *func.update_args(i)) for i in range(func.num_update_definitions())]
    return [" ".join(map(str, parts)) for parts in [tuple(func.values()), *updates]]


def all_funcs(pipeline):
    """The pipeline's Funcs, inputs' wrappers among them, from inputs to output."""
    found = []
    while True:
        try:
            found.append(pipeline.get_func(len(found)))
        except (hl.HalideError, IndexError):
            return found


def _sizes_read(pipeline):
    """{(input, dimension)} whose minimum, extent or stride the algorithm itself reads, as boundary conditions do."""
    text = " ".join(part for func in all_funcs(pipeline) for part in definitions(func))
    return {(name, int(i)) for name, i in re.findall(r"([\w$.]+)\.(?:min|extent|stride)\.(\d+)", text)}


_kept_texts = weakref.WeakKeyDictionary()  # {hl.Pipeline: {target: what it lowers to}}


def lowered_text(pipeline, target, keep=False):
    """The code that a scheduled pipeline lowers to. Raises hl.HalideError as compiling does.

    keep : whether to remember it for those who ask again, here and in forks: the schedule must not change any more.
    """
    kept = _kept_texts.get(pipeline, {})
    if str(target) in kept:
        return kept[str(target)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lowered.stmt")
        pipeline.compile_to_lowered_stmt(str(path), pipeline.infer_arguments(), hl.StmtOutputFormat.Text, target)
        text = path.read_text()
    if keep:
        _kept_texts[pipeline] = kept | {str(target): text}
    return text


# What a pipeline demands


def meet(region, demanded):
    """The Region to allocate of what the estimates say and what the pipeline demands: [(minimum, extent, stride)], strides as constrained.

    Raises ValueError, in one line, where they can't be reconciled.
    """
    bounds = []
    for i, ((low, n), (needed, n_needed, _)) in enumerate(zip(region.bounds, demanded)):
        if region.is_fixed[i]:
            if n_needed and region.source == "file" and not (low <= needed and needed + n_needed <= low + n):
                raise ValueError(
                    f"--inputs: the array for {region.name} holds {low} to {low + n - 1} of dimension {i}, "
                    f"but {needed} to {needed + n_needed - 1} are read (numpy names the outermost dimension first)"
                )
            bounds.append((low, n))
        elif region.source == "guess" or not n:
            bounds.append((needed, n_needed))
        else:
            first = min(low, needed) if n_needed else low
            bounds.append((first, max(low + n, needed + n_needed) - first))
    extents = [extent for _, extent in bounds]
    if any(n == 0 for _, n, _ in demanded):
        return Region(region.name, region.type, tuple(bounds), None, region.source, region.is_fixed, region.alignment)
    strides, size, demanded_size = [0] * len(bounds), 1, 1
    for i in sorted(range(len(bounds)), key=lambda i: (abs(demanded[i][2]), i)):
        stride = abs(demanded[i][2])  # 0 where the same memory is read all along a dimension, negative where it runs backwards
        if not stride:
            continue
        if stride == demanded_size or stride < size:
            # Dense, or a multiple of something less than the row: keep what it is a multiple of.
            multiple = 1 if stride == demanded_size else stride & -stride
            stride = -(-size // multiple) * multiple
        strides[i] = stride if demanded[i][2] > 0 else -stride
        size, demanded_size = stride * max(extents[i], 1), abs(demanded[i][2]) * demanded[i][1]
    return Region(region.name, region.type, tuple(bounds), tuple(strides), region.source, region.is_fixed, region.alignment)


def query(callable, arguments, contents=()):
    """What a compiled pipeline demands of the buffers of a call, by a bounds query: [(minimum, extent, stride)] for each Region.

    arguments : of the call, a Region or a number each, inputs first. What is demanded depends on the bounds of the outputs, and of those
    inputs whose sizes the algorithm reads. contents : {index: Allocation} of inputs whose contents the query reads; they demand what they
    have.
    """
    contents = dict(contents)
    buffers = [contents[i].buffer if i in contents else _unallocated(a) if isinstance(a, Region) else a for i, a in enumerate(arguments)]
    callable(*buffers)
    return [
        [(b.dim(i).min(), b.dim(i).extent(), b.dim(i).stride()) for i in range(b.dimensions())]
        for a, b in zip(arguments, buffers)
        if isinstance(a, Region)
    ]


def _unallocated(region):
    return _described(hl.Buffer.make_bounds_query(hl.UInt(8), list(region.extents)), region)


def _described(buffer, region):
    """The buffer with the element type and minima of its Region: Halide's bindings can't make every type of numpy's memory."""
    kind, bits = re.fullmatch(r"([a-z]+)(\d+)", region.type.replace("bool", "uint1")).groups()
    raw = RawBuffer.from_address(buffer._get_raw_halide_buffer_t())
    raw.type_code, raw.bits = TYPE_CODES[kind], int(bits)
    buffer.set_min([minimum for minimum, _ in region.bounds])
    return buffer


# Memory and contents


@dataclass(frozen=True)
class Allocation:
    """A buffer in memory: what Halide is given, and the same as an array with Halide's innermost dimension first."""

    region: Region
    buffer: hl.Buffer
    array: np.ndarray

    def contents(self):
        """A copy as numpy has it, the outermost dimension first; bool as bytes, bfloat16 as float32."""
        array = np.array(self.array.T, order="C")
        return (array.astype(np.uint32) << 16).view(np.float32) if self.region.type == "bfloat16" else array

    def set_bytes(self, pattern):
        """Have all its points hold a byte, over and over."""
        self.array[...] = np.full(self.array.dtype.itemsize, pattern, np.uint8).view(self.array.dtype)[0]


def put_contents(allocation, given, seed):
    """Fill an input: with a file's contents or a number where one is given, else at random, from a range where one is given."""
    region = allocation.region
    is_file = given is not None and given.endswith(".npy")
    low, high = (None, None) if given is None or is_file else parse_contents(region.name, region.type, given)
    if is_file:
        allocation.array[...] = read_array(region.name, given).T
    elif low is None or low < high:
        fill(allocation, draw(region.type, np.random.default_rng(seed), low, high)[0])
    else:
        number = low
        if region.type == "bfloat16":
            number = int(np.float32(number).view(np.uint32) >> 16)
        allocation.array[...] = number


def allocate(region):
    """Memory that begins at a distance drawn anew from where it is allocated: some distances between buffers are bad for the caches."""
    alignment = max(ALIGNMENT, region.alignment)
    memory = np.empty(region.n_bytes + MAX_OFFSET + alignment, np.uint8)
    before = region.n_bytes_before
    start = -(memory.ctypes.data + before) % alignment + random.randrange(0, MAX_OFFSET, alignment)
    flat = memory[start + before : start + region.n_bytes].view(region.dtype)
    strides = [stride * region.dtype.itemsize for stride in region.element_strides]
    array = np.lib.stride_tricks.as_strided(flat, region.extents, strides)
    plain = array.T.view({1: "u1", 2: "u2", 4: "u4", 8: "f8"}[region.dtype.itemsize])  # numpy names the outermost dimension first
    return Allocation(region, _described(hl.Buffer(plain), region), array)


def fill(allocation, drawn):
    """Put `drawn` (RANDOM_POINTS,) into an Allocation: which of them lies at a point depends on its coordinates alone."""
    array, region, n = allocation.array, allocation.region, len(drawn)
    if not array.size:
        return
    if not array.ndim:
        array[...] = drawn[0]
        return
    longest = int(np.argmax(array.shape))
    # Along the longest dimension the points follow each other in `line`, so that whole lines are copied.
    line = drawn[np.arange(n) * STEPS[longest] % n]
    inverse = pow(STEPS[longest], -1, n)
    length = array.shape[longest]
    line = np.concatenate([line] * (2 + length // n))[: n + length]
    windows = np.lib.stride_tricks.sliding_window_view(line, length)
    begin = np.array(region.bounds[longest][0])
    for i, (minimum, extent) in enumerate(region.bounds):
        if i != longest:
            at = (np.arange(minimum, minimum + extent, dtype=np.int64) * STEPS[i] % n) * inverse
            begin = np.add.outer(begin, at)
    moved = np.moveaxis(array, longest, -1)
    begin = np.asarray(begin % n)
    if moved.ndim == 1:
        moved[...] = windows[int(begin)]
        return
    rows = max(1, FILL_CHUNK // max(1, math.prod(moved.shape[1:])))
    for start in range(0, len(moved), rows):
        moved[start : start + rows] = windows[begin[start : start + rows]]


def draw(type, rng, low=None, high=None):
    """(RANDOM_POINTS random numbers of a type, as its buffers hold them; how they were drawn, in words). low, high : a range, if any."""
    if type == "bool":
        return (rng.random(RANDOM_POINTS) < 0.5).astype(np.uint8), "true or false, equally often"
    if "float" in type:
        low, high = (0, 1) if low is None else (low, high)
        numbers = low + (high - low) * rng.random(RANDOM_POINTS, dtype=np.float32)
        words = f"uniform in [{low:g}, {high:g})"
        return (numbers.view(np.uint32) >> 16).astype(np.uint16) if type == "bfloat16" else numbers.astype(type), words
    if low is None:  # all values of the small types; wider ones are indices or sums more often than pixels
        kind = np.iinfo(type)
        low, high = (kind.min, kind.max) if kind.bits <= 16 else (-WIDE_SIGNED, WIDE_SIGNED) if kind.min < 0 else (0, WIDE_UNSIGNED)
    return rng.integers(low, high, RANDOM_POINTS, dtype=type, endpoint=True), f"uniform in [{low}, {high}]"


def index_inputs(pipeline):
    """Names of the inputs whose contents say where something is read or written, by the definitions: random ones may make no sense."""
    inputs = {a.name for a in pipeline.infer_arguments() if a.kind == hl.ArgumentKind.InputBuffer}
    funcs = {func.name(): func for func in all_funcs(pipeline)}
    reads = {name: set(re.findall(r"([\w$.]+)\(", " ".join(definitions(func)))) for name, func in funcs.items()}

    def sources(names):
        """Inputs that these Funcs or inputs are computed from."""
        seen, open_names = set(), set(names)
        while open_names:
            name = open_names.pop()
            if name not in seen:
                seen.add(name)
                open_names |= reads.get(name, set())
        return seen & inputs

    indexing = set()
    for func in funcs.values():
        text, values = " ".join(definitions(func)), {}
        for let in re.finditer(r"\(let ([\w$.]+) = ", text):
            values[let[1]] = f"{values.get(let[1], '')} {text[let.end() : _end_of_term(text, let.end())]}"

        def calls_in(index, values=values):
            """Names called in an index, and in the values of lets that it refers to."""
            found, open_texts, seen = set(), [index], set()
            while open_texts:
                part = open_texts.pop()
                found |= set(re.findall(r"([\w$.]+)\(", part))
                lets = set(re.findall(r"[\w$.]+", part)) & values.keys() - seen
                seen |= lets
                open_texts += [values[name] for name in lets]
            return found

        for i in range(func.num_update_definitions()):
            indexing |= calls_in(" ".join(map(str, func.update_args(i))))
        for call in re.finditer(r"([\w$.]+)\(", text):
            if call[1] in funcs or call[1] in inputs:
                indexing |= calls_in(text[call.end() : _end_of_arguments(text, call.end())]) & (funcs.keys() | inputs)
    return sources(indexing)


def _end_of_arguments(text, start):
    """Where the parenthesis that was opened just before text[start] is closed."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if not depth:
            return end
    return len(text)


def _end_of_term(text, start):
    """Where the value of a let that begins at text[start] ends: before the " in " that belongs to it."""
    depth = 0
    for end in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if not depth and text.startswith(" in ", end):
            return end
    return len(text)
