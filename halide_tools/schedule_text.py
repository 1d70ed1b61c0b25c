"""A schedule as text: a `.schedule.h` for a Generator in C++, and a Python module with `apply(pipeline)`."""

import inspect
import itertools
import keyword
import re
from pathlib import Path
from typing import NamedTuple

from halide_tools.buffers import all_funcs
from halide_tools.directives import (
    OUTERMOST,
    UNNAMED_FUNC,
    Enum,
    FuncRef,
    Level,
    LoopRef,
    NewLoop,
    directives_of,
    is_rvar,
    labels_of,
    loop_kinds,
    shapes,
)

# What no Func or loop may be called in the text: keywords of the two languages, and what stands around the directives.
RESERVED = {
    *keyword.kwlist,
    *"hl re pipeline target funcs expected same label arguments definitions func by_name all_funcs labels_of apply".split(),
    *"Func Var RVar Halide std EXPECTED UNNAMED_FUNC auto bool case catch char const default delete do double enum explicit extern".split(),
    *"float friend goto inline int long mutable namespace new operator private protected public register short signed sizeof".split(),
    *"static struct switch template this throw typedef typename union unsigned using virtual void volatile".split(),
}
CPP_HEADER = Path(__file__).with_name("schedule_header.h")


class Language(NamedTuple):
    """How the two languages write what a schedule needs. Statements end with `end`; `pair` and `list` are their brackets."""

    var: str
    declare: str
    declare_old: str
    enum: str
    end: str
    list: str
    pair: str
    renamed: dict


CPP = Language(
    '{kind}("{name}")',
    '{kind} {name}("{name}");',
    "{kind} {name} = {value};",
    "{}::{}",
    ";",
    "{}",
    "{}",
    {"in_": "in", "async_": "async"},
)
PYTHON = Language('hl.{kind}("{name}")', '{name} = hl.{kind}("{name}")', "{name} = {value}", "hl.{}.{}", "", "[]", "()", {})


class _Writer:
    """Writes a schedule's directives as statements of a language, a block for each stage."""

    def __init__(self, schedule, language):
        self.schedule, self.language = schedule, language
        loops = {name for func in schedule.funcs.values() for stage in func.stages for name in loop_kinds(stage)} | RESERVED
        self.identifiers = {}
        for label in schedule.funcs:
            wanted = re.sub(r"\W+", "_", label).strip("_")
            taken = loops | set(self.identifiers.values())
            candidates = itertools.chain([wanted, f"{wanted}_func"], (f"{wanted}_func{i}" for i in itertools.count(2)))
            self.identifiers[label] = next(c for c in candidates if c not in taken)

    def blocks(self):
        """(Func and stage, its lines) in order; what directives of one stage share is declared once."""
        for (label, stage), directives in itertools.groupby(directives_of(self.schedule), key=lambda d: (d.func, d.stage)):
            directives = list(directives)
            used = dict.fromkeys(ref.name for d in directives for ref in _refs(d.arguments) if not ref.name.startswith("#"))
            lines = [self._declaration(label, stage, name) for name in used if name != OUTERMOST]
            yield f"{label}.update({stage - 1})" if stage else label, lines, [self._statement(d) for d in directives]

    def _declaration(self, label, stage, name):
        found, rvar = self._source(label, stage, name)
        kind = "RVar" if rvar else "Var"
        if found:
            return self.language.declare_old.format(kind=kind, name=name, value=found)
        return self.language.declare.format(kind=kind, name=name)

    def _source(self, label, stage, name):
        """(Expression for a loop of the algorithm, or "" for one that transforms make; whether it is an RVar)."""
        func, ident = self.schedule.funcs[label], self.identifiers[label]
        if name in func.args:
            return f"{ident}.args()[{func.args.index(name)}]", False
        for k in range(len(func.stages)) if stage < 0 else [stage]:
            if name in func.stages[k].rvars:
                return f"{ident}.rvars({k - 1})[{func.stages[k].rvars.index(name)}]", True
        return "", is_rvar(self.schedule, label, stage, name)

    def _statement(self, directive):
        func = self.identifiers[directive.func]
        target = f"{func}.update({directive.stage - 1})" if directive.stage else func
        values = directive.arguments
        arguments = ", ".join(self._argument(value, directive) for value in values)
        method = self.language.renamed.get(directive.method, directive.method)
        made = f"{self.identifiers[directive.result]} = " if directive.result else ""
        return f"{made}{target}.{method}({arguments}){self.language.end}"

    def _argument(self, value, directive):
        language = self.language
        if isinstance(value, bool):
            return str(value).lower() if language is CPP else str(value)
        if isinstance(value, LoopRef):
            if value.name.startswith("#"):
                return f"{self.identifiers[directive.func]}.rvars({directive.stage - 1})[{value.name[1:]}]"
            return self._outermost() if value.name == OUTERMOST else value.name
        if isinstance(value, FuncRef):
            return self.identifiers[value.label]
        if isinstance(value, Level):
            return self._level(value, directive.method)
        if isinstance(value, Enum):
            return language.enum.format(value.type, value.name)
        if isinstance(value, NewLoop):
            return language.var.format(kind="RVar" if value.rvar else "Var", name=value.name)
        if isinstance(value, (list, tuple)):
            opened, closed = language.list if isinstance(value, list) else language.pair
            return opened + ", ".join(self._argument(v, directive) for v in value) + closed
        return str(value)

    def _outermost(self):
        return "Var::outermost()" if self.language is CPP else "hl.Var.outermost()"

    def _level(self, level, method):
        func, name = self.identifiers[level.func], level.loop
        if name == OUTERMOST:
            loop = self._outermost()
        else:
            found, rvar = self._source(level.func, level.stage, name)
            loop = found or self.language.var.format(kind="RVar" if rvar else "Var", name=name)
        if level.stage < 0 and method != "compute_with":
            return f"{func}, {loop}"
        return f"{'' if self.language is CPP else 'hl.'}LoopLevel({func}, {loop}, {level.stage})"


def _refs(value):
    """The LoopRefs in arguments."""
    if isinstance(value, LoopRef):
        yield value
    elif isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        for v in value:
            yield from _refs(v)


def to_cpp_header(schedule, name):
    """The text of a header that defines apply_schedule_NAME(pipeline, target)."""
    writer, expected = _Writer(schedule, CPP), shapes(schedule)
    body = []
    for label, identifier in writer.identifiers.items():
        body.append(f'    Func {identifier} = funcs.at("{label}");' if label in expected else f"    Func {identifier};")
    for what, declarations, statements in writer.blocks():
        body += [f"    {{  // {what}", *(f"        {line}" for line in (*declarations, *statements)), "    }"]
    body += [f"    (void){identifier};" for identifier in writer.identifiers.values()]
    lines = ",\n".join(f'        {{"{label}", {arguments}, {stages}}}' for label, (arguments, stages) in expected.items())
    return CPP_HEADER.read_text().replace("NAME", name).replace("EXPECTED", lines).replace("BODY", "\n".join(body))


PYTHON_MODULE = '''\
"""The schedule of a pipeline, written by cost_model_LSTM: call apply(pipeline) before compiling it."""

import re

import halide as hl

UNNAMED_FUNC = re.compile(PATTERN)
# Arguments and definitions of each Func that the schedule is of.
EXPECTED = {
SHAPES
}


FUNCTIONS

def apply(pipeline):
    """Schedule `pipeline` in place. Raises ValueError where it has not the Funcs that the schedule is of."""
    by_name = {func.name(): func for func in all_funcs(pipeline)}
    funcs = {label: by_name[name] for name, label in labels_of(by_name).items()}
    if EXPECTED != {label: (len(func.args()), func.num_update_definitions() + 1) for label, func in funcs.items()}:
        raise ValueError(f"the schedule is of another pipeline: it has {len(EXPECTED)} Funcs, this one {len(funcs)}; tune this one anew")
BODY
'''


def to_python_module(schedule):
    """The text of a module that defines apply(pipeline)."""
    writer, expected = _Writer(schedule, PYTHON), shapes(schedule)
    body = [f'    {identifier} = funcs["{label}"]' for label, identifier in writer.identifiers.items() if label in expected]
    for what, declarations, statements in writer.blocks():
        body += ["", f"    # {what}", *(f"    {line}" for line in (*declarations, *statements))]
    replaced = {
        "PATTERN": f'r"{UNNAMED_FUNC.pattern}"',
        "SHAPES": "\n".join(f'    "{label}": {shape},' for label, shape in expected.items()),
        "FUNCTIONS": "\n\n".join(inspect.getsource(function) for function in (all_funcs, labels_of)),
        "BODY": "\n".join(body),
    }
    return re.sub("|".join(replaced), lambda match: replaced[match[0]], PYTHON_MODULE)
