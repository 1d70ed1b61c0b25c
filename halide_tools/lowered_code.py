"""Halide's lowered code, run without compiling it: how often each statement runs, and which addresses it touches.

Adams2019 works its features out for one representative tile. Bounds inference then asks for boxes that may be larger, for whole vectors,
for what is recomputed where tiles overlap; loops are unrolled and split where boundaries allow simpler bodies. All that stands in the
lowered code. A Translation is a Python program that does what the code does to its loops and addresses. A Run of it runs two iterations of
each loop, or three, and weighs them by how often they would run. Each load's and store's address is evaluated in these, which gives its
stride along each loop around it. lowered_features.py tells what follows from that.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from halide_tools.buffers import Region, estimated_arguments, meet
from halide_tools.lowered_expressions import INDEX, UNKNOWN, Load, NotUnderstood, Parser, Type, Value
from halide_tools.programs import functions

ELSEWHERE = re.compile("load_typed_struct_member|_halide_buffer_get|make_struct")  # a task's copies, and what is known of buffers
# What a bounds query writes into a buffer: minimum, extent, stride and flags of each dimension.
DEMAND = re.compile(r"_halide_buffer_init\(\(struct halide_buffer_t \*\)(\S+)\.buffer, .*?make_struct\(")
STAGE = re.compile(r"(.+?)\.s(\d+)\.")  # how the names of a stage's loops begin
COMPARISON = re.compile(r" (?:<=?|==) ")
OPERAND_BEFORE, OPERAND_AFTER = re.compile(r"[\w.$]*$"), re.compile(r"[\w.$]*")
OFFSET = re.compile(r"\((.*)\+(\d+|\(-\d+\))\)")  # a sum that a constant is the last part of, as Parser writes it
LONGEST_NAME = 200  # characters before a comparison in which its operand is looked for
LEAST_MASKED_BITS = 32  # of an element, for AVX2 to have stores under a mask
# Run, of all loops together: two or three of each, so at least 2^n in n loops inside each other; `lens_blur` takes 44,000.
MAX_ITERATIONS = 300_000


class NonInteger(float):
    """A number of the lowered code that is no integer: `/` is translated to `//`, which divides integers there."""

    def __floordiv__(self, other):
        return NonInteger(float(self) / other)

    def __rfloordiv__(self, other):
        return NonInteger(other / float(self))


# What is called in the lowered code, and in its translation to Python.
FUNCTIONS = {
    "min": min, "max": max, "abs": abs, "select": lambda condition, a, b: a if condition else b, "whole": int, "real": NonInteger,
    "ceil_f32": math.ceil, "ceil_f64": math.ceil, "floor_f32": math.floor, "floor_f64": math.floor,
}  # fmt: skip


def _keeps_real(name):
    return lambda self, other: NonInteger(getattr(float, name)(self, other))


for _name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"):
    setattr(NonInteger, _name, _keeps_real(_name))


# Text


def arguments(text, start):
    """The arguments, separated by commas, of what was opened just before text[start], and where it is closed."""
    found, depth, begin = [], 0, start
    for i in range(start, len(text)):
        if text[i] in "([":
            depth += 1
        elif text[i] in ")]":
            if not depth:
                return [*found, text[begin:i].strip()], i
            depth -= 1
        elif text[i] == "," and not depth:
            found.append(text[begin:i].strip())
            begin = i + 1
    return [*found, text[begin:].strip()], len(text)


# Code


@dataclass
class Access:
    """A load or store in the code, and what became known of it when it ran.

    dims, active : as of Load; they and `address` are what Translation.address returns. cycles : from a load to what is stored.
    first : the element where it ran first, None where that depends on what is in a buffer. shape : dims, evaluated.
    steps : {depth of a loop around it: elements from one iteration to the next}. points : that a predicate lets through in all.
    """

    buffer: str
    is_store: bool
    lanes: int
    bits: int
    is_gather: bool
    address: tuple | None
    dims: list | None
    active: tuple | None
    cycles: float | None = None
    first: float | None = None
    shape: list | None = None
    steps: dict = field(default_factory=dict)
    points: float = 0.0


@dataclass
class Statement:
    """A store, or a scalar or vector that the code names: operations {as Parser counts them: number}, Accesses, its store last.

    around : the stages that it stands in, innermost first. runs, parallel_runs, wall_runs : how often it runs, how often in parallel, and
    how often by the clock, since tasks run side by side. Of its first run: `loops` around it, outermost first, each (number in the code,
    extent); `mask`, which of them were in their last iteration; and the `indices` of their iterations.
    """

    around: list
    operations: Counter
    accesses: list
    runs: float = 0.0
    parallel_runs: float = 0.0
    wall_runs: float = 0.0
    loops: tuple = ()
    mask: int = -1
    indices: tuple = ()
    stepped: int = 0  # loops whose steps are known, as bits
    order: int = 0
    stage: tuple | None = None

    def __post_init__(self):
        self.is_predicated = any(access.active is not None for access in self.accesses)
        self.store = self.accesses[-1] if self.accesses and self.accesses[-1].is_store else None


@dataclass
class Allocation:
    """is_constant : whether the compiler knows its size. loops, n_bytes : numbers of those around it, and its size, when it ran last."""

    is_constant: bool
    on_stack: bool
    loops: tuple = ()
    n_bytes: float = 0.0
    runs: float = 0.0
    total_bytes: float = 0.0


class Translation:
    """Lowered code as a Python `program` that calls the methods of a Run.

    name, arguments : of its function. statements : Statements in order; loops : [(name, is parallel)]; buffers : {name: Type}.
    """

    def __init__(self, lowered, vector_bits):
        self.name, names = re.search(r"^external\S* func (\S+) \((.*)\) \{", lowered, re.M).groups()
        self.arguments = names.split(", ")
        self.vector_bits, self.lines, self.statements, self.blocks, self.loops = vector_bits, [], [], [], []
        self.names, self.buffers, self.addresses = {}, dict(buffer_types(lowered)), {}
        self.compared = set(compared_names(lowered))
        self.predicate = None  # of the next store
        for line in map(str.strip, lowered.splitlines()):
            if line.startswith("}"):
                self.blocks.pop()
            opened = self.open(line) if line.endswith("{") else self.translate(line)
            if line.endswith("{"):
                self.blocks.append(opened)
                self.emit("pass")
        table = "".join(f" lambda: {python},\n" for python in self.addresses)
        self.program = "\n".join([*self.lines, f"table[:] = [\n{table}]"])

    def emit(self, text):
        self.lines.append("    " * len(self.blocks) + text)

    def open(self, line):
        """Translate the head of a block; returns the stage that stands in it, if that is known."""
        if found := re.match(r"\w+ func (\S+) \((.*)\) \{", line):
            loop_name = found[2].split(", ")[1] if found[2].startswith("__user_context") else ""
            self.emit(f"@task({found[1]!r}, ({self.loop(loop_name, bool(loop_name))}, {loop_name!r}))")
            self.emit("def _():")
            return stage_of(loop_name)
        if found := re.match(r"for \((\S+), (.*)\) \{", line):
            (start, extent), _ = arguments(found[2], 0)
            number = self.loop(found[1], False)
            head = f"({number}, {found[1]!r}), lambda: {self.scalar(start)}, lambda: {self.scalar(extent)}"
            self.emit(f"for _ in loop({head}, {found[1] in self.compared}):")
            return stage_of(found[1])
        if found := re.match(r"(?:\} else )?if \((.*)\) \{", line):
            is_first = not line.startswith("}")
            self.emit(f"{'if' if is_first else 'elif'} may_hold(lambda: {self.scalar(found[1], is_first)}):")
            return None
        self.emit("else:" if line == "} else {" else "if True:")
        found = re.match(r"produce (\S+) \{", line)
        return (found[1], 0) if found else None

    def translate(self, line):
        if line.startswith("predicate ("):
            self.predicate = self.parser(line.removeprefix("predicate ")).expression().active or UNKNOWN
        elif found := re.match(r"let \S+ = halide_do_par_for\(.*?::([\w$.]+), ", line):
            start, extent, *_ = arguments(line, found.end())[0]
            self.emit(f"run_task({found[1]!r}, lambda: {self.scalar(start)}, lambda: {self.scalar(extent)})")
        elif found := DEMAND.search(line):
            fields = arguments(line, found.end())[0]
            self.emit(f"demand({found[1]!r}, [{', '.join(f'lambda: {self.scalar(field)}' for field in fields)}])")
        elif found := re.match(r"let (\S+) = (.*)", line):
            if not ELSEWHERE.search(found[2]) and "halide_" not in found[2]:
                self.let(found[1], found[2])
        elif found := re.match(r"allocate ([\w.$]+)\[[a-z]+(\d+)(?:x(\d+))? \* (.*?)\]", line):
            itemsize = max(int(found[2]) // 8, 1) * int(found[3] or 1)
            is_constant = re.fullmatch(r"[\d* ]+", found[4]) is not None
            self.emit(f"allocate({found[1]!r}, {itemsize}, lambda: {self.scalar(found[4])}, {is_constant}, {'in Stack' in line})")
        elif found := re.match(r"([^\W\d][\w.$]*)\[", line):
            self.store(found[1], line[found.end() :])

    def let(self, name, text):
        parser = self.parser(text)
        value = parser.expression()
        self.assign_named(parser)
        if value.type != INDEX or value.loads:
            python = None if value.loads or value.python is None else f"variables[{name!r}]"
            self.names[name] = Value(value.type, python, value.dims, value.is_affine, value.is_product, active=value.active)
        self.emit(f"variables[{name!r}] = None" if value.python is None else f"assign({name!r}, lambda: {value.python})")
        if parser.counts or parser.found:
            self.note(parser, value)

    def store(self, buffer, text):
        """`text` is what follows `buffer[`."""
        parser = self.parser(text)
        index = parser.index()
        if parser.tokens[parser.at] != "=":
            return
        parser.at += 1
        value = parser.expression()
        self.assign_named(parser)
        bits = self.buffers.get(buffer, INDEX).bits
        self.note(parser, value, Load(buffer, index.python, index.dims, index.is_scattered, index.type.lanes, bits, self.predicate))
        self.predicate = None

    def note(self, parser, value, store=None):
        cycles = defaultdict(float)
        for load, latency in value.loads:
            cycles[load] = max(cycles[load], latency)
        accesses = [self.access(load, False, cycles.get(i)) for i, load in enumerate(parser.found)]
        if store:
            accesses.append(self.access(store, True, None))
        self.statements.append(Statement([stage for stage in reversed(self.blocks) if stage], parser.counts, accesses))
        self.emit(f"run({len(self.statements) - 1})")

    def access(self, load, is_store, cycles):
        lanes, active = load.lanes, load.active
        if active not in (None, UNKNOWN) and "variables" not in active:
            # The compiler knows which lanes take part, and needs no mask but to store a part of a register.
            n = eval(active, dict(FUNCTIONS))
            if not is_store or load.bits < LEAST_MASKED_BITS or n * load.bits % self.vector_bits == 0:
                lanes, active = n, None
        dims = None if load.dims is None else [(self.address(stride), n) for stride, n in load.dims]
        numbers = self.address(load.address), dims, self.address(active)
        return Access(load.buffer, is_store, lanes, load.bits, load.is_gather, *numbers, cycles)

    def address(self, python):
        """(Number in the table of expressions to evaluate, constant to be added) of one: unrolled code differs in constants alone."""
        if python is None:
            return None
        found = OFFSET.fullmatch(python)
        base, constant = found.groups() if found else (python, "0")
        return self.addresses.setdefault(base, len(self.addresses)), int(constant.strip("()"))

    def parser(self, text):
        return Parser(text, self.names, self.buffers, self.vector_bits)

    def scalar(self, text, can_assign=True):
        """Python for a scalar expression, "None" where it can't be told; what it names is assigned before, where that can be."""
        parser = self.parser(text)
        try:
            python = parser.expression().python or "None"
        except NotUnderstood:
            return "None"
        if parser.named and not can_assign:
            return "None"
        self.assign_named(parser)
        return python

    def assign_named(self, parser):
        for name, python in parser.named:
            self.emit(f"assign({name!r}, lambda: {python})")

    def loop(self, name, is_parallel):
        self.loops.append((name, is_parallel))
        return len(self.loops) - 1


def stage_of(loop_name):
    found = STAGE.match(loop_name)
    return (found[1], int(found[2])) if found else None


def buffer_types(lowered):
    """(name, Type of its elements) of each allocation, and of each buffer argument, whose halide_type_t an assertion tells."""
    for name, code, bits in re.findall(r"allocate ([\w.$]+)\[([a-z]+)(\d+)", lowered):
        yield name, Type("f" if "float" in code else code[0], int(bits), 1)
    for name, number in re.findall(r"assert\(([\w.$]+)\.type == \(uint32\)(\d+)", lowered):
        code, bits = int(number) & 255, int(number) >> 8 & 255
        yield name, Type("iuf"[code] if code < 3 else "f", bits, 1)


def compared_names(lowered):
    """The names that stand beside a constant, as that of a loop in whose first iteration a sliding window is filled."""
    for found in COMPARISON.finditer(lowered):
        start, end = found.span()
        before = OPERAND_BEFORE.search(lowered[max(start - LONGEST_NAME, 0) : start])[0]
        after = OPERAND_AFTER.match(lowered, end)[0]
        if before.isdigit():
            yield after
        if after.isdigit():
            yield before


# Of a Run, that a translation calls.
METHODS = "assign", "demand", "may_hold", "loop", "task", "run_task", "run", "allocate"


class TooLong(Exception):
    """More iterations to run than anybody would wait for."""


class Run:
    """Runs a Translation, and keeps how often its statements ran and what their addresses were.

    A loop runs its middle iteration, which stands for all but the last, and the last; and the first, where its variable is compared with
    a constant: a sliding window computes more in it. entered, iterated : {number of a loop: how often}.
    """

    def __init__(self, scalars, regions, translation, cores):
        self.variables, self.weight, self.tasks, self.n_iterations = dict(scalars), 1, {}, 0
        self.regions = dict(regions)  # {argument: Region}
        for name in self.regions:
            self.describe(name)
        self.statements, self.cores, self.table = translation.statements, cores, []
        self.loops, self.indices, self.mask, self.n_ran = [], [], 0, 0
        self.is_parallel, self.speedup, self.all_known = False, 1.0, True
        self.entered, self.iterated, self.tasks_run, self.allocations = Counter(), Counter(), Counter(), {}
        scope = {"variables": self.variables, "table": self.table, **FUNCTIONS, **{name: getattr(self, name) for name in METHODS}}
        exec(compile(translation.program, "lowered", "exec"), scope)
        _, body = self.tasks[translation.name]
        body()

    def value(self, function):
        """None where it depends on what is in a buffer."""
        try:
            return function()
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None

    def assign(self, name, function):
        self.variables[name] = self.value(function)

    def describe(self, name):
        """Let the code know where a buffer begins and ends and how it is laid out."""
        region = self.regions[name]
        for i, ((minimum, extent), stride) in enumerate(zip(region.bounds, region.element_strides)):
            self.variables |= {f"{name}.min.{i}": minimum, f"{name}.extent.{i}": extent, f"{name}.stride.{i}": stride}

    def demand(self, name, fields):
        """What the code itself demands of one of its buffers, which is allocated so."""
        values = [self.value(field) for field in fields]
        if name in self.regions and None not in values:
            self.regions[name] = meet(self.regions[name], list(zip(values[::4], values[1::4], values[2::4])))
            self.describe(name)

    def may_hold(self, function):
        known = self.value(function)
        return known is None or bool(known)

    def loop(self, loop, start, extent, is_compared=False):
        """Iterate over a loop, (number in the code, name of its variable)."""
        (number, variable), first, n, outer = loop, self.value(start) or 0, self.value(extent), self.weight
        if n is None:
            self.all_known, n = False, 1
        depth, bit = len(self.loops), 1 << len(self.loops)
        self.loops.append((number, n))
        self.indices.append(0)
        self.entered[number] += outer
        self.iterated[number] += outer * max(n, 0)
        iterations = [((n - 1) // 2, n - 1), (n - 1, 1)] if n > 1 else [(0, 1)] if n == 1 else []
        if is_compared and n > 2:
            iterations = [((n - 1) // 2, n - 2), (n - 1, 1), (0, 1)]
        for i, (index, weight) in enumerate(iterations):
            self.n_iterations += 1
            if self.n_iterations > MAX_ITERATIONS:
                raise TooLong
            self.variables[variable] = self.indices[depth] = first + index
            self.weight = outer * weight
            self.mask = (self.mask & (bit - 1)) | (bit if i == 1 else 0)
            if i == 2:
                self.loops[depth] = (number, 1)  # of what runs in the first iteration alone
            yield
        self.weight = outer
        self.loops.pop()
        self.indices.pop()
        self.mask &= bit - 1

    def task(self, name, loop):
        """Decorates the body of a parallel loop, (number, name of its variable)."""
        return lambda body: self.tasks.__setitem__(name, (loop, body))

    def run_task(self, name, start, extent):
        loop, body = self.tasks[name]
        outer, n = (self.is_parallel, self.speedup), self.value(extent) or 1
        self.tasks_run[loop[0]] += self.weight * n
        self.is_parallel |= n > 1
        self.speedup = min(self.cores, self.speedup * n / math.ceil(n / self.cores))
        for _ in self.loop(loop, start, extent):
            body()
        self.is_parallel, self.speedup = outer

    def allocate(self, name, itemsize, size, is_constant, on_stack):
        n = self.value(size)
        self.all_known &= n is not None
        loops, n_bytes = tuple(number for number, _ in self.loops), (n or 0) * itemsize
        allocation = self.allocations.setdefault(name, Allocation(is_constant, on_stack))
        allocation.loops, allocation.n_bytes = loops, n_bytes
        allocation.runs += self.weight
        allocation.total_bytes += self.weight * n_bytes

    def evaluate(self, address):
        if address is None:
            return None
        number, constant = address
        value = self.value(self.table[number])
        return None if value is None else value + constant

    def run(self, i):
        statement = self.statements[i]
        statement.runs += self.weight
        statement.wall_runs += self.weight / self.speedup
        if self.is_parallel:
            statement.parallel_runs += self.weight
        if statement.is_predicated:
            for access in statement.accesses:
                n = self.evaluate(access.active)
                access.points += self.weight * (access.lanes if n is None else n)
        if statement.mask < 0:
            self.begin(statement)
            return
        differs = self.mask ^ statement.mask
        if differs and not differs & (differs - 1) and not differs & statement.stepped:  # one loop alone, for the first time
            self.step(statement, differs)

    def begin(self, statement):
        statement.mask, statement.loops, statement.indices = self.mask, tuple(self.loops), tuple(self.indices)
        statement.order, self.n_ran = self.n_ran, self.n_ran + 1
        for access in statement.accesses:
            access.first = self.evaluate(access.address)
            if access.dims is not None:
                shape = [(self.evaluate(stride), n) for stride, n in access.dims]
                access.shape = None if any(stride is None for stride, _ in shape) else shape

    def step(self, statement, bit):
        statement.stepped |= bit
        depth = bit.bit_length() - 1
        n = self.indices[depth] - statement.indices[depth] if depth < len(statement.indices) else 0
        for access in statement.accesses if n else []:
            now = None if access.first is None else self.evaluate(access.address)
            if now is not None:
                access.steps[depth] = (now - access.first) / n


# Arguments and stages


def stages_of(pipeline):
    """[(name of its Func, number: 0 for the pure one)] of the stages, in the order of a featurization."""
    return [(func.name(), i) for func in functions(pipeline) for i in range(func.num_update_definitions(), -1, -1)]


def known_values(pipeline, spec, names):
    """What is known of the lowered code's arguments, of these names, before it runs: ({scalar: number}, {buffer: Region})."""
    inputs, outputs = estimated_arguments(pipeline, spec.inputs)
    given = dict(zip(names, [*inputs, *outputs]))
    regions = {name: value for name, value in given.items() if isinstance(value, Region)}
    scalars = {name: NonInteger(value) if isinstance(value, float) else value for name, value in given.items() if name not in regions}
    return scalars, regions


def owners_of(around, read, stages):
    """Which of `stages` each statement is charged to, None for none: the innermost that it stands in.

    What is computed of an input stands in none: it belongs to who reads it first. around : of each statement the stages that it stands
    in, innermost first; read : the buffers that it loads from.
    """
    known, readers = set(stages), {}
    owners = [next((stage for stage in of_one if stage in known), None) for of_one in around]
    for owner, buffers in zip(owners, read):
        for buffer in buffers if owner else ():
            readers.setdefault(buffer, owner)
    return [owner or (readers.get(of_one[0][0]) if of_one else None) for owner, of_one in zip(owners, around)]
