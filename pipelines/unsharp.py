"""Unsharp mask (Halide's apps/unsharp): gaussian blur of the luminance, sharpened by ratio; takes float RGB, gives float RGB."""

import math

import halide as hl

x, y, c = hl.vars("x y c")


@hl.generator(name="unsharp")
class Unsharp(hl.Generator):
    sigma = hl.GeneratorParam(1.5)

    input = hl.InputBuffer(hl.Float(32), 3)
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        kernel = hl.Func("kernel")
        kernel[x] = hl.exp(-hl.f32(x) * hl.f32(x) / hl.f32(2 * self.sigma**2)) / hl.f32(math.sqrt(2 * math.pi) * self.sigma)

        clamped = hl.BoundaryConditions.repeat_edge(self.input)

        gray = hl.Func("gray")
        gray[x, y] = hl.f32(0.299) * clamped[x, y, 0] + hl.f32(0.587) * clamped[x, y, 1] + hl.f32(0.114) * clamped[x, y, 2]

        def tap(f, dx, dy, i):
            return kernel[i] * (f[x + i * dx, y + i * dy] + f[x - i * dx, y - i * dy])

        blur_y, blur_x = hl.funcs("blur_y blur_x")
        blur_y[x, y] = kernel[0] * gray[x, y] + sum(tap(gray, 0, 1, i) for i in (1, 2, 3))
        blur_x[x, y] = kernel[0] * blur_y[x, y] + sum(tap(blur_y, 1, 0, i) for i in (1, 2, 3))

        sharpen, ratio = hl.funcs("sharpen ratio")
        sharpen[x, y] = 2.0 * gray[x, y] - blur_x[x, y]
        # A black pixel has no ratio to its luminance.
        ratio[x, y] = sharpen[x, y] / hl.max(gray[x, y], hl.f32(1e-4))
        self.output[x, y, c] = ratio[x, y] * clamped[x, y, c]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # Strips in parallel; what the vertical blur reads slides down a strip, and the rest is computed a row at a time.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            kernel.compute_root()
            self.output.bound(c, 0, 3).reorder(c, x, y).unroll(c)
            self.output.split(y, y, yi, 32, hl.TailStrategy.GuardWithIf).parallel(y).vectorize(x, vec)
            gray.store_at(self.output, y).compute_at(self.output, yi).vectorize(x, vec)
            blur_y.compute_at(self.output, yi).vectorize(x, vec)
            ratio.compute_at(self.output, yi).vectorize(x, vec)
