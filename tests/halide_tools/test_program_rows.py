"""Counts of Funcs that a schedule adds go to the stages of the program that they work for."""

import halide as hl
import numpy as np
import pytest
from conftest import ROOT

from halide_tools import lowered_code, schedules
from halide_tools.directives import Created
from halide_tools.program_rows import of_program, stage_labels
from halide_tools.programs import HOST, find_programs, functions


@pytest.fixture(scope="module")
def mat_mul():
    return find_programs(ROOT / "pipelines" / "mat_mul.py")[0]


def counted(pipeline, labels, names, created):
    found = lowered_code.count_lowered(pipeline, HOST)
    return found, of_program(pipeline, labels, names, created, found)


def test_an_intermediate_of_rfactor_works_for_its_update_and_a_wrapper_for_its_func(mat_mul):
    pipeline = mat_mul.build()
    labels, data = stage_labels(pipeline), schedules.read(pipeline)
    handles = schedules.find_funcs(data, pipeline)
    names = {label: func.name() for label, func in handles.items()}
    product = handles["product"].compute_root()
    u = hl.Var("u")
    intermediate = product.update(0).rfactor(product.rvars(0)[0], u)
    intermediate.compute_root()
    wrapped = handles["product"].in_(handles["output"])
    wrapped.compute_root()
    created = (
        Created("product.update(0).rfactor", "rfactor", "product", (), 0),
        Created("product.in_(output)", "in_", "product", ("output",)),
    )
    names |= {created[0].label: intermediate.name(), created[1].label: wrapped.name()}
    rows, found = counted(pipeline, labels, names, created)
    assert len(rows) > len(found) == 3 and labels == ["output", "product"]
    assert np.allclose(rows.sum(0), found.sum(0)), "nothing is lost"
    of_func = {}
    for func in functions(pipeline):
        own, rows = rows[: func.num_update_definitions() + 1], rows[func.num_update_definitions() + 1 :]
        of_func[func.name()] = own.sum(0)
    output, update, pure = found
    assert np.allclose(output, of_func[handles["output"].name()])
    assert (update >= of_func[intermediate.name()]).all() and (pure >= of_func[wrapped.name()]).all() and of_func[wrapped.name()].any()


def test_without_added_funcs_nothing_changes_and_a_func_that_is_gone_gives_none(mat_mul):
    pipeline = mat_mul.build()
    labels, data = stage_labels(pipeline), schedules.read(pipeline)
    names = {label: name for label, (name, _) in data.names.items()}
    rows, found = counted(pipeline, labels, names, ())
    assert np.array_equal(rows, found)
    assert of_program(pipeline, [*labels, "inlined"], names, (), rows) is None
    assert of_program(pipeline, labels, names, (), rows[1:]) is None
