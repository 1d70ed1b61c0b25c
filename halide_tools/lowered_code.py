"""What a schedule really does, counted in the code Halide lowers it to, without compiling or running it.

Adams2019 works its features out for one representative tile. Bounds inference then asks for boxes that may be larger, for whole vectors,
for what is recomputed where tiles overlap; loops are unrolled and split where boundaries allow simpler bodies. All that stands in the
lowered code, and with it what the features do not tell: which loads are of whole vectors, and which gather point by point.
`count_text` translates it to a Python program that runs two iterations of each loop, weighs them by how often they would run, and counts
what every stage loads, computes, stores and allocates. lowered_features tells what a processor makes of that, and puts both together.
"""

import math
import re
import tempfile
from collections import Counter
from pathlib import Path

import halide as hl
import numpy as np

from features import LOWERED
from halide_tools.programs import CALL_PATTERNS, Region, estimated_arguments, functions

NAME = re.compile(r"(?<![\w.$\"])[A-Za-z_][\w.$]*")
NUMBER = re.compile(r"(?<![\w.$])(\d+\.\d+)f?\b")
WHOLE, NON_INTEGER = re.compile(r"\bu?int\d+\("), re.compile(r"\bb?float\d+\(")  # casts of scalars, as functions
CAST = re.compile(r"\((?:u?int|float|bfloat)\d+(?:x\d+)?\)")
ELSEWHERE = re.compile("load_typed_struct_member|_halide_buffer_get|make_struct")  # a task's copies, and what is known of buffers
STAGE = re.compile(r"(.+?)\.s(\d+)\.")  # how the names of a stage's loops begin
LOAD = re.compile(r"(?<![\w.$])([A-Za-z_][\w.$]*)\[")
OPERATION = re.compile(
    r"[*/%]| [+-] |[<>]=?|[=!]=|&&|\|\||\b(?:u?int|float)\d+(?:x\d+)?\(|\b(?:min|max|select|absd?|(?:saturating|rounding|widening|widen|halving)_\w+)\("
)
DIVISION = re.compile(r"[/%]")
CAST_TO = re.compile(r"\b(?:u?int|float)\d+(?:x\d+)?\(|saturating_cast\(")
SLICE = re.compile(r"\bslice_vectors\([^()]*, (\d+)\)")
SHUFFLE = re.compile(r"\b(?:slice_vectors|interleave_vectors|concat_vectors|extract_element|mux)\(")
LOADED = re.compile(r"\bloaded(\d+)\b")  # what a load has been replaced by, with its lanes
PATTERNS = {"points_divided": DIVISION, "points_cast": CAST_TO, "points_shuffled": SHUFFLE}
PATTERNS |= {f"points_{kind}": re.compile(CALL_PATTERNS[kind]) for kind in ("sin_cos", "library", "exp", "log", "pow", "sqrt")}
MAX_ITERATIONS = (
    300_000  # run, of all loops together: two of each, so 2^n in n loops inside each other; the largest application takes 34,000
)
L1_BYTES, L2_BYTES = 2**15, 2**20  # a buffer that is larger is taken to lie beyond that cache


class NonInteger(float):
    """A number of the lowered code that is no integer: `/` is translated to `//`, which divides integers there."""

    def __floordiv__(self, other):
        return NonInteger(float(self) / other)

    def __rfloordiv__(self, other):
        return NonInteger(other / float(self))


# What is called in the lowered code, and in its translation to Python.
FUNCTIONS = {
    "min": min, "max": max, "abs": abs, "select": lambda condition, a, b: a if condition else b, "whole": int, "real": NonInteger,
    "ceil_f32": math.ceil, "ceil_f64": math.ceil, "floor_f32": math.floor, "floor_f64": math.floor,
}  # fmt: skip
KEPT = {*FUNCTIONS, "let", "and", "or", "not", "lambda"}


def _keeps_real(name):
    return lambda self, other: NonInteger(getattr(float, name)(self, other))


for _name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"):
    setattr(NonInteger, _name, _keeps_real(_name))


# Text


def arguments(text, start):
    """The arguments, separated by commas, of what was opened just before text[start], and where it is closed."""
    found, depth, begin = [], 0, start
    for i in range(start, len(text)):
        if text[i] in "([":
            depth += 1
        elif text[i] in ")]":
            if not depth:
                return [*found, text[begin:i].strip()], i
            depth -= 1
        elif text[i] == "," and not depth:
            found.append(text[begin:i].strip())
            begin = i + 1
    return [*found, text[begin:].strip()], len(text)


def lanes(text, vectors=None):
    """Lanes of the vector that an expression is, 1 for a scalar; `vectors` : {name: lanes} of those named in it."""
    most = max(map(int, LOADED.findall(text)), default=1)
    if vectors:
        most = max(most, *(vectors.get(name, 1) for name in NAME.findall(text)), 1)
    for found in re.finditer(r"\b(?:ramp|x(\d+))\(", text):
        inner = arguments(text, found.end())[0]
        most = max(most, int(found[1] or inner[2]) * lanes(inner[0]))
    return most


def without_lets(text):
    """`let a = x in y`, wherever it stands, as a call: let("a", x, lambda: y)."""
    while lets := list(re.finditer(r"(?<![\w.$])let ([\w.$]+) = ", text)):
        last = lets[-1]  # holds no other
        value, rest = text[last.end() :].split(" in ", 1)
        body = arguments(rest, 0)[0][0]
        text = f'{text[: last.start()]}let("{last[1]}", {value}, lambda: {body}){rest[len(body) :]}'
    return text


def to_python(expression):
    """A scalar expression of the lowered code in Python: "None" where it can't be one."""
    text = WHOLE.sub("whole(", NON_INTEGER.sub("real(", CAST.sub("", without_lets(expression))))
    text = NUMBER.sub(r"real(\1)", text)
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or ").replace("/", "//"))
    text = NAME.sub(lambda name: name[0] if name[0] in KEPT else f"variables[{name[0]!r}]", text)
    try:
        compile(text.strip(), "lowered", "eval")
    except SyntaxError:
        return "None"
    return text.strip()


def count_value(text, vectors, is_address):
    """({kind in LOWERED, or ("loaded", buffer): number} of what it takes to compute an expression once, its lanes).

    vectors : {name: lanes} of those named in it. is_address : whether it is one of the scalars that the code names, addresses mostly.
    """
    counts = Counter()
    while loads := list(LOAD.finditer(text)):
        last = loads[-1]  # holds no other
        index, end = arguments(text, last.end())
        n = lanes(", ".join(index), vectors)
        loaded = f"loaded{n}"
        ramp = re.fullmatch(r"ramp\((.*)\)(?: aligned\(.*\))?", index[0])
        steps = arguments(ramp[1], 0)[0] if ramp else []
        counts["loaded", last[1]] += n
        if n == 1:
            counts["scalar_loads"] += 1
        elif len(steps) == 3 and lanes(steps[0], vectors) == 1:
            is_dense = steps[1] in ("1", "-1")
            counts["vector_loads" if is_dense else "strided_loads"] += 1
            counts["points_loaded" if is_dense else "points_strided"] += n
        else:
            counts["points_gathered"] += n
            loaded += f"({', '.join(index)})"  # which is computed in vectors, too
        text = f"{text[: last.start()]}{loaded}{text[end + 1 :]}"
    while found := SLICE.search(text):  # of what is loaded, often a few lanes only
        counts["points_shuffled"] += int(found[1])
        text = f"{text[: found.start()]}loaded{found[1]}{text[found.end() :]}"
    widest = lanes(text, vectors)
    n_operations = len(OPERATION.findall(text))
    if widest > 1:
        counts["vector_operations"] += n_operations
        counts["points_operated_on"] += n_operations * widest
    elif is_address and not counts:
        counts["address_operations"] += n_operations
    else:
        counts["scalar_operations"] += n_operations
    if not is_address or widest > 1:
        for kind, pattern in PATTERNS.items():
            counts[kind] += len(pattern.findall(text)) * widest
    return counts, widest


# Code


def translate(lowered):
    """(a Python program that calls the methods of an Execution as the lowered code would run, [(stages, counts)] of its statements).

    A stage is (name of its Func, number: 0 for the pure one); each statement has those that it stands in, innermost first. The program says
    `run(i)` where statement i is executed.
    """
    lines, statements, blocks, vectors = [], [], [], {}

    def emit(text):
        lines.append("    " * len(blocks) + text)

    def note(counts):
        if not any(counts.values()):
            return
        statements.append(([stage for stage in reversed(blocks) if stage], counts))
        emit(f"run({len(statements) - 1})")

    def stage_of(loop_name):
        found = STAGE.match(loop_name)
        return (found[1], int(found[2])) if found else None

    for line in map(str.strip, lowered.splitlines()):
        opened, is_loop = None, False
        if line.startswith("}"):
            blocks.pop()
        if found := re.match(r"\w+ func (\S+) \((.*)\) \{", line):
            loop_name = found[2].split(", ")[1] if found[2].startswith("__user_context") else ""
            opened, is_loop = stage_of(loop_name), bool(loop_name)
            emit(f"@task({found[1]!r}, {loop_name!r})")
            emit("def _():")
        elif found := re.match(r"for \((\S+), (.*)\) \{", line):
            (start, extent), _ = arguments(found[2], 0)
            opened, is_loop = stage_of(found[1]), True
            emit(f"for _ in loop({found[1]!r}, lambda: {to_python(start)}, lambda: {to_python(extent)}):")
        elif found := re.match(r"(?:\} else )?if \((.*)\) \{", line):
            emit(f"{'elif' if line.startswith('}') else 'if'} may_hold(lambda: {to_python(found[1])}):")
        elif line == "} else {":
            emit("else:")
        elif found := re.match(r"produce (\S+) \{", line):
            opened = found[1], 0
            emit("if True:")
        elif line.endswith("{"):
            emit("if True:")
        elif found := re.match(r"let \S+ = halide_do_par_for\(.*?::([\w$.]+), ", line):
            start, extent, *_ = arguments(line, found.end())[0]
            emit(f"run_task({found[1]!r}, lambda: {to_python(start)}, lambda: {to_python(extent)})")
        elif found := re.match(r"let (\S+) = (.*)", line):
            if not ELSEWHERE.search(found[2]):
                counts, n = count_value(found[2], vectors, True)
                if n > 1:
                    vectors[found[1]] = n
                emit(f"assign({found[1]!r}, lambda: {to_python(found[2])})")
                note(counts)
        elif found := re.match(r"allocate ([\w.$]+)\[[a-z]+(\d+)(?:x(\d+))? \* (.*?)\]", line):
            emit(
                f"allocate({found[1]!r}, {max(int(found[2]) // 8, 1) * int(found[3] or 1)}, lambda: {to_python(found[4])}, {'in Stack' in line})"
            )
        elif found := re.match(r"([A-Za-z_][\w.$]*)\[", line):
            index, end = arguments(line, found.end())
            if " = " in line[end:]:
                counts, _ = count_value(line[end:].split(" = ", 1)[1], vectors, False)
                n = lanes(", ".join(index), vectors)
                is_dense = n == 1 or re.fullmatch(r"ramp\(.*, 1, \d+\)(?: aligned\(.*\))?", index[0])
                note(counts | {"stores": 1, "points_stored" if is_dense else "points_scattered": n, ("stored", found[1]): n})
        if line.endswith("{"):
            blocks.append(opened)
            emit("pass")
            if is_loop:
                note({"iterations": 1})
    return "\n".join(lines), statements


class TooLong(Exception):
    """More iterations to run than anybody would wait for."""


class Execution:
    """Runs a translation. A loop runs its middle iteration, which stands for all but the last, and the last."""

    def __init__(self, values, n_statements):
        self.variables, self.weight, self.tasks, self.iterations = dict(values), 1, {}, 0
        self.runs, self.allocated, self.all_known = np.zeros(n_statements), {}, True

    def value(self, function):
        """None where it depends on what is in a buffer."""
        try:
            return function()
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return None

    def assign(self, name, function):
        self.variables[name] = self.value(function)

    def let(self, name, value, function):
        self.variables[name] = value
        return function()

    def may_hold(self, function):
        known = self.value(function)
        return known is None or bool(known)

    def loop(self, name, start, extent):
        first, n, outer = self.value(start) or 0, self.value(extent), self.weight
        if n is None:
            self.all_known, n = False, 1
        for index, weight in [((n - 1) // 2, n - 1), (n - 1, 1)] if n > 1 else [(0, 1)] if n == 1 else []:
            self.iterations += 1
            if self.iterations > MAX_ITERATIONS:
                raise TooLong
            self.variables[name], self.weight = first + index, outer * weight
            yield
        self.weight = outer

    def task(self, name, loop_name):
        """Decorates the body of a parallel loop over `loop_name`."""
        return lambda body: self.tasks.__setitem__(name, (loop_name, body))

    def run_task(self, name, start, extent):
        loop_name, body = self.tasks[name]
        for _ in self.loop(loop_name, start, extent):
            body()

    def run(self, statement):
        self.runs[statement] += self.weight

    def allocate(self, name, itemsize, size, on_stack):
        n = self.value(size)
        self.all_known &= n is not None
        total = self.allocated.setdefault(name, [0, 0, itemsize, on_stack])
        total[0] += self.weight
        total[1] += self.weight * (n or 0) * itemsize


def lower(pipeline, target):
    """The text of a scheduled pipeline's lowered code. Raises hl.HalideError as compiling does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lowered.stmt")
        pipeline.compile_to_lowered_stmt(str(path), pipeline.infer_arguments(), hl.StmtOutputFormat.Text, target)
        return path.read_text()


def stages_of(pipeline):
    """[(name of its Func, number: 0 for the pure one)] of the stages, in the order of a featurization."""
    return [(func.name(), i) for func in functions(pipeline) for i in range(func.num_update_definitions(), -1, -1)]


def count_text(lowered, name, values, sizes, stages):
    """What the text says, (T, K): a row for each of `stages`, a column for each of features.LOWERED; those of EXECUTED are 0.

    name : of the function; values, sizes : as of known_values. None where they can't be told.
    """
    try:
        program, statements = translate(lowered)
        execution = Execution(values, len(statements))
        methods = {
            method: getattr(execution, method) for method in ("assign", "let", "may_hold", "loop", "task", "run_task", "run", "allocate")
        }
        exec(compile(program, name, "exec"), {"variables": execution.variables, **FUNCTIONS, **methods})
        execution.tasks[name][1]()
    except (SyntaxError, RecursionError, TooLong, AttributeError, LookupError, NameError, ValueError):
        return None  # nested deeper than Python allows, or written as no code seen so far: the schedule is worth keeping all the same
    return by_stage(stages, statements, execution, sizes) if execution.all_known else None


def known_values(pipeline, names):
    """What the lowered code's arguments, of these names, tell it: ({name in the code: number}, {name: (bytes a point, bytes in all)})."""
    values, sizes = {}, {}
    inputs, outputs = estimated_arguments(pipeline)
    for name, given in zip(names, [*inputs, *outputs]):
        if not isinstance(given, Region):
            values[name] = NonInteger(given) if isinstance(given, float) else given
            continue
        stride = 1
        for i, (minimum, extent) in enumerate(given.bounds):
            values |= {f"{name}.min.{i}": minimum, f"{name}.extent.{i}": extent, f"{name}.stride.{i}": stride}
            stride *= extent
        sizes[name] = given.dtype.itemsize, stride * given.dtype.itemsize
    return values, sizes


def owners_of(around, read, stages):
    """Which of `stages` each statement is charged to, None for none: the innermost that it stands in.

    What is computed of an input stands in none: it belongs to who reads it first. around : of each statement the stages that it stands
    in, innermost first; read : the buffers that it loads from.
    """
    known, readers = set(stages), {}
    owners = [next((stage for stage in of_one if stage in known), None) for of_one in around]
    for owner, buffers in zip(owners, read):
        for buffer in buffers if owner else ():
            readers.setdefault(buffer, owner)
    return [owner or (readers.get(of_one[0][0]) if of_one else None) for owner, of_one in zip(owners, around)]


def by_stage(stages, statements, execution, sizes):
    """What an Execution has counted, (T, K); `sizes` as known_values gives them, of what is not allocated here."""
    totals, sizes = {stage: Counter() for stage in stages}, dict(sizes)
    for name, (n, n_bytes, itemsize, on_stack) in execution.allocated.items():
        sizes[name] = itemsize, n_bytes / max(n, 1)
        stage = (name, 0) if (name, 0) in totals else (name.rpartition(".")[0], 0)  # `f.1` is a part of a Tuple's Func
        if stage in totals:
            totals[stage] += Counter(
                dict(zip(("stack_allocations", "stack_bytes") if on_stack else ("allocations", "bytes_allocated"), (n, n_bytes)))
            )
    read = [{kind[1] for kind in counts if kind[0] == "loaded"} for _, counts in statements]
    owners = owners_of([around for around, _ in statements], read, stages)
    for (_, counts), stage, n in zip(statements, owners, execution.runs):
        if not stage or not n:
            continue
        total = totals[stage]
        total["statements"] += "iterations" not in counts
        for kind, number in counts.items():
            if isinstance(kind, str):
                total[kind] += n * number
            else:
                way, name = kind
                itemsize, n_bytes = sizes.get(name, (4, 0))
                moved = n * number * itemsize
                total[f"bytes_{way}"] += moved
                total[f"bytes_{way}_beyond_l1"] += moved * (n_bytes > L1_BYTES)
                total[f"bytes_{way}_beyond_l2"] += moved * (n_bytes > L2_BYTES)
    return np.array([[total[kind] for kind in LOWERED] for total in totals.values()], np.float64)


def as_dict(counts):
    """{kind: [count of each stage]} of what lowered_features.count_lowered returns, in four digits, kinds that don't occur left out.

    That is what lies beside a dump.
    """
    whole = np.round(counts).astype(np.int64)
    last_digit = 10 ** np.maximum(np.floor(np.log10(np.maximum(whole, 1))).astype(np.int64) - 3, 0)
    rounded = np.round(whole / last_digit).astype(np.int64) * last_digit
    return {kind: column.tolist() for kind, column in zip(LOWERED, rounded.T) if column.any()}
