"""Non-local means denoising (Buades, Coll and Morel 2005; Halide's apps/nl_means) of a float RGB image."""

import halide as hl

x, y, c, dx, dy = hl.vars("x y c dx dy")


@hl.generator(name="nl_means")
class NlMeans(hl.Generator):
    patch_size = hl.GeneratorParam(7)
    search_area = hl.GeneratorParam(7)

    input = hl.InputBuffer(hl.Float(32), 3)
    sigma = hl.InputScalar(hl.Float(32))
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        patch_size, search_area = self.patch_size, self.search_area
        clamped = hl.BoundaryConditions.repeat_edge(self.input)
        inv_sigma_sq = -1.0 / (self.sigma * self.sigma * hl.f32(patch_size**2))

        # The squared difference between the image and itself shifted, summed over channels.
        dc, d = hl.funcs("dc d")
        diff = clamped[x, y, c] - clamped[x + dx, y + dy, c]
        dc[x, y, dx, dy, c] = diff * diff
        d[x, y, dx, dy] = dc[x, y, dx, dy, 0] + dc[x, y, dx, dy, 1] + dc[x, y, dx, dy, 2]

        # Summed over the patch, one axis at a time.
        patch = hl.RDom([(-(patch_size // 2), patch_size)], "patch")
        blur_d_y, blur_d = hl.funcs("blur_d_y blur_d")
        blur_d_y[x, y, dx, dy] = hl.f32(0)
        blur_d_y[x, y, dx, dy] += d[x, y + patch, dx, dy]
        blur_d[x, y, dx, dy] = hl.f32(0)
        blur_d[x, y, dx, dy] += blur_d_y[x + patch, y, dx, dy]

        w = hl.Func("w")
        w[x, y, dx, dy] = hl.fast_exp(blur_d[x, y, dx, dy] * inv_sigma_sq)

        # The fourth channel sums the weights.
        with_alpha = hl.Func("with_alpha")
        with_alpha[x, y, c] = hl.mux(c, [clamped[x, y, 0], clamped[x, y, 1], clamped[x, y, 2], hl.f32(1)])

        s = hl.RDom([(-(search_area // 2), search_area), (-(search_area // 2), search_area)], "search")
        total = hl.Func("total")
        total[x, y, c] = hl.f32(0)
        total[x, y, c] += w[x, y, s.x, s.y] * with_alpha[x + s.x, y + s.y, c]

        self.output[x, y, c] = hl.clamp(total[x, y, c] / total[x, y, 3], 0.0, 1.0)

        width, height = 384, 256
        self.input.set_estimates([(0, width), (0, height), (0, 3)])
        self.sigma.set_estimate(0.12)
        self.output.set_estimates([(0, width), (0, height), (0, 3)])

        if not self.using_autoscheduler():
            # Tiles in parallel; for each shift the weights of a tile are made and added at once, while the tile is in the cache.
            xi, yi = hl.vars("xi yi")
            vec = self.natural_vector_size(hl.Float(32))
            self.output.bound(c, 0, 3).tile(x, y, xi, yi, 8 * vec, 32).reorder(c, xi, yi, x, y).unroll(c).vectorize(xi, vec).parallel(y)
            with_alpha.compute_at(self.output, x).reorder(c, x, y).vectorize(x, vec)
            total.compute_at(self.output, x).bound_extent(c, 4).reorder(c, x, y).unroll(c).vectorize(x, vec)
            total.update().reorder(c, x, y, s.x, s.y).unroll(c).vectorize(x, vec)
            d.compute_at(total, s.x).vectorize(x, vec)
            blur_d_y.compute_at(total, s.x).vectorize(x, vec)
            blur_d_y.update().reorder(patch, x, y).unroll(patch).vectorize(x, vec)
            blur_d.compute_at(total, x).vectorize(x, vec)
            blur_d.update().reorder(x, patch).vectorize(x, vec).unroll(patch)
