"""Families of image filters, for training: VARIANTS has the values of a Generator's parameters that its variants are drawn from."""

import functools

import halide as hl
import numpy as np

x, y, k = hl.vars("x y k")
WIDTHS, HEIGHTS = (320, 512, 640, 1000, 1280, 1920, 2560), (240, 360, 512, 720, 1080)
SIZES = {"width": WIDTHS, "height": HEIGHTS}
U8, U16, I16, I32, F32 = hl.UInt(8), hl.UInt(16), hl.Int(16), hl.Int(32), hl.Float(32)
TYPES = {str(type): type for type in (U8, U16, I16, I32, F32)}


def estimate(self, border=0):
    """Estimates of a filter that reads `border` points around each of its own, all of which are in its input."""
    self.input.set_estimates([(0, self.width + 2 * border), (0, self.height + 2 * border)])
    self.output.set_estimates([(0, self.width), (0, self.height)])


def source(self, border):
    """The input around each point: `border` points larger than the output, or as large and repeated beyond its edge."""
    if self.padded:
        return lambda i, j: self.input[i + border, j + border]
    edge = hl.BoundaryConditions.repeat_edge(self.input)
    return lambda i, j: edge[i, j]


def box_sum(name, value, radius):
    """Sums over windows of an expression in x and y, given as a function of them: along x, then along y."""
    rows, sums = hl.Func(f"{name}_x"), hl.Func(f"{name}_y")
    rows[x, y] = sum((value(x + i, y) for i in range(-radius + 1, radius + 1)), value(x - radius, y))
    sums[x, y] = sum((rows[x, y + i] for i in range(-radius + 1, radius + 1)), rows[x, y - radius])
    return sums


@hl.generator(name="gaussian")
class Gaussian(hl.Generator):
    """Gaussian blur, along x, then along y: integers in 32-bit fixed point, float as it is."""

    VARIANTS = {"element": ("uint8", "uint16", "float32"), "radius": (2, 3, 5, 8), "padded": ("true", "false"), **SIZES}
    element, radius, padded = hl.GeneratorParam("uint8"), hl.GeneratorParam(2), hl.GeneratorParam(True)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 2))

    def generate(self):
        read, n = source(self, self.radius), self.radius
        weights = np.exp(-0.5 * (np.arange(-n, n + 1) / (0.5 * n)) ** 2)
        weights /= weights.sum()
        blur_x = hl.Func("blur_x")
        if TYPES[self.element].is_float():
            blur_x[x, y] = sum(hl.f32(float(w)) * read(x + i - n, y) for i, w in enumerate(weights))
            self.output[x, y] = sum(hl.f32(float(w)) * blur_x[x, y + i - n] for i, w in enumerate(weights))
        else:
            fixed = [max(int(w * 256), 1) for w in weights]
            blur_x[x, y] = hl.cast(TYPES[self.element], sum(w * hl.u32(read(x + i - n, y)) for i, w in enumerate(fixed)) >> 8)
            self.output[x, y] = hl.cast(TYPES[self.element], sum(w * hl.u32(blur_x[x, y + i - n]) for i, w in enumerate(fixed)) >> 8)
        estimate(self, self.radius if self.padded else 0)


@hl.generator(name="convolve")
class Convolve(hl.Generator):
    """A dense filter of n x n taps that are an input."""

    VARIANTS = {"element": ("uint8", "int16", "float32"), "taps": (3, 5, 7, 11, 15), "width": WIDTHS[:5], "height": HEIGHTS[:4]}
    element, taps = hl.GeneratorParam("float32"), hl.GeneratorParam(5)
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)

    def configure(self):
        weight = F32 if TYPES[self.element].is_float() else I16
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_input("kernel", hl.InputBuffer(weight, 2))
        self.add_output("output", hl.OutputBuffer(F32 if TYPES[self.element].is_float() else I32, 2))

    def generate(self):
        n, type = self.taps, F32 if TYPES[self.element].is_float() else I32
        r, filtered = hl.RDom([(0, n), (0, n)], "r"), hl.Func("filtered")
        filtered[x, y] = hl.cast(type, 0)
        filtered[x, y] += hl.cast(type, self.kernel[r.x, r.y]) * hl.cast(type, self.input[x + r.x, y + r.y])
        self.output[x, y] = filtered[x, y]
        self.input.set_estimates([(0, self.width + n - 1), (0, self.height + n - 1)])
        self.kernel.set_estimates([(0, n), (0, n)])
        self.output.set_estimates([(0, self.width), (0, self.height)])


@hl.generator(name="sobel")
class Sobel(hl.Generator):
    """Size of the gradient by Sobel's two filters, its sum of absolute values or its root."""

    VARIANTS = {"element": ("uint8", "uint16", "float32"), "root": ("true", "false"), "padded": ("true", "false"), **SIZES}
    element, root, padded = hl.GeneratorParam("uint8"), hl.GeneratorParam(False), hl.GeneratorParam(True)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 2))

    def generate(self):
        type = F32 if TYPES[self.element].is_float() else I32 if TYPES[self.element].bits() == 16 else I16
        read = source(self, 1)
        at = lambda i, j: hl.cast(type, read(x + i, y + j))
        gx, gy = hl.funcs("gx gy")
        gx[x, y] = at(1, -1) - at(-1, -1) + (at(1, 0) - at(-1, 0)) * 2 + at(1, 1) - at(-1, 1)
        gy[x, y] = at(-1, 1) - at(-1, -1) + (at(0, 1) - at(0, -1)) * 2 + at(1, 1) - at(1, -1)
        if self.root:
            size = hl.sqrt(hl.f32(gx[x, y]) ** 2 + hl.f32(gy[x, y]) ** 2)
        else:
            size = hl.abs(gx[x, y]) + hl.abs(gy[x, y])
        self.output[x, y] = size if TYPES[self.element].is_float() else hl.saturating_cast(TYPES[self.element], size)
        estimate(self, 1 if self.padded else 0)


@hl.generator(name="median")
class Median(hl.Generator):
    """Median of 3 x 3 by a network of minima and maxima: columns sorted, then the nine's median."""

    VARIANTS = {"element": ("uint8", "uint16", "float32"), "padded": ("true", "false"), **SIZES}
    element, padded = hl.GeneratorParam("uint8"), hl.GeneratorParam(True)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 2))

    def generate(self):
        read = source(self, 1)
        low, mid, high = hl.funcs("low mid high")
        a, b, c = (read(x, y + j) for j in (-1, 0, 1))
        med = lambda p, q, r: hl.max(hl.min(p, q), hl.min(hl.max(p, q), r))
        low[x, y] = hl.min(a, hl.min(b, c))
        mid[x, y] = med(a, b, c)
        high[x, y] = hl.max(a, hl.max(b, c))
        largest = hl.max(low[x - 1, y], hl.max(low[x, y], low[x + 1, y]))
        least = hl.min(high[x - 1, y], hl.min(high[x, y], high[x + 1, y]))
        self.output[x, y] = med(largest, med(mid[x - 1, y], mid[x, y], mid[x + 1, y]), least)
        estimate(self, 1 if self.padded else 0)


@hl.generator(name="opening")
class Opening(hl.Generator):
    """Morphological opening: least, then largest value of a square, each along x and then along y."""

    VARIANTS = {"element": ("uint8", "uint16"), "radius": (1, 2, 4, 7), **SIZES}
    element, radius = hl.GeneratorParam("uint8"), hl.GeneratorParam(2)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_output("output", hl.OutputBuffer(TYPES[self.element], 2))

    def generate(self):
        n, last = self.radius, hl.BoundaryConditions.repeat_edge(self.input, [(0, self.width), (0, self.height)])
        for name, pick in (("erode", hl.min), ("dilate", hl.max)):
            for axis in "xy":
                func = hl.Func(f"{name}_{axis}")
                window = [last[x + i, y] if axis == "x" else last[x, y + i] for i in range(-n, n + 1)]
                func[x, y] = functools.reduce(pick, window)
                last = func
        self.output[x, y] = last[x, y]
        estimate(self)


@hl.generator(name="canny_stages")
class CannyStages(hl.Generator):
    """What Canny's detector does before it links edges: smoothing, gradients, and what is no maximum along its gradient set to 0; int16."""

    VARIANTS = {"padded": ("true", "false"), **SIZES}
    padded, width, height = hl.GeneratorParam(False), hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        read = source(self, 4)
        rows, smooth, gx, gy, size = hl.funcs("rows smooth gx gy size")
        rows[x, y] = sum(w * hl.i16(read(x + i, y)) for i, w in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1))) >> 4
        smooth[x, y] = sum(w * rows[x, y + i] for i, w in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1))) >> 4
        gx[x, y] = smooth[x + 1, y] - smooth[x - 1, y]
        gy[x, y] = smooth[x, y + 1] - smooth[x, y - 1]
        size[x, y] = hl.abs(gx[x, y]) + hl.abs(gy[x, y])
        steep, at = hl.abs(gy[x, y]) > hl.abs(gx[x, y]), lambda i, j: hl.Expr(size[x + i, y + j])
        before, after = hl.select(steep, at(0, -1), at(-1, 0)), hl.select(steep, at(0, 1), at(1, 0))
        is_maximum = (at(0, 0) >= before) & (at(0, 0) > after)
        self.output[x, y] = hl.select(is_maximum, hl.u8_sat(at(0, 0)), hl.u8(0))
        estimate(self, 4 if self.padded else 0)


@hl.generator(name="guided_filter")
class GuidedFilter(hl.Generator):
    """Guided filter (He, Sun, Tang 2010) of one image by another; float."""

    VARIANTS = {"radius": (1, 2, 4), "width": WIDTHS[:6], "height": HEIGHTS}
    radius, width, height = hl.GeneratorParam(2), hl.GeneratorParam(640), hl.GeneratorParam(512)
    input = hl.InputBuffer(F32, 2)
    guide = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        p, g = hl.BoundaryConditions.repeat_edge(self.input), hl.BoundaryConditions.repeat_edge(self.guide)
        scale = hl.f32(1 / (2 * self.radius + 1) ** 2)
        mean = lambda name, value: box_sum(name, value, self.radius)
        mean_g, mean_p = mean("mean_g", lambda i, j: g[i, j]), mean("mean_p", lambda i, j: p[i, j])
        mean_gg, mean_gp = mean("mean_gg", lambda i, j: g[i, j] * g[i, j]), mean("mean_gp", lambda i, j: g[i, j] * p[i, j])
        a, b = hl.funcs("a b")
        at = lambda f: f[x, y] * scale
        a[x, y] = (at(mean_gp) - at(mean_g) * at(mean_p)) / (at(mean_gg) - at(mean_g) * at(mean_g) + hl.f32(0.01))
        b[x, y] = at(mean_p) - a[x, y] * at(mean_g)
        mean_a, mean_b = mean("mean_a", lambda i, j: a[i, j]), mean("mean_b", lambda i, j: b[i, j])
        self.output[x, y] = at(mean_a) * g[x, y] + at(mean_b)
        estimate(self)
        self.guide.set_estimates([(0, self.width), (0, self.height)])


@hl.generator(name="difference_of_gaussians")
class DifferenceOfGaussians(hl.Generator):
    """Difference of two blurs of different width, the keypoints' first step (Lowe 2004); float."""

    VARIANTS = {"radius": (2, 3, 5), "padded": ("true", "false"), **SIZES}
    radius, padded = hl.GeneratorParam(3), hl.GeneratorParam(False)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n, blurred = self.radius, []
        read = source(self, n)
        for name, sigma in (("narrow", 0.35 * n), ("wide", 0.55 * n)):
            w = np.exp(-0.5 * (np.arange(-n, n + 1) / sigma) ** 2)
            w = (w / w.sum()).tolist()
            rows, both = hl.Func(f"{name}_x"), hl.Func(name)
            rows[x, y] = sum(hl.f32(w[i + n]) * read(x + i, y) for i in range(-n, n + 1))
            both[x, y] = sum(hl.f32(w[i + n]) * rows[x, y + i] for i in range(-n, n + 1))
            blurred.append(both)
        self.output[x, y] = blurred[1][x, y] - blurred[0][x, y]
        estimate(self, n if self.padded else 0)


@hl.generator(name="bilateral_direct")
class BilateralDirect(hl.Generator):
    """Bilateral filter as it is defined (Tomasi, Manduchi 1998): a sum over a window, weights by the difference of values; float."""

    VARIANTS = {"radius": (1, 2, 3), "fast": ("true", "false"), "width": WIDTHS[:4], "height": HEIGHTS[:3]}
    radius, fast = hl.GeneratorParam(2), hl.GeneratorParam(True)
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n, edge = self.radius, hl.BoundaryConditions.repeat_edge(self.input)
        r, total, exp = hl.RDom([(-n, 2 * n + 1), (-n, 2 * n + 1)], "r"), hl.Func("total"), hl.fast_exp if self.fast else hl.exp
        value = edge[x + r.x, y + r.y]
        weight = exp(-(value - edge[x, y]) * (value - edge[x, y]) * hl.f32(8) - hl.f32(r.x * r.x + r.y * r.y) * hl.f32(0.5 / n**2))
        total[x, y, k] = hl.f32(0)
        total[x, y, k] += weight * hl.select(k == 0, hl.f32(1), value)
        total.bound(k, 0, 2)
        self.output[x, y] = total[x, y, 1] / total[x, y, 0]
        estimate(self)


@hl.generator(name="integral_box")
class IntegralBox(hl.Generator):
    """Box mean of any radius from an integral image: two prefix sums, then four reads."""

    VARIANTS = {"radius": (4, 9, 20), "width": WIDTHS, "height": HEIGHTS}
    radius, width, height = hl.GeneratorParam(9), hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        w, h, n = self.width, self.height, self.radius
        rx, ry = hl.RDom([(1, w - 1)], "rx"), hl.RDom([(1, h - 1)], "ry")
        along_x, integral = hl.funcs("along_x integral")
        along_x[x, y] = hl.u32(self.input[x, y])
        along_x[rx, y] += along_x[rx - 1, y]
        integral[x, y] = along_x[x, y]
        integral[x, ry] += integral[x, ry - 1]
        left, right = hl.max(x - n, 0), hl.min(x + n, w - 1)
        top, bottom = hl.max(y - n, 0), hl.min(y + n, h - 1)
        total = integral[right, bottom] - integral[left, bottom] - integral[right, top] + integral[left, top]
        area = hl.u32(hl.max((right - left) * (bottom - top), 1))
        self.output[x, y] = hl.u8(total / area)
        estimate(self)


@hl.generator(name="chamfer_distance")
class ChamferDistance(hl.Generator):
    """Distance to the nearest dark pixel along rows and columns: two scans of each, uint16."""

    VARIANTS = {"width": WIDTHS[:6], "height": HEIGHTS}
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(512)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U16, 2)

    def generate(self):
        w, h = self.width, self.height
        rx, ry = hl.RDom([(1, w - 1)], "rx"), hl.RDom([(1, h - 1)], "ry")
        rows, both = hl.funcs("rows both")
        rows[x, y] = hl.select(self.input[x, y] < 32, hl.u16(0), hl.u16(10000))
        rows[rx, y] = hl.min(rows[rx, y], rows[rx - 1, y] + hl.u16(1))
        rows[w - 1 - rx, y] = hl.min(rows[w - 1 - rx, y], rows[w - rx, y] + hl.u16(1))
        both[x, y] = rows[x, y]
        both[x, ry] = hl.min(both[x, ry], both[x, ry - 1] + hl.u16(1))
        both[x, h - 1 - ry] = hl.min(both[x, h - 1 - ry], both[x, h - ry] + hl.u16(1))
        self.output[x, y] = both[x, y]
        estimate(self)


@hl.generator(name="diffusion")
class Diffusion(hl.Generator):
    """Steps of anisotropic diffusion (Perona, Malik 1990); float."""

    VARIANTS = {"steps": (1, 2, 4), "width": WIDTHS[:6], "height": HEIGHTS}
    steps, width, height = hl.GeneratorParam(2), hl.GeneratorParam(640), hl.GeneratorParam(512)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        last = hl.BoundaryConditions.repeat_edge(self.input)
        for i in range(self.steps):
            step, here = hl.Func(f"step_{i}"), last[x, y]
            differences = [last[x + dx, y + dy] - here for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            step[x, y] = here + hl.f32(0.2) * sum(d / (hl.f32(1) + d * d * hl.f32(16)) for d in differences)
            last = step
        self.output[x, y] = last[x, y]
        estimate(self)


@hl.generator(name="local_contrast")
class LocalContrast(hl.Generator):
    """Each point less its neighbourhood's mean, over its standard deviation; uint8 in, float out."""

    VARIANTS = {"radius": (1, 3, 6), "padded": ("true", "false"), **SIZES}
    radius, padded = hl.GeneratorParam(3), hl.GeneratorParam(True)
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n, area = self.radius, (2 * self.radius + 1) ** 2
        read = source(self, n)
        sums = box_sum("sums", lambda i, j: hl.u32(read(i, j)), n)
        squares = box_sum("squares", lambda i, j: hl.u32(read(i, j)) * hl.u32(read(i, j)), n)
        mean = hl.f32(sums[x, y]) * hl.f32(1 / area)
        variance = hl.f32(squares[x, y]) * hl.f32(1 / area) - mean * mean
        self.output[x, y] = (hl.f32(read(x, y)) - mean) / hl.sqrt(hl.max(variance, hl.f32(0)) + hl.f32(4))
        estimate(self, n if self.padded else 0)
