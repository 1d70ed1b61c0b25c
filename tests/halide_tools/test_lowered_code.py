"""Lowered code, run: what it stores, loads and allocates, and what can't be told."""

import halide as hl
import pytest

from features import LOWERED, LOWERED_EVENTS
from halide_tools import lowered_code, lowered_features


def count(func, *stages):
    """{stage: {kind: number}} of a scheduled pipeline; `stages` name the rows, output first."""
    counts = lowered_features.count_lowered(hl.Pipeline(func))
    assert len(counts) == len(stages)
    return {name: {kind: n for kind, n in zip(LOWERED_EVENTS, row) if n} for name, row in zip(stages, counts)}


def estimated(name, *extents, type=None):
    image = hl.ImageParam(type or hl.Float(32), len(extents), name)
    image.set_estimates([(0, extent) for extent in extents])
    return image


def test_what_a_schedule_stores_loads_and_allocates_is_counted():
    x, y, yo, yi = hl.vars("x y yo yi")
    image, f, g = estimated("counted_image", 257, 257), hl.Func("counted_f"), hl.Func("counted_g")
    f[x, y] = image[x, y] + 1
    g[x, y] = f[x, y] * f[x + 1, y + 1]
    g.set_estimates([(0, 256), (0, 256)])
    g.split(y, yo, yi, 16).vectorize(x, 8).parallel(yo)
    f.compute_at(g, yo).vectorize(x, 8, hl.TailStrategy.RoundUp)
    counts = count(g, "g", "f")
    # A strip of 16 rows needs 17 rows of 257 points, and whole vectors of them.
    assert counts["f"]["points_stored"] == 16 * 17 * 264
    assert counts["f"]["bytes_stored"] == counts["f"]["bytes_loaded"] == 4 * 16 * 17 * 264
    assert counts["f"]["iterations"] == 16 * 17 * (1 + 33)
    of_f = {kind: counts["f"].get(kind, 0) for kind in ("stack_allocations", "stack_bytes", "allocations", "bytes_allocated")}
    assert of_f["stack_allocations"] + of_f["allocations"] == 16 and of_f["stack_bytes"] + of_f["bytes_allocated"] == 16 * 17 * 264 * 4
    assert counts["g"]["points_stored"] == 256 * 256 and counts["g"]["bytes_loaded"] == 4 * 2 * 256 * 256
    assert counts["g"]["bytes_stored"] == 4 * 256 * 256 and counts["g"]["iterations"] == 16 + 16 * 16 * (1 + 32)


def test_inlined_stages_belong_to_their_callers():
    x = hl.Var("x")
    image, table = estimated("told_image", 4, 1024), estimated("told_table", 256, type=hl.UInt(8))
    f, g = hl.Func("told_f"), hl.Func("told_g")
    f[x] = image[3, x] + image[0, hl.i32(table[x % 256])]
    g[x] = f[x] + image[0, 0]
    g.set_estimates([(0, 1024)]).vectorize(x, 16)
    counts = count(g, "g", "f")
    assert not counts["f"]
    assert counts["g"]["points_stored"] == 1024
    assert counts["g"]["points_gathered_executed"] >= 1024, "the image at what the table says"
    assert counts["g"]["native_shuffles"] > 0, "a column of the image: lanes picked out of whole vectors"


def test_updates_have_counts_of_their_own():
    x = hl.Var("x")
    r = hl.RDom([(0, 100)])
    f = hl.Func("updated_f")
    f[x] = 0.0
    f[x] += hl.sin(hl.f32(x + r))
    f.set_estimates([(0, 64)])
    counts = count(f, "update", "pure")
    assert counts["pure"]["points_stored"] == 64 and "library_calls" not in counts["pure"]
    assert counts["update"]["points_stored"] == counts["update"]["library_calls"] == 6400


def of_text(*lines, **values):
    """{stage: points stored} of lowered code of `f`; None where its counts can't be told."""
    stages = [("f", 0), ("f", 1)]
    counts = lowered_features.count_text("\n".join(lines), lambda names: (values, {}), stages, 512, 2)
    return None if counts is None else dict(zip(stages, counts[:, LOWERED.index("points_stored")]))


def test_what_depends_on_a_buffer_is_not_guessed():
    code = ["external func f (n) {", "for (f.s0.x, 0, n) {", "f[f.s0.x] = 1", "}", "for (f.s1.x, 0, {}) {{", "f[f.s1.x] = 1", "}", "}"]
    assert of_text(*[line.format("3") if "s1.x, 0" in line else line for line in code], n=5) == {("f", 0): 5, ("f", 1): 3}
    assert of_text(*[line.format("b[3]") if "s1.x, 0" in line else line for line in code], n=5) is None


@pytest.mark.parametrize("line", ["f[0] = ???", "f[unheard of] = 1"])
def test_code_that_is_not_understood_costs_the_counts_alone(line):
    assert of_text("external func f (f) {", "produce f {", line, "}", "}") is None
    assert of_text("external func f (f) {", "produce f {", "f[0] = 1", "}", "}") == {("f", 0): 1, ("f", 1): 0}


def test_nested_lets_take_no_more_time_than_their_text():
    """What each names is used twice: written out, it would be 2^60 loads and sums."""
    for first in ("b[0]", "n"):  # a load, and an address
        text = f"let t0 = {first} in " + "".join(f"(let t{i} = (t{i - 1} + t{i - 1}) in " for i in range(1, 60)) + "f[t59]" + ")" * 59
        assert of_text("external func f (n) {", "produce f {", f"f[0] = {text}", "}", "}", n=3) == {("f", 0): 1, ("f", 1): 0}
    text = "let t0 = n in " + "".join(f"(let t{i} = (t{i - 1} + 1) in " for i in range(1, 400)) + "t399" + ")" * 399
    found = of_text("external func f (n) {", f"for (f.s0.x, 0, {text}) {{", "f[f.s0.x] = 1", "}", "}", n=3)
    assert found == {("f", 0): 402, ("f", 1): 0}, "however long and deep it is, what it says is known"


def test_counting_gives_up_where_it_would_take_too_long(monkeypatch):
    x, y = hl.vars("x y")
    f = hl.Func("long_f")
    f[x, y] = x + y
    f.set_estimates([(0, 64), (0, 64)])
    assert count(f, "f")["f"]["points_stored"] == 64 * 64
    monkeypatch.setattr(lowered_code, "MAX_ITERATIONS", 5)  # two rows, and two points in each: six
    assert lowered_features.count_lowered(hl.Pipeline(f)) is None


def test_bounds_are_computed_as_the_code_computes_them():
    bounds = {
        "max(let u = (a.b$1 + -1) in (let w = u/4 in w*2), int32(t)) % 5": 3,
        "select((0 < t) && !(a.b$1 == 7), 4, 9)": 9,
        "int32((1.000000f/r)*2.000000f + 0.500000f)/3": 3,  # of integers, once they are cast
        "int32((float32)ceil_f32(r*16.000000f)) + 1": 5,
    }
    values = {"a.b$1": 7, "t": 3, "r": lowered_code.NonInteger(0.2)}
    for text, number in bounds.items():
        found = of_text("external func f (t) {", f"for (f.s0.x, 0, {text}) {{", "f[f.s0.x] = 1", "}", "}", **values)
        assert found == {("f", 0): number, ("f", 1): 0}, text
