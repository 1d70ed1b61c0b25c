"""Pipelines that lack what a tuner needs, or hold what an autoscheduler may refuse, each a Generator of its own.

The docstring of each says what is difficult about it. benchmarks/kinds_of_pipelines.py tunes all of them.
"""

import ctypes
import dataclasses
from pathlib import Path

import halide as hl

x, y, c, xi = hl.vars("x y c xi")
W, H = 96, 64
ROWS = Path(__file__).with_name("librows.so")  # sum_rows.c, compiled
if ROWS.exists():
    ctypes.CDLL(str(ROWS), mode=ctypes.RTLD_GLOBAL)


def image(type=None, dimensions=2):
    return hl.InputBuffer(type or hl.Float(32), dimensions)


def result(type=None, dimensions=2):
    return hl.OutputBuffer(type or hl.Float(32), dimensions)


@dataclasses.dataclass
class Size:
    width: int = W
    height: int = H

    def estimate(self, *buffers):
        for buffer in buffers:
            buffer.set_estimates([(0, self.width), (0, self.height), (0, 3)][: buffer.dimensions()])


@hl.generator(name="extern_stage")
class ExternStage(hl.Generator):
    """A stage in C (define_extern) between two in Halide."""

    input, output = image(), result()

    def generate(self):
        doubled, rows = hl.Func("doubled"), hl.Func("rows")
        doubled[x, y] = self.input[x, y] * 2.0
        rows.define_extern("sum_rows", [doubled], hl.Float(32), 2)
        self.output[x, y] = rows[x, y] + rows[x, y + 1]
        Size().estimate(self.output)


@hl.generator(name="no_inputs")
class NoInputs(hl.Generator):
    """No inputs at all: points of a fractal, with the library's functions."""

    output = result()

    def generate(self):
        place = hl.Func("place")
        place[x, y] = hl.sin(hl.f32(x) / W) * hl.exp(hl.f32(y) / H)
        self.output[x, y] = place[x, y] / (1.0 + hl.abs(place[x + 1, y]))
        Size().estimate(self.output)


@hl.generator(name="pseudo_random")
class PseudoRandom(hl.Generator):
    """Noise of Halide's own random numbers."""

    input, output = image(), result()

    def generate(self):
        noise = hl.Func("noise")
        noise[x, y] = hl.random_float(7)
        self.output[x, y] = self.input[x, y] + noise[x, y] - noise[x + 1, y]
        Size().estimate(self.output)


@hl.generator(name="interleaved_output")
class InterleavedOutput(hl.Generator):
    """Planar colours in, interleaved out, with an alpha channel more."""

    input, output = image(hl.UInt(8), 3), result(hl.UInt(8), 3)

    def generate(self):
        self.output[x, y, c] = hl.select(c < 3, self.input[x, y, hl.min(c, 2)], hl.u8(255))
        self.output.set_estimates([(0, W), (0, H), (0, 4)])
        self.output.output_buffer().dim(0).set_stride(4)
        self.output.output_buffer().dim(2).set_stride(1).set_bounds(0, 4)


@hl.generator(name="alike_buffers")
class AlikeBuffers(hl.Generator):
    """An input that must be as large as another, and laid out like it."""

    input, weight, output = image(), image(), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] * self.weight[x, y]
        for i in range(2):
            self.weight.dim(i).set_bounds(self.input.dim(i).min(), self.input.dim(i).extent())
        self.weight.dim(1).set_stride(self.input.dim(1).stride())
        Size().estimate(self.input, self.output)


@hl.generator(name="fixed_size")
class FixedSize(hl.Generator):
    """Bounds that are constants: a filter of eight by eight."""

    input, kernel, output = image(), image(), result()

    def generate(self):
        r = hl.RDom([(0, 8), (0, 8)], "r")
        for i in range(2):
            self.kernel.dim(i).set_bounds(-4, 8)
        self.output[x, y] = 0.0
        self.output[x, y] += self.input[x + r.x, y + r.y] * self.kernel[r.x - 4, r.y - 4]
        Size().estimate(self.output)


@hl.generator(name="specialized")
class Specialized(hl.Generator):
    """A schedule by its author with specialize, which can't be kept as data."""

    input, output = image(), result()

    def generate(self):
        f = hl.Func("f")
        f[x, y] = self.input[x, y] * 2.0
        self.output[x, y] = f[x, y] + f[x + 1, y]
        Size().estimate(self.output)
        self.output.specialize(self.output.output_buffer().width() >= 8).vectorize(x, 8)
        self.output.specialize_fail("too narrow")


@hl.generator(name="computed_with")
class ComputedWith(hl.Generator):
    """compute_with left in: two Funcs in one loop."""

    input, output = image(), result()

    def generate(self):
        f, g = hl.Func("f"), hl.Func("g")
        f[x, y] = self.input[x, y] * 2.0
        g[x, y] = self.input[x, y] + 1.0
        self.output[x, y] = f[x, y] + g[x + 1, y]
        Size().estimate(self.output)
        f.compute_root()
        g.compute_root().compute_with(f, y)


@hl.generator(name="bounded")
class Bounded(hl.Generator):
    """bound and bound_extent left in: promises of what it is called with."""

    input, output = image(hl.UInt(8), 3), result(hl.UInt(8), 3)

    def generate(self):
        f = hl.Func("f")
        f[x, y, c] = hl.u16(self.input[x, y, c]) * 3
        self.output[x, y, c] = hl.u8(f[x, y, c] / 4)
        self.output.bound(c, 0, 3).reorder(c, x, y).unroll(c)
        f.compute_root().bound_extent(c, 3)
        Size().estimate(self.output)


@hl.generator(name="for_a_gpu")
class ForAGpu(hl.Generator):
    """A schedule by its author for a GPU."""

    input, output = image(), result()

    def generate(self):
        yi = hl.Var("yi")
        self.output[x, y] = self.input[x, y] * 2.0
        Size().estimate(self.output)
        if not self.using_autoscheduler():
            self.output.gpu_tile(x, y, xi, yi, 8, 8)


@hl.generator(name="wrong_schedule")
class WrongSchedule(hl.Generator):
    """A schedule by its author that Halide refuses."""

    input, output = image(), result()

    def generate(self):
        f = hl.Func("f")
        f[x, y] = self.input[x, y] * 2.0
        self.output[x, y] = f[x, y] + f[x + 1, y]
        Size().estimate(self.output)
        if not self.using_autoscheduler():
            f.compute_at(self.output, c)


@hl.generator(name="wrong_directive")
class WrongDirective(hl.Generator):
    """A schedule by its author that raises an exception as it is made."""

    input, output = image(), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] + self.input[x + 1, y]
        Size().estimate(self.output)
        if not self.using_autoscheduler():
            self.output.vectorise(x, 8)


@hl.generator(name="wrappers")
class Wrappers(hl.Generator):
    """A schedule left in that asks its wrappers for their arguments."""

    input, output = image(), result()

    def generate(self):
        f = hl.Func("f")
        f[x, y] = self.input[x, y] * 2.0
        self.output[x, y] = f[x, y] + f[x + 1, y]
        Size().estimate(self.output)
        wrapper = f.in_(self.output)
        wrapper.compute_root().vectorize(wrapper.args()[0], 8)


@hl.generator(name="scalar_without_estimate")
class ScalarWithoutEstimate(hl.Generator):
    """A scalar without estimate."""

    input, gain, output = image(), hl.InputScalar(hl.Float(32)), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] * self.gain
        Size().estimate(self.output)


@hl.generator(name="no_estimates")
class NoEstimates(hl.Generator):
    """No estimates at all."""

    input, output = image(), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] + self.input[x + 1, y]


@hl.generator(name="open_type")
class OpenType(hl.Generator):
    """An element type that is open and not given."""

    input, output = hl.InputBuffer(None, 2), result()

    def generate(self):
        self.output[x, y] = hl.f32(self.input[x, y]) * 2.0
        Size().estimate(self.output)


@hl.generator(name="pointer")
class Pointer(hl.Generator):
    """A pointer among the arguments, as callers hand their context through."""

    input, owner, output = image(), hl.InputScalar(hl.Handle()), result()

    def generate(self):
        self.output[x, y] = hl.select(hl.reinterpret(hl.UInt(64), hl.Expr(self.owner)) == hl.u64(0), self.input[x, y], 1.0)
        Size().estimate(self.output)


@hl.generator(name="large")
class Large(hl.Generator):
    """An output of more than 2 GB."""

    input, output = image(hl.UInt(8)), result()

    def generate(self):
        self.output[x, y] = hl.f32(self.input[x, y]) * 2.0
        Size(40000, 20000).estimate(self.output)


@hl.generator(name="empty")
class Empty(hl.Generator):
    """Estimates of an output without a point."""

    input, output = image(), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] * 2.0
        self.output.set_estimates([(0, 0), (0, H)])


@hl.generator(name="required")
class Required(hl.Generator):
    """A condition of its inputs that random ones don't meet (require)."""

    input, output = image(hl.Int(32)), result(hl.Int(32))

    def generate(self):
        self.output[x, y] = hl.require(self.input[x, y] == 12345, self.input[x, y], hl.Expr("not what was agreed"))
        Size().estimate(self.output)


@hl.generator(name="depends_on_order")
class DependsOnOrder(hl.Generator):
    """Floats that overflow to infinity or not, by the order of a sum."""

    input, output = image(), result(dimensions=1)

    def generate(self):
        r = hl.RDom([(0, W)], "r")
        scaled = hl.Func("scaled")
        scaled[x, y] = (self.input[x, y] - 0.5) * hl.f32(3e38)
        self.output[y] = 0.0
        self.output[y] += scaled[r, y]
        self.output.set_estimates([(0, H)])


@hl.generator(name="slow")
class Slow(hl.Generator):
    """Scalar work that no schedule makes fast: seconds a call."""

    input, output = image(hl.UInt(32)), result(hl.UInt(32))

    def generate(self):
        r, step = hl.RDom([(0, 3000)], "r"), hl.Func("step")
        step[x, y] = self.input[x, y]
        step[x, y] = step[x, y] * hl.u32(1664525) + hl.u32(r) % (step[x, y] % 97 + 3)
        self.output[x, y] = step[x, y]
        Size(512, 256).estimate(self.output)


@hl.generator(name="imaging::höhe")
class Hoehe(hl.Generator):
    """A name in a namespace of C++, with an umlaut; Funcs of the same name."""

    input, output = image(), result()

    def generate(self):
        first, second = hl.Func("höhe"), hl.Func("höhe")
        first[x, y] = hl.sqrt(self.input[x, y])
        second[x, y] = first[x, y] + first[x + 1, y]
        self.output[x, y] = second[x, y] * second[x, y + 1]
        Size().estimate(self.output)


@hl.generator(name="raising")
class Raising(hl.Generator):
    """A Generator that raises an exception."""

    output = result()

    def generate(self):
        raise KeyError("no such table")
