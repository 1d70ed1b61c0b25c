"""Convolution layer (Halide's apps/conv_layer): 3x3 over all channels, bias and ReLU; float, channels innermost (c, x, y, n)."""

import halide as hl

c, x, y, n = hl.vars("c x y n")


@hl.generator(name="conv_layer")
class ConvLayer(hl.Generator):
    input = hl.InputBuffer(hl.Float(32), 4)
    filter = hl.InputBuffer(hl.Float(32), 4)
    bias = hl.InputBuffer(hl.Float(32), 1)
    relu = hl.OutputBuffer(hl.Float(32), 4)

    def generate(self):
        N, CI, CO, W, H = 1, 64, 64, 100, 80

        r = hl.RDom([(0, CI), (0, 3), (0, 3)], "r")
        conv = hl.Func("conv")
        conv[c, x, y, n] = self.bias[c]
        conv[c, x, y, n] += self.filter[c, r.y, r.z, r.x] * self.input[r.x, x + r.y, y + r.z, n]
        self.relu[c, x, y, n] = hl.max(hl.f32(0), conv[c, x, y, n])

        self.input.set_estimates([(0, CI), (0, W + 2), (0, H + 2), (0, N)])
        self.filter.set_estimates([(0, CO), (0, 3), (0, 3), (0, CI)])
        self.bias.set_estimates([(0, CO)])
        self.relu.set_estimates([(0, CO), (0, W), (0, H), (0, N)])

        if not self.using_autoscheduler():
            # A tile of two vectors of channels by five pixels accumulates in registers.
            co, ci, xo, xi = hl.vars("co ci xo xi")
            vec = self.natural_vector_size(hl.Float(32))
            self.relu.split(c, co, ci, 2 * vec).split(x, xo, xi, 5).reorder(ci, xi, xo, y, n, co)
            self.relu.vectorize(ci, vec).unroll(ci).unroll(xi).parallel(y).parallel(n).parallel(co)
            conv.compute_at(self.relu, xo).vectorize(c, vec).unroll(c).unroll(x)
            conv.update().reorder(c, x, r.x, r.y, r.z, y, n).vectorize(c, vec).unroll(c).unroll(x).unroll(r.x, 2)
