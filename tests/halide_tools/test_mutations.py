"""Changes of schedules: each kind makes schedules that lower, and leaves its parent as it was."""

import dataclasses

import halide as hl
import numpy as np
import orjson
import pytest
from conftest import ROOT

from halide_tools import mutations, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.programs import HOST, find_programs


@pytest.fixture(scope="module")
def parents():
    """(ProgramSpec, Facts, [Schedules of autoschedulers]) of programs with reductions, updates and stencils."""
    found = []
    for name in ("mat_mul", "unsharp"):
        spec = find_programs(ROOT / "pipelines" / f"{name}.py")[0]
        scheduled = []
        for proposal in (Proposal.draw(0, 0), OtherAutoscheduler("Mullapudi2016")):
            pipeline = spec.build()
            unscheduled = schedules.read(pipeline)
            proposal.apply(pipeline, HOST)
            scheduled.append(schedules.read(pipeline, unscheduled))
        found.append((spec, mutations.facts(spec.build(), hl.get_host_target()), scheduled))
    return found


def lower(spec, schedule, folder):
    """The schedule as Halide has it; raises hl.HalideError or ValueError where it is not legal."""
    pipeline = spec.build()
    schedule.apply(pipeline)
    target, arguments = hl.get_host_target(), pipeline.infer_arguments()
    pipeline.compile_to_lowered_stmt(str(folder / "lowered.stmt"), arguments, hl.StmtOutputFormat.Text, target)
    return schedules.read(pipeline, created=schedule.created)


@pytest.mark.parametrize("kind", mutations.KINDS)
def test_each_kind_of_change_makes_schedules_that_lower(kind, parents, tmp_path):
    rng, tried, lowered = np.random.default_rng(1), 0, 0
    for spec, facts, scheduled in parents:
        for parent in scheduled:
            before = parent.to_json()
            for _ in range(2):
                mutated = mutations.mutate(parent, facts, rng, {kind: 1.0})
                assert parent.to_json() == before
                if mutated is None:
                    continue
                child, name = mutated
                assert name == kind and child != parent and schedules.Schedule.from_json(child.to_json()) == child
                tried += 1
                try:
                    lowered += lower(spec, child, tmp_path) != parent
                except (hl.HalideError, ValueError):
                    continue
    assert tried and lowered > tried / 3, (tried, lowered)


def test_the_same_numbers_make_the_same_change(parents):
    for _, facts, scheduled in parents:
        drawn = [[mutations.mutate(scheduled[0], facts, np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
        assert drawn[0] == drawn[1] and len({kind for _, kind in drawn[0]}) >= 6 and len({child for child, _ in drawn[0]}) >= 12


def test_facts_say_who_reads_whom_and_how_wide_vectors_are(parents):
    facts = parents[0][1]
    assert facts.readers["product"] == (("output", 0),) and facts.readers["a_im"] == (("product", 1),) and facts.readers["output"] == ()
    assert facts.lanes["product"] == hl.get_host_target().natural_vector_size(hl.Float(32))


def test_scans_are_no_reductions():
    x, r, f, g, h = hl.Var("x"), hl.RDom([(1, 31)]), hl.Func("scan"), hl.Func("total"), hl.Func("histogram")
    f[x] = x
    f[r.x] = f[r.x] + f[r.x - 1]
    g[x] = 0
    g[x] += f[r.x]
    h[x] = 0
    h[hl.clamp(g[r.x], 0, 9)] += 1
    h[x] = h[x] + h[x]
    found = mutations.facts(hl.Pipeline(h), hl.get_host_target()).reductions
    assert found == {("total", 1), ("histogram", 1), ("histogram", 2)}


def test_a_register_tile_keeps_the_reduction_in_its_readers_tile(parents):
    _, facts, scheduled = parents[0]
    child, _ = mutations.mutate(scheduled[0], facts, np.random.default_rng(0), {"register_tile": 1.0})
    product, output = child.funcs["product"], child.funcs["output"]
    assert product.compute.func == "output" and [loop.mark for loop in product.stages[1].loops[:3]] == ["vectorize", "unroll", "unroll"]
    assert [loop.mark for loop in output.stages[0].loops] == ["vectorize", "unroll", "unroll", "serial", "parallel"]


def test_two_schedules_join_func_by_func(parents, tmp_path):
    spec, _, (one, other) = parents[1]
    joined = [mutations.join(one, other, np.random.default_rng(seed)) for seed in range(20)]
    joined = [schedule for schedule in joined if schedule]
    assert len(set(joined)) > 3 and not {one, other} & set(joined)
    lowered = 0
    for schedule in joined[:6]:
        for label, func in schedule.funcs.items():  # unrolled loops may have become serial, where a Func has lost its place
            splits = [[stage.transforms for stage in source.funcs[label].stages] for source in (one, other)]
            assert [stage.transforms for stage in func.stages] in splits
        try:
            lower(spec, schedule, tmp_path)
            lowered += 1
        except (hl.HalideError, ValueError):
            continue
    assert lowered


def test_a_mutated_proposal_is_the_same_each_time_and_known_from_its_record(parents):
    drawn = [mutations.Mutated.draw(7, k) for k in range(200)]
    assert drawn == [mutations.Mutated.draw(7, k) for k in range(200)] != [mutations.Mutated.draw(8, k) for k in range(200)]
    assert {p.changes for p in drawn} == set(range(1, 9)) and len({str(p.parent) for p in drawn}) > 50
    assert {p.parent.autoscheduler for p in drawn} == {"Adams2019", "Mullapudi2016"}
    records = orjson.loads(orjson.dumps([dataclasses.asdict(p) for p in drawn]))
    assert [mutations.Mutated.from_record(record) for record in records] == drawn
    spec = parents[1][0]
    for proposal in [p for p in drawn if p.changes > 2 and p.parent.autoscheduler == "Mullapudi2016"][:3]:
        first, second = proposal.find(spec), proposal.find(spec)
        assert first.to_json() == second.to_json() and first.directives()


def test_what_halide_is_known_to_refuse_is_seen_before_it_is_lowered(parents):
    spec, facts, scheduled = parents[1]
    for parent in scheduled:
        assert not mutations.misplaced(parent, facts), "autoschedulers place Funcs where Halide takes them"
    parent = scheduled[1]
    label, func = next((label, f) for label, f in parent.funcs.items() if isinstance(f.compute, mutations.Level))
    nowhere = dataclasses.replace(func, compute=func.compute._replace(loop="no_such_loop"))
    assert mutations.misplaced(schedules.Schedule(parent.outputs, parent.funcs | {label: nowhere}, parent.created), facts) == {label}


def stencil(schedule=None):
    """A blur whose output `schedule(blur, out, x, y)` splits, as an hl.Pipeline."""
    x, y = hl.vars("x y")
    source, blur, out = hl.Func("source"), hl.Func("blur"), hl.Func("out")
    source[x, y] = hl.f32((x * 37 + y * 11) % 101)
    blur[x, y] = source[x, y] + source[x + 1, y] + source[x + 2, y]
    out[x, y] = blur[x, y] * hl.f32(0.3)
    out.set_estimates([(0, 200), (0, 100)])
    source.compute_root()
    if schedule:
        schedule(blur, out, x, y)
    return hl.Pipeline(out)


def in_wide_tiles(blur, out, x, y):
    xo, xi, yo, yi = hl.vars("xo xi yo yi")
    out.tile(x, y, xo, yo, xi, yi, 64, 16).reorder(xi, yi, yo, xo).vectorize(xi, 8).parallel(xo)
    blur.compute_at(out, xo).vectorize(x, 8)


def test_fitted_to_small_outputs_a_schedule_takes_them_and_is_right():
    schedule = schedules.read(stencil(in_wide_tiles))
    changed = mutations.fitted(schedule, [8, 1])
    stage = changed.funcs["out"].stages[0]
    assert [t.factor for t in stage.transforms if t.old == "x"] == [8], "the split around the vectors is gone"
    assert [t.tail for t in stage.transforms if t.old == "y"] == ["GuardWithIf"]
    assert [loop.mark for loop in stage.loops].count("parallel") == 1
    assert mutations.fitted(schedule, [64, 16]) == schedule and mutations.fitted(changed, [8, 1]) == changed
    for extents in ([8, 1], [200, 98], [9, 17]):
        pipeline = stencil()
        changed.apply(pipeline)
        np.testing.assert_array_equal(np.asarray(pipeline.realize(extents)), np.asarray(stencil().realize(extents)))
    with pytest.raises(hl.HalideError):
        stencil(in_wide_tiles).realize(hl.Buffer(hl.Float(32), [8, 1]))
