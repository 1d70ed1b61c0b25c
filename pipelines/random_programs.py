"""Random Halide programs: what `collect_schedules.py` measures to make training data.

`build(seed)` draws a program: one to three images, then 3 to 25 stages of the kinds listed in STAGE_KINDS, each reading
stages that are already there, and an output that joins whatever is still unread. The same seed gives the same program in any
process; seeds from RICH_FROM on draw more reductions, those from SMALL_FROM on 1 to 5 stages. The kinds are those that image
processing, linear algebra and small networks are made of; their mix follows Halide's random_pipeline generator
(Halide/apps/autoscheduler) in spirit, with scans, histograms, look-ups and matrix products added.

Values stay bounded through any depth (averages rather than sums, saturating casts), so that a schedule's output can be
compared with the reference's and no integer overflows.
"""

from dataclasses import dataclass

import halide as hl
import numpy as np

x, y, c = hl.vars("x y c")
COORDS = (x, y, c)

INTEGER_TYPES = (hl.UInt(8), hl.UInt(16), hl.Int(16))
FLOAT = hl.Float(32)
f32 = hl.f32


@dataclass
class Stage:
    """A Func that further stages may read. `extents` are its width, height and channels (2 or 3 of them, in points)."""

    func: hl.Func
    extents: tuple
    type: hl.Type

    @property
    def vars(self):
        return COORDS[: len(self.extents)]

    def __getitem__(self, args):
        return self.func[args]

    def at(self, dx=0, dy=0):
        """The value at this point, shifted in x and y."""
        return self.func[(x + dx, y + dy) + self.vars[2:]]


class ProgramBuilder:
    """Draws stages one after another into `stages`; `unread` holds those that nothing reads yet."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.is_small = seed >= SMALL_FROM
        self.stages, self.unread, self.kinds = [], [], []
        self.inputs = []
        self.width = int(self.rng.choice([256, 384, 512, 640, 768, 1000, 1024, 1280, 1536, 1920, 2048]))
        self.height = int(self.rng.choice([256, 360, 480, 512, 720, 768, 1024, 1080, 1536]))
        self.channels = int(self.rng.choice([1, 1, 3, 3, 3, 4, 8, 16, 32]))
        while self.width * self.height * self.channels > 2**22:
            self.width, self.height = max(self.width // 2, 64), max(self.height // 2, 64)
        if self.is_small and self.rng.random() < 0.4:  # what a cache holds
            self.width, self.height = max(self.width // 6, 32), max(self.height // 6, 32)

    # Small helpers of the stage kinds.

    def input(self, type, extents):
        """An input image or weight array with estimates over all of `extents`."""
        image = hl.ImageParam(type, len(extents), f"input_{len(self.inputs)}")
        image.set_estimates([(0, e) for e in extents])
        self.inputs.append(image)
        return image

    def pick(self, want=lambda stage: True):
        """A stage to read: mostly a recent or unread one, so that programs grow deep and share values now and then."""
        candidates = [s for s in self.stages if want(s)]
        if not candidates:
            return None
        unread = [s for s in self.unread if want(s)]
        if unread and self.rng.random() < 0.6:
            return unread[self.rng.integers(len(unread))]
        return candidates[-1 - min(int(self.rng.geometric(0.35)) - 1, len(candidates) - 1)]

    def add(self, kind, expr, extents, type, reads):
        """Define `kind`_n as a pure Func of `expr` and make it readable."""
        func = hl.Func(f"{kind}_{len(self.kinds)}")
        func[COORDS[: len(extents)]] = cast(type, expr)
        return self.register(kind, func, extents, type, reads)

    def register(self, kind, func, extents, type, reads):
        stage = Stage(func, tuple(extents), type)
        self.kinds.append(kind)
        self.stages.append(stage)
        self.unread = [s for s in self.unread if s not in reads] + [stage]
        return stage

    def offsets(self, largest=3):
        """Taps of a stencil: a contiguous run around the point, sometimes dilated."""
        n = int(self.rng.integers(2, 2 * largest + 2))
        step = int(self.rng.choice([1, 1, 1, 2]))
        return [(i - n // 2) * step for i in range(n)]

    def weights(self, n):
        """n positive weights that sum to 1, so that values stay bounded."""
        w = self.rng.random(n) + 0.1
        return [float(v) for v in w / w.sum()]


def cast(type, expr):
    """`expr` as `type`; saturating where the type is an integer, so that no value wraps."""
    return hl.saturating_cast(type, expr) if not type.is_float() else hl.cast(type, expr)


def as_float(expr, type):
    """`expr` of a stage of `type`, scaled to about [0, 1]."""
    if type.is_float():
        return expr
    return hl.cast(FLOAT, expr) * f32(1 / 2 ** min(type.bits(), 15))


def from_float(expr, type):
    """The inverse of as_float."""
    return expr if type.is_float() else expr * f32(2 ** min(type.bits(), 15))


def as_index(expr, type, n):
    """A value as an index from 0 to n - 1. Off the grid of eighths, so that the last bit of a pixel's value decides nothing."""
    return hl.clamp(hl.cast(hl.Int(32), as_float(expr, type) * f32(n) + f32(0.37)), 0, n - 1)


def weighted_sum(terms, weights, type):
    """Average of `terms`: in float, or in 32-bit fixed point for integers, as hand-written integer stencils do."""
    if type.is_float():
        return sum((t * f32(w) for t, w in zip(terms[1:], weights[1:])), terms[0] * f32(weights[0]))
    fixed = [hl.cast(hl.Int(32), t) * max(int(w * 256), 1) for t, w in zip(terms, weights)]
    return sum(fixed[1:], fixed[0]) // 256


# The kinds of stage. Each takes the builder and adds one stage (or a few that belong together); None if it does not apply.


def pointwise(b):
    s = b.pick()
    a, k = float(b.rng.uniform(0.3, 0.95)), float(b.rng.uniform(0, 0.05))
    v = as_float(s.at(), s.type) * f32(a) + f32(k)
    return b.add("pointwise", from_float(v, s.type), s.extents, s.type, [s])


def integer_arithmetic(b):
    s = b.pick(lambda s: not s.type.is_float())
    if s is None:
        return None
    v, k = hl.cast(hl.Int(32), s.at()), int(b.rng.integers(3, 200))
    forms = [
        lambda: (v * k) // 256 + k,
        lambda: v % k,
        lambda: v >> 1,
        lambda: hl.cast(hl.Int(32), hl.absd(v, k)),
        lambda: v & k,
        lambda: v // k,
    ]
    return b.add("integer", forms[b.rng.integers(len(forms))](), s.extents, s.type, [s])


def nonlinear(b):
    s = b.pick()
    v = as_float(s.at(), s.type)
    forms = [
        lambda: hl.sqrt(hl.abs(v)),
        lambda: hl.exp(-hl.abs(v)),
        lambda: hl.log(f32(1) + hl.abs(v)),
        lambda: hl.sin(v * f32(3)),
        lambda: hl.tanh(v),
        lambda: f32(1) / (f32(1) + hl.exp(-v)),
        lambda: hl.pow(hl.abs(v) + f32(0.01), f32(0.45)),
        lambda: hl.fast_exp(-hl.abs(v)),
        lambda: v / (f32(1) + hl.abs(v)),
    ]
    return b.add("nonlinear", forms[b.rng.integers(len(forms))](), s.extents, FLOAT, [s])


def relu(b):
    s = b.pick()
    v = as_float(s.at(), s.type) - f32(0.1)
    v = hl.max(v, f32(0)) if b.rng.random() < 0.5 else hl.clamp(v * f32(1.1), f32(0), f32(1))
    return b.add("relu", from_float(v, s.type), s.extents, s.type, [s])


def cast_type(b):
    s = b.pick()
    types = [t for t in (*INTEGER_TYPES, FLOAT) if t != s.type]
    type = types[b.rng.integers(len(types))]
    return b.add("cast", from_float(as_float(s.at(), s.type), type), s.extents, type, [s])


def threshold(b):
    s = b.pick()
    other = b.pick(lambda o: o.extents == s.extents)
    v, w = as_float(s.at(), s.type), as_float(other.at(), other.type)
    # A ramp instead of a jump where the comparison is of computed floats: a last-bit difference must not flip a pixel.
    value = (
        hl.select((x + y) % 2 == 0, v, hl.min(v, w) * f32(0.9))
        if b.rng.random() < 0.5
        else hl.select(v > w, v, w * f32(0.9) + v * f32(0.1))
    )
    return b.add("select", from_float(value, s.type), s.extents, s.type, [s, other])


def stencil_x(b):
    s, taps = b.pick(), b.offsets(3)
    return b.add("stencil_x", weighted_sum([s.at(dx=d) for d in taps], b.weights(len(taps)), s.type), s.extents, s.type, [s])


def stencil_y(b):
    s, taps = b.pick(), b.offsets(3)
    return b.add("stencil_y", weighted_sum([s.at(dy=d) for d in taps], b.weights(len(taps)), s.type), s.extents, s.type, [s])


def stencil_xy(b):
    s = b.pick()
    tx, ty = (b.offsets(2 if b.rng.random() < 0.15 else 1) for _ in "xy")
    terms = [s.at(i, j) for j in ty for i in tx]
    return b.add("stencil_xy", weighted_sum(terms, b.weights(len(terms)), s.type), s.extents, s.type, [s])


def separable_blur(b):
    s, taps = b.pick(), b.offsets(3)
    w = b.weights(len(taps))
    rows = b.add("blur_x", weighted_sum([s.at(dx=d) for d in taps], w, s.type), s.extents, s.type, [s])
    return b.add("blur_y", weighted_sum([rows.at(dy=d) for d in taps], w, s.type), s.extents, s.type, [rows])


def reduction(kind, b, dom, term, s, scale):
    """A sum over `dom` as an update stage: float, scaled to an average."""
    func = hl.Func(f"{kind}_{len(b.kinds)}")
    func[s.vars] = hl.cast(FLOAT, 0)
    func[s.vars] += term * f32(scale)
    return b.register(kind, func, s.extents, FLOAT, [s])


def conv_2d(b):
    s = b.pick()
    n, m = int(b.rng.integers(2, 8)), int(b.rng.integers(2, 8))
    r = hl.RDom([(0, n), (0, m)])
    v = as_float(s.func[(x + r.x - n // 2, y + r.y - m // 2) + s.vars[2:]], s.type)
    weight = hl.cast(FLOAT, r.x * 3 + r.y + 1) * f32(1 / (3 * n + m))
    return reduction("conv", b, r, v * weight, s, 1.0 / (n * m))


def conv_1d(b):
    s, n = b.pick(), int(b.rng.integers(3, 17))
    r = hl.RDom([(0, n)])
    at = (x + r - n // 2, y) if b.rng.random() < 0.5 else (x, y + r - n // 2)
    return reduction("conv_1d", b, r, as_float(s.func[at + s.vars[2:]], s.type), s, 1.0 / n)


def pool(b):
    s, n = b.pick(), int(b.rng.integers(2, 5))
    r = hl.RDom([(0, n), (0, n)])
    window = s.func[(x * n + r.x, y * n + r.y) + s.vars[2:]]
    if min(s.extents[:2]) // n < 16:
        return None
    extents = (s.extents[0] // n, s.extents[1] // n) + s.extents[2:]
    func = hl.Func(f"pool_{len(b.kinds)}")
    coords = s.vars
    func[coords] = s.type.min() if s.type.is_int() else hl.cast(s.type, 0)
    func[coords] = hl.max(func[coords], window)
    return b.register("pool", func, extents, s.type, [s])


def downsample(b):
    s = b.pick(lambda s: min(s.extents[:2]) >= 64)
    if s is None:
        return None
    read = lambda i, j: s.func[(2 * x + i, 2 * y + j) + s.vars[2:]]
    extents = (s.extents[0] // 2, s.extents[1] // 2) + s.extents[2:]
    if b.rng.random() < 0.3:
        return b.add("downsample_nearest", read(0, 0), extents, s.type, [s])
    terms = [read(i, j) for i in (0, 1) for j in (0, 1)]
    return b.add("downsample_box", weighted_sum(terms, [0.25] * 4, s.type), extents, s.type, [s])


def upsample(b):
    s = b.pick(lambda s: np.prod(s.extents) <= 2**20)
    if s is None:
        return None
    read = lambda dx, dy: s.func[(x // 2 + dx, y // 2 + dy) + s.vars[2:]]
    extents = (s.extents[0] * 2, s.extents[1] * 2) + s.extents[2:]
    if b.rng.random() < 0.4:
        return b.add("upsample_nearest", read(0, 0), extents, s.type, [s])
    wx, wy = hl.cast(FLOAT, x % 2) * f32(0.5), hl.cast(FLOAT, y % 2) * f32(0.5)
    f = lambda dx, dy: as_float(read(dx, dy), s.type)
    value = hl.lerp(hl.lerp(f(0, 0), f(1, 0), wx), hl.lerp(f(0, 1), f(1, 1), wx), wy)
    return b.add("upsample_linear", from_float(value, s.type), extents, s.type, [s])


def boundary(b):
    s = b.pick()
    conditions = [
        hl.BoundaryConditions.repeat_edge,
        hl.BoundaryConditions.repeat_image,
        hl.BoundaryConditions.mirror_image,
        hl.BoundaryConditions.mirror_interior,
    ]
    region = [(0, e) for e in s.extents[:2]] + [(hl.Expr(), hl.Expr())] * (len(s.extents) - 2)
    wrapped = conditions[b.rng.integers(len(conditions))](s.func, region)
    return b.register("boundary", wrapped, s.extents, s.type, [s])


def transpose(b):
    s = b.pick()
    func = hl.Func(f"transpose_{len(b.kinds)}")
    func[s.vars] = s.func[(y, x) + s.vars[2:]]
    return b.register("transpose", func, (s.extents[1], s.extents[0]) + s.extents[2:], s.type, [s])


def slice_channel(b):
    s = b.pick(lambda s: len(s.extents) == 3 and s.extents[2] > 1)
    if s is None:
        return None
    return b.add("slice", s.func[x, y, int(b.rng.integers(s.extents[2]))], s.extents[:2], s.type, [s])


def broadcast_channels(b):
    s = b.pick(lambda s: len(s.extents) == 2)
    other = b.pick(lambda o: len(o.extents) == 3 and s is not None and o.extents[:2] == s.extents)
    if s is None or other is None:
        return None
    v = as_float(s.at(), s.type) * as_float(other.at(), other.type)
    return b.add("broadcast", v, other.extents, FLOAT, [s, other])


def join(b):
    s = b.pick()
    other = b.pick(lambda o: o.extents == s.extents and o is not s)
    if other is None:
        return None
    v, w = as_float(s.at(), s.type), as_float(other.at(), other.type)
    forms = [
        lambda: (v + w) * f32(0.5),
        lambda: v - w,
        lambda: v * w,
        lambda: hl.min(v, w),
        lambda: hl.max(v, w),
        lambda: v / (hl.abs(w) + f32(0.5)),
    ]
    return b.add("join", forms[b.rng.integers(len(forms))](), s.extents, FLOAT, [s, other])


def blend(b):
    s = b.pick()
    matching = [o for o in b.stages if o.extents == s.extents and o is not s]
    if len(matching) < 2:
        return None
    i, j = b.rng.choice(len(matching), 2, replace=False)
    v, w, m = (as_float(o.at(), o.type) for o in (s, matching[i], matching[j]))
    return b.add("blend", hl.lerp(v, w, hl.clamp(m, f32(0), f32(1))), s.extents, FLOAT, [s, matching[i], matching[j]])


def unsharp(b):
    s = b.pick()
    v = as_float(s.at(), s.type)
    around = weighted_sum([as_float(s.at(i, j), s.type) for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))], [0.25] * 4, FLOAT)
    return b.add("unsharp", from_float(hl.clamp(v * f32(1.5) - around * f32(0.5), f32(0), f32(1)), s.type), s.extents, s.type, [s])


def scan(b):
    s = b.pick(lambda s: np.prod(s.extents) <= 2**21)
    if s is None:
        return None
    along_x = b.rng.random() < 0.5
    r = hl.RDom([(1, s.extents[0 if along_x else 1] - 1)])
    here, before = ((r, y), (r - 1, y)) if along_x else ((x, r), (x, r - 1))
    rest, a = s.vars[2:], float(b.rng.uniform(0.3, 0.9))
    func = hl.Func(f"scan_{len(b.kinds)}")
    func[s.vars] = as_float(s.at(), s.type)
    func[here + rest] = func[here + rest] * f32(1 - a) + func[before + rest] * f32(a)
    return b.register("scan", func, s.extents, FLOAT, [s])


def histogram(b):
    s = b.pick(lambda s: np.prod(s.extents[:2]) <= 2**20)
    if s is None:
        return None
    bins = int(b.rng.choice([32, 64, 256]))
    i = hl.Var("i")
    level = lambda args: as_index(s.func[args], s.type, bins)
    zero = (0,) * (len(s.extents) - 2)
    r = hl.RDom([(0, s.extents[0]), (0, s.extents[1])])
    hist, cdf = hl.Func(f"histogram_{len(b.kinds)}"), hl.Func(f"cdf_{len(b.kinds)}")
    hist[i] = hl.cast(hl.Int(32), 0)
    hist[level((r.x, r.y) + zero)] += 1
    k = hl.RDom([(1, bins - 1)])
    cdf[i] = hist[i]
    cdf[k.x] = cdf[k.x - 1] + cdf[k.x]
    value = hl.cast(FLOAT, cdf[level(s.vars)]) * f32(1 / (s.extents[0] * s.extents[1]))
    return b.add("equalize", value, s.extents, FLOAT, [s])


def lookup(b):
    s = b.pick()
    n = int(b.rng.choice([64, 256, 1024]))
    i = hl.Var("i")
    table = hl.Func(f"table_{len(b.kinds)}")
    table[i] = hl.pow(hl.cast(FLOAT, i) * f32(1 / n), f32(b.rng.uniform(0.4, 2.2)))
    return b.add("lookup", table[as_index(s.at(), s.type, n)], s.extents, FLOAT, [s])


def row_mean(b):
    s = b.pick()
    r = hl.RDom([(0, s.extents[0])])
    rest = s.vars[2:]
    mean = hl.Func(f"row_mean_{len(b.kinds)}")
    mean[(y,) + rest] = hl.cast(FLOAT, 0)
    mean[(y,) + rest] += as_float(s.func[(r, y) + rest], s.type) * f32(1 / s.extents[0])
    value = as_float(s.at(), s.type) - mean[(y,) + rest]
    return b.add("normalize", value, s.extents, FLOAT, [s])


def channel_mix(b):
    """A convolution over channels (1x1 or 3x3), its weights an input: a layer of a small network."""
    s = b.pick(lambda s: len(s.extents) == 3 and s.extents[2] >= 3 and np.prod(s.extents) <= 2**19)
    if s is None:
        return None
    n = int(b.rng.choice([1, 1, 3]))
    n_in, n_out = s.extents[2], int(b.rng.choice([3, 4, 8, 16]))
    weights = b.input(FLOAT, [n_in, n, n, n_out])
    r = hl.RDom([(0, n_in), (0, n), (0, n)])
    func = hl.Func(f"channel_mix_{len(b.kinds)}")
    func[x, y, c] = hl.cast(FLOAT, 0)
    func[x, y, c] += weights[r.x, r.y, r.z, c] * as_float(s.func[x + r.y - n // 2, y + r.z - n // 2, r.x], s.type) * f32(2 / (n_in * n * n))
    return b.register("channel_mix", func, s.extents[:2] + (n_out,), FLOAT, [s])


def matmul(b):
    s = b.pick(lambda s: len(s.extents) == 2 and max(s.extents) <= 1024)
    if s is None:
        return None
    depth = s.extents[0]
    n = int(b.rng.choice([64, 128, 256]))
    weights = b.input(FLOAT, [n, depth])
    r = hl.RDom([(0, depth)])
    func = hl.Func(f"matmul_{len(b.kinds)}")
    func[x, y] = hl.cast(FLOAT, 0)
    func[x, y] += weights[x, r] * as_float(s.func[r, y], s.type) * f32(1 / depth)
    return b.register("matmul", func, (n, s.extents[1]), FLOAT, [s])


# How often each kind is drawn, relative to the others.
STAGE_KINDS = {
    pointwise: 4, integer_arithmetic: 3, nonlinear: 4, relu: 2, cast_type: 3, threshold: 3, stencil_x: 4, stencil_y: 4, stencil_xy: 4,
    separable_blur: 2, conv_2d: 3, conv_1d: 3, pool: 2, downsample: 4, upsample: 3, boundary: 3, transpose: 2, slice_channel: 2,
    broadcast_channels: 3, join: 9, blend: 3, unsharp: 2, scan: 2, histogram: 1, lookup: 2, row_mean: 1, channel_mix: 3, matmul: 1,
}  # fmt: skip
# Programs of these numbers and beyond are richer in what applications have more of than others: loops over many points for each of theirs.
# Those before keep the mix they were measured with.
RICH_FROM = 10_000
RICH_KINDS = {matmul: 5, histogram: 5, channel_mix: 3, scan: 2, conv_2d: 2, row_mean: 2}  # times as often
# Programs of these numbers and beyond are small: 1 to MOST_SMALL stages, the last of them the output. Some inputs have a border of their
# own in place of a boundary condition, and some images are so small that a cache holds them.
SMALL_FROM, MOST_SMALL, BORDER = 20_000, 5, 32


def add_image(b):
    """An input image, read through a boundary condition or larger than what is made of it: stencils may look past its edge."""
    types = (*INTEGER_TYPES, FLOAT, FLOAT)
    type = types[b.rng.integers(len(types))]
    extents = (b.width, b.height) + ((b.channels,) if b.channels > 1 else ())
    if b.is_small and b.rng.random() < 0.5:
        image = b.input(type, tuple(e + 2 * BORDER for e in extents[:2]) + extents[2:])
        inside = hl.Func(f"inside_{len(b.kinds)}")
        inside[COORDS[: len(extents)]] = image[(x + BORDER, y + BORDER) + COORDS[2 : len(extents)]]
        return b.register("image", inside, extents, type, [])
    image = b.input(type, extents)
    return b.register("image", hl.BoundaryConditions.repeat_edge(image), extents, type, [])


def resample(b, stage, extents):
    """`stage` read at the sizes of `extents`, by nearest neighbour, so that it can be joined into the output."""
    at = [v * s // e if s != e else v for v, s, e in zip((x, y), stage.extents, extents)]
    if len(stage.extents) == 3:
        at.append(hl.clamp(c, 0, stage.extents[2] - 1) if len(extents) == 3 else 0)
    return as_float(stage.func[tuple(at)], stage.type)


def build(seed, max_stages=25):
    """The program of `seed`, drawn with 3 (1 where it is small) to `max_stages` stages (some kinds add more than one); mostly 10 at most.

    Returns
    -------
    pipeline : hl.Pipeline with estimates on its inputs and its one output
    kinds : list of str, the kinds of stage it was drawn from, in order
    """
    b = ProgramBuilder(seed)
    for _ in range(int(b.rng.choice([1, 1, 1, 2, 2, 3]))):
        add_image(b)
    longest = max_stages if b.rng.random() < 0.2 else min(max_stages, 10)
    fewest = 1 if b.is_small else 3
    n_images, n_stages = len(b.kinds), int(b.rng.integers(fewest, min(longest, MOST_SMALL if b.is_small else longest) + 1))
    kinds, odds = list(STAGE_KINDS), np.array(list(STAGE_KINDS.values()), float)
    if seed >= RICH_FROM:
        odds *= [RICH_KINDS.get(kind, 1) for kind in kinds]
    # A program favours some kinds over others, as real ones do; otherwise all long programs would look alike.
    odds *= b.rng.gamma(0.7, size=len(odds)) + 0.05
    while len(b.kinds) - n_images < n_stages:
        kinds[b.rng.choice(len(kinds), p=odds / odds.sum())](b)

    last = b.stages[-1]
    if b.is_small:
        last.func.set_estimates([(0, e) for e in last.extents])
        return hl.Pipeline(last.func), b.kinds
    unread = [s for s in b.unread if s is not last][-4:]
    value = as_float(last.at(), last.type)
    for other in unread:
        value = value * f32(0.6) + resample(b, other, last.extents) * f32(0.4)
    output = hl.Func("output")
    type = (last.type, FLOAT, hl.UInt(8))[b.rng.integers(3)]
    output[last.vars] = cast(type, from_float(value, type))
    output.set_estimates([(0, e) for e in last.extents])
    return hl.Pipeline(output), b.kinds
