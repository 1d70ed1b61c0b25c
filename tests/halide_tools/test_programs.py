"""Programs: drawn at random or in files, their stages and their estimates."""

import itertools
import os
import re
import subprocess
import sys
import tarfile

import halide as hl
import numpy as np
import orjson
import pytest
from conftest import ROOT

from config import usable_cores
from features import STAGE_BYTES
from halide_tools import programs
from halide_tools.autoschedulers import Proposal
from halide_tools.buffers import estimated_arguments, lowered_text
from halide_tools.comparison import mismatch
from halide_tools.execution import Program
from halide_tools.lowered_features import count_lowered
from halide_tools.programs import HOST, ProgramSpec, describe_stages, find_programs, functions, load_module, reference_schedules
from pipelines import random_programs


def test_random_programs_are_reproducible_and_of_many_kinds():
    assert len(random_programs.STAGE_KINDS) >= 15
    kinds = set()
    for seed in range(60):
        pipeline, drawn = random_programs.build(seed)
        assert random_programs.build(seed)[1] == drawn
        assert len(functions(pipeline)) >= 2
        kinds.update(drawn)
    assert len(kinds) >= 20


def test_numbers_still_draw_the_programs_that_were_measured():
    with tarfile.open(ROOT / "data" / "raw" / "random_008.tar.xz") as tar:
        records = (orjson.loads(tar.extractfile(member).read()) for member in tar if member.name.endswith("/program.json"))
        for record in itertools.islice(records, 8):
            assert random_programs.build(record["seed"], max_stages=14)[1] == record["stage_kinds"]


def test_numbers_from_rich_from_on_draw_more_reductions():
    def share(first):
        drawn = [kind for seed in range(first, first + 60) for kind in random_programs.build(seed)[1]]
        return sum(kind in ("matmul", "equalize", "channel_mix") for kind in drawn) / len(drawn)

    assert share(random_programs.RICH_FROM) > 1.5 * share(0)


def test_stages_and_edges_are_those_of_the_featurization(blur):
    pipeline = blur.build()
    description = describe_stages(pipeline)
    stages, edges = description["stages"], description["edges"]
    assert [s.split("$")[0] for s in stages] == ["out", "blur"] and [[a.split("$")[0], b.split("$")[0]] for a, b in edges] == [
        ["blur", "out"]
    ]
    for seed in range(6):
        pipeline = random_programs.build(seed)[0]
        description = describe_stages(pipeline)
        stages, edges = description["stages"], description["edges"]
        assert len(Proposal.draw(0, 0).apply(pipeline, ProgramSpec("", seed))[0]) == len(stages) * STAGE_BYTES
        assert {name for edge in edges for name in edge} <= set(stages)


def test_calls_that_features_do_not_tell_apart_are_counted():
    x = hl.Var("x")
    f, g = hl.Func("f"), hl.Func("g")
    f[x] = hl.tanh(hl.f32(x)) + hl.exp(hl.f32(x))
    g[x] = hl.sqrt(f[x]) * hl.sin(f[x]) * hl.cos(f[x + 1])
    g[x] += hl.pow(f[x], 2.5) + hl.log(f[x] / 3) + hl.f32(x % 37 + (x + 5) // 60 + x // 4 + hl.i32(hl.u8(x) / hl.u8(7)))
    g.set_estimates([(0, 100)])
    description = describe_stages(hl.Pipeline(g))
    assert len(description["stages"]) == 3
    calls = description["calls"]
    assert calls == {
        "sin_cos": [0, 2, 0],
        "library": [0, 0, 1],
        "exp": [0, 0, 1],
        "log": [1, 0, 0],
        "pow": [1, 0, 0],
        "sqrt": [0, 1, 0],
        "int_division": [3, 0, 0],
    }


def test_applications_build(tmp_path):
    specs = [s for f in sorted((ROOT / "pipelines").glob("*.py")) if f.stem not in ("random_programs",) for s in find_programs(f)]
    assert len(specs) >= 15
    for spec in specs:
        inputs, outputs = estimated_arguments(spec.build())
        assert inputs and outputs


def test_missing_estimates_are_named():
    x = hl.Var("x")
    f = hl.Func("nameless")
    f[x] = hl.cast(hl.Int(32), x)
    with pytest.raises(ValueError, match="nameless.* has no estimates"):
        estimated_arguments(hl.Pipeline(f))


# Files


def write(folder, **files):
    """The folder with these files in it, `name=text` each."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


GENERATOR = """
import halide as hl
{imports}
x, y = hl.vars("x y")

@hl.generator(name="{name}")
class Any(hl.Generator):
    radius = hl.GeneratorParam(2)
    input = hl.InputBuffer(hl.Float(32), 2)
    mask = hl.InputBuffer(hl.UInt(8), 1)
    strength = hl.InputScalar(hl.Float(32))
    count = hl.InputScalar(hl.Int(32))
    output = hl.OutputBuffer([hl.Float(32), hl.Int(16)], 2)
    second = hl.OutputBuffer(hl.UInt(8), 1)

    def generate(self):
        {body}
        r = hl.RDom([(0, self.radius)], "r")
        r.where(r < {where})
        total = hl.sum(r, self.input[x + r, y], "total")
        self.output[x, y] = (total * {factor}, hl.i16(x))
        self.second[x] = hl.u8(x)
        self.output.set_estimates([(0, {width}), (0, 32)])
        self.second.set_estimates([(0, 64)])
        self.count.set_estimate(1)
        {after}

if __name__ == "__main__":
    hl.main()
"""


def generator(**changes):
    defaults = {"imports": "", "name": "any", "body": "pass", "after": "pass", "where": 7, "factor": "hl.f32(0.5)", "width": 64}
    return GENERATOR.format(**(defaults | changes))


def test_the_signature_is_the_one_that_halides_own_command_line_writes(tmp_path):
    path = write(tmp_path, signature=generator()) / "signature.py"
    subprocess.run(
        [sys.executable, path, "-g", "any", "-f", "any", "-o", tmp_path, "-e", "c_header", "target=host"], check=True, capture_output=True
    )
    subprocess.run([sys.executable, "-c", BUILD_LIBRARY, path, tmp_path / "ours"], cwd=ROOT, check=True)

    def signature(header):
        return re.sub(r"\s+", " ", re.search(r"^int any\((.*?)\);", header.read_text(), re.M | re.S)[1])

    assert signature(tmp_path / "ours.h") == signature(tmp_path / "any.h")
    assert signature(tmp_path / "ours.h").count(",") == 6, "two buffers, two scalars, and three of two outputs"


BUILD_LIBRARY = """
import sys
from halide_tools.programs import ProgramSpec
spec = ProgramSpec("any", 0, sys.argv[1], "any")
pipeline, arguments = spec.build_with_arguments()
pipeline.compile_to_static_library(sys.argv[2], arguments, "any", spec.halide_target())
"""


def test_a_file_imports_what_lies_beside_it_before_anything_of_this_project(tmp_path, monkeypatch):
    body = "self.scale = features.SCALE; import config; config.late()"
    folder = write(
        tmp_path / "user files", pipeline=generator(imports=IMPORTS, body=body, name="beside"),
        features="from config import SCALE\nclass Mine: pass",
        config="SCALE = 3\ndef late(): pass", data_utils="raise ImportError('only where asked for')",
    )  # fmt: skip
    import features

    before, cwd = dict(sys.modules), os.getcwd()
    monkeypatch.setattr(sys, "argv", ["tune_schedule.py", "--budget", "3"])
    for _ in range(2):  # the second builds from the module that is loaded
        (spec,) = find_programs(folder / "pipeline.py")
        spec.build()
    assert sys.modules["features"] is features and features.CALLS and os.getcwd() == cwd and sys.argv[1:] == ["--budget", "3"]
    assert {name for name in sys.modules if name in ("config", "features", "pipeline", "data_utils")} == {
        name for name in before if name in ("config", "features", "pipeline", "data_utils")
    }
    other = write(
        tmp_path / "other", pipeline=generator(imports="import features\nassert features.OTHER", name="beside"), features="OTHER = 1"
    )
    assert find_programs(other / "pipeline.py")[0].identity() == spec.identity(), "the same algorithm in another file"
    absent = write(tmp_path / "absent", pipeline=generator(imports="import train_utils"))
    with pytest.raises(ValueError, match="can't be imported: .*No module named 'train_utils'"):
        find_programs(absent / "pipeline.py")


IMPORTS = """
import dataclasses
import sys
import features
assert features.Mine and features.SCALE == 3 and len(sys.argv) == 1

@dataclasses.dataclass
class Sizes:
    width: int = 3
    height: "int" = dataclasses.field(default=4)

assert Sizes(5).width == 5 and __name__ != "__main__" and __file__.endswith("pipeline.py")
"""


def test_a_program_is_built_in_a_fresh_process_as_here(tmp_path):
    folder = write(tmp_path, pipeline=generator(imports=IMPORTS), features="from config import SCALE\nclass Mine: pass", config="SCALE = 3")
    (spec,) = find_programs(folder / "pipeline.py", params="radius=3", n_threads=1)
    code = f"from halide_tools.programs import ProgramSpec; print({spec!r}.identity())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spec.identity()


def test_the_identity_is_that_of_algorithm_sizes_parameters_target_threads_and_inputs(tmp_path):
    path = tmp_path / "identified.py"

    def identity(changes=(), **options):
        path.write_text(generator(**dict(changes)))
        load_module.cache_clear()
        return find_programs(path, **options)[0].identity()

    first = identity()
    assert first == identity() and re.fullmatch("[0-9a-f]{16}", first)
    other = {
        "where": identity({"where": 1}), "definition": identity({"factor": "hl.f32(0.25)"}), "size": identity({"width": 65}),
        "radius": identity(params="radius=3"), "target": identity(target="host-no_runtime"), "threads": identity(n_threads=17),
        "input": identity(inputs="count=2"), "directive": identity({"after": "self.output.bound(x, 0, 64)"}),
    }  # fmt: skip
    assert len({first, *other.values()}) == 1 + len(other), other
    assert identity({"after": "self.output.compute_root().vectorize(x, 8)"}) == first, "a schedule is no part of the algorithm"
    assert identity({"body": "hl.Func(); hl.Var(); hl.RDom([(0, 3)])"}) == first, "nor are numbers that Halide adds to names"
    tables = [find_programs(write(tmp_path / f"table{i}", t=TABLE.format(i)) / "t.py")[0].identity() for i in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]


TABLE = """
import halide as hl
import numpy as np

def build():
    x, f = hl.Var("x"), hl.Func("f")
    f[x] = hl.Buffer(np.full(8, {}, np.uint8), "table")[x % 8]
    f.set_estimates([(0, 64)])
    return hl.Pipeline(f)
"""


def test_parameters_are_read_by_their_type(tmp_path):
    path = ROOT / "tests" / "kinds_of_pipelines.py"
    (spec,) = find_programs(path, "parameters", "input.type=int16 output.type=bfloat16 radius=3 signed=false")
    pipeline = spec.build()
    assert [str(t) for t in pipeline.outputs()[0].types()] == ["bfloat16"] and str(pipeline.infer_arguments()[0].type) == "int16"
    assert "0.000000f -" not in str(pipeline.outputs()[0].values()), "false is false"
    for params, words in (
        ("", "No type has been specified for input.*input.type"), ("input.type=int16 output.type=uint99", "'uint99' is no element type"),
        ("input.type=int16 output.type=int16 radios=3", "no GeneratorParam.*radios"), ("radius", "'radius' is not of the form NAME=VALUE"),
        ("input.type=int16 output.type=int16 signed=maybe", "signed=maybe: give true or false"),
        ("radius=1 radius=2", "radius is given twice"),
        ("input.type=int16 output.type=int16 radius=many", "many"), ('radius="1', "No closing quotation"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            find_programs(path, "parameters", params)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "no/such.py"}, "no such file"),
        ({"generator": "another"}, "--generator 'another' is not in it; there are .*planar"),
        ({"params": "radius=2"}, "give --generator"),
        ({"generator": "planar", "target": "hosty"}, "not a target of Halide's"),
        ({"generator": "planar", "target": "arm-64-linux"}, "does not run on this machine"),
        ({"generator": "planar", "target": "host-cuda"}, "GPU"),
        ({"generator": "planar", "inputs": "inputs=3"}, "inputs is no input of this program; it has input"),
        ({"generator": "planar", "inputs": "input=no.npy"}, "can't be read"),
        ({"generator": "planar", "inputs": "input=9:1"}, "input=9:1: not a range of type uint16 from a smaller to a larger"),
        ({"generator": "planar", "inputs": "input=1:many"}, "input=many: neither a .npy file nor a number of type uint16"),
        ({"generator": "planar", "inputs": "input=1:70000"}, "input=70000: neither"),
        ({"generator": "booleans", "inputs": "input=false:true"}, "not a range of type bool"),
        ({"generator": "scalars", "inputs": "gain=0:1"}, "gain=0:1: neither"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_said_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        find_programs(**({"path": ROOT / "tests" / "kinds_of_pipelines.py"} | options))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_arrays_are_named(tmp_path):
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    files = {"empty.npy": b"", "text.npy": b"1, 2, 3", "zip.npy": (tmp_path / "several.npz").read_bytes()}
    files["cut.npy"] = files["zip.npy"][:100]
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in (*files, "objects.npy"):
        with pytest.raises(ValueError, match=f"--inputs: input=.*{name}: can't be read as a .npy file") as caught:
            find_programs(ROOT / "tests" / "kinds_of_pipelines.py", "planar", inputs=f"input={tmp_path / name}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "no @hl.generator class and no build"),
        ("import halide as hl\nhl.main()", "exits when it is imported"),
        ("1 +", "can't be imported: SyntaxError"),
        ("from . import helper", "ImportError: attempted relative import .*; give a file beside the package that imports it"),
        ("def build(): return 3", "build.. returns int, not an hl.Pipeline"),
        ("def build(): raise RuntimeError('mine')", "RuntimeError: mine"),
        ("import sys\nsys.exit(0)", "exits when it is imported"),
    ],
)
def test_files_without_programs_are_named(tmp_path, text, words):
    path = tmp_path / "none.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        find_programs(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_targets_and_threads_reach_schedules(blur):
    def source(**options):
        (spec,) = find_programs(blur.path, **options)
        pipeline = spec.build()
        return Proposal.draw(1, 0).apply(pipeline, spec)[1], spec

    host, spec = source()
    narrow, sse = source(target="x86-64-linux-sse41")
    serial, one = source(n_threads=1)
    assert spec.threads == usable_cores() and one.threads == 1 and "parallel(" not in serial
    assert str(sse.halide_target()) == "x86-64-linux-sse41" and narrow != host


def test_halides_own_variables_say_how_many_threads(monkeypatch):
    for variables, expected in (
        ({}, usable_cores()),
        ({"HL_NUM_THREADS": "3"}, 3),
        ({"HL_NUMTHREADS": "5"}, 5),
        ({"HL_NUM_THREADS": "3", "HL_NUMTHREADS": "5"}, 3),
        ({"HL_NUM_THREADS": "0"}, usable_cores()),
        ({"HL_NUM_THREADS": "many"}, usable_cores()),
    ):
        for name in ("HL_NUM_THREADS", "HL_NUMTHREADS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        programs.default_threads.cache_clear()
        assert ProgramSpec("p", 0).threads == expected, variables
    programs.default_threads.cache_clear()


@pytest.mark.parametrize("name", ["../above", "/tmp/elsewhere", "..", "a/b", "long" * 60])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = write(tmp_path, named=NAMES.replace('("imaging::named", "for", "", "3d", "größe")', repr((name, "fine")))) / "named.py"
    assert find_programs(path, "fine")[0].name == "fine"
    with pytest.raises(ValueError, match="can't be the name of a folder"):
        find_programs(path, name)


def test_names_in_any_alphabet_and_of_any_kind(tmp_path):
    path = write(tmp_path, names=NAMES) / "names.py"
    specs = {spec.name: spec for spec in find_programs(path)}
    assert {name: spec.c_name for name, spec in specs.items()} == {
        "imaging::named": "imaging_named", "for": "for_", "names.WithoutName": "names_WithoutName", "3d": "program_3d", "größe": "gr_e",
    }  # fmt: skip
    assert find_programs(path, "WithoutName")[0] == specs["names.WithoutName"], "as Halide's own command line calls it"
    for spec in specs.values():
        description = describe_stages(spec.build())
        plain = [re.sub(r"\$\d+$", "", stage) for stage in description["stages"]]
        assert plain == ["output", "output_2", "stage", "höhe", "input_im", "stage"]
        assert sum(description["calls"]["exp"]) == 1 and sum(description["calls"]["sqrt"]) == 1
        assert len(description["edges"]) == 5
        pipeline = spec.build()
        assert len(Proposal.draw(0, 0).apply(pipeline, spec)[0]) == 6 * STAGE_BYTES
        assert count_lowered(pipeline, spec).sum() > 0


NAMES = """
import halide as hl
x, y = hl.vars("x y")

class Named:
    input = hl.InputBuffer(hl.Float(32), 2)
    output = hl.OutputBuffer(hl.Float(32), 2)

    def generate(self):
        first, wrapper, umlaut, same, also = (hl.Func(name) for name in ("stage", "input_im", "höhe", "stage", "output_2"))
        first[x, y] = hl.sqrt(self.input[x, y])
        wrapper[x, y] = first[x, y] + first[x + 1, y]
        umlaut[x, y] = hl.exp(wrapper[x, y]) + wrapper[x, y + 1]
        same[x, y] = umlaut[x, y] + umlaut[x + 1, y]
        also[x, y] = same[x, y] * same[x, y + 1]
        self.output[x, y] = also[x, y]
        self.output.set_estimates([(0, 64), (0, 64)])

for name in ("imaging::named", "for", "", "3d", "größe"):
    hl.generator(name)(type("WithoutName", (Named, hl.Generator), {"__module__": __name__}))
"""


def test_funcs_that_only_name_a_buffer_have_no_stage():
    x, y = hl.vars("x y")
    image, f, g = hl.ImageParam(hl.Float(32), 2, "named"), hl.Func("named_im"), hl.Func("names_g")
    f[x, y] = image[x, y] * 2
    g[x, y] = f[x, y] + image[x + 1, y]
    g.set_estimates([(0, 64), (0, 64)])
    assert [func.name().split("$")[0] for func in functions(hl.Pipeline(g))] == ["names_g", "named_im"]
    table, h = hl.Func("table_name"), hl.Func("names_h")
    levels = hl.Buffer(hl.UInt(8), [16], "levels")
    table[x] = levels[x]
    h[x] = table[x % 16]
    h.set_estimates([(0, 64)])
    pipeline = hl.Pipeline(h)
    assert len(functions(pipeline)) * STAGE_BYTES == len(Proposal.draw(0, 0).apply(pipeline, HOST)[0]) == STAGE_BYTES


def test_a_schedule_left_in_is_set_aside_and_told(tmp_path):
    path = write(tmp_path, left=LEFT) / "left.py"
    (spec,) = find_programs(path)
    featurization, source = Proposal.draw(0, 0).apply(spec.build(), spec)
    assert len(featurization) == 2 * STAGE_BYTES and source
    hand = spec.build_hand_scheduled()
    with pytest.raises(hl.HalideError, match="scheduling directive"):
        Proposal.draw(0, 0).apply(hand, spec)
    pipeline = spec.build()
    pipeline.outputs()[0].vectorize(pipeline.outputs()[0].args()[0], 4)  # directives work again


LEFT = """
import halide as hl

def build():
    x, y, xo, yo, xi, yi = hl.vars("x y xo yo xi yi")
    image = hl.ImageParam(hl.UInt(8), 2, "image")
    wide, down = hl.funcs("wide down")
    wide[x, y] = hl.u16(image[x, y])
    down[x, y] = hl.u8((wide[x, y] + wide[x, y + 1]) / 2)
    down.tile(x, y, xo, yo, xi, yi, 64, 32).vectorize(xi, 16).parallel(yo)
    wide.compute_at(down, xo).vectorize(x, 16)
    down.set_estimates([(0, 256), (0, 256)])
    return hl.Pipeline(down)
"""


def test_what_adams2019_can_not_schedule_is_said_at_once_in_its_words(tmp_path):
    path = write(tmp_path, extern=EXTERN) / "extern.py"
    with pytest.raises(ValueError, match="Adams2019 can't schedule it: Could not compute plausible site.*rows is an extern stage"):
        find_programs(path)


EXTERN = """
import halide as hl

def build():
    x, y = hl.vars("x y")
    doubled, rows, out = hl.funcs("doubled rows out")
    doubled[x, y] = hl.f32(x + y)
    rows.define_extern("sum_rows", [doubled], hl.Float(32), 2)
    out[x, y] = rows[x, y] + rows[x, y + 1]
    out.set_estimates([(0, 64), (0, 64)])
    return hl.Pipeline(out)
"""


def test_references_follow_each_other_where_one_can_not_be_had(blur):
    results = []
    for name, schedule in reference_schedules().items():
        pipeline = blur.build()
        schedule(pipeline, blur)
        results.append(Program(pipeline, blur, is_reference=True).results_of_two_runs(1))
        assert name in ("root", "inlined", "adams2019")
    assert all(mismatch(found, results[0]) == "" for found in results[1:])
    (warp,) = find_programs(ROOT / "tests" / "kinds_of_pipelines.py", "warp")
    lowered = []
    for schedule in list(reference_schedules().values())[:2]:
        pipeline = warp.build()
        schedule(pipeline, warp)
        lowered.append(lowered_text(pipeline, warp.halide_target()))
    assert "allocate brighter" in lowered[0] and "allocate brighter" not in lowered[1]
