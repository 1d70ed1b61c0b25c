"""Maximum over a disc (Halide's apps/max_filter), float RGB: runs of rows from slices of power-of-two height, then the maximum along x."""

import math

import halide as hl

x, y, c, t = hl.vars("x y c t")


@hl.generator(name="max_filter")
class MaxFilter(hl.Generator):
    radius = hl.GeneratorParam(16)

    input = hl.InputBuffer(hl.Float(32), 3)
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        radius = self.radius
        slices = math.floor(math.log2(2 * radius + 1)) + 1
        clamped = hl.BoundaryConditions.repeat_edge(self.input)

        # vert_log[x, y, c, t] is the maximum over the 2^t rows from y down.
        rows = hl.RDom([(-radius, self.input.height() + 2 * radius), (1, slices - 1)], "rows")
        vert_log = hl.Func("vert_log")
        vert_log[x, y, c, t] = clamped[x, y, c]
        step = hl.clamp(1 << (rows.y - 1), 0, radius * 2)
        vert_log[x, rows.x, c, rows.y] = hl.max(vert_log[x, rows.x, c, rows.y - 1], vert_log[x, rows.x + step, c, rows.y - 1])

        # Two slices that overlap cover the 2t + 1 rows around y.
        slice_for_radius = hl.Func("slice_for_radius")
        slice_for_radius[t] = hl.i32(hl.floor(hl.log(hl.f32(2 * t + 1)) * hl.f32(1 / math.log(2))))
        vert = hl.Func("vert")
        s = hl.clamp(slice_for_radius[t], 0, slices - 1)
        first = vert_log[x, y - t, c, s]
        second = vert_log[x, y + t + 1 - hl.clamp(1 << s, 0, 2 * radius), c, s]
        vert[x, y, c, t] = hl.max(first, second)

        # The disc's half height at dx from its centre.
        half_height = hl.Func("half_height")
        dy = hl.RDom([(0, radius)], "dy")
        half_height[x] = 0
        half_height[x] += hl.select(x * x + (dy + 1) * (dy + 1) < hl.f32((radius + 0.25) ** 2), 1, 0)

        dx = hl.RDom([(-radius, 2 * radius + 1)], "dx")
        self.output[x, y, c] = hl.maximum(dx, vert[x + dx, y, c, hl.clamp(half_height[dx], 0, radius)])

        w, h = 768, 512
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # Strips of columns and channels in parallel: the slices of all rows are made in full, then a row at a time is read from them.
            xo, xi, strip = hl.vars("xo xi strip")
            vec = self.natural_vector_size(hl.Float(32))
            slice_for_radius.compute_root()
            half_height.compute_root()
            self.output.split(x, xo, xi, 16 * vec).reorder(xi, y, xo, c).fuse(xo, c, strip).parallel(strip).vectorize(xi, vec)
            vert_log.compute_at(self.output, strip).vectorize(x, vec)
            vert_log.update().reorder(x, rows.x, rows.y).vectorize(x, vec)
            vert.compute_at(self.output, y).vectorize(x, vec)
