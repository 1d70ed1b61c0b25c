"""The applications' hand-written schedules: present only where no autoscheduler is used, and right at any size."""

import dataclasses
from pathlib import Path

import halide as hl
import pytest

from halide_tools.autoschedulers import autoscheduler_params
from halide_tools.buffers import Region, allocate, estimated_arguments, put_contents
from halide_tools.comparison import comparisons, mismatch
from halide_tools.programs import load_module, schedule_everything_at_root

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
APPLICATIONS = sorted(path.stem for path in PIPELINES.glob("*.py") if "@hl.generator" in path.read_text())

# GeneratorParams that make fewer stages of what compiles slowly.
SMALLER = {
    "attention_head": {"length": 48, "head_dim": 32},
    "interpolate": {"levels": 3},
    "lens_blur": {"slices": 2, "pyramid_levels": 2, "samples": 2},
    "local_laplacian": {"pyramid_levels": 2, "levels": 2},
    "mat_mul": {"size": 50},
    "nl_means": {"patch_size": 3, "search_area": 3},
    "stencil_chain": {"stencils": 3},
}
# Extents of the buffers for an output of w x h pixels, where they are not w x h x the estimate of what follows.
EXTENTS = {
    "attention_head": lambda w, h: {"q": (32, h), "k": (32, 48), "v": (32, 48), "output": (32, h)},
    "blur": lambda w, h: {"input": (w + 2, h + 2)},
    "camera_pipe": lambda w, h: {"input": (w + 32, h + 24), "matrix_3200": (4, 3), "matrix_7000": (4, 3)},
    "conv_layer": lambda w, h: {"input": (64, w + 2, h + 2, 1), "filter": (64, 3, 3, 64), "output": (64, w, h, 1)},
    "depthwise_separable_conv": lambda w, h: {
        "input": (32, w, h, 2),
        "depthwise_filter": (32, 3, 3),
        "pointwise_filter": (32, 32),
        "output": (32, w, h, 2),
    },
    "mat_mul": lambda w, h: {"a": (50, h), "b": (w, 50)},
    "resize": lambda w, h: {"input": (2 * w, 2 * h, 3)},
    "wavelet": lambda w, h: {"input": (1536, 1024)},
}
# (w, h): no multiple of a vector or a tile, and no larger than the reference is fast.
SIZES = {"conv_layer": [(16, 9), (23, 7)], "depthwise_separable_conv": [(16, 8), (23, 13)], "nl_means": [(128, 32), (131, 45)]}
DEFAULT_SIZES = [(256, 128), (263, 147)]


# What each schedule uses one of.
DIRECTIVES = ["bound", "compute_at", "compute_root", "in_", "parallel", "reorder", "split", "store_at", "tile", "unroll", "vectorize"]


def build(name, params):
    """The pipeline without a schedule where `params` name an autoscheduler, else with its author's."""
    _, generators = load_module(str(PIPELINES / f"{name}.py"))
    with hl.GeneratorContext(hl.get_host_target(), params):
        return generators[name](SMALLER.get(name, {}))._build_pipeline()


def resized(name, estimated, w, h):
    """Arguments by name, for an output of w x h pixels instead of its estimated size."""
    extents = EXTENTS.get(name, lambda w, h: {})(w, h)

    def resize(argument, region):
        if not isinstance(region, Region):
            return region
        estimates = [extent for _, extent in region.bounds]
        of_image = (w, h, *estimates[2:]) if len(estimates) > 1 else estimates
        return dataclasses.replace(region, bounds=tuple((0, extent) for extent in extents.get(argument, of_image)))

    return {argument: resize(argument, region) for argument, region in estimated.items()}


def results(pipeline, target, sizes):
    """The output at each size, from the same inputs for any schedule of the program."""
    names = [argument.name for argument in pipeline.infer_arguments()]
    call = pipeline.compile_to_callable(pipeline.infer_arguments(), target)
    for arguments in sizes:
        buffers = []
        for i, name in enumerate(names):
            buffers.append(arguments[name])
            if isinstance(arguments[name], Region):
                buffers[i] = allocate(arguments[name])
                put_contents(buffers[i], None, [1, i])
        output = allocate(arguments["output"])
        call(*(getattr(buffer, "buffer", buffer) for buffer in [*buffers, output]))
        yield output.contents()


@pytest.mark.parametrize("name", APPLICATIONS)
def test_a_hand_written_schedule_computes_what_the_reference_does(name):
    by_hand, reference = build(name, hl.AutoschedulerParams()), build(name, autoscheduler_params("Adams2019", 2))
    inputs, (output,) = estimated_arguments(reference)
    estimated = dict(zip([argument.name for argument in reference.infer_arguments()], inputs)) | {"output": output}
    sizes = [resized(name, estimated, w, h) for w, h in SIZES.get(name, DEFAULT_SIZES)]

    how = comparisons(reference)
    schedule_everything_at_root(reference)
    target = hl.get_host_target()
    found = results(by_hand, target, sizes)
    # The reference stays inside the buffers, and compiles faster where it does not check that.
    expected = results(reference, target.with_feature(hl.TargetFeature.NoAsserts).with_feature(hl.TargetFeature.NoBoundsQuery), sizes)
    for got, want in zip(found, expected, strict=True):
        assert want.std() > 0 and mismatch([got], [want], how) == ""


def test_an_autoscheduler_gets_the_applications_without_a_schedule(monkeypatch):
    def refuse(self, *arguments):
        raise RuntimeError("scheduled by hand")

    for directive in DIRECTIVES:
        monkeypatch.setattr(hl.Func, directive, refuse)
    for name in APPLICATIONS:
        build(name, autoscheduler_params("Adams2019", 2))
        with pytest.raises(RuntimeError, match="scheduled by hand"):
            build(name, hl.AutoschedulerParams())
