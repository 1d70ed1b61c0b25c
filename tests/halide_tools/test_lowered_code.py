"""What a schedule does, counted in its lowered code."""

import halide as hl
import numpy as np

from features import LOWERED
from halide_tools import lowered_code, lowered_features


def count(func, **stages):
    """{stage: {kind: number}} of a scheduled pipeline; `stages` name the rows, output first."""
    counts = lowered_features.count_lowered(hl.Pipeline(func))
    assert len(counts) == len(stages)
    return {name: {kind: n for kind, n in zip(LOWERED, row) if n} for name, row in zip(stages, counts)}


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
    counts = count(g, g=1, f=1)
    # A strip of 16 rows needs 17 rows of 257 points, and whole vectors of them.
    assert counts["f"]["points_stored"] == counts["f"]["points_loaded"] == 16 * 17 * 264
    assert counts["f"]["stores"] == counts["f"]["vector_loads"] == counts["f"]["vector_operations"] == 16 * 17 * 33
    assert counts["f"]["iterations"] == 16 * 17 * (1 + 33)
    of_f = {kind: counts["f"].get(kind, 0) for kind in ("stack_allocations", "stack_bytes", "allocations", "bytes_allocated")}
    assert of_f["stack_allocations"] + of_f["allocations"] == 16 and of_f["stack_bytes"] + of_f["bytes_allocated"] == 16 * 17 * 264 * 4
    assert counts["g"]["points_stored"] == 256 * 256 and counts["g"]["points_loaded"] == 2 * 256 * 256
    assert counts["g"]["bytes_stored"] == 4 * 256 * 256 and counts["g"]["iterations"] == 16 + 16 * 16 * (1 + 32)


def test_loads_are_told_apart_and_inlined_stages_belong_to_their_callers():
    x = hl.Var("x")
    image, table, f, g = (
        estimated("told_image", 4, 1024),
        estimated("told_table", 256, type=hl.UInt(8)),
        hl.Func("told_f"),
        hl.Func("told_g"),
    )
    f[x] = image[3, x] + image[0, hl.i32(table[x % 256])]
    g[x] = f[x] + image[0, 0]
    g.set_estimates([(0, 1024)]).vectorize(x, 16)
    counts = count(g, g=1, f=1)
    assert not counts["f"], "it is inlined"
    g = counts["g"]
    assert (g["points_strided"], g["points_stored"]) == (1024, 1024)
    assert g["points_gathered"] == 2 * 1024, "the table, modulo its size, and the image at what that says"
    assert g["points_cast"] >= 1024 and g["scalar_loads"] == 1024 / 16


def test_updates_have_counts_of_their_own():
    x = hl.Var("x")
    r = hl.RDom([(0, 100)])
    f = hl.Func("updated_f")
    f[x] = 0.0
    f[x] += hl.exp(hl.f32(x + r))
    f.set_estimates([(0, 64)])
    counts = count(f, update=1, pure=1)
    assert counts["pure"]["stores"] == 64 and "points_exp" not in counts["pure"]
    assert counts["update"]["stores"] == counts["update"]["points_exp"] == 6400


def test_what_depends_on_a_buffer_is_not_guessed():
    lowered = "\n".join(
        ["external func f (n) {", "for (f.s0.x, 0, n) {", "f[f.s0.x] = 1", "}", "for (f.s1.x, 0, b[3]) {", "f[f.s1.x] = 1", "}", "}"]
    )
    program, statements = lowered_code.translate(lowered)
    for text, known in ((program, False), (program.replace("lambda: variables['b'][3]", "lambda: 3"), True)):
        execution = lowered_code.Execution({"n": 5}, len(statements))
        scope = {name: getattr(execution, name) for name in ("task", "loop", "run")} | {"variables": execution.variables}
        exec(text, scope)
        execution.tasks["f"][1]()
        assert execution.all_known is known
        stored = {
            stage: n * counts["points_stored"] for ((stage, *_), counts), n in zip(statements, execution.runs) if "points_stored" in counts
        }
        assert stored == {("f", 0): 5, ("f", 1): 3 if known else 1}


def test_counting_gives_up_where_it_would_take_too_long(monkeypatch):
    x, y = hl.vars("x y")
    f = hl.Func("long_f")
    f[x, y] = x + y
    f.set_estimates([(0, 64), (0, 64)])
    assert lowered_features.count_lowered(hl.Pipeline(f))[0, LOWERED.index("stores")] == 64 * 64
    monkeypatch.setattr(lowered_code, "MAX_ITERATIONS", 5)  # two rows, and two points in each: six
    assert lowered_features.count_lowered(hl.Pipeline(f)) is None


def test_code_that_is_not_understood_costs_the_counts_alone(monkeypatch):
    x = hl.Var("x")
    f = hl.Func("strange_f")
    f[x] = x
    f.set_estimates([(0, 64)])
    monkeypatch.setattr(lowered_code, "translate", lambda lowered: ("unheard_of()", []))
    assert lowered_features.count_lowered(hl.Pipeline(f)) is None


def test_expressions_of_lowered_code():
    scope = {
        "variables": {"a.b$1": 7, "t": 3, "r": lowered_code.NonInteger(0.2)},
        "let": lambda name, value, rest: (scope["variables"].__setitem__(name, value), rest())[1],
        **lowered_code.FUNCTIONS,
    }

    def value(text):
        return eval(lowered_code.to_python(text), scope)

    assert value("max(let u = (a.b$1 + -1) in (let w = u/4 in w*2), int32(t)) % 5") == 3
    assert value("(0 < t) && !(a.b$1 == 7)") is False
    assert value("int32((1.000000f/r)*2.000000f + 0.500000f)/3") == 3  # of integers, once they are cast
    assert value("int32((float32)ceil_f32(r*16.000000f)) + 1") == 5
    assert lowered_code.to_python("(struct halide_buffer_t *)input.buffer") == "None"
    assert (
        lowered_code.lanes("ramp(ramp(x, 1, 8), x8(t), 4) + x32(2)") == 32
        and lowered_code.lanes("x*4 + 1") == 1
        and lowered_code.lanes("x + t", {"t": 4}) == 4
    )


def test_counts_are_written_in_four_digits():
    counts = np.zeros((2, len(LOWERED)))
    counts[:, LOWERED.index("stores")] = [1234567, 0]
    counts[1, LOWERED.index("iterations")] = 9999
    assert lowered_code.as_dict(counts) == {"iterations": [0, 9999], "stores": [1235000, 0]}
