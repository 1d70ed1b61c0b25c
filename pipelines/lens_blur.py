"""Synthetic lens blur (after Halide's apps/lens_blur).

Stereo depth from a cost volume filled in by a confidence pyramid, then a blur that grows with the distance to the focal plane.
"""

import halide as hl

x, y, z, c = hl.vars("x y z c")


def downsample(f, name):
    down_x, down_y = hl.Func(name + "_down_x"), hl.Func(name + "_down_y")
    rest = f.args()[2:]
    down_x[[x, y] + rest] = (
        f[[2 * x - 1, y] + rest] + 3.0 * (f[[2 * x, y] + rest] + f[[2 * x + 1, y] + rest]) + f[[2 * x + 2, y] + rest]
    ) / 8.0
    down_y[[x, y] + rest] = (
        down_x[[x, 2 * y - 1] + rest] + 3.0 * (down_x[[x, 2 * y] + rest] + down_x[[x, 2 * y + 1] + rest]) + down_x[[x, 2 * y + 2] + rest]
    ) / 8.0
    return down_x, down_y


def upsample(f, name):
    up_x, up_y = hl.Func(name + "_up_x"), hl.Func(name + "_up_y")
    rest = f.args()[2:]
    up_x[[x, y] + rest] = 0.25 * f[[x // 2 - 1 + 2 * (x % 2), y] + rest] + 0.75 * f[[x // 2, y] + rest]
    up_y[[x, y] + rest] = 0.25 * up_x[[x, y // 2 - 1 + 2 * (y % 2)] + rest] + 0.75 * up_x[[x, y // 2] + rest]
    return up_y


@hl.generator(name="lens_blur")
class LensBlur(hl.Generator):
    slices = hl.GeneratorParam(8)  # disparities tried
    pyramid_levels = hl.GeneratorParam(4)
    samples = hl.GeneratorParam(12)  # taken from the aperture

    left_im = hl.InputBuffer(hl.UInt(8), 3)
    right_im = hl.InputBuffer(hl.UInt(8), 3)
    focus_depth = hl.InputScalar(hl.Int(32))
    blur_radius_scale = hl.InputScalar(hl.Float(32))
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        slices, levels = self.slices, self.pyramid_levels
        left = hl.BoundaryConditions.repeat_edge(self.left_im)
        right = hl.BoundaryConditions.repeat_edge(self.right_im)

        # The cost of each disparity: the squared difference of the two views.
        diff, cost = hl.funcs("diff cost")
        diff[x, y, z, c] = hl.min(
            hl.absd(left[x, y, c], right[x + 2 * z, y, c]),
            hl.absd(left[x, y, c], right[x + 2 * z + 1, y, c]),
        )
        cost[x, y, z] = sum(hl.f32(diff[x, y, z, i]) * hl.f32(diff[x, y, z, i]) for i in range(3))

        # Confidence: the variance of the cost over the disparities.
        a, b, cost_confidence = hl.funcs("mean_of_square mean cost_confidence")
        r = hl.RDom([(0, slices)], "r")
        a[x, y] = hl.f32(0)
        a[x, y] += cost[x, y, r] * cost[x, y, r] / float(slices)
        b[x, y] = hl.f32(0)
        b[x, y] += cost[x, y, r] / float(slices)
        cost_confidence[x, y] = a[x, y] - b[x, y] * b[x, y]

        # Push: the cost weighted by its confidence, down a pyramid.
        weighted = hl.Func("push_0")
        weighted[x, y, z, c] = hl.select(c == 0, cost[x, y, z] * cost_confidence[x, y], cost_confidence[x, y])
        w, h = self.left_im.width(), self.left_im.height()
        push, down = [weighted], []
        for i in range(1, levels):
            w, h = w // 2, h // 2
            down.append(downsample(push[-1], f"push_{i}"))
            push.append(hl.BoundaryConditions.repeat_edge(down[-1][1], [(0, w), (0, h)]))

        # Pull: each level mixed with the one above it upsampled.
        pull, mixed = push[-1], []
        for i in reversed(range(levels - 1)):
            up = upsample(pull, f"pull_{i}")
            pull = hl.Func(f"pull_{i}")
            pull[x, y, z, c] = hl.lerp(up[x, y, z, c], push[i][x, y, z, c], hl.f32(0.5))
            mixed.append(pull)

        filtered_cost = hl.Func("filtered_cost")
        filtered_cost[x, y, z] = pull[x, y, z, 0] / (pull[x, y, z, 1] + hl.f32(1e-3))

        # The depth is the disparity of least cost.
        depth = hl.Func("depth")
        depth[x, y] = (0, filtered_cost[x, y, 0])
        rz = hl.RDom([(1, slices - 1)], "rz")
        best, best_cost = depth[x, y][0], depth[x, y][1]
        candidate = filtered_cost[x, y, rz]
        depth[x, y] = (
            hl.select(candidate < best_cost, rz.x, best),
            hl.min(candidate, best_cost),
        )

        # The circle of confusion, and the largest near a pixel.
        max_radius = 4
        bokeh_radius, bokeh_radius_squared = hl.funcs("bokeh_radius bokeh_radius_squared")
        bokeh_radius[x, y] = hl.min(
            hl.f32(hl.abs(depth[x, y][0] - self.focus_depth)) * self.blur_radius_scale,
            float(max_radius),
        )
        bokeh_radius_squared[x, y] = bokeh_radius[x, y] * bokeh_radius[x, y]
        worst_x, worst = hl.funcs("worst_bokeh_x worst_bokeh")
        around = hl.RDom([(-max_radius, 2 * max_radius + 1)], "around")
        worst_x[x, y] = hl.maximum(around, bokeh_radius[x + around, y])
        worst[x, y] = hl.maximum(around, worst_x[x, y + around])

        # Samples of the disc, in a spiral; only a sample whose own blur reaches the pixel counts.
        rs = hl.RDom([(0, self.samples)], "rs")
        sample_u, sample_v = hl.funcs("sample_u sample_v")
        t = hl.sqrt((hl.f32(z) + 0.5) / float(self.samples))
        angle = hl.f32(z) * hl.f32(2.399963)
        sample_u[x, y, z] = hl.i32(hl.round(t * hl.cos(angle) * worst[x, y]))
        sample_v[x, y, z] = hl.i32(hl.round(t * hl.sin(angle) * worst[x, y]))

        u = hl.clamp(sample_u[x, y, rs], -max_radius, max_radius)
        v = hl.clamp(sample_v[x, y, rs], -max_radius, max_radius)
        reach = hl.f32(u * u + v * v)
        nearer = depth[x + u, y + v][0] > depth[x, y][0]
        within = reach < hl.select(
            nearer,
            bokeh_radius_squared[x + u, y + v],
            hl.min(bokeh_radius_squared[x + u, y + v], bokeh_radius_squared[x, y]),
        )
        sample_weight = hl.select(within, 1.0 / (bokeh_radius_squared[x + u, y + v] + 1.0), 0.0)

        with_alpha = hl.Func("with_alpha")
        with_alpha[x, y, c] = hl.mux(c, [hl.f32(left[x, y, i]) / 255.0 for i in range(3)] + [hl.f32(1)])
        blurred = hl.Func("blurred")
        own_weight = 1.0 / (bokeh_radius_squared[x, y] + 1.0)
        blurred[x, y, c] = with_alpha[x, y, c] * own_weight
        blurred[x, y, c] += with_alpha[x + u, y + v, c] * sample_weight
        self.output[x, y, c] = blurred[x, y, c] / blurred[x, y, 3]

        w, h = 384, 256
        self.left_im.set_estimates([(0, w), (0, h), (0, 3)])
        self.right_im.set_estimates([(0, w), (0, h), (0, 3)])
        self.focus_depth.set_estimate(slices // 2)
        self.blur_radius_scale.set_estimate(1.0)
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # The pyramids and the depth in full, in parallel rows. A pixel's samples are unrolled, which makes the spiral constant.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            weighted.compute_root().bound_extent(c, 2).reorder(c, z, x, y).unroll(c).vectorize(x, vec).parallel(y, 4)
            for f in (cost, a, b, cost_confidence):
                f.compute_at(weighted, x).vectorize(x, vec)
            for f in (a, b):
                f.update().reorder(x, r).vectorize(x, vec)
            for down_x, down_y in down:
                down_y.compute_root().split(y, y, yi, 4).reorder(x, z, c, yi, y).vectorize(x, vec).parallel(y)
                down_x.store_at(down_y, y).compute_at(down_y, yi).vectorize(x, vec)
            for f in mixed[:-1]:
                f.compute_root().reorder(x, z, c, y).vectorize(x, vec).parallel(y, 4)

            depth.compute_root().vectorize(x, vec).parallel(y, 8)
            depth.update().reorder(x, rz, y).vectorize(x, vec).parallel(y, 8)
            with_alpha.compute_root().bound_extent(c, 4).reorder(c, x, y).unroll(c).vectorize(x, vec).parallel(y, 8)
            self.output.bound(c, 0, 3).split(y, y, yi, 16).reorder(c, x, yi, y).unroll(c).vectorize(x, vec).parallel(y)
            for f in (bokeh_radius, worst_x):
                f.store_at(self.output, y).compute_at(self.output, yi).vectorize(x, vec)
            worst.compute_at(self.output, x).vectorize(x, vec)
            blurred.compute_at(self.output, x).bound_extent(c, 4).reorder(c, x, y).unroll(c).vectorize(x, vec)
            blurred.update().reorder(c, x, rs, y).unroll(c).vectorize(x, vec).unroll(rs)
