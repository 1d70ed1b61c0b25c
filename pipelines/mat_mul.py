"""Dense matrix product (BLAS's sgemm; compare Halide's apps/linear_algebra); takes two float matrices, gives their product."""

import halide as hl

x, y = hl.vars("x y")


@hl.generator(name="mat_mul")
class MatMul(hl.Generator):
    size = hl.GeneratorParam(512)

    a = hl.InputBuffer(hl.Float(32), 2)  # x is the column
    b = hl.InputBuffer(hl.Float(32), 2)
    output = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        k = hl.RDom([(0, self.size)], "k")
        product = hl.Func("product")
        product[x, y] = hl.f32(0)
        product[x, y] += self.a[k, y] * self.b[x, k]
        self.output[x, y] = product[x, y]

        for f in (self.a, self.b, self.output):
            f.set_estimates([(0, self.size), (0, self.size)])

        if not self.using_autoscheduler():
            # A tile of the product, two vectors wide and six rows high, stays in registers: AVX2 has sixteen of them.
            xi, yi, yo = hl.vars("xi yi yo")
            vec = self.natural_vector_size(hl.Float(32))
            self.output.tile(x, y, xi, yi, 2 * vec, 6).split(y, yo, y, 8, hl.TailStrategy.GuardWithIf)
            self.output.reorder(xi, yi, y, x, yo).vectorize(xi, vec).unroll(xi).unroll(yi).parallel(yo)
            product.compute_at(self.output, y).vectorize(x, vec).unroll(x).unroll(y)
            product.update().reorder(x, y, k).vectorize(x, vec).unroll(x).unroll(y).unroll(k, 2)
