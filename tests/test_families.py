"""The programs for training: families of kernels, their variants, and small random programs."""

import pytest
from conftest import ROOT, expect_user_error, run

from halide_tools.buffers import estimated_arguments
from halide_tools.programs import find_programs, functions, variants
from pipelines import random_programs

FILES = sorted((ROOT / "pipelines" / "families").glob("*.py"))
APPLICATIONS = {path.stem for path in (ROOT / "pipelines").glob("*.py")}


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_family_has_variants_that_can_be_built(file):
    for spec in find_programs(file, checked=False):
        drawn = variants(spec, 2)
        assert len({v.name for v in drawn} | {v.params for v in drawn}) == 4 and all(v.generator == spec.name for v in drawn)
        assert variants(spec, 1) == drawn[:1], "the same, however many are asked for"
        for variant in drawn:
            inputs, outputs = estimated_arguments(variant.build())
            assert inputs and outputs
        assert {v.build_hand_scheduled() for v in drawn[:1]} == {None}


def test_families_are_many_and_none_is_an_application():
    names = {spec.name for file in FILES for spec in find_programs(file, checked=False)}
    assert len(names) >= 30 and not names & APPLICATIONS
    described = (ROOT / "docs" / "families.md").read_text()
    assert all(f"`{name}`" in described for name in APPLICATIONS & {"blur", "harris", "mat_mul", "conv_layer", "iir_blur", "resize"})


def test_variants_are_of_generators_that_say_so(tmp_path):
    [blur] = find_programs(ROOT / "pipelines" / "blur.py")
    assert variants(blur, 5) == [blur]
    expect_user_error(run("collect_schedules.py", "--variants=2", f"--output={tmp_path / 'a'}", check=False), "variants", "--pipeline")
    both = ["--pipeline=pipelines/families/colour.py", "--generator=rgb_to_yuv", "--params=width=64", "--variants=2"]
    expect_user_error(run("collect_schedules.py", *both, f"--output={tmp_path / 'b'}", check=False), "--variants", "--params")


def test_small_programs_are_small_and_some_read_beyond_a_border():
    first = random_programs.SMALL_FROM
    built = [random_programs.build(number) for number in range(first, first + 40)]
    sizes = [len(functions(pipeline)) for pipeline, _ in built]
    assert min(sizes) <= 2 and max(sizes) <= 4 * random_programs.MOST_SMALL
    bare = 0
    for pipeline, _ in built:
        inputs, outputs = estimated_arguments(pipeline)
        assert len(outputs) == 1 and outputs[0].name.partition("$")[0] != "output", "no join at the end"
        bare += any("inside" in func.name() for func in functions(pipeline))
    assert 5 < bare < 40
    assert random_programs.build(first)[1] == random_programs.build(first)[1]
