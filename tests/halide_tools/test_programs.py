"""Programs: drawn at random or in files, their stages and their estimates."""

import itertools
import tarfile

import halide as hl
import orjson
import pytest
from conftest import ROOT

from features import STAGE_BYTES
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import (
    ProgramSpec,
    describe_stages,
    estimated_arguments,
    functions,
    find_programs,
)
from pipelines import random_programs


def test_random_programs_are_reproducible_and_of_many_kinds():
    assert len(random_programs.STAGE_KINDS) >= 15
    kinds = set()
    for seed in range(60):
        pipeline, drawn = random_programs.build(seed)
        assert random_programs.build(seed)[1] == drawn
        assert len(functions(pipeline)) >= 2
        kinds.update(drawn)
    assert len(kinds) >= 20


def test_numbers_still_draw_the_programs_that_were_measured():
    with tarfile.open(ROOT / "data" / "raw" / "random_008.tar.xz") as tar:
        records = (orjson.loads(tar.extractfile(member).read()) for member in tar if member.name.endswith("/program.json"))
        for record in itertools.islice(records, 8):
            assert random_programs.build(record["seed"], max_stages=14)[1] == record["stage_kinds"]


def test_numbers_from_rich_from_on_draw_more_reductions():
    def share(first):
        drawn = [kind for seed in range(first, first + 60) for kind in random_programs.build(seed)[1]]
        return sum(kind in ("matmul", "equalize", "channel_mix") for kind in drawn) / len(drawn)

    assert share(random_programs.RICH_FROM) > 1.5 * share(0)


def test_stages_and_edges_are_those_of_the_featurization(blur):
    pipeline = blur.build()
    description = describe_stages(pipeline)
    stages, edges = description["stages"], description["edges"]
    assert [s.split("$")[0] for s in stages] == ["out", "blur"] and [[a.split("$")[0], b.split("$")[0]] for a, b in edges] == [
        ["blur", "out"]
    ]
    for seed in range(6):
        pipeline = random_programs.build(seed)[0]
        description = describe_stages(pipeline)
        stages, edges = description["stages"], description["edges"]
        assert len(Proposal.draw(0, 0).apply(pipeline, ProgramSpec("", seed))[0]) == len(stages) * STAGE_BYTES
        assert {name for edge in edges for name in edge} <= set(stages)


def test_calls_that_features_do_not_tell_apart_are_counted():
    x = hl.Var("x")
    f, g = hl.Func("f"), hl.Func("g")
    f[x] = hl.tanh(hl.f32(x)) + hl.exp(hl.f32(x))
    g[x] = hl.sqrt(f[x]) * hl.sin(f[x]) * hl.cos(f[x + 1])
    g[x] += hl.pow(f[x], 2.5) + hl.log(f[x] / 3) + hl.f32(x % 37 + (x + 5) // 60 + x // 4 + hl.i32(hl.u8(x) / hl.u8(7)))
    g.set_estimates([(0, 100)])
    description = describe_stages(hl.Pipeline(g))
    assert len(description["stages"]) == 3
    calls = description["calls"]
    assert calls == {
        "sin_cos": [0, 2, 0],
        "library": [0, 0, 1],
        "exp": [0, 0, 1],
        "log": [1, 0, 0],
        "pow": [1, 0, 0],
        "sqrt": [0, 1, 0],
        "int_division": [3, 0, 0],
    }


def test_applications_build(tmp_path):
    specs = [s for f in sorted((ROOT / "pipelines").glob("*.py")) if f.stem not in ("random_programs",) for s in find_programs(f)]
    assert len(specs) >= 15
    for spec in specs:
        inputs, outputs = estimated_arguments(spec.build())
        assert inputs and outputs


def test_missing_estimates_are_named():
    x = hl.Var("x")
    f = hl.Func("nameless")
    f[x] = hl.cast(hl.Int(32), x)
    with pytest.raises(ValueError, match="nameless.* has no estimates"):
        estimated_arguments(hl.Pipeline(f))
