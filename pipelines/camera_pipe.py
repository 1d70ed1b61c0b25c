"""Camera pipeline of the Frankencamera (Adams et al. 2010; Halide's apps/camera_pipe): raw Bayer uint16 to sharpened uint8 RGB."""

import halide as hl

x, y, c = hl.vars("x y c")


def avg(a, b):
    return hl.u16((hl.u32(a) + hl.u32(b) + 1) // 2)


def interleave_x(a, b):
    out = hl.Func("interleaved_x")
    out[x, y] = hl.select(x % 2 == 0, a[x // 2, y], b[x // 2, y])
    return out


def interleave_y(a, b):
    out = hl.Func("interleaved_y")
    out[x, y] = hl.select(y % 2 == 0, a[x, y // 2], b[x, y // 2])
    return out


def hot_pixel_suppression(raw):
    denoised = hl.Func("denoised")
    around = [raw[x - 2, y], raw[x + 2, y], raw[x, y - 2], raw[x, y + 2]]
    top = hl.max(hl.max(around[0], around[1]), hl.max(around[2], around[3]))
    denoised[x, y] = hl.clamp(raw[x, y], hl.u16(0), top)
    return denoised


def deinterleave(raw):
    deinterleaved = hl.Func("deinterleaved")
    deinterleaved[x, y, c] = hl.mux(
        c,
        [raw[2 * x, 2 * y], raw[2 * x + 1, 2 * y], raw[2 * x, 2 * y + 1], raw[2 * x + 1, 2 * y + 1]],
    )
    return deinterleaved


def demosaic(deinterleaved):
    # The four sites of the Bayer cell: green in a red row, red, blue, green in a blue row.
    g_gr, r_r, b_b, g_gb = hl.funcs("g_gr r_r b_b g_gb")
    for i, f in enumerate((g_gr, r_r, b_b, g_gb)):
        f[x, y] = deinterleaved[x, y, i]

    # Green at the red and blue sites, along the direction that varies the less.
    gv_r, gvd_r, gh_r, ghd_r, g_r = hl.funcs("gv_r gvd_r gh_r ghd_r g_r")
    gv_r[x, y] = avg(g_gb[x, y - 1], g_gb[x, y])
    gvd_r[x, y] = hl.absd(g_gb[x, y - 1], g_gb[x, y])
    gh_r[x, y] = avg(g_gr[x + 1, y], g_gr[x, y])
    ghd_r[x, y] = hl.absd(g_gr[x + 1, y], g_gr[x, y])
    g_r[x, y] = hl.select(ghd_r[x, y] < gvd_r[x, y], gh_r[x, y], gv_r[x, y])

    gv_b, gvd_b, gh_b, ghd_b, g_b = hl.funcs("gv_b gvd_b gh_b ghd_b g_b")
    gv_b[x, y] = avg(g_gr[x, y + 1], g_gr[x, y])
    gvd_b[x, y] = hl.absd(g_gr[x, y + 1], g_gr[x, y])
    gh_b[x, y] = avg(g_gb[x - 1, y], g_gb[x, y])
    ghd_b[x, y] = hl.absd(g_gb[x - 1, y], g_gb[x, y])
    g_b[x, y] = hl.select(ghd_b[x, y] < gvd_b[x, y], gh_b[x, y], gv_b[x, y])

    # Red and blue at the green sites: the neighbours' mean, corrected by green's own difference.
    r_gr, b_gr, r_gb, b_gb = hl.funcs("r_gr b_gr r_gb b_gb")

    def corrected(at_green, green_there, mean_color):
        correction = hl.i32(at_green) - hl.i32(green_there)
        return hl.u16_sat(correction + hl.i32(mean_color))

    r_gr[x, y] = corrected(g_gr[x, y], avg(g_r[x, y], g_r[x - 1, y]), avg(r_r[x - 1, y], r_r[x, y]))
    b_gr[x, y] = corrected(g_gr[x, y], avg(g_b[x, y], g_b[x, y - 1]), avg(b_b[x, y], b_b[x, y - 1]))
    r_gb[x, y] = corrected(g_gb[x, y], avg(g_r[x, y], g_r[x, y + 1]), avg(r_r[x, y], r_r[x, y + 1]))
    b_gb[x, y] = corrected(g_gb[x, y], avg(g_b[x, y], g_b[x + 1, y]), avg(b_b[x, y], b_b[x + 1, y]))

    # Red at the blue sites and blue at the red sites, along the better diagonal.
    def diagonal(name, color, green, green_here, dx, dy):
        positive, positive_d = hl.Func(name + "_p"), hl.Func(name + "_pd")
        negative, negative_d = hl.Func(name + "_n"), hl.Func(name + "_nd")
        for f, d, p, q in (
            (positive, positive_d, (x, y), (x + dx, y + dy)),
            (negative, negative_d, (x + dx, y), (x, y + dy)),
        ):
            f[x, y] = corrected(green_here[x, y], avg(green[p], green[q]), avg(color[p], color[q]))
            d[x, y] = hl.absd(color[p], color[q])
        out = hl.Func(name)
        out[x, y] = hl.select(positive_d[x, y] < negative_d[x, y], positive[x, y], negative[x, y])
        return out

    r_b = diagonal("r_b", r_r, g_r, g_b, -1, 1)
    b_r = diagonal("b_r", b_b, g_b, g_r, 1, -1)

    r = interleave_y(interleave_x(r_gr, r_r), interleave_x(r_b, r_gb))
    g = interleave_y(interleave_x(g_gr, g_r), interleave_x(g_b, g_gb))
    b = interleave_y(interleave_x(b_gr, b_r), interleave_x(b_b, b_gb))

    demosaiced = hl.Func("demosaiced")
    demosaiced[x, y, c] = hl.mux(c, [r[x, y], g[x, y], b[x, y]])
    return demosaiced, [g_r, g_b, r_gr, b_gr, r_gb, b_gb, r_b, b_r]


def color_correct(f, matrix_3200, matrix_7000, color_temp):
    # The matrix is interpolated over the inverse of the colour temperature; 8.8 fixed point.
    alpha = (1.0 / color_temp - hl.f32(1 / 3200)) / hl.f32(1 / 7000 - 1 / 3200)
    matrix = hl.Func("matrix")
    matrix[x, y] = hl.i16((matrix_3200[x, y] * alpha + matrix_7000[x, y] * (1.0 - alpha)) * 256.0)

    corrected = hl.Func("corrected")
    channels = []
    for j in range(3):
        acc = hl.i32(matrix[3, j])
        for i in range(3):
            acc += hl.i32(matrix[i, j]) * hl.i32(hl.i16(hl.min(f[x, y, i], hl.u16(32767))))
        channels.append(hl.i16_sat(acc // 256))
    corrected[x, y, c] = hl.mux(c, channels)
    return corrected, matrix


def apply_curve(f, gamma, contrast, black_level, white_level):
    # A table of 1024 entries: black and white points, gamma, then a contrast curve.
    xf = hl.clamp(hl.f32(x * 8 - black_level) / hl.f32(white_level - black_level), 0.0, 1.0)
    g = hl.pow(xf, 1.0 / gamma)
    b = 2.0 - hl.pow(hl.f32(2.0), contrast / 100.0)
    a = 2.0 - 2.0 * b
    val = hl.select(g > 0.5, 1.0 - (a * (1.0 - g) * (1.0 - g) + b * (1.0 - g)), a * g * g + b * g)
    curve = hl.Func("curve")
    curve[x] = hl.u8(hl.clamp(val * 255.0 + 0.5, 0.0, 255.0))

    curved = hl.Func("curved")
    curved[x, y, c] = curve[hl.clamp(hl.i32(f[x, y, c]) // 8, 0, 1023)]
    return curved, curve


def sharpen(f, strength):
    fixed = hl.u8_sat(strength * 32.0)
    unsharp_y, unsharp, mask, sharpened = hl.funcs("unsharp_y unsharp mask sharpened")

    def blur(a, b, c):
        return hl.u8((hl.u16(a) + 2 * hl.u16(b) + hl.u16(c) + 2) // 4)

    unsharp_y[x, y, c] = blur(f[x, y - 1, c], f[x, y, c], f[x, y + 1, c])
    unsharp[x, y, c] = blur(unsharp_y[x - 1, y, c], unsharp_y[x, y, c], unsharp_y[x + 1, y, c])
    mask[x, y, c] = hl.i16(f[x, y, c]) - hl.i16(unsharp[x, y, c])
    sharpened[x, y, c] = hl.u8_sat(hl.i32(f[x, y, c]) + hl.i32(mask[x, y, c]) * hl.i32(fixed) // 32)
    return sharpened, unsharp_y


@hl.generator(name="camera_pipe")
class CameraPipe(hl.Generator):
    input = hl.InputBuffer(hl.UInt(16), 2)
    matrix_3200 = hl.InputBuffer(hl.Float(32), 2)
    matrix_7000 = hl.InputBuffer(hl.Float(32), 2)
    color_temp = hl.InputScalar(hl.Float(32))
    gamma = hl.InputScalar(hl.Float(32))
    contrast = hl.InputScalar(hl.Float(32))
    sharpen_strength = hl.InputScalar(hl.Float(32))
    black_level = hl.InputScalar(hl.Int(32))
    white_level = hl.InputScalar(hl.Int(32))
    output = hl.OutputBuffer(hl.UInt(8), 3)

    def generate(self):
        clamped = hl.BoundaryConditions.repeat_edge(self.input)
        # Skips the sensor's border, which the stencils around the output read.
        shifted = hl.Func("shifted")
        shifted[x, y] = clamped[x + 16, y + 12]

        denoised = hot_pixel_suppression(shifted)
        deinterleaved = deinterleave(denoised)
        demosaiced, sites = demosaic(deinterleaved)
        corrected, matrix = color_correct(demosaiced, self.matrix_3200, self.matrix_7000, self.color_temp)
        curved, curve = apply_curve(corrected, self.gamma, self.contrast, self.black_level, self.white_level)
        sharpened, unsharp_y = sharpen(curved, self.sharpen_strength)
        self.output[x, y, c] = sharpened[x, y, c]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w + 32), (0, h + 24)])
        self.matrix_3200.set_estimates([(0, 4), (0, 3)])
        self.matrix_7000.set_estimates([(0, 4), (0, 3)])
        self.color_temp.set_estimate(3700)
        self.gamma.set_estimate(2.0)
        self.contrast.set_estimate(50)
        self.sharpen_strength.set_estimate(1.0)
        self.black_level.set_estimate(25)
        self.white_level.set_estimate(1023)
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # Strips in parallel; each part of the pipeline slides down a strip, two rows at a time: a row of the sensor's cells.
            yi, yp, xi = hl.vars("yi yp xi")
            vec = self.natural_vector_size(hl.UInt(16))
            matrix.compute_root()
            curve.compute_root()
            self.output.bound(c, 0, 3).split(y, y, yi, 32).split(yi, yi, yp, 2).reorder(c, x, yp, yi, y)
            self.output.unroll(c).vectorize(x, vec).parallel(y)
            for f in (denoised, *sites):
                f.store_at(self.output, y).compute_at(self.output, yi).vectorize(x, vec)
            deinterleaved.store_at(self.output, y).compute_at(self.output, yi).reorder(c, x, y).unroll(c).vectorize(x, vec)
            # Even bounds, so that which site of its cell a pixel is can be told when this is compiled.
            curved.store_at(self.output, y).compute_at(self.output, yi).align_bounds(x, 2).align_bounds(y, 2)
            curved.tile(x, y, xi, yp, 2 * vec, 2).reorder(c, xi, yp, x, y).unroll(c).unroll(yp).vectorize(xi)
            for f in (demosaiced, corrected):
                f.compute_at(curved, x).reorder(c, x, y).unroll(c).unroll(y).vectorize(x)
            unsharp_y.compute_at(self.output, yi).vectorize(x, vec)
