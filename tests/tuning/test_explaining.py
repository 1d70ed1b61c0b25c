"""What the winner's changes are worth: which schedules are without one of them, and how they are measured."""

import dataclasses
import math

import halide as hl
import numpy as np
import pytest
import torch
from conftest import BLUR, ROOT

import train_utils
from halide_tools import mutations, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.directives import Level
from halide_tools.mutations import Edited
from halide_tools.programs import find_programs
from measuring.machine import QUICK
from tuning import explaining
from tuning.explaining import without_each_change
from tuning.pool import Pool, read_measured
from tuning.run import ADAMS2019, Clock, TuningRun

x, y, xo, yo, xi, yi, u = hl.vars("x y xo yo xi yi u")


def stencil(schedule):
    """The Schedule that `schedule(blur, out)` gives a fresh pipeline."""
    image = hl.ImageParam(hl.Float(32), 2, "image")
    blur, out = hl.Func("blur"), hl.Func("out")
    blur[x, y] = image[x, y] + image[x + 1, y]
    out[x, y] = blur[x, y] + blur[x, y + 1]
    created = schedule(blur, out)
    return schedules.read(hl.Pipeline(out)), created


def at_root(blur, out):
    blur.compute_root()


def tiled(blur, out):
    out.tile(x, y, xo, yo, xi, yi, 32, 8).vectorize(xi, 8).parallel(yo)
    blur.compute_at(out, xo).store_at(out, yo).vectorize(x, 8)


def wrapped(blur, out):
    tiled(blur, out)
    blur.in_(out).compute_at(out, xo)


def test_each_part_of_each_func_is_undone_alone():
    (winner, _), (ancestor, _) = stencil(tiled), stencil(at_root)
    found = {change.what: change.schedule for change in without_each_change(winner, ancestor)}
    assert set(found) == {"blur: its loops", "blur: where it is computed and stored", "out: its loops"}
    assert found["blur: its loops"].funcs["out"] == winner.funcs["out"]
    assert found["blur: its loops"].funcs["blur"].stages == ancestor.funcs["blur"].stages
    assert found["blur: its loops"].funcs["blur"].compute == winner.funcs["blur"].compute == Level("out", "xo")
    assert found["blur: where it is computed and stored"].funcs["blur"].compute == "root"
    # Where the loops are no more that it is computed in, it is computed where the ancestor has it.
    assert found["out: its loops"].funcs["blur"] == dataclasses.replace(winner.funcs["blur"], compute="root", store=None)
    apart = explaining.directives_apart(winner, found["blur: where it is computed and stored"])
    assert apart == {"lost": ["blur.compute_at(out xo -1)", "blur.store_at(out yo -1)"], "back": ["blur.compute_root()"]}
    assert without_each_change(winner, winner) == []


def test_a_func_that_only_one_of_them_adds_is_undone_too():
    (winner, _), (ancestor, _) = stencil(wrapped), stencil(tiled)
    (change,) = without_each_change(winner, ancestor)
    assert change.label == "blur.in_(out)" and change.schedule == ancestor
    (change,) = without_each_change(ancestor, winner)
    assert change.label == "blur.in_(out)" and change.schedule == winner


def reduction(factored):
    k = hl.RDom([(0, 64), (0, 64)], "k")
    data, total = hl.ImageParam(hl.Float(32), 2, "data"), hl.Func("total")
    total[x] = hl.f32(0)
    total[x] += data[k.x, k.y]
    if factored:
        total.update(0).rfactor(k.y, u).compute_at(total, x).vectorize(u, 8)
    return schedules.read(hl.Pipeline(total))


def test_rfactor_is_undone_together_with_the_update_that_it_changes():
    winner, ancestor = reduction(True), reduction(False)
    changes = without_each_change(winner, ancestor)
    assert ancestor in [change.schedule for change in changes]
    assert [change.label for change in changes if change.schedule == ancestor] == ["total.update(0).rfactor"]


def lowers(spec, schedule, folder):
    pipeline = spec.build()
    try:
        schedule.apply(pipeline)
        arguments, file = pipeline.infer_arguments(), str(folder / "lowered.stmt")
        pipeline.compile_to_lowered_stmt(file, arguments, hl.StmtOutputFormat.Text, spec.halide_target())
    except (hl.HalideError, ValueError, LookupError):
        return False
    return True


@pytest.mark.parametrize("name", ["mat_mul", "unsharp"])
def test_most_of_what_is_left_lowers_and_the_winner_stays_as_it_is(name, tmp_path):
    spec = find_programs(ROOT / "pipelines" / f"{name}.py")[0]
    known, rng = mutations.facts(spec.build(), spec.halide_target()), np.random.default_rng(3)
    pipeline = spec.build()
    unscheduled = schedules.read(pipeline)
    OtherAutoscheduler("Mullapudi2016").apply(pipeline, spec)
    ancestor, found = schedules.read(pipeline, unscheduled), []
    while len(found) < 12:
        winner = ancestor
        for _ in range(3):
            winner = mutations.mutate(winner, known, rng)[0]
        if not lowers(spec, winner, tmp_path):
            continue
        before = winner.to_json()
        for change in without_each_change(winner, ancestor):
            assert change.schedule != winner and change.label in {*winner.funcs, *ancestor.funcs}
            found.append(lowers(spec, change.schedule, tmp_path))
        assert winner.to_json() == before
    assert sum(found) > 0.7 * len(found), found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(TuningRun, Pool, key of a schedule made of Adams2019's own choice, with its vectors taken away and its loops in another order)."""
    folder = tmp_path_factory.mktemp("changed")
    (folder / "blur.py").write_text(BLUR)
    run = TuningRun(find_programs(folder / "blur.py")[0], folder / "measurements", 60, QUICK)
    run.measure([ADAMS2019])
    device = torch.device("cpu")
    pool = Pool(run, *train_utils.load_model(train_utils.SHIPPED_MODEL, device), device)
    made_of = schedules.Schedule.from_json(run.outcomes[ADAMS2019]["schedule"])
    funcs = {
        label: dataclasses.replace(
            func, compute="root", store=None,
            stages=tuple(dataclasses.replace(s, loops=tuple(loop._replace(mark="serial") for loop in s.loops)) for s in func.stages),
        )
        for label, func in made_of.funcs.items() if label in ("blur", "out")
    }  # fmt: skip
    key = run.key(Edited(dataclasses.replace(made_of, funcs=made_of.funcs | funcs).to_json(), ADAMS2019, ("unroll",)))
    run.measure([key])
    pool.add([found for k in run.measured() for found in read_measured(run, k)])
    yield run, pool, key
    run.end()


@pytest.fixture
def changed(tuned):
    tuned[0].set_deadline(math.inf)  # whatever another test has left
    return tuned


def test_changes_are_undone_and_measured_beside_the_winner(changed):
    run, pool, key = changed
    before = {k: dict(c) for k, c in run.outcomes.items()}
    explained = explaining.explain(run, pool, key, Clock(0.0), lambda line: None)
    undone = explained["undone"]
    assert explained["left_out"] == [] and undone["how"] == "measured" and undone["ancestor"] == ADAMS2019
    assert undone["not_tried"] == 0 and not undone["refused"]
    assert undone["changes"] and all(0 < line["ms"] < math.inf for line in undone["changes"])
    assert all(line["slower"] == pytest.approx(line["ms"] / undone["winner_ms"] - 1) for line in undone["changes"])
    assert [line["ms"] for line in undone["changes"]] == sorted((line["ms"] for line in undone["changes"]), reverse=True)
    new = [k for k in run.outcomes if k not in before and k.isdecimal()]
    assert new and {k: run.outcomes[k] for k in before} == before, "what was measured stays as it was"
    assert run.searches["undone"] == [k for k in new if k in run.measured()] and set(run.searches) == {"undone"}
    assert all(run.outcomes[k]["edit_of"] == key and run.outcomes[k]["kinds"] == ("undone",) for k in new)
    outcomes = {k: dict(c) for k, c in run.outcomes.items()}
    again = explaining.undone_changes(run, pool, key, [], lambda line: None)
    assert [line["what"] for line in again["changes"]] and again["winner_ms"] != undone["winner_ms"], "all are measured anew, interleaved"
    assert not {line["ms"] for line in again["changes"]} & {line["ms"] for line in undone["changes"]}
    assert {k: c for k, c in run.outcomes.items() if k.isdecimal()} == {k: c for k, c in outcomes.items() if k.isdecimal()}
    assert [step["key"] for step in explained["history"]] == [ADAMS2019, key]
    assert set(explained["loop_nests"]) == set(explained["profile"]) == {ADAMS2019, key}
    assert "vectorized" in explained["loop_nests"][ADAMS2019] and "vectorized" not in explained["loop_nests"][key]
    assert {"blur", "out"} <= set(explained["profile"][key]) and set(explained["predicted_ms"]) == {"blur", "out"}


def test_without_time_everything_is_left_out_and_said(changed):
    run, pool, key = changed
    explained = explaining.explain(run, pool, key, Clock(0.0, 0.0), lambda line: None)
    assert explained["undone"] is None and not explained["profile"] and not explained["loop_nests"]
    assert len(explained["left_out"]) == 3 and all("no time" in line for line in explained["left_out"])


def test_where_nothing_can_be_measured_any_more_the_model_predicts(changed, monkeypatch):
    run, pool, key = changed
    late, before = iter([False, True]), {"searches": dict(run.searches), "candidates": dict(run.outcomes)}
    monkeypatch.setattr(run, "is_late", lambda: next(late))
    undone = explaining.undone_changes(run, pool, key, [], lambda line: None)
    assert undone["how"] == "predicted" and undone["winner_ms"] == pytest.approx(math.exp(pool.log_predicted[pool.keys.index(key)]))
    assert undone["changes"] and before == {"searches": run.searches, "candidates": run.outcomes}, "nothing is measured"


def test_a_change_that_cannot_be_undone_alone_is_named_with_the_reason(changed):
    run, _, key = changed
    winner = schedules.Schedule.from_json(run.outcomes[key]["schedule"])
    blur = dataclasses.replace(winner.funcs["blur"], compute=Level("out", "nowhere"))
    change = explaining.Undone("blur", "blur: its place", dataclasses.replace(winner, funcs=winner.funcs | {"blur": blur}))
    ms, winner_ms, refused = explaining.measure_losses(run, key, [change])
    assert not ms and winner_ms > 0
    assert len(refused) == 1 and refused[0].startswith("blur: its place: can't be undone alone (halide_error") and "nowhere" in refused[0]


def test_a_schedule_that_was_not_changed_has_nothing_to_undo(changed):
    run, pool, _ = changed
    assert explaining.undone_changes(run, pool, ADAMS2019, [], print) is None
    assert isinstance(run.proposals[ADAMS2019], Proposal) and len(explaining.history(run, ADAMS2019)) == 1
