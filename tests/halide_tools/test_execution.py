"""Buffers as pipelines demand them, compiled programs, and the smallest outputs that they can be called with."""

import dataclasses
import os

import halide as hl
import numpy as np
import pytest

from halide_tools import execution
from halide_tools.autoschedulers import Proposal
from halide_tools.buffers import STEPS, Region, allocate, draw, estimated_arguments, fill, meet
from halide_tools.comparison import mismatch
from halide_tools.execution import Program, compare_sizes, minimum_extents
from halide_tools.programs import HOST, schedule_everything_at_root
from measuring import machine

x, y, c = hl.vars("x y c")


def regions(func, spec=HOST):
    """{name: Region} of what a compiled Func takes."""
    inputs, outputs = Program(hl.Pipeline(func), spec).regions(0)
    return {r.name.split("$")[0]: r for r in [*inputs, *outputs] if isinstance(r, Region)}


def test_a_compiled_schedule_computes_what_the_reference_does(blur):
    scheduled, reference = blur.build(), blur.build()
    Proposal.draw(1, 2).apply(scheduled, blur)
    schedule_everything_at_root(reference)
    program = Program(scheduled, blur)
    results, right = program.results_of_two_runs(3), Program(reference, blur, is_reference=True).results_of_two_runs(3)
    assert mismatch(results, right, program.comparisons) == ""
    assert "100.00%" in mismatch([results[0] + 1, results[1]], right, program.comparisons)
    one_pass = execution.benchmark(program, 0)
    assert len(one_pass.batch_ms) >= 1 and 0 < one_pass.ms < 1000
    assert sum(one_pass.batch_ms) * one_pass.batch >= 1000 * (execution.PASS_SECONDS - execution.BATCH_SECONDS)


REPORTS = """
f_1
 total time: 8.000000 ms  samples: 7  runs: 2  time per run: 4.000000 ms
 average threads used: 1.900000
 heap allocations: 64  peak heap usage: 196608 bytes
    halide_malloc:                             0.500ms ( 6.2%)   threads: 0.000
    waiting for parallel tasks to finish:      1.000ms (12.5%)   threads: 0.629
    f$1:                                       2.500ms (31.2%)   threads: 2.000  stack: 32
    g_in_f$1$0:                                4.000ms (50.0%)   peak: 196608   num: 64        avg: 98304
f_1
 total time: 4.000000 ms  samples: 3  runs: 2  time per run: 2.000000 ms
    f$1:                                       4.000ms (100.0%)
"""


def test_reports_of_the_profiler_are_averaged_over_the_calls():
    assert execution.read_profile(REPORTS) == {
        "halide_malloc": 0.125, "waiting for parallel tasks to finish": 0.25, "f$1": 1.625, "g_in_f$1$0": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="profiler"):
        execution.read_profile("nothing of it")


def test_the_profiler_tells_where_the_time_goes_and_prints_nothing(capfd):
    cheap, dear = hl.Func("cheap"), hl.Func("dear")
    cheap[x, y] = hl.f32(x + y)
    value = cheap[x, y]
    for _ in range(20):
        value = hl.sin(value) + hl.exp(value) * hl.f32(0.1)
    dear[x, y] = value
    cheap.compute_root()
    dear.set_estimates([(0, 256), (0, 256)])
    capfd.readouterr()
    found = execution.profile(hl.Pipeline(dear), HOST, 0.5)
    names = {name.split("$")[0]: ms for name, ms in found.items()}
    assert {"cheap", "dear"} <= set(names) and names["dear"] > names["cheap"] >= 0
    assert execution.printed(lambda: os.system("echo from elsewhere")) == "from elsewhere\n"
    print("and this is seen again")
    assert capfd.readouterr() == ("and this is seen again\n", "")


def test_buffers_begin_at_distances_drawn_anew():
    program = Program(machine.calibration_pipelines()["memory"])

    def distance():
        program.allocate(0)
        return program.outputs[0].array.ctypes.data - np.array(program.arguments[0], copy=False).ctypes.data

    assert len({distance() for _ in range(5)}) >= 4  # of some thousand


@pytest.mark.parametrize("type", ["float32", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "uint64", "bool"])
def test_inputs_are_random_to_their_last_point_and_the_same_again(type):
    region = Region("input", type, ((0, 1000), (-3, 200)))  # three times as many points as are drawn

    def filled(seed):
        allocation = allocate(region)
        fill(allocation, draw(type, np.random.default_rng(seed))[0])
        assert [allocation.buffer.dim(i).min() for i in range(2)] == [0, -3]
        assert str(allocation.buffer.type()) == type
        return allocation.contents()

    found = filled(1)
    assert found.shape == (200, 1000) and np.array_equal(found, filled(1)) and not np.array_equal(found, filled(2))
    assert len(np.unique(found, axis=0)) == 200 and (found != 0).any(axis=1).all()
    if found.dtype.kind == "i":
        assert 0.4 < (found < 0).mean() < 0.6, "signed numbers of both signs"


@pytest.mark.parametrize("larger", [((-7, 60), (0, 33), (0, 3)), ((0, 40), (-9, 300), (-1, 5))])
def test_contents_depend_on_coordinates_alone(larger):
    base, found = ((0, 40), (0, 33), (0, 3)), []
    for bounds, strides in ((base, None), (larger, None), (base, (3, 130, 1))):
        allocation = allocate(Region("i", "int32", bounds, strides))
        fill(allocation, draw("int32", np.random.default_rng(5))[0])
        at = tuple(slice(low - first, low - first + n) for (low, n), (first, _) in zip(base, bounds))
        found.append(allocation.array[at])
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    drawn = draw("int32", np.random.default_rng(5))[0]
    assert found[0][5, 7, 2] == drawn[(5 + 7 * STEPS[1] + 2 * STEPS[2]) % len(drawn)]


def test_interleaved_pictures_and_padded_rows_get_their_strides():
    image = hl.ImageParam(hl.UInt(8), 3, "strided_image")
    image.dim(0).set_stride(3)
    image.dim(2).set_stride(1).set_bounds(0, 3)
    image.dim(1).set_stride((image.dim(0).extent() * 3 + 63) / 64 * 64)
    f = hl.Func("strided_f")
    f[x, y, c] = image[x + 1, y, c] + image[x, y + 2, c]
    f.output_buffer().dim(0).set_stride(3)
    f.output_buffer().dim(2).set_stride(1).set_bounds(0, 3)
    f.set_estimates([(0, 100), (5, 50), (0, 3)])
    found = regions(f)
    assert found["strided_image"].bounds == ((0, 101), (5, 52), (0, 3)) and found["strided_image"].strides == (3, 320, 1)
    assert found["strided_f"].strides == (3, 300, 1)
    program = Program(hl.Pipeline(f))
    first, _ = program.results_of_two_runs(0)
    image_then = np.array(program.arguments[0])
    assert first.shape == (3, 50, 100)
    assert np.array_equal(first, image_then[:, :50, 1:] + image_then[:, 2:, :100])


def test_a_row_pitch_that_depends_on_itself_is_found():
    image = hl.ImageParam(hl.UInt(8), 2, "pitched")
    image.dim(1).set_stride(image.dim(1).stride() / 16 * 16)
    image.set_host_alignment(4096)
    f = hl.Func("pitched_f")
    f[x, y] = image[x, y]
    f.set_estimates([(0, 100), (0, 10)])
    program = Program(hl.Pipeline(f))
    results = program.results_of_two_runs(0)  # Halide checks strides and alignment
    assert program.regions(0)[0][0].strides == (1, 128) and program.alignments == {"pitched": 4096}
    assert np.array_equal(results[0], np.array(program.arguments[0]))


def test_inputs_are_as_large_as_the_schedule_needs_and_estimates_of_inputs_are_not_needed():
    def build(estimated, vectors):
        image, f, g = hl.ImageParam(hl.Int(32), 2, "needed"), hl.Func("needs"), hl.Func("needs_out")
        f[x, y] = image[x, y] * 2
        g[x, y] = f[x, y] + f[x + 1, y + 1]
        g.set_estimates([(0, 64), (0, 64)])
        if estimated:
            image.set_estimates([(0, 65), (0, 65)])
        f.compute_root()
        if vectors:
            f.vectorize(x, 16, hl.TailStrategy.RoundUp)
        return hl.Pipeline(g)

    reference = Program(build(True, False)).results_of_two_runs(2)
    for estimated, vectors, bounds in (
        (True, False, ((0, 65), (0, 65))), (False, False, ((0, 65), (0, 65))),
        (True, True, ((0, 80), (0, 65))), (False, True, ((0, 80), (0, 65))),
    ):  # fmt: skip
        program = Program(build(estimated, vectors))
        assert program.regions(2)[0][0].bounds == bounds
        assert program.mismatch(2, reference) == ""


def test_an_input_without_estimates_whose_size_the_algorithm_reads_is_as_large_as_the_output():
    image, f = hl.ImageParam(hl.Float(32), 2, "sized"), hl.Func("reads_size")
    f[x, y] = hl.BoundaryConditions.repeat_edge(image)[x - 40, y] + hl.f32(image.width())
    f.set_estimates([(0, 30), (0, 20)])
    inputs, _ = Program(hl.Pipeline(f)).regions(0)
    assert inputs[0].bounds == ((0, 30), (0, 20)) and inputs[0].source == "guess"


def test_what_is_never_written_shows():
    f = hl.Func("unwritten")
    f[x] = hl.undef(hl.Int(32))
    r = hl.RDom([(0, 99)])
    f[r.x] = hl.i32(r.x)
    f.set_estimates([(0, 100)])
    program = Program(hl.Pipeline(f))
    first, second = program.results_of_two_runs(0)
    assert np.array_equal(first[:99], second[:99]) and first[99] != second[99]
    assert mismatch([first, second], [first, second], program.comparisons) == ""
    assert mismatch([first, second], [first, np.r_[second[:99], 7].astype(np.int32)], program.comparisons)


def test_files_and_values_are_what_inputs_hold(tmp_path):
    image, scale, f = hl.ImageParam(hl.UInt(8), 2, "held"), hl.Param(hl.Int(32), "held_scale"), hl.Func("holds")
    f[x, y] = hl.i32(image[x, y]) * scale
    f.set_estimates([(0, 5), (0, 3)])
    values = np.arange(3 * 5, dtype=np.uint8).reshape(3, 5)  # three rows of five
    np.save(tmp_path / "held.npy", values)
    spec = dataclasses.replace(HOST, inputs=(("held", str(tmp_path / "held.npy")), ("held_scale", "3")))
    assert np.array_equal(Program(hl.Pipeline(f), spec).results_of_two_runs(0)[0], values * 3)
    constant = dataclasses.replace(HOST, inputs=(("held", "7"), ("held_scale", "-2")))
    assert (Program(hl.Pipeline(f), constant).results_of_two_runs(0)[0] == -14).all()
    for inputs, words in (
        ((("held_scale", "1.5"),), "held_scale=1.5"),
        ((("held", "256"),), "held=256"),
        ((("held", str(tmp_path / "no.npy")), ("held_scale", "3")), "can't be read"),
    ):
        with pytest.raises(ValueError, match=words):
            estimated_arguments(hl.Pipeline(f), inputs)
    for wrong, words in ((values.astype(np.int16), "int16.*uint8"), (values[0], "1 dimensions.*2"), (values[:2], "dimension 1")):
        np.save(tmp_path / "held.npy", wrong)
        with pytest.raises(ValueError, match=words):
            Program(hl.Pipeline(f), spec).regions(0)


def test_outputs_beyond_two_gibibytes_name_the_feature_that_allows_them():
    def build():
        f = hl.Func("huge")
        f[x, y] = hl.u8(x)
        f.set_estimates([(0, 2**16), (0, 2**15)])
        return hl.Pipeline(f)

    with pytest.raises(ValueError, match="2.0 GiB.*--target host-large_buffers"):
        Program(build()).regions(0)
    _, (output,) = Program(build(), dataclasses.replace(HOST, target="host-large_buffers")).regions(0)
    assert output.n_bytes == 2**31


def test_an_output_that_must_be_larger_than_its_estimates_is_said():
    f = hl.Func("aligned")
    f[x] = x
    f.align_bounds(x, 16)
    f.set_estimates([(0, 100)])
    with pytest.raises(ValueError, match="output aligned.* must be 112 from 0, where its estimates say 100 from 0"):
        Program(hl.Pipeline(f)).regions(0)


def test_meeting_a_demand_keeps_what_a_stride_is_a_multiple_of():
    region = Region("i", "uint8", ((0, 100), (0, 4)), is_fixed=(False, False))
    assert meet(region, [(0, 90, 1), (0, 4, 90)]).strides == (1, 100)
    assert meet(region, [(0, 90, 1), (0, 4, 96)]).strides == (1, 128), "96 is a multiple of 32"
    assert meet(region, [(0, 90, 1), (0, 4, 2048)]).strides == (1, 2048)
    assert meet(region, [(-2, 110, 1), (0, 4, 110)]).bounds == ((-2, 110), (0, 4))


@pytest.mark.parametrize(("strategy", "smallest"), [("ShiftInwards", 16), ("GuardWithIf", 1), ("RoundUp", 16)])
def test_the_smallest_output_is_that_which_can_be_called(tmp_path, strategy, smallest):
    path = tmp_path / "smallest.py"
    path.write_text(SMALLEST)
    spec = execution_spec(path)
    pipeline = spec.build()
    output = pipeline.outputs()[0]
    output.vectorize(output.args()[0], 16, getattr(hl.TailStrategy, strategy))
    assert minimum_extents(spec, pipeline) == [[smallest, 1]]
    program = Program(pipeline, spec)
    for width, height in ((smallest, 1), (smallest + 16, 7)):
        call_at(program, width, height)
    if smallest > 1:
        with pytest.raises(hl.HalideError):
            call_at(program, smallest - 1, 3)


def test_outputs_of_other_sizes_are_compared(tmp_path):
    path = tmp_path / "smallest.py"
    path.write_text(SMALLEST)
    spec = execution_spec(path)

    def outcomes(program, smallest=None):
        return [(size["extents"], size["outcome"]) for size in compare_sizes(program, "root", smallest)]

    assert outcomes(Program(spec.build(), spec), [10, 1]) == [([104, 50], "same"), ([260, 125], "same"), ([157, 75], "same")]
    pipeline = spec.build()
    output = pipeline.outputs()[0]
    output.vectorize(output.args()[0], 8, hl.TailStrategy.RoundUp)
    assert [outcome for _, outcome in outcomes(Program(pipeline, spec), [8, 1])] == ["same", "refused", "refused"], "multiples of 8"
    path.with_name("other.py").write_text(SMALLEST.replace("return", "out[x, y] += hl.select(x > 220, 1.0, 0.0)\n    return"))
    wrong = compare_sizes(Program(execution_spec(path.with_name("other.py")).build(), spec), "root", [10, 1])
    assert [size["outcome"] for size in wrong] == ["same", "differs", "same"] and "differs from the reference" in wrong[1]["detail"]


SMALLEST = """
import halide as hl

def build():
    x, y = hl.vars("x y")
    image = hl.ImageParam(hl.Float(32), 2, "image")
    image.set_estimates([(0, 200), (0, 100)])
    out = hl.Func("out")
    padded = hl.BoundaryConditions.repeat_edge(image)
    out[x, y] = padded[x - 1, y] + padded[x, y + 1]
    out.set_estimates([(0, 208), (0, 100)])
    return hl.Pipeline(out)
"""


def execution_spec(path):
    from halide_tools.programs import find_programs

    return find_programs(path)[0]


def call_at(program, width, height):
    program.callable(hl.Buffer(np.ones((height, width), np.float32)), hl.Buffer(np.zeros((height, width), np.float32)))
