"""What a schedule consists of, and the directives that make it: calls on Funcs and on their updates, in order.

Data alone: schedules.py reads it from pipelines and applies it, schedule_text.py prints it.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

TAILS = ("RoundUp", "GuardWithIf", "Predicate", "PredicateLoads", "PredicateStores", "ShiftInwards", "ShiftInwardsAndBlend")
TAILS = (*TAILS, "RoundUpAndBlend", "Auto")

INLINE, ROOT, OUTERMOST = "inline", "root", "__outermost"
# What Halide calls Funcs, Vars and RVars of no name: numbers that go on from build to build.
UNNAMED_FUNC = re.compile(r"([a-z]|lambda_)\d+")


# What a schedule consists of


class Split(NamedTuple):
    old: str
    outer: str
    inner: str
    factor: int
    tail: str


class Fuse(NamedTuple):
    inner: str
    outer: str
    fused: str


class Rename(NamedTuple):
    old: str
    new: str


TRANSFORMS = {"split": Split, "fuse": Fuse, "rename": Rename}


class Loop(NamedTuple):
    name: str
    mark: str = "serial"  # one of FOR_TYPES
    partition: str = "Auto"


class Level(NamedTuple):
    """Inside a loop of a Func: of that stage, or of every stage that has a loop of this name (-1)."""

    func: str
    loop: str
    stage: int = -1


class StorageDim(NamedTuple):
    name: str
    alignment: int = 0
    bound: int = 0
    fold: int = 0
    fold_forward: bool = True


class Prefetch(NamedTuple):
    func: str
    at: str
    from_: str
    offset: int
    strategy: str


class ComputeWith(NamedTuple):
    level: Level
    align: tuple = ()  # (loop, one of ALIGN)


@dataclass(frozen=True)
class Stage:
    """A definition of a Func: its algorithm's loops, innermost first (RVars, then Vars), and what became of them."""

    rvars: tuple
    vars: tuple
    loops: tuple  # Loops, innermost first
    transforms: tuple = ()
    atomic: str = ""  # "atomic", or "override" without the proof that the update is associative
    race_conditions: bool = False
    prefetches: tuple = ()
    compute_with: ComputeWith | None = None


@dataclass(frozen=True)
class FuncSchedule:
    """Levels are "inline", "root" or a Level. `store` and `hoist` are None where they follow `compute` and `store`."""

    args: tuple
    stages: tuple  # the pure definition, then the updates
    compute: str | Level = INLINE
    store: str | Level | None = None
    hoist: str | Level | None = None
    memory_type: str = "Auto"
    storage: tuple = ()  # StorageDims, innermost first; () is the order of args
    bounds: tuple = ()  # (method, arg, numbers...)
    memoize: bool = False
    async_: bool = False
    ring_buffer: int = 0


@dataclass(frozen=True)
class Created:
    """A Func that the schedule adds: a wrapper (`in_`), a copy (`clone_in`), or the intermediate of `rfactor`.

    callers : labels of the Funcs that call it instead of `base`; none of them is all. Of rfactor: `update` with the transforms that come
    first, and `preserved`, pairs of a loop (RVar) and the Var that it becomes.
    """

    label: str
    method: str
    base: str
    callers: tuple = ()
    update: int = -1
    transforms: tuple = ()
    preserved: tuple = ()


# Labels


def labels_of(names):
    """{name: label} of all Funcs of a pipeline: the label is the same at each build, unlike the name.

    Halide numbers equal names in the order of their creation (`f`, `f$1`), and goes on counting at the next build.
    """
    groups = {}
    for name in names:
        base = re.sub(r"\$\d+", "", name)
        unnamed = UNNAMED_FUNC.fullmatch(base)
        groups.setdefault(unnamed[1].strip("_") if unnamed else base, []).append(([int(n) for n in re.findall(r"\d+", name)], name))
    return {name: base if len(group) == 1 else f"{base}#{i}" for base, group in groups.items() for i, (_, name) in enumerate(sorted(group))}


# Loops of a stage


def apply_transforms(stage):
    """{loop: whether it is an RVar} after the transforms, innermost first. Raises ValueError where one names no loop."""
    loops = [(name, True) for name in stage.rvars] + [(name, False) for name in stage.vars]
    for transform in stage.transforms:
        consumed = transform[:2] if isinstance(transform, Fuse) else transform[:1]
        for name in consumed:
            if name not in dict(loops):
                raise ValueError(f"{transform}: there is no loop {name!r}, only {', '.join(dict(loops))}")
        at, rvar = next((i, rvar) for i, (name, rvar) in enumerate(loops) if name == transform[0])
        if isinstance(transform, Split):
            loops[at : at + 1] = [(transform.inner, rvar), (transform.outer, rvar)]
        elif isinstance(transform, Rename):
            loops[at] = transform.new, rvar
        else:
            rvar = rvar or dict(loops)[transform.outer]
            loops[at] = transform.fused, rvar
            loops = [loop for loop in loops if loop[0] != transform.outer or loop[0] == transform.fused]
        if len(dict(loops)) < len(loops):
            raise ValueError(f"{transform}: there is another loop of this name")
    return dict(loops)


def loop_kinds(stage):
    """{loop: whether it is an RVar} of all loops that the stage has at any time."""
    kinds = {}
    for n in range(len(stage.transforms) + 1):
        kinds |= apply_transforms(dataclasses.replace(stage, transforms=stage.transforms[:n]))
    return kinds


# Equality


def _paths(stage, args):
    """{loop: what it was made from} of those that remain, and the transforms in those terms, sorted."""
    paths = {name: f"r{i}" for i, name in enumerate(stage.rvars)} | {name: f"v{args.index(name)}" for name in stage.vars}
    transforms = []
    for transform in stage.transforms:
        if isinstance(transform, Split):
            old = paths.pop(transform.old)
            paths |= {transform.outer: f"{old}.o", transform.inner: f"{old}.i"}
            transforms.append(("split", old, transform.factor, transform.tail))
        elif isinstance(transform, Fuse):
            inner, outer = paths.pop(transform.inner), paths.pop(transform.outer)
            paths[transform.fused] = f"({inner}*{outer})"
            transforms.append(("fuse", inner, outer))
        else:
            paths[transform.new] = paths.pop(transform.old)
    return paths, sorted(transforms)


def canonical(schedule):
    """`schedule` with each loop called by what it was made from, as nested tuples: equal where schedules are."""
    return _freeze((schedule.outputs, sorted(map(_canonical_created, schedule.created)), _canonical_funcs(schedule)))


def _canonical_created(created):
    names = {new: f"p{i}" for i, (_, new) in enumerate(created.preserved)}
    return (created.label, created.method, created.base, sorted(created.callers), created.update, len(names), _canonical_before(created))


def _canonical_before(created):
    """The transforms before rfactor, new loops by number of appearance; `#i` is the update's RVar i."""
    numbers = {}
    number = lambda x: numbers.setdefault(x, len(numbers)) if isinstance(x, str) and x not in TAILS and x[0] != "#" else x
    return [[number(x) for x in (*t, len(t))] for t in (*created.transforms, *((old,) for old, _ in created.preserved))]


def _canonical_funcs(schedule):
    funcs = schedule.funcs
    paths = {(label, k): _paths(stage, func.args) for label, func in funcs.items() for k, stage in enumerate(func.stages)}

    def level(where):
        if not isinstance(where, Level):
            return where or ""
        if where.func not in funcs:
            return (where.func, where.loop)
        stages = range(len(funcs[where.func].stages)) if where.stage < 0 else [where.stage]
        return (where.func, *((k, paths[where.func, k][0][where.loop]) for k in stages if where.loop in paths[where.func, k][0]))

    result = []
    for label, func in sorted(funcs.items()):
        compute = ROOT if label in schedule.outputs else func.compute
        levels = (level(compute),)
        if compute != INLINE:
            store = compute if func.store is None else func.store
            levels += (level(store), level(store if func.hoist is None else func.hoist))
        index = {name: i for i, name in enumerate(func.args)}
        storage = [(index[d.name], *d[1:]) for d in func.storage or map(StorageDim, func.args)]
        bounds = [(method, index[arg], *numbers) for method, arg, *numbers in func.bounds]
        stages = []
        for k, stage in enumerate(func.stages):
            names, transforms = paths[label, k]
            loops = [(names[loop.name], *loop[1:]) for loop in stage.loops]
            prefetches = [(p.func, names.get(p.at, p.at), names.get(p.from_, p.from_), *p[3:]) for p in stage.prefetches]
            fused = stage.compute_with and (level(stage.compute_with.level), sorted(s for _, s in stage.compute_with.align))
            stages.append((transforms, loops, stage.atomic, stage.race_conditions, prefetches, fused))
        result.append(
            (label, len(func.args), stages, levels, func.memory_type, storage, bounds, func.memoize, func.async_, func.ring_buffer)
        )
    return result


def _freeze(value):
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


# Directives


class LoopRef(NamedTuple):
    """A loop of the stage that a directive is for; `#i` is RVar i of the update."""

    name: str


class FuncRef(NamedTuple):
    label: str


class Enum(NamedTuple):
    type: str
    name: str


class NewLoop(NamedTuple):
    """A Var or RVar by its name, whatever the schedule has of that name."""

    name: str
    rvar: bool


@dataclass(frozen=True)
class Directive:
    """One call on a Func (stage 0) or on an update (stage 1 and up) of it.

    arguments : numbers, LoopRefs, FuncRefs, Levels, Enums, or lists of them and of pairs. result : the label of the Func that it creates.
    """

    func: str
    stage: int
    method: str
    arguments: tuple = ()
    result: str = ""

    def __str__(self):
        def text(value):
            if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
                return f"[{', '.join(map(text, value))}]"
            return (
                ".".join(map(str, value[-2:]))
                if isinstance(value, Enum)
                else " ".join(map(str, value))
                if hasattr(value, "_fields")
                else str(value)
            )

        update = f".update({self.stage - 1})" if self.stage else ""
        return f"{self.func}{update}.{self.method}({', '.join(map(text, self.arguments))})"


def directives_of(schedule):
    """Yields the Directives that make `schedule`, in the order in which they must come."""
    for created in schedule.created:
        yield from _creating(created)
    rfactored = {(created.base, created.update + 1) for created in schedule.created} | {
        (created.label, 1)
        for created in schedule.created
        if created.method == "rfactor"  # it has the schedule of the update it is made of
    }
    for label, func in schedule.funcs.items():
        stages = [list(_stage_directives(label, k, stage)) for k, stage in enumerate(func.stages)]
        yield from stages[0] if stages else ()
        for k, found in enumerate(stages[1:], 1):
            # Else Halide warns of an update that looks forgotten.
            yield from found or ([Directive(label, k, "unscheduled")] if any(stages) and (label, k) not in rfactored else [])
        yield from _func_directives(label, func)


def _creating(created):
    if created.method != "rfactor":
        callers = [FuncRef(caller) for caller in created.callers]
        yield Directive(created.base, 0, created.method, (callers,) if len(callers) > 1 else tuple(callers), created.label)
        return
    stage, new = created.update + 1, {}

    def loop(name, rvar=True):
        return LoopRef(name) if name.startswith("#") else new.setdefault(name, NewLoop(name, rvar))

    for transform in created.transforms:
        names = [loop(value) if isinstance(value, str) else value for value in transform]
        yield _transform_directive(created.base, stage, transform, names)
    preserved = [(loop(old), NewLoop(name, False)) for old, name in created.preserved]
    yield Directive(created.base, stage, "rfactor", (preserved,), created.label)


def _transform_directive(label, k, transform, loops=None):
    loops = loops or [LoopRef(value) if isinstance(value, str) else value for value in transform]
    if isinstance(transform, Split):
        loops[-1] = Enum("TailStrategy", transform.tail)
    return Directive(label, k, type(transform).__name__.lower(), tuple(loops))


def _stage_directives(label, k, stage):
    if stage.race_conditions:
        yield Directive(label, k, "allow_race_conditions")
    if stage.atomic:
        yield Directive(label, k, "atomic", (True,) if stage.atomic == "override" else ())
    for transform in stage.transforms:
        yield _transform_directive(label, k, transform)
    order = [loop.name for loop in stage.loops]
    loops = list(apply_transforms(stage))
    if sorted(order) != sorted(loops):
        raise ValueError(f"{label}: its loops are {', '.join(loops)}, and the schedule orders {', '.join(order)}")
    if order != loops:
        yield Directive(label, k, "reorder", tuple(map(LoopRef, order)))
    for loop in stage.loops:
        if loop.mark not in ("serial", "extern"):
            yield Directive(label, k, loop.mark, (LoopRef(loop.name),))
        if loop.partition != "Auto":
            yield Directive(label, k, "partition", (LoopRef(loop.name), Enum("Partition", loop.partition)))
    for p in stage.prefetches:
        where = LoopRef(p.at), LoopRef(p.from_)
        yield Directive(label, k, "prefetch", (FuncRef(p.func), *where, p.offset, Enum("PrefetchBoundStrategy", p.strategy)))
    if stage.compute_with:
        align = [(LoopRef(loop), Enum("LoopAlignStrategy", strategy)) for loop, strategy in stage.compute_with.align]
        yield Directive(label, k, "compute_with", (stage.compute_with.level, align))


def _func_directives(label, func):
    new = functools.partial(Directive, label, 0)
    for method, arg, *numbers in func.bounds:
        yield new(method, (LoopRef(arg), *numbers))
    if func.storage and [d.name for d in func.storage] != list(func.args):
        yield new("reorder_storage", tuple(LoopRef(d.name) for d in func.storage))
    for dim in func.storage:
        for method, number in (("align_storage", dim.alignment), ("bound_storage", dim.bound)):
            if number:
                yield new(method, (LoopRef(dim.name), number))
        if dim.fold:
            yield new("fold_storage", (LoopRef(dim.name), dim.fold, dim.fold_forward))
    if func.memory_type != "Auto":
        yield new("store_in", (Enum("MemoryType", func.memory_type),))
    for method in ("memoize", "async_"):
        if getattr(func, method):
            yield new(method)
    if func.compute != INLINE:
        for method, level in (("compute", func.compute), ("store", func.store), ("hoist_storage", func.hoist)):
            if level == ROOT:
                yield new(f"{method}_root")
            elif level:
                yield new(method if method == "hoist_storage" else f"{method}_at", (level,))
    if func.ring_buffer:
        yield new("ring_buffer", (func.ring_buffer,))


def shapes(schedule):
    """{label: (arguments, definitions)} of the Funcs that the pipeline must have."""
    created = {c.label for c in schedule.created}
    return {label: (len(f.args), len(f.stages)) for label, f in schedule.funcs.items() if label not in created}


def is_rvar(schedule, label, stage, name):
    """Of a loop that transforms made, in a stage or (-1) in any that has it. Raises ValueError where there is none."""
    stages = schedule.funcs[label].stages
    kinds = [loop_kinds(s) for s in (stages if stage < 0 else stages[stage : stage + 1])]
    if not any(name in k for k in kinds):
        raise ValueError(f"{label} has no loop {name!r}")
    return any(k.get(name, False) for k in kinds)
