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
