"""Families of kernels of computer vision, for training: VARIANTS has the values that the variants of a Generator are drawn from."""

import math

import halide as hl

x, y, d, b, t = hl.vars("x y d b t")
WIDTHS, HEIGHTS = (320, 512, 640, 800, 1024), (240, 360, 480)
SIZES = {"width": WIDTHS, "height": HEIGHTS}
U8, U16, I16, I32, F32 = hl.UInt(8), hl.UInt(16), hl.Int(16), hl.Int(32), hl.Float(32)
TYPES = {str(type): type for type in (U8, U16, I16, I32, F32)}


def estimate(self, buffers, border=0):
    for buffer in buffers:
        buffer.set_estimates([(0, self.width + border), (0, self.height + border)])


@hl.generator(name="stereo_sad")
class StereoSad(hl.Generator):
    """How well two views match, shifted against each other: sums of absolute differences over a window, the best of all shifts."""

    VARIANTS = {"radius": (1, 2, 4), "shifts": (8, 16, 32), **SIZES}
    radius, shifts, width, height = hl.GeneratorParam(2), hl.GeneratorParam(16), hl.GeneratorParam(640), hl.GeneratorParam(360)
    left = hl.InputBuffer(U8, 2)
    right = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U16, 2)

    def generate(self):
        n, r = self.radius, hl.RDom([(0, self.shifts)], "r")
        a, c = hl.BoundaryConditions.repeat_edge(self.left), hl.BoundaryConditions.repeat_edge(self.right)
        difference, rows, cost, best = hl.funcs("difference rows cost best")
        difference[x, y, d] = hl.u16(hl.absd(a[x, y], c[x - d, y]))
        rows[x, y, d] = sum((difference[x + i, y, d] for i in range(-n + 1, n + 1)), difference[x - n, y, d])
        cost[x, y, d] = sum((rows[x, y + i, d] for i in range(-n + 1, n + 1)), rows[x, y - n, d])
        best[x, y] = hl.u16(65535)
        best[x, y] = hl.min(best[x, y], cost[x, y, r])
        self.output[x, y] = best[x, y]
        estimate(self, [self.left, self.right, self.output])


@hl.generator(name="lucas_kanade")
class LucasKanade(hl.Generator):
    """A step of optical flow: gradients, their products summed over a window, and two equations solved at each point; float."""

    VARIANTS = {"radius": (1, 2, 3), **SIZES}
    radius, width, height = hl.GeneratorParam(2), hl.GeneratorParam(640), hl.GeneratorParam(360)
    before = hl.InputBuffer(F32, 2)
    after = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        n = self.radius
        first, second = hl.BoundaryConditions.repeat_edge(self.before), hl.BoundaryConditions.repeat_edge(self.after)
        gx, gy, gt = hl.funcs("gx gy gt")
        gx[x, y] = (first[x + 1, y] - first[x - 1, y]) * hl.f32(0.5)
        gy[x, y] = (first[x, y + 1] - first[x, y - 1]) * hl.f32(0.5)
        gt[x, y] = second[x, y] - first[x, y]
        sums = {}
        for name, u, v in (("xx", gx, gx), ("xy", gx, gy), ("yy", gy, gy), ("xt", gx, gt), ("yt", gy, gt)):
            rows, both = hl.Func(f"rows_{name}"), hl.Func(f"sum_{name}")
            rows[x, y] = sum(u[x + i, y] * v[x + i, y] for i in range(-n, n + 1))
            both[x, y] = sum(rows[x, y + i] for i in range(-n, n + 1))
            sums[name] = both[x, y]
        determinant = sums["xx"] * sums["yy"] - sums["xy"] * sums["xy"] + hl.f32(0.5)
        u = (sums["xy"] * sums["yt"] - sums["yy"] * sums["xt"]) / determinant
        v = (sums["xy"] * sums["xt"] - sums["xx"] * sums["yt"]) / determinant
        self.output[x, y, d] = hl.select(d == 0, u, v)
        estimate(self, [self.before, self.after])
        self.output.set_estimates([(0, self.width), (0, self.height), (0, 2)])


@hl.generator(name="horn_schunck")
class HornSchunck(hl.Generator):
    """Iterations of Horn and Schunck's optical flow (1981), both components together; float."""

    VARIANTS = {"steps": (1, 2, 3), **SIZES}
    steps, width, height = hl.GeneratorParam(2), hl.GeneratorParam(640), hl.GeneratorParam(360)
    gradients = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        g, last = hl.BoundaryConditions.repeat_edge(self.gradients), None
        gx, gy, gt = (g[x, y, k] for k in range(3))
        for step in range(self.steps):
            flow = hl.Func(f"flow_{step}")
            if last is None:
                mean = [hl.f32(0), hl.f32(0)]
            else:
                mean = [sum(last[x + i, y + j, k] for i, j in ((1, 0), (-1, 0), (0, 1), (0, -1))) * hl.f32(0.25) for k in range(2)]
            change = (gx * mean[0] + gy * mean[1] + gt) / (hl.f32(0.5) + gx * gx + gy * gy)
            flow[x, y, d] = hl.select(d == 0, mean[0] - gx * change, mean[1] - gy * change)
            last = flow
        self.output[x, y, d] = last[x, y, d]
        self.gradients.set_estimates([(0, self.width), (0, self.height), (0, 3)])
        self.output.set_estimates([(0, self.width), (0, self.height), (0, 2)])


@hl.generator(name="census")
class Census(hl.Generator):
    """Census transform (Zabih, Woodfill 1994): a bit for each neighbour that is darker, and how many differ from a second image's."""

    VARIANTS = {"radius": (1, 2), "width": WIDTHS, "height": HEIGHTS}
    radius, width, height = hl.GeneratorParam(1), hl.GeneratorParam(640), hl.GeneratorParam(360)
    left = hl.InputBuffer(U8, 2)
    right = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        n, codes = self.radius, []
        neighbours = [(i, j) for j in range(-n, n + 1) for i in range(-n, n + 1) if i or j]
        for name, buffer in (("left", self.left), ("right", self.right)):
            edge, code = hl.BoundaryConditions.repeat_edge(buffer), hl.Func(f"code_{name}")
            bits = [hl.select(edge[x + i, y + j] < edge[x, y], hl.u32(1 << k), hl.u32(0)) for k, (i, j) in enumerate(neighbours)]
            code[x, y] = sum(bits[1:], bits[0])
            codes.append(code)
        self.output[x, y] = hl.u8(hl.popcount(codes[0][x, y] ^ codes[1][x, y]))
        estimate(self, [self.left, self.right, self.output])


@hl.generator(name="template_match")
class TemplateMatch(hl.Generator):
    """Sum of squared differences of a template at every place of an image; integers."""

    VARIANTS = {"size": (4, 8, 16), "width": WIDTHS[:3], "height": HEIGHTS[:2]}
    size, width, height = hl.GeneratorParam(8), hl.GeneratorParam(320), hl.GeneratorParam(240)
    input = hl.InputBuffer(U8, 2)
    template = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(I32, 2)

    def generate(self):
        n, distance = self.size, hl.Func("distance")
        r = hl.RDom([(0, n), (0, n)], "r")
        difference = hl.i32(self.input[x + r.x, y + r.y]) - hl.i32(self.template[r.x, r.y])
        distance[x, y] = 0
        distance[x, y] += difference * difference
        self.output[x, y] = distance[x, y]
        estimate(self, [self.input], border=n - 1)
        estimate(self, [self.output])
        self.template.set_estimates([(0, n), (0, n)])


@hl.generator(name="oriented_gradients")
class OrientedGradients(hl.Generator):
    """Histograms of oriented gradients (Dalal, Triggs 2005) of cells of 8 x 8 points, without their normalisation; integers."""

    VARIANTS = {"bins": (4, 8), "width": (320, 512, 640, 1024), "height": (240, 360, 480)}
    bins, width, height = hl.GeneratorParam(8), hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(I32, 3)

    def generate(self):
        edge, n = hl.BoundaryConditions.repeat_edge(self.input), self.bins
        gx, gy, sector, cells = hl.funcs("gx gy sector cells")
        gx[x, y] = hl.i16(edge[x + 1, y]) - hl.i16(edge[x - 1, y])
        gy[x, y] = hl.i16(edge[x, y + 1]) - hl.i16(edge[x, y - 1])
        halves = hl.select(gx[x, y] > 0, 1, 0) + hl.select(gy[x, y] > 0, 2, 0) + hl.select(hl.abs(gx[x, y]) > hl.abs(gy[x, y]), 4, 0)
        sector[x, y] = halves % n
        r = hl.RDom([(0, 8), (0, 8)], "r")
        at = (x * 8 + r.x, y * 8 + r.y)
        cells[b, x, y] = 0
        cells[hl.clamp(sector[at], 0, n - 1), x, y] += hl.i32(hl.abs(gx[at])) + hl.i32(hl.abs(gy[at]))
        self.output[b, x, y] = cells[b, x, y]
        estimate(self, [self.input])
        self.output.set_estimates([(0, n), (0, self.width // 8), (0, self.height // 8)])


@hl.generator(name="hough_lines")
class HoughLines(hl.Generator):
    """Votes of edge points for the lines through them: updates at computed addresses."""

    VARIANTS = {"angles": (16, 45), "width": (160, 320), "height": (120, 240)}
    angles, width, height = hl.GeneratorParam(16), hl.GeneratorParam(160), hl.GeneratorParam(120)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(hl.UInt(32), 2)

    def generate(self):
        reach = self.width + self.height
        cosine, votes = hl.Func("cosine"), hl.Func("votes")
        angle = hl.f32(t) * hl.f32(math.pi / self.angles)
        cosine[t, d] = hl.i32(hl.round(hl.f32(256) * hl.select(d == 0, hl.cos(angle), hl.sin(angle))))
        r = hl.RDom([(0, self.width), (0, self.height)], "r")
        place = ((r.x * cosine[t, 0] + r.y * cosine[t, 1]) >> 8) + self.width
        votes[d, t] = hl.u32(0)
        votes[hl.clamp(place, 0, reach + self.width - 1), t] += hl.u32(self.input[r.x, r.y])
        self.output[d, t] = votes[d, t]
        estimate(self, [self.input])
        self.output.set_estimates([(0, reach + self.width), (0, self.angles)])


@hl.generator(name="corner_shi_tomasi")
class CornerShiTomasi(hl.Generator):
    """The smaller eigenvalue of the gradients' covariance (Shi, Tomasi 1994), and where it is a maximum; float."""

    VARIANTS = {"radius": (1, 2), "width": WIDTHS, "height": HEIGHTS}
    radius, width, height = hl.GeneratorParam(1), hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        edge, n = hl.BoundaryConditions.repeat_edge(self.input), self.radius
        gx, gy, least = hl.funcs("gx gy least")
        gx[x, y] = hl.i32(edge[x + 1, y]) - hl.i32(edge[x - 1, y])
        gy[x, y] = hl.i32(edge[x, y + 1]) - hl.i32(edge[x, y - 1])
        window = [(i, j) for j in range(-n, n + 1) for i in range(-n, n + 1)]
        product = lambda u, v: hl.f32(sum(u[x + i, y + j] * v[x + i, y + j] for i, j in window))
        xx, yy, xy = product(gx, gx), product(gy, gy), product(gx, gy)
        least[x, y] = (xx + yy - hl.sqrt((xx - yy) * (xx - yy) + hl.f32(4) * xy * xy)) * hl.f32(0.5)
        around = hl.max(hl.max(least[x - 1, y], least[x + 1, y]), hl.max(least[x, y - 1], least[x, y + 1]))
        self.output[x, y] = least[x, y] * hl.f32(0.75) + hl.min(around, least[x, y]) * hl.f32(0.25)
        estimate(self, [self.input, self.output])


@hl.generator(name="affine_warp")
class AffineWarp(hl.Generator):
    """An image turned, stretched and moved, read between its points by bilinear interpolation: four gathers a point."""

    VARIANTS = {"element": ("uint8", "float32"), "degrees": (0, 10, 45), **SIZES}
    element, degrees = hl.GeneratorParam("float32"), hl.GeneratorParam(10)
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(F32, 2))

    def generate(self):
        angle, edge = math.radians(self.degrees), hl.BoundaryConditions.repeat_edge(self.input)
        cos, sin = hl.f32(1.1 * math.cos(angle)), hl.f32(1.1 * math.sin(angle))
        u, v = hl.f32(x) * cos - hl.f32(y) * sin + hl.f32(0.37), hl.f32(x) * sin + hl.f32(y) * cos + hl.f32(0.61)
        left, top = hl.i32(hl.floor(u)), hl.i32(hl.floor(v))
        at = lambda i, j: hl.f32(edge[left + i, top + j])
        wx, wy = u - hl.f32(left), v - hl.f32(top)
        self.output[x, y] = hl.lerp(hl.lerp(at(0, 0), at(1, 0), wx), hl.lerp(at(0, 1), at(1, 1), wx), wy)
        estimate(self, [self.input, self.output])


@hl.generator(name="undistort")
class Undistort(hl.Generator):
    """A lens's radial distortion undone, by a map of where each point comes from; nearest neighbour; uint8."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        edge, place = hl.BoundaryConditions.constant_exterior(self.input, hl.u8(0)), hl.Func("place")
        u = (hl.f32(x) - hl.f32(self.width / 2)) * hl.f32(2 / self.width)
        v = (hl.f32(y) - hl.f32(self.height / 2)) * hl.f32(2 / self.height)
        grown = hl.f32(1) + hl.f32(0.1) * (u * u + v * v) + hl.f32(0.02) * (u * u + v * v) * (u * u + v * v)
        place[x, y, d] = hl.i32(
            hl.select(
                d == 0,
                u * grown * hl.f32(self.width / 2) + hl.f32(self.width / 2),
                v * grown * hl.f32(self.height / 2) + hl.f32(self.height / 2),
            )
            + hl.f32(0.013)
        )
        self.output[x, y] = edge[hl.clamp(place[x, y, 0], -1, self.width), hl.clamp(place[x, y, 1], -1, self.height)]
        estimate(self, [self.input, self.output])


@hl.generator(name="turn_by_90")
class TurnBy90(hl.Generator):
    """An image turned by a quarter: as many strided reads as points."""

    VARIANTS = {"element": ("uint8", "uint16", "float32"), "width": (512, 1024, 2048), "height": (512, 1024, 2048)}
    element, width, height = hl.GeneratorParam("uint8"), hl.GeneratorParam(1024), hl.GeneratorParam(1024)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 2))

    def generate(self):
        self.output[x, y] = self.input[y, self.width - 1 - x]
        self.input.set_estimates([(0, self.height), (0, self.width)])
        self.output.set_estimates([(0, self.width), (0, self.height)])


@hl.generator(name="shrink_by_area")
class ShrinkByArea(hl.Generator):
    """An image made smaller, each point the mean of n x n."""

    VARIANTS = {"element": ("uint8", "uint16", "float32"), "factor": (2, 3, 4, 8), "width": (160, 320, 480), "height": (120, 240, 360)}
    element, factor = hl.GeneratorParam("uint8"), hl.GeneratorParam(4)
    width, height = hl.GeneratorParam(320), hl.GeneratorParam(240)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 2))

    def generate(self):
        n, type, total = self.factor, F32 if TYPES[self.element].is_float() else hl.UInt(32), hl.Func("total")
        r = hl.RDom([(0, n), (0, n)], "r")
        total[x, y] = hl.cast(type, 0)
        total[x, y] += hl.cast(type, self.input[x * n + r.x, y * n + r.y])
        mean = total[x, y] * hl.f32(1 / n**2) if type == F32 else (total[x, y] + hl.u32(n * n // 2)) / hl.u32(n * n)
        self.output[x, y] = hl.cast(TYPES[self.element], mean)
        self.input.set_estimates([(0, self.width * n), (0, self.height * n)])
        self.output.set_estimates([(0, self.width), (0, self.height)])


@hl.generator(name="jpeg_dct")
class JpegDct(hl.Generator):
    """The cosine transform of blocks of 8 x 8 points as JPEG has it, along both axes, and what is left of it at a quality."""

    VARIANTS = {"integer": ("true", "false"), "width": (320, 640, 1024), "height": (240, 480, 720)}
    integer, width, height = hl.GeneratorParam(False), hl.GeneratorParam(640), hl.GeneratorParam(480)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(I16, 4)

    def generate(self):
        u, v = hl.vars("u v")
        type = I32 if self.integer else F32
        table = hl.Func("table")
        angle = hl.f32((2 * x + 1) * u) * hl.f32(math.pi / 16)
        value = hl.cos(angle) * hl.select(u == 0, hl.f32(0.5**1.5), hl.f32(0.5))
        table[x, u] = hl.cast(type, hl.round(value * hl.f32(1024))) if self.integer else value
        r = hl.RDom([(0, 8)], "r")
        rows, both = hl.funcs("rows both")
        rows[u, y, x] = hl.cast(type, 0)
        rows[u, y, x] += table[r, u] * (hl.cast(type, self.input[x * 8 + r, y]) - hl.cast(type, 128))
        shrink = (lambda e: e >> 10) if self.integer else (lambda e: e)
        both[u, v, x, y] = hl.cast(type, 0)
        both[u, v, x, y] += table[r, v] * shrink(rows[u, y * 8 + r, x])
        steps = hl.cast(type, 16 + 4 * (u + v))
        quantised = (both[u, v, x, y] >> 10) / steps if self.integer else hl.floor(both[u, v, x, y] / steps + hl.f32(0.4987))
        self.output[u, v, x, y] = hl.cast(I16, quantised)
        estimate(self, [self.input])
        self.output.set_estimates([(0, 8), (0, 8), (0, self.width // 8), (0, self.height // 8)])
