"""Families of layers of networks, for training: VARIANTS has the values that the variants of a Generator are drawn from."""

import halide as hl

x, y, c, n = hl.vars("x y c n")
I8, I32, F32 = hl.Int(8), hl.Int(32), hl.Float(32)
TYPES = {str(type): type for type in (I8, I32, F32)}


@hl.generator(name="conv_planar")
class ConvPlanar(hl.Generator):
    """A convolution with a stride and a dilation, channels outermost in memory (x, y, channel), no activation; float."""

    VARIANTS = {
        "taps": (1, 3, 5),
        "stride": (1, 2),
        "dilation": (1, 2),
        "inputs": (3, 16, 32),
        "outputs": (8, 16, 64),
        "size": (28, 56, 112),
    }
    taps, stride, dilation = hl.GeneratorParam(3), hl.GeneratorParam(1), hl.GeneratorParam(1)
    inputs, outputs, size = hl.GeneratorParam(16), hl.GeneratorParam(16), hl.GeneratorParam(56)
    input = hl.InputBuffer(F32, 3)
    weights = hl.InputBuffer(F32, 4)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r, conv = hl.RDom([(0, self.taps), (0, self.taps), (0, self.inputs)], "r"), hl.Func("conv")
        at = (x * self.stride + r.x * self.dilation, y * self.stride + r.y * self.dilation, r.z)
        conv[x, y, c] = hl.f32(0)
        conv[x, y, c] += self.weights[r.x, r.y, r.z, c] * self.input[at]
        self.output[x, y, c] = conv[x, y, c]
        reach = (self.size - 1) * self.stride + (self.taps - 1) * self.dilation + 1
        self.input.set_estimates([(0, reach), (0, reach), (0, self.inputs)])
        self.weights.set_estimates([(0, self.taps), (0, self.taps), (0, self.inputs), (0, self.outputs)])
        self.output.set_estimates([(0, self.size), (0, self.size), (0, self.outputs)])


@hl.generator(name="conv_int8")
class ConvInt8(hl.Generator):
    """A 3 x 3 convolution of 8-bit values into 32-bit sums, channels innermost, scaled back to 8 bits."""

    VARIANTS = {"inputs": (8, 32, 64), "outputs": (16, 64), "size": (14, 28, 56)}
    inputs, outputs, size = hl.GeneratorParam(32), hl.GeneratorParam(16), hl.GeneratorParam(28)
    input = hl.InputBuffer(I8, 3)
    weights = hl.InputBuffer(I8, 4)
    output = hl.OutputBuffer(I8, 3)

    def generate(self):
        r, conv = hl.RDom([(0, self.inputs), (0, 3), (0, 3)], "r"), hl.Func("conv")
        conv[c, x, y] = 0
        conv[c, x, y] += hl.i32(self.weights[c, r.x, r.y, r.z]) * hl.i32(self.input[r.x, x + r.y, y + r.z])
        self.output[c, x, y] = hl.i8_sat((conv[c, x, y] + 64) >> 7)
        self.input.set_estimates([(0, self.inputs), (0, self.size + 2), (0, self.size + 2)])
        self.weights.set_estimates([(0, self.outputs), (0, self.inputs), (0, 3), (0, 3)])
        self.output.set_estimates([(0, self.outputs), (0, self.size), (0, self.size)])


@hl.generator(name="depthwise")
class Depthwise(hl.Generator):
    """A depthwise convolution alone, of some channels innermost in memory, with a stride; float."""

    VARIANTS = {"taps": (3, 5, 7), "stride": (1, 2), "channels": (16, 32, 96), "size": (28, 56, 112)}
    taps, stride, channels, size = hl.GeneratorParam(3), hl.GeneratorParam(1), hl.GeneratorParam(32), hl.GeneratorParam(56)
    input = hl.InputBuffer(F32, 3)
    weights = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r, conv = hl.RDom([(0, self.taps), (0, self.taps)], "r"), hl.Func("conv")
        conv[c, x, y] = hl.f32(0)
        conv[c, x, y] += self.weights[c, r.x, r.y] * self.input[c, x * self.stride + r.x, y * self.stride + r.y]
        self.output[c, x, y] = hl.clamp(conv[c, x, y], hl.f32(0), hl.f32(6))
        reach = (self.size - 1) * self.stride + self.taps
        self.input.set_estimates([(0, self.channels), (0, reach), (0, reach)])
        self.weights.set_estimates([(0, self.channels), (0, self.taps), (0, self.taps)])
        self.output.set_estimates([(0, self.channels), (0, self.size), (0, self.size)])


@hl.generator(name="grouped_conv")
class GroupedConv(hl.Generator):
    """A convolution whose channels are in groups that do not see each other; float, channels outermost."""

    VARIANTS = {"groups": (2, 8), "width": (4, 8, 16), "size": (28, 56)}
    groups, width, size = hl.GeneratorParam(4), hl.GeneratorParam(8), hl.GeneratorParam(28)
    input = hl.InputBuffer(F32, 4)
    weights = hl.InputBuffer(F32, 5)
    output = hl.OutputBuffer(F32, 4)

    def generate(self):
        r, conv = hl.RDom([(0, 3), (0, 3), (0, self.width)], "r"), hl.Func("conv")
        conv[x, y, c, n] = hl.f32(0)
        conv[x, y, c, n] += self.weights[r.x, r.y, r.z, c, n] * self.input[x + r.x, y + r.y, r.z, n]
        self.output[x, y, c, n] = hl.max(conv[x, y, c, n], hl.f32(0))
        self.input.set_estimates([(0, self.size + 2), (0, self.size + 2), (0, self.width), (0, self.groups)])
        self.weights.set_estimates([(0, 3), (0, 3), (0, self.width), (0, self.width), (0, self.groups)])
        self.output.set_estimates([(0, self.size), (0, self.size), (0, self.width), (0, self.groups)])


@hl.generator(name="transposed_conv")
class TransposedConv(hl.Generator):
    """A convolution that doubles the size: each output reads the taps of its parity; float."""

    VARIANTS = {"inputs": (8, 16, 32), "outputs": (4, 16), "size": (32, 64, 128)}
    inputs, outputs, size = hl.GeneratorParam(16), hl.GeneratorParam(16), hl.GeneratorParam(64)
    input = hl.InputBuffer(F32, 3)
    weights = hl.InputBuffer(F32, 4)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r, conv = hl.RDom([(0, 2), (0, 2), (0, self.inputs)], "r"), hl.Func("conv")
        conv[x, y, c] = hl.f32(0)
        conv[x, y, c] += self.weights[x % 2 + 2 * r.x, y % 2 + 2 * r.y, r.z, c] * self.input[x // 2 + r.x, y // 2 + r.y, r.z]
        self.output[x, y, c] = conv[x, y, c]
        self.input.set_estimates([(0, self.size // 2 + 1), (0, self.size // 2 + 1), (0, self.inputs)])
        self.weights.set_estimates([(0, 4), (0, 4), (0, self.inputs), (0, self.outputs)])
        self.output.set_estimates([(0, self.size), (0, self.size), (0, self.outputs)])


@hl.generator(name="dilated_conv_1d")
class DilatedConv1d(hl.Generator):
    """A gated one-dimensional convolution with a dilation, as WaveNet has it (van den Oord et al. 2016); float."""

    VARIANTS = {"dilation": (1, 8, 64), "channels": (8, 16, 32), "samples": (512, 2048, 8192)}
    dilation, channels, samples = hl.GeneratorParam(8), hl.GeneratorParam(16), hl.GeneratorParam(2048)
    input = hl.InputBuffer(F32, 2)
    weights = hl.InputBuffer(F32, 4)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, conv = hl.RDom([(0, 2), (0, self.channels)], "r"), hl.Func("conv")
        conv[x, c, n] = hl.f32(0)
        conv[x, c, n] += self.weights[r.x, r.y, c, n] * self.input[x + r.x * self.dilation, r.y]
        self.output[x, c] = hl.tanh(conv[x, c, 0]) / (hl.f32(1) + hl.exp(-conv[x, c, 1]))
        self.input.set_estimates([(0, self.samples + self.dilation), (0, self.channels)])
        self.weights.set_estimates([(0, 2), (0, self.channels), (0, self.channels), (0, 2)])
        self.output.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="pooling")
class Pooling(hl.Generator):
    """The largest value, or the mean, of windows that may overlap; channels innermost; float or 8-bit."""

    VARIANTS = {
        "element": ("int8", "float32"), "mean": ("true", "false"), "window": (2, 3), "stride": (1, 2), "channels": (16, 64),
        "size": (28, 56, 112),
    }  # fmt: skip
    element, mean, window = hl.GeneratorParam("float32"), hl.GeneratorParam(False), hl.GeneratorParam(3)
    stride, channels, size = hl.GeneratorParam(2), hl.GeneratorParam(32), hl.GeneratorParam(56)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 3))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 3))

    def generate(self):
        k, pooled, type = self.window, hl.Func("pooled"), TYPES[self.element]
        r = hl.RDom([(0, k), (0, k)], "r")
        value = self.input[c, x * self.stride + r.x, y * self.stride + r.y]
        if self.mean:
            wide = F32 if type.is_float() else I32
            pooled[c, x, y] = hl.cast(wide, 0)
            pooled[c, x, y] += hl.cast(wide, value)
            self.output[c, x, y] = hl.cast(type, pooled[c, x, y] / hl.cast(wide, k * k))
        else:
            pooled[c, x, y] = type.min()
            pooled[c, x, y] = hl.max(pooled[c, x, y], value)
            self.output[c, x, y] = pooled[c, x, y]
        reach = (self.size - 1) * self.stride + k
        self.input.set_estimates([(0, self.channels), (0, reach), (0, reach)])
        self.output.set_estimates([(0, self.channels), (0, self.size), (0, self.size)])


@hl.generator(name="layer_norm")
class LayerNorm(hl.Generator):
    """Layer normalisation of rows, with a gain and a bias; float."""

    VARIANTS = {"width": (64, 256, 768, 2048), "rows": (16, 128, 512)}
    width, rows = hl.GeneratorParam(256), hl.GeneratorParam(128)
    input = hl.InputBuffer(F32, 2)
    gain = hl.InputBuffer(F32, 1)
    bias = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r = hl.RDom([(0, self.width)], "r")
        mean, variance = hl.funcs("mean variance")
        mean[y] = hl.f32(0)
        mean[y] += self.input[r, y] * hl.f32(1 / self.width)
        variance[y] = hl.f32(0)
        variance[y] += (self.input[r, y] - mean[y]) * (self.input[r, y] - mean[y]) * hl.f32(1 / self.width)
        self.output[x, y] = (self.input[x, y] - mean[y]) / hl.sqrt(variance[y] + hl.f32(0.00001)) * self.gain[x] + self.bias[x]
        self.input.set_estimates([(0, self.width), (0, self.rows)])
        self.gain.set_estimates([(0, self.width)])
        self.bias.set_estimates([(0, self.width)])
        self.output.set_estimates([(0, self.width), (0, self.rows)])


@hl.generator(name="softmax")
class Softmax(hl.Generator):
    """Softmax of rows: the largest, exponentials, and their sum; float."""

    VARIANTS = {"width": (16, 100, 512, 4096), "rows": (8, 64, 512), "fast": ("true", "false")}
    width, rows, fast = hl.GeneratorParam(512), hl.GeneratorParam(64), hl.GeneratorParam(False)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r = hl.RDom([(0, self.width)], "r")
        largest, power, total = hl.funcs("largest power total")
        largest[y] = hl.f32(-1e30)
        largest[y] = hl.max(largest[y], self.input[r, y])
        power[x, y] = (hl.fast_exp if self.fast else hl.exp)(self.input[x, y] - largest[y])
        total[y] = hl.f32(0)
        total[y] += power[r, y]
        self.output[x, y] = power[x, y] / total[y]
        self.input.set_estimates([(0, self.width), (0, self.rows)])
        self.output.set_estimates([(0, self.width), (0, self.rows)])


@hl.generator(name="causal_scores")
class CausalScores(hl.Generator):
    """Scores of attention in several heads, what lies in the future masked, and each row's largest; float."""

    VARIANTS = {"tokens": (32, 64, 128, 256), "heads": (2, 8), "width": (16, 32, 64)}
    tokens, heads, width = hl.GeneratorParam(64), hl.GeneratorParam(8), hl.GeneratorParam(32)
    query = hl.InputBuffer(F32, 3)
    key = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r, s = hl.RDom([(0, self.width)], "r"), hl.RDom([(0, self.tokens)], "s")
        score, masked, largest = hl.funcs("score masked largest")
        score[x, y, n] = hl.f32(0)
        score[x, y, n] += self.query[r, y, n] * self.key[r, x, n]
        masked[x, y, n] = hl.select(x > y, hl.f32(-1e9), score[x, y, n] * hl.f32(self.width**-0.5))
        largest[y, n] = hl.f32(-1e30)
        largest[y, n] = hl.max(largest[y, n], masked[s, y, n])
        self.output[x, y, n] = masked[x, y, n] - largest[y, n]
        for buffer in (self.query, self.key):
            buffer.set_estimates([(0, self.width), (0, self.tokens), (0, self.heads)])
        self.output.set_estimates([(0, self.tokens), (0, self.tokens), (0, self.heads)])


@hl.generator(name="batch_norm_relu6")
class BatchNormRelu6(hl.Generator):
    """A batch normalisation of known statistics, an activation and a shortcut added: one pass over memory; float."""

    VARIANTS = {"channels": (16, 64, 256), "size": (14, 28, 56, 112)}
    channels, size = hl.GeneratorParam(64), hl.GeneratorParam(56)
    input = hl.InputBuffer(F32, 3)
    shortcut = hl.InputBuffer(F32, 3)
    scale = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        normal = hl.Func("normal")
        normal[c, x, y] = self.input[c, x, y] * self.scale[c, 0] + self.scale[c, 1]
        self.output[c, x, y] = hl.clamp(normal[c, x, y], hl.f32(0), hl.f32(6)) + self.shortcut[c, x, y]
        for buffer in (self.input, self.shortcut, self.output):
            buffer.set_estimates([(0, self.channels), (0, self.size), (0, self.size)])
        self.scale.set_estimates([(0, self.channels), (0, 2)])


@hl.generator(name="embedding_bag")
class EmbeddingBag(hl.Generator):
    """Sums of the rows of a table that lists of numbers name: gathers of whole rows; float."""

    VARIANTS = {"rows": (1024, 65536), "width": (16, 64, 128), "bag": (4, 16), "batch": (64, 256, 1024)}
    rows, width, bag, batch = hl.GeneratorParam(1024), hl.GeneratorParam(64), hl.GeneratorParam(16), hl.GeneratorParam(256)
    table = hl.InputBuffer(F32, 2)
    index = hl.InputBuffer(I32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, total = hl.RDom([(0, self.bag)], "r"), hl.Func("total")
        total[x, n] = hl.f32(0)
        total[x, n] += self.table[x, hl.clamp(self.index[r, n] & (self.rows - 1), 0, self.rows - 1)]
        self.output[x, n] = total[x, n]
        self.table.set_estimates([(0, self.width), (0, self.rows)])
        self.index.set_estimates([(0, self.bag), (0, self.batch)])
        self.output.set_estimates([(0, self.width), (0, self.batch)])


@hl.generator(name="lstm_cell")
class LstmCell(hl.Generator):
    """A step of an LSTM: four gates, each a matrix product over input and state, then the new cell; float."""

    VARIANTS = {"inputs": (32, 128), "hidden": (32, 64, 256), "batch": (1, 8, 32)}
    inputs, hidden, batch = hl.GeneratorParam(64), hl.GeneratorParam(64), hl.GeneratorParam(8)
    input = hl.InputBuffer(F32, 2)
    state = hl.InputBuffer(F32, 3)
    weights = hl.InputBuffer(F32, 3)
    recurrent = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, s, gates = hl.RDom([(0, self.inputs)], "r"), hl.RDom([(0, self.hidden)], "s"), hl.Func("gates")
        gates[x, n, y] = hl.f32(0)
        gates[x, n, y] += self.weights[x, r, y] * self.input[r, n] * hl.f32(1 / self.inputs)
        gates[x, n, y] += self.recurrent[x, s, y] * self.state[s, n, 0] * hl.f32(1 / self.hidden)
        sigmoid = lambda v: hl.f32(1) / (hl.f32(1) + hl.exp(-v))
        cell = sigmoid(gates[x, n, 0]) * self.state[x, n, 1] + sigmoid(gates[x, n, 1]) * hl.tanh(gates[x, n, 2])
        self.output[x, n] = sigmoid(gates[x, n, 3]) * hl.tanh(cell)
        self.input.set_estimates([(0, self.inputs), (0, self.batch)])
        self.state.set_estimates([(0, self.hidden), (0, self.batch), (0, 2)])
        self.weights.set_estimates([(0, self.hidden), (0, self.inputs), (0, 4)])
        self.recurrent.set_estimates([(0, self.hidden), (0, self.hidden), (0, 4)])
        self.output.set_estimates([(0, self.hidden), (0, self.batch)])
