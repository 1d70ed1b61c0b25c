"""Expressions of Halide's lowered code, parsed: their types, the operations they take, the addresses they load from.

`parse_expression` reads the text that Halide's IRPrinter writes. A Value carries its element type, its scalar (or first lane) as Python
source, and for each load below it the latency in cycles from the loaded value to this one.
"""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

# A name, number, string or operator.
TOKEN = re.compile(r'[^\W\d][\w.$]*(?:::[\w.$]+)*|\d+(?:\.\d+(?:e[+-]?\d+)?[fh]?)?|"(?:[^"\\]|\\.)*"|&&|\|\||[=!<>]=|<<|>>|\S')
NAME = re.compile(r"[^\W\d]")  # how a name begins
TYPE = re.compile(r"(u?int|b?float)(\d+)(?:x(\d+))?")
BROADCAST = re.compile(r"x(\d+)")
PRECEDENCE = {
    "||": 1, "&&": 2, "|": 3, "^": 3, "&": 3, "==": 4, "!=": 4, "<": 5, "<=": 5, ">": 5, ">=": 5, "<<": 6, ">>": 6,
    "+": 7, "-": 7, "*": 8, "/": 8, "%": 8,
}  # fmt: skip
COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
PYTHON = {"||": " or ", "&&": " and ", "/": "//"}

# Latency in cycles of an operation, and its cost in slots of a vector unit. Rough figures that Zen 3, Zen 4 and Skylake share
# (uops.info, Fog's tables); what they weigh in milliseconds is fitted.
FLOAT_LATENCY, INTEGER_LATENCY, MULTIPLY_LATENCY, DIVIDE_LATENCY = 4, 1, 4, 13
# Functions that Halide computes in vectors: simple operations that they take, and their latency in cycles.
FUNCTION_OPERATIONS = {"exp": 14, "log": 18, "pow": 40, "fast_exp": 12, "fast_log": 14, "fast_pow": 30}
FUNCTION_LATENCY = {"exp": 45, "log": 50, "pow": 100, "fast_exp": 40, "fast_log": 40, "fast_pow": 80}
LOAD_LATENCY = 5
LIBRARY_LATENCY = 60  # of a call of the C library, which is one for each lane
MAX_PYTHON = 200  # characters of what a `let` names, up to which it is written out wherever it is used
SHUFFLES = {"slice_vectors", "interleave_vectors", "concat_vectors", "extract_element", "mux"}
FREE = {"likely", "likely_if_innermost", "promise_clamped", "unsafe_promise_clamped", "reinterpret", "strict_float"}


class Type(NamedTuple):
    """Of an element: `code` is "f", "i", "u" or "b" (bool); how many bits, how many lanes."""

    code: str
    bits: int
    lanes: int


INDEX = Type("i", 32, 1)


@dataclass(slots=True)
class Load:
    """A load of `lanes` elements of `bits` bits: at element `address` (Python source, None where it depends on what is in a buffer) and on.

    dims : [(stride, lanes)] in elements, innermost first; None where lanes lie anywhere. is_gather : loaded point by point.
    active : Python source for the number of lanes that a predicate lets through, UNKNOWN where that can't be told; None without one.
    """

    buffer: str
    address: str | None
    dims: list | None
    is_gather: bool
    lanes: int
    bits: int
    active: str | None = None


@dataclass(slots=True)
class Value:
    """A (part of an) expression: `python` as in Load.address, `loads` [[index of a load, cycles from there to here]]."""

    type: Type
    python: str | None = None
    dims: list | None = field(default_factory=list)
    is_affine: bool = True
    is_product: bool = False
    loads: list = field(default_factory=list)
    active: str | None = None  # of a comparison between a ramp and a scalar: in how many lanes it holds

    def __post_init__(self):
        if self.type.lanes == 1:
            self.dims, self.is_affine = [], True

    @property
    def is_scattered(self):
        """Of an index: whether its lanes lie anywhere."""
        return not self.is_affine or self.dims is None

    def shortened(self):
        """The same to be used several times: nested so, what is as long as its parts together would grow without bound."""
        cycles = {}
        for load, latency in self.loads:
            cycles[load] = max(cycles.get(load, 0), latency)
        dims = None if self.dims is None or any(len(stride) > MAX_PYTHON for stride, _ in self.dims) else self.dims
        return dataclasses.replace(self, dims=dims, loads=[[load, latency] for load, latency in cycles.items()])


UNKNOWN = "None"  # Python source of a value that can't be told


class NotUnderstood(Exception):
    """Text that is no expression as IRPrinter writes them."""


def parse_type(text):
    found = TYPE.fullmatch(text)
    if not found:
        return None
    code, bits = "f" if found[1].endswith("float") else found[1][0], int(found[2])
    return Type("b" if bits == 1 else code, bits, int(found[3] or 1))


class Parser:
    """Parses one statement; `counts` {kind: native vectors or scalars} of operations, and `found`, its Loads in order.

    named : [(name, Python source)] of what has to be known by these names, in this order, before what was parsed is evaluated.

    names : {name: Value} of what `let` has named before and is no plain index. buffers : {name: Type of its elements}.
    """

    def __init__(self, text, names, buffers, vector_bits):
        self.tokens = [*TOKEN.findall(text), ""]
        self.at, self.names, self.buffers, self.vector_bits = 0, names, buffers, vector_bits
        self.counts, self.found, self.named = Counter(), [], []

    def take(self, wanted):
        if self.tokens[self.at] != wanted:
            raise NotUnderstood(f"{wanted!r} expected, {self.tokens[self.at]!r} found")
        self.at += 1

    def count(self, kind, type, n=1):
        """`n` operations on all lanes of `type`."""
        if type.lanes > 1:
            self.counts[f"vector_{kind}"] += n * max(type.lanes * max(type.bits, 8) / self.vector_bits, 0.125)
        elif type != INDEX or kind not in ("simple", "multiply", "cast"):
            self.counts[f"scalar_{kind}"] += n
        else:
            self.counts["scalar_index"] += 1

    def expression(self, least=0):
        left = self.unary()
        while (precedence := PRECEDENCE.get(self.tokens[self.at], 0)) > least:
            operator = self.tokens[self.at]
            self.at += 1
            left = self.binary(operator, left, self.expression(precedence))
        return left

    def unary(self):
        token = self.tokens[self.at]
        if token == "!":
            self.at += 1
            value = self.unary()
            return Value(value.type, value.python and f"(not {value.python})", value.dims, False, False, value.loads)
        if token == "-":
            self.at += 1
            value = self.unary()
            return Value(value.type, value.python and f"(-{value.python})", value.dims, False, False, value.loads)
        return self.primary()

    def primary(self):
        token = self.tokens[self.at]
        self.at += 1
        if token[:1].isdigit():
            if "." in token:
                code = Type("f", 32 if token.endswith("f") else 16 if token.endswith("h") else 64, 1)
                return Value(code, f"real({token.rstrip('fh')})")
            return Value(INDEX, token)
        if token == "(":
            type = parse_type(self.tokens[self.at])
            if type and self.tokens[self.at + 1] == ")":
                self.at += 2
                return self.annotated(type)
            value = self.expression()
            self.take(")")
            return value
        if not NAME.match(token):
            raise NotUnderstood(f"unexpected {token!r}")
        if token == "let":
            return self.let()
        following = self.tokens[self.at]
        if following == "(":
            self.at += 1
            return self.call(token, None)
        if following == "[":
            self.at += 1
            return self.load(token)
        if token in self.names:
            return self.names[token]
        return Value(INDEX, f"variables[{token!r}]")

    def annotated(self, type):
        """What follows `(type)`: a constant or a call that is of that type."""
        token = self.tokens[self.at]
        if NAME.match(token) and self.tokens[self.at + 1] == "(":
            self.at += 2
            return self.call(token, type)
        value = self.unary()
        return Value(type, value.python, value.dims, value.is_affine, False, value.loads)

    def let(self):
        name = self.tokens[self.at]
        self.at += 1
        self.take("=")
        value = self.expression()
        self.take("in")
        if value.python is not None and len(value.python) > MAX_PYTHON:
            self.named.append((name, value.python))
            value = dataclasses.replace(value, python=f"variables[{name!r}]")
        outer = self.names
        self.names = outer | {name: value.shortened()}
        body = self.expression()
        self.names = outer
        return body

    def arguments(self):
        values = []
        while self.tokens[self.at] != ")":
            values.append(self.expression())
            if self.tokens[self.at] == ",":
                self.at += 1
        self.at += 1
        return values

    def load(self, buffer):
        index = self.index()
        active = None
        if self.tokens[self.at] == "if":  # of lanes that may lie outside
            self.at += 1
            active = self.expression().active or UNKNOWN
        element = self.buffers.get(buffer) or INDEX
        lanes = index.type.lanes
        self.found.append(Load(buffer, index.python, index.dims, index.is_scattered, lanes, element.bits, active))
        loads = [[len(self.found) - 1, 0], *self.later(index.loads, LOAD_LATENCY)]
        return Value(Type(element.code, element.bits, lanes), None, None, False, False, loads)

    def index(self):
        """What stands between brackets, with its alignment."""
        index = self.expression()
        if self.tokens[self.at] == "aligned":
            self.at += 2
            self.arguments()
        self.take("]")
        return index

    def later(self, loads, cycles):
        return [[load, latency + cycles] for load, latency in loads]

    def binary(self, operator, left, right):
        lanes = max(left.type.lanes, right.type.lanes)
        wider = left.type if left.type.lanes >= right.type.lanes else right.type
        type = Type(wider.code, wider.bits, lanes)
        python = None
        if left.python is not None and right.python is not None:
            python = f"({left.python}{PYTHON.get(operator, operator)}{right.python})"
        loads = left.loads + right.loads
        is_float = type.code == "f"
        if operator in COMPARISONS or operator in ("&&", "||"):
            self.count("simple", type)
            known = operator in ("<", "<=") and left.python and right.python and right.dims == [] and left.dims and len(left.dims) == 1
            active = f"max(min({right.python}-{left.python}+{operator == '<='},{lanes}),0)" if known and left.dims[0][0] == "1" else None
            return Value(Type("b", 1, lanes), python, None, False, False, self.later(loads, INTEGER_LATENCY) if loads else [], active)
        if operator in "+-":
            fused = is_float and (left.is_product or right.is_product)
            if fused:  # a multiplication and this are one instruction, whose latency the product's operands have already
                product, other = (left, right) if left.is_product else (right, left)
                loads = product.loads + self.later(other.loads, FLOAT_LATENCY)
            else:
                self.count("simple", type)
                loads = self.later(loads, FLOAT_LATENCY if is_float else INTEGER_LATENCY) if loads else []
            dims, is_affine = self.sum_dims(left, right)
            return Value(type, python, dims, is_affine, False, loads)
        if operator == "*":
            self.count("multiply", type)
            dims, is_affine = self.scaled_dims(left, right)
            return Value(type, python, dims, is_affine, is_float, self.later(loads, MULTIPLY_LATENCY) if loads else [])
        is_shift = not is_float and right.python is not None and _is_power_of_two(right.python)
        self.count("simple" if is_shift else "divide", type)
        cycles = INTEGER_LATENCY if is_shift else DIVIDE_LATENCY
        return Value(type, python, None, False, False, self.later(loads, cycles))

    def sum_dims(self, left, right):
        if not left.dims or not right.dims:
            known = left.dims is not None and right.dims is not None
            return (left.dims or right.dims) if known else None, left.is_affine and right.is_affine and known
        if [n for _, n in left.dims] == [n for _, n in right.dims]:
            return [(f"({a}+{b})", n) for (a, n), (b, _) in zip(left.dims, right.dims)], left.is_affine and right.is_affine
        return None, False

    def scaled_dims(self, left, right):
        if not left.dims and not right.dims:
            return ([], True) if left.dims is not None and right.dims is not None else (None, False)
        vector, factor = (left, right) if left.dims else (right, left)
        if factor.dims or factor.python is None or vector.dims is None:
            return None, False
        return [(f"({stride}*{factor.python})", n) for stride, n in vector.dims], vector.is_affine and factor.is_affine

    def call(self, name, annotation):
        if found := BROADCAST.fullmatch(name):
            (value,) = self.arguments()
            n = int(found[1])
            dims = value.dims if value.type.lanes == 1 else [*(value.dims or []), ("0", n)] if value.dims is not None else None
            return Value(value.type._replace(lanes=n * value.type.lanes), value.python, dims, value.is_affine, False, value.loads)
        if name == "ramp":
            base, stride, n = self.arguments()
            n = int(n.python)
            known = base.dims is not None and stride.python is not None  # wherever the first lane lies
            dims = [*base.dims, (stride.python, n)] if known else None
            return Value(base.type._replace(lanes=n * base.type.lanes), base.python, dims, base.is_affine and known, False, base.loads)
        if type := parse_type(name):
            (value,) = self.arguments()
            return self.cast(type, value)
        values = self.arguments()
        loads = [load for value in values for load in value.loads]
        type = annotation or max((value.type for value in values), key=lambda type: type.lanes, default=INDEX)
        if annotation and annotation.lanes == 1 and values:
            type = annotation
        if name in ("min", "max", "select", "abs", "absd"):
            return self.simple_call(name, type, values, loads)
        if name in FREE and values:
            value = values[0]
            return Value(annotation or value.type, value.python, value.dims, value.is_affine, False, value.loads)
        if name in SHUFFLES:
            return self.shuffle(name, values, loads)
        stem = re.sub(r"_f\d+$|_(?:u?int)\d+$", "", name)
        if stem in FUNCTION_OPERATIONS:
            self.count("function", type, FUNCTION_OPERATIONS[stem])
            return Value(type, None, None, False, False, self.later(loads, FUNCTION_LATENCY[stem]))
        if stem in ("sqrt", "fast_inverse_sqrt", "fast_inverse"):
            self.count("divide", type)
            return Value(type, None, None, False, False, self.later(loads, DIVIDE_LATENCY))
        if stem in ("floor", "ceil", "round", "trunc"):
            self.count("simple", type)
            known = type.lanes == 1 and len(values) == 1 and values[0].python and stem in ("floor", "ceil")
            return Value(type, f"{stem}_f32({values[0].python})" if known else None, None, False, False, self.later(loads, FLOAT_LATENCY))
        if name.startswith("vector_reduce"):
            self.count("simple", max((value.type for value in values), key=lambda type: type.lanes))
            return Value(type, None, None, False, False, self.later(loads, 3 * FLOAT_LATENCY))
        if stem != name:
            self.counts["scalar_library"] += type.lanes
            return Value(type, None, None, False, False, self.later(loads, LIBRARY_LATENCY))
        # widening, saturating, shifting and the like: an instruction or two, at the width of the wider type
        operand = max((value.type for value in values), key=lambda type: type.lanes * type.bits, default=type)
        kind = "multiply" if "mul" in name else "cast" if "cast" in name else "simple"
        self.count(kind, max(type, operand, key=lambda type: type.lanes * type.bits))
        python = None
        if type.lanes == 1 and all(value.python is not None for value in values):
            if name == "saturating_sub":
                python = f"({values[0].python}-{values[1].python})"
            elif name == "saturating_cast" and type.code in "iu":
                low = -(2 ** (type.bits - 1)) if type.code == "i" else 0
                python = f"max(min({values[0].python},{low + 2**type.bits - 1}),{low})"
        return Value(type, python, None, False, False, self.later(loads, MULTIPLY_LATENCY if "mul" in name else INTEGER_LATENCY))

    def simple_call(self, name, type, values, loads):
        if name == "select":
            type = max((value.type for value in values[1:]), key=lambda type: type.lanes)
            type = type._replace(lanes=max(type.lanes, values[0].type.lanes))
        self.count("simple", type)
        python = None
        if all(value.python is not None for value in values):
            between, function = ("-", "abs") if name == "absd" else (", ", name)
            python = f"{function}({between.join(value.python for value in values)})"
        dims = next((value.dims for value in values if value.dims), [] if type.lanes == 1 else None)
        return Value(type, python, dims, False, False, self.later(loads, FLOAT_LATENCY // 2 if type.code == "f" else INTEGER_LATENCY))

    def cast(self, type, value):
        same = type.bits == value.type.bits and type.code in "iu" and value.type.code in "iu"
        if not same:
            wider = type if type.bits > value.type.bits else type._replace(bits=value.type.bits, lanes=value.type.lanes)
            self.count("cast", wider)
        python = value.python
        if python is not None and (type.code == "f") != (value.type.code == "f"):
            python = f"real({python})" if type.code == "f" else f"whole({python})"
        cycles = 0 if same else FLOAT_LATENCY if "f" in (type.code, value.type.code) else INTEGER_LATENCY
        return Value(type, python, value.dims, value.is_affine, False, self.later(value.loads, cycles))

    def shuffle(self, name, values, loads):
        type = values[0].type
        if name == "slice_vectors":
            n = int(values[-1].python or 1)
        elif name == "extract_element":
            n = 1
        else:
            n = sum(value.type.lanes for value in values) if name != "mux" else type.lanes
        type = type._replace(lanes=n)
        self.count("shuffle", type)
        return Value(type, None, None, False, False, self.later(loads, 2 * INTEGER_LATENCY))


def _is_power_of_two(text):
    return text.isdigit() and not int(text) & (int(text) - 1)
