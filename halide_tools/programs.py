"""Programs: Halide pipelines of a user's file or drawn at random, what their stages are, and what their estimates say."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import math
import os
import re
import shlex
import sys
import tempfile
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import halide as hl
import numpy as np
from halide import _generator_helpers

from config import usable_cores
from features import CALLS
from halide_tools import cpp_generators
from halide_tools.autoschedulers import Proposal, autoscheduler_params
from halide_tools.buffers import all_funcs, complete_estimates, definitions, estimated_arguments, lowered_text
from pipelines import random_programs

ROOT = Path(__file__).resolve().parent.parent

# How features.CALLS look in the text of a definition. For the first two Halide calls the C library on a CPU, a lane at a time; the others
# it computes in vectors. Division by a constant that is a power of two is a shift; division by a value can't be told from that of floats.
CALL_PATTERNS = {
    "sin_cos": r"\b(?:sin|cos)_f\d+\(",
    "library": r"\b(?:(?:a(?:sin|cos|tan)h?|(?:sin|cos|tan)h|tan|atan2)_f\d+|(?:exp|log|pow)_f64)\(",
    **{name: rf"\b{name}_f(?:16|32)\(" for name in ("exp", "log", "pow")},
    "sqrt": r"\bsqrt_f\d+\(",
    "int_division": r"% ?\((?!u?int\d)|[/%] ?(?:\(u?int\d+\))?(?!(?:" + "|".join(str(2**i) for i in range(31)) + r")\b)\d+(?![\d.])",
}


# Pipelines

# What a schedule consists of. `bound` and `align_bounds` are left out: they promise what the program is called with.
DIRECTIVES = {
    hl.Func: """align_extent align_storage allow_race_conditions always_partition always_partition_all async_ atomic bound_extent
        bound_storage clone_in compute_at compute_inline compute_root compute_with copy_to_device copy_to_host fold_storage fuse gpu
        gpu_blocks gpu_lanes gpu_single_thread gpu_threads gpu_tile hexagon hoist_storage hoist_storage_root in_ memoize never_partition
        never_partition_all parallel partition prefetch reorder reorder_storage ring_buffer serial specialize specialize_fail split
        store_at store_in store_root tile trace_loads trace_realizations trace_stores unroll vectorize""".split(),
    hl.Stage: """allow_race_conditions always_partition always_partition_all atomic compute_with fuse gpu gpu_blocks gpu_lanes
        gpu_single_thread gpu_threads gpu_tile hexagon never_partition never_partition_all parallel partition prefetch rename reorder
        rfactor serial specialize specialize_fail split tile unroll unscheduled vectorize""".split(),
    hl.ImageParam: ["in_", "trace_loads"],
}  # fmt: skip
CPP_KEYWORDS = set(
    """alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const const_cast constexpr
    continue decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto if
    inline int long main mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register
    reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq""".split()
)
LONGEST_NAME = 200  # bytes of a program's name: file systems take 255, and suffixes come behind it
BUILTIN_TYPES = {f"{kind}{bits}": make(bits) for kind, make in (("int", hl.Int), ("uint", hl.UInt)) for bits in (8, 16, 32, 64)} | {
    "bool": hl.Bool(), "float16": hl.Float(16), "float32": hl.Float(32), "float64": hl.Float(64), "bfloat16": hl.BFloat(16),
}  # fmt: skip


@functools.cache
def default_threads():
    """Threads of a program that asks for no number: HL_NUM_THREADS where Halide's runtime would take it, else all usable cores.

    As in Halide's runtime (src/runtime/thread_pool_common.h), the variable's older name counts where the newer is not set.
    """
    asked = os.environ.get("HL_NUM_THREADS", os.environ.get("HL_NUMTHREADS", ""))
    return int(asked) if asked.isdecimal() and int(asked) else usable_cores()


@dataclass(frozen=True)
class ProgramSpec:
    """How to build a program afresh in any process: a random program by its seed, or a Generator (or build()) in a file.

    params : ((name, text), ...) of GeneratorParams and open types; target : Halide's text; n_threads : 0 is default_threads();
    inputs : ((name, "FILE.npy", a number or "LOW:HIGH" as text), ...), contents of inputs of which the program says nothing.
    """

    name: str
    seed: int
    path: str = ""
    generator: str = ""
    max_stages: int = 25
    params: tuple = ()
    target: str = "host"
    n_threads: int = 0
    inputs: tuple = ()

    @property
    def threads(self):
        """Threads that the program is scheduled for and runs with."""
        return self.n_threads or default_threads()

    @property
    def c_name(self):
        """The name as a C identifier, for files and functions."""
        name = re.sub(r"[^A-Za-z0-9_]+", "_", self.name)
        return f"{name}_" if name in CPP_KEYWORDS else f"program_{name}" if not re.match("[A-Za-z_]", name) else name

    def halide_target(self):
        return hl.Target(self.target)

    def build(self):
        """The hl.Pipeline without any schedule: `using_autoscheduler()` is true in a Generator, and scheduling directives do nothing."""
        if not self.path:
            return random_programs.build(self.seed, self.max_stages)[0]
        return self.build_with_arguments()[0]

    def build_with_arguments(self):
        """(hl.Pipeline, the hl.Arguments of its function in C: all inputs that the Generator declares, in order, used or not).

        build() declares nothing: its inputs are those that the pipeline uses, by name.
        """
        if not self.path:
            pipeline = self.build()
            return pipeline, pipeline.infer_arguments()
        if cpp_generators.is_binary(self.path):
            return cpp_generators.build(self.path, self.generator, self.params, self.target, self.inputs)
        with directives(ignored=True):
            return self._build(autoscheduler_params("Adams2019", self.threads))

    def build_hand_scheduled(self):
        """The hl.Pipeline with the schedule that its author wrote, or None where there is none."""
        if not self.path:
            return None
        if cpp_generators.is_binary(self.path):
            return cpp_generators.build_hand_scheduled(self.path, self.generator, self.params, self.target, self.inputs)
        with directives(ignored=False) as seen:
            pipeline, _ = self._build(hl.AutoschedulerParams())
        return pipeline if seen else None

    def has_hand_schedule(self):
        """Whether its author wrote a schedule, be it one that can't be built: whoever measures it will say why."""
        try:
            return self.build_hand_scheduled() is not None
        except (Exception, SystemExit):  # whatever a user's Generator may raise
            return True

    def _build(self, params):
        with as_script(self.path), recorded(hl.Buffer, hl.ImageParam, hl.Param) as made:
            module, generators = load_module(self.path)
            if self.generator:
                with hl.GeneratorContext(self.halide_target(), params):
                    generator = generators[self.generator]()
                    for name, text in self.params:
                        generator._set_generatorparam_value(name, _param_value(generator, name, text))
                    pipeline = generator._build_pipeline()
                declared = [generator._get_input_parameter(name) for name in generator._inputs_dict]
            else:
                pipeline = module.build()
                if not isinstance(pipeline, hl.Pipeline):
                    raise ValueError(f"build() returns {type(pipeline).__name__}, not an hl.Pipeline")
        _kept_alive[pipeline] = [thing for thing in made if isinstance(thing, hl.Buffer)]
        complete_estimates(pipeline, [p.parameter() for p in made if not isinstance(p, hl.Buffer)], self.inputs)
        return pipeline, [p._to_argument() for p in declared] if self.generator else pipeline.infer_arguments()

    def identity(self):
        """A short hash of what measurements belong to: algorithm, sizes, parameters, target, threads and contents of inputs.

        The algorithm is the code that its definitions lower to, names normalised: it holds bounds of reductions and predicates, which
        their text does not.
        """
        pipeline = self.build()
        digest = hashlib.sha256("\n".join(_algorithm_text(pipeline)).encode())
        for argument in pipeline.infer_arguments():
            estimates = argument.argument_estimates
            digest.update(
                f"{argument.name} {argument.type} {argument.dimensions} {estimates.scalar_estimate} {estimates.scalar_def}".encode()
            )
            digest.update(str([(str(r.min), str(r.extent)) for r in estimates.buffer_estimates]).encode())
        for buffer in (buffer for func in pipeline.outputs() for buffer in func.output_buffers()):
            p = buffer.parameter()
            digest.update(
                str([(str(p.min_constraint_estimate(i)), str(p.extent_constraint_estimate(i))) for i in range(p.dimensions())]).encode()
            )
        digest.update(repr((self.params, str(self.halide_target()), self.threads)).encode())
        for name, value in self.inputs:
            digest.update(name.encode() + (Path(value).read_bytes() if value.endswith(".npy") else value.encode()))
        return digest.hexdigest()[:16]


HOST = ProgramSpec("", 0)  # target and threads of what is no program of anybody's: this machine's


# Tables that a program makes while it is built: the pipeline refers to their memory, which Python would free.
_kept_alive = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def recorded(*classes):
    """While it is open, objects of these classes are kept in the list that it gives, as they are made."""
    made, originals = [], {cls: cls.__init__ for cls in classes}

    def recording(original):
        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            made.append(self)

        return init

    for cls, original in originals.items():
        cls.__init__ = recording(original)
    try:
        yield made
    finally:
        for cls, original in originals.items():
            cls.__init__ = original


def _param_value(generator, name, text):
    """A parameter's text as Halide takes it: Halide's bindings read any text as a true bool, and not every element type."""
    default = generator._gp_dict[name]._value if name in generator._gp_dict else None
    if name.endswith(".type") or isinstance(default, hl.Type):
        unknown = [t for t in text.split(",") if t not in BUILTIN_TYPES]
        if unknown:
            raise ValueError(f"{name}={text}: {unknown[0]!r} is no element type; there are {', '.join(BUILTIN_TYPES)}")
        return [BUILTIN_TYPES[t] for t in text.split(",")]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"{name}={text}: give true or false")
        return text.lower() in ("true", "1")
    return text


class _Ignored:
    """What a directive that makes another Func returns where directives are ignored: takes any directive, and has the Func's arguments."""

    def __init__(self, original):
        self.original = original

    def __getattr__(self, name):
        if name not in DIRECTIVES[hl.Func] and hasattr(self.original, name):
            return getattr(self.original, name)
        return lambda *args, **kwargs: self


@contextlib.contextmanager
def directives(ignored):
    """While it is open, scheduling directives are noted in the list it gives; with `ignored` they do nothing else."""
    seen, originals = [], {(cls, name): getattr(cls, name) for cls, names in DIRECTIVES.items() for name in names}

    def noting(name, original):
        def directive(self, *args, **kwargs):
            seen.append(name)
            if not ignored:
                return original(self, *args, **kwargs)
            return _Ignored(self) if name in ("in_", "clone_in", "rfactor") else self

        return directive

    for (cls, name), original in originals.items():
        setattr(cls, name, noting(name, original))
    try:
        yield seen
    finally:
        for (cls, name), original in originals.items():
            setattr(cls, name, original)


# Of the lowered code: bounds of reductions, their predicates, and what buffers and sizes must be.
ALGORITHM_LINE = re.compile(
    r"for \(\S+\.s\d+\.\w+\$[a-z]|if \((?!.*_halide_buffer)|assert\(.*(?:constraint_violated|unaligned|explicit_bounds|requirement)"
)


def _algorithm_text(pipeline):
    """Lines that say what a pipeline computes, the same whatever numbers Halide adds to names. Schedules `pipeline`."""
    inputs = {a.name for a in pipeline.infer_arguments()}
    lines = []
    for func in all_funcs(pipeline):
        arguments = ", ".join(var.name() for var in func.args()) if not func.is_extern() else func.extern_function_name()
        lines += [f"{func.name()}.s{i}({arguments}) = {text}" for i, text in enumerate(definitions(func))]
    schedule_everything_at_root(pipeline)
    target = hl.Target("x86-64-linux-no_bounds_query")
    lowered = lowered_text(pipeline, target).splitlines()
    lines += [line for line in map(str.strip, lowered) if ALGORITHM_LINE.match(line)]
    if any(line.startswith("buffer ") for line in lowered):  # a table in the program, whose contents only its code in C holds
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "algorithm")
            pipeline.compile_to_c(str(path), pipeline.infer_arguments(), "algorithm", target)
            lines += ["data " + "".join(data.split()) for data in re.findall(r"_data\[\d*\] = \{(.*?)\};", path.read_text(), re.S)]
    return without_numbers(lines, inputs)


WORD = re.compile(r"(?<![\w$])([^\W\d][\w$]*)")
NUMBERED = re.compile(r"(?!s\d+$)(?:[a-z]|lambda_)\d+(?:\$\w+)?|.*\$\d+(?:\$\w+)?")  # names as Halide makes them, or makes them differ


def without_numbers(lines, kept):
    """Sorted lines of code in which names no longer carry the numbers that Halide adds; `kept` are names to leave as they are.

    Names that are the same without number are told apart by the lines they stand in, as far as needed (colour refinement).
    """
    pieces = [WORD.split(line.strip()) for line in lines]  # names are every second piece
    words = {word for line in pieces for word in line[1::2]} - set(kept)

    def plain(word):
        return re.sub(r"^([a-z]|lambda_)\d+(?=\$|$)", r"\1", re.sub(r"\$\d+", "", word))

    numbered = {word for word in words if NUMBERED.fullmatch(word)}
    stems = {plain(word) for word in numbered}
    labels = {word: plain(word) for word in numbered | (words & stems)}
    alike = Counter(labels.values())
    found_in = {word: [line for line in pieces if word in line[1::2]] for word in labels if alike[labels[word]] > 1}

    def look(word, labels):
        seen = sorted("".join("@" if piece == word else labels.get(piece, piece) for piece in line) for line in found_in[word])
        return f"{plain(word)}_{hashlib.sha256(chr(10).join(seen).encode()).hexdigest()[:8]}"

    for _ in range(3):
        labels = labels | {word: look(word, labels) for word in found_in}
    return sorted("".join(labels.get(piece, piece) for piece in line) for line in pieces)


# Modules that the interpreter loads before it runs a file: what lies beside the file can't take their place.
LOADED_FIRST = {
    "abc",
    "codecs",
    "encodings",
    "genericpath",
    "io",
    "os",
    "posixpath",
    "site",
    "stat",
    "sys",
    "time",
    "builtins",
    "zipimport",
}
_user_modules = {}  # {folder: {name: module}} that files there have imported from beside them


@contextlib.contextmanager
def as_script(path):
    """While it is open, imports work as in `python PATH`: its folder comes first, and modules of this project are out of the way."""
    folder = Path(path).resolve().parent
    beside = {p.name.split(".")[0] for p in folder.iterdir() if p.is_dir() or p.suffix in (".py", ".so")} - LOADED_FIRST

    def is_hidden(name, module):
        origin = getattr(module, "__file__", None) or ""  # as text: there are hundreds of modules, and this is asked for each program built
        own = origin.startswith(f"{ROOT}{os.sep}") and f"{os.sep}.venv{os.sep}" not in origin
        return name != "__main__" and (name.partition(".")[0] in beside or own)

    hidden = {name: module for name, module in list(sys.modules.items()) if is_hidden(name, module)}
    paths, arguments = sys.path[:], sys.argv[:]
    for name in hidden:
        del sys.modules[name]
    others = set(sys.modules)
    sys.modules.update(_user_modules.get(folder, {}))
    sys.path[:] = [str(folder), *(p for p in paths if p and os.path.realpath(p) != str(ROOT))]
    sys.argv[:] = [str(path)]
    try:
        yield
    finally:
        theirs = {name: sys.modules[name] for name in sys.modules.keys() - others if is_hidden(name, sys.modules[name])}
        for name in theirs:
            del sys.modules[name]
        _user_modules[folder] = theirs
        sys.modules.update(hidden)
        sys.path[:], sys.argv[:] = paths, arguments


@functools.cache
def load_module(path):
    """(module, {name: Generator class}) of a Python file; call it inside as_script(path).

    Halide keeps one table of names a process and refuses a second Generator of the same name; here each file has its own.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    table = _generator_helpers._python_generators
    others = dict(table)
    table.clear()
    try:
        spec.loader.exec_module(module)
        return module, dict(table)
    finally:
        table.clear()
        table.update(others)


def find_programs(path, generator="", params="", target="host", n_threads=0, inputs="", checked=True):
    """The ProgramSpecs of a file: one for each Generator it registers, or for the one named; or one for its `build()`.

    params, inputs : as the flags take them, "NAME=VALUE NAME=VALUE". Where one program remains it is checked, too, unless `checked` is
    false. Raises ValueError, in one line: no such file, can't be imported, neither Generator nor build(), unknown generator, parameter or
    target, bad inputs, or a pipeline that can't be scheduled.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"{path}: no such file; give a Python file with Halide Generators or build(), or an executable made of C++ Generators"
        )
    options = {"params": _assignments("params", params), "target": check_target(target), "n_threads": n_threads}
    options["inputs"] = tuple(
        (name, str(Path(value).resolve()) if value.endswith(".npy") else value) for name, value in _assignments("inputs", inputs)
    )
    resolved = str(file.resolve())
    generators, builds = _generators_in(resolved, path)
    seed = int.from_bytes(file.stem.encode()[:3], "little")
    if not generators and not builds:
        raise ValueError(f"{path}: no @hl.generator class and no build() in it; add one of them")
    names = sorted(generators)
    if generator:
        # A Generator without a name is registered as MODULE.CLASS here, and as CLASS by Halide's own command line.
        names = [name for name in names if generator in (name, name.removeprefix(f"{file.stem}."))]
        if not names:
            there = f"there are {', '.join(sorted(generators))}" if generators else "it has a build() instead"
            raise ValueError(f"{path}: --generator {generator!r} is not in it; {there}")
    for name in names:
        if "/" in name or name in (".", "..") or len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"{path}: {name[:40]!r} can't be the name of a folder, where its measurements go; rename the Generator")
    if (params or inputs) and len(names) > 1:
        raise ValueError(f"{path}: --params and --inputs belong to one Generator; give --generator, one of {', '.join(names)}")
    if params and not names:
        raise ValueError(f"{path}: --params sets parameters of a Generator; this file has a build() instead")
    specs = [ProgramSpec(name, seed, resolved, name, **options) for name in names]
    specs = specs or [ProgramSpec(file.stem, seed, resolved, **options)]
    if len(specs) == 1 and checked:
        check(specs[0])
    return specs


def variants(spec, n):
    """Up to `n` ProgramSpecs of a Generator in Python, their GeneratorParams drawn from its VARIANTS, {name: (value, ...)}; [spec] where it
    has none. The n-th is the same whatever else is asked for."""
    values = {}
    if spec.generator and not cpp_generators.is_binary(spec.path):
        with as_script(spec.path):
            values = getattr(load_module(spec.path)[1][spec.generator], "VARIANTS", values)
    if not values:
        return [spec]
    order = np.random.default_rng(list(spec.generator.encode())).permutation(math.prod(map(len, values.values())))
    drawn = [np.unravel_index(number, [len(choices) for choices in values.values()]) for number in order[:n]]
    params = [tuple((name, str(values[name][at])) for name, at in zip(values, place)) for place in drawn]
    return [dataclasses.replace(spec, name=f"{spec.name}_{i:02d}", params=own) for i, own in enumerate(params)]


def _generators_in(resolved, path):
    """(Names of the Generators, whether there is a build()) of a Python file or an executable."""
    if cpp_generators.is_binary(resolved):
        return cpp_generators.list_generators(path), False
    try:
        with as_script(resolved), directives(ignored=False):
            module, generators = load_module(resolved)
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        hint = "; give a file beside the package that imports it" if "relative import" in str(error) else ""
        raise ValueError(f"{path}: can't be imported: {_in_words(error)}{hint}") from error
    return generators, hasattr(module, "build")


def _assignments(flag, text):
    """((name, value), ...) of "NAME=VALUE NAME=VALUE"; quotes keep spaces together."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--{flag} {text!r}: {error}") from None
    pairs = tuple(tuple(word.split("=", 1)) for word in words)
    for word, pair in zip(words, pairs):
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"--{flag}: {word!r} is not of the form NAME=VALUE")
        if sum(pair[0] == name for name, _ in pairs) > 1:
            raise ValueError(f"--{flag}: {pair[0]} is given twice")
    return pairs


def check_target(text):
    """`text` if it names a target whose code this machine runs. Raises ValueError, in one line."""
    try:
        target = hl.Target(text)
    except hl.HalideError:
        raise ValueError(f"--target {text!r}: not a target of Halide's ; give host, or one like x86-64-linux-avx2-fma") from None
    host = hl.get_host_target()
    if (target.arch, target.bits, target.os) != (host.arch, host.bits, host.os):
        raise ValueError(f"--target {text!r}: code for it does not run on this machine ({host})")
    if target.has_gpu_feature():
        raise ValueError(f"--target {text!r}: schedules for GPUs are not measured; leave its GPU feature out")
    return text


def _in_words(error):
    """An exception in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit) or text.startswith("Generator failed"):
        return "it exits when it is imported; put hl.main() and the like under `if __name__ == '__main__':`"
    return text.removeprefix("Error: ") if isinstance(error, hl.HalideError) else f"{type(error).__name__}: {text}"


def check(spec):
    """Raises ValueError, in one line, where a program can't be built, scheduled or called as it is."""
    try:
        pipeline, arguments = spec.build_with_arguments()
        names = [argument.name for argument in arguments]
        for name in (name for name, _ in spec.inputs if name not in names):
            raise ValueError(f"--inputs: {name} is no input of this program; it has {', '.join(names) or 'none'}")
        extern = [func.name() for func in functions(pipeline) if func.is_extern()]
        estimated_arguments(pipeline, spec.inputs)
        if extern:
            try:
                Proposal(sigma=0.0, dropout=100, beam_size=1, seed=0).apply(pipeline, spec)
            except hl.HalideError as error:
                raise ValueError(
                    f"Adams2019 can't schedule it: {_in_words(error)} ({extern[0].partition('$')[0]} is an extern stage)"
                ) from None
    except Exception as error:  # whatever a user's Generator may raise
        raise ValueError(f"{spec.path}: {spec.name}: {error if type(error) is ValueError else _in_words(error)}") from None


def functions(pipeline):
    """The pipeline's Funcs from output to inputs, without those that only name an input: the order of a featurization."""
    found = all_funcs(pipeline)
    names = {func.name() for func in found}
    return [func for func in reversed(found) if not _is_input(func, names)]


def _is_input(func, names):
    """Whether Adams2019 takes a Func for an input of the pipeline: it is what is in a buffer, at the same place (Function::is_wrapper)."""
    if func.has_update_definition() or func.is_extern() or len(func.values()) != 1:
        return False
    found = re.fullmatch(r"<halide.Expr of type \w+: (?:\(\w+\))?([^\s()]+)\((.*)\)>", str(func.values()[0]))
    return bool(found) and found[1] not in names and found[2] == ", ".join(var.name() for var in func.args())


def describe_stages(pipeline):
    """What a featurization leaves out: {"stages", "edges", "calls"}.

    stages : names in featurization order (a Func's last update first); edges : [from, to] between Funcs; calls : {kind: [calls a point
    of each stage]} for the kinds in features.CALLS.
    """
    funcs = functions(pipeline)
    names = {f.name() for f in funcs}
    stages, edges, calls = [], [], {kind: [] for kind in CALLS}
    for func in funcs:
        texts = definitions(func)
        stages += [*(f"{func.name()}.update({i})" for i in reversed(range(len(texts) - 1))), func.name()]
        for kind, pattern in CALL_PATTERNS.items():
            calls[kind] += [len(re.findall(pattern, text)) for text in reversed(texts)]
        called = set(re.findall(r"([\w$.]+)\(", " ".join(texts))) & names
        edges += [[producer, func.name()] for producer in sorted(called - {func.name()})]
    return {"stages": stages, "edges": edges, "calls": calls}


# References


def schedule_everything_at_root(pipeline):
    """Every Func computed in full before its readers. Slow, but it compiles where a Func is not larger than memory."""
    for func in functions(pipeline):
        func.compute_root()


def reference_schedules():
    """{name: function(pipeline, spec)} that schedule a program for its reference in place, in the order in which to try them.

    "root" : every Func stored in full. "inlined" : Halide's default, for programs with Funcs too large to store. "adams2019" : its own
    choice, where neither can be had: it is then compared with others like it.
    """
    return {
        "root": lambda pipeline, spec: schedule_everything_at_root(pipeline),
        "inlined": lambda pipeline, spec: None,
        "adams2019": lambda pipeline, spec: Proposal(sigma=0.0, dropout=100, beam_size=1, seed=0).apply(pipeline, spec),
    }
