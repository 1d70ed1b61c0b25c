"""Is a wrong output called wrong, and a right one right?

    python benchmarks/wrong_outputs.py
    python benchmarks/wrong_outputs.py --schedules 50 --random_programs 8 --applications blur,harris

Fifty right outputs, of all element types, are broken in fifty ways, and each is compared with what it was: all must be called wrong. Then
schedules of all applications and of random programs are run and compared with their references: none may be called wrong, but for those
that Halide gets wrong itself, whose outputs differ from run to run. Writes benchmarks/results/wrong_outputs.md and .json.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import halide as hl
import numpy as np
from pebble import ProcessExpired, ProcessPool
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

from config import Config, UserError, load_config, run_script
from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.comparison import Comparison, mismatch
from halide_tools.execution import Program
from halide_tools.programs import ProgramSpec, find_programs, reference_schedules
from measuring.processes import prepare_worker

TYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
SPAWN = multiprocessing.get_context("spawn")
RACE = "differs from run to run"  # of execution.Program.mismatch
OTHERS = ("Mullapudi2016", "Li2018")
SHAPE = (3, 96, 160)  # channels, rows, columns
TILE, VECTOR = 16, 8
LOW_BITS = {"float16": 3, "bfloat16": 5, "float32": 12, "float64": 30}  # of a float's last bits, lost where it is held in a narrower type


class WrongConfig(Config):
    applications: str = Field("", description="names of files in pipelines/, separated by commas; empty: all")
    random_programs: int = Field(30, ge=0, description="random programs beside them")
    schedules: int = Field(200, ge=1, description="schedules of all of them together")
    seconds: float = Field(120, gt=0, description="longest time to schedule, compile and run one of them, or a reference")


# Fifty ways to break an output: each takes a right one and a random generator, and returns another array


def _put(values, where, what):
    broken = values.copy()
    broken[where] = what(broken[where]) if callable(what) else what
    return broken


def _garbage(values, rng):
    """As many other values of the same type, far from these."""
    noise = rng.permutation(values.ravel())
    if values.dtype == bool:
        return ~values
    return np.where(noise.reshape(values.shape) == values, other(values), noise.reshape(values.shape)) if values.size > 1 else other(values)


def other(values):
    """Values that these are not: half their range away for integers, five times as large for floats."""
    if values.dtype == bool:
        return ~values
    if values.dtype.kind == "f":
        return values * values.dtype.type(5) + values.dtype.type(1)
    return values ^ values.dtype.type(1 << (values.dtype.itemsize * 8 - 2))


def _one_more(values):
    return ~values if values.dtype == bool else values + values.dtype.type(1)


def _without_low_bits(values, type):
    if values.dtype.kind != "f":
        return _one_more(values)
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[values.dtype.itemsize]
    n = LOW_BITS[type] + 16 * (type == "bfloat16")
    return (values.view(bits) >> bits(n) << bits(n)).view(values.dtype)


def _sign(values):
    return ~values if values.dtype == bool else (0 - values).astype(values.dtype)


def _stuck(values, kind):
    """One value that a type can't be trusted with: not a number, infinity; for integers its ends."""
    if values.dtype == bool:
        return ~values
    if values.dtype.kind == "f":
        return np.full_like(values, {"nan": np.nan, "inf": np.inf, "minus_inf": -np.inf}[kind])
    ends = np.iinfo(values.dtype)
    return np.where(values == ends.max, ends.min, ends.max).astype(values.dtype)


def ways():
    """{name: function(right, type, rng) that returns it broken}: fifty."""
    c, y, x = (slice(None),) * 3

    def at(*where):
        return lambda v, t, g: _put(v, where, lambda part: _garbage(part, g))

    found = {
        "first row": at(c, 0),
        "last row": at(c, -1),
        "a row in the middle": at(c, 41),
        "first column": at(c, y, 0),
        "last column": at(c, y, -1),
        "a column in the middle": at(c, y, 77),
        "last row of one channel": at(1, -1),
        "last column of one channel": at(0, y, -1),
        "half a row": at(1, 30, slice(0, 80)),
        "one channel": at(2),
        "every 16th row": at(c, slice(15, None, TILE)),
        "every 16th column": at(c, y, slice(0, None, TILE)),
        "one tile": at(0, slice(32, 48), slice(64, 80)),
        "the last tile": at(c, slice(-TILE, None), slice(-TILE, None)),
        "corner of a tile": at(0, slice(32, 36), slice(64, 68)),
        "last vector of a row": at(0, 50, slice(-VECTOR, None)),
        "last vector of every row": at(c, y, slice(-VECTOR, None)),
        "first vector of every row": at(c, y, slice(0, VECTOR)),
        "a vector": at(1, 20, slice(40, 48)),
        "four points in a row": at(1, 20, slice(40, 44)),
        "four points in a column": at(1, slice(40, 44), 20),
        "half the picture": at(c, slice(48, None)),
        "all points": at(c),
        "one point in a hundred": lambda v, t, g: np.where(g.random(v.shape) < 0.01, other(v), v),
        "odd points": at(c, y, slice(1, None, 2)),
        "one row, off by one": lambda v, t, g: _put(v, (c, 41), _one_more if v.dtype.kind != "f" else other),
        "off by one everywhere": lambda v, t, g: _one_more(v),
        "off by one in the last vector of a row": lambda v, t, g: _put(v, (1, 9, slice(-VECTOR, None)), _one_more),
        "off by one at a border": lambda v, t, g: _put(v, (c, y, -1), _one_more),
        "inverted": lambda v, t, g: ~v if v.dtype.kind != "f" else (1 - v).astype(v.dtype),
        "shifted by a column": lambda v, t, g: np.roll(v, 1, 2),
        "shifted by a row": lambda v, t, g: np.roll(v, 1, 1),
        "wrapped round by a vector": lambda v, t, g: np.roll(v, VECTOR, 2),
        "channels swapped": lambda v, t, g: v[[1, 0, 2]],
        "channels rotated": lambda v, t, g: np.roll(v, 1, 0),
        "rows reversed": lambda v, t, g: v[:, ::-1],
        "columns reversed": lambda v, t, g: v[:, :, ::-1],
        "transposed within": lambda v, t, g: np.ascontiguousarray(v.transpose(0, 2, 1)).reshape(v.shape),
        "transposed": lambda v, t, g: v.transpose(0, 2, 1),
        "a scanline repeated": lambda v, t, g: _put(v, (c, 51), v[:, 50]),
        "a tile repeated": lambda v, t, g: _put(v, (c, slice(32, 48)), v[:, 16:32]),
        "stale buffer": lambda v, t, g: g.permutation(v.ravel()).reshape(v.shape),
        "never written": lambda v, t, g: (
            np.frombuffer(b"\xa5" * v.nbytes, v.dtype).reshape(v.shape) if v.dtype != bool else np.ones_like(v)
        ),
        "zeros": lambda v, t, g: np.zeros_like(v),
        "clamped at the median": lambda v, t, g: np.minimum(v, np.sort(v.ravel())[v.size // 2]) if v.dtype != bool else v & False,
        "last bits lost": lambda v, t, g: _without_low_bits(v, t),
        "sign lost": lambda v, t, g: _sign(v),
        "cut short": lambda v, t, g: v[:, :, :-1],
        "NaN or an end of the type, three in a row": lambda v, t, g: _put(v, (0, 7, slice(3, 6)), lambda part: _stuck(part, "nan")),
        "infinity or an end of the type, last column": lambda v, t, g: _put(v, (c, y, -1), lambda part: _stuck(part, "inf")),
    }
    return found


def right_output(type, rng):
    """Something like a picture in a type: smooth, with noise, as numpy holds it (bfloat16 in float32)."""
    channels, rows, columns = np.indices(SHAPE)
    smooth = 0.5 + 0.25 * np.sin(rows / 9 + channels) * np.cos(columns / 13) + 0.2 * rng.random(SHAPE)
    if type == "bool":
        return smooth > 0.5
    if type == "bfloat16":
        return (smooth.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    if type.startswith("float"):
        return smooth.astype(type)
    ends = np.iinfo(type)
    return (smooth * min(ends.max, 2**62) * 0.9).astype(type) - np.array(ends.max // 4 if ends.min else 0, type)


def count_wrong():
    """Rows of the table: [(way, type, verdict of mismatch)], each way with the next type, as of each kind of program."""
    rows = []
    for i, (way, breaks) in enumerate(ways().items()):
        type = TYPES[i % len(TYPES)]
        rng = np.random.default_rng(i)
        right = right_output(type, rng)
        broken = np.ascontiguousarray(breaks(right, type, rng))
        assert broken.shape != right.shape or not np.array_equal(broken, right, equal_nan=right.dtype.kind == "f"), f"{way} breaks nothing"
        float_type = type if "float" in type else "float32"
        verdicts = [
            mismatch([broken], [right], [Comparison(float_type, *decides)]) for decides in ((False, False), (True, False), (True, True))
        ]
        rows.append((way, type, min(verdicts, key=len)))
    return rows


# Right outputs


def run_reference(spec):
    """(name of its schedule, outputs) of a program's reference, the first that can be had."""
    for name, schedule in reference_schedules().items():
        try:
            pipeline = spec.build()
            schedule(pipeline, spec)
            return name, Program(pipeline, spec, is_reference=True).results_of_two_runs(spec.seed)
        except (hl.HalideError, ValueError, MemoryError):
            continue
    return None


def verdict(proposal, spec, reference):
    """What `mismatch` says of a schedule's outputs."""
    pipeline = spec.build()
    proposal.apply(pipeline, spec)
    return Program(pipeline, spec).mismatch(spec.seed, reference)


def proposals(spec, n):
    """The first `n` ways to schedule a program, those of other autoschedulers among them."""
    drawn = [Proposal.draw(spec.seed, k) for k in range(n)]
    return [drawn[0], *map(OtherAutoscheduler, OTHERS), *drawn[1:]][:n]


def check_right(specs, config):
    """[(program, its reference's schedule, schedules compared, those called wrong: [what was said], those that gave no output)]."""
    rows = []
    for k, spec in enumerate(specs):
        wanted = (k + 1) * config.schedules // len(specs) - k * config.schedules // len(specs)
        with ProcessPool(1, context=SPAWN, initializer=prepare_worker) as processes:
            try:
                found = processes.schedule(run_reference, args=(spec,), timeout=config.seconds).result()
            except (TimeoutError, ProcessExpired):
                found = None
            said, failed = [], 0
            # As many again where a proposal gives no schedule, or the same.
            for proposal in proposals(spec, 3 * wanted) if found else []:
                if len(said) == wanted:
                    break
                try:
                    said.append(processes.schedule(verdict, args=(proposal, spec, found[1]), timeout=config.seconds).result())
                except (TimeoutError, ProcessExpired, hl.HalideError, ValueError, RuntimeError, MemoryError):
                    failed += 1
        rows.append((spec.name, found[0] if found else "none", len(said), [text for text in said if text], failed))
        print(*rows[-1], flush=True)
    return rows


def main():
    config = load_config(WrongConfig)
    began = time.monotonic()
    broken = count_wrong()
    called_wrong = sum(bool(text) for _, _, text in broken)
    for way, type, text in broken:
        print(f"{way} ({type}): {text or 'taken for right'}")
    print(f"{called_wrong} of {len(broken)} wrong outputs called wrong", flush=True)
    try:
        specs = [spec for file in common.chosen_files(config.applications).values() for spec in find_programs(file)]
    except ValueError as error:
        raise UserError(str(error)) from None
    specs += [ProgramSpec(f"random_{n:06d}", n) for n in range(config.random_programs)]
    rows = check_right(specs, config)
    compared, wrongly = sum(n for _, _, n, _, _ in rows), [(name, text) for name, _, _, said, _ in rows for text in said]
    for name, text in wrongly:
        print(f"{name}: called wrong: {text}")
    summary = [
        ["wrong outputs called wrong", f"{called_wrong} of {len(broken)}"],
        ["right outputs called wrong", f"{len(wrongly)} of {compared}"],
        ["of those, outputs that differ from run to run, and so are wrong", str(sum(RACE in text for _, text in wrongly))],
        ["programs with a reference", f"{sum(reference != 'none' for _, reference, *_ in rows)} of {len(rows)}"],
    ]
    facts = {
        "taken_for_right": [[way, type] for way, type, text in broken if not text],
        "called_wrong": wrongly,
        "programs": [dict(zip(("program", "reference", "compared", "called_wrong", "failed"), row)) for row in rows],
        "minutes": round((time.monotonic() - began) / 60, 1), "cores": os.cpu_count(),
    }  # fmt: skip
    common.write("wrong_outputs", ["outputs", "count"], summary, facts)


if __name__ == "__main__":
    run_script(main)
