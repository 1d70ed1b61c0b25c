"""Families of simulations on grids and of arithmetic, for training: VARIANTS has the values that variants are drawn from."""

import halide as hl

x, y, z, q = hl.vars("x y z q")
F32 = hl.Float(32)
SIZES = {"width": (128, 256, 512, 1000, 2048), "height": (96, 240, 512, 1080)}


def estimate(self, buffers, *more):
    for buffer in buffers:
        buffer.set_estimates([(0, self.width), (0, self.height), *((0, n) for n in more)])


@hl.generator(name="jacobi")
class Jacobi(hl.Generator):
    """Steps of Jacobi's method for Poisson's equation: the mean of four neighbours and a source; float."""

    VARIANTS = {"steps": (1, 2, 4, 6), **SIZES}
    steps, width, height = hl.GeneratorParam(2), hl.GeneratorParam(512), hl.GeneratorParam(512)
    input = hl.InputBuffer(F32, 2)
    source = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        last = hl.BoundaryConditions.constant_exterior(self.input, hl.f32(0))
        right = hl.BoundaryConditions.constant_exterior(self.source, hl.f32(0))
        for i in range(self.steps):
            step = hl.Func(f"step_{i}")
            step[x, y] = hl.f32(0.25) * (last[x - 1, y] + last[x + 1, y] + last[x, y - 1] + last[x, y + 1] - right[x, y])
            last = step
        self.output[x, y] = last[x, y]
        estimate(self, [self.input, self.source, self.output])


@hl.generator(name="heat_3d")
class Heat3d(hl.Generator):
    """Heat in a volume, a stencil of 7 or 27 points, as often as there are steps; float."""

    VARIANTS = {"steps": (1, 2), "points": (7, 27), "size": (32, 64, 128), "depth": (16, 48, 96)}
    steps, points, size, depth = hl.GeneratorParam(1), hl.GeneratorParam(7), hl.GeneratorParam(64), hl.GeneratorParam(48)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        last = hl.BoundaryConditions.repeat_edge(self.input)
        near = [(i, j, k) for k in (-1, 0, 1) for j in (-1, 0, 1) for i in (-1, 0, 1) if self.points == 27 or abs(i) + abs(j) + abs(k) < 2]
        for step in range(self.steps):
            heat = hl.Func(f"heat_{step}")
            mean = sum((last[x + i, y + j, z + k] for i, j, k in near[1:]), last[x + near[0][0], y + near[0][1], z + near[0][2]])
            heat[x, y, z] = last[x, y, z] + hl.f32(0.1) * (mean * hl.f32(1 / len(near)) - last[x, y, z])
            last = heat
        self.output[x, y, z] = last[x, y, z]
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.size), (0, self.size), (0, self.depth)])


@hl.generator(name="wave_equation")
class WaveEquation(hl.Generator):
    """Steps of the wave equation with a speed at each point, in fourth order: each needs the two before; float."""

    VARIANTS = {"steps": (1, 2, 3), **SIZES}
    steps, width, height = hl.GeneratorParam(2), hl.GeneratorParam(512), hl.GeneratorParam(512)
    before = hl.InputBuffer(F32, 2)
    now = hl.InputBuffer(F32, 2)
    speed = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        old, new = (hl.BoundaryConditions.repeat_edge(buffer) for buffer in (self.before, self.now))
        speed = hl.BoundaryConditions.repeat_edge(self.speed)
        for i in range(self.steps):
            step = hl.Func(f"wave_{i}")
            along_x = hl.f32(16) * (new[x - 1, y] + new[x + 1, y]) - new[x - 2, y] - new[x + 2, y]
            along_y = hl.f32(16) * (new[x, y - 1] + new[x, y + 1]) - new[x, y - 2] - new[x, y + 2]
            laplacian = (along_x + along_y - hl.f32(60) * new[x, y]) * hl.f32(1 / 12)
            step[x, y] = hl.f32(2) * new[x, y] - old[x, y] + hl.f32(0.05) * speed[x, y] * laplacian
            old, new = new, step
        self.output[x, y] = new[x, y]
        estimate(self, [self.before, self.now, self.speed, self.output])


@hl.generator(name="lattice_boltzmann")
class LatticeBoltzmann(hl.Generator):
    """A step of a lattice Boltzmann method in two dimensions with nine velocities (D2Q9): streaming, then relaxation; float."""

    VARIANTS = SIZES
    width, height = hl.GeneratorParam(512), hl.GeneratorParam(240)
    input = hl.InputBuffer(F32, 3)
    output = hl.OutputBuffer(F32, 3)

    def generate(self):
        ways = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)]
        weights = [4 / 9] + [1 / 9] * 4 + [1 / 36] * 4
        cells = hl.BoundaryConditions.repeat_edge(self.input)
        streamed, density, flow_x, flow_y = hl.funcs("streamed density flow_x flow_y")
        streamed[x, y, q] = hl.mux(q, [cells[x - i, y - j, k] for k, (i, j) in enumerate(ways)])
        total = lambda factors: sum(hl.f32(f) * streamed[x, y, k] for k, f in enumerate(factors) if f)
        density[x, y] = hl.max(total([1] * 9), hl.f32(0.01))
        flow_x[x, y] = total([i for i, _ in ways]) / density[x, y]
        flow_y[x, y] = total([j for _, j in ways]) / density[x, y]
        along = hl.f32(3) * (
            hl.mux(q, [hl.f32(i) for i, _ in ways]) * flow_x[x, y] + hl.mux(q, [hl.f32(j) for _, j in ways]) * flow_y[x, y]
        )
        square = flow_x[x, y] * flow_x[x, y] + flow_y[x, y] * flow_y[x, y]
        rest = hl.mux(q, [hl.f32(w) for w in weights]) * density[x, y]
        rest = rest * (hl.f32(1) + along + hl.f32(0.5) * along * along - hl.f32(1.5) * square)
        self.output[x, y, q] = streamed[x, y, q] + hl.f32(0.6) * (rest - streamed[x, y, q])
        estimate(self, [self.input, self.output], 9)


@hl.generator(name="total_variation")
class TotalVariation(hl.Generator):
    """Steps of Chambolle's denoising (2004): the divergence of a dual field, its gradient, and the field normalised; float."""

    VARIANTS = {"steps": (1, 2, 3), **SIZES}
    steps, width, height = hl.GeneratorParam(2), hl.GeneratorParam(512), hl.GeneratorParam(240)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        image = hl.BoundaryConditions.repeat_edge(self.input)
        dual = lambda i, j, k: hl.f32(0)
        for step in range(self.steps + 1):
            rest, field = hl.Func(f"rest_{step}"), hl.Func(f"dual_{step}")
            rest[x, y] = dual(x, y, 0) - dual(x - 1, y, 0) + dual(x, y, 1) - dual(x, y - 1, 1) - hl.f32(8) * image[x, y]
            if step == self.steps:
                self.output[x, y] = rest[x, y] * hl.f32(-0.125)
                break
            dx, dy = rest[x + 1, y] - rest[x, y], rest[x, y + 1] - rest[x, y]
            size = hl.f32(1) + hl.f32(0.25) * hl.sqrt(dx * dx + dy * dy)
            field[x, y, q] = (hl.mux(q, [dual(x, y, 0), dual(x, y, 1)]) + hl.f32(0.25) * hl.select(q == 0, dx, dy)) / size
            dual = lambda i, j, k, field=field: field[i, j, k]
        estimate(self, [self.input, self.output])


@hl.generator(name="game_of_life")
class GameOfLife(hl.Generator):
    """Generations of Conway's game: eight neighbours counted in bytes, then a rule."""

    VARIANTS = {"steps": (1, 2, 4), "width": (512, 1024, 2048), "height": (240, 512, 1080)}
    steps, width, height = hl.GeneratorParam(2), hl.GeneratorParam(1024), hl.GeneratorParam(512)
    input = hl.InputBuffer(hl.UInt(8), 2)
    output = hl.OutputBuffer(hl.UInt(8), 2)

    def generate(self):
        around, last = hl.BoundaryConditions.constant_exterior(self.input, hl.u8(0)), hl.Func("seed")
        last[x, y] = around[x, y] & hl.u8(1)
        for i in range(self.steps):
            rows, step = hl.Func(f"rows_{i}"), hl.Func(f"life_{i}")
            rows[x, y] = last[x - 1, y] + last[x, y] + last[x + 1, y]
            count = rows[x, y - 1] + rows[x, y] + rows[x, y + 1] - last[x, y]
            step[x, y] = hl.select((count == hl.u8(3)) | ((count == hl.u8(2)) & (last[x, y] == hl.u8(1))), hl.u8(1), hl.u8(0))
            last = step
        self.output[x, y] = last[x, y]
        estimate(self, [self.input, self.output])


@hl.generator(name="black_scholes")
class BlackScholes(hl.Generator):
    """Prices of options: logarithm, exponentials, a root and two normal distributions by a polynomial for each; float."""

    VARIANTS = {"options": (1024, 16384, 131072, 1048576), "fast": ("true", "false")}
    options, fast = hl.GeneratorParam(16384), hl.GeneratorParam(False)
    price = hl.InputBuffer(F32, 1)
    strike = hl.InputBuffer(F32, 1)
    years = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        exp, log = (hl.fast_exp, hl.fast_log) if self.fast else (hl.exp, hl.log)
        low, high = hl.f32(0.1), hl.f32(10)
        price, strike, years = (hl.clamp(buffer[x], low, high) for buffer in (self.price, self.strike, self.years))
        upper, lower = hl.funcs("upper lower")
        spread = hl.f32(0.3) * hl.sqrt(years)
        upper[x] = (log(price / strike) + hl.f32(0.065) * years) / spread
        lower[x] = upper[x] - spread

        def normal(value):
            size = hl.abs(value)
            k = hl.f32(1) / (hl.f32(1) + hl.f32(0.2316419) * size)
            series = hl.f32(1.330274429)
            for term in (-1.821255978, 1.781477937, -0.356563782, 0.319381530):  # Abramowitz and Stegun (1964), 26.2.17
                series = series * k + hl.f32(term)
            tail = hl.f32(0.39894228) * exp(hl.f32(-0.5) * size * size) * series * k
            return hl.select(value > hl.f32(0), hl.f32(1) - tail, tail)

        today = strike * exp(hl.f32(-0.02) * years)
        call = price * normal(upper[x]) - today * normal(lower[x])
        self.output[x, y] = hl.select(y == 0, call, call + today - price)
        for buffer in (self.price, self.strike, self.years):
            buffer.set_estimates([(0, self.options)])
        self.output.set_estimates([(0, self.options), (0, 2)])


@hl.generator(name="pairwise_l1")
class PairwiseL1(hl.Generator):
    """The sum of absolute differences between all pairs of two sets of vectors; float or bytes."""

    VARIANTS = {"element": ("uint8", "float32"), "dimensions": (16, 64, 256), "left": (32, 128, 512), "right": (32, 128, 512)}
    element, dimensions, left, right = hl.GeneratorParam("float32"), hl.GeneratorParam(64), hl.GeneratorParam(128), hl.GeneratorParam(128)

    def configure(self):
        self.byte = self.element == "uint8"
        type = hl.UInt(8) if self.byte else F32
        self.add_input("first", hl.InputBuffer(type, 2))
        self.add_input("second", hl.InputBuffer(type, 2))
        self.add_output("output", hl.OutputBuffer(hl.UInt(32) if self.byte else F32, 2))

    def generate(self):
        r, total = hl.RDom([(0, self.dimensions)], "r"), hl.Func("total")
        difference = hl.absd(self.first[r, y], self.second[x, r])
        total[x, y] = hl.u32(0) if self.byte else hl.f32(0)
        total[x, y] += hl.u32(difference) if self.byte else difference
        self.output[x, y] = total[x, y]
        self.first.set_estimates([(0, self.dimensions), (0, self.left)])
        self.second.set_estimates([(0, self.right), (0, self.dimensions)])
        self.output.set_estimates([(0, self.right), (0, self.left)])


@hl.generator(name="hamming_match")
class HammingMatch(hl.Generator):
    """The nearest of many binary descriptors by the number of bits that differ, and which it is: a minimum with its place."""

    VARIANTS = {"words": (4, 8, 16), "queries": (64, 256, 1024), "candidates": (64, 256, 1024)}
    words, queries, candidates = hl.GeneratorParam(8), hl.GeneratorParam(256), hl.GeneratorParam(256)
    query = hl.InputBuffer(hl.UInt(32), 2)
    candidate = hl.InputBuffer(hl.UInt(32), 2)
    output = hl.OutputBuffer(hl.Int(32), 2)

    def generate(self):
        r, s = hl.RDom([(0, self.words)], "r"), hl.RDom([(0, self.candidates)], "s")
        distance, best = hl.funcs("distance best")
        distance[x, y] = hl.u32(0)
        distance[x, y] += hl.popcount(self.query[r, y] ^ self.candidate[x, r])
        best[y] = (hl.u32(1 << 30), 0)
        closer = distance[s, y] < best[y][0]
        best[y] = (hl.select(closer, distance[s, y], best[y][0]), hl.select(closer, s, best[y][1]))
        self.output[x, y] = hl.select(x == 0, hl.i32(best[y][0]), best[y][1])
        self.query.set_estimates([(0, self.words), (0, self.queries)])
        self.candidate.set_estimates([(0, self.candidates), (0, self.words)])
        self.output.set_estimates([(0, 2), (0, self.queries)])


@hl.generator(name="power_iteration")
class PowerIteration(hl.Generator):
    """Steps of the power method: a matrix times a vector, its norm, and the vector divided by it; float."""

    VARIANTS = {"steps": (1, 2, 4), "size": (64, 256, 768, 1536)}
    steps, size = hl.GeneratorParam(2), hl.GeneratorParam(256)
    matrix = hl.InputBuffer(F32, 2)
    start = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        last, r = self.start, hl.RDom([(0, self.size)], "r")
        for i in range(self.steps):
            product, norm, step = hl.Func(f"product_{i}"), hl.Func(f"norm_{i}"), hl.Func(f"step_{i}")
            product[x] = hl.f32(0)
            product[x] += self.matrix[r, x] * last[r]
            norm[()] = hl.f32(1e-6)
            norm[()] += product[r] * product[r]
            step[x] = product[x] / hl.sqrt(norm[()])
            last = step
        self.output[x] = last[x]
        self.matrix.set_estimates([(0, self.size), (0, self.size)])
        self.start.set_estimates([(0, self.size)])
        self.output.set_estimates([(0, self.size)])


@hl.generator(name="rank_one_update")
class RankOneUpdate(hl.Generator):
    """A matrix and the outer product of two vectors added to it: bound by memory; float."""

    VARIANTS = {"rows": (64, 512, 2048), "columns": (64, 512, 2048)}
    rows, columns = hl.GeneratorParam(512), hl.GeneratorParam(512)
    matrix = hl.InputBuffer(F32, 2)
    left = hl.InputBuffer(F32, 1)
    right = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        self.output[x, y] = self.matrix[x, y] + hl.f32(0.5) * self.left[y] * self.right[x]
        self.left.set_estimates([(0, self.rows)])
        self.right.set_estimates([(0, self.columns)])
        for buffer in (self.matrix, self.output):
            buffer.set_estimates([(0, self.columns), (0, self.rows)])


@hl.generator(name="triangular_product")
class TriangularProduct(hl.Generator):
    """A lower triangular matrix times several vectors: only what is left of the diagonal is summed; float."""

    VARIANTS = {"size": (64, 256, 768), "vectors": (1, 16, 64)}
    size, vectors = hl.GeneratorParam(256), hl.GeneratorParam(16)
    matrix = hl.InputBuffer(F32, 2)
    vector = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, product = hl.RDom([(0, self.size)], "r"), hl.Func("product")
        r.where(r <= y)
        product[x, y] = hl.f32(0)
        product[x, y] += self.matrix[r, y] * self.vector[x, r]
        self.output[x, y] = product[x, y]
        self.matrix.set_estimates([(0, self.size), (0, self.size)])
        for buffer in (self.vector, self.output):
            buffer.set_estimates([(0, self.vectors), (0, self.size)])
