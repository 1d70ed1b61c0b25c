"""Lowered code is equal where schedules are, whatever Halide calls things; and where they differ, it is not."""

import re

import halide as hl
import pytest
from conftest import BLUR

from halide_tools import lowered_identity, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.buffers import lowered_text
from halide_tools.lowered_identity import lowered_hash, renamed
from halide_tools.programs import HOST, find_programs


def test_names_are_numbered_and_nothing_else():
    text = "for (f$3.s0.x, 0, t99) {\n allocate g[float32 * 8] in Stack\n let t100 = min(f$3.s0.x, t99) + int32x8(g[0])\n}"
    assert renamed(text) == "for (n0, 0, n1) {\n allocate n2[float32 * 8] in Stack\n let n3 = min(n0, n1) + int32x8(n2[0])\n}"
    other = text.replace("f$3", "f").replace("t100", "t7")
    assert renamed(other) == renamed(text) and lowered_hash(other) == lowered_hash(text) < 2**63
    for difference in ("Heap", "Register"):
        assert lowered_hash(text.replace("Stack", difference)) != lowered_hash(text)
    assert lowered_hash(text.replace("for (", "parallel (")) != lowered_hash(text)
    assert lowered_hash(text.replace("min", "max")) != lowered_hash(text)
    assert lowered_hash(text.replace("float32", "float64")) != lowered_hash(text)
    assert lowered_hash(text.replace("t99) {", "t100) {")) != lowered_hash(text), "another name is another thing"


def test_temporaries_get_numbers_that_sort_by_age():
    lowered_identity.skip_short_numbers()
    numbers = re.findall(r"\bt(\d+)\b", str(hl.fast_log(hl.f32(hl.Var("x")))))
    assert numbers and len({len(number) for number in numbers}) == 1 and int(min(numbers, key=int)) >= lowered_identity.FIRST_NUMBER


@pytest.mark.parametrize("proposal", [Proposal.draw(0, 1), OtherAutoscheduler("Mullapudi2016"), OtherAutoscheduler("Li2018")])
def test_an_autoscheduler_and_its_directives_lower_to_the_same(blur, proposal):
    lowered_identity.skip_short_numbers()
    pipeline, again = blur.build(), blur.build()
    unscheduled = schedules.read(pipeline)
    proposal.apply(pipeline, HOST)
    schedules.read(pipeline, unscheduled).apply(again)
    first, second = (lowered_text(p, HOST.halide_target()) for p in (pipeline, again))
    assert lowered_hash(first) == lowered_hash(second) and first != second, "Funcs have other names in a second pipeline"


def test_another_schedule_is_another_code(tmp_path):
    (tmp_path / "blur.py").write_text(BLUR)
    spec, found = find_programs(tmp_path / "blur.py")[0], set()
    for change in (
        lambda f: f,
        lambda f: f.parallel(f.args()[1]),
        lambda f: f.vectorize(f.args()[0], 8),
        lambda f: f.unroll(f.args()[0], 2),
    ):
        pipeline = spec.build()
        change(pipeline.outputs()[0])
        found.add(lowered_hash(lowered_text(pipeline, HOST.halide_target())))
    assert len(found) == 4


def test_lowered_code_is_kept_where_that_is_asked_for(blur):
    pipeline, target = blur.build(), HOST.halide_target()
    first = lowered_text(pipeline, target)
    pipeline.outputs()[0].vectorize(pipeline.outputs()[0].args()[0], 8)
    second = lowered_text(pipeline, target, keep=True)
    assert first != second == lowered_text(pipeline, target)
    pipeline.outputs()[0].compute_root().unroll(pipeline.outputs()[0].args()[1], 2)
    assert lowered_text(pipeline, target) == second
