"""Changes of a schedule, directive by directive: what a search tries beyond what autoschedulers propose.

    schedule, kind = mutations.mutate(schedule, facts(pipeline), rng)
    schedule = Mutated.draw(program_seed, k).find(spec)     # several changes of what an autoscheduler proposes

Each kind of change (KINDS) is a pure function of a schedule. None checks what Halide would: whether a schedule is legal is found by
lowering it. A tail strategy "Auto" is Halide's choice; read the schedule back after applying it where it is to be compared.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halide_tools import schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal, proposal_from_record
from halide_tools.buffers import all_funcs, definitions
from halide_tools.directives import INLINE, ROOT, Created, FuncSchedule, Level, Loop, Split, Stage, labels_of
from halide_tools.schedules import Schedule

FACTORS = (2, 3, 4, 5, 8, 16, 32, 64, 128)
UNROLLS = (2, 3, 4, 6, 8)
TILE_VECTORS, TILE_ROWS, STRIP_ROWS = (1, 2, 3, 4), (2, 3, 4, 6, 8), (8, 16, 32, 64, 128)
MAX_UNROLLED = 32  # iterations of loops that are unrolled inside each other
MUTATED = 1  # tells the random numbers of Mutated.draw from those of Proposal.draw
MAX_CHANGES, TRIES = 8, 3  # and how often something else is drawn in place of a change that is seen to be refused
# What is changed: Adams2019's own choice, what it proposes with noise, and Mullapudi2016's choice.
PARENTS, PARENT_SHARES = ("greedy", "noisy", "Mullapudi2016"), (0.35, 0.45, 0.2)


@dataclass(frozen=True)
class Facts:
    """Of a pipeline, by the labels of its Funcs.

    readers : {Func: ((Func, stage) that reads it, ...)}; lanes : elements of a Func's type in a native vector; reductions : {(Func, stage)}
    of the updates that read of their Func the value that they replace alone, which `rfactor` needs. A scan reads the one before.
    """

    readers: dict
    lanes: dict
    reductions: frozenset


def facts(pipeline, target):
    """The Facts of a fresh hl.Pipeline for an hl.Target."""
    funcs = {func.name(): func for func in all_funcs(pipeline)}
    labels = labels_of(funcs)
    readers = {label: [] for label in labels.values()}
    for name, func in funcs.items():
        for stage, text in enumerate(definitions(func)):
            for read in dict.fromkeys(re.findall(r"([\w$.]+)\(", text)):
                if read in funcs and read != name:
                    readers[labels[read]].append((labels[name], stage))
    lanes = {labels[name]: target.natural_vector_size(func.types()[0]) for name, func in funcs.items()}
    reductions = {(labels[name], k + 1) for name, f in funcs.items() for k in range(f.num_update_definitions()) if _is_reduction(f, k)}
    return Facts({label: tuple(stages) for label, stages in readers.items()}, lanes, frozenset(reductions))


def _is_reduction(func, k):
    """Whether update `k` of an hl.Func reads of it the value that it replaces, and no other."""
    text = lambda expression: re.fullmatch(r"<halide\.Expr of type [^:]*: (.*)>", str(expression), re.S)[1]
    values, name = " ".join(map(text, func.update_values(k))), re.escape(func.name())
    replaced = f"{func.name()}({', '.join(map(text, func.update_args(k)))})"
    return values.count(replaced) == len(re.findall(rf"(?<![\w$.]){name}\(", values))


def mutate(schedule, facts, rng, weights=None):
    """(Changed Schedule, name of the kind of change), drawn by `weights` {kind: weight}, by default all alike; None where none applies."""
    names, shares = zip(*(weights or dict.fromkeys(KINDS, 1.0)).items())
    for name in rng.choice(names, len(names), replace=False, p=np.array(shares) / sum(shares)):
        changed = KINDS[name](schedule, facts, rng)
        if changed is not None and changed != schedule:
            return changed, str(name)
    return None


def several(schedule, facts, n, rng, weights=None):
    """(Schedule after up to `n` changes, their kinds): none of those that are seen to be refused."""
    kinds = []
    for _ in range(TRIES * n):
        changed, kind = mutate(schedule, facts, rng, weights) or (schedule, "")
        if changed != schedule and misplaced(changed, facts) <= misplaced(schedule, facts):
            schedule, kinds = changed, [*kinds, kind]
        if len(kinds) == n:
            break
    return schedule, kinds


def serial(schedule):
    """The same without parallel loops, for a single thread."""
    for label, func in schedule.funcs.items():
        for k, stage in enumerate(func.stages):
            loops = tuple(loop._replace(mark="serial") if loop.mark == "parallel" else loop for loop in stage.loops)
            schedule = _replace_stage(schedule, label, k, loops=loops)
    return schedule


def fitted(schedule, extents):
    """The same for outputs as small as `extents`, a number a dimension, where it splits them into larger parts.

    A guard leaves out what is over where a split does not divide the output. In a dimension with vectors a guard would be slow, so the
    split goes there.
    """
    for label in schedule.outputs:
        func = schedule.funcs[label]
        for k in range(len(func.stages)):
            for arg, least in zip(func.args, extents):
                schedule = _fitted_stage(schedule, label, k, arg, least)
    return _without_lost_levels(schedule)


def _fitted_stage(schedule, label, k, arg, least):
    while (split := _split_of(schedule.funcs[label].stages[k], arg)) and split.factor > least and split.tail != "GuardWithIf":
        stage = schedule.funcs[label].stages[k]
        i, inside = stage.transforms.index(split), {split.inner}
        for t in stage.transforms[i + 1 :]:
            inside |= {t.outer, t.inner} if isinstance(t, Split) and t.old in inside else set()
        has_vectors = any(loop.mark == "vectorize" and loop.name in inside for loop in stage.loops)
        if has_vectors and (without := _without_split(schedule, label, k, i)):
            schedule = without
        else:
            transforms = (*stage.transforms[:i], split._replace(tail="GuardWithIf"), *stage.transforms[i + 1 :])
            schedule = _replace_stage(schedule, label, k, transforms=transforms)
    return schedule


def _split_of(stage, arg):
    """The first Split of the loop over `arg`, or None."""
    return next((t for t in stage.transforms if isinstance(t, Split) and t.old == arg), None)


def _without_split(schedule, label, k, i):
    """Without transform `i` of a stage, a Split whose inner loop is split again and whose outer one is not; None where it is another one.

    What was computed in the outer loop, and its mark, go to the loop around it; where there is none, to the one inside.
    """
    stage = schedule.funcs[label].stages[k]
    split, names, rest = stage.transforms[i], [loop.name for loop in stage.loops], stage.transforms[i + 1 :]
    again = [t for t in rest if isinstance(t, Split) and t.old == split.inner]
    if len(again) != 1 or split.outer not in names or len(names) == 1:
        return None
    at = names.index(split.outer)
    heir = names[at + 1] if at + 1 < len(names) else names[at - 1]
    transforms = (*stage.transforms[:i], *(t._replace(old=split.old) if t is again[0] else t for t in rest))
    is_parallel = stage.loops[at].mark == "parallel"
    loops = tuple(l._replace(mark="parallel") if is_parallel and l.name == heir else l for l in stage.loops if l.name != split.outer)
    schedule = _replace_stage(schedule, label, k, transforms=transforms, loops=loops)
    moved = lambda level: level._replace(loop=heir) if isinstance(level, Level) and level[:2] == (label, split.outer) else level
    for other, func in schedule.funcs.items():
        schedule = _replace(schedule, other, compute=moved(func.compute), store=moved(func.store), hoist=moved(func.hoist))
    return schedule


# Parts of a schedule


def _replace(schedule, label, **changes):
    return Schedule(schedule.outputs, schedule.funcs | {label: dataclasses.replace(schedule.funcs[label], **changes)}, schedule.created)


def _replace_stage(schedule, label, k, **changes):
    stages = list(schedule.funcs[label].stages)
    stages[k] = dataclasses.replace(stages[k], **changes)
    return _replace(schedule, label, stages=tuple(stages))


def _computed(schedule):
    """Labels of the Funcs that are not inlined."""
    return [label for label, func in schedule.funcs.items() if func.compute != INLINE]


def _stages(schedule):
    return [(label, k) for label in _computed(schedule) for k in range(len(schedule.funcs[label].stages))]


def _pick(rng, values):
    values = list(values)
    return values[int(rng.integers(len(values)))] if values else None


def _new_names(func, *wanted):
    """Names for new loops that no stage of the Func uses."""
    taken = set(func.args)
    for stage in func.stages:
        taken |= {*stage.rvars, *(loop.name for loop in stage.loops), *(v for t in stage.transforms for v in t if isinstance(v, str))}
    names = []
    for name in wanted:
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def _split(stage, func, loop, factor, mark="serial"):
    """(`stage` with a loop split, the inner part's name): the outer part keeps its name, so that what is computed there stays there."""
    [inner] = _new_names(func, f"{loop}_i")
    i = next(i for i, l in enumerate(stage.loops) if l.name == loop)
    loops = (*stage.loops[:i], Loop(inner, mark), *stage.loops[i:])
    return dataclasses.replace(stage, transforms=(*stage.transforms, Split(loop, loop, inner, factor, "Auto")), loops=loops), inner


def _factors(stage):
    """{loop: its extent}, of those that are the inner part of a split and remain."""
    found = {}
    for t in stage.transforms:
        for name in (t.old, t.inner, t.outer) if isinstance(t, Split) else t:
            found.pop(name, None)
        if isinstance(t, Split):
            found[t.inner] = t.factor
    return {loop.name: found[loop.name] for loop in stage.loops if loop.name in found}


def _sites(schedule, facts, label):
    """Loops in which a Func can be computed, innermost first, as Levels: those that enclose all that read it."""
    chains = [_chain(schedule, facts, reader, stage) for reader, stage in _real_readers(schedule, facts, label)]
    if not chains:
        return []
    return [level for level in chains[0] if all(level in chain for chain in chains[1:])]


def _real_readers(schedule, facts, label, seen=()):
    """(Func, stage) that are computed and read a Func, through those that are inlined."""
    found = []
    for reader, stage in facts.readers.get(label, ()):
        if reader in schedule.funcs and schedule.funcs[reader].compute != INLINE:
            found.append((reader, stage))
        elif reader not in seen:
            found += _real_readers(schedule, facts, reader, (*seen, reader))
    return list(dict.fromkeys(found))


def _chain(schedule, facts, label, stage):
    """Levels of the loops around a stage, innermost first."""
    func = schedule.funcs[label]
    levels = [Level(label, loop.name) for loop in func.stages[min(stage, len(func.stages) - 1)].loops if loop.mark != "vectorize"]
    if isinstance(func.compute, Level):
        host = schedule.funcs[func.compute.func]
        for k in range(len(host.stages)):
            names = [loop.name for loop in host.stages[k].loops]
            if func.compute.loop in names:
                outside = _chain(schedule, facts, func.compute.func, k)
                return levels + [l for l in outside if l.func != func.compute.func or names.index(l.loop) >= names.index(func.compute.loop)]
    return levels


def _without_lost_levels(schedule):
    """Funcs that were computed or stored in a loop that is gone, at the root."""
    kept = {(label, loop.name) for label, func in schedule.funcs.items() for stage in func.stages for loop in stage.loops}
    lost = lambda level: isinstance(level, Level) and (level.func, level.loop) not in kept
    for label, func in schedule.funcs.items():
        if lost(func.compute):
            schedule = _unrolls_known(_replace(schedule, label, compute=ROOT, store=None, hoist=None), label)
        elif lost(func.store) or lost(func.hoist):
            schedule = _replace(schedule, label, store=None, hoist=None)
    return schedule


def _unrolls_known(schedule, label):
    """A Func's loops serial where they are unrolled and their extents depend on where it is computed."""
    for k, stage in enumerate(schedule.funcs[label].stages):
        known = {*_factors(stage), *stage.rvars}
        loops = tuple(l._replace(mark="serial") if l.mark == "unroll" and l.name not in known else l for l in stage.loops)
        schedule = _replace_stage(schedule, label, k, loops=loops)
    return schedule


def join(schedule, other, rng):
    """A schedule with another's ways to compute some of the Funcs; None where the two differ in the Funcs that they have."""
    if schedule.created != other.created or schedule.funcs.keys() != other.funcs.keys():
        return None
    differing = [label for label, func in schedule.funcs.items() if func != other.funcs[label]]
    taken = [label for label in differing if rng.random() < 0.5]
    if not taken or len(taken) == len(differing):
        return None
    return _without_lost_levels(
        Schedule(schedule.outputs, schedule.funcs | {label: other.funcs[label] for label in taken}, schedule.created)
    )


def misplaced(schedule, facts):
    """Labels of the Funcs that are computed where not all that read them can see them, or stored inside of that: Halide refuses those."""
    found = set()
    for label, func in schedule.funcs.items():
        if isinstance(func.compute, Level):
            sites = _sites(schedule, facts, label)
            outside = sites[sites.index(func.compute) :] if func.compute in sites else []
            if not outside or (isinstance(func.store, Level) and func.store not in outside):
                found.add(label)
    return found


# Kinds of change


def factor(schedule, facts, rng):
    """Another factor for a split."""
    found = [(s, i) for s in _stages(schedule) for i, t in enumerate(schedule.funcs[s[0]].stages[s[1]].transforms) if isinstance(t, Split)]
    picked = _pick(rng, found)
    if picked is None:
        return None
    (label, k), i = picked
    transforms = list(schedule.funcs[label].stages[k].transforms)
    old = transforms[i].factor
    new = _pick(rng, {2 * old, max(1, old // 2), 4 * old, *(f for f in FACTORS if old / 4 <= f <= 4 * old)} - {old, 1})
    transforms[i] = transforms[i]._replace(factor=new)
    return _replace_stage(schedule, label, k, transforms=tuple(transforms))


def order(schedule, facts, rng):
    """Two neighbouring loops the other way round."""
    label, k = _pick(rng, _stages(schedule))
    loops = list(schedule.funcs[label].stages[k].loops)
    if len(loops) < 2:
        return None
    i = int(rng.integers(len(loops) - 1))
    loops[i : i + 2] = loops[i + 1], loops[i]
    return _replace_stage(schedule, label, k, loops=tuple(loops))


def split(schedule, facts, rng):
    """A serial loop in two."""
    label, k = _pick(rng, _stages(schedule))
    func = schedule.funcs[label]
    loop = _pick(rng, [loop.name for loop in func.stages[k].loops if loop.mark in ("serial", "parallel")])
    if loop is None:
        return None
    stage, _ = _split(func.stages[k], func, loop, _pick(rng, FACTORS))
    return _replace_stage(schedule, label, k, **vars(stage))


def unroll(schedule, facts, rng):
    """An inner loop unrolled, or no longer."""
    label, k = _pick(rng, _stages(schedule))
    func = schedule.funcs[label]
    stage, extents = func.stages[k], _factors(func.stages[k])
    candidates = [
        loop for loop in stage.loops if loop.mark == "unroll" or (loop.mark == "serial" and extents.get(loop.name, 99) <= MAX_UNROLLED)
    ]
    loop = _pick(rng, candidates)
    if loop is not None:
        other = loop._replace(mark="serial" if loop.mark == "unroll" else "unroll")
        return _replace_stage(schedule, label, k, loops=tuple(other if l == loop else l for l in stage.loops))
    outer = _pick(rng, [loop.name for loop in stage.loops if loop.mark == "serial"])
    if outer is None:
        return None
    stage, _ = _split(stage, func, outer, _pick(rng, UNROLLS), "unroll")
    return _replace_stage(schedule, label, k, **vars(stage))


def vector_width(schedule, facts, rng):
    """Wider or narrower vectors, or vectors where there are none."""
    choices = []
    for label, k in _stages(schedule):
        stage, extents = schedule.funcs[label].stages[k], _factors(schedule.funcs[label].stages[k])
        vectorized = [loop.name for loop in stage.loops if loop.mark == "vectorize"]
        pure = [loop.name for loop in stage.loops if loop.mark == "serial" and loop.name in stage.vars]
        choices += [(label, k, name, extents[name]) for name in vectorized if name in extents]
        choices += [(label, k, "", 0)] if pure and not vectorized else []
    picked = _pick(rng, choices)
    if picked is None:
        return None
    label, k, name, old = picked
    func, lanes = schedule.funcs[label], facts.lanes.get(label, 8)
    stage, width = func.stages[k], int(_pick(rng, [w for w in (lanes, lanes, 2 * lanes, 4 * lanes, max(2, lanes // 2)) if w != old]))
    if name:
        transforms = tuple(t._replace(factor=width) if isinstance(t, Split) and t.inner == name else t for t in stage.transforms)
        return _replace_stage(schedule, label, k, transforms=transforms)
    pure = [loop.name for loop in stage.loops if loop.mark == "serial" and loop.name in stage.vars]
    stage, inner = _split(stage, func, min(pure, key=func.args.index), width, "vectorize")
    loops = sorted(stage.loops, key=lambda loop: loop.name != inner)  # innermost
    return _replace_stage(schedule, label, k, **vars(stage) | {"loops": tuple(loops)})


def parallel(schedule, facts, rng):
    """Another loop of a Func at the root in parallel."""
    label = _pick(rng, [label for label in _computed(schedule) if schedule.funcs[label].compute == ROOT])
    if label is None:
        return None
    k = int(rng.integers(len(schedule.funcs[label].stages)))
    stage = schedule.funcs[label].stages[k]
    serial = [loop.name for loop in stage.loops if loop.mark == "serial" and loop.name not in stage.rvars]
    new = _pick(rng, serial[-2:])
    if new is None:
        return None
    marks = {loop.name: "serial" for loop in stage.loops if loop.mark == "parallel"} | {new: "parallel"}
    return _replace_stage(schedule, label, k, loops=tuple(loop._replace(mark=marks.get(loop.name, loop.mark)) for loop in stage.loops))


def compute_at(schedule, facts, rng):
    """A Func in a loop further in or out, or at the root."""
    label = _pick(rng, [label for label in _computed(schedule) if label not in schedule.outputs])
    if label is None:
        return None
    level = _pick(rng, [l for l in [*_sites(schedule, facts, label), ROOT] if l != schedule.funcs[label].compute])
    return None if level is None else _unrolls_known(_replace(schedule, label, compute=level, store=None, hoist=None), label)


def store_at(schedule, facts, rng):
    """The storage of a Func outside of where it is computed, so that values are computed once; or no longer."""
    label = _pick(rng, [label for label in _computed(schedule) if isinstance(schedule.funcs[label].compute, Level)])
    if label is None:
        return None
    func, sites = schedule.funcs[label], _sites(schedule, facts, label)
    if func.compute not in sites:
        return None
    outside = []
    for level in sites[sites.index(func.compute) :]:
        outside.append(level)
        if any(loop.name == level.loop and loop.mark == "parallel" for stage in schedule.funcs[level.func].stages for loop in stage.loops):
            break  # storage outside of a parallel loop is shared between threads
    else:
        outside.append(ROOT)
    level = _pick(rng, [l for l in outside if l != (func.store or func.compute)])
    return None if level is None else _replace(schedule, label, store=None if level == func.compute else level, hoist=None)


def inline(schedule, facts, rng):
    """A pure Func inlined, or computed where it was not."""
    hosts = {level.func for func in schedule.funcs.values() for level in (func.compute, func.store, func.hoist) if isinstance(level, Level)}
    created = {c.label for c in schedule.created} | {c.base for c in schedule.created}
    candidates = [
        label for label, func in schedule.funcs.items()
        if label not in {*schedule.outputs, *hosts, *created} and len(func.stages) == 1 and facts.readers.get(label)
    ]  # fmt: skip
    label = _pick(rng, candidates)
    if label is None:
        return None
    func = schedule.funcs[label]
    if func.compute != INLINE:
        plain = Stage((), func.args, tuple(map(Loop, func.args)))
        return _replace(schedule, label, compute=INLINE, store=None, hoist=None, stages=(plain,), storage=(), memory_type="Auto")
    level = _pick(rng, [*_sites(schedule, facts, label), ROOT])
    return _vectorized(_replace(schedule, label, compute=level), facts, label)


def _vectorized(schedule, facts, label):
    """The pure stage of a Func in vectors, where its loops are the algorithm's."""
    func = schedule.funcs[label]
    if not func.args or func.stages[0].transforms:
        return schedule
    stage, _ = _split(func.stages[0], func, func.args[0], facts.lanes.get(label, 8), "vectorize")
    return _replace_stage(schedule, label, 0, **vars(stage))


def wrap(schedule, facts, rng):
    """What a Func reads of an input or of another Func copied first (`in_`), for one of its readers."""
    computed, wrapped = _computed(schedule), {c.base for c in schedule.created}
    outside = [label for label, func in schedule.funcs.items() if label not in wrapped and not isinstance(func.compute, Level)]
    pairs = [(label, reader) for label in outside for reader, _ in facts.readers.get(label, ()) if reader in computed]
    picked = _pick(rng, pairs)
    if picked is None:
        return None
    label, reader = picked
    new, args = f"{label}.in_({reader})", schedule.funcs[label].args
    stages = [stage for r, stage in facts.readers[label] if r == reader]
    level = _pick(rng, [*_chain(schedule, facts, reader, max(stages)), ROOT] if len(stages) == 1 else [ROOT])
    wrapper = FuncSchedule(args, (Stage((), args, tuple(map(Loop, args))),), compute=level)
    created = (*schedule.created, Created(new, "in_", label, (reader,)))
    return _vectorized(Schedule(schedule.outputs, schedule.funcs | {new: wrapper}, created), facts, new)


def rfactor(schedule, facts, rng):
    """A reduction in independent parts: as many as a vector holds, or one for each value of one of several RVars."""
    created = {c.base for c in schedule.created} | {c.label for c in schedule.created}
    updates = [
        (label, k) for label, k in _stages(schedule)
        if (label, k) in facts.reductions and label not in created and schedule.funcs[label].stages[k].rvars
    ]  # fmt: skip
    picked = _pick(rng, updates)
    if picked is None:
        return None
    label, k = picked
    func, lanes = schedule.funcs[label], facts.lanes.get(label, 8)
    update, [u, outer, inner] = func.stages[k], _new_names(func, "u", "ro", "ri")
    i = int(rng.integers(len(update.rvars)))
    transforms, kept, rest = (), update.rvars[i], (*update.rvars[:i], *update.rvars[i + 1 :])
    if not rest or rng.random() < 0.5:
        transforms, kept = (Split(f"#{i}", outer, inner, int(_pick(rng, (lanes, 2 * lanes, 4 * lanes))), "Auto"),), inner
        rest = (*update.rvars[:i], outer, *update.rvars[i + 1 :])
    args, merge = (*func.args, u), Stage((kept,), update.vars, tuple(map(Loop, (kept, *update.vars))))
    stages = []
    for rvars, names in (((), args), (rest, tuple(a for a in args if a in (u, *update.vars)))):
        loops = [Loop(name, "vectorize" if transforms and name == u else "serial") for name in (*rvars, *names)]
        stages.append(Stage(rvars, names, tuple(sorted(loops, key=lambda loop: loop.mark != "vectorize"))))
    new = Created(f"{label}.update({k - 1}).rfactor", "rfactor", label, (), k - 1, transforms, ((kept if transforms else f"#{i}", u),))
    intermediate = FuncSchedule(args, tuple(stages), compute=ROOT)
    changed = Schedule(schedule.outputs, schedule.funcs | {new.label: intermediate}, (*schedule.created, new))
    return _without_lost_levels(_replace_stage(changed, label, k, **vars(merge)))


def _tiled(func, lanes, vectors, rows, mark):
    """The pure stage in tiles of `vectors` vectors by `rows`, both loops of a tile marked; and the loop around a tile."""
    x, y = func.args[:2]
    across, vector, down = _new_names(func, f"{x}_t", f"{x}_v", f"{y}_t")
    transforms = (
        Split(x, x, across, vectors * lanes, "Auto"),
        Split(across, across, vector, lanes, "Auto"),
        Split(y, y, down, rows, "Auto"),
    )
    loops = (Loop(vector, "vectorize"), Loop(across, mark), Loop(down, mark), *map(Loop, func.args))
    return Stage((), func.args, loops, transforms), x


def register_tile(schedule, facts, rng):
    """A reduction computed in tiles of its reader that fit in registers: vectors and rows unrolled inside the loops of the reduction."""
    candidates = []
    for label in _computed(schedule):
        func, readers = schedule.funcs[label], {r for r, _ in _real_readers(schedule, facts, label)}
        if len(func.stages) == 2 and func.stages[1].rvars and func.stages[1].vars == func.args and len(func.args) >= 2:
            candidates += [(label, r) for r in readers if len(readers) == len(schedule.funcs[r].stages) == 1 < len(schedule.funcs[r].args)]
    picked = _pick(rng, candidates)
    if picked is None:
        return None
    label, reader = picked
    func, lanes = schedule.funcs[label], facts.lanes.get(label, 8)
    stage, level = _tiled(schedule.funcs[reader], lanes, int(_pick(rng, TILE_VECTORS)), int(_pick(rng, TILE_ROWS)), "unroll")
    if schedule.funcs[reader].compute == ROOT:
        stage = dataclasses.replace(stage, loops=(*stage.loops[:-1], stage.loops[-1]._replace(mark="parallel")))
    schedule = _replace_stage(schedule, reader, 0, **vars(stage))
    x, y = func.args[:2]
    [vector] = _new_names(func, f"{x}_v")
    inner = (Loop(vector, "vectorize"), Loop(x, "unroll"), Loop(y, "unroll"))
    rest, rvars = tuple(map(Loop, func.args[2:])), tuple(map(Loop, func.stages[1].rvars))
    stages = tuple(
        dataclasses.replace(s, transforms=(Split(x, x, vector, lanes, "Auto"),), loops=(*inner, *more, *rest))
        for s, more in zip(func.stages, ((), rvars))
    )
    return _without_lost_levels(_replace(schedule, label, stages=stages, compute=Level(reader, level), store=None, hoist=None))


def strip(schedule, facts, rng):
    """A Func at the root in strips of rows that run in parallel; what it reads is computed row by row, and kept for the strip."""
    roots = [label for label in _computed(schedule) if schedule.funcs[label].compute == ROOT and len(schedule.funcs[label].args) >= 2]
    label = _pick(rng, [label for label in roots if len(schedule.funcs[label].stages) == 1])
    if label is None:
        return None
    func, lanes = schedule.funcs[label], facts.lanes.get(label, 8)
    x, y = func.args[:2]
    vector, row = _new_names(func, f"{x}_v", f"{y}_i")
    transforms = (Split(x, x, vector, lanes, "Auto"), Split(y, y, row, int(_pick(rng, STRIP_ROWS)), "Auto"))
    loops = (Loop(vector, "vectorize"), Loop(x), Loop(row), *map(Loop, func.args[2:]), Loop(y, "parallel"))
    schedule = _replace_stage(schedule, label, 0, transforms=transforms, loops=loops)
    inside, outside = Level(label, row), Level(label, y)
    for producer in _computed(schedule):
        if producer != label and inside in _sites(schedule, facts, producer):
            schedule = _unrolls_known(_replace(schedule, producer, compute=inside, store=outside, hoist=None), producer)
    return _without_lost_levels(schedule)


KINDS = {
    "factor": factor, "order": order, "split": split, "unroll": unroll, "vector_width": vector_width, "parallel": parallel,
    "compute_at": compute_at, "store_at": store_at, "inline": inline, "in": wrap, "rfactor": rfactor, "register_tile": register_tile,
    "strip": strip,
}  # fmt: skip


# Proposals


class NoChange(ValueError):
    """No kind of change applies to a schedule."""


@dataclass(frozen=True)
class Mutated:
    """A schedule some changes away from what an autoscheduler proposes; equal ones give equal schedules.

    parent : the proposal that is changed; changes : how many times; seed : of what is drawn
    """

    autoscheduler: ClassVar = "mutated"
    parent: Proposal | OtherAutoscheduler
    changes: int
    seed: int

    @classmethod
    def draw(cls, program_seed, k):
        """The k-th of a program: one to MAX_CHANGES changes of one of PARENTS."""
        rng = np.random.default_rng([program_seed, k, MUTATED])
        kind = rng.choice(PARENTS, p=PARENT_SHARES)
        parent = (
            OtherAutoscheduler("Mullapudi2016") if kind == "Mullapudi2016" else Proposal.draw(program_seed, k if kind == "noisy" else 0)
        )
        return cls(parent, int(rng.integers(1, MAX_CHANGES + 1)), int(rng.integers(2**31 - 1)))

    @classmethod
    def from_record(cls, record):
        """The proposal in a candidate's entry of program.json."""
        return cls(proposal_from_record(record["parent"]), record["changes"], record["seed"])

    def find(self, spec):
        """The Schedule of a ProgramSpec's program. Raises NoChange, and hl.HalideError where the autoscheduler refuses."""
        return self.found_with_kinds(spec)[0]

    def found_with_kinds(self, spec):
        """(what `find` returns, the kinds of its changes)."""
        pipeline, rng = spec.build(), np.random.default_rng(self.seed)
        known, unscheduled = facts(pipeline, spec.halide_target()), schedules.read(pipeline)
        self.parent.apply(pipeline, spec)
        schedule = schedules.read(pipeline, unscheduled)
        changed, kinds = several(schedule, known, self.changes, rng)
        if not kinds:
            raise NoChange("no kind of change applies to it")
        return serial(changed) if spec.threads == 1 else changed, kinds


@dataclass(frozen=True)
class Edited:
    """A schedule that a search has made of another one. text : of Schedule.to_json; edit_of : what the other goes by; kinds : of change."""

    autoscheduler: ClassVar = "mutated"
    text: str
    edit_of: str
    kinds: tuple

    @classmethod
    def from_record(cls, record):
        """The proposal in a candidate's entry of program.json."""
        return cls(record["text"], record["edit_of"], tuple(record["kinds"]))
