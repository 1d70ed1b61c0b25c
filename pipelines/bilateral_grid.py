"""Bilateral grid (Chen, Paris and Durand 2007; Halide's apps/bilateral_grid): edge-preserving smoothing of a float image in [0, 1]."""

import halide as hl

x, y, z, c = hl.vars("x y z c")


@hl.generator(name="bilateral_grid")
class BilateralGrid(hl.Generator):
    s_sigma = hl.GeneratorParam(8)

    input = hl.InputBuffer(hl.Float(32), 2)
    r_sigma = hl.InputScalar(hl.Float(32))
    output = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        s = self.s_sigma
        clamped = hl.BoundaryConditions.repeat_edge(self.input)

        # The grid holds homogeneous values: channel 0 the sum, channel 1 the weight.
        r = hl.RDom([(0, s), (0, s)])
        val = hl.clamp(clamped[x * s + r.x - s // 2, y * s + r.y - s // 2], 0.0, 1.0)
        zi = hl.i32(val / self.r_sigma + 0.5)
        histogram = hl.Func("histogram")
        histogram[x, y, z, c] = hl.f32(0)
        histogram[x, y, zi, c] += hl.mux(c, [val, hl.f32(1)])

        blur_z, blur_x, blur_y = hl.funcs("blur_z blur_x blur_y")

        def blur5(at):
            return at(-2) + at(-1) * 4.0 + at(0) * 6.0 + at(1) * 4.0 + at(2)

        blur_z[x, y, z, c] = blur5(lambda i: histogram[x, y, z + i, c])
        blur_x[x, y, z, c] = blur5(lambda i: blur_z[x + i, y, z, c])
        blur_y[x, y, z, c] = blur5(lambda i: blur_x[x, y + i, z, c])

        # Slice the grid by trilinear interpolation at each pixel's place and value.
        val = hl.clamp(self.input[x, y], 0.0, 1.0)
        zv = val / self.r_sigma
        zi = hl.i32(zv)
        zf = zv - hl.f32(zi)
        xf, yf = hl.f32(x % s) / s, hl.f32(y % s) / s
        xi, yi = x // s, y // s

        def along_x(j, k):
            return hl.lerp(blur_y[xi, yi + j, zi + k, c], blur_y[xi + 1, yi + j, zi + k, c], xf)

        interpolated = hl.Func("interpolated")
        interpolated[x, y, c] = hl.lerp(
            hl.lerp(along_x(0, 0), along_x(1, 0), yf),
            hl.lerp(along_x(0, 1), along_x(1, 1), yf),
            zf,
        )
        self.output[x, y] = interpolated[x, y, 0] / interpolated[x, y, 1]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h)])
        self.r_sigma.set_estimate(0.1)
        self.output.set_estimates([(0, w), (0, h)])

        if not self.using_autoscheduler():
            # The histogram is made a row of cells at a time, right before it is blurred along z.
            vec = self.natural_vector_size(hl.Float(32))
            blur_z.compute_root().reorder(c, z, x, y).unroll(c).vectorize(x, vec).parallel(y)
            histogram.compute_at(blur_z, y).vectorize(x, vec)
            histogram.update().reorder(c, r.x, r.y, x, y).unroll(c)
            blur_x.compute_root().reorder(c, x, y, z).unroll(c).vectorize(x, vec).parallel(z)
            blur_y.compute_root().reorder(c, x, y, z).unroll(c).vectorize(x, vec).parallel(z)
            self.output.vectorize(x, vec).parallel(y)
