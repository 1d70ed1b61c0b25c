"""What a point of each function takes that Halide's features don't tell apart: why features.CALLS are the kinds they are.

    python benchmarks/call_costs.py

Each is computed of 16,384 floats in vectors of 16 on one core. Writes benchmarks/results/call_costs.md and .json.
"""

import sys
from pathlib import Path

import halide as hl
import numpy as np
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

from config import Config, load_config, run_script

SIZE = 16384
f32, i32 = hl.f32, hl.i32
FUNCTIONS = {
    "copy": lambda v: v, "abs": hl.abs, "sqrt": lambda v: hl.sqrt(hl.abs(v)), "exp": hl.exp, "log": lambda v: hl.log(v + f32(0.1)),
    "pow": lambda v: hl.pow(v, f32(0.45)), "sin": hl.sin, "cos": hl.cos, "tan": hl.tan, "tanh": hl.tanh, "atan": hl.atan, "asin": hl.asin,
    "atan2": lambda v: hl.atan2(v, f32(0.3)), "integer / 8": lambda v: f32(i32(v * f32(100)) / 8), "integer / 7": lambda v: f32(i32(v * f32(100)) / 7),
}  # fmt: skip


class CostsConfig(Config):
    rounds: int = Field(200, ge=1, description="times that each function is run")


def runner(name, function):
    x, image = hl.Var("x"), hl.ImageParam(hl.Float(32), 1, "image")
    func, result = hl.Func(f"of_{name.split()[0]}"), hl.Buffer(np.zeros(SIZE, np.float32))
    func[x] = function(image[x])
    func.vectorize(x, 16)
    image.set(hl.Buffer(np.random.default_rng(0).random(SIZE, dtype=np.float32)))
    return lambda: func.realize(result)


def main():
    config = load_config(CostsConfig)
    seconds = common.take_turns({name: runner(name, function) for name, function in FUNCTIONS.items()}, config.rounds)
    rows = [[name, common.spread(values / SIZE * 1e9)] for name, values in seconds.items()]
    common.write("call_costs", ["function", "nanoseconds a point"], rows)


if __name__ == "__main__":
    run_script(main)
