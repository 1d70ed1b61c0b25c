"""Executables made of Generators in C++: what they hand over, and schedules that go back to them as headers."""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import halide as hl
import numpy as np
import pytest
from conftest import ROOT

from halide_tools import cpp_generators, schedules
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.buffers import estimated_arguments
from halide_tools.programs import HOST, find_programs

needs_gpp = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
PARAMS = (("image.type", "uint8"), ("radius", "2"), ("width", "640"))
HALIDE = hl.install_dir()


def compile_cpp(source, to, *libraries):
    command = ["g++", "-std=c++17", "-O0", f"-I{HALIDE}/include", str(source), f"-L{HALIDE}/lib64", *libraries, "-lHalide"]
    return subprocess.Popen([*command, f"-Wl,-rpath,{HALIDE}/lib64", "-o", str(to)])


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    """With the Generators of odd_generators.cpp; the plug-in is built in a cache folder of its own."""
    folder = tmp_path_factory.mktemp("cpp")
    building = compile_cpp(ROOT / "tests" / "halide_tools" / "odd_generators.cpp", folder / "generators", "-lHalide_GenGen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        cpp_generators.plugin.cache_clear()
        cpp_generators.plugin()
        assert building.wait() == 0
        yield folder / "generators"
    cpp_generators.plugin.cache_clear()


@needs_gpp
def test_generators_are_told_from_other_executables(executable, tmp_path):
    assert cpp_generators.list_generators(executable) == ["few_estimates", "odd", "sharpen"]
    assert [spec.name for spec in find_programs(executable)] == ["few_estimates", "odd", "sharpen"]
    with pytest.raises(ValueError, match="not one made of Halide Generators"):
        find_programs(shutil.which("g++"))
    copy = shutil.copyfile(executable, tmp_path / "copy")  # without the bit that lets it run
    with pytest.raises(ValueError, match="copy: can't be run: Permission denied"):
        find_programs(copy)


@needs_gpp
def test_an_executable_is_a_program_like_any_other(executable):
    [spec] = find_programs(executable, generator="sharpen", params="image.type=uint8 radius=2 width=640")
    assert spec.params == PARAMS and spec.identity() == spec.identity()
    pipeline, arguments = spec.build_with_arguments()
    assert [a.name for a in arguments] == ["image", "amount"] and len(spec.build().outputs()) == 2
    assert schedules.read(spec.build_hand_scheduled()) != schedules.read(pipeline)
    assert find_programs(executable, generator="odd")[0].build_hand_scheduled() is None
    for options, words in (
        ({"generator": "sharpen"}, "image.type=float32"),
        ({"generator": "nowhere"}, "there are few_estimates, odd, sharpen"),
        ({"params": "radius=2"}, "--generator, one of few_estimates, odd, sharpen"),
        ({"generator": "sharpen", "params": "image.type=uint8 rad=2"}, "no GeneratorParam named: rad"),
    ):
        with pytest.raises(ValueError, match=words):
            find_programs(executable, **options)


@needs_gpp
def test_the_algorithm_comes_with_its_estimates_and_parameters(executable):
    pipeline, arguments = cpp_generators.build(executable, "sharpen", PARAMS)
    assert [(a.name, str(a.type), a.dimensions) for a in arguments] == [("image", "uint8", 2), ("amount", "float32", 0)]
    inputs, outputs = estimated_arguments(pipeline)
    assert inputs[0].dtype == np.uint8 and inputs[0].bounds == ((0, 640), (0, 1024)) and inputs[1] == 0.75
    assert [(o.dtype, o.bounds) for o in outputs] == [(np.float32, ((0, 640), (0, 1024))), (np.uint8, ((0, 640), (0, 1024)))]
    unscheduled = schedules.read(pipeline)
    assert str(unscheduled) == "sharpened.compute_root()\nedges.compute_root()"
    for proposal in (Proposal.draw(0, 0), OtherAutoscheduler("Mullapudi2016"), OtherAutoscheduler("Li2018")):
        pipeline = cpp_generators.build(executable, "sharpen", PARAMS)[0]
        proposal.apply(pipeline, HOST)
        assert schedules.read(pipeline, unscheduled) != unscheduled


@needs_gpp
def test_a_tuple_arrays_unused_inputs_and_scalars_of_all_types_come_over(executable, tmp_path):
    pipeline, arguments = cpp_generators.build(executable, "odd")
    assert [a.name for a in arguments] == ["second", "unused", "flag", "large", "negative", "first_0", "first_1"]
    estimates = {a.name: a.argument_estimates for a in arguments}
    assert [hl.evaluate(estimates[name].scalar_estimate) for name in ("flag", "large", "negative")] == [True, 2**40, -5]
    assert [(hl.evaluate(r.min), hl.evaluate(r.extent)) for r in estimates["unused"].buffer_estimates] == [(0, 3)]
    assert [(o.dtype, o.bounds) for o in estimated_arguments(pipeline)[1]] == [(np.int32, ((-4, 100),)), (np.float32, ((-4, 100),))]
    assert cpp_generators.build_hand_scheduled(executable, "odd") is None
    pipeline.compile_to_static_library(str(tmp_path / "odd"), arguments, "odd", hl.get_host_target())
    declared = re.search(r"\nint odd\((.*?)\)", (tmp_path / "odd.h").read_text())[1]
    names = [re.sub(r"^_|_buffer$", "", argument.split()[-1].strip("*")) for argument in declared.split(",")]
    assert names == [*(a.name for a in arguments), "pair_0", "pair_1"]


@needs_gpp
def test_estimates_that_are_left_out_are_completed_as_in_python(executable):
    with pytest.raises(ValueError, match="shift has no estimate: .* --inputs shift=VALUE"):
        find_programs(executable, "few_estimates")
    (spec,) = find_programs(executable, "few_estimates", inputs="shift=3")
    for proposal in (Proposal.draw(0, 0), OtherAutoscheduler("Mullapudi2016")):
        pipeline = spec.build()
        proposal.apply(pipeline, spec)
    assert estimated_arguments(pipeline, spec.inputs)[0][1:] == [0.5, 3]


@needs_gpp
def test_the_authors_schedule_comes_over_and_computes_the_same(executable):
    hand = cpp_generators.build_hand_scheduled(executable, "sharpen", PARAMS)
    schedule = schedules.read(hand)
    assert "across.store_at(detail strip -1)" in str(schedule) and "parallel(strip)" in str(schedule)
    fresh = cpp_generators.build(executable, "sharpen", PARAMS)[0]
    schedule.apply(fresh)
    assert schedules.read(fresh) == schedule

    image = np.random.default_rng(0).integers(0, 255, (40, 96), dtype=np.uint8)
    results = []
    for pipeline in (hand, fresh, cpp_generators.build(executable, "sharpen", PARAMS)[0]):
        outputs = [np.zeros((40, 96), dtype) for dtype in (np.float32, np.uint8)]
        call = pipeline.compile_to_callable(pipeline.infer_arguments(), hl.get_host_target())
        by_name = {"image": hl.Buffer(image), "amount": 0.5}
        call(*(by_name[a.name] for a in pipeline.infer_arguments()), *map(hl.Buffer, outputs))
        results.append(outputs)
    for outputs in results[1:]:
        np.testing.assert_allclose(outputs[0], results[0][0], rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(outputs[1], results[0][1])


@needs_gpp
def test_handing_over_takes_no_time_and_is_not_repeated(executable):
    cpp_generators._export.cache_clear()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        cpp_generators.build(executable, "sharpen", PARAMS)
        seconds.append(time.perf_counter() - began)
    assert seconds[0] < 5 and cpp_generators._export.cache_info().hits == 1  # 0.04 s where nothing else runs
    first = cpp_generators.build(executable, "sharpen", PARAMS)[0]
    first.get_func(0).compute_root()
    assert str(schedules.read(cpp_generators.build(executable, "sharpen", PARAMS)[0])) != str(schedules.read(first))  # afresh each time
    os.utime(executable)  # as if it had been built again
    cpp_generators.build(executable, "sharpen", PARAMS)
    assert cpp_generators._export.cache_info().misses == 2


@needs_gpp
def test_what_a_generator_refuses_is_said_in_one_line(executable):
    cases = {
        ("nowhere", PARAMS, "host"): "Generator not found: nowhere",
        ("sharpen", (), "host"): "--params, say image.type=float32",
        ("sharpen", (*PARAMS, ("rad", "1")), "host"): "no GeneratorParam named: rad",
        ("sharpen", (*PARAMS, ("radius", "wide")), "host"): "Unable to parse: wide",
        ("sharpen", PARAMS, "x86-64-nowhere"): "Did not understand Halide target",
    }
    for (generator, params, target), words in cases.items():
        with pytest.raises(ValueError) as error:
            cpp_generators.build(executable, generator, params, target)
        assert (
            words in str(error.value)
            and str(executable) in str(error.value)
            and "\n" not in str(error.value)
            and len(str(error.value)) < 600
        )


def test_gpp_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="g\\+\\+ is missing.*install it"):
        cpp_generators.plugin.__wrapped__()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def plugin_of(folder):
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": f"{folder}:{os.environ['PATH']}"}
    return str(cpp_generators.plugin.__wrapped__())


def test_processes_that_build_the_plugin_at_once_do_not_meet(tmp_path):
    compiler = tmp_path / "g++"  # takes a while, and shows what it has not finished
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"; sleep 0.5; echo "whole" > "$last"\n')
    compiler.chmod(0o755)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.map(plugin_of, [tmp_path] * 3, chunksize=1)
    assert [str(p) for p in (tmp_path / "cache").rglob("*") if p.is_file()] == paths[:1] == list(set(paths))
    assert Path(paths[0]).read_text() == "whole\n"
    compiler.write_text("#!/bin/sh\necho 'plugin.cpp:1: error: no such thing' >&2\nexit 1\n")
    (tmp_path / "again").mkdir()
    compiler.rename(tmp_path / "again" / "g++")
    with multiprocessing.get_context("spawn").Pool(1) as pool, pytest.raises(ValueError, match="no such thing"):
        pool.map(plugin_of, [tmp_path / "again"])
    assert not [p for p in (tmp_path / "again" / "cache").rglob("*") if p.is_file()]


APPLY = """
#include "one.schedule.h"
#include "other.schedule.h"

int main(int, char **argv) {
    Halide::Pipeline pipeline = Halide::deserialize_pipeline(argv[1], std::map<std::string, Halide::Parameter>());
    (argv[2][0] == '1' ? apply_schedule_one : apply_schedule_other)(pipeline, Halide::get_host_target());
    Halide::serialize_pipeline(pipeline, argv[3]);
}
"""


@needs_gpp
def test_headers_give_the_same_schedule_in_cpp_and_refuse_another_pipeline(executable, tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "halide_tools"))
    import test_schedules

    builds = [lambda: cpp_generators.build(executable, "sharpen", PARAMS)[0], lambda: test_schedules.Parts().pipeline]
    hand = cpp_generators.build_hand_scheduled(executable, "sharpen", PARAMS)
    everything = test_schedules.scheduled_by_hand(lambda p: [test_schedules.wrappers(p), test_schedules.with_rfactor(p)])
    wanted = [schedules.read(hand), schedules.read(everything)]
    for schedule, name in zip(wanted, ("one", "other")):
        (tmp_path / f"{name}.schedule.h").write_text(schedule.to_cpp_header(name))
    (tmp_path / "apply.cpp").write_text(APPLY)
    assert compile_cpp(tmp_path / "apply.cpp", tmp_path / "apply").wait() == 0
    for i, (build, schedule) in enumerate(zip(builds, wanted)):
        hl.serialize_pipeline(build(), str(tmp_path / f"{i}.hlpipe"))
        subprocess.run([tmp_path / "apply", tmp_path / f"{i}.hlpipe", "12"[i], tmp_path / "scheduled.hlpipe"], check=True)
        found = hl.deserialize_pipeline(str(tmp_path / "scheduled.hlpipe"))
        assert schedules.read(found) == schedule
    done = subprocess.run([tmp_path / "apply", tmp_path / "0.hlpipe", "2", tmp_path / "x.hlpipe"], capture_output=True, text=True)
    assert done.returncode == 1 and "of another pipeline, with" in done.stderr and not (tmp_path / "x.hlpipe").exists()
