"""What a processor makes of lowered code: registers, chains of dependence, native vectors, cache lines, parallel tasks.

The counts of lowered_code are of what the text says. A compiler keeps an address that a loop does not change in a register, a load that
two statements share happens once, an update waits for the one before it, and a line that was touched a moment ago comes from a cache. Here
each load's and store's address is evaluated in the iterations that are run of each loop, which gives its stride along each loop around it;
the rest follows from the strides.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from features import EXECUTED
from halide_tools.lowered_code import ELSEWHERE, FUNCTIONS, MAX_ITERATIONS, STAGE, TooLong, arguments
from halide_tools.lowered_expressions import INDEX, Load, NotUnderstood, Parser, Type, Value

LINE_BYTES = 64
# Of one core. A third-level cache is shared; what a core can use of it is less than its size.
CACHES = {"l1": 2**15, "l2": 2**20, "l3": 2**23}
CORES = 2
REGISTERS = 32  # vector registers of AVX-512; 16 before
WINDOW = 256  # operations that a processor looks ahead: iterations of an outer loop that overlap
PROMOTED_BYTES = 2048  # an allocation of constant size that is no larger may live in registers, if all of its addresses are constants
MOST_SHUFFLED = 4  # elements between lanes, so that whole vectors are loaded and lanes picked out of them
# Cycles on the busiest unit: operations, loads, stores of a native vector, and instructions in all.
OPERATIONS_A_CYCLE, LOADS_A_CYCLE, STORES_A_CYCLE, GATHERED_A_CYCLE, INSTRUCTIONS_A_CYCLE = 1.5, 1.5, 0.75, 0.8, 5.0
CYCLES = {"divide": 8.0, "library": 20.0}  # on that unit, a native vector


@dataclass
class Access:
    """A load or store in the code, and what became known of its addresses when it ran.

    bits : of an element; address, dims : as of Load, numbers of expressions in the table. first : element address where it ran first; steps : {depth of a loop
    around it: elements a step}, None where it depends on what is in a buffer.
    """

    buffer: str
    is_store: bool
    lanes: int
    bits: int
    is_gather: bool
    address: object
    dims: object
    latency: float | None = None
    active: int | None = None
    first: float | None = None
    shape: list | None = None
    steps: dict = field(default_factory=dict)
    points: float = 0.0  # of those that a predicate lets through


@dataclass
class Statement:
    """A store, or a vector that the code names: its stage, operations by kind, Accesses (a store last)."""

    stage: tuple | None
    operations: Counter
    accesses: list
    # as it ran first: loops around it, outermost first, each (number in the code, extent); which are in their last iteration (bits)
    loops: tuple = ()
    mask: int = -1
    indices: tuple = ()
    seen: int = 0
    order: int = 0

    def __post_init__(self):
        self.is_predicated = any(access.active is not None for access in self.accesses)


@dataclass
class Allocation:
    loops: tuple
    n_bytes: float
    is_constant: bool


def constant_bytes(text):
    """Elements of an allocation of these extents, None where they are no constants."""
    return math.prod(int(part) for part in text.split("*")) if re.fullmatch(r"[\d* ]+", text) else None


def translate(lowered, vector_bits):
    """(a Python program that calls the methods of a Run as the lowered code would run, its Statements, {loop number: (name, is parallel)})."""
    lines, statements, blocks, loops = [], [], [], []
    names, buffers, addresses = {}, dict(_buffer_types(lowered)), {}

    def emit(text):
        lines.append("    " * len(blocks) + text)

    def address(python):
        """The number of an expression in the table of those to evaluate, each once."""
        return None if python is None else addresses.setdefault(python, len(addresses))

    def dims(load):
        return None if load.dims is None else [(address(stride), n) for stride, n in load.dims]

    def scalar(text):
        """Python for a scalar expression, "None" where it can't be told."""
        try:
            return Parser(text, names, buffers, vector_bits).expression().python or "None"
        except NotUnderstood:
            return "None"

    def parse(text):
        parser = Parser(text, names, buffers, vector_bits)
        value = parser.expression()
        return parser, value

    def accesses_of(parser, value):
        latency = defaultdict(float)
        for load, cycles in value.loads:
            latency[load] = max(latency[load], cycles)
        return [
            Access(load.buffer, False, load.lanes, load.bits, load.is_gather, address(load.address), dims(load), latency.get(i), address(load.active))
            for i, load in enumerate(parser.found)
        ]

    def note(operations, accesses):
        stage = next((stage for stage in reversed(blocks) if stage), None)
        statements.append(Statement(stage, operations, accesses))
        emit(f"run({len(statements) - 1})")

    def loop(name, is_parallel):
        loops.append((name, is_parallel))
        return len(loops) - 1

    predicate = None  # of the next store
    for line in map(str.strip, lowered.splitlines()):
        opened = None
        if line.startswith("predicate ("):
            predicate = parse(line.removeprefix("predicate "))[1].active
        if line.startswith("}"):
            blocks.pop()
        if found := re.match(r"\w+ func (\S+) \((.*)\) \{", line):
            loop_name = found[2].split(", ")[1] if found[2].startswith("__user_context") else ""
            opened = stage_of(loop_name)
            emit(f"@task({found[1]!r}, {loop_name!r}, {loop(loop_name, bool(loop_name))})")
            emit("def _():")
        elif found := re.match(r"for \((\S+), (.*)\) \{", line):
            (start, extent), _ = arguments(found[2], 0)
            opened = stage_of(found[1])
            emit(f"for _ in loop({loop(found[1], False)}, {found[1]!r}, lambda: {scalar(start)}, lambda: {scalar(extent)}):")
        elif found := re.match(r"(?:\} else )?if \((.*)\) \{", line):
            emit(f"{'elif' if line.startswith('}') else 'if'} may_hold(lambda: {scalar(found[1])}):")
        elif line == "} else {":
            emit("else:")
        elif found := re.match(r"produce (\S+) \{", line):
            opened = found[1], 0
            emit("if True:")
        elif line.endswith("{"):
            emit("if True:")
        elif found := re.match(r"let \S+ = halide_do_par_for\(.*?::([\w$.]+), ", line):
            start, extent, *_ = arguments(line, found.end())[0]
            emit(f"run_task({found[1]!r}, lambda: {scalar(start)}, lambda: {scalar(extent)})")
        elif found := re.match(r"let (\S+) = (.*)", line):
            if not ELSEWHERE.search(found[2]) and "halide_" not in found[2]:
                parser, value = parse(found[2])
                if value.type.lanes > 1 or value.loads or value.type != INDEX:
                    names[found[1]] = Value(
                        value.type,
                        None if value.loads or value.python is None else f"variables[{found[1]!r}]",
                        value.dims,
                        value.is_affine,
                        value.is_product,
                    )
                emit(f"assign({found[1]!r}, lambda: {value.python})")
                if parser.counts or parser.found:
                    note(parser.counts, accesses_of(parser, value))
        elif found := re.match(r"allocate ([\w.$]+)\[([a-z]+)(\d+)(?:x(\d+))? \* (.*?)\]", line):
            size = max(int(found[3]) // 8, 1) * int(found[4] or 1)
            is_constant = constant_bytes(found[5]) is not None
            emit(f"allocate({found[1]!r}, {size}, lambda: {scalar(found[5])}, {is_constant})")
        elif found := re.match(r"([A-Za-z_][\w.$]*)\[", line):
            parser = Parser(line[found.end() :], names, buffers, vector_bits)
            index = parser.index()
            if parser.tokens[parser.at][0] == "=":
                parser.at += 1
                value = parser.expression()
                bits = buffers.get(found[1], INDEX).bits
                accesses = accesses_of(parser, value)
                is_gather = index.type.lanes > 1 and (not index.is_affine or index.dims is None or index.python is None)
                load = Load(found[1], index.python, index.dims, is_gather, index.type.lanes, bits)
                accesses.append(Access(found[1], True, load.lanes, bits, is_gather, address(load.address), dims(load), None, address(predicate)))
                predicate = None
                note(parser.counts, accesses)
        if line.endswith("{"):
            blocks.append(opened)
            emit("pass")
    table = "".join(f" lambda: {python},\n" for python in addresses)
    return "\n".join([*lines, f"table[:] = [\n{table}]"]), statements, loops


def stage_of(loop_name):
    found = STAGE.match(loop_name)
    return (found[1], int(found[2])) if found else None


def _buffer_types(lowered):
    """(name, Type of its elements) of each allocation, and of each buffer argument, from the assertion of its halide_type_t."""
    for name, code, bits in re.findall(r"allocate ([\w.$]+)\[([a-z]+)(\d+)", lowered):
        yield name, Type("f" if "float" in code else code[0], int(bits), 1)
    for name, number in re.findall(r"assert\(([\w.$]+)\.type == \(uint32\)(\d+)", lowered):
        code = int(number) & 255
        yield name, Type("iuf"[code] if code < 3 else "f", int(number) >> 8 & 255, 1)


class Run:
    """Runs a translation: of each loop its middle iteration, which stands for all but the last, and the last."""

    def __init__(self, values, statements):
        self.variables, self.weight, self.tasks, self.iterations = dict(values), 1.0, {}, 0
        self.statements, self.runs, self.allocations, self.all_known = statements, np.zeros(len(statements)), {}, True
        self.parallel_runs, self.wall_runs, self.concurrency, self.speedup = np.zeros(len(statements)), np.zeros(len(statements)), 1.0, 1.0
        self.loops, self.mask, self.indices, self.table = [], 0, [], []
        self.entered, self.ran = Counter(), 0
        self.task_counts = Counter()

    def value(self, function):
        try:
            return function()
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None

    def assign(self, name, function):
        self.variables[name] = self.value(function)

    def let(self, name, value, function):
        self.variables[name] = value
        return function()

    def may_hold(self, function):
        known = self.value(function)
        return known is None or bool(known)

    def loop(self, number, name, start, extent):
        first, n, outer = self.value(start) or 0, self.value(extent), self.weight
        if n is None:
            self.all_known, n = False, 1
        if n < 1:
            return
        bit = 1 << len(self.loops)
        self.loops.append((number, n))
        self.indices.append(0)
        self.entered[number] += outer
        for index, weight, last in [((n - 1) // 2, n - 1, 0), (n - 1, 1, bit)] if n > 1 else [(0, 1, 0)]:
            self.iterations += 1
            if self.iterations > MAX_ITERATIONS:
                raise TooLong
            self.variables[name], self.weight, self.mask = first + index, outer * weight, (self.mask & (bit - 1)) | last
            self.indices[-1] = first + index
            yield
        self.loops.pop()
        self.indices.pop()
        self.mask &= bit - 1
        self.weight = outer

    def task(self, name, loop_name, number):
        return lambda body: self.tasks.__setitem__(name, (loop_name, number, body))

    def run_task(self, name, start, extent):
        loop_name, number, body = self.tasks[name]
        outer, n = (self.concurrency, self.speedup), self.value(extent) or 1
        self.task_counts[number] += self.weight * n
        self.concurrency *= n
        self.speedup = min(CORES, self.speedup * n / math.ceil(n / CORES))
        for _ in self.loop(number, loop_name, start, extent):
            body()
        self.concurrency, self.speedup = outer

    def run(self, i):
        self.runs[i] += self.weight
        self.parallel_runs[i] += self.weight if self.concurrency > 1 else 0
        self.wall_runs[i] += self.weight / self.speedup
        statement = self.statements[i]
        if statement.is_predicated:
            for access in statement.accesses:
                if access.active is not None:
                    n = self.evaluate(access.active)
                    access.points += self.weight * (access.lanes if n is None else n)
        if statement.mask < 0:
            statement.mask, statement.loops, statement.indices = self.mask, tuple(self.loops), tuple(self.indices)
            statement.order, self.ran = self.ran, self.ran + 1
            for access in statement.accesses:
                access.first = self.evaluate(access.address)
                if access.dims is not None:
                    shape = [(self.evaluate(stride), n) for stride, n in access.dims]
                    access.shape = None if any(stride is None for stride, _ in shape) else shape
            return
        differs = self.mask ^ statement.mask
        if differs & statement.seen or differs & (differs - 1) or not differs:
            return
        statement.seen |= differs
        depth = differs.bit_length() - 1
        step = self.indices[depth] - statement.indices[depth] if depth < len(statement.indices) else 0
        if step:
            for access in statement.accesses:
                if access.first is not None:
                    now = self.evaluate(access.address)
                    if now is not None:
                        access.steps[depth] = (now - access.first) / step

    def evaluate(self, address):
        try:
            return None if address is None else self.table[address]()
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None

    def allocate(self, name, itemsize, size, is_constant):
        n = self.value(size)
        self.all_known &= n is not None
        self.allocations[name] = Allocation(tuple(number for number, _ in self.loops), (n or 0) * itemsize, is_constant)


def count_machine(lowered, values, vector_bits=512):
    """{(Func, number of the stage): Counter of the kinds in EXECUTED} of lowered code; `values` as lowered_code.known_values gives them.

    None where they can't be told.
    """
    try:
        name, _ = re.search(r"^external\S* func (\S+) \((.*)\) \{", lowered, re.M).groups()
        program, statements, loops = translate(lowered, vector_bits)
        run = Run(values, statements)
        methods = {method: getattr(run, method) for method in ("assign", "let", "may_hold", "loop", "task", "run_task", "run", "allocate")}
        exec(compile(program, name, "exec"), {"variables": run.variables, "table": run.table, **FUNCTIONS, **methods})
        run.tasks[name][2]()
    except (SyntaxError, RecursionError, TooLong, NotUnderstood, AttributeError, LookupError, NameError, ValueError):
        return None
    return Machine(run, loops, vector_bits).count() if run.all_known else None


class Machine:
    """Charges what a Run has seen to its stages."""

    def __init__(self, run, loops, vector_bits):
        self.run, self.loops, self.native_bytes = run, loops, vector_bits // 8
        self.statements = [s for s in run.statements if s.mask >= 0]
        self.runs = {id(s): n for s, n in zip(run.statements, run.runs)}
        self.parallel_runs = {id(s): n for s, n in zip(run.statements, run.parallel_runs)}
        self.wall_runs = {id(s): n for s, n in zip(run.statements, run.wall_runs)}
        self.totals = defaultdict(Counter)
        self.bodies = defaultdict(list)  # {numbers of the loops around: statements in order}
        for statement in sorted(self.statements, key=lambda s: s.order):
            self.bodies[tuple(number for number, _ in statement.loops)].append(statement)

    def count(self):
        self.find_registers()
        for path, statements in self.bodies.items():
            self.count_body(path, statements)
        self.count_lines()
        for number, n in self.run.task_counts.items():
            name, _ = self.loops[number]
            if stage := stage_of(name):
                self.totals[stage]["parallel_loops"] += self.run.entered[number]
                self.totals[stage]["tasks"] += n
        return self.totals

    # Registers

    def find_registers(self):
        """Which buffers live in registers altogether, and which are stored to at an address that changes with a loop: {(buffer, loop)}."""
        of_buffer, self.stored_at = defaultdict(list), set()
        for statement in self.statements:
            for access in statement.accesses:
                of_buffer[access.buffer].append((statement, access))
                if access.is_store:
                    for depth, (number, n) in enumerate(statement.loops):
                        if n > 1 and access.steps.get(depth, math.nan) != 0:
                            self.stored_at.add((access.buffer, number))
        self.in_registers = set()
        for buffer, allocation in self.run.allocations.items():
            if allocation.is_constant and allocation.n_bytes <= PROMOTED_BYTES and all(
                access.first is not None
                and not access.is_gather
                and all(
                    access.steps.get(depth, math.nan) == 0
                    for depth, (number, n) in enumerate(statement.loops)
                    if n > 1 and number not in allocation.loops
                )
                for statement, access in of_buffer[buffer]
            ):
                self.in_registers.add(buffer)

    def hoisted(self, statement, access):
        """How many iterations of the loops around an access share it: it is done once for all of them."""
        if access.first is None:
            return 1.0
        shared = 1.0
        for depth in range(len(statement.loops) - 1, -1, -1):
            number, n = statement.loops[depth]
            if n <= 1:
                continue
            if access.steps.get(depth, math.nan) != 0 or (access.buffer, number) in self.stored_at or self.loops[number][1]:
                break
            shared *= n
        return shared

    def natives(self, access):
        return max(access.lanes * access.bits / 8 / self.native_bytes, 1.0)

    # Bodies of loops

    def count_body(self, path, statements):
        seen, stored = set(), {}
        n_runs = max(self.runs[id(s)] for s in statements)
        if not n_runs:
            return
        cycles = Counter()  # by stage, of one iteration
        busy = Counter()
        live = set()
        for statement in statements:
            total, n = self.totals[statement.stage], self.runs[id(statement)]
            share = n / n_runs
            spent = Counter()
            for kind, number in statement.operations.items():
                width, what = kind.split("_", 1)
                if width == "scalar":
                    kind = {"index": "index_instructions", "library": "library_calls"}.get(what, "scalar_instructions")
                    total[kind] += n * number
                    if what != "index":  # indices are mostly computed once outside, or part of an address
                        spent["operations"] += number * CYCLES.get(what, 1) / 2
                        spent["instructions"] += number
                else:
                    total[NATIVE_KINDS[what]] += n * number
                    spent["operations"] += number * CYCLES.get(what, 1)
                    spent["instructions"] += number
            for access in statement.accesses:
                natives = self.natives(access)
                if access.buffer in self.in_registers:
                    live.add((access.buffer, access.first, natives))
                    continue
                key = (access.buffer, access.first, access.lanes, statement.mask, str(access.shape))
                if access.is_store:
                    stored[access.buffer] = stored.get(access.buffer, set()) | {key}
                elif access.first is not None and key in seen:
                    continue
                if access.first is not None:
                    seen.add(key)
                shared = self.hoisted(statement, access)
                if shared > 1:
                    live.add((access.buffer, access.first, natives))
                spacing = math.inf if access.is_gather else _spacing(access)
                if 1 < spacing <= MOST_SHUFFLED and not access.is_store and access.active is None:
                    natives *= spacing  # all that lies between is loaded, too, and what is wanted picked out
                    total["native_shuffles"] += n / shared * natives
                    spent["operations"] += natives / shared
                elif spacing > 1:
                    lanes = access.lanes if access.active is None else access.points / n
                    kind = "points_scattered_executed" if access.is_store else "points_gathered_executed"
                    total[kind] += n / shared * lanes
                    spent["gathered"] += lanes / shared
                    spent["instructions"] += lanes / shared
                    continue
                total["stores_executed" if access.is_store else "loads_executed"] += n / shared * natives
                spent["stores" if access.is_store else "loads"] += natives / shared
                spent["instructions"] += natives / shared
            last = statement.accesses[-1] if statement.accesses else None
            if last and last.is_store and last.first is None and any(a.buffer == last.buffer for a in statement.accesses[:-1]):
                total["updates_in_memory"] += n * last.lanes
            for unit, number in spent.items():
                busy[unit] += share * number
            cycles[statement.stage] += share * _cycles(spent)
        throughput = _cycles(busy)
        scale = throughput / max(sum(cycles.values()), 1e-9)
        for stage, number in cycles.items():
            self.totals[stage]["body_cycles"] += n_runs * number * scale
        chains = self.chains(statements)
        parallel_share = max(self.parallel_runs[id(s)] for s in statements) / n_runs
        wall_share = max(self.wall_runs[id(s)] for s in statements) / n_runs
        extent = next((n for _, n in reversed(statements[0].loops[-1:])), 1)
        n_instructions = max(busy["instructions"], 1)
        overlap = max(1.0, WINDOW / (n_instructions * extent))
        waits = {}
        for stage, latency in chains.items():
            waits[stage] = max(0.0, latency / overlap - throughput)
            self.totals[stage]["chain_cycles"] += n_runs * waits[stage]
        n_live = sum(n for *_, n in live)
        for stage, number in cycles.items():
            part = number / max(sum(cycles.values()), 1e-9)
            self.totals[stage]["spilled_vectors"] += n_runs * part * max(0.0, n_live - REGISTERS)
            self.totals[stage]["parallel_cycles"] += n_runs * (number * scale + waits.get(stage, 0)) * parallel_share
            self.totals[stage]["wall_cycles"] += n_runs * (number * scale + waits.get(stage, 0)) * wall_share

    def chains(self, statements):
        """{stage: cycles that an iteration waits for what the one before has written}, the longest of each."""
        if not statements[0].loops or statements[0].loops[-1][1] <= 1:
            return {}
        depth = len(statements[0].loops) - 1
        if self.loops[statements[0].loops[-1][0]][1]:
            return {}
        ready, ends = {}, []
        is_candidate = {a.buffer for s in statements for a in s.accesses if a.is_store} & {
            a.buffer for s in statements for a in s.accesses if not a.is_store
        }
        if not is_candidate:
            return {}
        for iteration in range(3):
            last = defaultdict(float)
            for statement in statements:
                time = 0.0
                store = None
                for access in statement.accesses:
                    if access.buffer not in is_candidate or access.first is None:
                        continue
                    key = access.buffer, access.first + iteration * access.steps.get(depth, 0)
                    if access.is_store:
                        store = key
                    elif key in ready and access.latency is not None:
                        time = max(time, ready[key] + access.latency)
                if store:
                    ready[store] = time
                    last[statement.stage] = max(last[statement.stage], time)
            ends.append(last)
        return {stage: ends[2][stage] - ends[1][stage] for stage in ends[2] if ends[2][stage] > ends[1][stage]}

    # Caches

    def count_lines(self):
        """Lines that each stage gets from, and puts beyond, each cache.

        In each loop nest, what an iteration of a loop touches is compared with a cache's size: the outermost loop whose iterations fit is
        where data stays; each of its runs fetches every line that it touches once.
        """
        groups = self.group_accesses()
        # what one iteration of each loop touches, by buffer; () is the whole program
        touched = defaultdict(lambda: defaultdict(dict))
        for group in groups:
            for depth in range(len(group.loops) + 1):
                n_bytes, lines = group.footprint(depth)
                path = tuple(number for number, _ in group.loops[:depth])
                key = (group.buffer, group.shape_key)
                per = touched[path][group.buffer]
                per[key] = max(per.get(key, (0, 0)), (n_bytes, lines))
        sizes = {
            path: {buffer: min(sum(n for n, _ in per.values()), self.size_of(buffer)) for buffer, per in buffers.items()}
            for path, buffers in touched.items()
        }
        working_sets = {path: sum(per.values()) for path, per in sizes.items()}
        for cache, capacity in CACHES.items():
            if working_sets.get((), 0) <= capacity:
                continue  # a run of the program finds there what the one before has left
            claimed = defaultdict(float)  # lines of a buffer that an earlier stage has brought in within a loop's iteration
            beyond = {"l1": "l2", "l2": "l3", "l3": "memory"}[cache]
            for group in groups:
                if group.buffer in self.in_registers:
                    continue
                depth = next(
                    (
                        depth
                        for depth in range(len(group.loops) + 1)
                        if working_sets[tuple(number for number, _ in group.loops[:depth])] <= capacity
                    ),
                    len(group.loops),
                )
                # all iterations of the loop around that: those whose lines overlap share them
                outer = max(depth - 1, 0)
                path = tuple(number for number, _ in group.loops[:depth])
                _, lines = group.footprint(outer)
                limit = self.size_of(group.buffer) / LINE_BYTES + 1
                lines = min(lines, limit)
                runs = group.entries(outer)
                claim = (path, group.buffer)
                fresh = max(0.0, lines - claimed[claim])
                claimed[claim] = max(claimed[claim], lines)
                kind = f"lines_to_{beyond}" if group.is_store else f"lines_from_{beyond}"
                self.totals[group.stage][kind] += fresh * runs

    def size_of(self, buffer):
        allocation = self.run.allocations.get(buffer)
        if allocation:
            return max(allocation.n_bytes, 1)
        extents = [value for name, value in self.run.variables.items() if name.startswith(f"{buffer}.extent.") and value]
        return math.prod(extents) * 8 if extents else math.inf

    def group_accesses(self):
        """Accesses of a stage to a buffer in one body that go the same way, as Groups in the order of the code."""
        found = {}
        for statement in sorted(self.statements, key=lambda s: s.order):
            path = tuple(number for number, _ in statement.loops)
            allocation = self.run.allocations.get(statement.accesses[-1].buffer) if statement.accesses else None
            for access in statement.accesses:
                allocation = self.run.allocations.get(access.buffer)
                inside = len(allocation.loops) if allocation else 0
                steps = tuple(
                    0 if depth < inside else access.steps.get(depth, None if n > 1 else 0) for depth, (_, n) in enumerate(statement.loops)
                )
                width, dims = _lane_dims(access)
                key = (path, access.buffer, access.is_store, statement.stage, steps, width, tuple(dims), access.first is None)
                if key not in found:
                    found[key] = Group(statement.stage, access, statement.loops, steps, width, dims, self.runs[id(statement)])
                if access.first is not None:
                    found[key].bases.add(access.first)
                else:
                    found[key].n_anywhere += access.lanes
        return list(found.values())


NATIVE_KINDS = {
    "simple": "native_operations", "multiply": "native_multiplications", "divide": "native_divisions", "cast": "native_casts",
    "shuffle": "native_shuffles", "function": "native_functions",
}  # fmt: skip


def _cycles(spent):
    return max(
        spent["operations"] / OPERATIONS_A_CYCLE,
        spent["loads"] / LOADS_A_CYCLE + spent["gathered"] / GATHERED_A_CYCLE,
        spent["stores"] / STORES_A_CYCLE,
        spent["instructions"] / INSTRUCTIONS_A_CYCLE,
        0.25,
    )


def _spacing(access):
    """Elements from one lane of a vector to the next: 1 where they lie side by side, infinity where they lie anywhere."""
    if access.lanes == 1:
        return 1
    if access.shape is None:
        return math.inf
    (stride, n), *outer = access.shape
    if outer and stride in (1, -1) and n * access.bits >= 128:
        return 1  # rows of a vector's width: a load each
    end = stride * n
    for other, m in outer:
        if other not in (0, end):
            return math.inf
        end = other * m
    return abs(stride)


def _lane_dims(access):
    """(elements side by side, [(stride, number)] of what is further apart) of the lanes of an access."""
    width, dims = 1, []
    for stride, n in access.shape or []:
        stride = abs(stride)
        if not stride:
            continue
        if stride <= width:
            width += stride * (n - 1)
        else:
            dims.append((stride, n))
    return width, dims


class Group:
    """Accesses that differ in where they begin alone."""

    def __init__(self, stage, access, loops, steps, width, dims, runs):
        self.stage, self.buffer, self.is_store, self.loops, self.runs = stage, access.buffer, access.is_store, loops, runs
        self.steps, self.width, self.dims, self.element = steps, width, dims, max(access.bits // 8, 1)
        self.bases, self.n_anywhere, self.cache = set(), 0, {}
        self.shape_key = (tuple(abs(s) if s is not None else None for s in steps), width, tuple(dims))

    def entries(self, depth):
        """How often the loops from `depth` on are entered."""
        return self.runs / math.prod(n for _, n in self.loops[depth:])

    def footprint(self, depth):
        """(bytes, lines) that the loops from `depth` on touch, all of their iterations."""
        if depth not in self.cache:
            self.cache[depth] = self._footprint(depth)
        return self.cache[depth]

    def _footprint(self, depth):
        inner = math.prod(n for _, n in self.loops[depth:])
        if not self.bases:
            n = self.n_anywhere * inner
            return n * self.element, n
        strides = Counter()
        repeated = 1
        for (_, n), step in zip(self.loops[depth:], self.steps[depth:]):
            if step is None:
                repeated *= n
            elif step and n > 1:
                strides[abs(step)] = max(strides[abs(step)], 1) * n
        for stride, n in self.dims:
            strides[stride] = max(strides[stride], 1) * n
        # where the accesses begin, in steps of the loops around: a stencil's rows are rows of the loop over rows
        bases = np.array(sorted(self.bases), float)
        rest = bases - bases[0]
        spread = {}
        for stride in sorted({abs(step) for step in self.steps if step} | set(strides), reverse=True):
            if stride <= self.width:
                continue
            steps = np.round(rest / stride)
            if len(rest) > 1 and steps.any():
                spread[stride] = steps.max() - steps.min() + 1 if stride in strides else len(np.unique(steps))
            rest = rest - steps * stride
        width = self.width + (rest.max() - rest.min() if len(rest) > 1 else 0)
        total = len(bases) * math.prod(strides.values()) * self.width
        segments = 1.0
        line = LINE_BYTES / self.element
        for stride in sorted(set(strides) | set(spread)):
            n = strides.get(stride, 1) + spread.get(stride, 1) - 1
            if stride <= max(width, line) and segments == 1:
                width += stride * (n - 1)
            else:
                segments *= n
        n_elements = min(segments * width, total)
        lines = segments * max(1.0, width * self.element / LINE_BYTES)
        return n_elements * self.element * repeated, min(lines, len(bases) * inner * max(1, self.width * self.element / LINE_BYTES)) * repeated

