"""Separable image resize by a bicubic kernel (Keys 1981; Halide's apps/resize); takes float RGB and a scale factor, gives float RGB."""

import math

import halide as hl

x, y, c, k = hl.vars("x y c k")


def cubic(t):
    """Keys's kernel with a = -1/2."""
    xx = hl.abs(t)
    x2, x3 = xx * xx, xx * xx * xx
    near = 1.5 * x3 - 2.5 * x2 + 1.0
    far = -0.5 * x3 + 2.5 * x2 - 4.0 * xx + 2.0
    return hl.select(xx < 1.0, near, hl.select(xx < 2.0, far, 0.0))


@hl.generator(name="resize")
class Resize(hl.Generator):
    max_shrink = hl.GeneratorParam(2.0)  # bounds the taps of the kernel

    input = hl.InputBuffer(hl.Float(32), 3)
    scale_factor = hl.InputScalar(hl.Float(32))
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        clamped = hl.BoundaryConditions.repeat_edge(self.input)

        # When shrinking the kernel widens, to be the low-pass filter too.
        kernel_scaling = hl.min(self.scale_factor, 1.0)
        radius = 2.0 / kernel_scaling
        taps = math.ceil(4 * self.max_shrink)

        def source(at):
            return (hl.f32(at) + 0.5) / self.scale_factor - 0.5

        def begin(at):
            return hl.i32(hl.ceil(source(at) - radius))

        # The kernel of each output column (or row), normalised over its taps.
        kernel = hl.Func("kernel")
        unnormalized, total = hl.funcs("unnormalized total")
        r = hl.RDom([(0, taps)], "r")
        unnormalized[x, k] = cubic((hl.f32(k + begin(x)) - source(x)) * kernel_scaling)
        total[x] = hl.f32(0)
        total[x] += unnormalized[x, r]
        kernel[x, k] = unnormalized[x, k] / total[x]

        resized_y, resized_x = hl.funcs("resized_y resized_x")
        resized_y[x, y, c] = hl.f32(0)
        resized_y[x, y, c] += kernel[y, r] * clamped[x, begin(y) + r, c]
        resized_x[x, y, c] = hl.f32(0)
        resized_x[x, y, c] += kernel[x, r] * resized_y[begin(x) + r, y, c]
        self.output[x, y, c] = hl.clamp(resized_x[x, y, c], 0.0, 1.0)

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.scale_factor.set_estimate(0.5)
        self.output.set_estimates([(0, w // 2), (0, h // 2), (0, 3)])

        if not self.using_autoscheduler():
            # Strips in parallel; a row is first resized along y, in vectors, and then along x.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            unnormalized.compute_root().vectorize(x, vec)
            total.compute_root().vectorize(x, vec).update().reorder(x, r).vectorize(x, vec)
            kernel.compute_root().vectorize(x, vec)
            self.output.split(y, y, yi, 8).reorder(x, yi, c, y).vectorize(x, vec).parallel(y)
            resized_y.compute_at(self.output, yi).vectorize(x, vec)
            resized_y.update().reorder(r, x, y, c).unroll(r).vectorize(x, vec)
            resized_x.compute_at(self.output, x).vectorize(x, vec)
            resized_x.update().reorder(x, r, y, c).unroll(r).vectorize(x, vec)
