"""Wrong outputs are called wrong, right ones right; which points may differ is read in the program."""

import sys

import halide as hl
import numpy as np
import pytest
from conftest import ROOT

from halide_tools.comparison import Comparison, comparisons, mismatch, type_of, uses_of_floats

sys.path.insert(0, str(ROOT / "benchmarks"))
import wrong_outputs

ROUNDED = Comparison("float32", is_rounded=True)


@pytest.mark.parametrize("type", wrong_outputs.TYPES)
def test_fifty_ways_to_be_wrong_are_called_wrong(type):
    rng = np.random.default_rng(1)
    right = wrong_outputs.right_output(type, rng)
    assert len(wrong_outputs.ways()) == 50
    for decides in ((False, False), (True, False), (True, True)):
        how = [Comparison(type if "float" in type else "float32", *decides)]
        assert mismatch([right.copy()], [right], how) == ""
        for way, breaks in wrong_outputs.ways().items():
            broken = np.ascontiguousarray(breaks(right, type, rng))
            assert mismatch([broken], [right], how), (way, type, decides)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.full((8, 8), 2**64 - 1, np.uint64), np.zeros((8, 8), np.uint64)),
        (np.full((8, 8), 2**63, np.uint64), np.full((8, 8), 2**63 - 1, np.uint64)),
        (np.full(9, -(2**63), np.int64), np.full(9, 2**63 - 1, np.int64)),
        (np.full((8, 8), np.nan, np.float32), np.full((8, 8), np.inf, np.float32)),
        (np.full((8, 8), np.inf, np.float32), np.full((8, 8), -np.inf, np.float32)),
        (np.zeros((8, 8), np.float32), np.full((8, 8), np.nan, np.float32)),
        (np.r_[np.zeros(999_999), 1e6].astype(np.float32), np.zeros(1_000_000, np.float32)),
        (np.full(5000, 0.5, np.float32), np.r_[np.full(4999, 0.5), np.nan].astype(np.float32)),
        (np.full(5000, 0.5, np.float32), np.r_[np.inf, np.full(4999, 0.5)].astype(np.float32)),
        (np.array(5, np.int32), np.array(7, np.int32)),
    ],
)
def test_nothing_wraps_or_is_absorbed(got, want):
    for how in (None, [ROUNDED]):
        text = mismatch([got], [want], how)
        assert text and "nan %" not in text
        assert mismatch([got], [got], how) == "" and mismatch([want], [want], how) == ""


def test_floats_are_near_at_their_local_scale():
    values = np.ones((64, 64), np.float32)
    values[:32] = 1e-3  # a dark half, where the mean magnitude would let anything pass
    off = values.copy()
    off[:20] += np.float32(1e-4)
    assert "differs" in mismatch([off], [values])
    assert mismatch([np.ones(9)], [np.full(9, 1 + 1e-7)]), "doubles are not held to what floats are"
    assert mismatch([values * np.float32(1 + 1e-5)], [values]) == ""
    around_zero = np.sin(np.arange(4096, dtype=np.float32) / 50).reshape(64, 64)
    assert mismatch([around_zero + np.float32(3e-7)], [around_zero]) == "", "a sum that cancels is as exact as what cancels"


def test_a_last_bit_may_decide_at_few_scattered_points():
    rng = np.random.default_rng(0)
    right = rng.integers(10, 200, (200, 300)).astype(np.uint8)
    few = rng.random(right.shape) < 3e-4
    step, flip = right + few.astype(np.uint8), np.where(few, 210 - right, right).astype(np.uint8)
    assert mismatch([step], [right], [ROUNDED]) == "" and mismatch([flip], [right], [ROUNDED]) == ""
    assert mismatch([step], [right]) and mismatch([step], [right], [Comparison()]), "never where nothing is rounded"
    many = right + (rng.random(right.shape) < 0.02).astype(np.uint8)
    row = right.copy()
    row[77, 100:108] += 1
    for wrong in (many, row):
        assert mismatch([wrong], [right], [ROUNDED])
    spot = right.astype(np.float32)
    spot[[80, 80, 81, 82, 82, 83], [40, 42, 41, 40, 42, 41]] += 9
    assert mismatch([spot], [right.astype(np.float32)], [ROUNDED])
    assert mismatch([spot], [right.astype(np.float32)], [Comparison("float32", True, True)]) == "", "what stencils make of one decision"
    mask = (right > 100).astype(np.uint8)
    assert mismatch([np.where(few, 1 - mask, mask).astype(np.uint8)], [mask], [ROUNDED]) == ""
    assert mismatch([1 - mask], [mask], [ROUNDED]) and mismatch([mask + 1], [mask], [ROUNDED])


def test_the_size_and_place_of_a_difference_are_said_and_what_may_cause_it():
    want = np.zeros((10, 20), np.int32)
    got = want.copy()
    got[3, 4:7] = [1, 9, 1]
    text = mismatch([want, got], [want, want], [Comparison(), Comparison("float32", doubt="it divides floats")])
    assert "output 1" in text and "1.50%" in text and "(5, 3)" in text and "9, not 0" in text and "(4, 3) to (6, 3)" in text
    assert "depend on its schedule: it divides floats" in text


def test_what_may_differ_is_read_in_the_definitions():
    x, y = hl.vars("x y")
    image, bytes_ = hl.ImageParam(hl.Float(32), 2, "decides"), hl.ImageParam(hl.UInt(8), 2, "decides_bytes")
    gain = hl.Param(hl.Float(32), "decides_gain")
    r, squared = hl.RDom([(0, 3)], "r"), image[x, y] * image[x, y]
    cases = {
        "exact": (hl.u16(bytes_[x, y]) / 3 + hl.select(bytes_[x, y] > 7, hl.u16(1), hl.u16(x)), "", False, ""),
        "near": (image[x, y] * gain + image[x + 1, y], "float32", False, ""),
        "cast": (hl.u8(image[x, y] * hl.f32(255.0)), "float32", True, "casts"),
        "cast of a scalar": (hl.i32(gain) + hl.i32(bytes_[x, y]), "", True, "casts"),
        "let": (hl.u8(squared * hl.f32(255)) + hl.u8(squared), "float32", True, "casts"),
        "floor": (hl.floor(image[x, y] * hl.f32(4)), "float32", True, ""),
        "compare": (hl.select(image[x, y] > image[x + 1, y] * hl.f32(2), hl.f32(1), image[x, y]), "float32", True, ""),
        "divide": (image[x, y] / (image[x + 1, y] - hl.f32(1)), "float32", False, "divides"),
        "integer division": (hl.f32(bytes_[x, y] / (bytes_[x + 1, y] | hl.u8(1))), "float32", False, ""),
        "saturating": (hl.u8_sat(image[x, y]), "float32", True, "casts"),
        "double": (hl.f64(bytes_[x, y]) * hl.f64(2), "float64", False, ""),
        "sum": (hl.sum(image[x + r, y]), "float32", False, "sums"),
        "indexed by a float": (image[hl.clamp(hl.i32(image[x, y]), 0, 9), y], "float32", True, "casts"),
    }  # fmt: skip
    for name, (value, float_type, is_rounded, doubt) in cases.items():
        f = hl.Func("decides_f")
        f[x, y] = value
        g = hl.Func("decides_g")
        g[x, y] = f[x, y] + f[x + 1, y]  # it is upstream
        (found,) = comparisons(hl.Pipeline(g))
        assert (found.float_type, found.is_rounded) == (float_type, is_rounded) or name == "cast of a scalar" and found.is_rounded, (
            name,
            found,
        )
        assert doubt in found.doubt and (doubt or not found.doubt), (name, found)


def test_types_in_the_text_of_definitions():
    for text, type in (
        ("((float32)f(x, y)*2.000000f)", "float32"), ("uint8((float32)f(x))", "uint8"), ("x + 1", "int32"), ("popcount(x)", "int32"),
        ("select((x < 3), (uint16)g(x), (uint16)3)", "uint16"), ("max(min(t0, 1), 0)", "float64"), ("sqrt_f32(x)", "float32"),
        ("2.000000f*x", "float32"),
    ):  # fmt: skip
        assert type_of(text, {"t0": "float64"}) == type, text
    assert uses_of_floats("(let t0 = (float32)f(x) in uint8(t0*255.000000f))", {}) == {"cast"}
    assert uses_of_floats("(x + int32((uint8)f(x/2)))", {}) == set()
