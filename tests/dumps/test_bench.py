"""The runtime in bench.txt: the time, or what stands in its place."""

import math

import pytest

from dumps.bench import bench_runtime

LINE = "Benchmark for f produces best case of 0.00123 sec/iter (over 9 samples, 90 iterations, accuracy 1.2%)."
MORE = "Best output throughput is 853.2 mpix/sec."
PARSABLE = (
    "f  BEST_TIME_MSEC_PER_ITER  1.23\nf  SAMPLES                  9\nf  ITERATIONS               90\nf  TIMING_ACCURACY          0.012\n"
)


@pytest.mark.parametrize(
    "bench",
    [
        f"{LINE}\n{MORE}\n".encode(),
        f"{LINE}\r\n{MORE}\r\n".encode(),
        f"{LINE}\r{MORE}\r".encode(),
        f"{LINE}\r\n{MORE}\r\n".encode("utf-16"),
        b"\xfe\xff" + f"{LINE}\n".encode("utf-16-be"),
        f"{LINE}\n".encode("utf-16-le"),
        f"{LINE}\n".encode("utf-16-be"),
        *(f"{LINE}\n".encode(encoding) for encoding in ("utf-32", "utf-32-le", "utf-32-be")),
        b"\xef\xbb\xbf" + f"{LINE}\n".encode(),
        f"Warning: Using 0 for the scalar argument named alpha since it has no estimate\n{LINE}\n".encode(),
        f"1 2 3 4 5 6 7 8 9\n\n{LINE}".encode(),
        f"Benchmarking f...\n{LINE}\n".encode(),
        f"halide_print: {LINE}".encode(),
        f"\x1b[1m{LINE}\x1b[0m".encode(),
        f"n\xe9\n{LINE}".encode("latin-1"),
        LINE.replace("sec/iter (over", "sec/iter, over").encode(),
        LINE.replace("0.00123", "0,00123").encode(),
        LINE.replace("0.00123", "1.23e-03").encode(),
        LINE.replace("0.00123 sec", "1.23 msec").encode(),
        LINE.replace("0.00123 sec", "1230us").encode(),
        LINE.replace("for f ", "for my f ").encode(),
        LINE.replace("for f ", "for ns::f ").encode(),
        f"{LINE}\n{MORE}\n{LINE.replace('0.00123', '0.00456')}\n".encode(),
        f"{LINE.replace('0.00123', 'inf')}\n{LINE}\n".encode(),
        f"{LINE.replace(' f ', ' g ').replace('0.00123', '0.00001')}\n{LINE}\n".encode(),  # of two programs the one of this name
        PARSABLE.encode(),
        PARSABLE.replace("\n", "\r\n").encode("utf-16"),
        b"Warning: something or other that has many words 5\n" + PARSABLE.encode(),
        b"1 2 3 4 5 6 7 0.00123",
    ],
)
def test_the_time_is_found_whatever_stands_around_it(bench):
    assert bench_runtime(bench, "f") == pytest.approx(1.23)


@pytest.mark.parametrize(
    "bench, shown",
    [
        (None, "no bench.txt"),
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"Benchmarking failed or timed out for samples/batch_1_0/3\n", "Benchmarking failed or timed out"),
        (b"Warning: Using 0 for the scalar number 7 since\n", "Warning: Using 0"),
        (b"too few words\n", "too few words"),
        (b"one two three four five six seven eight nine\n", "'eight'"),
        (LINE.replace("0.00123", "fast").encode(), "'fast'"),
        (LINE.replace("0.00123", "0.00.123").encode(), "'0.00.123'"),
        (PARSABLE.replace("1.23", "-").encode(), "'-'"),
        (f"{LINE.replace(' f ', ' g ')}\n{LINE.replace(' f ', ' h ')}".encode(), "g, h"),
    ],
)
def test_what_stands_in_place_of_the_time_is_shown(bench, shown):
    with pytest.raises(ValueError, match=shown.replace(".", r"\.")):
        bench_runtime(bench, "f")


def test_an_infinite_time_is_no_time_of_another_run():
    assert math.isinf(bench_runtime(LINE.replace("0.00123", "inf").encode(), "f"))
    assert math.isnan(bench_runtime(LINE.replace("0.00123", "nan").encode(), "f"))


def test_a_bench_txt_beside_several_schedules_is_of_the_one_it_names():
    assert bench_runtime(LINE.encode(), "g") == pytest.approx(1.23)  # renamed, but the only one
    assert bench_runtime(LINE.encode(), "f", is_shared=True) == pytest.approx(1.23)
    for bench in (LINE, "1 2 3 4 5 6 7 0.5"):
        with pytest.raises(ValueError):
            bench_runtime(bench.encode(), "g", is_shared=True)
