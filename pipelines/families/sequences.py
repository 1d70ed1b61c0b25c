"""Families of recurrences, for training: what is computed at a point waits for what was computed before it. VARIANTS has the values
that the variants of a Generator are drawn from."""

import halide as hl

x, y, t, c, k = hl.vars("x y t c k")
U8, I32, F32 = hl.UInt(8), hl.Int(32), hl.Float(32)
SAMPLES, CHANNELS = (1024, 8192, 65536), (1, 4, 32)


def estimate(self, buffers):
    for buffer in buffers:
        buffer.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="envelope")
class Envelope(hl.Generator):
    """An envelope follower: quick where the signal rises, slow where it falls; float."""

    VARIANTS = {"samples": SAMPLES, "channels": CHANNELS}
    samples, channels = hl.GeneratorParam(8192), hl.GeneratorParam(4)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, level = hl.RDom([(1, self.samples - 1)], "r"), hl.Func("level")
        level[t, c] = hl.abs(self.input[t, c])
        rate = hl.select(level[r, c] > level[r - 1, c], hl.f32(0.3), hl.f32(0.01))
        level[r, c] = level[r - 1, c] + rate * (level[r, c] - level[r - 1, c])
        self.output[t, c] = self.input[t, c] / (level[t, c] + hl.f32(0.1))
        estimate(self, [self.input, self.output])


@hl.generator(name="goertzel")
class Goertzel(hl.Generator):
    """The power of a few frequencies by Goertzel's recurrence: long, and as many at once as there are frequencies; float."""

    VARIANTS = {"frequencies": (2, 8, 32), "samples": (256, 2048, 16384), "channels": CHANNELS}
    frequencies, samples, channels = hl.GeneratorParam(8), hl.GeneratorParam(2048), hl.GeneratorParam(4)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, turn, state = hl.RDom([(0, self.samples)], "r"), hl.Func("turn"), hl.Func("state")
        turn[k] = hl.f32(2) * hl.cos(hl.f32(k + 1) * hl.f32(3.14159 / (self.frequencies + 1)))
        state[k, c] = (hl.f32(0), hl.f32(0))
        last, before = state[k, c][0], state[k, c][1]
        state[k, c] = (hl.f32(0.999) * (self.input[r, c] + turn[k] * last - before), last)
        last, before = state[k, c][0], state[k, c][1]
        self.output[k, c] = last * last + before * before - last * before * turn[k]
        estimate(self, [self.input])
        self.output.set_estimates([(0, self.frequencies), (0, self.channels)])


@hl.generator(name="cic_decimator")
class CicDecimator(hl.Generator):
    """A cascaded integrator-comb filter: running sums behind each other, one sample in several kept, and differences; 32-bit integers."""

    VARIANTS = {"stages": (1, 2, 3), "every": (4, 16), "samples": SAMPLES, "channels": CHANNELS}
    stages, every, samples, channels = hl.GeneratorParam(2), hl.GeneratorParam(4), hl.GeneratorParam(8192), hl.GeneratorParam(4)
    input = hl.InputBuffer(I32, 2)
    output = hl.OutputBuffer(I32, 2)

    def generate(self):
        last, r = self.input, hl.RDom([(1, self.samples - 1)], "r")
        for i in range(self.stages):
            total = hl.Func(f"integrator_{i}")
            total[t, c] = last[t, c] & 255 if i == 0 else last[t, c]
            total[r, c] = (total[r, c] + total[r - 1, c]) & 0xFFFFFF
            last = total
        kept = hl.Func("kept")
        kept[t, c] = last[hl.clamp(t * self.every, 0, self.samples - 1), c]
        for i in range(self.stages):
            comb = hl.Func(f"comb_{i}")
            comb[t, c] = kept[t, c] - kept[hl.max(t - 1, 0), c]
            kept = comb
        self.output[t, c] = kept[t, c]
        estimate(self, [self.input])
        self.output.set_estimates([(0, self.samples // self.every), (0, self.channels)])


@hl.generator(name="time_warping")
class TimeWarping(hl.Generator):
    """Dynamic time warping of many pairs of series: a table filled along both axes, each entry from three before it; float."""

    VARIANTS = {"length": (32, 64, 128), "pairs": (1, 8, 64)}
    length, pairs = hl.GeneratorParam(64), hl.GeneratorParam(8)
    left = hl.InputBuffer(F32, 2)
    right = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 1)

    def generate(self):
        n = self.length
        r, table = hl.RDom([(1, n - 1), (1, n - 1)], "r"), hl.Func("table")
        table[c, x, y] = hl.abs(self.left[x, c] - self.right[y, c])
        least = hl.min(table[c, r.x - 1, r.y], table[c, r.x, r.y - 1])
        table[c, r.x, r.y] = table[c, r.x, r.y] + hl.min(least, table[c, r.x - 1, r.y - 1])
        self.output[c] = table[c, n - 1, n - 1]
        for buffer in (self.left, self.right):
            buffer.set_estimates([(0, n), (0, self.pairs)])
        self.output.set_estimates([(0, self.pairs)])


@hl.generator(name="seam_energy")
class SeamEnergy(hl.Generator):
    """The least energy of a seam down to each point, as seam carving needs it (Avidan, Shamir 2007): a scan of rows; integers."""

    VARIANTS = {"width": (320, 640, 1280), "height": (120, 240, 480)}
    width, height = hl.GeneratorParam(640), hl.GeneratorParam(240)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(I32, 2)

    def generate(self):
        edge = hl.BoundaryConditions.repeat_edge(self.input)
        energy, seam = hl.funcs("energy seam")
        energy[x, y] = hl.i32(hl.absd(edge[x + 1, y], edge[x - 1, y])) + hl.i32(hl.absd(edge[x, y + 1], edge[x, y - 1]))
        r = hl.RDom([(0, self.width), (1, self.height - 1)], "r")
        above = lambda i: seam[hl.clamp(r.x + i, 0, self.width - 1), r.y - 1]
        seam[x, y] = energy[x, y]
        seam[r.x, r.y] = energy[r.x, r.y] + hl.min(above(-1), hl.min(above(0), above(1)))
        self.output[x, y] = seam[x, y]
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.width), (0, self.height)])


@hl.generator(name="background_model")
class BackgroundModel(hl.Generator):
    """The running mean and deviation of each point of a film, and what is far from it: a scan of frames, all points alike; float."""

    VARIANTS = {"width": (160, 320, 640), "height": (120, 240), "frames": (4, 12)}
    width, height, frames = hl.GeneratorParam(320), hl.GeneratorParam(240), hl.GeneratorParam(4)
    input = hl.InputBuffer(U8, 3)
    output = hl.OutputBuffer(U8, 3)

    def generate(self):
        r, mean, spread = hl.RDom([(1, self.frames - 1)], "r"), hl.Func("mean"), hl.Func("spread")
        mean[x, y, t] = hl.f32(self.input[x, y, t])
        mean[x, y, r] = mean[x, y, r] * hl.f32(0.1) + mean[x, y, r - 1] * hl.f32(0.9)
        away = hl.abs(hl.f32(self.input[x, y, t]) - mean[x, y, t])
        spread[x, y, t] = away
        spread[x, y, r] = spread[x, y, r] * hl.f32(0.1) + spread[x, y, r - 1] * hl.f32(0.9)
        self.output[x, y, t] = hl.select(away > hl.f32(2.5) * spread[x, y, t] + hl.f32(4), hl.u8(255), hl.u8(0))
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.width), (0, self.height), (0, self.frames)])


@hl.generator(name="rolling_mean")
class RollingMean(hl.Generator):
    """A mean over a window of any width in two steps a point: one sample comes, one goes; integers, rows of an image."""

    VARIANTS = {"radius": (4, 16, 40), "width": (320, 1280, 4096), "height": (16, 120, 480)}
    radius, width, height = hl.GeneratorParam(16), hl.GeneratorParam(1280), hl.GeneratorParam(120)
    input = hl.InputBuffer(U8, 2)
    output = hl.OutputBuffer(U8, 2)

    def generate(self):
        n, r, total = self.radius, hl.RDom([(1, self.width - 1)], "r"), hl.Func("total")
        edge = hl.BoundaryConditions.repeat_edge(self.input)
        s = hl.RDom([(-n, 2 * n + 1)], "s")
        total[x, y] = 0
        total[0, y] += hl.i32(edge[s, y])
        total[r, y] = total[r - 1, y] + hl.i32(edge[r + n, y]) - hl.i32(edge[r - n - 1, y])
        self.output[x, y] = hl.u8(total[x, y] // (2 * n + 1))
        for buffer in (self.input, self.output):
            buffer.set_estimates([(0, self.width), (0, self.height)])


@hl.generator(name="frame_energy")
class FrameEnergy(hl.Generator):
    """What a voice detector looks at in overlapping frames: energy and how often the sign changes; 16-bit samples."""

    VARIANTS = {"frame": (128, 400, 1024), "hop": (64, 160), "frames": (50, 400, 2000)}
    frame, hop, frames = hl.GeneratorParam(400), hl.GeneratorParam(160), hl.GeneratorParam(400)
    input = hl.InputBuffer(hl.Int(16), 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, energy, changes = hl.RDom([(0, self.frame)], "r"), hl.Func("energy"), hl.Func("changes")
        at = t * self.hop + r
        sample = hl.f32(self.input[at]) * hl.f32(1 / 32768)
        energy[t] = hl.f32(0)
        energy[t] += sample * sample
        changes[t] = 0
        changes[t] += hl.select((self.input[at] < 0) != (self.input[at + 1] < 0), 1, 0)
        self.output[t, k] = hl.select(k == 0, hl.log(energy[t] + hl.f32(0.000001)), hl.f32(changes[t]) * hl.f32(1 / self.frame))
        self.input.set_estimates([(0, self.frames * self.hop + self.frame + 1)])
        self.output.set_estimates([(0, self.frames), (0, 2)])
