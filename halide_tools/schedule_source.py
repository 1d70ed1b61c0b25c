"""Schedules in the C++ text that Halide's autoschedulers print: `schedule_source` from Python, `.schedule.h` of a C++ Generator."""

import re

import halide as hl

from halide_tools.directives import TAILS, Created, Fuse, Split
from halide_tools.schedules import find_funcs, loop_object, read

GET_FUNC = re.compile(r"Func (\S+) = (?:pipeline\.)?get_func\((\d+)\);")
NEW_LOOP = re.compile(r"(R?Var) (\S+?)\(\"([^\"]*)\"\);")
OLD_LOOP = re.compile(
    r"R?Var (\S+?)(?:\(| = )([\w$]+)(?:\.update\((\d+)\))?(?:\.get_schedule\(\))?\.(dims|args|rvars)\(\)\[(\d+)\](?:\.var\))?;"
)
STATEMENT = re.compile(r"(?:([\w$.]+)\s*=\s*)?([\w$]+)(?:\s*\.update\((\d*)\))?((?:\s*\.\w+\((?:[^()]|\([^()]*\))*\))*)\s*;")
METHOD = re.compile(r"\.(\w+)\(((?:[^()]|\([^()]*\))*)\)")


def read_source(source, pipeline, unscheduled=None):
    """The Schedule in the C++ text of Adams2019, Mullapudi2016 or Li2018 (`schedule_source`, or a `.schedule.h`).

    pipeline : a fresh one, which is scheduled by this. unscheduled : what `read` returned of the pipeline that the autoscheduler got; text
    of Li2018 calls Funcs by the names they had there. Raises ValueError where the text is not understood or is of another pipeline, and
    hl.HalideError where Halide refuses what it says.
    """
    reader = _SourceReader(pipeline, unscheduled)
    body = re.search(r"apply_schedule_\w+\([^)]*\) \{(.*)\}", source, re.S)
    text = re.sub(r"//[^\n]*|\busing namespace[^;]*;", "", body[1] if body else source)
    text = re.sub(r"\n(?=[\w$])", ";\n", text)  # Li2018 leaves a semicolon out
    for statement in re.findall(r"[^;{}]*\{[^;{}]*\{[^;]*;|[^;{}]*\{[^;{}]*\}[^;]*;|[^;{}]+;", text):
        if statement.strip(" \n;"):
            try:
                reader.run(statement.strip())
            except (AttributeError, LookupError, TypeError) as error:
                raise ValueError(f"not a statement of an autoscheduler's schedule: {' '.join(statement.split())[:100]}") from error
    return read(pipeline, reader.unscheduled, reader.created)


class _SourceReader:
    """Does what an autoscheduler's text says to a fresh pipeline, a statement at a time."""

    def __init__(self, pipeline, unscheduled):
        self.unscheduled = read(pipeline)
        theirs = unscheduled or self.unscheduled
        handles = find_funcs(theirs, pipeline)
        self.order = list(theirs.funcs)  # by get_func
        self.funcs = {name: handles[label] for label, (name, _) in theirs.names.items()}
        self.labels = {name: label for label, (name, _) in theirs.names.items()}
        self.handles, self.created, self.loops, self.transforms = handles, [], {}, {}
        self.rvars = {}  # {(label, stage): objects}, as they are before rfactor
        self.sources = {}  # {(label, name in the text): hl.Var or hl.RVar}
        for label, (_, names) in theirs.names.items():
            func = theirs.funcs[label]
            for k, stage in enumerate(func.stages):
                self.rvars[label, k] = [loop_object(theirs, handles, label, k, rvar) for rvar in stage.rvars]
                self.sources |= {(label, names[rvar]): found for rvar, found in zip(stage.rvars, self.rvars[label, k])}
            self.sources |= {(label, names[arg]): handles[label].args()[i] for i, arg in enumerate(func.args)}

    def run(self, statement):
        if match := GET_FUNC.fullmatch(statement):
            self._get_func(match[1], int(match[2]))
        elif match := NEW_LOOP.fullmatch(statement):
            self.loops[match[2]] = (hl.RVar if match[1] == "RVar" else hl.Var)(match[3])
        elif match := OLD_LOOP.fullmatch(statement):
            func, stage = self.labels[match[2]], int(match[3]) + 1 if match[3] else 0
            data = self.unscheduled.funcs[func]
            loops = [*self.rvars[func, stage], *(self.handles[func].args()[data.args.index(v)] for v in data.stages[stage].vars)]
            loops = {"args": self.handles[func].args(), "rvars": self.rvars[func, stage], "dims": loops}[match[4]]
            self.loops[match[1]] = loops[int(match[5])]
        elif (match := STATEMENT.fullmatch(statement)) and match[2] in self.funcs:
            self._schedule(match[1], match[2], 0 if match[3] is None else int(match[3] or 0) + 1, METHOD.findall(match[4]))
        else:
            raise ValueError(f"not a statement of an autoscheduler's schedule: {' '.join(statement.split())[:100]}")

    def _get_func(self, name, index):
        label = self.order[index] if index < len(self.order) else ""
        base = re.sub(r"\W", "_", label.partition("#")[0])
        if not base or not name.startswith(base):
            raise ValueError(f"the schedule is of another pipeline: its Func {index} is {name}, here it is {label or 'none'}")
        self.funcs[name], self.labels[name] = self.handles[label], label

    def _schedule(self, result, name, stage, methods):
        func, label = self.funcs[name], self.labels[name]
        for method, text in methods:
            target = func.update(stage - 1) if stage else func
            arguments = [a.strip() for a in re.sub(r"[{}]", "", text).split(",") if a.strip()]
            self._remember(label, stage, method, arguments)
            owner = self.labels.get(arguments[0], label) if arguments and method.endswith("_at") else label
            values = [self._value(a, owner, stage, method, arguments) for a in arguments]
            if method == "rfactor":
                func, label, stage = self._rfactor(target, label, stage, arguments, values), f"{label}.update({stage - 1}).rfactor", 0
                self.funcs[result], self.labels[result] = func, label
            else:
                getattr(target, method)(*values)

    def _value(self, text, label, stage, method, arguments):
        if re.fullmatch(r"-?\d+", text):
            return int(text)
        if text in ("true", "false"):
            return text == "true"
        kind, _, name = text.rpartition("::")
        if kind or text in TAILS:
            return getattr(getattr(hl, kind.rpartition("::")[2] or "TailStrategy"), name)
        if method.endswith("_at") and text in self.funcs:
            return self.funcs[text]
        if text in self.loops:
            return self.loops[text]
        found = self.sources.get((label, text), self.loops.get((label, stage, text)))
        if found is None:  # a new loop of Li2018, which declares none
            old = next((v for a in arguments if (v := self.sources.get((label, a), self.loops.get((label, stage, a)))) is not None), None)
            rvar = isinstance(old, hl.RVar) and not (method == "rfactor" and arguments.index(text) % 2)
            found = self.loops[label, stage, text] = (hl.RVar if rvar else hl.Var)(text)
        return found

    def _remember(self, label, stage, method, arguments):
        """Transforms, in case that rfactor follows."""
        done = self.transforms.setdefault((label, stage), [])
        if method == "split":
            tail = arguments[4].rpartition("::")[2] if len(arguments) > 4 else "Auto"
            done.append(Split(*(self._source(label, stage, a) for a in arguments[:3]), int(arguments[3]), tail))
        elif method == "fuse":
            done.append(Fuse(*(self._source(label, stage, a) for a in arguments)))

    def _source(self, label, stage, name):
        """`#i` for RVar i of the update, else `name`."""
        found = self.sources.get((label, name), self.loops.get(name))
        names = [rvar.name() for rvar in self.rvars.get((label, stage), ())]
        return f"#{names.index(found.name())}" if isinstance(found, hl.RVar) and found.name() in names else name

    def _rfactor(self, target, label, stage, arguments, values):
        pairs = list(zip(values[::2], values[1::2]))
        func = target.rfactor(pairs)
        preserved = tuple((self._source(label, stage, old), new) for old, new in zip(arguments[::2], arguments[1::2]))
        new = f"{label}.update({stage - 1}).rfactor"
        self.created.append(Created(new, "rfactor", label, (), stage - 1, tuple(self.transforms[label, stage]), preserved))
        self.sources |= {(new, name): found for (owner, name), found in self.sources.items() if owner == label}
        for old, (rvar, _) in zip(arguments[::2], pairs):
            self.loops[label, stage, old] = rvar
        self.loops |= {(new, k, name): found for (owner, s, name), found in list(self._loops_of(label, stage)) for k in (0, 1)}
        self.loops |= {(new, k, name): var for name, (_, var) in zip(arguments[1::2], pairs) for k in (0, 1)}
        return func

    def _loops_of(self, label, stage):
        return ((key, found) for key, found in self.loops.items() if isinstance(key, tuple) and key[:2] == (label, stage))
