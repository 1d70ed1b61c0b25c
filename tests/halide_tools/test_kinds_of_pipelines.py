"""Every kind of pipeline is built, scheduled, run, compared and counted."""

import halide as hl
import numpy as np
import pytest
from conftest import ROOT

from features import STAGE_BYTES
from halide_tools.autoschedulers import Proposal
from halide_tools.buffers import complete_estimates, estimated_arguments, index_inputs
from halide_tools.comparison import mismatch
from halide_tools.execution import Program, describe_inputs, index_hint
from halide_tools.lowered_features import count_lowered
from halide_tools.programs import describe_stages, find_programs, schedule_everything_at_root

FILE = ROOT / "tests" / "kinds_of_pipelines.py"
DIFFICULT = FILE.with_name("difficult_pipelines.py")
KINDS = [spec.name for spec in find_programs(FILE)]
PARAMS = {"parameters": "input.type=uint16 output.type=float32 radius=1 signed=true"}
INDEXING = {
    "histogram": {"input"}, "table": {"input"}, "gather": {"index"}, "warp": {"dx"}, "promised": {"index"}, "sparse": {"starts", "columns"},
}  # fmt: skip


def spec_of(name, **options):
    return find_programs(FILE, name, PARAMS.get(name, ""), **options)[0]


@pytest.mark.parametrize("name", [name for name in KINDS if name != "promised"])
def test_it_is_scheduled_run_compared_and_counted(name):
    spec = spec_of(name)
    pipeline = spec.build()
    stages = describe_stages(pipeline)["stages"]
    assert index_inputs(pipeline) == INDEXING.get(name, set())
    schedule_everything_at_root(pipeline)
    right = Program(pipeline, spec, is_reference=True).results_of_two_runs(1)
    scheduled = spec.build()
    featurization, _ = Proposal.draw(7, 1).apply(scheduled, spec)
    assert len(featurization) == STAGE_BYTES * len(stages)
    program = Program(scheduled, spec)
    results = program.results_of_two_runs(1)
    assert mismatch(results, right, program.comparisons) == ""
    broken = results[0] * results[0].dtype.type(1.25) if results[0].dtype.kind == "f" else results[0] ^ results[0].dtype.type(1)
    assert mismatch([broken, *results[1:]], right, program.comparisons)
    counts = count_lowered(scheduled, spec)
    assert len(counts) == len(stages) and counts.sum() > 0


def test_contents_that_break_a_promise_are_an_error_and_not_a_crash():
    spec = spec_of("promised")
    with pytest.raises(hl.HalideError, match="unsafe_promise_clamped"):
        Program(spec.build(), spec, is_reference=True).results_of_two_runs(1)
    assert index_hint(spec) == "it indexes by index, whose contents are random: give them with --inputs index=FILE.npy or index=LOW:HIGH"
    assert index_hint(spec_of("planar")) == ""
    given = spec_of("promised", inputs="index=17")
    assert index_hint(given) == "" and describe_inputs(given) == {
        "index": {"type": "int32", "dimensions": 1, "contents": "the value 17", "indexes": True},
        "values": {"type": "float32", "dimensions": 1, "contents": "random, uniform in [0, 1)", "indexes": False},
    }
    values, *_ = Program(given.build(), given, is_reference=True).results_of_two_runs(1)
    assert (values == values[0]).all()
    given = spec_of("promised", inputs="index=490:499 values=-3:3")
    assert index_hint(given) == "" and describe_inputs(given)["index"]["contents"] == "drawn from 490:499"
    values, *_ = Program(given.build(), given, is_reference=True).results_of_two_runs(1)
    assert len(np.unique(values)) == 10 and -6 <= values.min() < 0 < values.max() <= 6


@pytest.mark.parametrize(("name", "words"), [("pointer", "owner is a pointer"), ("empty", "output has estimates without a point, 0 x 64")])
def test_arguments_that_can_not_be_had_are_named(name, words):
    with pytest.raises(ValueError, match=words):
        find_programs(DIFFICULT, name)


def test_a_scalar_needs_an_estimate_or_a_value():
    name, (x,) = "scalar_without_estimate", hl.vars("x")
    with pytest.raises(ValueError, match="gain has no estimate: call set_estimate on it, or give --inputs gain=VALUE"):
        find_programs(DIFFICULT, name)
    given, gain, f = find_programs(DIFFICULT, name, inputs="gain=0.5")[0], hl.Param(hl.Float(32), "gain", 1.5), hl.Func("f")
    assert describe_inputs(given)["gain"]["contents"] == "the value 0.5"
    f[x] = gain * x
    f.set_estimates([(0, 9)])
    complete_estimates(hl.Pipeline(f), [gain.parameter()])
    assert estimated_arguments(hl.Pipeline(f))[0] == [1.5], "a default that its author gave will do"


def test_what_wrappers_are_asked_for_is_there_though_directives_are_ignored():
    (spec,) = find_programs(DIFFICULT, "wrappers")
    assert spec.has_hand_schedule() and len(describe_stages(spec.build())["stages"]) == 2


def test_schedules_of_authors_are_told_from_none():
    for name, has_schedule in (("hand_scheduled", True), ("schedule_left_in", True), ("planar", False)):
        assert (spec_of(name).build_hand_scheduled() is not None) == has_schedule
