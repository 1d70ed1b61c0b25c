"""The layout: imports run one way, commands stand alone, and the top level stays small."""

import ast

import pytest
from conftest import ROOT

COMMANDS = {
    "generate_dataset", "train_model", "evaluate_model", "rank_schedules", "collect_schedules", "tune_schedule", "export_model",
}  # fmt: skip
# From the ground up: a file imports files of its own floor or of lower ones.
FLOORS = [
    {"features", "config", "modeling", "pipelines"},
    {"dumps", "halide_tools", "linear_costs"},
    {"measuring", "data_utils"},
    {"batches"},
    {"train_utils"},
    {"tuning", "evaluation"},
    COMMANDS,
    {"benchmarks", "tests"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LEARNS = (
    "train_utils",
    "batches",
    "modeling",
    "linear_costs",
    "data_utils",
    "dumps",
    "features",
    "config",
    "train_model",
    "generate_dataset",
)


def project_files():
    return [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] in FLOOR_OF or path.parent == ROOT]


def module_of(path):
    """`measuring.machine` of measuring/machine.py, `measuring` of its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(text):
    """The modules that a file's text imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(module, text):
    """Imports of a project's file that lead to a higher floor, or from one command, benchmark or test to a command."""
    room = module.partition(".")[0]
    found = []
    for name in sorted(imported(text)):
        target = name.partition(".")[0]
        if target not in FLOOR_OF or target == room:
            continue
        if FLOOR_OF[target] > FLOOR_OF.get(room, len(FLOORS)) or target in COMMANDS:
            found.append(f"{module} imports {name}")
    return found


def circles(graph):
    """A circle of imports in {module: modules it imports}, as a list of modules; empty where there is none."""
    done = set()

    def visit(module, way):
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if circle := visit(target, [*way, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def test_imports_run_one_way():
    texts = {module_of(path): path.read_text() for path in project_files()}
    assert [line for module, text in texts.items() for line in wrong_imports(module, text)] == []

    def known(name):  # `measuring.machine.MAX_DRIFT` is of the module `measuring.machine`
        return name if name in texts else known(name.rpartition(".")[0]) if "." in name else None

    graph = {module: {known(name) for name in imported(text)} - {None, module} for module, text in texts.items()}
    assert circles(graph) == []


@pytest.mark.parametrize(
    "module, text",
    [
        ("features", "import data_utils"),
        ("dumps.files", "from measuring.machine import describe_machine"),
        ("measuring.machine", "def f():\n    from tuning import search\n"),
        ("evaluate_model", "import train_model"),
        ("benchmarks.reading", "from generate_dataset import main"),
    ],
)
def test_a_wrong_import_is_found(module, text):
    assert len(wrong_imports(module, text)) == 1


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"] and circles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_what_learns_never_imports_halide():
    texts = {module_of(path): path.read_text() for path in project_files()}

    def reaches_halide(module, seen):
        if module in seen or module not in texts:
            return False
        seen.add(module)
        names = imported(texts[module])
        if any(name.partition(".")[0] in ("halide", "halide_tools") for name in names):
            return True
        nearest = [name if name in texts else name.rpartition(".")[0] for name in names]
        return any(reaches_halide(name, seen) for name in nearest)

    modules = [module for module in texts if module.partition(".")[0] in LEARNS]
    assert len(modules) > 8 and [module for module in modules if reaches_halide(module, set())] == []
    assert reaches_halide("evaluation.adams2019", set())


def test_the_top_level_stays_small():
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files >= COMMANDS and len(files) <= 14
