"""Counts in the lowered code of a schedule that adds stages, as counts of the stages that its program has without it.

`rfactor` adds a Func to the pipeline. What that does is done for the update that it was made of, and is charged to it: so that all
schedules of a program have a row for each of the same stages. (Wrappers and copies, of `in_` and `clone_in`, are no Funcs of the pipeline.)
"""

import functools
import re

import numpy as np

from features import LOWERED
from halide_tools.buffers import all_funcs
from halide_tools.directives import Created, labels_of
from halide_tools.programs import functions

VECTOR_BYTES = LOWERED.index("native_vector_bytes")


def stage_labels(pipeline):
    """Labels of the Funcs of a pipeline without schedule, in the order of its featurization."""
    labels = labels_of([func.name() for func in all_funcs(pipeline)])
    return [labels[func.name()] for func in functions(pipeline)]


def apply_from_data(schedule, pipeline):
    """Apply a schedules.Schedule to a fresh pipeline of its program; returns of_program as a function of the counts alone."""
    labels = stage_labels(pipeline)
    names = {label: func.name() for label, func in schedule.apply(pipeline).items()}
    return functools.partial(of_program, pipeline, labels, names, schedule.created)


def by_names(pipeline, labels):
    """of_program as a function of the counts alone, of a scheduled pipeline whose schedule can't be kept as data.

    labels : stage_labels of the program. What `rfactor` has added is known by its name: `base_intm` of `base`.
    """
    funcs, added = {func.name(): func for func in all_funcs(pipeline)}, {}
    for base, func in funcs.items():
        pattern = re.compile(re.escape(base.replace("$", "_")) + r"_intm(_\d+)?")
        for name in (name for name in funcs if pattern.fullmatch(name.replace("$", "_"))):
            readers = [k for k in range(func.num_update_definitions()) if f"{name}(" in str(func.update_values(k))]
            added[name] = base, readers[0] if readers else 0
    own = labels_of([name for name in funcs if name not in added])
    own |= {name: name for name in added}
    created = tuple(Created(name, "rfactor", own[base], update=update) for name, (base, update) in added.items())
    return functools.partial(of_program, pipeline, labels, {label: name for name, label in own.items()}, created)


def of_program(pipeline, labels, names, created, counts):
    """Counts (R, K) of the stages of a scheduled pipeline as (T, K) of the program's own; None where that can't be told.

    labels : stage_labels of the program; names : {label: what the Func is called in `pipeline`}; created : schedules.Schedule.created
    """
    rows = [(func.name(), i) for func in functions(pipeline) for i in range(func.num_update_definitions(), -1, -1)]
    made_of = {names.get(c.label): (names.get(c.base), c.update + 1) for c in created if c.method == "rfactor"}
    found = {(name, i): np.zeros(counts.shape[1]) for name in map(names.get, labels) for n, i in rows if n == name}
    if len(rows) != len(counts) or {name for name, _ in found} != set(map(names.get, labels)):
        return None  # a Func of the program was inlined into others
    for (name, i), own in zip(rows, counts):
        while name in made_of:
            name, i = made_of[name]
        if (name, i) not in found:
            return None
        found[name, i] += own
    sums = np.array(list(found.values()))
    sums[:, VECTOR_BYTES] = counts[:, VECTOR_BYTES].max()  # no count of anything, and the same for all
    return sums
