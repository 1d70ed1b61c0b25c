"""Families of kernels on signals, for training: VARIANTS has the values that the variants of a Generator are drawn from."""

import math

import halide as hl

t, c, k, j = hl.vars("t c k j")
SAMPLES, CHANNELS = (4096, 16384, 65536, 262144), (1, 2, 8, 32)
I16, I32, F32 = hl.Int(16), hl.Int(32), hl.Float(32)
TYPES = {str(type): type for type in (I16, I32, F32)}


@hl.generator(name="fir")
class Fir(hl.Generator):
    """A filter of n taps along time, each channel by itself: float, or 16-bit samples into 32-bit sums."""

    VARIANTS = {"element": ("int16", "float32"), "taps": (8, 32, 100, 256), "samples": SAMPLES[:3], "channels": CHANNELS[:3]}
    element, taps = hl.GeneratorParam("float32"), hl.GeneratorParam(32)
    samples, channels = hl.GeneratorParam(16384), hl.GeneratorParam(2)

    def configure(self):
        self.add_input("input", hl.InputBuffer(TYPES[self.element], 2))
        self.add_input("kernel", hl.InputBuffer(TYPES[self.element], 1))
        self.add_output("output", hl.OutputBuffer(F32 if TYPES[self.element].is_float() else I32, 2))

    def generate(self):
        r, filtered = hl.RDom([(0, self.taps)], "r"), hl.Func("filtered")
        type = F32 if TYPES[self.element].is_float() else I32
        filtered[t, c] = hl.cast(type, 0)
        filtered[t, c] += hl.cast(type, self.kernel[r]) * hl.cast(type, self.input[t + r, c])
        self.output[t, c] = filtered[t, c]
        self.input.set_estimates([(0, self.samples + self.taps - 1), (0, self.channels)])
        self.kernel.set_estimates([(0, self.taps)])
        self.output.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="biquads")
class Biquads(hl.Generator):
    """Second-order recursive filters behind each other, as in an equaliser: along time each waits for what it has just computed; float."""

    VARIANTS = {"sections": (1, 2, 4), "samples": SAMPLES[:3], "channels": CHANNELS[1:]}
    sections, samples, channels = hl.GeneratorParam(2), hl.GeneratorParam(16384), hl.GeneratorParam(8)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        last, r = self.input, hl.RDom([(2, self.samples - 2)], "r")
        for i in range(self.sections):
            section = hl.Func(f"section_{i}")
            section[t, c] = last[t, c] * hl.f32(0.3)
            section[r, c] = section[r, c] + section[r - 1, c] * hl.f32(0.9 - 0.1 * i) - section[r - 2, c] * hl.f32(0.3)
            last = section
        self.output[t, c] = last[t, c]
        self.input.set_estimates([(0, self.samples), (0, self.channels)])
        self.output.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="prefix_sums")
class PrefixSums(hl.Generator):
    """Running sums of rows, in one scan or in blocks whose sums are added after."""

    VARIANTS = {"blocks": (1, 16, 64), "samples": SAMPLES, "channels": (1, 8, 64)}
    blocks, samples, channels = hl.GeneratorParam(16), hl.GeneratorParam(16384), hl.GeneratorParam(8)
    input = hl.InputBuffer(I32, 2)
    output = hl.OutputBuffer(I32, 2)

    def generate(self):
        n = self.samples // self.blocks
        r, within, before = hl.RDom([(1, n - 1)], "r"), hl.Func("within"), hl.Func("before")
        within[t, k, c] = self.input[k * n + t, c] & 1023
        within[r, k, c] += within[r - 1, k, c]
        s = hl.RDom([(1, max(self.blocks - 1, 1))], "s")
        before[k, c] = 0
        if self.blocks > 1:
            before[s, c] = before[s - 1, c] + within[n - 1, s - 1, c]
        self.output[t, c] = within[t % n, t // n, c] + before[t // n, c]
        self.input.set_estimates([(0, self.samples), (0, self.channels)])
        self.output.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="moving_normalise")
class MovingNormalise(hl.Generator):
    """Samples less the mean of those around, over their deviation, from running sums; float."""

    VARIANTS = {"window": (16, 128), "samples": SAMPLES, "channels": CHANNELS}
    window, samples, channels = hl.GeneratorParam(16), hl.GeneratorParam(65536), hl.GeneratorParam(2)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n, r = self.window, hl.RDom([(0, self.window)], "r")
        total, squares = hl.funcs("total squares")
        for func, term in ((total, lambda v: v), (squares, lambda v: v * v)):
            func[t, c] = hl.f32(0)
            func[t, c] += term(self.input[t + r, c])
        mean = total[t, c] * hl.f32(1 / n)
        variance = squares[t, c] * hl.f32(1 / n) - mean * mean
        self.output[t, c] = (self.input[t + n // 2, c] - mean) / hl.sqrt(hl.max(variance, hl.f32(0)) + hl.f32(0.01))
        self.input.set_estimates([(0, self.samples + n), (0, self.channels)])
        self.output.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="autocorrelation")
class Autocorrelation(hl.Generator):
    """Products of a signal with itself, shifted, summed over all of it: long reductions to few numbers; float."""

    VARIANTS = {"lags": (8, 64, 256), "samples": SAMPLES[:3], "channels": CHANNELS[:3]}
    lags, samples, channels = hl.GeneratorParam(64), hl.GeneratorParam(16384), hl.GeneratorParam(1)
    input = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, total = hl.RDom([(0, self.samples)], "r"), hl.Func("total")
        total[k, c] = hl.f32(0)
        total[k, c] += self.input[r, c] * self.input[r + k, c]
        self.output[k, c] = total[k, c] * hl.f32(1 / self.samples)
        self.input.set_estimates([(0, self.samples + self.lags), (0, self.channels)])
        self.output.set_estimates([(0, self.lags), (0, self.channels)])


@hl.generator(name="polyphase")
class Polyphase(hl.Generator):
    """Sample rate times L over M by a filter in L phases: its taps are read at a stride; float."""

    VARIANTS = {"up": (2, 3, 147), "down": (1, 2, 160), "taps": (4, 16), "samples": SAMPLES, "channels": CHANNELS[:3]}
    up, down, taps = hl.GeneratorParam(3), hl.GeneratorParam(2), hl.GeneratorParam(16)
    samples, channels = hl.GeneratorParam(16384), hl.GeneratorParam(2)
    input = hl.InputBuffer(F32, 2)
    kernel = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, resampled = hl.RDom([(0, self.taps)], "r"), hl.Func("resampled")
        at = t * self.down
        resampled[t, c] = hl.f32(0)
        resampled[t, c] += self.kernel[at % self.up + r * self.up] * self.input[at // self.up + r, c]
        self.output[t, c] = resampled[t, c]
        self.input.set_estimates([(0, self.samples * self.down // self.up + self.taps + 1), (0, self.channels)])
        self.kernel.set_estimates([(0, self.up * self.taps)])
        self.output.set_estimates([(0, self.samples), (0, self.channels)])


@hl.generator(name="spectrogram")
class Spectrogram(hl.Generator):
    """Power of a signal's windows at each frequency, by the discrete Fourier transform as it is defined; float."""

    VARIANTS = {"window": (32, 64, 128), "frames": (64, 256, 512)}
    window, frames = hl.GeneratorParam(64), hl.GeneratorParam(256)
    input = hl.InputBuffer(F32, 1)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        n, r = self.window, hl.RDom([(0, self.window)], "r")
        windowed, wave, spectrum = hl.funcs("windowed wave spectrum")
        angle = hl.f32((t * k) % n) * hl.f32(2 * math.pi / n)
        wave[t, k, j] = hl.select(j == 0, hl.cos(angle), hl.sin(angle))
        windowed[t, c] = self.input[c * (n // 2) + t] * (hl.f32(0.5) - hl.f32(0.5) * hl.cos(hl.f32(t) * hl.f32(2 * math.pi / n)))
        spectrum[k, c, j] = hl.f32(0)
        spectrum[k, c, j] += windowed[r, c] * wave[r, k, j]
        power = spectrum[k, c, 0] * spectrum[k, c, 0] + spectrum[k, c, 1] * spectrum[k, c, 1]
        self.output[k, c] = hl.log(power + hl.f32(1))
        self.input.set_estimates([(0, (self.frames + 1) * n // 2)])
        self.output.set_estimates([(0, n // 2), (0, self.frames)])


@hl.generator(name="mel_bands")
class MelBands(hl.Generator):
    """Spectra summed into overlapping bands by a small dense matrix, then their logarithms; float."""

    VARIANTS = {"bands": (16, 40, 80), "bins": (128, 257), "frames": (128, 512, 2048)}
    bands, bins, frames = hl.GeneratorParam(40), hl.GeneratorParam(128), hl.GeneratorParam(512)
    input = hl.InputBuffer(F32, 2)
    matrix = hl.InputBuffer(F32, 2)
    output = hl.OutputBuffer(F32, 2)

    def generate(self):
        r, energy = hl.RDom([(0, self.bins)], "r"), hl.Func("energy")
        energy[k, t] = hl.f32(0)
        energy[k, t] += self.matrix[k, r] * self.input[r, t] * self.input[r, t]
        self.output[k, t] = hl.log(energy[k, t] + hl.f32(0.001))
        self.input.set_estimates([(0, self.bins), (0, self.frames)])
        self.matrix.set_estimates([(0, self.bands), (0, self.bins)])
        self.output.set_estimates([(0, self.bands), (0, self.frames)])
