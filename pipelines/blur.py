"""3x3 box blur as two separable passes (Halide's apps/blur); takes a uint16 image, gives one two pixels smaller each way."""

import halide as hl

x, y = hl.vars("x y")


@hl.generator(name="blur")
class Blur(hl.Generator):
    input = hl.InputBuffer(hl.UInt(16), 2)
    output = hl.OutputBuffer(hl.UInt(16), 2)

    def generate(self):
        blur_x = hl.Func("blur_x")
        # The window starts at the pixel, so no boundary condition is needed.
        blur_x[x, y] = (self.input[x, y] + self.input[x + 1, y] + self.input[x + 2, y]) // 3
        self.output[x, y] = (blur_x[x, y] + blur_x[x, y + 1] + blur_x[x, y + 2]) // 3

        w, h = 3072, 2048
        self.input.set_estimates([(0, w + 2), (0, h + 2)])
        self.output.set_estimates([(0, w), (0, h)])

        if not self.using_autoscheduler():
            # Strips in parallel; blur_x slides down a strip, so that each of its rows is computed once.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.UInt(16))
            self.output.split(y, y, yi, 64, hl.TailStrategy.GuardWithIf).parallel(y).vectorize(x, vec)
            blur_x.store_at(self.output, y).compute_at(self.output, yi).vectorize(x, vec)
