"""Histogram equalisation of the luma (Halide's apps/hist): RGB to YCbCr, 256-bin histogram, cumulative remap, back to RGB; uint8."""

import halide as hl

x, y, c = hl.vars("x y c")


@hl.generator(name="hist_equalize")
class HistEqualize(hl.Generator):
    input = hl.InputBuffer(hl.UInt(8), 3)
    output = hl.OutputBuffer(hl.UInt(8), 3)

    def generate(self):
        r, g, b = (hl.f32(self.input[x, y, i]) for i in range(3))
        Y, Cb, Cr = hl.funcs("Y Cb Cr")
        Y[x, y] = hl.f32(0.299) * r + hl.f32(0.587) * g + hl.f32(0.114) * b
        Cb[x, y] = (b - Y[x, y]) * hl.f32(0.564) + 128.0
        Cr[x, y] = (r - Y[x, y]) * hl.f32(0.713) + 128.0

        def bin_of(x, y):
            return hl.clamp(hl.i32(hl.round(Y[x, y])), 0, 255)

        hist_rows, hist = hl.funcs("hist_rows hist")
        # A histogram for each row first, so that the rows can run in parallel.
        hist_rows[x, y] = hl.u32(0)
        rx = hl.RDom([(0, self.input.width())], "rx")
        hist_rows[bin_of(rx, y), y] += hl.u32(1)
        ry = hl.RDom([(0, self.input.height())], "ry")
        hist[x] = hl.u32(0)
        hist[x] += hist_rows[x, ry]

        cdf = hl.Func("cdf")
        bins = hl.RDom([(1, 255)], "bins")
        cdf[x] = hist[0]
        cdf[bins.x] = cdf[bins.x - 1] + hist[bins.x]

        cdf_bin, eq = hl.funcs("cdf_bin eq")
        cdf_bin[x, y] = bin_of(x, y)
        size = hl.f32(self.input.width() * self.input.height())
        eq[x, y] = hl.clamp(hl.f32(cdf[cdf_bin[x, y]]) * (255.0 / size), 0.0, 255.0)

        red, green, blue = hl.funcs("red green blue")
        cr, cb = Cr[x, y] - 128.0, Cb[x, y] - 128.0
        red[x, y] = hl.u8_sat(hl.round(eq[x, y] + cr * hl.f32(1.4)))
        green[x, y] = hl.u8_sat(hl.round(eq[x, y] - cb * hl.f32(0.343) - cr * hl.f32(0.711)))
        blue[x, y] = hl.u8_sat(hl.round(eq[x, y] + cb * hl.f32(1.765)))
        self.output[x, y, c] = hl.mux(c, [red[x, y], green[x, y], blue[x, y]])

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # Rows of histograms in parallel, each over a row of luma computed in vectors; then they are added up, and the curve is applied.
            vec = self.natural_vector_size(hl.Float(32))
            rows = hist_rows.in_()
            rows.compute_root().vectorize(x, vec).parallel(y, 8, hl.TailStrategy.GuardWithIf)
            Y.clone_in(hist_rows).compute_at(rows, y).vectorize(x, vec)
            hist_rows.compute_at(rows, y).vectorize(x, vec)
            hist_rows.update().unscheduled()
            hist.compute_root().vectorize(x, vec).update().reorder(x, ry).vectorize(x, vec).unroll(x, 4)
            cdf.compute_root()
            self.output.bound(c, 0, 3).reorder(c, x, y).unroll(c).vectorize(x, vec).parallel(y, 8, hl.TailStrategy.GuardWithIf)
