"""Further families of image processing, for training: VARIANTS has the values that the variants of a Generator are drawn from."""

import math

import halide as hl
import numpy as np

x, y, c, k = hl.vars("x y c k")
U8, U16, I32, F32 = hl.UInt(8), hl.UInt(16), hl.Int(32), hl.Float(32)
SIZES = {"width": (320, 640, 1000, 1280, 1920), "height": (240, 360, 720, 1080)}


def estimate(self, buffers, *more):
    for buffer in buffers:
        buffer.set_estimates([(0, self.width), (0, self.height), *((0, n) for n in more)])


@hl.generator(name="hue_shift")
class HueShift(hl.Generator):
    """Colours to hue, saturation and value, the hue turned, and back: comparisons and quotients; float."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        red, green, blue = (self.input[x, y, i] for i in range(3))
        largest, spread, hue = hl.funcs("largest spread hue")
        largest[x, y] = hl.max(red, hl.max(green, blue))
        spread[x, y] = largest[x, y] - hl.min(red, hl.min(green, blue))
        width = hl.max(spread[x, y], hl.f32(0.00001))
        of_green = (blue - red) / width + hl.f32(2)
        of_blue = (red - green) / width + hl.f32(4)
        hue[x, y] = hl.select(largest[x, y] == red, (green - blue) / width, hl.select(largest[x, y] == green, of_green, of_blue)) + hl.f32(
            6.7
        )
        sector = hue[x, y] + hl.mux(c, [hl.f32(5), hl.f32(3), hl.f32(1)])
        place = sector - hl.f32(6) * hl.floor(sector * hl.f32(1 / 6))
        part = hl.clamp(hl.min(place, hl.f32(4) - place), hl.f32(0), hl.f32(1))
        self.output[x, y, c] = largest[x, y] - spread[x, y] * part
        estimate(self, [self.input, self.output], 3)


@hl.generator(name="ordered_dither")
class OrderedDither(hl.Generator):
    """Bytes to a few levels, by thresholds of a tile of 8 x 8 that is read over and over."""

    VARIANTS = {"levels": (2, 4, 8), **SIZES}
    levels, width, height = hl.GeneratorParam(2), hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 2)
    threshold = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        level = hl.u16(self.input[x, y]) * hl.u16(self.levels - 1) + hl.u16(self.threshold[x % 8, y % 8])
        self.output[x, y] = hl.u8((level / hl.u16(256)) * hl.u16(255 // (self.levels - 1)))
        self.threshold.set_estimates([(0, 8), (0, 8)])
        estimate(self, [self.input, self.output])


@hl.generator(name="exposure_weights")
class ExposureWeights(hl.Generator):
    """Several exposures joined by contrast, saturation and exposure of each point, without pyramids (Mertens et al. 2007); float."""

    VARIANTS = {"shots": (2, 3, 4), "width": (320, 640, 1000), "height": (240, 360)}
    shots, width, height = hl.GeneratorParam(3), hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(F32, 4)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        shot = hl.BoundaryConditions.repeat_edge(self.input)
        grey, weight, total = hl.funcs("grey weight total")
        grey[x, y, k] = (shot[x, y, 0, k] + shot[x, y, 1, k] + shot[x, y, 2, k]) * hl.f32(1 / 3)
        around = grey[x - 1, y, k] + grey[x + 1, y, k] + grey[x, y - 1, k] + grey[x, y + 1, k]
        contrast = hl.abs(around - hl.f32(4) * grey[x, y, k])
        away = [shot[x, y, i, k] - grey[x, y, k] for i in range(3)]
        saturation = hl.sqrt((away[0] * away[0] + away[1] * away[1] + away[2] * away[2]) * hl.f32(1 / 3))
        middle = grey[x, y, k] - hl.f32(0.5)
        weight[x, y, k] = (contrast + hl.f32(0.01)) * (saturation + hl.f32(0.01)) * hl.exp(hl.f32(-12.5) * middle * middle) + hl.f32(1e-6)
        total[x, y] = sum((weight[x, y, i] for i in range(1, self.shots)), weight[x, y, 0])
        terms = [weight[x, y, i] * self.input[x, y, c, i] for i in range(self.shots)]
        self.output[x, y, c] = sum(terms[1:], terms[0]) / total[x, y]
        estimate(self, [self.input], 3, self.shots)
        estimate(self, [self.output], 3)


@hl.generator(name="auto_levels")
class AutoLevels(hl.Generator):
    """Each channel stretched from its least to its largest value: two reductions over all of it, then each point again."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        r, least, largest = hl.RDom([(0, self.width), (0, self.height)], "r"), hl.Func("least"), hl.Func("largest")
        least[c] = hl.u8(255)
        least[c] = hl.min(least[c], self.input[r.x, r.y, c])
        largest[c] = hl.u8(0)
        largest[c] = hl.max(largest[c], self.input[r.x, r.y, c])
        factor = hl.f32(255) / hl.max(hl.f32(largest[c] - least[c]), hl.f32(1))
        self.output[x, y, c] = hl.u8_sat(hl.f32(self.input[x, y, c] - least[c]) * factor)
        estimate(self, [self.input, self.output], 3)


@hl.generator(name="colour_cube")
class ColourCube(hl.Generator):
    """Colours looked up in a table over all three of them, between its entries: eight gathers a point and channel; bytes in, float out."""

    VARIANTS = {"entries": (9, 17, 33), "width": (320, 640, 1000), "height": (240, 360)}
    entries, width, height = hl.GeneratorParam(17), hl.GeneratorParam(320), hl.GeneratorParam(240)
    input = hl.InputBuffer(U8, 3)
    cube = hl.InputBuffer(F32, 4)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        place = [hl.f32(self.input[x, y, i]) * hl.f32((self.entries - 1) / 256) for i in range(3)]
        low = [hl.clamp(hl.i32(p), 0, self.entries - 2) for p in place]
        part = [p - hl.f32(i) for p, i in zip(place, low)]
        mix = lambda a, b, weight: a + (b - a) * weight
        corner = lambda i, j, m: self.cube[c, low[0] + i, low[1] + j, low[2] + m]
        edge = lambda j, m: mix(corner(0, j, m), corner(1, j, m), part[0])
        face = lambda m: mix(edge(0, m), edge(1, m), part[1])
        self.output[x, y, c] = mix(face(0), face(1), part[2])
        self.cube.set_estimates([(0, 3)] + [(0, self.entries)] * 3)
        estimate(self, [self.input, self.output], 3)


@hl.generator(name="hdr_merge")
class HdrMerge(hl.Generator):
    """Raw values of several exposures joined to one radiance by a hat of weights (Debevec, Malik 1997); 16 bits in, float out."""

    VARIANTS = {"shots": (2, 3, 5), **SIZES}
    shots, width, height = hl.GeneratorParam(3), hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U16, 3)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, sums = hl.RDom([(0, self.shots)], "r"), hl.Func("sums")
        value = hl.f32(self.input[x, y, r]) * hl.f32(1 / 65535)
        weight = hl.f32(1.01) - hl.abs(hl.f32(2) * value - hl.f32(1))
        sums[x, y] = (hl.f32(0), hl.f32(0))
        sums[x, y] = (sums[x, y][0] + weight * value / hl.f32(1 << r), sums[x, y][1] + weight)
        self.output[x, y] = sums[x, y][0] / sums[x, y][1]
        estimate(self, [self.input], self.shots)
        estimate(self, [self.output])


@hl.generator(name="kuwahara")
class Kuwahara(hl.Generator):
    """Kuwahara's filter (1976): of the four squares at a point, the mean of the one that varies least; float."""

    VARIANTS = {"radius": (1, 2, 4), "width": (320, 640, 1000), "height": (240, 360)}
    radius, width, height = hl.GeneratorParam(2), hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n, edge = self.radius, hl.BoundaryConditions.repeat_edge(self.input)
        means = {}
        for name, value in (("mean", lambda i, j: edge[i, j]), ("square", lambda i, j: edge[i, j] * edge[i, j])):
            rows, squares = hl.Func(f"{name}_rows"), hl.Func(name)
            rows[x, y] = sum((value(x + i, y) for i in range(1, n + 1)), value(x, y))
            squares[x, y] = sum((rows[x, y + i] for i in range(1, n + 1)), rows[x, y]) * hl.f32(1 / (n + 1) ** 2)
            means[name] = squares
        variance = hl.Func("variance")
        variance[x, y] = means["square"][x, y] - means["mean"][x, y] * means["mean"][x, y]
        best, value = hl.Expr(variance[x, y]), hl.Expr(means["mean"][x, y])
        for i, j in ((-n, 0), (0, -n), (-n, -n)):
            calmer = hl.Expr(variance[x + i, y + j]) < best
            best, value = hl.select(calmer, variance[x + i, y + j], best), hl.select(calmer, means["mean"][x + i, y + j], value)
        self.output[x, y] = value
        estimate(self, [self.input, self.output])


@hl.generator(name="gabor_bank")
class GaborBank(hl.Generator):
    """The strongest response of a bank of oriented filters, each a dense convolution by constants; float."""

    VARIANTS = {"ways": (2, 4, 8), "radius": (2, 3, 5), "width": (160, 320, 640), "height": (120, 240)}
    ways, radius, width, height = hl.GeneratorParam(4), hl.GeneratorParam(3), hl.GeneratorParam(320), hl.GeneratorParam(240)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n = self.radius
        j, i, turn = np.meshgrid(np.arange(-n, n + 1), np.arange(-n, n + 1), np.arange(self.ways) * math.pi / self.ways, indexing="ij")
        along = i * np.cos(turn) + j * np.sin(turn)
        filters = np.exp(-(i**2 + j**2) / (0.5 * n * n)) * np.cos(along * math.pi / n)
        bank = hl.Buffer(np.ascontiguousarray((filters / np.abs(filters).sum((0, 1))).astype(np.float32).transpose(2, 0, 1)), "bank")
        edge = hl.BoundaryConditions.repeat_edge(self.input)
        r, s = hl.RDom([(-n, 2 * n + 1), (-n, 2 * n + 1)], "r"), hl.RDom([(0, self.ways)], "s")
        response, strongest = hl.funcs("response strongest")
        response[x, y, k] = hl.f32(0)
        response[x, y, k] += bank[r.x + n, r.y + n, k] * edge[x + r.x, y + r.y]
        strongest[x, y] = hl.f32(0)
        strongest[x, y] = hl.max(strongest[x, y], hl.abs(response[x, y, s]))
        self.output[x, y] = strongest[x, y]
        estimate(self, [self.input, self.output])


@hl.generator(name="zero_crossings")
class ZeroCrossings(hl.Generator):
    """Marr and Hildreth's edges (1980): a Laplacian of a smoothed image, and where it changes its sign; bytes, 16-bit within."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(1280), hl.GeneratorParam(720)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        edge = hl.BoundaryConditions.mirror_interior(self.input)
        rows, smooth, laplacian = hl.funcs("rows smooth laplacian")
        rows[x, y] = hl.i16(edge[x - 1, y]) + 2 * hl.i16(edge[x, y]) + hl.i16(edge[x + 1, y])
        smooth[x, y] = (rows[x, y - 1] + 2 * rows[x, y] + rows[x, y + 1]) >> 2
        laplacian[x, y] = smooth[x - 1, y] + smooth[x + 1, y] + smooth[x, y - 1] + smooth[x, y + 1] - 4 * smooth[x, y]
        here = laplacian[x, y] > 0
        changes = (here != (laplacian[x + 1, y] > 0)) | (here != (laplacian[x, y + 1] > 0))
        self.output[x, y] = hl.select(changes, hl.u8(255), hl.u8(0))
        estimate(self, [self.input, self.output])


@hl.generator(name="band_gains")
class BandGains(hl.Generator):
    """An image taken apart into bands of a pyramid (Burt, Adelson 1983), each multiplied by a gain, and put together again; float."""

    VARIANTS = {"levels": (2, 3, 4), "width": (320, 640, 1280), "height": (240, 480, 720)}
    levels, width, height = hl.GeneratorParam(3), hl.GeneratorParam(640), hl.GeneratorParam(480)
    input = hl.InputBuffer(F32, 2)
    gain = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        smaller = [hl.BoundaryConditions.repeat_edge(self.input)]
        for i in range(1, self.levels):
            rows, image, last = hl.Func(f"down_x_{i}"), hl.Func(f"down_{i}"), smaller[-1]
            rows[x, y] = (last[2 * x - 1, y] + hl.f32(2) * last[2 * x, y] + last[2 * x + 1, y]) * hl.f32(0.25)
            image[x, y] = (rows[x, 2 * y - 1] + hl.f32(2) * rows[x, 2 * y] + rows[x, 2 * y + 1]) * hl.f32(0.25)
            smaller.append(image)
        result = smaller[-1]
        for i in reversed(range(self.levels - 1)):
            joined = hl.Func(f"joined_{i}")
            up = lambda image: (image[x // 2, y // 2] + image[(x + 1) // 2, (y + 1) // 2]) * hl.f32(0.5)
            joined[x, y] = up(result) + (smaller[i][x, y] - up(smaller[i + 1])) * self.gain[i]
            result = joined
        self.output[x, y] = result[x, y]
        self.gain.set_estimates([(0, self.levels)])
        estimate(self, [self.input, self.output])


@hl.generator(name="fast_corners")
class FastCorners(hl.Generator):
    """The segment test of FAST (Rosten, Drummond 2006): how far nine neighbours in a row on a circle are brighter or darker; bytes."""

    VARIANTS = {"width": (320, 640, 1280), "height": (240, 360, 720)}
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        edge = hl.BoundaryConditions.repeat_edge(self.input)
        quarter = [(0, 3), (1, 3), (2, 2), (3, 1)]
        circle = [(i, j) for turn in range(4) for i, j in (((a, b), (b, -a), (-a, -b), (-b, a))[turn] for a, b in quarter)]
        near = [hl.i16(edge[x + i, y + j]) - hl.i16(edge[x, y]) for i, j in circle]

        def least_of_arcs(values):
            pairs = [hl.min(values[i], values[(i + 1) % 16]) for i in range(16)]
            fours = [hl.min(pairs[i], pairs[(i + 2) % 16]) for i in range(16)]
            nines = [hl.min(hl.min(fours[i], fours[(i + 4) % 16]), values[(i + 8) % 16]) for i in range(16)]
            result = nines[0]
            for value in nines[1:]:
                result = hl.max(result, value)
            return result

        brighter, darker = hl.funcs("brighter darker")
        brighter[x, y] = least_of_arcs(near)
        darker[x, y] = least_of_arcs([-value for value in near])
        self.output[x, y] = hl.u8(hl.clamp(hl.max(brighter[x, y], darker[x, y]), 0, 255))
        estimate(self, [self.input, self.output])


@hl.generator(name="pattern_histograms")
class PatternHistograms(hl.Generator):
    """Local binary patterns (Ojala et al. 1996), counted in cells: eight comparisons a point, then updates where they say."""

    VARIANTS = {"cell": (8, 16, 32), "across": (10, 20, 40), "down": (8, 15)}
    cell, across, down = hl.GeneratorParam(16), hl.GeneratorParam(20), hl.GeneratorParam(15)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U16, 3)

    def generate(self):
        n, r = self.cell, hl.RDom([(0, self.cell), (0, self.cell)], "r")
        circle = [(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)]
        pattern, counts = hl.funcs("pattern counts")
        at = lambda i, j: self.input[x + 1 + i, y + 1 + j]
        bits = [hl.select(at(i, j) >= at(0, 0), hl.u8(1 << bit), hl.u8(0)) for bit, (i, j) in enumerate(circle)]
        pattern[x, y] = sum(bits[1:], bits[0])
        counts[k, x, y] = hl.u16(0)
        counts[hl.i32(pattern[x * n + r.x, y * n + r.y]), x, y] += hl.u16(1)
        self.output[k, x, y] = counts[k, x, y]
        self.input.set_estimates([(0, n * self.across + 2), (0, n * self.down + 2)])
        self.output.set_estimates([(0, 256), (0, self.across), (0, self.down)])


@hl.generator(name="motion_search")
class MotionSearch(hl.Generator):
    """Where each block of a frame was in the one before: sums of absolute differences at all shifts, the least and its place; bytes."""

    VARIANTS = {"block": (8, 16), "reach": (2, 4, 8), "across": (20, 40), "down": (15, 30)}
    block, reach, across, down = hl.GeneratorParam(8), hl.GeneratorParam(4), hl.GeneratorParam(40), hl.GeneratorParam(15)
    frame = hl.InputBuffer(U8, 2)
    before = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(I32, 2)

    def generate(self):
        n, side = self.block, 2 * self.reach + 1
        r, s = hl.RDom([(0, n), (0, n)], "r"), hl.RDom([(0, side), (0, side)], "s")
        i, j = hl.vars("i j")
        cost, best = hl.funcs("cost best")
        cost[i, j, x, y] = hl.u32(0)
        there = self.before[x * n + r.x + i, y * n + r.y + j]
        cost[i, j, x, y] += hl.u32(hl.absd(self.frame[x * n + r.x, y * n + r.y], there))
        best[x, y] = (hl.u32(1 << 30), 0)
        closer = cost[s.x, s.y, x, y] < best[x, y][0]
        best[x, y] = (hl.select(closer, cost[s.x, s.y, x, y], best[x, y][0]), hl.select(closer, s.y * side + s.x, best[x, y][1]))
        self.output[x, y] = best[x, y][1]
        self.frame.set_estimates([(0, n * self.across), (0, n * self.down)])
        self.before.set_estimates([(0, n * self.across + side - 1), (0, n * self.down + side - 1)])
        self.output.set_estimates([(0, self.across), (0, self.down)])


@hl.generator(name="polar_unwrap")
class PolarUnwrap(hl.Generator):
    """A ring laid out flat: each point's place by a sine and a cosine, and the nearest value there: a gather a point; bytes."""

    VARIANTS = {"angles": (360, 1024, 2048), "radii": (64, 128, 256)}
    angles, radii = hl.GeneratorParam(1024), hl.GeneratorParam(128)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        side, ray = 2 * self.radii + 2, hl.Func("ray")
        angle = hl.f32(x) * hl.f32(2 * math.pi / self.angles)
        ray[x, k] = hl.select(k == 0, hl.cos(angle), hl.sin(angle))
        place = [hl.clamp(hl.i32(hl.f32(y) * ray[x, i]) + self.radii, 0, side - 1) for i in range(2)]
        self.output[x, y] = self.input[place[0], place[1]]
        self.input.set_estimates([(0, side), (0, side)])
        self.output.set_estimates([(0, self.angles), (0, self.radii)])


@hl.generator(name="image_moments")
class ImageMoments(hl.Generator):
    """Sums of an image times powers of the place, up to the third: long reductions to ten numbers; float."""

    VARIANTS = {"width": (160, 640, 1280), "height": (120, 360, 720)}
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(360)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, power, moment = hl.RDom([(0, self.width), (0, self.height)], "r"), hl.Func("power"), hl.Func("moment")
        power[x, k] = hl.select(
            k == 0, hl.f32(1), hl.select(k == 1, hl.f32(x), hl.select(k == 2, hl.f32(x * x), hl.f32(x) * hl.f32(x * x)))
        )
        moment[x, y] = hl.f32(0)
        moment[x, y] += self.input[r.x, r.y] * power[r.x, x] * power[r.y, y] * hl.f32(1e-6)
        self.output[x, y] = moment[x, y]
        self.input.set_estimates([(0, self.width), (0, self.height)])
        self.output.set_estimates([(0, 4), (0, 4)])
