"""A schedule as data: what an author or an autoscheduler decided for each Func and stage, apart from the pipeline it was decided for.

    unscheduled = schedules.read(pipeline)              # before an autoscheduler runs
    proposal.apply(pipeline)
    schedule = schedules.read(pipeline, unscheduled)    # of whoever wrote it
    schedule.apply(spec.build())                        # the same schedule on a fresh pipeline

`read` takes the serialized pipeline apart (FlatBuffers; Halide's src/halide_ir.fbs), since Halide's Python bindings have no other way to
see a schedule. `from_source` takes an autoscheduler's C++ text instead. Of each stage the splits, fuses and renames are kept in order, then
the order of the loops that remain and one mark a loop; of each Func where it is computed and stored, and how. Halide gives Funcs other
names at each build (`f$3`), so a Func is known by a label that every build shares, and a Var of the algorithm by its position.
Schedules are equal where all of this is equal, whatever their loops are called.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import keyword
import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import halide as hl

SERIALIZATION = "18.0.1"  # of pipelines, by Halide 21.0.0: the tables below are its own

# Enumerations of halide_ir.fbs, in order.
TAILS = ("RoundUp", "GuardWithIf", "Predicate", "PredicateLoads", "PredicateStores", "ShiftInwards", "ShiftInwardsAndBlend")
TAILS = (*TAILS, "RoundUpAndBlend", "Auto")
FOR_TYPES = ("serial", "parallel", "vectorize", "unroll", "extern", "gpu_blocks", "gpu_threads", "gpu_lanes")
MEMORY = ("Auto", "Heap", "Stack", "Register", "GPUShared", "GPUTexture", "LockedCache", "VTCM", "AMXTile")
PARTITIONS = ("Auto", "Never", "Always")
ALIGN = ("AlignStart", "AlignEnd", "NoAlign", "Auto")
PREFETCH = ("Clamp", "GuardWithIf", "NonFaulting")
UNDEFINED, INT_IMM = (0, 32), 1  # of the union Expr

INLINE, ROOT, OUTERMOST = "inline", "root", "__outermost"
# What Halide calls Funcs, Vars and RVars of no name: numbers that go on from build to build.
UNNAMED_FUNC = re.compile(r"([a-z]|lambda_)\d+")
UNNAMED_VAR = re.compile(r"[a-z]\d+|.*\$.*|_+\d+")
RESERVED = {*keyword.kwlist, *"hl pipeline target funcs Func Var RVar Halide".split()} | set(
    "auto bool case catch char const default delete do double enum explicit extern float friend goto inline int long mutable namespace new "
    "operator private protected public register short signed sizeof static struct switch template this throw typedef typename union "
    "unsigned using virtual void volatile".split()
)


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


@dataclass(frozen=True, eq=False)
class Schedule:
    """What was decided for each Func of a pipeline, by label.

    names : what Halide calls the Funcs and Vars of the pipeline that was read, {label: (Func, {loop: Var})}; no part of the schedule.
    """

    outputs: tuple
    funcs: dict
    created: tuple = ()
    names: dict = field(default_factory=dict, repr=False)

    @functools.cached_property
    def canonical(self):
        """The schedule with each loop called by what it was made from, as nested tuples: equal where schedules are."""
        return tuple(map(_freeze, (self.outputs, sorted(map(_canonical_created, self.created)), _canonical_funcs(self))))

    def __eq__(self, other):
        return isinstance(other, Schedule) and self.canonical == other.canonical

    def __hash__(self):
        return hash(self.canonical)

    def fingerprint(self):
        """The same in every process, 16 hexadecimal digits; equal schedules have equal ones."""
        return hashlib.sha256(repr(self.canonical).encode()).hexdigest()[:16]

    def to_json(self):
        """One line of JSON, what is at its default left out."""
        return json.dumps(_plain(self), separators=(",", ":"))

    @staticmethod
    def from_json(text):
        """Raises ValueError where `text` is no schedule."""
        return _from_plain(json.loads(text))

    def directives(self):
        """The Directives that make this schedule, in the order in which they must come."""
        return list(_directives(self))

    def apply(self, pipeline):
        """Schedule a fresh `pipeline` in place. Raises ValueError where it is another one, hl.HalideError where Halide refuses."""
        _apply(self, pipeline)

    def to_cpp_header(self, name):
        """A `.schedule.h` with `apply_schedule_NAME(pipeline, target)`, as Halide's autoschedulers write."""
        return _to_cpp(self, name)

    def to_python_module(self):
        """Source of a Python module with `apply(pipeline)`, which needs the halide package alone."""
        return _to_python(self)

    def __str__(self):
        return "\n".join(map(str, self.directives()))


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


def func_names(pipeline):
    """The names of all Funcs, inputs' included, in the order of get_func; wrappers and clones have no place in it."""
    return [func.name() for func in _funcs(pipeline)]


def _funcs(pipeline):
    found = []
    while True:
        try:
            found.append(pipeline.get_func(len(found)))
        except (hl.HalideError, IndexError):
            return found


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


# JSON


def _plain(value):
    """As what json writes: a dataclass without what is at its default, a transform with its kind."""
    if isinstance(value, (Split, Fuse, Rename)):
        return [type(value).__name__.lower(), *value]
    if dataclasses.is_dataclass(value):
        found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "names"}
        defaults = {f.name: f.default for f in dataclasses.fields(value)}
        return {name: _plain(v) for name, v in found.items() if v != defaults[name]}
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _from_plain(tree):
    tuples = lambda value: tuple(map(tuples, value)) if isinstance(value, list) else value
    level = lambda value: Level(*value) if isinstance(value, list) else value
    transforms = lambda values: tuple(TRANSFORMS[kind](*rest) for kind, *rest in values)

    def stage(found):
        found = {name: tuples(value) for name, value in found.items()} | {
            "transforms": transforms(found.get("transforms", ())),
            "loops": tuple(Loop(*loop) for loop in found["loops"]),
            "prefetches": tuple(Prefetch(*p) for p in found.get("prefetches", ())),
        }
        if "compute_with" in found:
            found["compute_with"] = ComputeWith(Level(*found["compute_with"][0]), *found["compute_with"][1:])
        return Stage(**found)

    def func(found):
        levels = {name: level(found[name]) for name in ("compute", "store", "hoist") if name in found}
        storage = tuple(StorageDim(*d) for d in found.get("storage", ()))
        stages = tuple(map(stage, found["stages"]))
        return FuncSchedule(**{name: tuples(value) for name, value in found.items()} | levels | {"storage": storage, "stages": stages})

    try:
        created = tuple(
            Created(**{name: tuples(value) for name, value in c.items()} | {"transforms": transforms(c.get("transforms", ()))})
            for c in tree.get("created", ())
        )
        return Schedule(tuple(tree["outputs"]), {label: func(f) for label, f in tree["funcs"].items()}, created)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a schedule: {type(error).__name__}: {error}") from error


# Reading a serialized pipeline


class _Table:
    """A table of a FlatBuffers file: its fields are read by number, as in halide_ir.fbs (a union takes two)."""

    def __init__(self, data, position):
        self.data, self.position = data, position
        vtable = position - struct.unpack_from("<i", data, position)[0]
        n_bytes = struct.unpack_from("<H", data, vtable)[0]
        self.offsets = struct.unpack_from(f"<{(n_bytes - 4) // 2}H", data, vtable + 4)

    def _at(self, i):
        return self.position + self.offsets[i] if i < len(self.offsets) and self.offsets[i] else None

    def _follow(self, at):
        return at + struct.unpack_from("<I", self.data, at)[0]

    def number(self, i, format="<b", default=0):
        at = self._at(i)
        return default if at is None else struct.unpack_from(format, self.data, at)[0]

    def table(self, i):
        at = self._at(i)
        return None if at is None else _Table(self.data, self._follow(at))

    def _text(self, at):
        at = self._follow(at)
        return self.data[at + 4 : at + 4 + struct.unpack_from("<I", self.data, at)[0]].decode()

    def text(self, i):
        at = self._at(i)
        return "" if at is None else self._text(at)

    def _elements(self, i, size=4):
        at = self._at(i)
        if at is None:
            return []
        at = self._follow(at)
        return range(at + 4, at + 4 + size * struct.unpack_from("<I", self.data, at)[0], size)

    def tables(self, i):
        return [_Table(self.data, self._follow(at)) for at in self._elements(i)]

    def texts(self, i):
        return [self._text(at) for at in self._elements(i)]

    def codes(self, i):
        return [self.data[at] for at in self._elements(i, 1)]

    def constant(self, i, what):
        """An integer of type Expr in the fields i and i + 1, None where it is undefined."""
        kind = self.number(i)
        if kind in UNDEFINED:
            return None
        if kind != INT_IMM:
            raise ValueError(f"{what}: only numbers can be kept, and this depends on a parameter or a size")
        return self.table(i + 1).number(0, "<q")


def read(pipeline, unscheduled=None, created=None):
    """The Schedule of an hl.Pipeline, whoever wrote it.

    unscheduled : what `read` returned before an autoscheduler ran on `pipeline`. Mullapudi2016 and Li2018 take the Funcs that they inline
    out of it, and labels need them all. created : the Created of rfactor, where it is known; else it is recognised if it came first.
    Raises ValueError, naming the directive, for what can't be kept as data.
    """
    root = hl.serialize_pipeline(pipeline)
    root = _Table(root, struct.unpack_from("<I", root, 0)[0])
    if root.text(9) != SERIALIZATION:
        raise RuntimeError(
            f"pipelines are serialized in version {root.text(9)}, and only {SERIALIZATION} is known: is this halide==21.0.0?"
        )
    tables = {table.text(0): table for table in root.tables(0)}
    created, labels = _read_created(pipeline, tables, root.texts(4), unscheduled, created or ())
    readers = {name: _FuncReader(labels, tables, name) for name in tables}
    outputs = tuple(labels[name] for name in root.texts(1))
    funcs = {labels[name]: reader.read(readers) for name, reader in readers.items()}
    for label in outputs:
        if funcs[label].compute == INLINE:
            funcs[label] = dataclasses.replace(funcs[label], compute=ROOT)
    for label, func in unscheduled.funcs.items() if unscheduled else ():
        funcs.setdefault(label, func)
    order = {label: i for i, label in enumerate([*(labels[n] for n in func_names(pipeline) if n in labels)])}
    funcs = dict(sorted(funcs.items(), key=lambda item: order.get(item[0], len(order))))
    names = {labels[name]: (name, {loop: var for var, loop in reader.loops.items()}) for name, reader in readers.items()}
    return Schedule(outputs, funcs, created, names)


def _read_created(pipeline, tables, order, unscheduled, known):
    """(Created in an order in which they can be made, {name: label} of all Funcs)."""
    wrappers = {}
    for name, table in tables.items():
        for wrapper in table.table(6).tables(6):
            target = order[wrapper.number(1, "<i")]
            wrappers.setdefault((name, target), []).append(wrapper.text(0))
    intermediates = {name: match[1] for name in tables if (match := re.fullmatch(r"(.+)_intm(?:\$\d+)?", name)) and match[1] in tables}
    new = {target for _, target in wrappers} | set(intermediates)
    if unscheduled:
        labels = {name: label for label, (name, _) in unscheduled.names.items()}
    else:
        labels = labels_of([name for name in tables if name not in new])
    created = []
    for name, base in intermediates.items():
        found = next((c for c in known if c.base == labels[base] and c.label not in labels.values()), None)
        created.append(found or _recognise_rfactor(pipeline, tables, labels, name, base))
        labels[name] = created[-1].label
    waiting = list(wrappers.items())
    while waiting:
        ready = [((base, name), callers) for (base, name), callers in waiting if {base, *callers} - {""} <= set(labels)]
        if not ready:
            raise ValueError("in_, clone_in: a wrapper that only another wrapper calls can't be kept")
        for (base, name), callers in ready:
            method = "clone_in" if tables[name].text(1) else "in_"  # a copy has its origin's name
            callers = tuple(sorted(labels[caller] for caller in callers if caller))
            created.append(Created(f"{labels[base]}.{method}({','.join(callers)})", method, labels[base], callers))
            labels[name] = created[-1].label
        waiting = [item for item in waiting if item not in ready]
    return tuple(created), labels


def _recognise_rfactor(pipeline, tables, labels, name, base):
    """The Created of an intermediate Func whose RVars were not split before rfactor: their names then still tell their positions."""
    func = next(func for func in _funcs(pipeline) if func.name() == base)
    updates = [k for k in range(func.num_update_definitions()) if f"{name}(" in str(func.update_values(k))]
    merged, inner = tables[base].tables(8)[updates[0]].table(7), tables[name].tables(8)[0].table(7)
    preserved, rest = [r.text(0) for r in merged.tables(0)], [r.text(0) for r in inner.tables(0)]
    if len(updates) > 1 or len(preserved) > 1 or not all("$" in rvar for rvar in preserved + rest):
        raise ValueError(f"{labels[base]}: rfactor of several loops, or of loops that were split before, can't be read from a pipeline")
    position = sorted(preserved + rest).index(preserved[0]) if len({r.rpartition("$")[0] for r in preserved + rest}) == 1 else 0
    new = tables[name].texts(5)[-1]
    label = f"{labels[base]}.update({updates[0]}).rfactor"
    return Created(label, "rfactor", labels[base], update=updates[0], preserved=((f"#{position}", _identifier(new, "u")),))


class _FuncReader:
    """Reads a Func's schedule, its loops by names of our own: as Halide has them where an author gave them."""

    def __init__(self, labels, tables, name):
        self.labels, self.table, self.label, self.name = labels, tables[name], labels[name], name
        self.stages = [d.table(7) for d in [self.table.table(7), *self.table.tables(8)] if d]
        for definition in [self.table.table(7), *self.table.tables(8)]:
            if definition and definition.tables(8):
                raise ValueError(f"{self.label}: specialize can't be kept as data")
        self.loops = {}  # {name in Halide: ours}
        for i, arg in enumerate(self.table.texts(5)):
            self._name(arg, f"v{i}")
        for k, stage in enumerate(self.stages):
            for i, rvar in enumerate(stage.tables(0)):
                self._name(rvar.text(0), f"r{k - 1 if k > 1 else ''}_{'xyzw'[i] if i < 4 else i}")
        for stage in self.stages:
            for split in stage.tables(1):
                if split.number(7) == 2:
                    self.loop(split.text(0), f"{self.loop(split.text(2))}_{self.loop(split.text(1))}")
                else:
                    old = self.loop(split.text(0))
                    self.loop(split.text(1), f"{old}_o")
                    self.loop(split.text(2) or split.text(1), f"{old}_i")

    def _name(self, name, otherwise):
        if name not in self.loops:
            wanted, taken = _identifier(name, otherwise), set(self.loops.values())
            self.loops[name] = next(n for n in itertools.chain([wanted], (f"{wanted}{i}" for i in itertools.count(2))) if n not in taken)
        return self.loops[name]

    def loop(self, path, otherwise="loop"):
        """Our name for a loop that Halide calls by its path, `x.xi`."""
        name = path.rpartition(".")[2]
        return name if name == OUTERMOST else self._name(name, otherwise)

    def read(self, readers):
        schedule, args = self.table.table(6), tuple(self.loops[a] for a in self.table.texts(5))
        compute, store, hoist = (self._level(schedule.table(i), readers) for i in (1, 0, 2))
        storage = tuple(self._storage(d) for d in schedule.tables(3))
        ring_buffer = schedule.constant(10, f"{self.label}: ring_buffer")
        if schedule.number(12) not in UNDEFINED:
            raise ValueError(f"{self.label}: memoize with an eviction key can't be kept as data")
        return FuncSchedule(
            args,
            tuple(self._stage(stage, args, readers) for stage in self.stages),
            compute,
            store if compute != INLINE and store not in (INLINE, compute) else None,
            hoist if compute != INLINE and hoist not in (INLINE, store if store != INLINE else compute) else None,
            MEMORY[schedule.number(7)],
            storage if storage != tuple(map(StorageDim, args)) else (),
            tuple(itertools.chain(*(self._bounds(b) for b in schedule.tables(4)))),
            bool(schedule.number(8)),
            bool(schedule.number(9)),
            ring_buffer or 0,
        )

    def _level(self, table, readers):
        func, var = table.text(0), table.text(2)
        if not func:
            return {"": INLINE, "__root": ROOT}[var]
        if func not in readers:
            raise ValueError(f"{self.label}: compute_at or store_at in {func}, which is no part of the pipeline")
        return Level(self.labels[func], readers[func].loop(var), table.number(1, "<i", 0))

    def _storage(self, table):
        what = f"{self.label}: "
        alignment = table.constant(1, f"{what}align_storage") or 0
        bound, fold = table.constant(3, f"{what}bound_storage") or 0, table.constant(5, f"{what}fold_storage") or 0
        return StorageDim(self.loop(table.text(0)), alignment, bound, fold, bool(table.number(7)) if fold else True)

    def _bounds(self, table):
        minimum, extent, modulus, remainder = (table.constant(i, f"{self.label}: bound") for i in (1, 3, 5, 7))
        arg = self.loop(table.text(0))
        if extent is not None:
            yield ("bound_extent", arg, extent) if minimum is None else ("bound", arg, minimum, extent)
        if modulus is not None:
            yield ("align_extent", arg, modulus) if remainder is None else ("align_bounds", arg, modulus, remainder)

    def _stage(self, table, args, readers):
        dims = table.tables(2)[:-1]  # without __outermost
        rvars = tuple(self.loops[r.text(0)] for r in table.tables(0))
        transforms = tuple(self._transform(split) for split in table.tables(1))
        sources = {dim.text(0).partition(".")[0] for dim in dims} | {
            t.text(i).partition(".")[0] for t in table.tables(1) for i in (0, 1, 2)
        }
        variables = tuple(self.loops[a] for a in self.table.texts(5) if a in sources)
        fuse = table.table(4)
        level = self._level(fuse.table(0), readers)
        align = tuple((self.loop(n), ALIGN[s]) for n, s in zip(fuse.texts(1), fuse.codes(2)))
        return Stage(
            rvars,
            variables,
            tuple(self._dim(dim) for dim in dims),
            transforms,
            "override" if table.number(9) else "atomic" if table.number(8) else "",
            bool(table.number(7)),
            tuple(self._prefetch(p) for p in table.tables(3)),
            ComputeWith(level, align) if isinstance(level, Level) else None,
        )

    def _transform(self, table):
        kind, old, outer, inner = table.number(7), *(self.loop(table.text(i)) for i in (0, 1, 2))
        if kind == 0:
            factor = table.constant(3, f"{self.label}: split")
            return Split(old, outer, inner, factor, TAILS[table.number(6)])
        return Rename(old, outer) if kind == 1 else Fuse(inner, outer, old)

    def _dim(self, table):
        mark = FOR_TYPES[table.number(1)]
        if mark.startswith("gpu") or table.number(2) > 1:
            raise ValueError(f"{self.label}: {mark if mark.startswith('gpu') else 'a schedule for another device'} can't be kept as data")
        return Loop(self.loop(table.text(0)), mark, PARTITIONS[table.number(4)])

    def _prefetch(self, table):
        if table.text(0) not in self.labels:
            raise ValueError(f"{self.label}: prefetch of an input can't be kept as data")
        offset = table.constant(3, f"{self.label}: prefetch")
        return Prefetch(
            self.labels[table.text(0)], self.loop(table.text(1)), self.loop(table.text(2)), offset, PREFETCH[table.number(5, "<B")]
        )


def _identifier(name, otherwise):
    """`name` where an author gave it, without what is not of an identifier; else `otherwise`."""
    name = re.sub(r"\$\d+(?=\$|$)", "", name)
    if re.fullmatch(r"r\d+\$.*", name) or (UNNAMED_VAR.fullmatch(name) and not re.fullmatch(r"[A-Za-z_]\w*\$\w+", name)):
        return otherwise
    name = re.sub(r"\W", "_", name)
    return f"{name}_" if name in RESERVED else name


# Directives


class LoopRef(NamedTuple):
    """A loop of the stage that a directive is for; `#i` is RVar i of the update."""

    name: str


class FuncRef(NamedTuple):
    label: str


class Enum(NamedTuple):
    type: str
    name: str


class NewVar(NamedTuple):
    name: str


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


def _directives(schedule):
    for created in schedule.created:
        yield from _creating(created)
    for label, func in schedule.funcs.items():
        stages = [list(_stage_directives(label, k, stage)) for k, stage in enumerate(func.stages)]
        own = list(_func_directives(label, func))
        yield from stages[0] if stages else ()
        for k, found in enumerate(stages[1:], 1):
            # Else Halide warns of an update that looks forgotten.
            yield from found or ([Directive(label, k, "unscheduled")] if any(stages) else [])
        yield from own


def _creating(created):
    if created.method == "rfactor":
        stage = created.update + 1
        for transform in created.transforms:
            yield _transform_directive(created.base, stage, transform)
        preserved = [(LoopRef(old), NewVar(new)) for old, new in created.preserved]
        yield Directive(created.base, stage, "rfactor", (preserved,), created.label)
    else:
        callers = ([FuncRef(caller) for caller in created.callers],) if created.callers else ()
        yield Directive(created.base, 0, created.method, callers, created.label)


def _transform_directive(label, k, transform):
    loops = [LoopRef(value) if isinstance(value, str) else value for value in transform]
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


# From an autoscheduler's text

GET_FUNC = re.compile(r"Func (\S+) = (?:pipeline\.)?get_func\((\d+)\);")
NEW_LOOP = re.compile(r"(R?Var) (\S+?)\(\"([^\"]*)\"\);")
OLD_LOOP = re.compile(
    r"R?Var (\S+?)(?:\(| = )([\w$]+)(?:\.update\((\d+)\))?(?:\.get_schedule\(\))?\.(dims|args|rvars)\(\)\[(\d+)\](?:\.var\))?;"
)
STATEMENT = re.compile(r"(?:([\w$.]+)\s*=\s*)?([\w$]+)(?:\s*\.update\((\d*)\))?((?:\s*\.\w+\((?:[^()]|\([^()]*\))*\))*)\s*;")
METHOD = re.compile(r"\.(\w+)\(((?:[^()]|\([^()]*\))*)\)")


def from_source(source, pipeline, unscheduled=None):
    """The Schedule in the C++ text of Adams2019, Mullapudi2016 or Li2018 (`schedule_source`, or a `.schedule.h`).

    pipeline : a fresh one, which is scheduled by this. unscheduled : what `read` returned of the pipeline that the autoscheduler got; text
    of Li2018 calls Funcs by the names they had there. Raises ValueError where the text is not understood or is of another pipeline.
    """
    reader = _SourceReader(pipeline, unscheduled)
    body = re.search(r"apply_schedule_\w+\([^)]*\) \{(.*)\}", source, re.S)
    text = re.sub(r"//[^\n]*", "", body[1] if body else source)
    for statement in re.findall(
        r"[^;{}]*\{[^;{}]*\{[^;]*;|[^;{}]*\{[^;{}]*\}[^;]*;|[^;{}]+;", re.sub(r"\busing namespace[^;]*;", "", text)
    ):
        reader.run(statement.strip())
    return read(pipeline, reader.unscheduled, reader.created)


class _SourceReader:
    """Does what an autoscheduler's text says to a fresh pipeline, a statement at a time."""

    def __init__(self, pipeline, unscheduled):
        self.unscheduled = read(pipeline)
        theirs = unscheduled or self.unscheduled
        handles = _handles(theirs, pipeline)
        self.order = list(theirs.funcs)  # by get_func
        self.funcs = {name: handles[label] for label, (name, _) in theirs.names.items()}
        self.labels = {name: label for label, (name, _) in theirs.names.items()}
        self.handles, self.created, self.loops, self.transforms = handles, [], {}, {}
        self.rvars = {}  # {(label, stage): objects}, as they are before rfactor
        self.sources = {}  # {(label, name in the text): hl.Var or hl.RVar}
        for label, (_, names) in theirs.names.items():
            func = theirs.funcs[label]
            for k, stage in enumerate(func.stages):
                self.rvars[label, k] = [_loop_object(theirs, handles, label, k, rvar) for rvar in stage.rvars]
                self.sources |= {(label, names[rvar]): found for rvar, found in zip(stage.rvars, self.rvars[label, k])}
            self.sources |= {(label, names[arg]): handles[label].args()[i] for i, arg in enumerate(func.args)}

    def run(self, statement):
        if match := GET_FUNC.fullmatch(statement):
            self._get_func(match[1], int(match[2]))
        elif match := NEW_LOOP.fullmatch(statement):
            self.loops[match[2]] = (hl.RVar if match[1] == "RVar" else hl.Var)(match[3])
        elif match := OLD_LOOP.fullmatch(statement):
            func, stage = self.labels[match[2]], int(match[3]) + 1 if match[3] else 0
            data = self.unscheduled.funcs[func]
            loops = [*self.rvars[func, stage], *(self.handles[func].args()[data.args.index(v)] for v in data.stages[stage].vars)]
            loops = {"args": self.handles[func].args(), "rvars": self.rvars[func, stage], "dims": loops}[match[4]]
            self.loops[match[1]] = loops[int(match[5])]
        elif (match := STATEMENT.fullmatch(statement)) and match[2] in self.funcs:
            self._schedule(match[1], match[2], 0 if match[3] is None else int(match[3] or 0) + 1, METHOD.findall(match[4]))
        else:
            raise ValueError(f"not a statement of an autoscheduler's schedule: {' '.join(statement.split())[:100]}")

    def _get_func(self, name, index):
        label = self.order[index] if index < len(self.order) else ""
        base = re.sub(r"\W", "_", label.partition("#")[0])
        if not base or not name.startswith(base):
            raise ValueError(f"the schedule is of another pipeline: its Func {index} is {name}, here it is {label or 'none'}")
        self.funcs[name], self.labels[name] = self.handles[label], label

    def _schedule(self, result, name, stage, methods):
        func, label = self.funcs[name], self.labels[name]
        for method, text in methods:
            target = func.update(stage - 1) if stage else func
            arguments = [a.strip() for a in re.sub(r"[{}]", "", text).split(",") if a.strip()]
            self._remember(label, stage, method, arguments)
            owner = self.labels.get(arguments[0], label) if arguments and method.endswith("_at") else label
            values = [self._value(a, owner, stage, method, arguments) for a in arguments]
            if method == "rfactor":
                func, label, stage = self._rfactor(target, label, stage, arguments, values), f"{label}.update({stage - 1}).rfactor", 0
                self.funcs[result], self.labels[result] = func, label
            else:
                getattr(target, method)(*values)

    def _value(self, text, label, stage, method, arguments):
        if re.fullmatch(r"-?\d+", text):
            return int(text)
        if text in ("true", "false"):
            return text == "true"
        kind, _, name = text.rpartition("::")
        if kind or text in TAILS:
            return getattr(getattr(hl, kind.rpartition("::")[2] or "TailStrategy"), name)
        if method.endswith("_at") and text in self.funcs:
            return self.funcs[text]
        if text in self.loops:
            return self.loops[text]
        found = self.sources.get((label, text), self.loops.get((label, stage, text)))
        if found is None:  # a new loop of Li2018, which declares none
            old = next((v for a in arguments if (v := self.sources.get((label, a), self.loops.get((label, stage, a)))) is not None), None)
            rvar = isinstance(old, hl.RVar) and not (method == "rfactor" and arguments.index(text) % 2)
            found = self.loops[label, stage, text] = (hl.RVar if rvar else hl.Var)(text)
        return found

    def _remember(self, label, stage, method, arguments):
        """Transforms, in case that rfactor follows."""
        done = self.transforms.setdefault((label, stage), [])
        if method == "split":
            tail = arguments[4].rpartition("::")[2] if len(arguments) > 4 else "Auto"
            done.append(Split(*(self._source(label, stage, a) for a in arguments[:3]), int(arguments[3]), tail))
        elif method == "fuse":
            done.append(Fuse(*(self._source(label, stage, a) for a in arguments)))

    def _source(self, label, stage, name):
        """`#i` for RVar i of the update, else `name`."""
        found = self.sources.get((label, name), self.loops.get(name))
        names = [rvar.name() for rvar in self.rvars.get((label, stage), ())]
        return f"#{names.index(found.name())}" if isinstance(found, hl.RVar) and found.name() in names else name

    def _rfactor(self, target, label, stage, arguments, values):
        pairs = list(zip(values[::2], values[1::2]))
        func = target.rfactor(pairs)
        preserved = tuple((self._source(label, stage, old), new) for old, new in zip(arguments[::2], arguments[1::2]))
        new = f"{label}.update({stage - 1}).rfactor"
        self.created.append(Created(new, "rfactor", label, (), stage - 1, tuple(self.transforms[label, stage]), preserved))
        self.sources |= {(new, name): found for (owner, name), found in self.sources.items() if owner == label}
        for old, (rvar, var) in zip(arguments[::2], pairs):
            self.loops[label, stage, old] = rvar
        self.loops |= {(new, k, name): found for (owner, s, name), found in list(self.loops_of(label, stage)) for k in (0, 1)}
        self.loops |= {(new, k, name): var for name, (_, var) in zip(arguments[1::2], pairs) for k in (0, 1)}
        return func

    def loops_of(self, label, stage):
        return ((key, found) for key, found in self.loops.items() if isinstance(key, tuple) and key[:2] == (label, stage))


# From Python


def _apply(schedule, pipeline):
    handles = _handles(schedule, pipeline)
    for directive in schedule.directives():
        func = handles[directive.func]
        target = func.update(directive.stage - 1) if directive.stage else func
        loops = functools.partial(_loop_object, schedule, handles, directive.func, directive.stage)
        arguments = [_argument_object(schedule, handles, loops, value) for value in directive.arguments]
        if arguments and isinstance(arguments[0], tuple):
            arguments[:1] = arguments[0]
        result = getattr(target, directive.method)(*arguments)
        if directive.result:
            handles[directive.result] = result


def _handles(schedule, pipeline):
    """{label: hl.Func} of a fresh pipeline. Raises ValueError where it is not the one that `schedule` is of."""
    funcs = {func.name(): func for func in _funcs(pipeline)}
    handles = {label: funcs[name] for name, label in labels_of(funcs).items()}
    shape = lambda func: (len(func.args()), func.num_update_definitions() + 1)
    wanted = {
        label: (len(f.args), len(f.stages)) for label, f in schedule.funcs.items() if label not in {c.label for c in schedule.created}
    }
    found = {label: shape(func) for label, func in handles.items()}
    if wanted != found:
        odd = sorted(label for label in {*wanted, *found} if wanted.get(label) != found.get(label))
        raise ValueError(
            f"the schedule is of another pipeline: it has {len(wanted)} Funcs, this one {len(found)}, and {', '.join(odd[:5])} "
            f"{'differs' if len(odd) == 1 else 'differ'}; schedule this one anew"
        )
    return handles


def _loop_object(schedule, handles, label, stage, name):
    """The hl.Var or hl.RVar of a loop."""
    if name == OUTERMOST:
        return hl.Var.outermost()
    func, data = handles[label], schedule.funcs[label]
    if name.startswith("#"):
        return func.rvars(stage - 1)[int(name[1:])]
    if name in data.args:
        return func.args()[data.args.index(name)]
    for k in range(len(data.stages)) if stage < 0 else [stage]:
        if name in data.stages[k].rvars:
            return func.rvars(k - 1)[data.stages[k].rvars.index(name)]
    return (hl.RVar if _is_rvar(schedule, label, stage, name) else hl.Var)(name)


def _is_rvar(schedule, label, stage, name):
    """Of a loop that transforms made, in a stage or (-1) in any that has it."""
    stages = schedule.funcs[label].stages
    kinds = [loop_kinds(s) for s in (stages if stage < 0 else stages[stage : stage + 1])]
    before = {value for c in schedule.created if (c.base, c.update + 1) == (label, stage) for t in c.transforms for value in t}
    if not any(name in k for k in kinds) and name not in before:
        raise ValueError(f"{label} has no loop {name!r}")
    return name in before or any(k.get(name, False) for k in kinds)


def _argument_object(schedule, handles, loops, value):
    if isinstance(value, LoopRef):
        return loops(value.name)
    if isinstance(value, FuncRef):
        return handles[value.label]
    if isinstance(value, Level):
        return hl.LoopLevel(handles[value.func], _loop_object(schedule, handles, *_level_loop(value)), value.stage)
    if isinstance(value, Enum):
        return getattr(getattr(hl, value.type), value.name)
    if isinstance(value, NewVar):
        return hl.Var(value.name)
    if isinstance(value, (list, tuple)):
        return type(value)(_argument_object(schedule, handles, loops, v) for v in value)
    return value


def _level_loop(level):
    return level.func, level.stage, level.loop


# As text


class Language(NamedTuple):
    """How the two languages write what a schedule needs. Statements end with `end`; `pair` and `list` are their brackets."""

    var: str
    declare: str
    declare_old: str
    enum: str
    true: str
    end: str
    list: str
    pair: str
    renamed: dict


CPP = Language(
    '{kind}("{name}")',
    '{kind} {name}("{name}");',
    "{kind} {name} = {value};",
    "{}::{}",
    "true",
    ";",
    "{}",
    "{}",
    {"in_": "in", "async_": "async"},
)
PYTHON = Language('hl.{kind}("{name}")', '{name} = hl.{kind}("{name}")', "{name} = {value}", "hl.{}.{}", "True", "", "[]", "()", {})


class _Writer:
    """Writes a schedule's directives as statements of a language, a block for each stage."""

    def __init__(self, schedule, language):
        self.schedule, self.language = schedule, language
        loops = {name for func in schedule.funcs.values() for stage in func.stages for name in loop_kinds(stage)} | RESERVED
        self.identifiers = {}
        for label in schedule.funcs:
            wanted = re.sub(r"\W+", "_", label).strip("_")
            taken = loops | set(self.identifiers.values())
            candidates = itertools.chain([wanted, f"{wanted}_func"], (f"{wanted}_func{i}" for i in itertools.count(2)))
            self.identifiers[label] = next(c for c in candidates if c not in taken)

    def blocks(self):
        """(Func and stage, its lines) in order; what directives of one stage share is declared once."""
        for (label, stage), directives in itertools.groupby(self.schedule.directives(), key=lambda d: (d.func, d.stage)):
            directives = list(directives)
            used = dict.fromkeys(ref.name for d in directives for ref in _refs(d.arguments) if not ref.name.startswith("#"))
            lines = [self._declaration(label, stage, name) for name in used if name != OUTERMOST]
            yield f"{label}.update({stage - 1})" if stage else label, lines, [self._statement(d) for d in directives]

    def _declaration(self, label, stage, name):
        found, rvar = self._source(label, stage, name)
        kind = "RVar" if rvar else "Var"
        if found:
            return self.language.declare_old.format(kind=kind, name=name, value=found)
        return self.language.declare.format(kind=kind, name=name)

    def _source(self, label, stage, name):
        """(Expression for a loop of the algorithm, or "" for one that transforms make; whether it is an RVar)."""
        func, ident = self.schedule.funcs[label], self.identifiers[label]
        if name in func.args:
            return f"{ident}.args()[{func.args.index(name)}]", False
        for k in range(len(func.stages)) if stage < 0 else [stage]:
            if name in func.stages[k].rvars:
                return f"{ident}.rvars({k - 1})[{func.stages[k].rvars.index(name)}]", True
        return "", _is_rvar(self.schedule, label, stage, name)

    def _statement(self, directive):
        func = self.identifiers[directive.func]
        target = f"{func}.update({directive.stage - 1})" if directive.stage else func
        values = directive.arguments
        arguments = ", ".join(self._argument(value, directive) for value in values)
        method = self.language.renamed.get(directive.method, directive.method)
        made = ""
        if directive.result:
            name = self.identifiers[directive.result]
            made = f"Func {name} = " if self.language is CPP else f"{name} = "
        return f"{made}{target}.{method}({arguments}){self.language.end}"

    def _argument(self, value, directive):
        language = self.language
        if isinstance(value, bool):
            return language.true if value else language.true.replace("true", "false").replace("True", "False")
        if isinstance(value, LoopRef):
            if value.name.startswith("#"):
                return f"{self.identifiers[directive.func]}.rvars({directive.stage - 1})[{value.name[1:]}]"
            return self._outermost() if value.name == OUTERMOST else value.name
        if isinstance(value, FuncRef):
            return self.identifiers[value.label]
        if isinstance(value, Level):
            return self._level(value, directive.method)
        if isinstance(value, Enum):
            return language.enum.format(value.type, value.name)
        if isinstance(value, NewVar):
            return language.var.format(kind="Var", name=value.name)
        if isinstance(value, (list, tuple)):
            opened, closed = language.list if isinstance(value, list) else language.pair
            return opened + ", ".join(self._argument(v, directive) for v in value) + closed
        return str(value)

    def _outermost(self):
        return "Var::outermost()" if self.language is CPP else "hl.Var.outermost()"

    def _level(self, level, method):
        func, name = self.identifiers[level.func], level.loop
        if name == OUTERMOST:
            loop = self._outermost()
        else:
            found, rvar = self._source(level.func, level.stage, name)
            loop = found or self.language.var.format(kind="RVar" if rvar else "Var", name=name)
        if level.stage < 0 and method != "compute_with":
            return f"{func}, {loop}"
        return f"{'' if self.language is CPP else 'hl.'}LoopLevel({func}, {loop}, {level.stage})"


def _refs(value):
    """The LoopRefs in arguments."""
    if isinstance(value, LoopRef):
        yield value
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for v in value:
            yield from _refs(v)


def _shapes(schedule):
    """{label: (arguments, definitions)} of the Funcs that the pipeline must have."""
    created = {c.label for c in schedule.created}
    return {label: (len(f.args), len(f.stages)) for label, f in schedule.funcs.items() if label not in created}


CPP_HEADER = """\
// The schedule of a pipeline, written by cost_model_LSTM. Call it at the end of schedule() of the Generator, unless using_autoscheduler():
//
//     apply_schedule_NAME(get_pipeline(), get_target());
//
// It stops where the pipeline has not the Funcs that the schedule is of.
#pragma once
#include "Halide.h"
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifndef HALIDE_FUNCS_BY_LABEL
#define HALIDE_FUNCS_BY_LABEL
// The Funcs of a pipeline by labels that stay the same: Halide numbers equal names in the order of creation, and goes on counting.
inline std::map<std::string, Halide::Func> funcs_by_label(const Halide::Pipeline &pipeline) {
    std::map<std::string, std::vector<std::pair<std::vector<unsigned long>, Halide::Func>>> groups;
    std::map<std::string, Halide::Internal::Function> found;
    for (const Halide::Func &output : pipeline.outputs()) {
        for (const auto &entry : Halide::Internal::find_transitive_calls(output.function())) {
            found.insert(entry);
        }
    }
    static const std::regex suffix("\\\\$[0-9]+"), unnamed("([a-z]|lambda_)[0-9]+"), number("[0-9]+");
    for (const auto &entry : found) {
        std::string base = std::regex_replace(entry.first, suffix, "");
        std::smatch match;
        if (std::regex_match(base, match, unnamed)) {
            base = std::string(match[1]).substr(0, match[1] == "lambda_" ? 6 : 1);
        }
        std::vector<unsigned long> numbers;
        for (std::sregex_iterator i(entry.first.begin(), entry.first.end(), number), end; i != end; ++i) {
            numbers.push_back(std::stoul(i->str()));
        }
        groups[base].emplace_back(numbers, Halide::Func(entry.second));
    }
    std::map<std::string, Halide::Func> labelled;
    for (auto &group : groups) {
        std::stable_sort(group.second.begin(), group.second.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
        for (size_t i = 0; i < group.second.size(); i++) {
            labelled.emplace(group.second.size() == 1 ? group.first : group.first + "#" + std::to_string(i), group.second[i].second);
        }
    }
    return labelled;
}
#endif

inline void apply_schedule_NAME(::Halide::Pipeline pipeline, ::Halide::Target target) {
    using namespace Halide;
    (void)target;
    std::map<std::string, Func> funcs = funcs_by_label(pipeline);
    // Label, arguments and definitions of each Func.
    const std::vector<std::tuple<std::string, int, int>> expected = {
EXPECTED
    };
    bool same = funcs.size() == expected.size();
    for (const auto &[label, arguments, definitions] : expected) {
        auto func = funcs.find(label);
        if (func == funcs.end() || func->second.dimensions() != arguments || func->second.num_update_definitions() + 1 != definitions) {
            std::cerr << "apply_schedule_NAME: no Func " << label << " as the schedule knows it in this pipeline\\n";
            same = false;
        }
    }
    if (!same) {
        std::cerr << "apply_schedule_NAME: the schedule is of another pipeline, with " << expected.size() << " Funcs, this one has " << funcs.size()
                  << "; tune this one anew\\n";
        std::exit(1);
    }

BODY
}
"""


def _to_cpp(schedule, name):
    writer = _Writer(schedule, CPP)
    shapes = _shapes(schedule)
    body = [f'    Func {ident} = funcs.at("{label}");' for label, ident in writer.identifiers.items() if label in shapes]
    for what, declarations, statements in writer.blocks():
        # A Func that is created must outlive the block.
        inside = [*declarations, *statements]
        scoped = declarations and not any(re.match(r"Func \w+ = ", s) for s in statements)
        indent = " " * (8 if scoped else 4)
        body += [f"    {{  // {what}" if scoped else f"    // {what}", *(indent + line for line in inside), *(["    }"] if scoped else [])]
    body += [f"    (void){ident};" for label, ident in writer.identifiers.items() if label in shapes]
    expected = ",\n".join(f'        {{"{label}", {arguments}, {stages}}}' for label, (arguments, stages) in shapes.items())
    return CPP_HEADER.replace("NAME", name).replace("EXPECTED", expected).replace("BODY", "\n".join(body))


PYTHON_MODULE = """\
\"\"\"The schedule of a pipeline, written by cost_model_LSTM: call apply(pipeline) before compiling it.\"\"\"

import re

import halide as hl

# Arguments and definitions of each Func that the schedule is of.
EXPECTED = {
EXPECTED
}


def funcs_by_label(pipeline):
    \"\"\"The Funcs of a pipeline by labels that stay the same: Halide numbers equal names in the order of creation, and goes on counting.\"\"\"
    funcs, groups = [], {}
    while True:
        try:
            funcs.append(pipeline.get_func(len(funcs)))
        except (hl.HalideError, IndexError):
            break
    for func in funcs:
        base = re.sub(r"\\$\\d+", "", func.name())
        unnamed = re.fullmatch(r"([a-z]|lambda_)\\d+", base)
        numbers = [int(number) for number in re.findall(r"\\d+", func.name())]
        groups.setdefault(unnamed[1].strip("_") if unnamed else base, []).append((numbers, func.name(), func))
    return {
        base if len(group) == 1 else f"{base}#{i}": func for base, group in groups.items() for i, (*_, func) in enumerate(sorted(group, key=lambda g: g[:2]))
    }


def apply(pipeline):
    \"\"\"Schedule `pipeline` in place. Raises ValueError where it has not the Funcs that the schedule is of.\"\"\"
    funcs = funcs_by_label(pipeline)
    if EXPECTED != {label: (len(func.args()), func.num_update_definitions() + 1) for label, func in funcs.items()}:
        raise ValueError(f"the schedule is of another pipeline: it has {len(EXPECTED)} Funcs, this one {len(funcs)}; tune this one anew")
BODY
"""


def _to_python(schedule):
    writer = _Writer(schedule, PYTHON)
    shapes = _shapes(schedule)
    body = [f'    {ident} = funcs["{label}"]' for label, ident in writer.identifiers.items() if label in shapes]
    for what, declarations, statements in writer.blocks():
        body += ["", f"    # {what}", *(f"    {line}" for line in (*declarations, *statements))]
    expected = "\n".join(f'    "{label}": {shape},' for label, shape in shapes.items())
    return PYTHON_MODULE.replace("EXPECTED\n}", f"{expected}\n}}", 1).replace("BODY", "\n".join(body))
