"""Two levels of the 2-D Daubechies D4 wavelet transform (after Halide's apps/wavelet): a float image to its subbands in Mallat's layout."""

import halide as hl

x, y, b = hl.vars("x y b")

# The D4 low-pass filter; the high-pass is its quadrature mirror.
D4 = (0.4829629131445341, 0.8365163037378079, 0.2241438680420134, -0.1294095225512604)


def daubechies(at):
    """The low and the high band of the signal at(i), i from -1 to 2."""
    taps = [at(i) for i in (-1, 0, 1, 2)]
    low = sum(hl.f32(d) * t for d, t in zip(D4, taps))
    high = sum(hl.f32(s * d) * t for s, d, t in zip((1, -1, 1, -1), reversed(D4), taps))
    return low, high


def level(f, name):
    """One level: band 0 is low in x and y, 1 high in x, 2 high in y, 3 high in both."""
    along_x, along_xy = hl.Func(name + "_x"), hl.Func(name + "_xy")
    low, high = daubechies(lambda i: f[2 * x + i, y])
    along_x[x, y, b] = hl.select(b == 0, low, high)
    low, high = daubechies(lambda i: along_x[x, 2 * y + i, b % 2])
    along_xy[x, y, b] = hl.select(b < 2, low, high)
    return along_x, along_xy


@hl.generator(name="wavelet")
class Wavelet(hl.Generator):
    levels = hl.GeneratorParam(2)

    input = hl.InputBuffer(hl.Float(32), 2)
    output = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        w, h = 1536, 1024

        clamped = hl.BoundaryConditions.mirror_image(self.input, [(0, w), (0, h)])
        f, bands, rows = clamped, [], []
        for l in range(self.levels):
            along_x, along_xy = level(f, f"level_{l}")
            rows.append(along_x)
            bands.append(along_xy)
            low = hl.Func(f"low_{l}")
            low[x, y] = bands[-1][x, y, 0]
            # The next level continues the low band by its own mirror.
            f = hl.BoundaryConditions.mirror_image(low, [(0, w >> (l + 1)), (0, h >> (l + 1))])

        # Mallat's layout: the coarser levels in place of the low band, top left.
        value = None
        for l in reversed(range(self.levels)):
            wd, ht = w >> (l + 1), h >> (l + 1)
            band = bands[l][x % wd, y % ht, hl.clamp(x // wd, 0, 1) + 2 * hl.clamp(y // ht, 0, 1)]
            value = band if value is None else hl.select((x < wd) & (y < ht), value, band)
        self.output[x, y] = value

        self.input.set_estimates([(0, w), (0, h)])
        self.output.set_estimates([(0, w), (0, h)])

        if not self.using_autoscheduler():
            # A level at a time, in parallel strips: what is transformed along x slides down a strip; all bands of a row are made at once.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.Float(32))
            for along_x, along_xy in zip(rows, bands):
                along_xy.compute_root().split(y, y, yi, 16).reorder(b, x, yi, y).vectorize(x, vec).parallel(y)
                along_x.store_at(along_xy, y).compute_at(along_xy, yi).reorder(b, x, y).vectorize(x, vec)
            self.output.vectorize(x, vec).parallel(y, 16)
