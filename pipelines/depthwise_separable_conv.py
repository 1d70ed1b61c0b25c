"""Depthwise separable convolution of MobileNet (Halide's apps/depthwise_separable_conv), float: 3x3 a channel, 1x1 over all, bias, ReLU."""

import halide as hl

d, x, y, b = hl.vars("d x y b")


@hl.generator(name="depthwise_separable_conv")
class DepthwiseSeparableConv(hl.Generator):
    input = hl.InputBuffer(hl.Float(32), 4)  # channel, x, y, batch
    depthwise_filter = hl.InputBuffer(hl.Float(32), 3)  # channel, x, y
    pointwise_filter = hl.InputBuffer(hl.Float(32), 2)  # output channel, channel
    bias = hl.InputBuffer(hl.Float(32), 1)
    output = hl.OutputBuffer(hl.Float(32), 4)

    def generate(self):
        N, CI, CO, W, H, K = 2, 32, 32, 112, 112, 3

        # Zero padding keeps the size of the image.
        padded = hl.BoundaryConditions.constant_exterior(self.input, hl.f32(0))

        rk = hl.RDom([(0, K), (0, K)], "rk")
        depthwise = hl.Func("depthwise")
        depthwise[d, x, y, b] = hl.f32(0)
        depthwise[d, x, y, b] += self.depthwise_filter[d, rk.x, rk.y] * padded[d, x + rk.x - K // 2, y + rk.y - K // 2, b]

        rc = hl.RDom([(0, CI)], "rc")
        pointwise = hl.Func("pointwise")
        pointwise[d, x, y, b] = self.bias[d]
        pointwise[d, x, y, b] += self.pointwise_filter[d, rc] * depthwise[rc, x, y, b]

        self.output[d, x, y, b] = hl.max(pointwise[d, x, y, b], hl.f32(0))

        self.input.set_estimates([(0, CI), (0, W), (0, H), (0, N)])
        self.depthwise_filter.set_estimates([(0, CI), (0, K), (0, K)])
        self.pointwise_filter.set_estimates([(0, CO), (0, CI)])
        self.bias.set_estimates([(0, CO)])
        self.output.set_estimates([(0, CO), (0, W), (0, H), (0, N)])

        if not self.using_autoscheduler():
            # A row at a time: the padded rows slide, the depthwise row stays in the L1 cache. Both convolutions sum tiles in registers.
            yo, yi, di, xi = hl.vars("yo yi di xi")
            vec = self.natural_vector_size(hl.Float(32))
            self.output.split(y, yo, yi, 8, hl.TailStrategy.GuardWithIf).tile(d, x, di, xi, 2 * vec, 4).reorder(di, xi, d, x, yi, yo, b)
            self.output.vectorize(di, vec).unroll(di).unroll(xi).parallel(yo).parallel(b)
            pointwise.compute_at(self.output, d).vectorize(d, vec).unroll(d).unroll(x)
            pointwise.update().reorder(d, x, rc, y, b).vectorize(d, vec).unroll(d).unroll(x).unroll(rc, 2)

            row = depthwise.in_()
            row.compute_at(self.output, yi).tile(d, x, di, xi, 2 * vec, 4).vectorize(di, vec).unroll(di).unroll(xi)
            depthwise.compute_at(row, d).vectorize(d, vec).unroll(d).unroll(x)
            depthwise.update().reorder(d, x, rk.x, rk.y, y, b).vectorize(d, vec).unroll(d).unroll(x).unroll(rk.x)
            padded.store_at(self.output, yo).compute_at(self.output, yi)
