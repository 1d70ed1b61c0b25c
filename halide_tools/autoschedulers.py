"""Halide's autoschedulers: Adams2019 with weights of one's own, which makes its schedules diverse, Mullapudi2016 and Li2018."""

import dataclasses
import functools
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import halide as hl
import numpy as np

LIBRARIES = Path(hl.install_dir()) / "lib64"

# A `.weights` file: this header, then per buffer its number of dimensions, extents and float32 values (Halide's Weights.cpp).
WEIGHTS_HEADER = struct.pack("<4I", 0x68776631, 3, 3, 6)
WEIGHT_SHAPES = [(8, 40, 7), (8,), (24, 39), (24,), (32, 32), (32,)]


# Schedules


def autoscheduler_params(name, threads, **extra):
    """hl.AutoschedulerParams for so many threads; `extra` are the autoscheduler's own parameters, as text or numbers."""
    return hl.AutoschedulerParams(name, {k: str(v) for k, v in ({"parallelism": threads} | extra).items()})


@functools.cache
def load_autoscheduler(name):
    hl.load_plugin(str(LIBRARIES / f"libautoschedule_{name.lower()}.so"))


@functools.cache
def baseline_weights():
    """The weights Adams2019 ships with, cut out of its plug-in: list of float32 arrays of WEIGHT_SHAPES."""
    data = (LIBRARIES / "libautoschedule_adams2019.so").read_bytes()
    at = data.rfind(WEIGHTS_HEADER)
    if at < 0:
        raise RuntimeError("no trained weights found in libautoschedule_adams2019.so: is this halide==21.0.0?")
    return _parse_weights(data, at, "libautoschedule_adams2019.so")


def read_weights(path):
    """The arrays of a `.weights` file, as baseline_weights gives them. Raises RuntimeError where `path` is no such file."""
    data = Path(path).read_bytes()
    if not data.startswith(WEIGHTS_HEADER):
        raise RuntimeError(f"{path}: not weights of Adams2019 as of Halide 21")
    return _parse_weights(data, 0, path)


def _parse_weights(data, at, where):
    at += len(WEIGHTS_HEADER)
    arrays = []
    for shape in WEIGHT_SHAPES:
        n_dims, *extents = struct.unpack_from(f"<{1 + len(shape)}I", data, at)
        if n_dims != len(shape) or tuple(extents) != shape:
            raise RuntimeError(f"{where}: unexpected shape {extents} among its weights")
        at += 4 * (1 + len(shape))
        arrays.append(np.frombuffer(data, "<f4", int(np.prod(shape)), at))
        at += arrays[-1].nbytes
    return arrays


def write_weights(path, arrays):
    """Write a `.weights` file that `weights_path` of an unmodified Halide takes."""
    with open(path, "wb") as f:
        f.write(WEIGHTS_HEADER)
        for shape, array in zip(WEIGHT_SHAPES, arrays):
            f.write(struct.pack(f"<{1 + len(shape)}I", len(shape), *shape) + array.astype("<f4").tobytes())


def add_noise(weights, sigma, rng):
    """`weights` with Gaussian noise of `sigma` standard deviations of each buffer."""
    return [w + np.float32(sigma * w.std()) * rng.standard_normal(w.shape, dtype=np.float32) for w in weights]


@dataclass(frozen=True)
class Proposal:
    """One way to ask Adams2019 for a schedule; equal proposals give equal schedules.

    sigma: how much noise the trained weights get, in standard deviations of each buffer; 0 leaves them, -1 replaces them.
    dropout: Adams2019's random_dropout in percent (100 plain search, 1 a random walk led by the weights).
    steps: (sigma, seed) of more noise on top of that, one for each time a proposal was varied.
    """

    autoscheduler: ClassVar = "Adams2019"
    sigma: float
    dropout: int
    beam_size: int
    seed: int
    steps: tuple = ()

    @classmethod
    def draw(cls, program_seed, k):
        """The k-th proposal for a program. The 0th is Adams2019 as shipped with a greedy search."""
        if k == 0:
            return cls(sigma=0.0, dropout=100, beam_size=1, seed=0)
        rng = np.random.default_rng([program_seed, k])
        sigma = float(rng.choice([0.0, 0.1, 0.3, 1.0, 1.0, -1.0], p=[0.1, 0.15, 0.25, 0.2, 0.1, 0.2]))
        dropout = 1 if sigma == 0.0 else int(rng.choice([1, 100]))
        return cls(sigma=sigma, dropout=dropout, beam_size=1, seed=int(rng.integers(2**31 - 1)))

    @classmethod
    def from_record(cls, record):
        """The proposal in a candidate's entry of program.json."""
        return cls(record["sigma"], record["dropout"], record["beam_size"], record["seed"], tuple(map(tuple, record.get("steps", ()))))

    def varied(self, rng):
        """A proposal for a schedule like this one's in most places: a little more noise on the same weights."""
        step = (float(rng.choice([0.03, 0.1, 0.3])), int(rng.integers(2**31 - 1)))
        return dataclasses.replace(self, steps=(*self.steps, step))

    def weights(self):
        rng = np.random.default_rng(self.seed)
        if self.sigma < 0:
            weights = [rng.uniform(-0.5, 0.5, w.shape).astype(np.float32) for w in baseline_weights()]
        else:
            weights = add_noise(baseline_weights(), self.sigma, rng)
        for sigma, seed in self.steps:
            weights = add_noise(weights, sigma, np.random.default_rng(seed))
        return weights

    def parameters(self, weights_path):
        """What Adams2019 must be told, {name: value}; `weights_path` is where its weights are, if they are not those it ships with."""
        values = {"beam_size": self.beam_size, "random_dropout": self.dropout, "random_dropout_seed": self.seed}
        return values | ({"weights_path": weights_path} if self.sigma or self.steps else {})

    def apply(self, pipeline, spec):
        """Schedule `pipeline` in place for the target and threads of its ProgramSpec; returns (featurization bytes, C++ schedule source).

        Raises hl.HalideError.
        """
        load_autoscheduler("Adams2019")
        with tempfile.TemporaryDirectory() as folder:
            # Adams2019 only warns where the file is missing and goes on with random weights, so it is written right here.
            path = f"{folder}/proposed.weights"
            write_weights(path, self.weights())
            result = pipeline.apply_autoscheduler(
                spec.halide_target(), autoscheduler_params("Adams2019", spec.threads, **self.parameters(path))
            )
        return bytes(result.featurization), result.schedule_source


@dataclass(frozen=True)
class OtherAutoscheduler:
    """The schedule of another of Halide's autoschedulers, Mullapudi2016 or Li2018. They give no featurization."""

    autoscheduler: str

    def parameters(self, weights_path):
        """As of Proposal: it needs none."""
        return {}

    def apply(self, pipeline, spec):
        load_autoscheduler(self.autoscheduler)
        return b"", pipeline.apply_autoscheduler(
            spec.halide_target(), autoscheduler_params(self.autoscheduler, spec.threads)
        ).schedule_source


def proposal_from_record(record):
    """The Proposal or OtherAutoscheduler in a candidate's entry of program.json."""
    return OtherAutoscheduler(record["autoscheduler"]) if "autoscheduler" in record else Proposal.from_record(record)


@dataclass(frozen=True)
class WithWeights:
    """What Adams2019's beam search finds with the weights in a file."""

    weights_path: str
    beam_size: int

    def apply(self, pipeline, spec):
        load_autoscheduler("Adams2019")
        result = pipeline.apply_autoscheduler(spec.halide_target(), autoscheduler_params("Adams2019", spec.threads, **vars(self)))
        return bytes(result.featurization), result.schedule_source
