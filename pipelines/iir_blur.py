"""Recursive first-order blur (Halide's apps/iir_blur): scans down and up the columns, transposes, and does so again; float RGB."""

import halide as hl

x, y, c = hl.vars("x y c")


def blur_cols_transpose(f, height, alpha, name):
    blur = hl.Func("blur_" + name)
    blur[x, y, c] = f[x, y, c]
    down = hl.RDom([(1, height - 1)], "down_" + name)
    blur[x, down, c] = (1.0 - alpha) * blur[x, down - 1, c] + alpha * f[x, down, c]
    up = hl.RDom([(1, height - 1)], "up_" + name)
    flip = height - 1 - up
    blur[x, flip, c] = (1.0 - alpha) * blur[x, flip + 1, c] + alpha * blur[x, flip, c]

    transposed = hl.Func("transposed_" + name)
    transposed[x, y, c] = blur[y, x, c]
    return blur, transposed


@hl.generator(name="iir_blur")
class IirBlur(hl.Generator):
    input = hl.InputBuffer(hl.Float(32), 3)
    alpha = hl.InputScalar(hl.Float(32))
    output = hl.OutputBuffer(hl.Float(32), 3)

    def generate(self):
        blur_of_cols, rows = blur_cols_transpose(self.input, self.input.height(), self.alpha, "cols")
        blur_of_rows, both = blur_cols_transpose(rows, self.input.width(), self.alpha, "rows")
        self.output[x, y, c] = both[x, y, c]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h), (0, 3)])
        self.alpha.set_estimate(0.1)
        self.output.set_estimates([(0, w), (0, h), (0, 3)])

        if not self.using_autoscheduler():
            # Strips of columns in parallel: a strip is scanned down and up in vectors, and then written transposed.
            yo = hl.Var("yo")
            vec = self.natural_vector_size(hl.Float(32))
            rows.compute_root()
            for transposed, blur in ((rows, blur_of_cols), (self.output, blur_of_rows)):
                transposed.split(y, yo, y, 2 * vec).reorder(x, y, yo, c).vectorize(x, vec).parallel(yo).parallel(c)
                blur.compute_at(transposed, yo).vectorize(x, vec)
                for scan in range(2):
                    blur.update(scan).reorder(x, blur.rvars(scan)[0]).vectorize(x, vec)
