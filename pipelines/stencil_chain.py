"""A chain of 5x5 stencils (Halide's apps/stencil_chain); takes and gives a uint16 image."""

import halide as hl

x, y = hl.vars("x y")


@hl.generator(name="stencil_chain")
class StencilChain(hl.Generator):
    stencils = hl.GeneratorParam(10)

    input = hl.InputBuffer(hl.UInt(16), 2)
    output = hl.OutputBuffer(hl.UInt(16), 2)

    def generate(self):
        f = hl.BoundaryConditions.repeat_edge(self.input)
        chain = [f]
        for s in range(self.stencils):
            stencil = hl.Func(f"stencil_{s}")
            stencil[x, y] = sum(f[x + i, y + j] * ((i + 3) * (j + 3)) for j in range(-2, 3) for i in range(-2, 3))
            f = stencil
            chain.append(f)
        self.output[x, y] = f[x, y]

        w, h = 1536, 1024
        self.input.set_estimates([(0, w), (0, h)])
        self.output.set_estimates([(0, w), (0, h)])

        if not self.using_autoscheduler():
            # Strips in parallel; each stencil slides down the strip, a row ahead of what reads it.
            yi = hl.Var("yi")
            vec = self.natural_vector_size(hl.UInt(16))
            self.output.split(y, y, yi, 128).parallel(y).vectorize(x, vec)
            for stencil in chain[:-1]:
                stencil.store_at(self.output, y).compute_at(self.output, yi).vectorize(stencil.args()[0], vec)
