"""Points counted in lowered code."""

import sys

import halide as hl
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import lowered  # noqa: E402


def test_what_a_schedule_stores_is_counted_in_its_lowered_code():
    x, y, yo, yi = hl.vars("x y yo yi")
    image, f, g = hl.ImageParam(hl.Float(32), 2, "image"), hl.Func("counted_f"), hl.Func("counted_g")
    f[x, y] = image[x, y] + 1
    g[x, y] = f[x, y] + f[x + 1, y + 1]
    image.set_estimates([(0, 257), (0, 257)])
    g.set_estimates([(0, 256), (0, 256)])
    g.split(y, yo, yi, 16).vectorize(x, 8).parallel(yo)
    f.compute_at(g, yo).vectorize(x, 8, hl.TailStrategy.RoundUp)
    points, unknown = lowered.stored_points(hl.Pipeline(g))
    # A strip of 16 rows needs 17 rows of 257 points, and whole vectors of them.
    assert {name.split("$")[0]: n for name, n in points.items()} == {"counted_f": 16 * 17 * 264, "counted_g": 256 * 256} and not unknown


def test_expressions_of_lowered_code():
    scope = {"v": {"a.b$1": 7, "t": 3}, "let": lambda name, value, rest: (scope["v"].__setitem__(name, value), rest())[1]}
    assert eval(lowered.python("max(let u = (a.b$1 + -1) in (let w = u/4 in w*2), int32(t)) % 5"), scope) == 3
    assert eval(lowered.python("(0 < t) && !(a.b$1 == 7)"), scope) is False
    assert lowered.python("(struct halide_buffer_t *)input.buffer") == "None"
    assert lowered.lanes("ramp(ramp(x, 1, 8), x8(t), 4) + x32(2)") == 32 and lowered.lanes("x*4 + 1") == 1
