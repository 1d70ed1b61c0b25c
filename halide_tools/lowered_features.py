"""What a processor makes of lowered code: registers, chains of dependence, native vectors, cache lines, parallel tasks.

The counts of lowered_code are of what the text says. A compiler keeps an address that a loop does not change in a register, a load that
two statements share happens once, an update waits for the one before it, and a line that was touched a moment ago comes from a cache. Here
each load's and store's address is evaluated in the iterations that are run of each loop, which gives its stride along each loop around it;
the rest follows from the strides.
"""

import math
import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import halide as hl
import numpy as np

from features import EXECUTED, LOWERED
from halide_tools.lowered_code import (
    ELSEWHERE,
    FUNCTIONS,
    STAGE,
    Execution,
    TooLong,
    arguments,
    count_text,
    known_values,
    lower,
    owners_of,
    stages_of,
)
from halide_tools.lowered_expressions import INDEX, Load, NotUnderstood, Parser, Type, Value

LINE_BYTES = 64
# {cache: (bytes, what lies beyond it)}, for one core. A third-level cache is shared: what a core can use of it is less than its size.
CACHES = {"l1": (2**15, "l2"), "l2": (2**20, "l3"), "l3": (2**23, "memory")}
REGISTERS = {64: 32}  # vector registers by their bytes, 16 otherwise
WINDOW = 256  # instructions that a processor looks ahead: iterations of an outer loop that overlap
PROMOTED_BYTES = 2048  # an allocation of constant size that is no larger lives in registers, if no address in it changes with a loop
MOST_SHUFFLED = 4  # elements from lane to lane, up to which whole vectors are loaded and the lanes picked out of them
# What a unit does in a cycle, of native vectors and of lanes that are loaded by themselves, and instructions in all: close to Zen 3 and 4
# and Skylake (uops.info). What a cycle takes is fitted later.
PER_CYCLE = {"operations": 1.5, "loads": 1.5, "stores": 0.75, "gathered": 0.8, "instructions": 5.0}
CYCLES = {"divide": 8.0, "library": 20.0}  # that an operation keeps its unit busy, where it is not one
LEAST_CYCLES = 0.25  # of an iteration

VECTOR_KINDS = {
    "simple": "native_operations", "multiply": "native_multiplications", "divide": "native_divisions", "cast": "native_casts",
    "shuffle": "native_shuffles", "function": "native_functions",
}  # fmt: skip
SCALAR_KINDS = {"index": "index_instructions", "library": "library_calls"}  # all others: scalar_instructions


# Code


@dataclass
class Access:
    """A load or store in the code, and what became known of it when it ran.

    dims, active : as of Load; they and `address` are numbers of expressions in the table. cycles : from a load to what is stored.
    first : the element where it ran first, None where that depends on what is in a buffer. shape : dims, evaluated.
    steps : {depth of a loop around it: elements from one iteration to the next}. points : that a predicate lets through in all.
    """

    buffer: str
    is_store: bool
    lanes: int
    bits: int
    is_gather: bool
    address: int | None
    dims: list | None
    active: int | None
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
    """loops : numbers of those around it. is_constant : whether the compiler knows its size."""

    loops: tuple
    n_bytes: float
    is_constant: bool


class Translation:
    """Lowered code as a Python `program` that calls the methods of a Run; its `statements`; its `loops`, [(name, is parallel)]."""

    def __init__(self, lowered, vector_bits):
        self.vector_bits, self.lines, self.statements, self.blocks, self.loops = vector_bits, [], [], [], []
        self.names, self.buffers, self.addresses = {}, dict(buffer_types(lowered)), {}
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
            self.emit(f"for _ in loop(({number}, {found[1]!r}), lambda: {self.scalar(start)}, lambda: {self.scalar(extent)}):")
            return stage_of(found[1])
        if found := re.match(r"(?:\} else )?if \((.*)\) \{", line):
            self.emit(f"{'elif' if line.startswith('}') else 'if'} may_hold(lambda: {self.scalar(found[1])}):")
            return None
        self.emit("else:" if line == "} else {" else "if True:")
        found = re.match(r"produce (\S+) \{", line)
        return (found[1], 0) if found else None

    def translate(self, line):
        if line.startswith("predicate ("):
            self.predicate = self.parser(line.removeprefix("predicate ")).expression().active
        elif found := re.match(r"let \S+ = halide_do_par_for\(.*?::([\w$.]+), ", line):
            start, extent, *_ = arguments(line, found.end())[0]
            self.emit(f"run_task({found[1]!r}, lambda: {self.scalar(start)}, lambda: {self.scalar(extent)})")
        elif found := re.match(r"let (\S+) = (.*)", line):
            if not ELSEWHERE.search(found[2]) and "halide_" not in found[2]:
                self.let(found[1], found[2])
        elif found := re.match(r"allocate ([\w.$]+)\[[a-z]+(\d+)(?:x(\d+))? \* (.*?)\]", line):
            itemsize = max(int(found[2]) // 8, 1) * int(found[3] or 1)
            is_constant = re.fullmatch(r"[\d* ]+", found[4]) is not None
            self.emit(f"allocate({found[1]!r}, {itemsize}, lambda: {self.scalar(found[4])}, {is_constant})")
        elif found := re.match(r"([A-Za-z_][\w.$]*)\[", line):
            self.store(found[1], line[found.end() :])

    def let(self, name, text):
        parser = self.parser(text)
        value = parser.expression()
        if value.type != INDEX or value.loads:
            python = None if value.loads or value.python is None else f"variables[{name!r}]"
            self.names[name] = Value(value.type, python, value.dims, value.is_affine, value.is_product)
        self.emit(f"assign({name!r}, lambda: {value.python})")
        if parser.counts or parser.found:
            self.note(parser, value)

    def store(self, buffer, text):
        """`text` is what follows `buffer[`."""
        parser = self.parser(text)
        index = parser.index()
        if parser.tokens[parser.at][0] != "=":
            return
        parser.at += 1
        value = parser.expression()
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
        dims = None if load.dims is None else [(self.address(stride), n) for stride, n in load.dims]
        numbers = self.address(load.address), dims, self.address(load.active)
        return Access(load.buffer, is_store, load.lanes, load.bits, load.is_gather, *numbers, cycles)

    def address(self, python):
        """The number of an expression in the table of those to evaluate, which holds each once."""
        return None if python is None else self.addresses.setdefault(python, len(self.addresses))

    def parser(self, text):
        return Parser(text, self.names, self.buffers, self.vector_bits)

    def scalar(self, text):
        """Python for a scalar expression, "None" where it can't be told."""
        try:
            return self.parser(text).expression().python or "None"
        except NotUnderstood:
            return "None"

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


class Run(Execution):
    """Runs a Translation as Execution does, and keeps what the addresses were."""

    def __init__(self, values, translation, cores):
        super().__init__(values, 0)
        self.statements, self.cores, self.table = translation.statements, cores, []
        self.loops, self.indices, self.mask, self.n_ran = [], [], 0, 0
        self.is_parallel, self.speedup = False, 1.0
        self.entered, self.tasks_run, self.allocations = Counter(), Counter(), {}

    def loop(self, name, start, extent):
        """As of Execution; `name` is (number, name)."""
        number, variable = name
        n = self.value(extent)
        depth, bit = len(self.loops), 1 << len(self.loops)
        self.loops.append((number, 1 if n is None else n))
        self.indices.append(0)
        self.entered[number] += self.weight
        for i, _ in enumerate(super().loop(variable, start, extent)):
            self.indices[depth] = self.variables[variable]
            self.mask = (self.mask & (bit - 1)) | (bit if i else 0)
            yield
        self.loops.pop()
        self.indices.pop()
        self.mask &= bit - 1

    def run_task(self, name, start, extent):
        (number, _), _ = self.tasks[name]
        outer, n = (self.is_parallel, self.speedup), self.value(extent) or 1
        self.tasks_run[number] += self.weight * n
        self.is_parallel |= n > 1
        self.speedup = min(self.cores, self.speedup * n / math.ceil(n / self.cores))
        super().run_task(name, start, extent)
        self.is_parallel, self.speedup = outer

    def allocate(self, name, itemsize, size, is_constant):
        n = self.value(size)
        self.all_known &= n is not None
        self.allocations[name] = Allocation(tuple(number for number, _ in self.loops), (n or 0) * itemsize, is_constant)

    def evaluate(self, address):
        return None if address is None else self.value(self.table[address])

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


# Costs


def count_lowered(pipeline, target=None, cores=None):
    """Counts of a scheduled pipeline, (T, K) float64: a row a stage, in the order of its featurization, a column a kind of LOWERED.

    An inlined stage has none: what it does is done by the stage that calls it. None where they can't be told: a loop's extent or an
    allocation's size depends on what is in a buffer, loops lie too deep inside each other, or the code is not understood. The pipeline
    needs estimates for all inputs and outputs. target, cores : of the machine that runs it, this one if None. Raises hl.HalideError as
    compiling does.
    """
    target = target or hl.get_host_target()
    lowered, stages = lower(pipeline, target), stages_of(pipeline)
    try:
        name, names = re.search(r"^external\S* func (\S+) \((.*)\) \{", lowered, re.M).groups()
        values, sizes = known_values(pipeline, names.split(", "))
    except (AttributeError, ValueError):
        return None
    counts = count_text(lowered, name, values, sizes, stages)
    executed = count_executed(lowered, name, values, stages, 8 * target.natural_vector_size(hl.UInt(8)), cores or os.cpu_count())
    if counts is None or executed is None:
        return None
    counts[:, [LOWERED.index(kind) for kind in EXECUTED]] = executed
    return counts


def count_executed(lowered, name, values, stages, vector_bits, cores):
    """Counts of features.EXECUTED in lowered code, (T, K) float64, for `stages`, [(name of a Func, number)]; None where they can't be told.

    name : of the function; values : of its arguments, as lowered_code.known_values gives them. vector_bits : of a native vector.
    cores : that run tasks.
    """
    try:
        translation = Translation(lowered, vector_bits)
        run = Run(values, translation, cores)
        names = ("assign", "let", "may_hold", "loop", "task", "run_task", "run", "allocate")
        scope = {"variables": run.variables, "table": run.table, **FUNCTIONS, **{name: getattr(run, name) for name in names}}
        exec(compile(translation.program, name, "exec"), scope)
        run.tasks[name][1]()
    except (SyntaxError, RecursionError, TooLong, NotUnderstood, AttributeError, LookupError, NameError, TypeError, ValueError):
        return None
    if not run.all_known:
        return None
    totals = Costs(run, translation, stages).count()
    return np.array([[totals[stage][kind] for kind in EXECUTED] for stage in stages], np.float64)


class Costs:
    """Charges what a Run has seen to stages: `count` returns {stage: {kind: number}}."""

    def __init__(self, run, translation, stages):
        self.run, self.loops, self.buffers, self.native_bytes = run, translation.loops, translation.buffers, translation.vector_bits // 8
        self.totals = defaultdict(Counter)
        self.statements = sorted((s for s in run.statements if s.mask >= 0 and s.runs), key=lambda s: s.order)
        read = [{access.buffer for access in s.accesses if not access.is_store} for s in self.statements]
        for statement, owner in zip(self.statements, owners_of([s.around for s in self.statements], read, stages)):
            statement.stage = owner
        self.statements = [s for s in self.statements if s.stage]  # what is in none is about the code's arguments

    def count(self):
        self.find_registers()
        bodies = defaultdict(list)
        for statement in self.statements:
            bodies[tuple(number for number, _ in statement.loops)].append(statement)
        for statements in bodies.values():
            self.count_body(statements)
        self.count_lines()
        for number, n in self.run.tasks_run.items():
            if stage := stage_of(self.loops[number][0]):
                self.totals[stage] += Counter(parallel_loops=self.run.entered[number], tasks=n)
        return self.totals

    # Registers

    def find_registers(self):
        """Which buffers live in registers altogether, and which loops store to which buffers at addresses that change: {(buffer, loop)}."""
        accesses, self.changed_in = defaultdict(list), set()
        for statement in self.statements:
            for access in statement.accesses:
                accesses[access.buffer].append((statement, access))
                if access.is_store:
                    self.changed_in |= {(access.buffer, number) for _, number in self.moving(statement, access)}
        self.in_registers = {
            buffer
            for buffer, allocation in self.run.allocations.items()
            if allocation.is_constant
            and allocation.n_bytes <= PROMOTED_BYTES
            and all(
                access.first is not None
                and not access.is_gather
                and {n for _, n in self.moving(statement, access)} <= set(allocation.loops)
                for statement, access in accesses[buffer]
            )
        }

    def moving(self, statement, access):
        """(depth, number) of each loop along which an access is known to move, or not known to stay."""
        return [(d, number) for d, (number, n) in enumerate(statement.loops) if n > 1 and access.steps.get(d) != 0]

    def shared(self, statement, access):
        """How many iterations of the loops around an access it is done once for, in a register meanwhile."""
        n_shared = 1.0
        for depth in range(len(statement.loops) - 1, -1, -1):
            number, n = statement.loops[depth]
            stays = access.first is not None and access.steps.get(depth) == 0 and (access.buffer, number) not in self.changed_in
            if n > 1 and (not stays or self.loops[number][1]):
                break
            n_shared *= max(n, 1)
        return n_shared

    # Bodies of loops

    def count_body(self, statements):
        """What the statements that stand in the same loops cost."""
        n_runs = max(s.runs for s in statements)
        body = Body()
        for statement in statements:
            spent = Counter()
            self.count_operations(statement, spent)
            for access in statement.accesses:
                self.count_access(statement, access, body, spent)
            share = statement.runs / n_runs
            body.spend(statement.stage, spent, share)
            last = statement.store
            if last and last.first is None and any(a.buffer == last.buffer for a in statement.accesses[:-1]):
                self.totals[statement.stage]["updates_in_memory"] += statement.runs * last.lanes
        throughput, waits = busy_cycles(body.spent), self.waits(statements, body)
        spilled = max(0.0, sum(body.live.values()) - REGISTERS.get(self.native_bytes, 16))
        parallel_share = max(s.parallel_runs for s in statements) / n_runs
        wall_share = max(s.wall_runs for s in statements) / n_runs
        for stage, share in body.shares().items():
            total, busy, waiting = self.totals[stage], throughput * share * n_runs, waits.get(stage, 0.0) * n_runs
            total["body_cycles"] += busy
            total["chain_cycles"] += waiting
            total["parallel_cycles"] += (busy + waiting) * parallel_share
            total["wall_cycles"] += (busy + waiting) * wall_share
            total["spilled_vectors"] += spilled * share * n_runs

    def count_operations(self, statement, spent):
        """Indices cost no cycles: most are computed outside of the loop, or are part of an address."""
        total = self.totals[statement.stage]
        for name, number in statement.operations.items():
            width, kind = name.split("_", 1)
            is_vector = width == "vector"
            total[VECTOR_KINDS[kind] if is_vector else SCALAR_KINDS.get(kind, "scalar_instructions")] += statement.runs * number
            if kind != "index":
                spent["operations"] += number * CYCLES.get(kind, 1.0) / (1 if is_vector else 2)
                spent["instructions"] += number

    def count_access(self, statement, access, body, spent):
        total, runs = self.totals[statement.stage], statement.runs
        natives = max(access.lanes * access.bits / 8 / self.native_bytes, 1.0)
        if access.buffer in self.in_registers:
            body.live[access.buffer, access.first] = natives
            return
        key = access.buffer, access.first, access.lanes, statement.mask, tuple(access.shape or ())
        if access.first is not None:
            if key in body.known and not access.is_store:
                return  # loaded or stored by a statement before
            body.known.add(key)
        n_shared = self.shared(statement, access)
        if n_shared > 1:
            body.live[access.buffer, access.first] = natives
        spacing = math.inf if access.is_gather else spacing_of(access)
        is_shuffled = 1 < spacing <= MOST_SHUFFLED and not access.is_store and access.active is None
        if spacing > 1 and not is_shuffled:
            lanes = (access.lanes if access.active is None else access.points / runs) / n_shared
            total["points_scattered_executed" if access.is_store else "points_gathered_executed"] += runs * lanes
            spent["gathered"] += lanes
            spent["instructions"] += lanes
            return
        if is_shuffled:
            natives *= spacing
            total["native_shuffles"] += runs / n_shared * natives
            spent["operations"] += natives / n_shared
        total["stores_executed" if access.is_store else "loads_executed"] += runs / n_shared * natives
        spent["stores" if access.is_store else "loads"] += natives / n_shared
        spent["instructions"] += natives / n_shared

    def waits(self, statements, body):
        """{stage: cycles an iteration waits for what the iteration before has written}, beyond those that its units are busy."""
        if not statements[0].loops:
            return {}
        number, extent = statements[0].loops[-1]
        if extent <= 1 or self.loops[number][1]:
            return {}
        overlap = max(1.0, WINDOW / (max(body.spent["instructions"], 1.0) * extent))
        throughput = busy_cycles(body.spent)
        return {stage: max(0.0, cycles / overlap - throughput) for stage, cycles in chains(statements).items()}

    # Caches

    def count_lines(self):
        """Lines that each stage brings in from beyond each cache, and stores to beyond it.

        Data stays in a cache through the outermost loop of which one iteration touches no more than it holds. Each time the loop around
        that is entered, what all of its iterations touch comes in once. What a stage before has brought in within the iteration is there.
        """
        groups, touched = self.group_accesses(), defaultdict(lambda: defaultdict(dict))
        for group in groups:
            for depth in range(len(group.path) + 1):
                per_shape = touched[group.path[:depth]][group.buffer]
                per_shape[group.shape] = max(per_shape.get(group.shape, 0), group.footprint(depth)[0])
        working_sets = {
            path: sum(min(sum(per_shape.values()), self.size_of(buffer)) for buffer, per_shape in buffers.items())
            for path, buffers in touched.items()
        }
        for capacity, beyond in CACHES.values():
            if working_sets.get((), 0) <= capacity:
                continue  # a run of the program finds there what the run before has left
            brought = defaultdict(float)
            for group in groups:
                depths = range(len(group.path) + 1)
                depth = next((d for d in depths if working_sets[group.path[:d]] <= capacity), len(group.path))
                outer = max(depth - 1, 0)
                lines = min(group.footprint(outer)[1], self.size_of(group.buffer) / LINE_BYTES + 1)
                there = brought[group.path[:depth], group.buffer]
                brought[group.path[:depth], group.buffer] = max(there, lines)
                kind = f"lines_to_{beyond}" if group.is_store else f"lines_from_{beyond}"
                self.totals[group.stage][kind] += max(0.0, lines - there) * group.entered(outer)

    def size_of(self, buffer):
        if buffer in self.run.allocations:
            return max(self.run.allocations[buffer].n_bytes, 1)
        extents = [n for name, n in self.run.variables.items() if name.startswith(f"{buffer}.extent.")]
        return math.prod(extents) * self.buffers.get(buffer, INDEX).bits / 8 if extents and all(extents) else math.inf

    def group_accesses(self):
        """Accesses of a stage to a buffer in the same loops that go the same way, as Groups, in the order of the code."""
        groups = {}
        for statement in self.statements:
            for access in statement.accesses:
                if access.buffer in self.in_registers:
                    continue
                allocation = self.run.allocations.get(access.buffer)
                first = len(allocation.loops) if allocation else 0  # it is another allocation in each iteration, but at the same place
                steps = tuple(0 if depth < first or n <= 1 else access.steps.get(depth) for depth, (_, n) in enumerate(statement.loops))
                width, dims = lane_dims(access)
                path = tuple(number for number, _ in statement.loops)
                key = path, access.buffer, access.is_store, statement.stage, steps, width, dims, access.first is None
                if key not in groups:
                    groups[key] = Group(statement, access, path, steps, width, dims)
                groups[key].add(access)
        return list(groups.values())


class Body:
    """Of the statements in the same loops: what they spend an iteration, {unit: number}, and what is in registers or known already."""

    def __init__(self):
        self.spent, self.cycles, self.live, self.known = Counter(), Counter(), {}, set()

    def spend(self, stage, spent, share):
        for unit, number in spent.items():
            self.spent[unit] += share * number
        self.cycles[stage] += share * busy_cycles(spent)

    def shares(self):
        """{stage: its part of the cycles}."""
        total = sum(self.cycles.values())
        return {stage: cycles / total for stage, cycles in self.cycles.items()}


def busy_cycles(spent):
    """Cycles on the busiest unit."""
    loading = spent["loads"] / PER_CYCLE["loads"] + spent["gathered"] / PER_CYCLE["gathered"]
    others = (spent[unit] / PER_CYCLE[unit] for unit in ("operations", "stores", "instructions"))
    return max(loading, *others, LEAST_CYCLES)


def chains(statements):
    """{stage: cycles from an iteration's store to the next one's that needs it}, from three iterations of the innermost loop."""
    depth = len(statements[0].loops) - 1
    stored = {s.store.buffer for s in statements if s.store}
    if not stored & {a.buffer for s in statements for a in s.accesses if not a.is_store}:
        return {}
    ready, ends = {}, []
    for iteration in range(3):
        latest = Counter()
        for statement in statements:
            if not statement.store or statement.store.first is None:
                continue
            time = 0.0
            for access in statement.accesses[:-1]:
                if access.buffer in stored and access.first is not None and access.cycles is not None:
                    written = ready.get((access.buffer, access.first + iteration * access.steps.get(depth, 0)))
                    time = max(time, 0.0 if written is None else written + access.cycles)
            store = statement.store
            ready[store.buffer, store.first + iteration * store.steps.get(depth, 0)] = time
            latest[statement.stage] = max(latest[statement.stage], time)
        ends.append(latest)
    return {stage: ends[2][stage] - ends[1][stage] for stage in ends[2] if ends[2][stage] > ends[1][stage]}


def spacing_of(access):
    """Elements from one lane of a vector to the next: 1 where they lie side by side, infinity where they lie anywhere."""
    if access.lanes == 1:
        return 1
    if access.shape is None:
        return math.inf
    (stride, n), *outer = access.shape
    if outer and abs(stride) == 1 and n * access.bits >= 128:
        return 1  # rows of a vector's width: a load each
    end = stride * n
    for other, m in outer:
        if other not in (0, end):
            return math.inf
        end = other * m
    return abs(stride)


def lane_dims(access):
    """(elements side by side, ((stride, number), ...) of what is further apart) of the lanes of an access."""
    width, dims = 1, []
    for stride, n in access.shape or []:
        stride = abs(stride)
        if 0 < stride <= width:
            width += stride * (n - 1)
        elif stride:
            dims.append((stride, n))
    return width, tuple(dims)


class Group:
    """Accesses that differ in where they begin alone, and what they touch.

    path : numbers of the loops around them, outermost first; steps : elements along each, None where that is not known.
    """

    def __init__(self, statement, access, path, steps, width, dims):
        self.stage, self.runs, self.extents = statement.stage, statement.runs, [n for _, n in statement.loops]
        self.buffer, self.is_store, self.element = access.buffer, access.is_store, max(access.bits // 8, 1)
        self.path, self.steps, self.width, self.dims = path, steps, width, dims
        self.begins, self.n_anywhere, self.footprints = set(), 0, {}
        self.shape = tuple(step and abs(step) for step in steps), width, dims

    def add(self, access):
        if access.first is None:
            self.n_anywhere += access.lanes
        else:
            self.begins.add(access.first)

    def entered(self, depth):
        """How often the loops from `depth` on are entered."""
        return self.runs / math.prod(self.extents[depth:])

    def footprint(self, depth):
        """(bytes, lines) that all iterations of the loops from `depth` on touch."""
        if depth not in self.footprints:
            self.footprints[depth] = self._footprint(depth)
        return self.footprints[depth]

    def _footprint(self, depth):
        inner = math.prod(self.extents[depth:])
        if not self.begins:
            return self.n_anywhere * inner * self.element, self.n_anywhere * inner
        strides, anew = Counter(), 1
        for step, n in [*zip(self.steps[depth:], self.extents[depth:]), *self.dims]:
            if step is None:
                anew *= n
            elif step and n > 1:
                strides[abs(step)] = max(strides[abs(step)], 1) * n
        # Where the accesses begin, in steps of the loops around them: the rows of a stencil are rows of the loop over rows, too.
        begins = np.array(sorted(self.begins), float)
        rest, further = begins - begins[0], {}
        for stride in sorted({abs(step) for step in self.steps if step} | set(strides), reverse=True):
            steps = np.round(rest / stride) if stride > self.width else np.zeros(1)
            if steps.any():
                further[stride] = steps.max() - steps.min() if stride in strides else len(np.unique(steps)) - 1
                rest = rest - steps * stride
        width, segments = self.width + rest.max() - rest.min(), 1.0
        for stride in sorted(strides.keys() | further.keys()):
            n = strides.get(stride, 1) + further.get(stride, 0)
            if segments == 1 and stride <= max(width, LINE_BYTES / self.element):
                width += stride * (n - 1)
            else:
                segments *= n
        most = len(begins) * math.prod(strides.values())
        lines = min(segments * max(1.0, width * self.element / LINE_BYTES), most * max(1.0, self.width * self.element / LINE_BYTES))
        return min(segments * width, most * self.width) * self.element * anew, lines * anew
