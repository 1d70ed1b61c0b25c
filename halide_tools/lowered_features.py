"""What a processor makes of lowered code: registers, chains of dependence, native vectors, cache lines, parallel tasks.

A compiler keeps an address that a loop does not change in a register, a load that two statements share happens once, an update waits for
the one before it, and a line that was touched a moment ago comes from a cache. All that follows from how often the statements run and
from the strides of their addresses, which a lowered_code.Run tells. `count_lowered` charges it to the stages.
"""

import math
import sys
from collections import Counter, defaultdict
from typing import NamedTuple

import halide as hl
import numpy as np

from features import LOWERED
from halide_tools.buffers import lowered_text
from halide_tools.lowered_code import LEAST_MASKED_BITS, Run, TooLong, Translation, known_values, owners_of, stage_of, stages_of
from halide_tools.lowered_expressions import INDEX, NotUnderstood
from halide_tools.programs import HOST

LINE_BYTES = 64
PAGE_BYTES = 4096  # within a page, the address alone decides in which set of a cache a line lies
# {cache: (bytes, what lies beyond it)}, for one core. A third-level cache is shared: what a core can use of it is less than its size.
CACHES = {"l1": (2**15, "l2"), "l2": (2**20, "l3"), "l3": (2**23, "memory")}
REGISTERS = {64: 32}  # vector registers by their bytes, 16 otherwise
WINDOW = 256  # instructions that a processor looks ahead: iterations of an outer loop that overlap
PROMOTED_BYTES = 2048  # an allocation of constant size that is no larger lives in registers, if no address in it changes with a loop
MOST_SHUFFLED = 4  # elements from lane to lane, up to which whole vectors are loaded and the lanes picked out of them
# What a unit does in a cycle, of native vectors and of lanes that are loaded by themselves, and instructions in all: close to Zen 3 and 4
# and Skylake (uops.info). What a cycle takes is fitted later.
PER_CYCLE = {"operations": 1.5, "loads": 1.5, "stores": 0.75, "gathered": 0.8, "instructions": 5.0, "branches": 0.8}
CYCLES = {"divide": 8.0, "library": 20.0}  # that an operation keeps its unit busy, where it is not one
# Bits of the narrowest elements that are loaded and stored whole under a mask, by bytes of a vector register, LEAST_MASKED_BITS otherwise.
# All others are so lane by lane with a branch each, and so are gathers and scatters under a mask.
MASKED_BITS = {64: 8}
MASKED_STORE = {64: 1.0}  # stores that one under a mask is worth, 12 otherwise: close to what `conv_int8` takes on Zen 3
LEAST_CYCLES = 0.25  # of an iteration

VECTOR_KINDS = {
    "simple": "native_operations", "multiply": "native_multiplications", "divide": "native_divisions", "cast": "native_casts",
    "shuffle": "native_shuffles", "function": "native_functions",
}  # fmt: skip
SCALAR_KINDS = {"index": "index_instructions", "library": "library_calls"}  # all others: scalar_instructions


DEEPEST = 20_000  # calls inside each other: a few for each of the `let`s that are nested in an expression, of which there may be hundreds
# Nested deeper than Python allows, or written as no code seen so far: the schedule is worth keeping all the same.
NOT_COUNTABLE = (
    AttributeError, LookupError, MemoryError, NameError, NotUnderstood, RecursionError, SyntaxError, TooLong, TypeError, ValueError,
)  # fmt: skip


def count_lowered(pipeline, spec=HOST):
    """Counts of a scheduled pipeline, (T, K) float64: a row a stage, in the order of its featurization, a column for each of LOWERED.

    spec : the ProgramSpec whose target, threads and inputs hold. An inlined stage has no counts but native_vector_bytes: what it does is
    done by the stage that calls it. None where they can't be told: a loop's extent or an allocation's size depends on what is in a buffer,
    loops lie too deep inside each other, or the code is not understood. The pipeline needs estimates for outputs and scalars. Raises
    hl.HalideError as compiling does.
    """
    target = spec.halide_target()
    lowered, stages = lowered_text(pipeline, target), stages_of(pipeline)
    vector_bits = 8 * target.natural_vector_size(hl.UInt(8))
    return count_text(lowered, lambda names: known_values(pipeline, spec, names), stages, vector_bits, spec.threads)


def count_text(lowered, values_of, stages, vector_bits, cores):
    """Counts in the text of lowered code, (T, K) float64, for `stages`, [(name of a Func, number)]; None where they can't be told.

    values_of : gives what is known of its arguments, from their names, as lowered_code.known_values does. vector_bits : of a native
    vector. cores : that run tasks.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEPEST))
    try:
        translation = Translation(lowered, vector_bits)
        run = Run(*values_of(translation.arguments), translation, cores)
    except NOT_COUNTABLE:
        return None
    finally:
        sys.setrecursionlimit(limit)
    if not run.all_known:
        return None
    totals = Costs(run, translation, stages).count()
    for stage in stages:
        totals[stage]["native_vector_bytes"] = vector_bits // 8
    return np.array([[totals[stage][kind] for kind in LOWERED] for stage in stages], np.float64)


def as_dict(counts):
    """{kind: [count of each stage]} of what count_lowered returns, in four digits; kinds that don't occur are left out."""
    whole = np.round(counts).astype(np.int64)
    last_digit = 10 ** np.maximum(np.floor(np.log10(np.maximum(whole, 1))).astype(np.int64) - 3, 0)
    rounded = np.round(whole / last_digit).astype(np.int64) * last_digit
    return {kind: column.tolist() for kind, column in zip(LOWERED, rounded.T) if column.any()}


class Costs:
    """Charges what a Run has seen to stages: `count` returns {stage: {kind: number}}."""

    def __init__(self, run, translation, stages):
        self.run, self.loops, self.buffers, self.native_bytes = run, translation.loops, translation.buffers, translation.vector_bits // 8
        self.stages, self.totals = set(stages), defaultdict(Counter)
        self.statements = sorted((s for s in run.statements if s.mask >= 0 and s.runs), key=lambda s: s.order)
        read = [{access.buffer for access in s.accesses if not access.is_store} for s in self.statements]
        for statement, owner in zip(self.statements, owners_of([s.around for s in self.statements], read, stages)):
            statement.stage = owner
        self.owners = {s.around[0]: s.stage for s in reversed(self.statements) if s.around and s.stage}
        self.statements = [s for s in self.statements if s.stage]  # what is in none is about the code's arguments

    def count(self):
        self.find_registers()
        bodies = defaultdict(list)
        for statement in self.statements:
            bodies[tuple(number for number, _ in statement.loops)].append(statement)
        for statements in bodies.values():
            self.count_body(statements)
        self.count_lines()
        for statement in self.statements:
            self.count_as_written(statement)
        for number, n in self.run.iterated.items():
            if stage := self.owner_of(stage_of(self.loops[number][0])):
                self.totals[stage]["iterations"] += n
        for number, n in self.run.tasks_run.items():
            if stage := self.owner_of(stage_of(self.loops[number][0])):
                self.totals[stage] += Counter(parallel_loops=self.run.entered[number], tasks=n)
        for name, allocation in self.run.allocations.items():
            is_part = (name, 0) not in self.stages and (name, 0) not in self.owners  # `f.1` is a part of a Tuple's Func
            kinds = ("stack_allocations", "stack_bytes") if allocation.on_stack else ("allocations", "bytes_allocated")
            if stage := self.owner_of((name.rpartition(".")[0] if is_part else name, 0)):
                self.totals[stage] += Counter(dict(zip(kinds, (allocation.runs, allocation.total_bytes))))
        return self.totals

    def owner_of(self, stage):
        """Which stage is charged with what is in this one: itself, or who reads the input that it computes."""
        return stage if stage in self.stages else self.owners.get(stage)

    def count_as_written(self, statement):
        """What a statement loads and stores if registers keep nothing."""
        total = self.totals[statement.stage]
        total["statements"] += 1
        for access in statement.accesses:
            points = access.points if access.active is not None else statement.runs * access.lanes
            total["bytes_stored" if access.is_store else "bytes_loaded"] += points * access.bits / 8
            if access.is_store:
                total["points_stored" if spacing_of(access) == 1 else "points_scattered"] += points

    # Registers

    def find_registers(self):
        """Which buffers live in registers altogether, and which loops store to which buffers at addresses that change: {(buffer, loop)}."""
        accesses, self.changed_in = defaultdict(list), set()
        for statement in self.statements:
            for access in statement.accesses:
                accesses[access.buffer].append((statement, access))
                if access.is_store:
                    # A compiler keeps no part of what is stored lane by lane, or under a mask, in a register.
                    stays = access.active is None and spacing_of(access) == 1
                    loops = self.moving(statement, access) if stays else enumerate(number for number, _ in statement.loops)
                    self.changed_in |= {(access.buffer, number) for _, number in loops}
        self.in_registers = {
            buffer
            for buffer, allocation in self.run.allocations.items()
            if allocation.is_constant
            and allocation.n_bytes <= PROMOTED_BYTES
            and all(
                access.first is not None
                and access.active is None
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
        spacing, is_masked = math.inf if access.is_gather else spacing_of(access), access.active is not None
        is_shuffled = 1 < spacing <= MOST_SHUFFLED and not access.is_store and not is_masked
        has_branches = is_masked and (spacing > 1 or access.bits < MASKED_BITS.get(self.native_bytes, LEAST_MASKED_BITS))
        if has_branches:
            total["branched_lanes"] += runs / n_shared * access.lanes
            spent["branches"] += access.lanes / n_shared
        if has_branches or (spacing > 1 and not is_shuffled):
            lanes = (access.points / runs if is_masked else access.lanes) / n_shared
            total["points_scattered_executed" if access.is_store else "points_gathered_executed"] += runs * lanes
            spent["gathered"] += lanes
            spent["instructions"] += lanes
            return
        if is_shuffled:
            natives *= spacing
            total["native_shuffles"] += runs / n_shared * natives
            spent["operations"] += natives / n_shared
        total["stores_executed" if access.is_store else "loads_executed"] += runs / n_shared * natives
        busy = 1.0
        if is_masked and access.is_store:
            total["masked_stores"] += runs / n_shared * natives
            busy = MASKED_STORE.get(self.native_bytes, 12.0)
        spent["stores" if access.is_store else "loads"] += busy * natives / n_shared
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
        that is entered, what all of its iterations touch comes in once; where no loop is like that, all comes in at every iteration. What a
        stage before has brought in within the iteration is there. What is stored to goes back, whoever has brought it in.
        """
        groups, touched = self.group_accesses(), defaultdict(lambda: defaultdict(dict))
        for group in groups:
            for depth in range(len(group.path) + 1):
                per_shape, footprint = touched[group.path[:depth]][group.buffer], group.footprint(depth)
                largest = per_shape.get(group.shape, (0, 0))
                per_shape[group.shape] = max(largest[0], footprint.held_bytes), max(largest[1], footprint.set_bytes)
        working_sets = {path: self.working_set(buffers) for path, buffers in touched.items()}
        for capacity, beyond in CACHES.values():
            if working_sets.get((), 0) <= capacity:
                continue  # a run of the program finds there what the run before has left
            brought, written = defaultdict(float), defaultdict(float)
            for group in groups:
                depths = range(len(group.path) + 1)
                depth = next((d for d in depths if working_sets[group.path[:d]] <= capacity), len(group.path) + 1)
                outer = max(depth - 1, 0)
                lines = min(group.footprint(outer).lines, self.size_of(group.buffer) / LINE_BYTES + 1)
                place, known = (group.path[:depth], group.buffer), written if group.is_store else brought
                kind = f"lines_to_{beyond}" if group.is_store else f"lines_from_{beyond}"
                self.totals[group.stage][kind] += max(0.0, lines - known[place]) * group.entered(outer)
                known[place] = max(known[place], lines)
                brought[place] = max(brought[place], known[place])

    def working_set(self, buffers):
        """Bytes that a cache has to have for all that is touched to stay in it, {buffer: {shape: (held_bytes, set_bytes)}}."""
        held = crowded = 0.0
        for buffer, per_shape in buffers.items():
            size = self.size_of(buffer)
            held += min(sum(n for n, _ in per_shape.values()), size)
            crowded = max(crowded, min(max(n for _, n in per_shape.values()), size))
        return max(held, crowded)

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
    others = (spent[unit] / PER_CYCLE[unit] for unit in ("operations", "stores", "instructions", "branches"))
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
        self.begins, self.lines_anywhere, self.footprints = set(), 0.0, {}
        self.shape = tuple(step and abs(step) for step in steps), width, dims

    def add(self, access):
        if access.first is None:
            rows = math.prod(n for _, n in self.dims) * max(1.0, self.width * self.element / LINE_BYTES)
            self.lines_anywhere += access.lanes if access.is_gather else rows
        else:
            self.begins.add(access.first)

    def entered(self, depth):
        """How often the loops from `depth` on are entered."""
        return self.runs / math.prod(self.extents[depth:])

    def footprint(self, depth):
        """The Footprint of all iterations of the loops from `depth` on."""
        if depth not in self.footprints:
            self.footprints[depth] = self._footprint(depth)
        return self.footprints[depth]

    def _footprint(self, depth):
        inner = math.prod(self.extents[depth:])
        if not self.begins:
            lines = self.lines_anywhere * inner
            return Footprint(lines, LINE_BYTES * lines, 0.0)
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
        width, segments, between = self.width + rest.max() - rest.min(), 1.0, PAGE_BYTES
        for stride in sorted(strides.keys() | further.keys()):
            n = strides.get(stride, 1) + further.get(stride, 0)
            if segments == 1 and stride <= max(width, LINE_BYTES / self.element):
                width += stride * (n - 1)
            else:
                segments *= n
                between = math.gcd(between, round(stride * self.element))
        most = len(begins) * math.prod(strides.values())
        of_width = max(1.0, width * self.element / LINE_BYTES)
        lines = min(segments * of_width, most * max(1.0, self.width * self.element / LINE_BYTES))
        n_bytes = min(segments * width, most * self.width) * self.element
        # Segments that lie a multiple of many lines apart share a few sets: as much as if all of what lies between were touched.
        sets = min(PAGE_BYTES // between * math.ceil(of_width), PAGE_BYTES // LINE_BYTES)
        crowded = lines * PAGE_BYTES / sets if segments > 1 else 0.0
        return Footprint(lines * anew, max(n_bytes, lines * LINE_BYTES) * anew, crowded)


class Footprint(NamedTuple):
    """What accesses touch: lines, the bytes that they take in a cache, and how large it has to be for the sets that they lie in."""

    lines: float
    held_bytes: float
    set_bytes: float
