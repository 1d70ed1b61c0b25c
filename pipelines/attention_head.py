"""One head of scaled dot-product attention (Vaswani et al. 2017); takes float queries, keys and values, gives softmax(QK'/sqrt(d))V."""

import math

import halide as hl

i, j, d = hl.vars("i j d")


@hl.generator(name="attention_head")
class AttentionHead(hl.Generator):
    length = hl.GeneratorParam(512)
    head_dim = hl.GeneratorParam(64)

    q = hl.InputBuffer(hl.Float(32), 2)  # feature, position
    k = hl.InputBuffer(hl.Float(32), 2)
    v = hl.InputBuffer(hl.Float(32), 2)
    output = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        rd = hl.RDom([(0, self.head_dim)], "rd")
        rj = hl.RDom([(0, self.length)], "rj")

        # Keys transposed, so that the scores' inner dimension is dense.
        k_t = hl.Func("k_t")
        k_t[j, d] = self.k[d, j]
        scores = hl.Func("scores")
        scores[j, i] = hl.f32(0)
        scores[j, i] += self.q[rd, i] * k_t[j, rd]

        scaled = hl.Func("scaled")
        scaled[j, i] = scores[j, i] * hl.f32(1 / math.sqrt(self.head_dim))
        # The row's maximum is taken off before the exponential, for its range.
        row_max = hl.Func("row_max")
        row_max[i] = hl.f32(-1e30)
        row_max[i] = hl.max(row_max[i], scaled[rj, i])
        exp, row_sum = hl.funcs("exp row_sum")
        exp[j, i] = hl.fast_exp(scaled[j, i] - row_max[i])
        row_sum[i] = hl.f32(0)
        row_sum[i] += exp[rj, i]

        weighted = hl.Func("weighted")
        weighted[d, i] = hl.f32(0)
        weighted[d, i] += exp[rj, i] * self.v[d, rj]
        self.output[d, i] = weighted[d, i] / row_sum[i]

        for f in (self.q, self.k, self.v, self.output):
            f.set_estimates([(0, self.head_dim), (0, self.length)])

        if not self.using_autoscheduler():
            # Blocks of eight queries in parallel: their scores stay in the cache, and both products accumulate tiles in registers.
            io, ii, di, ji, u = hl.vars("io ii di ji u")
            vec = self.natural_vector_size(hl.Float(32))
            k_t.compute_root().vectorize(j, vec).parallel(d, 8)
            self.output.split(i, io, i, 8).tile(d, i, di, ii, 2 * vec, 4).reorder(di, ii, d, i, io)
            self.output.vectorize(di, vec).unroll(di).unroll(ii).parallel(io)

            scaled.compute_at(self.output, io).tile(j, i, ji, ii, 2 * vec, 4).vectorize(ji, vec).unroll(ji).unroll(ii)
            scores.compute_at(scaled, j).vectorize(j, vec).unroll(j).unroll(i)
            scores.update().reorder(j, i, rd).vectorize(j, vec).unroll(j).unroll(i)

            # A vector of partial results for each row, which only the end combines.
            exp.compute_at(self.output, io).vectorize(j, vec)
            for f in (row_max, row_sum):
                f.compute_at(self.output, io)
                ro, ri = hl.RVar("ro"), hl.RVar("ri")
                partial = f.update().split(rj, ro, ri, vec).rfactor(ri, u)
                partial.compute_at(f, i).vectorize(u)
                partial.update().vectorize(u)

            weighted.compute_at(self.output, d).vectorize(d, vec).unroll(d).unroll(i)
            weighted.update().reorder(d, i, rj).vectorize(d, vec).unroll(d).unroll(i)
