"""Families of kernels on vectors and matrices, for training: VARIANTS has the values that a Generator's variants are drawn from."""

import halide as hl

x, y, b, d = hl.vars("x y b d")
I8, I32, F32 = hl.Int(8), hl.Int(32), hl.Float(32)


def accumulate(name, at, term, domain, start=0.0):
    """A Func that adds `term` over `domain`, by an update."""
    func = hl.Func(name)
    func[at] = hl.f32(start)
    func[at] += term
    return func


@hl.generator(name="gemm_int8")
class GemmInt8(hl.Generator):
    """A product of 8-bit matrices in 32-bit sums, scaled back to 8 bits, as quantised networks do it."""

    VARIANTS = {"m": (32, 64, 192, 256, 512), "n": (32, 64, 128, 256), "depth": (32, 64, 256, 512)}
    m, n, depth = hl.GeneratorParam(128), hl.GeneratorParam(128), hl.GeneratorParam(256)
    left = hl.InputBuffer(I8, 2)
    right = hl.InputBuffer(I8, 2)
    output = hl.OutputBuffer(I8, 2)

    def generate(self):
        r, product = hl.RDom([(0, self.depth)], "r"), hl.Func("product")
        product[x, y] = 0
        product[x, y] += hl.i32(self.left[r, y]) * hl.i32(self.right[x, r])
        self.output[x, y] = hl.i8_sat((product[x, y] + 128) >> 8)
        self.left.set_estimates([(0, self.depth), (0, self.m)])
        self.right.set_estimates([(0, self.n), (0, self.depth)])
        self.output.set_estimates([(0, self.n), (0, self.m)])


@hl.generator(name="dense_gelu")
class DenseGelu(hl.Generator):
    """A dense layer: weights with the reduced axis innermost in memory, bias, and an activation; float."""

    VARIANTS = {"batch": (1, 4, 16, 64), "inputs": (64, 256, 512), "outputs": (64, 256, 512), "activation": ("gelu", "sigmoid", "relu")}
    batch, inputs, outputs = hl.GeneratorParam(16), hl.GeneratorParam(256), hl.GeneratorParam(256)
    activation = hl.GeneratorParam("gelu")
    input = hl.InputBuffer(F32, 2)
    weights = hl.InputBuffer(F32, 2)
    bias = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, dense = hl.RDom([(0, self.inputs)], "r"), hl.Func("dense")
        dense[x, y] = self.bias[x]
        dense[x, y] += self.weights[r, x] * self.input[r, y] * hl.f32(1 / self.inputs)
        v = dense[x, y]
        forms = {
            "gelu": lambda: v * hl.f32(0.5) * (hl.f32(1) + hl.tanh(hl.f32(0.79788) * (v + hl.f32(0.044715) * v * v * v))),
            "sigmoid": lambda: hl.f32(1) / (hl.f32(1) + hl.exp(-v)),
            "relu": lambda: hl.max(v, hl.f32(0)),
        }
        self.output[x, y] = forms[self.activation]()
        self.input.set_estimates([(0, self.inputs), (0, self.batch)])
        self.weights.set_estimates([(0, self.inputs), (0, self.outputs)])
        self.bias.set_estimates([(0, self.outputs)])
        self.output.set_estimates([(0, self.outputs), (0, self.batch)])


@hl.generator(name="gemv")
class Gemv(hl.Generator):
    """A matrix times a vector, the matrix by rows or by columns: as many bytes as multiplications."""

    VARIANTS = {"rows": (64, 512, 1024, 2048), "columns": (128, 512, 1024, 2048), "transposed": ("true", "false")}
    rows, columns, transposed = hl.GeneratorParam(512), hl.GeneratorParam(512), hl.GeneratorParam(False)
    matrix = hl.InputBuffer(F32, 2)
    vector = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        r = hl.RDom([(0, self.columns)], "r")
        value = self.matrix[x, r] if self.transposed else self.matrix[r, x]
        product = accumulate("product", x, value * self.vector[r], r)
        self.output[x] = product[x]
        sizes = [self.rows, self.columns] if self.transposed else [self.columns, self.rows]
        self.matrix.set_estimates([(0, n) for n in sizes])
        self.vector.set_estimates([(0, self.columns)])
        self.output.set_estimates([(0, self.rows)])


@hl.generator(name="batched_gemm")
class BatchedGemm(hl.Generator):
    """Many small matrix products, one after another in memory; float."""

    VARIANTS = {"size": (4, 8, 16, 32, 48), "batch": (16, 64, 256)}
    size, batch = hl.GeneratorParam(16), hl.GeneratorParam(64)
    left = hl.InputBuffer(F32, 3)
    right = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        r = hl.RDom([(0, self.size)], "r")
        product = accumulate("product", (x, y, b), self.left[r, y, b] * self.right[x, r, b], r)
        self.output[x, y, b] = product[x, y, b]
        for buffer in (self.left, self.right, self.output):
            buffer.set_estimates([(0, self.size), (0, self.size), (0, self.batch)])


@hl.generator(name="covariance")
class Covariance(hl.Generator):
    """Covariance of the columns of a table: their means, then products summed over all rows; float."""

    VARIANTS = {"columns": (8, 16, 64, 128), "rows": (256, 1024, 4096)}
    columns, rows = hl.GeneratorParam(16), hl.GeneratorParam(1024)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r = hl.RDom([(0, self.rows)], "r")
        mean, centred = accumulate("mean", x, self.input[x, r] * hl.f32(1 / self.rows), r), hl.Func("centred")
        centred[x, y] = self.input[x, y] - mean[x]
        product = accumulate("product", (x, y), centred[x, r] * centred[y, r], r)
        self.output[x, y] = product[x, y] * hl.f32(1 / (self.rows - 1))
        self.input.set_estimates([(0, self.columns), (0, self.rows)])
        self.output.set_estimates([(0, self.columns), (0, self.columns)])


@hl.generator(name="kmeans_distances")
class KmeansDistances(hl.Generator):
    """The distance of each point to the nearest of some centres; float."""

    VARIANTS = {"dimensions": (3, 8, 32), "centres": (8, 32, 64), "points": (4096, 16384)}
    dimensions, centres, points = hl.GeneratorParam(8), hl.GeneratorParam(32), hl.GeneratorParam(4096)
    input = hl.InputBuffer(F32, 2)
    centre = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        r, s = hl.RDom([(0, self.dimensions)], "r"), hl.RDom([(0, self.centres)], "s")
        difference, nearest = self.input[y, r] - self.centre[r, x], hl.Func("nearest")
        distance = accumulate("distance", (x, y), difference * difference, r)
        nearest[y] = hl.f32(1e30)
        nearest[y] = hl.min(nearest[y], distance[s, y])
        self.output[y] = hl.sqrt(nearest[y])
        self.input.set_estimates([(0, self.points), (0, self.dimensions)])
        self.centre.set_estimates([(0, self.dimensions), (0, self.centres)])
        self.output.set_estimates([(0, self.points)])


@hl.generator(name="n_body")
class NBody(hl.Generator):
    """Gravity of all bodies on each: a reduction over all, with an inverse square root in it; float."""

    VARIANTS = {"bodies": (128, 256, 512, 1024, 2048), "fast": ("true", "false")}
    bodies, fast = hl.GeneratorParam(512), hl.GeneratorParam(False)
    place = hl.InputBuffer(F32, 2)
    mass = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, force = hl.RDom([(0, self.bodies)], "r"), hl.Func("force")
        away = [self.place[r, k] - self.place[x, k] for k in range(3)]
        squared = away[0] * away[0] + away[1] * away[1] + away[2] * away[2] + hl.f32(0.01)
        inverse = hl.fast_inverse_sqrt(squared) if self.fast else hl.f32(1) / hl.sqrt(squared)
        pull = self.mass[r] * inverse * inverse * inverse
        force[x, d] = hl.f32(0)
        force[x, d] += pull * (self.place[r, d] - self.place[x, d])
        self.output[x, d] = force[x, d]
        self.place.set_estimates([(0, self.bodies), (0, 3)])
        self.mass.set_estimates([(0, self.bodies)])
        self.output.set_estimates([(0, self.bodies), (0, 3)])


@hl.generator(name="cosine_similarity")
class CosineSimilarity(hl.Generator):
    """How alike each row of a table is to some queries: dot products over the product of norms; float."""

    VARIANTS = {"dimensions": (16, 64, 256), "rows": (256, 1024, 4096), "queries": (1, 4, 16)}
    dimensions, rows, queries = hl.GeneratorParam(64), hl.GeneratorParam(1024), hl.GeneratorParam(4)
    table = hl.InputBuffer(F32, 2)
    query = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r = hl.RDom([(0, self.dimensions)], "r")
        dot = accumulate("dot", (x, y), self.table[r, x] * self.query[r, y], r)
        row_norm = accumulate("row_norm", x, self.table[r, x] * self.table[r, x], r)
        query_norm = accumulate("query_norm", y, self.query[r, y] * self.query[r, y], r)
        self.output[x, y] = dot[x, y] / hl.sqrt(row_norm[x] * query_norm[y] + hl.f32(0.0001))
        self.table.set_estimates([(0, self.dimensions), (0, self.rows)])
        self.query.set_estimates([(0, self.dimensions), (0, self.queries)])
        self.output.set_estimates([(0, self.rows), (0, self.queries)])


@hl.generator(name="sparse_product")
class SparseProduct(hl.Generator):
    """A sparse matrix (ELLPACK: as many entries a row) times a vector: a gather an entry; float."""

    VARIANTS = {"rows": (1024, 8192, 32768), "entries": (4, 16, 32)}
    rows, entries = hl.GeneratorParam(8192), hl.GeneratorParam(16)
    value = hl.InputBuffer(F32, 2)
    column = hl.InputBuffer(I32, 2)
    vector = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        r = hl.RDom([(0, self.entries)], "r")
        at = hl.clamp(self.column[x, r] & (self.rows - 1), 0, self.rows - 1)
        product = accumulate("product", x, self.value[x, r] * self.vector[at], r)
        self.output[x] = product[x]
        self.value.set_estimates([(0, self.rows), (0, self.entries)])
        self.column.set_estimates([(0, self.rows), (0, self.entries)])
        self.vector.set_estimates([(0, self.rows)])
        self.output.set_estimates([(0, self.rows)])


@hl.generator(name="norms")
class Norms(hl.Generator):
    """Least, largest, mean and root of the mean square of long rows, each by a reduction; float."""

    VARIANTS = {"length": (1024, 8192, 65536), "rows": (1, 8, 64)}
    length, rows = hl.GeneratorParam(8192), hl.GeneratorParam(8)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r = hl.RDom([(0, self.length)], "r")
        least, largest = hl.funcs("least largest")
        least[y] = hl.f32(1e30)
        least[y] = hl.min(least[y], self.input[r, y])
        largest[y] = hl.f32(-1e30)
        largest[y] = hl.max(largest[y], self.input[r, y])
        mean = accumulate("mean", y, self.input[r, y] * hl.f32(1 / self.length), r)
        square = accumulate("square", y, self.input[r, y] * self.input[r, y] * hl.f32(1 / self.length), r)
        self.output[x, y] = hl.mux(x, [least[y], largest[y], mean[y], hl.sqrt(square[y])])
        self.input.set_estimates([(0, self.length), (0, self.rows)])
        self.output.set_estimates([(0, 4), (0, self.rows)])


@hl.generator(name="axpy_chain")
class AxpyChain(hl.Generator):
    """Long vectors added and scaled, one after another: bound by memory; float."""

    VARIANTS = {"length": (4096, 65536, 524288, 4194304), "steps": (1, 3)}
    length, steps = hl.GeneratorParam(524288), hl.GeneratorParam(1)
    left = hl.InputBuffer(F32, 1)
    right = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        last = self.left
        for i in range(self.steps):
            step = hl.Func(f"step_{i}")
            step[x] = last[x] * hl.f32(0.5) + self.right[x]
            last = step
        self.output[x] = last[x]
        for buffer in (self.left, self.right, self.output):
            buffer.set_estimates([(0, self.length)])
