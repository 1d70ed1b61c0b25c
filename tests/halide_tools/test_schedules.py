"""Schedules as data: read, compared, stored, printed and applied again, whoever wrote them."""

import multiprocessing
import re
import subprocess
import sys

import halide as hl
import pytest
from conftest import ROOT

from halide_tools import schedule_source, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.directives import labels_of
from halide_tools.programs import HOST, find_programs
from halide_tools.schedules import Schedule
from pipelines import random_programs

x, y = hl.vars("x y")
xo, xi, yo, yi, tile, u = hl.vars("xo xi yo yi tile u")
ro, ri = hl.RVar("ro"), hl.RVar("ri")


class Parts:
    """A pipeline with updates, unnamed Funcs and Vars, equal names, and reductions."""

    def __init__(self, one_update_more=False):
        self.image = hl.ImageParam(hl.Float(32), 2, "image")
        self.a, self.b, self.sums, self.columns, self.output = (hl.Func(n) for n in ("stage", "stage", "sums", "columns", "output"))
        self.left, self.right = hl.Func("left"), hl.Func("right")
        self.unnamed, v = hl.Func(), hl.Var()
        self.r, self.w = hl.RDom([(0, 64), (0, 16)]), hl.RDom([(0, 3)], "w")
        self.a[x, y] = self.image[x, y] * 2.0
        self.b[x, y] = self.a[x, y] + 1.0
        self.unnamed[v] = hl.f32(v)
        self.sums[x, y] = self.unnamed[x]
        self.sums[x, y] += self.b[x + self.r.x, y + self.r.y] * self.a[x, y]
        self.sums[x, y] += self.a[x + self.w, y]
        self.columns[x] = 0.0
        for _ in range(1 + one_update_more):
            self.columns[self.r.x] += hl.f32(self.r.y)
        self.left[x, y], self.right[x, y] = self.image[x, y] * x, self.image[x, y] + y
        self.output[x, y] = self.a[x, y] + self.sums[x, y] + self.columns[x % 64] + self.left[x, y] * self.right[x, y]
        self.output.set_estimates([(0, 256), (0, 256)])
        self.pipeline = hl.Pipeline(self.output)


def tiles(p):
    p.output.tile(x, y, xo, yo, xi, yi, 32, 8).fuse(xo, yo, tile).parallel(tile).vectorize(xi, 8).bound(x, 0, 256).align_bounds(y, 8)
    p.sums.compute_at(p.output, tile).update(0).split(p.r.x, ro, ri, 8).reorder(ri, p.r.y, ro, x, y).unroll(ri).vectorize(x, 8)
    p.sums.update(1).unroll(p.w)
    p.b.compute_at(p.sums, y).store_at(p.output, tile).fold_storage(y, 32).align_storage(x, 8)
    p.a.compute_root().store_in(hl.MemoryType.Heap).reorder_storage(y, x).reorder(y, x).vectorize(y, 8).parallel(x)
    p.unnamed.compute_root()


def wrappers(p):
    p.a.clone_in(p.b).compute_at(p.b, x)
    p.a.in_([p.sums, p.output]).compute_root().vectorize(x, 4)
    for func in (p.a, p.b, p.sums):
        func.compute_root()
    wrapper = p.b.in_()
    wrapper.compute_at(p.sums, y)
    wrapper.in_().compute_at(p.sums, x)
    staged = p.image.in_()
    staged.compute_root().vectorize(staged.args()[0], 8)
    p.columns.compute_root().update().atomic().parallel(p.r.x)


def odd_directives(p):
    p.a.compute_root().async_()
    for func in (p.b, p.sums):
        func.compute_root()
    p.columns.compute_at(p.output, hl.Var.outermost())
    p.output.split(x, xo, xi, 64).rename(xi, tile).partition(xo, hl.Partition.Never).prefetch(p.a, y, y, 2)
    p.columns.update().allow_race_conditions().reorder(p.r.y, p.r.x).vectorize(p.r.x)
    p.unnamed.compute_root().bound_extent(p.unnamed.args()[0], 512).bound_storage(p.unnamed.args()[0], 512)


def fused(p):
    p.sums.compute_at(p.output, y).hoist_storage_root()
    p.b.compute_root()
    p.a.compute_root()
    p.unnamed.compute_root()
    p.columns.compute_root()
    p.left.compute_root().vectorize(x, 8)
    p.right.compute_root().vectorize(x, 8).compute_with(hl.LoopLevel(p.left, y, 0), [(y, hl.LoopAlignStrategy.AlignStart)])


def with_rfactor(p):
    p.sums.update(0).rfactor(p.r.y, u).compute_at(p.sums, y).vectorize(x, 8).update().vectorize(x, 8)


def rfactored(p):
    for func in (p.a, p.b, p.sums, p.columns):
        func.compute_root()
    with_rfactor(p)


BY_HAND = (tiles, wrappers, odd_directives, fused, rfactored)


def scheduled_by_hand(author):
    parts = Parts()
    author(parts)
    return parts.pipeline


def lowered(pipeline, folder):
    """Its text, without the names that authors give loops (the last one of several that are renamed)."""
    path = folder / "lowered.stmt"
    pipeline.compile_to_lowered_stmt(str(path), pipeline.infer_arguments(), hl.StmtOutputFormat.Text, hl.get_host_target())
    numbers = {}
    return re.sub(r"[A-Za-z_$.][\w$.]*(?!\w*\()", lambda match: numbers.setdefault(match[0], f"n{len(numbers)}"), path.read_text())


def in_fork(function, *arguments):
    """What `function` returns, in a process in which Halide has given the names that it has given here, and no others."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


@pytest.mark.parametrize("author", BY_HAND, ids=lambda f: f.__name__)
def test_a_schedule_by_hand_lowers_to_the_same_code_from_its_data(author, tmp_path):
    text = schedules.read(scheduled_by_hand(author)).to_json()

    def again():
        pipeline = Parts().pipeline
        Schedule.from_json(text).apply(pipeline)
        return lowered(pipeline, tmp_path)

    assert in_fork(again) == in_fork(lambda: lowered(scheduled_by_hand(author), tmp_path))


@pytest.mark.parametrize("author", BY_HAND, ids=lambda f: f.__name__)
def test_what_is_read_applied_printed_or_stored_stays_equal(author, tmp_path):
    schedule = schedules.read(scheduled_by_hand(author))
    others = [Schedule.from_json(schedule.to_json())]
    module = {}
    exec(schedule.to_python_module(), module)
    for apply in (schedule.apply, module["apply"]):
        pipeline = Parts().pipeline
        apply(pipeline)
        others.append(schedules.read(pipeline))
    for other in others:
        assert other == schedule and hash(other) == hash(schedule) and other.fingerprint() == schedule.fingerprint()
    assert schedule != schedules.read(Parts().pipeline)
    assert len({schedules.read(scheduled_by_hand(a)).fingerprint() for a in BY_HAND}) == len(BY_HAND)


def test_equal_schedules_are_equal_however_they_were_written():
    def one(p):
        p.output.split(x, xo, xi, 32).split(y, yo, yi, 8).reorder(xi, yi, xo, yo).vectorize(xi).parallel(yo)
        p.a.compute_at(p.output, xo).store_at(p.output, yo)

    def other(p):
        p.output.split(y, y, tile, 8, hl.TailStrategy.ShiftInwards).parallel(y).split(x, u, xi, 32).reorder(xi, u, tile, y).reorder(tile, u)
        p.a.store_at(p.output, y).compute_at(p.output, u).store_in(hl.MemoryType.Auto)
        p.output.rename(xi, xo).vectorize(xo).compute_root()

    def changed(p):
        one(p)
        p.a.store_at(p.output, xo)

    first, second, third = (schedules.read(scheduled_by_hand(author)) for author in (one, other, changed))
    assert first == second and first.fingerprint() == second.fingerprint() and len({first, second, third}) == 2
    assert first != third


def test_labels_are_the_same_at_each_build_though_names_are_not():
    names = ["f$9", "f$10", "lambda_3", "lambda_12", "out$4", "sum_x", "f7", "conv1$2", "conv2$2"]
    later = ["f$11", "f$12", "lambda_13", "lambda_14", "out$5", "sum_x$1", "f13", "conv1$3", "conv2$3"]
    assert labels_of(names)["f$9"] < labels_of(names)["f$10"]
    assert labels_of(names)["lambda_3"] < labels_of(names)["lambda_12"]
    assert labels_of(["out$4"]) == {"out$4": "out"} and labels_of(["f7", "g"]) == {"f7": "f", "g": "g"}
    without = [n for n in names if n != "f7"], [n for n in later if n != "f13"]
    assert list(labels_of(without[0]).values()) != [] and dict(zip(*without)) == {
        a: b for a in without[0] for b in without[1] if labels_of(without[0])[a] == labels_of(without[1])[b]
    }


def test_a_schedule_is_read_the_same_at_every_build():
    found = [schedules.read(scheduled_by_hand(author)) for _ in range(120) for author in (rfactored, wrappers)]
    assert set(found) == set(found[:2]) and len(set(found)) == 2 and all(schedule.created for schedule in found)


def test_what_cannot_be_kept_names_the_directive():
    scalar = hl.Param(hl.Int(32), "scalar", 4)
    cases = {
        "specialize": lambda p: p.output.specialize(p.image.dim(0).extent() == 8).vectorize(x, 8),
        "split": lambda p: p.output.split(x, xo, xi, scalar),
        "bound": lambda p: p.output.bound(x, 0, scalar),
        "gpu_threads": lambda p: p.output.gpu_tile(x, y, xo, yo, xi, yi, 8, 8),
        "eviction key": lambda p: p.a.compute_root().memoize(hl.EvictionKey(scalar)),
        "rfactor": lambda p: p.sums.update(0).split(p.r.x, ro, ri, 8).rfactor(ro, u).compute_root(),
    }
    for directive, author in cases.items():
        pipeline = scheduled_by_hand(author)
        with pytest.raises(ValueError, match=directive):
            print(directive, schedules.read(pipeline))


def test_a_schedule_of_another_pipeline_is_refused(blur, tmp_path):
    schedule = schedules.read(scheduled_by_hand(tiles))
    module = {}
    exec(schedule.to_python_module(), module)
    for apply in (schedule.apply, module["apply"]):
        with pytest.raises(ValueError, match=r"of another pipeline.* \d+ Funcs, this one 3"):
            apply(blur.build())
    with pytest.raises(ValueError, match="columns differs"):
        schedule.apply(Parts(one_update_more=True).pipeline)
    for text in ("{}", "[]", '{"outputs": ["a"], "funcs": {"a": {"args": []}}}', "nonsense"):
        with pytest.raises(ValueError):
            Schedule.from_json(text)
    with pytest.raises(ValueError, match="no loop 'nowhere'"):
        Schedule.from_json(schedule.to_json().replace('"split","r_x"', '"split","nowhere"')).directives()


AUTOSCHEDULERS = (Proposal.draw(1, 0), Proposal.draw(1, 3), OtherAutoscheduler("Mullapudi2016"), OtherAutoscheduler("Li2018"))


def builders():
    for name in ("mat_mul", "hist_equalize"):
        yield find_programs(ROOT / "pipelines" / f"{name}.py")[0].build
    for seed in (0, 2):  # with boundary conditions and unnamed Funcs
        yield lambda seed=seed: random_programs.build(seed, max_stages=10)[0]
    yield sum_of_many


def sum_of_many():
    """Li2018 splits this reduction before rfactor."""
    image, output, r = hl.ImageParam(hl.Float(32), 1, "image"), hl.Func("output"), hl.RDom([(0, 100000)], "r")
    output[()] = 0.0
    output[()] += image[r] * image[r]
    image.set_estimates([(0, 100000)])
    output.set_estimates([])
    return hl.Pipeline(output)


@pytest.mark.parametrize("proposal", AUTOSCHEDULERS, ids=lambda p: p.autoscheduler)
def test_autoschedulers_say_in_their_text_what_is_read_from_the_pipeline(proposal):
    found = 0
    for build in builders():
        pipeline = build()
        unscheduled = schedules.read(pipeline)
        try:
            source = proposal.apply(pipeline, HOST)[1]
        except hl.HalideError:
            continue
        told = schedule_source.read_source(source, build(), unscheduled)
        schedule = schedules.read(pipeline, unscheduled, told.created)
        assert told == schedule and told.fingerprint() == schedule.fingerprint()
        fresh = build()
        schedule.apply(fresh)
        assert schedules.read(fresh, created=schedule.created) == schedule
        created = schedule.created
        found += 1
    assert found == 5
    if proposal.autoscheduler == "Li2018":  # of sum_of_many
        assert created[0].method == "rfactor" and created[0].transforms and created[0].preserved


def test_text_of_another_pipeline_or_of_nobody_is_refused(blur):
    pipeline = find_programs(ROOT / "pipelines" / "mat_mul.py")[0].build()
    source = Proposal.draw(0, 0).apply(pipeline, HOST)[1]
    with pytest.raises(ValueError, match="another pipeline"):
        schedule_source.read_source(source, blur.build())
    for statement in ("system(1);", "out.no_such_method();", "Var x(nowhere.get_schedule().dims()[0].var);", "out.split(x, 8);"):
        with pytest.raises(ValueError, match="not a statement"):
            schedule_source.read_source(f"Func out = pipeline.get_func(2);\nout.compute_root();\n{statement}", blur.build())
    signature = "inline void apply_schedule_x(::Halide::Pipeline pipeline, ::Halide::Target target)"
    header = f"#include <vector>\n{signature} {{\nusing namespace Halide;\n{source}}}\n"
    fresh = find_programs(ROOT / "pipelines" / "mat_mul.py")[0].build
    assert schedule_source.read_source(header, fresh()) == schedule_source.read_source(source, fresh())


def test_a_printed_module_needs_the_halide_package_alone(tmp_path):
    (tmp_path / "best_schedule.py").write_text(schedules.read(scheduled_by_hand(tiles)).to_python_module())
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import best_schedule; print(best_schedule.apply)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "function apply" in done.stdout, done.stderr
