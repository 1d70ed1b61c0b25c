"""Harris corner detector (Harris and Stephens 1988; Halide's apps/harris); takes float RGB, gives the corner response."""

import halide as hl

x, y = hl.vars("x y")


def sum3x3(f):
    """The sum over the 3x3 window centred at (x, y)."""
    return sum(f[x + i, y + j] for j in (-1, 0, 1) for i in (-1, 0, 1))


@hl.generator(name="harris")
class Harris(hl.Generator):
    input = hl.InputBuffer(hl.Float(32), 3)
    output = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        clamped = hl.BoundaryConditions.repeat_edge(self.input)

        gray = hl.Func("gray")
        gray[x, y] = hl.f32(0.299) * clamped[x, y, 0] + hl.f32(0.587) * clamped[x, y, 1] + hl.f32(0.114) * clamped[x, y, 2]

        # Sobel gradients over the 3x3 window centred at (x, y).
        scale = hl.f32(1 / 12)
        ix, iy = hl.funcs("ix iy")
        ix[x, y] = scale * sum(w * (gray[x + 1, y + i] - gray[x - 1, y + i]) for i, w in ((-1, 1.0), (0, 2.0), (1, 1.0)))
        iy[x, y] = scale * sum(w * (gray[x + i, y + 1] - gray[x + i, y - 1]) for i, w in ((-1, 1.0), (0, 2.0), (1, 1.0)))

        ixx, iyy, ixy = hl.funcs("ixx iyy ixy")
        ixx[x, y] = ix[x, y] * ix[x, y]
        iyy[x, y] = iy[x, y] * iy[x, y]
        ixy[x, y] = ix[x, y] * iy[x, y]

        sxx, syy, sxy = hl.funcs("sxx syy sxy")
        sxx[x, y] = sum3x3(ixx)
        syy[x, y] = sum3x3(iyy)
        sxy[x, y] = sum3x3(ixy)

        det, trace = hl.funcs("det trace")
        det[x, y] = sxx[x, y] * syy[x, y] - sxy[x, y] * sxy[x, y]
        trace[x, y] = sxx[x, y] + syy[x, y]
        self.output[x, y] = det[x, y] - hl.f32(0.04) * trace[x, y] * trace[x, y]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.output.set_estimates([(0, w), (0, h)])

        if not self.using_autoscheduler():
            # Strips in parallel; the grey image and its gradients slide down a strip, their products are cheap enough to compute again.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            self.output.split(y, y, yi, 32, hl.TailStrategy.GuardWithIf).parallel(y).vectorize(x, vec)
            for f in (gray, ix, iy):
                f.store_at(self.output, y).compute_at(self.output, yi).vectorize(x, vec)
            ix.compute_with(iy, x)
