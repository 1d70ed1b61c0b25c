"""Counts in the lowered code of a schedule that adds Funcs, as counts of the stages that its program has without it.

A schedule may add wrappers (`in_`), copies (`clone_in`) and intermediates (`rfactor`). What they do is done for a stage of the program, and
is charged to it: so that all schedules of a program have a row for each of the same stages.
"""

import functools
import re

import numpy as np

from halide_tools.buffers import all_funcs, definitions
from halide_tools.directives import labels_of
from halide_tools.programs import functions


def stage_labels(pipeline):
    """Labels of the Funcs of a pipeline without schedule, in the order of its featurization."""
    labels = labels_of([func.name() for func in all_funcs(pipeline)])
    return [labels[func.name()] for func in functions(pipeline)]


def apply_from_data(schedule, pipeline):
    """Apply a schedules.Schedule to a fresh pipeline of its program; returns of_program as a function of the counts alone."""
    labels = stage_labels(pipeline)
    names = {label: func.name() for label, func in schedule.apply(pipeline).items()}
    return functools.partial(of_program, pipeline, labels, names, schedule.created)


def of_program(pipeline, labels, names, created, counts):
    """Counts (R, K) of the stages of a scheduled pipeline as (T, K) of the program's own; None where that can't be told.

    labels : stage_labels of the program; names : {label: what the Func is called in `pipeline`}; created : schedules.Schedule.created
    """
    funcs = functions(pipeline)
    rows = [(func.name(), i) for func in funcs for i in range(func.num_update_definitions(), -1, -1)]
    numbers = {names.get(label): [i for name, i in rows if name == names.get(label)] for label in labels}
    if len(rows) != len(counts) or not all(numbers.values()):
        return None  # a Func of the program was inlined into others
    found = {(name, i): np.zeros(counts.shape[1]) for name, own in numbers.items() for i in own}
    made_of = {names.get(c.label): c for c in created}
    texts = {func.name(): " ".join(definitions(func)) for func in funcs}
    for (name, i), own in zip(rows, counts):
        owner = _owner(name, i, found, names, made_of, texts)
        if owner is None:
            return None
        found[owner] += own
    return np.array(list(found.values()))


def _owner(name, i, stages, names, made_of, texts):
    """The (Func, number) of the program's stage that stage `i` of the Func `name` works for; None where there is none."""
    while (name, i) not in stages:
        created = made_of.get(name)
        base = names.get(created.base) if created else None
        if base is not None and (base in made_of or any(base == n for n, _ in stages)):
            name, i = base, {"rfactor": created.update + 1, "clone_in": i}.get(created.method, 0)
            continue
        # Of an input: it belongs to who reads it.
        reads = re.compile(rf"(?<![\w$.]){re.escape(name)}\(")
        reader = next((n for n, text in texts.items() if n != name and reads.search(text)), None)
        if reader is None:
            return None
        name, i = reader, 0
    return name, i
