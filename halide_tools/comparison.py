"""Is an output right? The comparison of a schedule's outputs with the reference's.

Integers are exact, unless the program rounds or compares floats: then a last bit may decide on a step, at few, scattered points. Floats
are near at their local scale. Which of these holds is read in the program's definitions, never in the data. Nothing excuses a whole row, a
border, a tile or a run of points.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects, label, maximum_filter

from halide_tools.buffers import all_funcs, definitions

AT_LEAST = 4  # points that any row, column or plane may hold
COMPANY = 3  # times as many in a row or a box where a decision upstream moves several points
# Relative to the largest value nearby. Schedules of one program add in other orders; what is rounded to a narrower type is far outside.
TOLERANCE = {"float16": 2**-8, "bfloat16": 2**-5, "float32": 1e-4, "float64": 1e-10}
EPSILON = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24, "float64": 2**-53}
NEARBY = 5  # points in each dimension that make the local scale
STEP_SHARE = 1e-3  # of points that may differ by a step where floats are rounded, and more the larger the values are beside their last bit
MOST_STEPS = 0.1  # the largest such share
FLIPPED_SHARE = 1e-3  # of points that may lie on the other side of a threshold
STEP_EPSILONS = 64  # last bits by which a float may differ before it is rounded
WINDOW, BOX = 16, 8  # points of a line, and points of a box in each dimension, in which too many together are no accident
FULL = 0.8  # of a box that is filled with differing points, which no stencil does
SIGMAS = 6  # by which a row, column or plane may hold more of the differing points than its share of all points
DECISIONS = {"cast", "round", "compare"}  # of what uses_of_floats finds
# What may make a program itself depend on its schedule.
DOUBTS = {
    "sum": "it sums or scans floats",
    "divide": "it divides floats or takes logarithms or powers, which may be ill-conditioned",
    "cast": "it casts floats to integers, which is undefined out of range",
}


@dataclass(frozen=True)
class Comparison:
    """How to compare one output.

    float_type : the narrowest float that it is computed with, "" for none. is_rounded : whether floats are cast to integers, rounded or
    compared on the way, so that a last bit may decide. is_spread : whether that happens in Funcs upstream, so that points around it differ
    together. doubt : what makes the program itself depend on its schedule, in words.
    """

    float_type: str = ""
    is_rounded: bool = False
    is_spread: bool = False
    doubt: str = ""


# What a definition's text says of the types in it


LEAF = re.compile(
    r"\(*?(?:\(((?:u?int|b?float)\d+|bool)\)|((?:u?int|b?float)\d+|bool)\(|select\(|(?:likely\w*|min|max|abs|lerp)\(|(-?\d[\w.]*)|([^\W\d][\w.$]*))"
)


def type_of(text, names):
    """Element type of an expression in Halide's text: that of its first leaf. `names` : {variable: type} of lets and scalars."""
    at = 0
    while found := LEAF.match(text, at):
        if found[1] or found[2]:
            return found[1] or found[2]
        if found[3]:
            return (
                "float64" if re.fullmatch(r"-?\d+\.\d+", found[3]) else "float32" if "." in found[3] or found[3].endswith("f") else "int32"
            )
        if found[4]:
            called = text[found.end() :].startswith("(")
            math_type = re.search(r"_f(16|32|64)$", found[4])
            return f"float{math_type[1]}" if called and math_type else "int32" if called else names.get(found[4], "int32")
        at = found.end()
        if found[0].endswith("select("):
            at += _first_argument(text, at) + 2
    return "int32"


def _first_argument(text, start):
    """Length of the first argument of a call whose parenthesis was opened just before text[start]."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "([":
            depth += 1
        elif text[i] in ")]":
            depth -= 1
        if depth < 0 or (text[i] == "," and not depth):
            return i - start
    return len(text) - start


def uses_of_floats(text, scalars):
    """What a definition does with floats that results may hinge on: of "cast" to integers, "round", "compare", "divide".

    text : of the definition; scalars : {name: type} of the pipeline's scalar inputs.
    """
    names, found = dict(scalars), set()
    for let in re.finditer(r"\(let ([\w.$]+) = ", text):
        names[let[1]] = type_of(text[let.end() :], names)
    for cast in re.finditer(r"(?<![\w.$])u?int\d+\(|\(u?int\d+\)saturating_cast\(", text):
        if "float" in type_of(text[cast.end() :], names):
            found.add("cast")
    if re.search(r"(?<![\w.$])(?:floor|ceil|trunc)_f\d+\(|\(b?float\d+\)(?:round|floor|ceil|trunc)\(", text):
        found.add("round")
    for operator in re.finditer(r" (?:<=?|>=?|==|!=) |(?<=[\w)])/(?=[^\W\d]|\()", text):
        if "float" in type_of(text[_left_operand(text, operator.start()) :], names):
            found.add("divide" if operator[0] == "/" else "compare")
    if re.search(r"\b(?:fast_inverse\w*|(?:log|pow|tan|acos|asin)_f\d+)\(", text):
        found.add("divide")
    return found


def _left_operand(text, end):
    """Where the left operand of the operator at text[end] begins: Halide prints nearly every operation in parentheses of its own."""
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += {")": 1, "]": 1, "(": -1, "[": -1}.get(text[i], 0)
        if depth < 0 or (not depth and text[i] in ",:"):
            return i + 1 + (text[i] in ",:")
    return 0


def comparisons(pipeline):
    """A Comparison for each output buffer of a pipeline, Tuples' parts in order."""
    funcs = {func.name(): func for func in all_funcs(pipeline)}
    texts = {name: definitions(func) for name, func in funcs.items()}
    arguments = {a.name: str(a.type) for a in pipeline.infer_arguments()}
    reads = {name: set(re.findall(r"([\w$.]+)\(", " ".join(text))) & funcs.keys() for name, text in texts.items()}
    found = []
    for output in pipeline.outputs():
        cone, open_names = set(), {output.name()}
        while open_names:
            name = open_names.pop()
            cone.add(name)
            open_names |= reads[name] - cone
        text = " ".join(part for name in sorted(cone) for part in texts[name])
        floats = [t for t in EPSILON if re.search(rf"\b{t}\b", text)]
        used_by = {name: set().union(*(uses_of_floats(part, arguments) for part in texts[name])) for name in cone}
        uses, deciding = set().union(*used_by.values()), {name for name in cone if used_by[name] & DECISIONS}
        if any(funcs[name].has_update_definition() and any("float" in str(t) for t in funcs[name].types()) for name in cone):
            uses.add("sum")
        doubt = "; ".join(words for use, words in DOUBTS.items() if use in uses)
        comparison = Comparison(floats[0] if floats else "", bool(deciding), bool(deciding - {output.name()}), doubt)
        found += [comparison] * len(output.types())
    return found


# The comparison


def mismatch(outputs, reference, how=None):
    """'' where `outputs` are the reference's, else one line: how many points differ, by how much and where.

    outputs, reference : arrays as numpy has them (the outermost dimension first). how : a Comparison for each, as of `comparisons`; where
    there are more outputs than Comparisons (of several runs), they are taken in turn. Without it integers are exact and floats near.
    """
    outputs, reference = list(outputs), list(reference)
    if len(outputs) != len(reference):
        return f"{len(outputs)} outputs, where the reference has {len(reference)}"
    for i, (got, want) in enumerate(zip(outputs, reference)):
        comparison = how[i % len(how)] if how else Comparison()
        number = i % len(how) if how else i
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"output {number} is {got.dtype} of {got.shape}, where the reference is {want.dtype} of {want.shape}"
        got, want = np.atleast_1d(got, want)
        wrong = _wrong_floats(got, want, comparison) if got.dtype.kind == "f" else _wrong_integers(got, want, comparison)
        if wrong is not None:
            return f"output {number} {_describe(got, want, wrong, comparison)}"
    return ""


def _wrong_integers(got, want, comparison):
    """Where integers differ, (...) bool, or None where that is allowed."""
    wrong = got != want
    if not wrong.any():
        return None
    if not comparison.is_rounded or got.dtype == bool:
        return wrong
    epsilon = STEP_EPSILONS * EPSILON[comparison.float_type or "float32"]
    magnitude = np.abs(want[wrong].astype(np.float64))
    share = min(MOST_STEPS, STEP_SHARE + epsilon * float(magnitude.max()))
    by_a_step, by_more = wrong.copy(), wrong.copy()
    by_more[wrong] = _difference(got[wrong], want[wrong]) > np.maximum(1, np.ceil(epsilon * magnitude))
    by_a_step &= ~by_more
    if not are_scattered(by_a_step, share, comparison.is_spread):
        return wrong
    if not by_more.any():
        return None
    # A threshold on a float, or integers computed from rounded ones: a few points, but nothing that no point of the reference could be.
    possible = (got[by_more] >= want.min()) & (got[by_more] <= want.max())
    return None if possible.all() and are_scattered(by_more, FLIPPED_SHARE, comparison.is_spread) and not _is_small(wrong) else wrong


def _wrong_floats(got, want, comparison):
    """As _wrong_integers."""
    name = comparison.float_type or str(want.dtype)
    name = min(name, str(want.dtype), key=list(EPSILON).index)  # the narrower
    with np.errstate(invalid="ignore", over="ignore"):
        wide = np.float64
        difference = np.abs(got.astype(wide) - want.astype(wide))
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        size = np.where(np.isfinite(want), np.abs(want.astype(wide)), 0.0)
        wrong = ~(same | (np.isfinite(got) & np.isfinite(want) & (difference <= TOLERANCE[name] * size)))
        if not wrong.any():
            return None
        scale = maximum_filter(size, NEARBY, mode="nearest") + EPSILON[name] / TOLERANCE[name] * size.max()
        wrong &= ~(np.isfinite(got) & np.isfinite(want) & (difference <= TOLERANCE[name] * scale))
    if not wrong.any():
        return None
    finite = want[np.isfinite(want)]
    are_numbers = np.isfinite(got[wrong]).all() and np.isfinite(want[wrong]).all()
    if not comparison.is_rounded or not are_numbers or _is_small(wrong):
        return wrong
    margin = TOLERANCE[name] * size.max()
    possible = (got[wrong] >= finite.min() - margin) & (got[wrong] <= finite.max() + margin)
    return None if possible.all() and are_scattered(wrong, FLIPPED_SHARE, comparison.is_spread) else wrong


def _difference(got, want):
    """Absolute difference of integers, which overflows in no type, as float64."""
    return (
        np.where(got > want, got - want, want - got).astype(np.float64)
        if got.dtype.kind == "u"
        else np.abs(got.astype(object) - want.astype(object)).astype(np.float64)
    )


def _is_small(wrong):
    """Whether an output has too few points to speak of shares of them."""
    return wrong.size * FLIPPED_SHARE < 1


def are_scattered(wrong, share, is_spread=False):
    """Whether points lie as chance would put them: few, no more in any row, column, plane or border than elsewhere, and not together.

    is_spread : whether points that lie together around one place count as one.
    """
    if np.count_nonzero(wrong) > max(1, share * wrong.size):
        return False
    if is_spread:
        wrong = _one_of_each_spot(wrong)
    n, count, company = wrong.size, int(np.count_nonzero(wrong)), COMPANY if is_spread else 1
    for axis in range(wrong.ndim if wrong.ndim > 1 else 0):
        counts = np.count_nonzero(wrong, axis=tuple(i for i in range(wrong.ndim) if i != axis))
        expected = count / len(counts)
        if counts.max() > expected + SIGMAS * math.sqrt(expected) + AT_LEAST * company:
            return False
    places = np.stack(np.nonzero(wrong))
    for axis in range(wrong.ndim):
        # As many within WINDOW points of a line as chance alone would put nowhere.
        apart = _too_many(n, WINDOW * count / n)
        others = [i for i in range(wrong.ndim) if i != axis]
        line = np.ravel_multi_index(places[others], [wrong.shape[i] for i in others]) if others else np.zeros(count, int)
        order = np.lexsort((places[axis], line))
        line, along = line[order], places[axis][order]
        if apart < count and np.any((line[apart:] == line[:-apart]) & (along[apart:] - along[:-apart] < WINDOW)):
            return False
    # The same in boxes, on two grids so that none is cut in all of them.
    box = [min(BOX, m) for m in wrong.shape]
    limit = (_too_many(n, math.prod(box) * count / n) + 2) * company
    for shift in (0, BOX // 2):
        if count and np.unique((places + shift) // BOX, axis=1, return_counts=True)[1].max() >= limit:
            return False
    return True


def _one_of_each_spot(wrong):
    """The same with one point only of each small, ragged group inside: what the stencils after a decision make of it.

    Lines, full boxes, what is larger than a stencil and what touches a border stay as they are: those are not such spots.
    """
    reduced = wrong.copy()
    labels, n = label(maximum_filter(wrong, 3, mode="constant"), np.ones((3,) * wrong.ndim))
    for box, number in zip(find_objects(labels), range(1, n + 1)):
        spot = np.stack(np.nonzero(wrong[box] & (labels[box] == number)))
        low, size = spot.min(1), np.ptp(spot, axis=1) + 1
        start = low + [s.start for s in box]
        inside = all(first > 0 and first + extent < m for first, extent, m in zip(start, size, wrong.shape) if m > BOX)
        if inside and size.max() <= BOX and (size > 1).sum() > 1 and spot.shape[1] < FULL * math.prod(size):
            part = reduced[box]
            part[tuple(spot[:, 1:])] = False
    return reduced


def _too_many(places, expected):
    """The smallest number of points that chance puts together in any of `places` less than once in 10,000 outputs.

    expected : points in each place.
    """
    k = 1
    while k < 2 * expected or places * math.exp(k * math.log(max(expected, 1e-12)) - math.lgamma(k + 1) - expected) > 1e-4:
        k += 1
    return k


def _describe(got, want, wrong, comparison):
    """Where and by how much, in words."""
    both = np.nonzero(wrong)
    values, expected = got[both], want[both]
    difference = np.abs(values.astype(np.float64) - expected.astype(np.float64)) if got.dtype.kind == "f" else _difference(values, expected)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    place = ", ".join(str(int(index[worst])) for index in both[::-1])
    first = [int(index.min()) for index in both[::-1]]
    last = [int(index.max()) for index in both[::-1]]
    corner = "" if got.size == 1 else f" at ({place}), counted from its corner,"
    text = (
        f"differs from the reference at {wrong.mean():.2%} of its points ({len(values)}):{corner} "
        f"it is {values[worst]}, not {expected[worst]}; "
        f"all of them lie within ({', '.join(map(str, first))}) to ({', '.join(map(str, last))})"
    )
    return text + (f"; the program itself may depend on its schedule: {comparison.doubt}" if comparison.doubt else "")
