"""What a processor makes of lowered code: every figure is worked out by hand from the schedule."""

import dataclasses

import halide as hl
import numpy as np
import pytest

from features import LOWERED
from halide_tools import lowered_features
from halide_tools.programs import HOST

AVX2 = "x86-64-linux-avx-avx2-f16c-fma-sse41"  # 32 bytes a native vector
TARGET = "x86-64-linux-avx-avx2-f16c-fma-sse41-avx512-avx512_skylake"  # 64 bytes a native vector, wherever this runs


def count(output, *stages, cores=2, target=TARGET):
    """{stage: {kind: number}} of a scheduled pipeline; `stages` name the rows, output first."""
    counts = lowered_features.count_lowered(hl.Pipeline(output), dataclasses.replace(HOST, target=target, n_threads=cores))
    assert len(counts) == len(stages)
    return {name: dict(zip(LOWERED, row.tolist())) for name, row in zip(stages, counts)}


def image(name, *extents, type=None):
    parameter = hl.ImageParam(type or hl.Float(32), len(extents), name)
    parameter.set_estimates([(0, extent) for extent in extents])
    return parameter


def mat_mul(name, n, is_tiled):
    """n x n matrices, in tiles of 32 x 4 points that stay in registers, or with one vector of sums at a time."""
    x, y, xi, yi = hl.vars("x y xi yi")
    a, b = image(f"{name}_a", n, n), image(f"{name}_b", n, n)
    k = hl.RDom([(0, n)], "k")
    product, output = hl.Func(f"{name}_product"), hl.Func(name)
    product[x, y] = 0.0
    product[x, y] += a[k, y] * b[x, k]
    output[x, y] = product[x, y]
    output.set_estimates([(0, n), (0, n)])
    if is_tiled:
        output.tile(x, y, xi, yi, 32, 4).vectorize(xi, 16).unroll(xi).unroll(yi)
        product.compute_at(output, x).vectorize(x, 16).unroll(x).unroll(y)
        product.update().reorder(x, y, k).vectorize(x, 16).unroll(x).unroll(y)
    else:
        output.vectorize(x, 16)
        product.compute_root().vectorize(x, 16)
        product.update().reorder(k, x, y).vectorize(x, 16)
    return count(output, "output", "update", "pure")


def test_a_register_tile_loads_less_and_waits_for_nothing():
    tiled, plain = mat_mul("tiled", 256, True), mat_mul("plain", 256, False)
    n_products = 256**3 / 16
    for counts in (tiled, plain):
        assert counts["update"]["native_multiplications"] == n_products  # the additions are part of the same instructions
        assert counts["update"]["native_operations"] == 0
    # An iteration of the tile's loop over k: two vectors of b, and four points of a, for eight products.
    assert tiled["update"]["loads_executed"] == n_products * (2 + 4) / 8
    assert tiled["update"]["stores_executed"] == tiled["pure"]["stores_executed"] == 0
    assert tiled["output"]["loads_executed"] == 0 and tiled["output"]["stores_executed"] == 256 * 256 / 16
    assert tiled["update"]["chain_cycles"] == 0
    # Without it: a vector of b and a point of a for each; the sums come from memory once, and go back once.
    assert plain["update"]["loads_executed"] == n_products * 2 + 256 * 256 / 16
    assert plain["update"]["stores_executed"] == 256 * 256 / 16
    # Each product waits four cycles for the one before; its two loads take part of them.
    assert plain["update"]["chain_cycles"] + plain["update"]["body_cycles"] == pytest.approx(4 * n_products, rel=0.01)


def test_a_sum_waits_for_itself_and_a_sum_in_many_parts_does_not():
    i, r = hl.Var("i"), hl.RDom([(0, 2**16)], "r")
    numbers, one, many = image("numbers", 2**16), hl.Func("one_sum"), hl.Func("many_sums")
    one[i] = 0.0
    one[i] += numbers[r]
    one.set_estimates([(0, 1)])
    parts = hl.RDom([(0, 2**9)], "parts")
    many[i] = 0.0
    many[i] += numbers[parts * 128 + i]
    many.set_estimates([(0, 128)]).vectorize(i, 128)
    many.update().vectorize(i, 128)
    waiting, wide = count(one, "update", "pure")["update"], count(many, "update", "pure")["update"]
    assert waiting["chain_cycles"] + waiting["body_cycles"] == pytest.approx(4 * 2**16)
    assert waiting["stores_executed"] == 1
    assert wide["native_operations"] == 2**16 / 16 and wide["chain_cycles"] == 0


def test_a_recurrence_and_a_histogram_go_through_memory():
    x, r = hl.Var("x"), hl.RDom([(1, 1023)], "r")
    signal, scan = image("signal", 1024), hl.Func("scan")
    scan[x] = signal[x]
    scan[r.x] = scan[r.x - 1] * 0.5 + signal[r.x]
    scan.set_estimates([(0, 1024)])
    update = count(scan, "update", "pure")["update"]
    assert update["chain_cycles"] + update["body_cycles"] == pytest.approx(4 * 1023, rel=0.01)  # one multiplication with addition
    points, histogram = image("points", 4096, type=hl.UInt(8)), hl.Func("histogram")
    histogram[x] = hl.u32(0)
    all_points = hl.RDom([(0, 4096)], "all_points")
    histogram[hl.i32(points[all_points])] += hl.u32(1)
    histogram.set_estimates([(0, 256)])
    assert count(histogram, "update", "pure")["update"]["updates_in_memory"] == 4096


@pytest.mark.parametrize("type, lanes", [(hl.UInt(8), 64), (hl.UInt(16), 32), (hl.Float(32), 16)], ids=["u8", "u16", "f32"])
def test_narrow_types_take_fewer_instructions(type, lanes):
    x = hl.Var("x")
    narrow, output = image(f"narrow_{lanes}", 4096, type=type), hl.Func(f"narrowed_{lanes}")
    output[x] = hl.max(narrow[x], hl.cast(type, 3))
    output.set_estimates([(0, 4096)]).vectorize(x, 64)
    counts = count(output, "output")["output"]
    assert counts["native_operations"] == counts["loads_executed"] == counts["stores_executed"] == 4096 / lanes


def test_tasks_share_the_work_as_evenly_as_they_can():
    x, y = hl.vars("x y")
    source = image("parallel_source", 1024, 6)

    def counted(name, cores, is_parallel=True):
        output = hl.Func(name)
        output[x, y] = source[x, y] * 2.0
        output.set_estimates([(0, 1024), (0, 6)]).vectorize(x, 16)
        if is_parallel:
            output.parallel(y)
        return count(output, "output", cores=cores)["output"]

    serial, two, four = counted("serial", 2, False), counted("on_two", 2), counted("on_four", 4)
    assert serial["tasks"] == serial["parallel_loops"] == serial["parallel_cycles"] == 0
    assert serial["wall_cycles"] == serial["body_cycles"] == pytest.approx(two["body_cycles"], rel=0.05)
    assert (two["tasks"], two["parallel_loops"]) == (6, 1) and two["parallel_cycles"] == pytest.approx(two["body_cycles"], rel=0.01)
    assert two["wall_cycles"] == pytest.approx(two["body_cycles"] / 2, rel=0.01)
    assert four["wall_cycles"] == pytest.approx(four["body_cycles"] / 3, rel=0.01)  # six tasks: two rounds of four cores


def test_lines_come_from_where_a_loop_leaves_them():
    x, y = hl.vars("x y")

    def blurred(name, width, height):
        """Three rows of an image summed: each row is needed three times."""
        source, output = image(f"{name}_source", width, height + 2), hl.Func(name)
        output[x, y] = source[x, y] + source[x, y + 1] + source[x, y + 2]
        output.set_estimates([(0, width), (0, height)]).vectorize(x, 16)
        return count(output, "output")["output"]

    small, rows, wide = blurred("small", 64, 16), blurred("rows", 1024, 1024), blurred("wide", 16384, 64)
    assert small["lines_from_l2"] == small["lines_to_l2"] == 0  # all of it stays in the first level
    # Four rows of 4 KB fit the first level, so each line comes once; four of 64 KB do not, so it comes three times, and once from memory.
    assert rows["lines_from_l2"] == rows["lines_from_l3"] == pytest.approx(1024 * 1026 / 16, rel=0.01)
    assert wide["lines_from_l2"] == pytest.approx(3 * 16384 * 64 / 16, rel=0.01)
    assert wide["lines_from_l3"] == pytest.approx(16384 * 66 / 16, rel=0.01)
    assert wide["lines_to_l2"] == pytest.approx(16384 * 64 / 16, rel=0.01)


def test_what_a_consumer_finds_in_the_cache_its_producer_has_brought():
    x, y = hl.vars("x y")

    def pair(name, is_fused):
        source, first, second = image(f"{name}_source", 2048, 2048), hl.Func(f"{name}_first"), hl.Func(f"{name}_second")
        first[x, y] = source[x, y] * 2.0
        second[x, y] = first[x, y] + 1.0
        second.set_estimates([(0, 2048), (0, 2048)]).vectorize(x, 16)
        first.compute_at(second, y) if is_fused else first.compute_root()
        first.vectorize(x, 16)
        return count(second, "second", "first")["second"]

    lines = 2048 * 2048 / 16
    assert pair("apart", False)["lines_from_memory"] == pytest.approx(lines, rel=0.01)
    assert pair("fused", True)["lines_from_memory"] == 0


def test_rows_that_data_name_are_loaded_whole():
    x, y = hl.vars("x y")
    table, names = image("named_table", 64, 4096), image("names", 1024, type=hl.Int(32))
    rows, points = hl.Func("named_rows"), hl.Func("named_points")
    rows[x, y] = table[x, hl.clamp(names[y], 0, 4095)]
    points[x, y] = table[hl.clamp(names[x], 0, 63), y]
    rows.set_estimates([(0, 64), (0, 1024)]).vectorize(x, 16)
    points.set_estimates([(0, 64), (0, 1024)]).vectorize(x, 16)
    rows, points = count(rows, "output")["output"], count(points, "output")["output"]
    assert rows["points_gathered_executed"] == 0 and rows["loads_executed"] == 1024 * (64 / 16 + 1)  # vectors of the table, and a name
    assert rows["lines_from_l2"] == pytest.approx(1024 * 64 / 16 + 1024 / 16, rel=0.01)
    assert points["points_gathered_executed"] == 1024 * 64


def turned(name, size, tile=0):
    """The lines that a second-level cache delivers to turn an image of `size` x `size` bytes, row by row or in tiles."""
    x, y, xi, yi = hl.vars("x y xi yi")
    source, output = image(f"{name}_source", size, size, type=hl.UInt(8)), hl.Func(name)
    output[x, y] = source[y, x]
    output.set_estimates([(0, size), (0, size)])
    if tile:
        output.tile(x, y, xi, yi, tile, tile).vectorize(xi, 16)
    else:
        output.vectorize(x, 16)
    return count(output, "output")["output"]["lines_from_l2"]


def test_a_point_takes_a_whole_line_in_a_cache():
    size = 1008  # of which no power of two is a multiple: the lines of a column lie in all sets
    assert turned("turned_rows", size) == pytest.approx(size**2, rel=0.05)  # 1,008 lines do not stay until the next row needs them
    assert turned("turned_tiles", size, 48) == pytest.approx(size**2 / 48, rel=0.35)


def test_lines_that_lie_a_page_apart_crowd_in_one_set():
    def column(name, width):
        """32 rows summed, over and over, for a line's width at a time."""
        x, y, xo, r = hl.Var("x"), hl.Var("y"), hl.Var("xo"), hl.RDom([(0, 32)], "r")
        source, total, output = image(f"{name}_source", width, 32), hl.Func(f"{name}_total"), hl.Func(name)
        total[x, y] = 0.0
        total[x, y] += source[x, r] * hl.f32(y)
        output[x, y] = total[x, y]
        output.set_estimates([(0, width), (0, 64)]).split(x, xo, x, 16).vectorize(x).reorder(x, y, xo)
        total.compute_at(output, y).vectorize(x, 16)
        total.update().vectorize(x, 16)
        return count(output, "output", "update", "pure")["update"]["lines_from_l2"]

    assert column("crowded", 1024) == pytest.approx(64 * column("spread", 1040) * 1024 / 1040, rel=0.1)


def test_lanes_that_a_predicate_leaves_out_are_not_gathered():
    x = hl.Var("x")
    source, output = image("guarded_source", 8, 67), hl.Func("guarded")
    output[x] = source[1, x] * 2.0
    output.set_estimates([(0, 67)]).vectorize(x, 16, hl.TailStrategy.PredicateLoads)
    assert count(output, "output")["output"]["points_gathered_executed"] == 67  # not 80: three lanes of the fifth vector


def test_what_is_computed_of_an_input_belongs_to_its_reader():
    x = hl.Var("x")
    source, output = image("staged_source", 1024), hl.Func("staged")
    output[x] = source[x] * 2.0
    output.set_estimates([(0, 1024)]).vectorize(x, 16)
    alone = count(output, "output")["output"]
    source, output = image("staged_again_source", 1024), hl.Func("staged_again")
    output[x] = source[x] * 2.0
    output.set_estimates([(0, 1024)]).vectorize(x, 16)
    wrapper = source.in_(output)
    wrapper.compute_root().vectorize(wrapper.args()[0], 16)
    staged = count(output, "output")["output"]
    assert staged["bytes_loaded"] == 2 * alone["bytes_loaded"]
    assert staged["stores_executed"] == 2 * alone["stores_executed"] and staged["loads_executed"] == 2 * alone["loads_executed"]


def test_counts_are_written_in_four_digits():
    counts = np.zeros((2, len(LOWERED)))
    counts[:, LOWERED.index("loads_executed")] = [1234567, 0]
    counts[1, LOWERED.index("iterations")] = 9999
    assert lowered_features.as_dict(counts) == {"iterations": [0, 9999], "loads_executed": [1235000, 0]}


def sums_of_columns(name, type, n, lanes, by_columns=False):
    """Sums over 64 rows of `n` columns, `lanes` of them at a time under a mask; the image has the rows, or the columns, side by side."""
    x, xi = hl.vars("x xi")
    numbers, sums, output = image(f"{name}_numbers", 64 if by_columns else n, n if by_columns else 64, type=type), hl.Func(name), hl.Func()
    r = hl.RDom([(0, 64)], "r")
    sums[x] = hl.cast(type, 0)
    sums[x] += numbers[r, x] if by_columns else numbers[x, r]
    output[x] = sums[x]
    output.set_estimates([(0, n)])
    sums.compute_root().update().split(x, x, xi, lanes, hl.TailStrategy.GuardWithIf).reorder(xi, r, x).vectorize(xi)
    return output


@pytest.mark.parametrize("type, bits", [(hl.UInt(8), 8), (hl.Int(16), 16), (hl.Float(32), 32)], ids=["u8", "i16", "f32"])
def test_narrow_lanes_under_a_mask_branch_where_the_processor_has_no_masks_for_them(type, bits):
    # 100 columns, 64 at a time: the second vector has 36. Each row loads two and stores one: no sum under a mask stays in a register.
    on_avx2 = count(sums_of_columns(f"masked_{bits}", type, 100, 64), "output", "update", "pure", target=AVX2)["update"]
    on_avx512 = count(sums_of_columns(f"masked_too_{bits}", type, 100, 64), "output", "update", "pure")["update"]
    assert on_avx512["branched_lanes"] == 0 and on_avx512["masked_stores"] == 64 * bits / 8
    if bits < 32:
        assert on_avx2["branched_lanes"] == 64 * 3 * 64 and on_avx2["masked_stores"] == 0
        assert on_avx2["points_gathered_executed"] == 64 * 2 * 36 and on_avx2["points_scattered_executed"] == 64 * 36
        assert on_avx2["body_cycles"] > 64 * 3 * 64
    else:
        assert on_avx2["branched_lanes"] == 0 and on_avx2["masked_stores"] == 64 * 64 * 4 / 32


def test_a_gather_under_a_mask_branches_on_every_processor():
    update = count(sums_of_columns("gathered", hl.Float(32), 100, 64, by_columns=True), "output", "update", "pure")["update"]
    assert update["branched_lanes"] == 64 * 64


def test_a_mask_that_the_compiler_knows_costs_nothing():
    x, xi, r = *hl.vars("x xi"), hl.RDom([(0, 64)], "r")
    numbers, sums, output = image("known_numbers", 240, 64), hl.Func("known_sums"), hl.Func("known")
    sums[x] = 0.0
    sums[x] += numbers[x, r]
    output[x] = sums[x]
    output.set_estimates([(0, 240)]).split(x, x, xi, 24).vectorize(xi, 8)
    sums.compute_at(output, x).update().split(x, x, xi, 32, hl.TailStrategy.GuardWithIf).reorder(xi, x, r).vectorize(xi)
    update = count(output, "output", "update", "pure", target=AVX2)["update"]
    assert update["branched_lanes"] == update["masked_stores"] == 0 and update["stores_executed"] <= 3  # 24 lanes, in registers
    assert update["points_stored"] == 240 * 64


def test_what_is_stored_lane_by_lane_is_kept_in_no_register():
    x, u, r = *hl.vars("x u"), hl.RDom([(0, 256)], "r")
    numbers, parts, output = image("part_numbers", 16 * 256), hl.Func("parts"), hl.Func("whole")
    parts[x, u] = 0.0
    parts[x, u] += numbers[r * 16 + u] * hl.f32(x)
    output[x] = parts[x, 0] + parts[x, 15]
    output.set_estimates([(0, 4096)])
    parts.compute_root().update().reorder(u, r, x).vectorize(u, 16)
    update = count(output, "output", "update", "pure")["update"]
    assert update["points_scattered_executed"] == update["points_scattered"] == 4096 * 256 * 16
    # The rows of 16 KiB begin in the same set of the first-level cache, which holds eight of them: every point comes from beyond.
    assert update["lines_from_l2"] >= 4096 * 256 * 16 and update["lines_to_l2"] >= 4096 * 256 * 16


def test_the_first_iteration_of_a_sliding_window_is_counted():
    x, y = hl.vars("x y")
    numbers, rows, output = image("sliding_numbers", 64, 1000), hl.Func("sliding_rows"), hl.Func("sliding")
    rows[x, y] = numbers[x, y] * 2.0
    output[x, y] = rows[x, y] + rows[x, 999]  # so all rows are there from the first iteration on
    output.set_estimates([(0, 64), (0, 1000)])
    rows.compute_at(output, y).store_root()
    assert count(output, "output", "rows")["rows"]["points_stored"] == 64 * 1000


def test_what_an_input_allocates_is_charged_to_who_reads_it():
    x, y = hl.vars("x y")
    numbers, output = image("copied_numbers", 64, 512), hl.Func("copied_output")
    output[x, y] = numbers[x, y] + 1.0
    output.set_estimates([(0, 64), (0, 512)])
    numbers.in_().compute_at(output, y)
    counts = count(output, "output")["output"]
    assert counts["allocations"] + counts["stack_allocations"] == 512 and counts["bytes_allocated"] + counts["stack_bytes"] == 512 * 64 * 4
    assert counts["iterations"] == 512 * (1 + 2 * 64)


def test_lines_changed_in_place_go_back_as_those_do_that_are_only_stored():
    x, y = hl.vars("x y")
    numbers, changed, output = image("changed_numbers", 2**20), hl.Func("changed"), hl.Func("changed_output")
    changed[x] = numbers[x]
    changed[x] *= 2.0
    output[x] = changed[x]
    output.set_estimates([(0, 2**20)])
    changed.compute_root().vectorize(x, 16).update().vectorize(x, 16)
    update = count(output, "output", "update", "pure")["update"]
    assert update["lines_from_l2"] == update["lines_to_l2"] == 2**20 * 4 / 64
