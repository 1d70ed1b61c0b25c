"""Programs: Halide pipelines of a user's file or drawn at random, what their stages are, and what their estimates say."""

import functools
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import halide as hl
import numpy as np
from halide import _generator_helpers

from features import CALLS
from halide_tools.autoschedulers import autoscheduler_params
from pipelines import random_programs

# How features.CALLS look in the text of a definition. For the first two Halide calls the C library on a CPU, a lane at a time; the others
# it computes in vectors. Division by a constant that is a power of two is a shift; what divides by a value can't be told from float division.
CALL_PATTERNS = {
    "sin_cos": r"\b(?:sin|cos)_f\d+\(",
    "library": r"\b(?:(?:a(?:sin|cos|tan)h?|(?:sin|cos|tan)h|tan|atan2)_f\d+|(?:exp|log|pow)_f64)\(",
    **{name: rf"\b{name}_f(?:16|32)\(" for name in ("exp", "log", "pow")},
    "sqrt": r"\bsqrt_f\d+\(",
    "int_division": r"% ?\((?!u?int\d)|[/%] ?(?:\(u?int\d+\))?(?!(?:" + "|".join(str(2**i) for i in range(31)) + r")\b)\d+(?![\d.])",
}


# Pipelines


@dataclass(frozen=True)
class ProgramSpec:
    """How to build a program afresh in any process: a random program by its seed, or a Generator (or build()) in a file."""

    name: str
    seed: int
    path: str = ""
    generator: str = ""
    max_stages: int = 25

    def build(self):
        """The unscheduled hl.Pipeline; `using_autoscheduler()` is true in a Generator, which so leaves out its own schedule."""
        if not self.path:
            return random_programs.build(self.seed, self.max_stages)[0]
        return self.build_with_arguments()[0]

    def build_with_arguments(self):
        """(hl.Pipeline, its hl.Arguments in the order in which the Generator declares them), for a program in a file."""
        module, generators = load_module(self.path)
        if not self.generator:
            pipeline = module.build()
            return pipeline, pipeline.infer_arguments()
        with hl.GeneratorContext(hl.get_host_target(), autoscheduler_params()):
            generator = generators[self.generator]()
            pipeline = generator._build_pipeline()
        declared = list(generator._input_parameters)
        return pipeline, sorted(pipeline.infer_arguments(), key=lambda argument: declared.index(argument.name))


@functools.cache
def load_module(path):
    """(module, {name: Generator class}) of a Python file.

    Halide keeps one table of names a process and refuses a second Generator of the same name; here each file has its own.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    table = _generator_helpers._python_generators
    others = dict(table)
    table.clear()
    try:
        spec.loader.exec_module(module)
        return module, dict(table)
    finally:
        table.clear()
        table.update(others)


def programs_in(path):
    """The ProgramSpecs of a file: one for each Generator it registers, or one for its `build()`.

    Raises ValueError, in one line, where the file holds neither or can't be imported.
    """
    try:
        module, generators = load_module(str(Path(path).resolve()))
    except Exception as error:  # whatever a user's file may raise
        raise ValueError(f"{path}: can't be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error
    names = sorted(generators)
    stem = Path(path).stem
    seed = int.from_bytes(stem.encode()[:3], "little")
    if not names and not hasattr(module, "build"):
        raise ValueError(f"{path}: no @hl.generator class and no build() in it; add one of them")
    return [ProgramSpec(name, seed, str(Path(path).resolve()), name) for name in names] or [
        ProgramSpec(stem, seed, str(Path(path).resolve()))
    ]


def functions(pipeline):
    """The pipeline's Funcs from output to inputs, without the wrappers of its input images: the order of a featurization."""
    inputs = {a.name for a in pipeline.infer_arguments()}
    found, index = [], 0
    while True:
        try:
            func = pipeline.get_func(index)
        except (hl.HalideError, IndexError):
            break
        index += 1
        if re.sub(r"_im(\$\d+)?$", "", func.name()) not in inputs:
            found.append(func)
    return found[::-1]


def describe_stages(pipeline):
    """What a featurization leaves out: {"stages", "edges", "calls"}.

    stages : names in featurization order (a Func's last update first); edges : [from, to] between Funcs; calls : {kind: [calls a point
    of each stage]} for the kinds in features.CALLS.
    """
    funcs = functions(pipeline)
    names = {f.name() for f in funcs}
    stages, edges, calls = [], [], {kind: [] for kind in CALLS}
    for func in funcs:
        updates = [(f"{func.name()}.update({i})", func.update_values(i), func.update_args(i)) for i in range(func.num_update_definitions())]
        texts = []
        for name, *parts in [*reversed(updates), (func.name(), func.values())]:
            texts.append(" ".join(map(str, parts)))
            stages.append(name)
            for kind, pattern in CALL_PATTERNS.items():
                calls[kind].append(len(re.findall(pattern, texts[-1])))
        called = set(re.findall(r"([\w$.]+)\(", " ".join(texts))) & names
        edges += [[producer, func.name()] for producer in sorted(called - {func.name()})]
    return {"stages": stages, "edges": edges, "calls": calls}


def schedule_everything_at_root(pipeline):
    """The schedule of the reference: every Func computed in full before its readers. Slow, but it always compiles."""
    for func in functions(pipeline):
        func.compute_root()


# Running


@dataclass(frozen=True)
class Region:
    """Of a buffer: its element type (np.dtype) and (minimum, extent) of each dimension, innermost first."""

    dtype: np.dtype
    bounds: list


def estimated_arguments(pipeline):
    """What a call of `pipeline` takes, as large as the estimates say: (inputs, outputs), a Region for each buffer, a number for each scalar.

    Raises ValueError, in one line, for a missing estimate.
    """
    inputs, outputs = [], []
    for argument in pipeline.infer_arguments():
        estimates = argument.argument_estimates
        if argument.dimensions:
            bounds = [(r.min, r.extent) for r in estimates.buffer_estimates]
            inputs.append(_region(argument.type, bounds, f"input {argument.name}"))
            continue
        value = estimates.scalar_estimate if estimates.scalar_estimate.defined() else estimates.scalar_def
        if not value.defined():
            raise ValueError(f"input {argument.name} has no estimate: call set_estimate on it")
        inputs.append(hl.evaluate(value))
    for func in pipeline.outputs():
        for buffer, type in zip(func.output_buffers(), func.types()):
            p = buffer.parameter()
            bounds = [(p.min_constraint_estimate(i), p.extent_constraint_estimate(i)) for i in range(p.dimensions())]
            outputs.append(_region(type, bounds, f"output {func.name()}"))
    return inputs, outputs


def _region(type, bounds, what):
    if not all(m.defined() and e.defined() for m, e in bounds):
        raise ValueError(f"{what} has no estimates: call set_estimates on it")
    return Region(np.array(hl.Buffer(type, [1]), copy=False).dtype, [(_constant(m), _constant(e)) for m, e in bounds])


def _constant(expression):
    """Its value; what isn't a plain number is compiled and run, which takes a tenth of a second."""
    number = re.fullmatch(r"<halide.Expr of type int32: (-?\d+)>", str(expression))
    return int(number[1]) if number else hl.evaluate(expression)
