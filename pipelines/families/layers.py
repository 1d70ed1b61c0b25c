"""Further families of neural networks, for training: VARIANTS has the values that the variants of a Generator are drawn from."""

import halide as hl

x, y, c, n, k = hl.vars("x y c n k")
I8, U8, I32, F32 = hl.Int(8), hl.UInt(8), hl.Int(32), hl.Float(32)


def summed(name, at, term, start=0.0):
    """A Func that adds `term` up, by an update."""
    func = hl.Func(name)
    func[at] = hl.f32(start)
    func[at] += term
    return func


@hl.generator(name="rms_norm_rope")
class RmsNormRope(hl.Generator):
    """Normalisation by the root of the mean square (Zhang, Sennrich 2019), then rotary positions (Su et al. 2021) of each head; float."""

    VARIANTS = {"width": (32, 64, 128), "heads": (1, 8, 32), "tokens": (1, 32, 256)}
    width, heads, tokens = hl.GeneratorParam(64), hl.GeneratorParam(8), hl.GeneratorParam(32)
    input = hl.InputBuffer(F32, 3)
    angle = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        half, r = self.width // 2, hl.RDom([(0, self.width)], "r")
        square = summed("square", (c, n), self.input[r, c, n] * self.input[r, c, n] * hl.f32(1 / self.width), 1e-5)
        normal, cosine, sine = hl.funcs("normal cosine sine")
        normal[x, c, n] = self.input[x, c, n] / hl.sqrt(square[c, n])
        cosine[x, n] = hl.cos(self.angle[x, n])
        sine[x, n] = hl.sin(self.angle[x, n])
        turned = hl.select(x < half, -normal[(x + half) % self.width, c, n], normal[(x + half) % self.width, c, n])
        self.output[x, c, n] = normal[x, c, n] * cosine[x % half, n] + turned * sine[x % half, n]
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.width), (0, self.heads), (0, self.tokens)])
        self.angle.set_estimates([(0, half), (0, self.tokens)])


@hl.generator(name="squeeze_excite")
class SqueezeExcite(hl.Generator):
    """Squeeze and excitation (Hu et al. 2018): the mean of each channel, two small dense layers, channels scaled by them; float."""

    VARIANTS = {"channels": (16, 64, 256), "reduced": (4, 16), "size": (7, 14, 28, 56)}
    channels, reduced, size = hl.GeneratorParam(64), hl.GeneratorParam(16), hl.GeneratorParam(28)
    input = hl.InputBuffer(F32, 3)
    down = hl.InputBuffer(F32, 2)
    up = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        area = hl.RDom([(0, self.size), (0, self.size)], "area")
        r, s = hl.RDom([(0, self.channels)], "r"), hl.RDom([(0, self.reduced)], "s")
        mean = summed("mean", c, self.input[c, area.x, area.y] * hl.f32(1 / self.size**2))
        squeezed = summed("squeezed", k, self.down[r, k] * mean[r])
        excited = summed("excited", c, self.up[s, c] * hl.max(squeezed[s], hl.f32(0)))
        gate = hl.Func("gate")
        gate[c] = hl.f32(1) / (hl.f32(1) + hl.exp(-excited[c]))
        self.output[c, x, y] = self.input[c, x, y] * gate[c]
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.channels), (0, self.size), (0, self.size)])
        self.down.set_estimates([(0, self.channels), (0, self.reduced)])
        self.up.set_estimates([(0, self.reduced), (0, self.channels)])


@hl.generator(name="linear_attention")
class LinearAttention(hl.Generator):
    """Attention without a softmax (Katharopoulos et al. 2020): keys times values first, then queries times that; float."""

    VARIANTS = {"width": (16, 32, 64), "tokens": (64, 256, 1024), "heads": (1, 4, 8)}
    width, tokens, heads = hl.GeneratorParam(32), hl.GeneratorParam(256), hl.GeneratorParam(4)
    query = hl.InputBuffer(F32, 3)
    key = hl.InputBuffer(F32, 3)
    value = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r, s = hl.RDom([(0, self.tokens)], "r"), hl.RDom([(0, self.width)], "s")
        key, query = hl.funcs("positive_key positive_query")
        for func, buffer in ((key, self.key), (query, self.query)):
            func[x, y, n] = hl.select(buffer[x, y, n] > hl.f32(0), buffer[x, y, n] + hl.f32(1), hl.exp(hl.min(buffer[x, y, n], hl.f32(0))))
        memory = summed("memory", (x, k, n), key[k, r, n] * self.value[x, r, n])
        weight = summed("weight", (k, n), key[k, r, n])
        above = summed("above", (x, y, n), query[s, y, n] * memory[x, s, n])
        below = summed("below", (y, n), query[s, y, n] * weight[s, n], 1e-3)
        self.output[x, y, n] = above[x, y, n] / below[y, n]
        for buffer in (self.query, self.key, self.value, self.output):
            buffer.set_estimates([(0, self.width), (0, self.tokens), (0, self.heads)])


@hl.generator(name="group_norm")
class GroupNorm(hl.Generator):
    """Group normalisation (Wu, He 2018): mean and deviation over an image and a group of its channels, planar; float."""

    VARIANTS = {"channels": (16, 64, 128), "groups": (1, 4, 8), "size": (14, 28, 56)}
    channels, groups, size = hl.GeneratorParam(64), hl.GeneratorParam(8), hl.GeneratorParam(28)
    input = hl.InputBuffer(F32, 3)
    gain = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        each = self.channels // self.groups
        r, share = hl.RDom([(0, self.size), (0, self.size), (0, each)], "r"), hl.f32(1 / (self.size**2 * each))
        value = self.input[r.x, r.y, k * each + r.z]
        mean, square = summed("mean", k, value * share), summed("square", k, value * value * share)
        scale = hl.Func("scale")
        scale[k] = hl.f32(1) / hl.sqrt(hl.max(square[k] - mean[k] * mean[k], hl.f32(0)) + hl.f32(0.001))
        self.output[x, y, c] = (self.input[x, y, c] - mean[c // each]) * scale[c // each] * self.gain[c]
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.size), (0, self.size), (0, self.channels)])
        self.gain.set_estimates([(0, self.channels)])


@hl.generator(name="cross_entropy")
class CrossEntropy(hl.Generator):
    """The cross-entropy of rows of logits with a label each: a maximum, a sum of exponentials, and one gather a row; float."""

    VARIANTS = {"classes": (10, 128, 1000, 8192), "rows": (16, 128, 1024)}
    classes, rows = hl.GeneratorParam(1000), hl.GeneratorParam(128)
    logits = hl.InputBuffer(F32, 2)
    label = hl.InputBuffer(I32, 1)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        r, largest = hl.RDom([(0, self.classes)], "r"), hl.Func("largest")
        largest[y] = hl.f32(-1e30)
        largest[y] = hl.max(largest[y], self.logits[r, y])
        total = summed("total", y, hl.exp(self.logits[r, y] - largest[y]))
        named = self.logits[hl.clamp(self.label[y] % self.classes, 0, self.classes - 1), y]
        self.output[y] = hl.log(total[y]) + largest[y] - named
        self.logits.set_estimates([(0, self.classes), (0, self.rows)])
        self.label.set_estimates([(0, self.rows)])
        self.output.set_estimates([(0, self.rows)])


@hl.generator(name="pixel_shuffle")
class PixelShuffle(hl.Generator):
    """Channels spread out into an image of several times the size (Shi et al. 2016): memory moved, nothing computed."""

    VARIANTS = {"element": ("uint8", "float32"), "factor": (2, 3, 4), "size": (64, 160, 320), "channels": (1, 3)}
    element, factor, size, channels = hl.GeneratorParam("float32"), hl.GeneratorParam(2), hl.GeneratorParam(160), hl.GeneratorParam(3)

    def configure(self):
        type = U8 if self.element == "uint8" else F32
        self.add_input("input", hl.InputBuffer(type, 3))
        self.add_output("output", hl.OutputBuffer(type, 3))

    def generate(self):
        f = self.factor
        self.output[x, y, c] = self.input[x // f, y // f, c * f * f + (y % f) * f + x % f]
        self.input.set_estimates([(0, self.size), (0, self.size), (0, self.channels * f * f)])
        self.output.set_estimates([(0, self.size * f), (0, self.size * f), (0, self.channels)])


@hl.generator(name="quantise_rows")
class QuantiseRows(hl.Generator):
    """Rows to 8-bit integers, each with a scale of its own from its largest value."""

    VARIANTS = {"width": (64, 512, 4096), "rows": (8, 128, 1024)}
    width, rows = hl.GeneratorParam(512), hl.GeneratorParam(128)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(I8, 2)

    def generate(self):
        r, largest = hl.RDom([(0, self.width)], "r"), hl.Func("largest")
        largest[y] = hl.f32(1e-6)
        largest[y] = hl.max(largest[y], hl.abs(self.input[r, y]))
        self.output[x, y] = hl.i8(hl.clamp(hl.round(self.input[x, y] * (hl.f32(127) / largest[y])), hl.f32(-127), hl.f32(127)))
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.width), (0, self.rows)])


@hl.generator(name="im2col")
class Im2col(hl.Generator):
    """An image's windows laid out as rows of a matrix, for a convolution by a matrix product: memory moved; float."""

    VARIANTS = {"kernel": (3, 5), "channels": (3, 16, 64), "size": (14, 28, 56)}
    kernel, channels, size = hl.GeneratorParam(3), hl.GeneratorParam(16), hl.GeneratorParam(28)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        f, depth = self.kernel, self.channels
        tap, at = x // depth, (y % self.size, y // self.size)
        self.output[x, y] = self.input[x % depth, at[0] + tap % f, at[1] + tap // f]
        self.input.set_estimates([(0, depth), (0, self.size + f - 1), (0, self.size + f - 1)])
        self.output.set_estimates([(0, depth * f * f), (0, self.size**2)])


@hl.generator(name="conv_3d")
class Conv3d(hl.Generator):
    """A convolution of a volume by several filters of n x n x n taps; float."""

    VARIANTS = {"kernel": (3, 5), "filters": (4, 16), "size": (16, 32, 64), "depth": (8, 16)}
    kernel, filters, size, depth = hl.GeneratorParam(3), hl.GeneratorParam(4), hl.GeneratorParam(32), hl.GeneratorParam(8)
    input = hl.InputBuffer(F32, 3)
    weights = hl.InputBuffer(F32, 4)
    output = hl.OutputBuffer(F32, 4)

    def generate(self):
        n_taps, r = self.kernel, hl.RDom([(0, self.kernel)] * 3, "r")
        product = self.weights[r.x, r.y, r.z, c] * self.input[x + r.x, y + r.y, k + r.z]
        total = summed("total", (x, y, k, c), product)
        self.output[x, y, k, c] = hl.max(total[x, y, k, c], hl.f32(0))
        wide = self.size + n_taps - 1
        self.input.set_estimates([(0, wide), (0, wide), (0, self.depth + n_taps - 1)])
        self.weights.set_estimates([(0, n_taps)] * 3 + [(0, self.filters)])
        self.output.set_estimates([(0, self.size), (0, self.size), (0, self.depth), (0, self.filters)])


@hl.generator(name="winograd_input")
class WinogradInput(hl.Generator):
    """The transform of 4 x 4 tiles that Winograd's F(2 x 2, 3 x 3) begins with (Lavin, Gray 2016): sums and differences; float."""

    VARIANTS = {"channels": (8, 32, 128), "tiles": (7, 14, 28)}
    channels, tiles = hl.GeneratorParam(32), hl.GeneratorParam(14)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 5)

    def generate(self):
        i, j = hl.vars("i j")
        along_x = hl.Func("along_x")
        row = lambda a: self.input[c, 2 * x + a, y]
        along_x[c, x, y, i] = hl.mux(i, [row(0) - row(2), row(1) + row(2), row(2) - row(1), row(1) - row(3)])
        column = lambda b: along_x[c, x, 2 * y + b, i]
        both = [column(0) - column(2), column(1) + column(2), column(2) - column(1), column(1) - column(3)]
        self.output[c, x, y, i, j] = hl.mux(j, both)
        self.input.set_estimates([(0, self.channels), (0, 2 * self.tiles + 2), (0, 2 * self.tiles + 2)])
        self.output.set_estimates([(0, self.channels), (0, self.tiles), (0, self.tiles), (0, 4), (0, 4)])


@hl.generator(name="argmax_rows")
class ArgmaxRows(hl.Generator):
    """The largest of each row and its place; float."""

    VARIANTS = {"width": (10, 128, 1024, 16384), "rows": (8, 128, 1024)}
    width, rows = hl.GeneratorParam(1024), hl.GeneratorParam(128)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(I32, 1)

    def generate(self):
        r, best = hl.RDom([(0, self.width)], "r"), hl.Func("best")
        best[y] = (hl.f32(-1e30), 0)
        larger = self.input[r, y] > best[y][0]
        best[y] = (hl.select(larger, self.input[r, y], best[y][0]), hl.select(larger, r, best[y][1]))
        self.output[y] = best[y][1]
        self.input.set_estimates([(0, self.width), (0, self.rows)])
        self.output.set_estimates([(0, self.rows)])


@hl.generator(name="pointwise_residual")
class PointwiseResidual(hl.Generator):
    """A convolution by one point, from many channels to many, a bias, and what came in added; channels innermost; float."""

    VARIANTS = {"channels": (16, 32, 96, 192), "size": (7, 14, 28, 56)}
    channels, size = hl.GeneratorParam(32), hl.GeneratorParam(28)
    input = hl.InputBuffer(F32, 3)
    weights = hl.InputBuffer(F32, 2)
    bias = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r, mixed = hl.RDom([(0, self.channels)], "r"), hl.Func("mixed")
        mixed[c, x, y] = self.bias[c]
        mixed[c, x, y] += self.weights[c, r] * self.input[r, x, y] * hl.f32(1 / self.channels)
        self.output[c, x, y] = mixed[c, x, y] + self.input[c, x, y]
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.channels), (0, self.size), (0, self.size)])
        self.weights.set_estimates([(0, self.channels), (0, self.channels)])
        self.bias.set_estimates([(0, self.channels)])
