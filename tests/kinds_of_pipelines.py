"""Small pipelines of many kinds, each a Generator of its own: what a tuner has to build, schedule, run and compare.

The docstring of each says what is unusual about it. All have estimates for outputs and scalars; some have none for inputs.
"""

import halide as hl
import numpy as np

x, y, c = hl.vars("x y c")
W, H = 96, 64


def image(type=None, dimensions=2):
    return hl.InputBuffer(type or hl.Float(32), dimensions)


def result(type=None, dimensions=2):
    return hl.OutputBuffer(type or hl.Float(32), dimensions)


def picture(*buffers):
    for buffer in buffers:
        buffer.set_estimates([(0, W), (0, H), (0, 3)][: buffer.dimensions()])


@hl.generator(name="planar")
class Planar(hl.Generator):
    """Nothing: a stencil on a planar picture."""

    input, output = image(hl.UInt(16)), result(hl.UInt(16))

    def generate(self):
        rows = hl.Func("rows")
        rows[x, y] = self.input[x, y] + self.input[x + 1, y] + self.input[x + 2, y]
        self.output[x, y] = (rows[x, y] + rows[x, y + 1] + rows[x, y + 2]) / 9
        picture(self.output)
        self.input.set_estimates([(0, W + 2), (0, H + 2)])


@hl.generator(name="interleaved")
class Interleaved(hl.Generator):
    """Interleaved colours: three elements a pixel."""

    input, output = image(hl.UInt(8), 3), result(hl.UInt(8), 3)

    def generate(self):
        self.output[x, y, c] = self.input[x, y, c] / 2 + self.input[x + 1, y, c] / 2
        picture(self.output)
        for buffer in (self.input, self.output.output_buffer()):
            buffer.dim(0).set_stride(3)
            buffer.dim(2).set_stride(1).set_bounds(0, 3)


@hl.generator(name="padded_rows")
class PaddedRows(hl.Generator):
    """Rows of a fixed pitch, larger than the picture."""

    input, output = image(), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] * 2.0 + self.input[x, y + 1]
        picture(self.output)
        self.input.dim(1).set_stride(128)
        self.output.output_buffer().dim(1).set_stride(160)


@hl.generator(name="other_minima")
class OtherMinima(hl.Generator):
    """Coordinates that begin elsewhere than at 0."""

    input, output = image(hl.Int(32)), result(hl.Int(32))

    def generate(self):
        shifted = hl.Func("shifted")
        shifted[x, y] = self.input[x - 1, y] - self.input[x, y]
        self.output[x, y] = shifted[x, y] * (x + y) + shifted[x + 1, y + 1]
        self.output.set_estimates([(-17, W), (100, H)])


@hl.generator(name="aligned")
class Aligned(hl.Generator):
    """Buffers whose memory must be aligned to more than Halide's own."""

    input, output = image(), result()

    def generate(self):
        self.output[x, y] = hl.sqrt(self.input[x, y]) + self.input[x, y + 1]
        picture(self.output)
        self.input.set_host_alignment(1024)
        self.output.output_buffer().set_host_alignment(512)


@hl.generator(name="rank_one")
class RankOne(hl.Generator):
    """One dimension."""

    input, output = image(dimensions=1), result(dimensions=1)

    def generate(self):
        smooth = hl.Func("smooth")
        smooth[x] = self.input[x] + self.input[x + 1]
        self.output[x] = smooth[x] * smooth[x + 1]
        self.output.set_estimates([(0, 5000)])


@hl.generator(name="rank_five")
class RankFive(hl.Generator):
    """Five dimensions."""

    input, output = image(dimensions=5), result(dimensions=5)

    def generate(self):
        a, b = hl.vars("a b")
        self.output[x, y, c, a, b] = self.input[x, y, c, a, b] + self.input[x + 1, y, c + 1, a, b + 1]
        self.output.set_estimates([(0, 16), (0, 12), (0, 5), (0, 4), (0, 3)])


@hl.generator(name="rank_zero")
class RankZero(hl.Generator):
    """An input and an output without dimensions."""

    gain, input, total = image(dimensions=0), image(), result(dimensions=0)

    def generate(self):
        r = hl.RDom([(0, W), (0, H)], "r")
        scaled, rows = hl.Func("scaled"), hl.Func("rows")
        scaled[x, y] = self.input[x, y] * self.gain[()]
        rows[y] = 0.0
        rows[y] += scaled[r.x, y]
        s = hl.RDom([(0, H)], "s")
        self.total[()] = 0.0
        self.total[()] += rows[s]
        self.input.set_estimates([(0, W), (0, H)])
        self.total.set_estimates([])


@hl.generator(name="bytes_saturated")
class BytesSaturated(hl.Generator):
    """Signed bytes, saturating."""

    input, output = image(hl.Int(8)), result(hl.Int(8))

    def generate(self):
        self.output[x, y] = hl.i8_sat(hl.i16(self.input[x, y]) * 2 + hl.i16(self.input[x + 1, y]))
        picture(self.output)


@hl.generator(name="sixty_four_bits")
class SixtyFourBits(hl.Generator):
    """64-bit integers, signed and not."""

    input, big, signed = image(hl.UInt(64)), result(hl.UInt(64)), result(hl.Int(64))

    def generate(self):
        self.big[x, y] = self.input[x, y] * hl.u64(2**40 + 7) + self.input[x + 1, y]
        self.signed[x, y] = hl.i64(self.input[x, y]) - hl.i64(self.input[x, y + 1]) * 3
        picture(self.big, self.signed)


@hl.generator(name="doubles")
class Doubles(hl.Generator):
    """64-bit floats."""

    input, output = image(hl.Float(64)), result(hl.Float(64))

    def generate(self):
        self.output[x, y] = hl.exp(self.input[x, y]) / (self.input[x + 1, y] + hl.f64(1.0))
        picture(self.output)


@hl.generator(name="half_floats")
class HalfFloats(hl.Generator):
    """16-bit floats of IEEE."""

    input, output = image(hl.Float(16)), result(hl.Float(16))

    def generate(self):
        self.output[x, y] = hl.cast(hl.Float(16), hl.f32(self.input[x, y]) * 0.5 + hl.f32(self.input[x + 1, y]))
        picture(self.output)


@hl.generator(name="brain_floats")
class BrainFloats(hl.Generator):
    """16-bit floats that numpy does not have."""

    input, output = image(hl.BFloat(16)), result(hl.BFloat(16))

    def generate(self):
        self.output[x, y] = hl.cast(hl.BFloat(16), hl.f32(self.input[x, y]) * 0.5 + hl.f32(self.input[x + 1, y]))
        picture(self.output)


@hl.generator(name="booleans")
class Booleans(hl.Generator):
    """Truth values in and out."""

    input, output = image(hl.Bool()), result(hl.Bool())

    def generate(self):
        self.output[x, y] = self.input[x, y] & (self.input[x + 1, y] | self.input[x, y + 1])
        picture(self.output)


@hl.generator(name="several_outputs")
class SeveralOutputs(hl.Generator):
    """Outputs of different types and ranks."""

    input, sharp, mask, row_sums = image(), result(), result(hl.UInt(8)), result(dimensions=1)

    def generate(self):
        mean = hl.Func("mean")
        mean[x, y] = (self.input[x, y] + self.input[x + 1, y]) / 2
        self.sharp[x, y] = self.input[x, y] * 2 - mean[x, y]
        self.mask[x, y] = hl.u8(mean[x, y] > 0.5)
        r = hl.RDom([(0, W)], "r")
        self.row_sums[y] = 0.0
        self.row_sums[y] += mean[r, y]
        picture(self.sharp, self.mask)
        self.row_sums.set_estimates([(0, H)])


@hl.generator(name="tuples")
class Tuples(hl.Generator):
    """A Tuple for an output, and one in between."""

    input = image(hl.Int(16))
    output = hl.OutputBuffer([hl.Int(32), hl.Float(32)], 2)

    def generate(self):
        both = hl.Func("both")
        both[x, y] = (hl.i32(self.input[x, y]), hl.f32(self.input[x + 1, y]))
        self.output[x, y] = (both[x, y][0] + both[x, y + 1][0], both[x, y][1] * 0.25)
        picture(self.output)


@hl.generator(name="scalars")
class Scalars(hl.Generator):
    """Scalars of several types."""

    input, gain, offset, flip, output = (
        image(),
        hl.InputScalar(hl.Float(32)),
        hl.InputScalar(hl.Int(32)),
        hl.InputScalar(hl.Bool()),
        result(),
    )

    def generate(self):
        value = self.input[x, y] * self.gain + hl.f32(self.offset)
        self.output[x, y] = hl.select(self.flip, 0.0 - value, value)
        self.gain.set_estimate(1.5)
        self.offset.set_estimate(-3)
        self.flip.set_estimate(True)
        picture(self.output)


@hl.generator(name="parameters")
class Parameters(hl.Generator):
    """GeneratorParams and an element type that is open: needs `input.type` and `output.type`."""

    radius, signed = hl.GeneratorParam(2), hl.GeneratorParam(False)
    input, output = hl.InputBuffer(None, 2), hl.OutputBuffer(None, 2)

    def generate(self):
        r = hl.RDom([(0, 2 * self.radius + 1)], "r")
        total = hl.sum(r, hl.f32(self.input[x + r, y]), "total")
        self.output[x, y] = hl.cast(self.output.type(), (0.0 - total if self.signed else total) / (2 * self.radius + 1))
        picture(self.output)


@hl.generator(name="unused_input")
class UnusedInput(hl.Generator):
    """Inputs, a buffer and a scalar, that are declared and not used."""

    input, mask, strength, output = image(), image(hl.UInt(8)), hl.InputScalar(hl.Float(32)), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] + self.input[x + 1, y + 1]
        picture(self.output)


@hl.generator(name="boundary")
class Boundary(hl.Generator):
    """A boundary condition: the algorithm reads how large its input is, and there are no estimates for it."""

    input, output = image(), result()

    def generate(self):
        padded = hl.BoundaryConditions.repeat_edge(self.input)
        self.output[x, y] = padded[x - 3, y] + padded[x + 3, y - 1]
        picture(self.output)


@hl.generator(name="histogram")
class Histogram(hl.Generator):
    """A scatter: an update at places that the input says."""

    input, output = image(hl.UInt(8)), result(hl.Int(32), 1)

    def generate(self):
        r = hl.RDom([(0, W), (0, H)], "r")
        self.output[x] = 0
        self.output[hl.i32(self.input[r.x, r.y])] += 1
        self.output.set_estimates([(0, 256)])
        self.input.set_estimates([(0, W), (0, H)])


@hl.generator(name="scatter")
class Scatter(hl.Generator):
    """A permutation written backwards, from a Func."""

    input, output = image(hl.Int(32), 1), result(hl.Int(32), 1)

    def generate(self):
        r = hl.RDom([(0, 1024)], "r")
        doubled = hl.Func("doubled")
        doubled[x] = self.input[x] * 2
        self.output[x] = 0
        self.output[1023 - r] = doubled[r] + doubled[r + 1]
        self.output.set_estimates([(0, 1024)])


@hl.generator(name="scan")
class Scan(hl.Generator):
    """A running sum along rows, then along columns."""

    input, output = image(), result()

    def generate(self):
        r, s = hl.RDom([(1, W - 1)], "r"), hl.RDom([(1, H - 1)], "s")
        rows = hl.Func("rows")
        rows[x, y] = self.input[x, y]
        rows[r, y] += rows[r - 1, y] * 0.5
        self.output[x, y] = rows[x, y]
        self.output[x, s] += self.output[x, s - 1] * 0.5
        picture(self.output, self.input)


@hl.generator(name="undefined")
class Undefined(hl.Generator):
    """A pure definition that says nothing (undef): every other row is written by an update alone."""

    input, output = image(hl.Int(32)), result(hl.Int(32))

    def generate(self):
        r = hl.RDom([(0, H // 2)], "r")
        self.output[x, y] = hl.undef(hl.Int(32))
        self.output[x, 2 * r] = self.input[x, r]
        self.output[x, 2 * r + 1] = self.input[x, r] * 2
        picture(self.output)


@hl.generator(name="where")
class Where(hl.Generator):
    """A reduction over a triangle (RDom.where)."""

    input, output = image(), result()

    def generate(self):
        r = hl.RDom([(0, 8), (0, 8)], "r")
        r.where(r.x < r.y)
        self.output[x, y] = 0.0
        self.output[x, y] += self.input[x + r.x, y + r.y]
        picture(self.output)


@hl.generator(name="where_of_data")
class WhereOfData(hl.Generator):
    """A reduction whose length is in a buffer, clamped."""

    input, lengths, output = image(), image(hl.UInt(8), 1), result(dimensions=1)

    def generate(self):
        r = hl.RDom([(0, 32)], "r")
        r.where(r < hl.i32(self.lengths[y]) % 32)
        self.output[y] = 0.0
        self.output[y] += self.input[r, y]
        self.output.set_estimates([(0, H)])


@hl.generator(name="table")
class Table(hl.Generator):
    """An index: a table looked up at what a picture says."""

    input, table, output = image(hl.UInt(8)), image(dimensions=1), result()

    def generate(self):
        self.output[x, y] = self.table[hl.i32(self.input[x, y])] + self.table[hl.i32(self.input[x + 1, y])]
        picture(self.output)


@hl.generator(name="gather")
class Gather(hl.Generator):
    """Indices in 32 bits, clamped to what they index."""

    index, values, output = image(hl.Int(32), 1), image(dimensions=1), result(dimensions=1)

    def generate(self):
        self.output[x] = self.values[hl.clamp(self.index[x], 0, 499)] * 2.0
        self.output.set_estimates([(0, 2000)])


@hl.generator(name="sparse")
class Sparse(hl.Generator):
    """Indices that are used twice, so that Halide gives them a name (let): where rows begin, and their columns."""

    starts, columns, values, vector = image(hl.UInt(8), 1), image(hl.UInt(8), 1), image(dimensions=1), image(dimensions=1)
    output = result(dimensions=1)

    def generate(self):
        r = hl.RDom([(0, 16)], "r")
        at = hl.i32(self.starts[x]) + r
        self.output[x] = 0.0
        self.output[x] += self.values[at] * self.vector[hl.i32(self.columns[at])]
        self.output.set_estimates([(0, 500)])


@hl.generator(name="bottom_up")
class BottomUp(hl.Generator):
    """Pictures that are stored from the bottom row up: strides that are negative."""

    input, output = image(hl.UInt(8)), result(hl.UInt(8))

    def generate(self):
        self.output[x, y] = self.input[x, y] / 2 + self.input[x, y + 1] / 4
        picture(self.output)
        self.input.dim(1).set_stride(-128)
        self.output.output_buffer().dim(1).set_stride(-96)


@hl.generator(name="broadcast")
class Broadcast(hl.Generator):
    """A row that stands for all rows: a stride of 0."""

    input, bias, output = image(), image(), result()

    def generate(self):
        self.output[x, y] = self.input[x, y] + self.bias[x, y]
        picture(self.output)
        self.bias.dim(1).set_stride(0)


@hl.generator(name="warp")
class Warp(hl.Generator):
    """Offsets in 16 bits around the point: a Func that can't be stored in full, since it may be read anywhere."""

    source, dx, output = image(), image(hl.Int(16)), result()

    def generate(self):
        brighter = hl.Func("brighter")
        brighter[x, y] = hl.sqrt(hl.BoundaryConditions.constant_exterior(self.source, 0.5)[x, y])
        self.output[x, y] = brighter[x + hl.i32(self.dx[x, y]), y]
        picture(self.output, self.source)


@hl.generator(name="argmax")
class Argmax(hl.Generator):
    """The place of a maximum, which a last bit may move."""

    input, output = image(), result(hl.Int(32), 1)

    def generate(self):
        r = hl.RDom([(0, W)], "r")
        self.output[y] = hl.argmax(self.input[r, y] * hl.f32(0.7), "best")[0]
        self.output.set_estimates([(0, H)])


@hl.generator(name="matrix_product")
class MatrixProduct(hl.Generator):
    """A long sum of floats, which depends on the order of its terms in the last bits."""

    a, b, output = image(), image(), result()

    def generate(self):
        k = hl.RDom([(0, 200)], "k")
        self.output[x, y] = 0.0
        self.output[x, y] += self.a[k, y] * self.b[x, k]
        picture(self.output)


@hl.generator(name="downsampled")
class Downsampled(hl.Generator):
    """Half the size, then twice: strided reads."""

    input, output = image(), result()

    def generate(self):
        down = hl.Func("down")
        down[x, y] = (self.input[2 * x, 2 * y] + self.input[2 * x + 1, 2 * y + 1]) / 2
        self.output[x, y] = down[x / 2, y / 2] + self.input[x, y]
        picture(self.output)


@hl.generator(name="constant_table")
class ConstantTable(hl.Generator):
    """A table that is part of the program."""

    input, output = image(hl.UInt(8)), result(hl.UInt(8))

    def generate(self):
        table = hl.Buffer(np.arange(256, dtype=np.uint8)[::-1].copy(), "levels")
        self.output[x, y] = table[hl.i32(self.input[x, y])]
        picture(self.output)


@hl.generator(name="promised")
class Promised(hl.Generator):
    """An index that is promised to be in range (unsafe_promise_clamped): random contents break the promise."""

    index, values, output = image(hl.Int(32), 1), image(dimensions=1), result(dimensions=1)

    def generate(self):
        self.output[x] = self.values[hl.unsafe_promise_clamped(self.index[x], 0, 499)] * 2.0
        self.output.set_estimates([(0, 2000)])


@hl.generator(name="hand_scheduled")
class HandScheduled(hl.Generator):
    """A schedule by its author, in the branch without autoscheduler."""

    input, output = image(), result()

    def generate(self):
        f = hl.Func("f")
        f[x, y] = self.input[x, y] * 2.0
        self.output[x, y] = f[x, y] + f[x + 1, y]
        picture(self.output)
        if not self.using_autoscheduler():
            self.output.vectorize(x, 8).parallel(y)
            f.compute_at(self.output, y).vectorize(x, 8)


@hl.generator(name="schedule_left_in")
class ScheduleLeftIn(hl.Generator):
    """A schedule by its author that is there with an autoscheduler, too: splits, a wrapper, rfactor."""

    input, output = image(), result()

    def generate(self):
        xi, u = hl.vars("xi u")
        r = hl.RDom([(0, 16)], "r")
        f, g = hl.Func("f"), hl.Func("g")
        f[x, y] = self.input[x, y] * 2.0
        g[x, y] = 0.0
        g[x, y] += f[x + r, y]
        self.output[x, y] = f[x, y] + g[x + 1, y]
        picture(self.output)
        self.output.split(x, x, xi, 16).vectorize(xi)
        self.input.in_().compute_root()
        f.in_().compute_root()
        f.compute_root()
        g.compute_root()
        r0, r1 = hl.RVar("r0"), hl.RVar("r1")
        g.update().split(r, r0, r1, 4).rfactor(r1, u).compute_root()
