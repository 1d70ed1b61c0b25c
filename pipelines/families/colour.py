"""Families of kernels on colour images, for training: VARIANTS has the values that the variants of a Generator are drawn from."""

import halide as hl

x, y, c, i = hl.vars("x y c i")
WIDTHS, HEIGHTS = (320, 512, 640, 1000, 1280, 1920), (240, 360, 512, 720, 1080)
SIZES = {"width": WIDTHS, "height": HEIGHTS}
U8, U16, I16, I32, F32 = hl.UInt(8), hl.UInt(16), hl.Int(16), hl.Int(32), hl.Float(32)
TYPES = {str(type): type for type in (U8, U16, I16, I32, F32)}


def estimate(self, channels=3):
    self.input.set_estimates([(0, self.width), (0, self.height), (0, channels)])
    self.output.set_estimates([(0, self.width), (0, self.height), (0, 3)])


def by_channel(values):
    return hl.mux(c, values)


@hl.generator(name="rgb_to_yuv")
class RgbToYuv(hl.Generator):
    """RGB to YCbCr of JPEG, in 16-bit fixed point."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        r, g, b = (hl.i32(self.input[x, y, channel]) for channel in range(3))
        yuv = (77 * r + 150 * g + 29 * b) >> 8, ((-43 * r - 85 * g + 128 * b) >> 8) + 128, ((128 * r - 107 * g - 21 * b) >> 8) + 128
        self.output[x, y, c] = hl.u8_sat(by_channel(list(yuv)))
        self.output.bound(c, 0, 3)
        estimate(self)


@hl.generator(name="yuv420_to_rgb")
class Yuv420ToRgb(hl.Generator):
    """A frame of video to RGB: brightness at full size, both colours at half."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    luma = hl.InputBuffer(U8, 2)
    chroma = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        v = hl.i32(self.luma[x, y])
        cb, cr = (hl.i32(self.chroma[x // 2, y // 2, channel]) - 128 for channel in range(2))
        rgb = [v + ((359 * cr) >> 8), v - ((88 * cb + 183 * cr) >> 8), v + ((454 * cb) >> 8)]
        self.output[x, y, c] = hl.u8_sat(by_channel(rgb))
        self.luma.set_estimates([(0, self.width), (0, self.height)])
        self.chroma.set_estimates([(0, self.width // 2), (0, self.height // 2), (0, 2)])
        self.output.set_estimates([(0, self.width), (0, self.height), (0, 3)])


@hl.generator(name="demosaic_bilinear")
class DemosaicBilinear(hl.Generator):
    """A sensor's mosaic (RGGB) to colours, each the mean of its nearest neighbours."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U16, 2)
    output = hl.OutputBuffer(U16, 3)

    def generate(self):
        edge = hl.BoundaryConditions.mirror_interior(self.input)
        raw = hl.Func("raw")
        raw[x, y] = hl.u32(edge[x, y])
        here = raw[x, y]
        across, down = (raw[x - 1, y] + raw[x + 1, y]) // 2, (raw[x, y - 1] + raw[x, y + 1]) // 2
        cross = (raw[x - 1, y] + raw[x + 1, y] + raw[x, y - 1] + raw[x, y + 1]) // 4
        corners = (raw[x - 1, y - 1] + raw[x + 1, y - 1] + raw[x - 1, y + 1] + raw[x + 1, y + 1]) // 4
        even_x, even_y = x % 2 == 0, y % 2 == 0
        red = hl.select(even_y, hl.select(even_x, here, across), hl.select(even_x, down, corners))
        green = hl.select(even_x == even_y, cross, here)
        blue = hl.select(even_y, hl.select(even_x, corners, down), hl.select(even_x, across, here))
        self.output[x, y, c] = hl.u16(by_channel([red, green, blue]))
        self.input.set_estimates([(0, self.width), (0, self.height)])
        self.output.set_estimates([(0, self.width), (0, self.height), (0, 3)])


@hl.generator(name="tone_map")
class ToneMap(hl.Generator):
    """Reinhard's global tone mapping (2002): the mean of the logarithm of brightness, then a curve by it; float to uint8."""

    VARIANTS = {"width": WIDTHS, "height": HEIGHTS}
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(512)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        bright, rows, mean = hl.funcs("bright rows mean")
        rx, ry = hl.RDom([(0, self.width)], "rx"), hl.RDom([(0, self.height)], "ry")
        r, g, b = (self.input[x, y, channel] for channel in range(3))
        bright[x, y] = hl.f32(0.27) * r + hl.f32(0.67) * g + hl.f32(0.06) * b
        rows[y] = hl.f32(0)
        rows[y] += hl.log(hl.abs(bright[rx, y]) + hl.f32(0.0001))
        mean[()] = hl.f32(0)
        mean[()] += rows[ry]
        key = hl.f32(0.18) / hl.exp(mean[()] * hl.f32(1 / (self.width * self.height)))
        scaled = bright[x, y] * key
        self.output[x, y, c] = hl.u8_sat(
            self.input[x, y, c] / (bright[x, y] + hl.f32(0.0001)) * scaled / (hl.f32(1) + scaled) * hl.f32(255)
        )
        estimate(self)


@hl.generator(name="colour_curve")
class ColourCurve(hl.Generator):
    """Each channel through a table of its own: a gather a point."""

    VARIANTS = {"element": ("uint8", "uint16"), "levels": (256, 1024), **SIZES}
    element, levels = hl.GeneratorParam("uint8"), hl.GeneratorParam(256)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 3))
        self.add_input("curve", hl.InputBuffer(U8, 2))
        self.add_output("output", hl.OutputBuffer(U8, 3))

    def generate(self):
        shift = max(TYPES[self.element].bits() - self.levels.bit_length() + 1, 0)
        level = hl.clamp(hl.i32(self.input[x, y, c]) >> shift, 0, self.levels - 1)
        self.output[x, y, c] = self.curve[level, c]
        self.curve.set_estimates([(0, self.levels), (0, 3)])
        estimate(self)


@hl.generator(name="grey_world")
class GreyWorld(hl.Generator):
    """White balance by the means of the channels."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        rows, total = hl.funcs("rows total")
        rx, ry = hl.RDom([(0, self.width)], "rx"), hl.RDom([(0, self.height)], "ry")
        rows[y, c] = hl.u32(0)
        rows[y, c] += hl.u32(self.input[rx, y, c])
        total[c] = hl.f32(1)
        total[c] += hl.f32(rows[ry, c]) * hl.f32(1 / (self.width * self.height))
        grey = (total[0] + total[1] + total[2]) * hl.f32(1 / 3)
        self.output[x, y, c] = hl.u8_sat(hl.f32(self.input[x, y, c]) * grey / total[c])
        estimate(self)


@hl.generator(name="alpha_blend")
class AlphaBlend(hl.Generator):
    """One image over another by the alpha in its fourth channel; planar."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 3)
    below = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        alpha = hl.u16(self.input[x, y, 3])
        mixed = hl.u16(self.input[x, y, c]) * alpha + hl.u16(self.below[x, y, c]) * (hl.u16(255) - alpha)
        self.output[x, y, c] = hl.u8((mixed + hl.u16(127)) / hl.u16(255))
        self.below.set_estimates([(0, self.width), (0, self.height), (0, 3)])
        estimate(self, channels=4)


@hl.generator(name="image_histogram")
class ImageHistogram(hl.Generator):
    """How often each value occurs, a histogram a channel: updates at addresses that the data say."""

    VARIANTS = {"bins": (16, 64, 256), **SIZES}
    bins, width, height = hl.GeneratorParam(256), hl.GeneratorParam(640), hl.GeneratorParam(512)
    input = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(hl.UInt(32), 2)

    def generate(self):
        r, histogram = hl.RDom([(0, self.width), (0, self.height)], "r"), hl.Func("histogram")
        histogram[i, c] = hl.u32(0)
        histogram[hl.i32(self.input[r.x, r.y, c]) * self.bins // 256, c] += hl.u32(1)
        self.output[i, c] = histogram[i, c]
        self.input.set_estimates([(0, self.width), (0, self.height), (0, 3)])
        self.output.set_estimates([(0, self.bins), (0, 3)])


@hl.generator(name="saturate_colours")
class SaturateColours(hl.Generator):
    """Colours moved away from grey, and a vignette: arithmetic alone; float."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        grey = hl.Func("grey")
        grey[x, y] = (self.input[x, y, 0] + self.input[x, y, 1] + self.input[x, y, 2]) * hl.f32(1 / 3)
        dx, dy = (hl.f32(x) * hl.f32(2 / self.width) - hl.f32(1), hl.f32(y) * hl.f32(2 / self.height) - hl.f32(1))
        value = grey[x, y] + (self.input[x, y, c] - grey[x, y]) * hl.f32(1.4)
        self.output[x, y, c] = hl.clamp(value / (hl.f32(1) + hl.f32(0.3) * (dx * dx + dy * dy)), hl.f32(0), hl.f32(1))
        estimate(self)
