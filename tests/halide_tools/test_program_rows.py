"""Counts of Funcs that a schedule adds go to the stages of the program that they work for."""

import halide as hl
import numpy as np
import pytest
from conftest import ROOT

from features import LOWERED_EVENTS
from halide_tools import lowered_features, schedules
from halide_tools.directives import Created
from halide_tools.program_rows import by_names, of_program, stage_labels
from halide_tools.programs import HOST, find_programs, functions


@pytest.fixture(scope="module")
def mat_mul():
    return find_programs(ROOT / "pipelines" / "mat_mul.py")[0]


def counted(pipeline, labels, names, created):
    found = lowered_features.count_lowered(pipeline, HOST)
    return found, of_program(pipeline, labels, names, created, found)


def test_an_intermediate_of_rfactor_works_for_the_update_that_it_was_made_of(mat_mul):
    pipeline = mat_mul.build()
    labels, data = stage_labels(pipeline), schedules.read(pipeline)
    handles = schedules.find_funcs(data, pipeline)
    names = {label: func.name() for label, func in handles.items()}
    product = handles["product"].compute_root()
    intermediate = product.update(0).rfactor(product.rvars(0)[0], hl.Var("u")).compute_root()
    handles["product"].in_(handles["output"]).compute_root()
    created = (Created("factored", "rfactor", "product", (), 0), Created("wrapper", "in_", "product", ("output",)))
    rows, found = counted(pipeline, labels, names | {"factored": intermediate.name()}, created)
    assert labels == ["output", "product"] and len(rows) == 5 and len(found) == 3
    n_events = len(LOWERED_EVENTS)
    assert np.allclose(rows[:, :n_events].sum(0), found[:, :n_events].sum(0)), "nothing is lost"
    assert len(set(found[:, n_events])) == 1 and found[0, n_events] == rows[0, n_events], "how wide a vector is, is no count"
    of_func = {}
    for func in functions(pipeline):
        n = func.num_update_definitions() + 1
        of_func[func.name()], rows = rows[:n], rows[n:]
    output, update, pure = found
    own_update, own_pure = of_func[names["product"]]
    assert np.array_equal(output, of_func[names["output"]][0]) and np.array_equal(pure, own_pure)
    summed = own_update + of_func[intermediate.name()].sum(0)
    assert np.allclose(update[:n_events], summed[:n_events]) and (update > own_update).any()


def test_without_added_funcs_nothing_changes_and_a_func_that_is_gone_gives_none(mat_mul):
    pipeline = mat_mul.build()
    labels, data = stage_labels(pipeline), schedules.read(pipeline)
    names = {label: name for label, (name, _) in data.names.items()}
    rows, found = counted(pipeline, labels, names, ())
    assert np.array_equal(rows, found)
    assert of_program(pipeline, [*labels, "inlined"], names, (), rows) is None
    assert of_program(pipeline, labels, names, (), rows[1:]) is None


def test_rfactor_of_a_split_loop_is_known_by_the_name_of_its_func(mat_mul):
    pipeline = mat_mul.build()
    labels, [product] = stage_labels(pipeline), [func for func in functions(pipeline) if func.name().startswith("product")]
    ro, ri = hl.RVar("ro"), hl.RVar("ri")
    product.compute_root().update(0).split(product.rvars(0)[0], ro, ri, 8).rfactor(ri, hl.Var("u")).compute_root()
    with pytest.raises(ValueError, match="split before"):
        schedules.read(pipeline)
    rows = lowered_features.count_lowered(pipeline, HOST)
    found = by_names(pipeline, labels)(rows)
    n = len(LOWERED_EVENTS)
    assert len(rows) == 5 and len(found) == 3 and np.allclose(rows[:, :n].sum(0), found[:, :n].sum(0))
