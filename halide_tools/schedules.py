"""A schedule as data: what an author or an autoscheduler decided for each Func and stage, apart from the pipeline it was decided for.

    unscheduled = schedules.read(pipeline)              # before an autoscheduler runs
    proposal.apply(pipeline)
    schedule = schedules.read(pipeline, unscheduled)    # of whoever wrote it
    schedule.apply(spec.build())                        # the same schedule on a fresh pipeline

`read` takes the serialized pipeline apart, since Halide's Python bindings have no other way to see a schedule. Of each stage the splits,
fuses and renames are kept in order, then the order of the loops that remain and one mark a loop; of each Func where it is computed and
stored, and how. Halide gives Funcs other names at each build (`f$3`), so a Func is known by a label that every build shares, and a Var of
the algorithm by its position. Schedules are equal where all of this is equal, whatever their loops are called.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field

import halide as hl

from halide_tools import schedule_text
from halide_tools.buffers import all_funcs
from halide_tools.directives import (
    INLINE,
    OUTERMOST,
    ROOT,
    TAILS,
    ComputeWith,
    Created,
    Enum,
    FuncRef,
    FuncSchedule,
    Fuse,
    Level,
    Loop,
    LoopRef,
    NewLoop,
    Prefetch,
    Rename,
    Split,
    Stage,
    StorageDim,
    canonical,
    directives_of,
    is_rvar,
    labels_of,
)
from halide_tools.flatbuffer import UNDEFINED, Table

SERIALIZATION = "18.0.1"  # of pipelines, by Halide 21.0.0: the numbers of fields below are its own

# Enumerations of halide_ir.fbs, in order.
FOR_TYPES = ("serial", "parallel", "vectorize", "unroll", "extern", "gpu_blocks", "gpu_threads", "gpu_lanes")
MEMORY = ("Auto", "Heap", "Stack", "Register", "GPUShared", "GPUTexture", "LockedCache", "VTCM", "AMXTile")
PARTITIONS = ("Auto", "Never", "Always")
ALIGN = ("AlignStart", "AlignEnd", "NoAlign", "Auto")
PREFETCH = ("Clamp", "GuardWithIf", "NonFaulting")

TRANSFORMS = {"split": Split, "fuse": Fuse, "rename": Rename}
UNNAMED_VAR = re.compile(r"[a-z]\d+|.*\$.*|_+\d+")


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
        return canonical(self)

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
        return list(directives_of(self))

    def apply(self, pipeline):
        """Schedule a fresh `pipeline` in place; returns {label: hl.Func}, with the Funcs that the schedule adds.

        Raises ValueError where it is another pipeline, hl.HalideError where Halide refuses.
        """
        return _apply(self, pipeline)

    def to_cpp_header(self, name):
        """A `.schedule.h` with `apply_schedule_NAME(pipeline, target)`, as Halide's autoschedulers write."""
        return schedule_text.to_cpp_header(self, name)

    def to_python_module(self):
        """Source of a Python module with `apply(pipeline)`, which needs the halide package alone."""
        return schedule_text.to_python_module(self)

    def __str__(self):
        return "\n".join(map(str, self.directives()))


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


# Reading


def read(pipeline, unscheduled=None, created=None):
    """The Schedule of an hl.Pipeline, whoever wrote it.

    unscheduled : what `read` returned before an autoscheduler ran on `pipeline`. Mullapudi2016 and Li2018 take the Funcs that they inline
    out of it, and labels need them all. created : the Created of rfactor, where it is known; else it is recognised if it came first.
    Raises ValueError, naming the directive, for what can't be kept as data.
    """
    root = Table.root(hl.serialize_pipeline(pipeline))
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
    order = {label: i for i, label in enumerate(labels[f.name()] for f in all_funcs(pipeline))}
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
    intermediates = {name: base for name in tables for base in tables if _is_intermediate(tables, name, base)}
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
    is_copy = lambda name: bool(tables[name].text(1))  # a copy has its origin's name
    waiting = sorted(wrappers.items(), key=lambda item: not is_copy(item[0][1]))  # Halide does not copy a Func that has wrappers
    while waiting:
        ready = [((base, name), callers) for (base, name), callers in waiting if {base, *callers} - {""} <= set(labels)]
        if not ready:
            raise ValueError("in_, clone_in: a wrapper that only another wrapper calls can't be kept")
        for (base, name), callers in ready:
            method = "clone_in" if is_copy(name) else "in_"
            callers = tuple(sorted(labels[caller] for caller in callers if caller))
            created.append(Created(f"{labels[base]}.{method}({','.join(callers)})", method, labels[base], callers))
            labels[name] = created[-1].label
        waiting = [item for item in waiting if item not in ready]
    return tuple(created), labels


def _is_intermediate(tables, name, base):
    """Whether rfactor of the Func `base` made the Func `name`: `base$3` becomes `base$3_intm`, or `base_3_intm$4`."""
    if not re.fullmatch(re.escape(base.replace("$", "_")) + r"_intm(_\d+)?", name.replace("$", "_")):
        return False
    args = tables[base].texts(5)
    return len(tables[name].texts(5)) > len(args) and tables[name].texts(5)[: len(args)] == args


def _recognise_rfactor(pipeline, tables, labels, name, base):
    """The Created of an intermediate Func whose RVars were not split before rfactor: their names then still tell their positions."""
    func = next(func for func in all_funcs(pipeline) if func.name() == base)
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
    return f"{name}_" if name in schedule_text.RESERVED else name


# From Python


def _apply(schedule, pipeline):
    handles = find_funcs(schedule, pipeline)
    for directive in schedule.directives():
        func = handles[directive.func]
        target = func.update(directive.stage - 1) if directive.stage else func
        loops = functools.partial(loop_object, schedule, handles, directive.func, directive.stage)
        arguments = [_argument_object(schedule, handles, loops, value) for value in directive.arguments]
        if arguments and isinstance(arguments[0], tuple):
            arguments[:1] = arguments[0]
        result = getattr(target, directive.method)(*arguments)
        if directive.result:
            handles[directive.result] = result
    return handles


def find_funcs(schedule, pipeline):
    """{label: hl.Func} of a fresh pipeline. Raises ValueError where it is not the one that `schedule` is of."""
    funcs = {func.name(): func for func in all_funcs(pipeline)}
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


def loop_object(schedule, handles, label, stage, name):
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
    return (hl.RVar if is_rvar(schedule, label, stage, name) else hl.Var)(name)


def _argument_object(schedule, handles, loops, value):
    if isinstance(value, LoopRef):
        return loops(value.name)
    if isinstance(value, FuncRef):
        return handles[value.label]
    if isinstance(value, Level):
        return hl.LoopLevel(handles[value.func], loop_object(schedule, handles, *_level_loop(value)), value.stage)
    if isinstance(value, Enum):
        return getattr(getattr(hl, value.type), value.name)
    if isinstance(value, NewLoop):
        return (hl.RVar if value.rvar else hl.Var)(value.name)
    if isinstance(value, (list, tuple)):
        return type(value)(_argument_object(schedule, handles, loops, v) for v in value)
    return value


def _level_loop(level):
    return level.func, level.stage, level.loop
