"""Local Laplacian filter (Paris, Hasinoff and Kautz 2011; Halide's apps/local_laplacian): local tone mapping of a uint16 RGB image."""

import halide as hl

x, y, c, k = hl.vars("x y c k")


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
    up_x[[x, y] + rest] = hl.lerp(f[[(x + 1) // 2, y] + rest], f[[(x - 1) // 2, y] + rest], hl.f32((x % 2) * 2 + 1) / 4.0)
    up_y[[x, y] + rest] = hl.lerp(up_x[[x, (y + 1) // 2] + rest], up_x[[x, (y - 1) // 2] + rest], hl.f32((y % 2) * 2 + 1) / 4.0)
    return up_y


@hl.generator(name="local_laplacian")
class LocalLaplacian(hl.Generator):
    pyramid_levels = hl.GeneratorParam(5)
    levels = hl.GeneratorParam(8)  # intensity levels

    input = hl.InputBuffer(hl.UInt(16), 3)
    alpha = hl.InputScalar(hl.Float(32))
    beta = hl.InputScalar(hl.Float(32))
    output = hl.OutputBuffer(hl.UInt(16), 3)

    def generate(self):
        J, levels = self.pyramid_levels, self.levels

        # The remapping function, a table over the distance to the intensity level.
        remap = hl.Func("remap")
        fx = hl.f32(x) / 256.0
        remap[x] = self.alpha * fx * hl.exp(-fx * fx / 2.0)

        clamped = hl.BoundaryConditions.repeat_edge(self.input)
        floating, gray = hl.funcs("floating gray")
        floating[x, y, c] = hl.f32(clamped[x, y, c]) / 65535.0
        gray[x, y] = hl.f32(0.299) * floating[x, y, 0] + hl.f32(0.587) * floating[x, y, 1] + hl.f32(0.114) * floating[x, y, 2]

        # The processed Gaussian pyramid, one for each intensity level k.
        g_0 = hl.Func("g_0")
        level = hl.f32(k) / float(levels - 1)
        idx = hl.clamp(hl.i32(gray[x, y] * float((levels - 1) * 256)), 0, (levels - 1) * 256)
        g_0[x, y, k] = self.beta * (gray[x, y] - level) + level + remap[idx - 256 * k]
        g_pyramid, in_pyramid, g_rows, in_rows = [g_0], [gray], [], []
        for j in range(1, J):
            for pyramid, rows, name in ((g_pyramid, g_rows, f"g_{j}"), (in_pyramid, in_rows, f"in_{j}")):
                down_x, down_y = downsample(pyramid[-1], name)
                rows.append(down_x)
                pyramid.append(down_y)

        # Its Laplacian pyramid.
        l_pyramid = []
        for j in range(J - 1):
            up = upsample(g_pyramid[j + 1], f"g_{j}")
            l_j = hl.Func(f"l_{j}")
            l_j[x, y, k] = g_pyramid[j][x, y, k] - up[x, y, k]
            l_pyramid.append(l_j)
        l_pyramid.append(g_pyramid[J - 1])

        # The output's Laplacian pyramid, between the two levels nearest the input's value.
        out_l_pyramid = []
        for j in range(J):
            level = in_pyramid[j][x, y] * float(levels - 1)
            li = hl.clamp(hl.i32(level), 0, levels - 2)
            lf = level - hl.f32(li)
            out_l = hl.Func(f"out_l_{j}")
            out_l[x, y] = (1.0 - lf) * l_pyramid[j][x, y, li] + lf * l_pyramid[j][x, y, li + 1]
            out_l_pyramid.append(out_l)

        collapsed = out_l_pyramid[J - 1]
        out_pyramid = [collapsed]
        for j in reversed(range(J - 1)):
            up = upsample(collapsed, f"out_g_{j}")
            collapsed = hl.Func(f"out_g_{j}")
            collapsed[x, y] = up[x, y] + out_l_pyramid[j][x, y]
            out_pyramid.append(collapsed)

        # Reintroduces the colour.
        color = hl.Func("color")
        eps = hl.f32(0.01)
        color[x, y, c] = collapsed[x, y] * (floating[x, y, c] + eps) / (gray[x, y] + eps)
        self.output[x, y, c] = hl.u16(hl.clamp(color[x, y, c], 0.0, 1.0) * 65535.0)

        w, h = 768, 512
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.alpha.set_estimate(1.0 / (levels - 1))
        self.beta.set_estimate(1.0)
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # The pyramids of the input and of all intensity levels in full, in parallel strips; the output's slides down its own strips.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            remap.compute_root()
            gray.compute_root().vectorize(x, vec).parallel(y, 16)
            for down_x, down_y in zip(in_rows + g_rows, in_pyramid[1:] + g_pyramid[1:]):
                # Of a row all intensity levels at once: they read the same pixels.
                down_y.compute_root().split(y, y, yi, 8).reorder(x, *down_y.args()[2:], yi, y).vectorize(x, vec).parallel(y)
                down_x.store_at(down_y, y).compute_at(down_y, yi).reorder(x, *down_x.args()[2:], y).vectorize(x, vec)
            self.output.bound(c, 0, 3).split(y, y, yi, 32).reorder(c, x, yi, y).unroll(c).vectorize(x, vec).parallel(y)
            out_pyramid[0].compute_root().vectorize(x, vec)
            for level in out_pyramid[1:]:
                level.store_at(self.output, y).compute_at(self.output, yi).vectorize(x, vec)
