"""Pyramid interpolation of missing pixels by their alpha (pull-push; Halide's apps/interpolate); takes float RGBA, gives float RGB."""

import halide as hl

x, y, c = hl.vars("x y c")


def downsample(prev, level):
    down_x, down_y = hl.Func(f"down_x_{level}"), hl.Func(f"downsampled_{level}")
    down_x[x, y, c] = (prev[x * 2 - 1, y, c] + 2.0 * prev[x * 2, y, c] + prev[x * 2 + 1, y, c]) * 0.25
    down_y[x, y, c] = (down_x[x, y * 2 - 1, c] + 2.0 * down_x[x, y * 2, c] + down_x[x, y * 2 + 1, c]) * 0.25
    return down_x, down_y


def upsample(coarse, level):
    up_x, up_y = hl.Func(f"up_x_{level}"), hl.Func(f"upsampled_{level}")
    up_x[x, y, c] = (coarse[x // 2, y, c] + coarse[(x + 1) // 2, y, c]) * 0.5
    up_y[x, y, c] = (up_x[x, y // 2, c] + up_x[x, (y + 1) // 2, c]) * 0.5
    return up_y


@hl.generator(name="interpolate")
class Interpolate(hl.Generator):
    levels = hl.GeneratorParam(6)

    input = hl.InputBuffer(hl.Float(32), 3)
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        clamped = hl.BoundaryConditions.repeat_edge(self.input)

        # Premultiplied by alpha, so that a missing pixel adds nothing.
        premultiplied = hl.Func("downsampled_0")
        premultiplied[x, y, c] = hl.select(c < 3, clamped[x, y, c] * clamped[x, y, 3], clamped[x, y, 3])

        downsampled, rows = [premultiplied], []
        for l in range(1, self.levels):
            prev = downsampled[-1]
            if l == 4:
                # Keeps the footprint of the coarse levels from reaching far off the image.
                w = self.input.width() >> (l - 1)
                h = self.input.height() >> (l - 1)
                bounded = hl.Func("bounded")
                bounded[x, y, c] = prev[hl.clamp(x, 0, w), hl.clamp(y, 0, h), c]
                prev = bounded
            down_x, down_y = downsample(prev, l)
            rows.append(down_x)
            downsampled.append(down_y)

        interpolated, filled = downsampled[-1], []
        for l in reversed(range(self.levels - 1)):
            upsampled = upsample(interpolated, l)
            interpolated = hl.Func(f"interpolated_{l}")
            alpha = downsampled[l][x, y, 3]
            interpolated[x, y, c] = downsampled[l][x, y, c] + (1.0 - alpha) * upsampled[x, y, c]
            filled.append(interpolated)

        self.output[x, y, c] = interpolated[x, y, c] / interpolated[x, y, 3]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h), (0, 4)])
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # Each level of both pyramids in full, in parallel strips; down a strip, what is sampled along x slides.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            for down_x, down_y in zip(rows, downsampled[1:]):
                down_y.compute_root().split(y, y, yi, 8).reorder(x, c, yi, y).vectorize(x, vec).parallel(y)
                down_x.store_at(down_y, y).compute_at(down_y, yi).reorder(x, c, y).vectorize(x, vec)
            first = premultiplied.in_(rows[0])
            first.store_at(downsampled[1], y).compute_at(downsampled[1], yi).reorder(x, c, y).vectorize(x, vec)
            for level in filled[:-1]:
                level.compute_root().reorder(x, c, y).vectorize(x, vec).parallel(y, 8)
            self.output.bound(c, 0, 3).reorder(c, x, y).unroll(c).vectorize(x, vec).parallel(y, 8)
            filled[-1].compute_at(self.output, x).vectorize(x, vec)
