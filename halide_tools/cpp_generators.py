"""Programs in C++: executables made of Halide Generators (linked with GenGen), whose pipelines are taken over into Python.

    pipeline, arguments = cpp_generators.build("sharpen", "sharpen", (("image.type", "uint8"),))
    pipeline = cpp_generators.build_hand_scheduled("sharpen", "sharpen", (("image.type", "uint8"),))

The executable loads a plug-in (export_plugin.cpp) that passes for an autoscheduler: it serializes the pipeline, writes beside it what
serialization loses, and ends. That takes hundredths of a second, since nothing is lowered. g++ builds the plug-in when it is first needed.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import halide as hl

from halide_tools import schedules
from halide_tools.buffers import complete_estimates

PLUGIN_SOURCE = Path(__file__).with_name("export_plugin.cpp")
ELF = b"\x7fELF"
GENGEN_SYMBOLS = (b"GeneratorRegistry", b"RegisterGenerator", b"available Generators are")  # one at least is in what is linked with GenGen
MESSAGE_CHARACTERS = 300  # of what an executable complains of: Halide may list all it knows
SECONDS = 300  # for an executable to hand over a pipeline: it takes hundredths, unless its author's code does more
TYPES = {0: hl.Int, 1: hl.UInt, 2: hl.Float, 3: hl.Handle, 4: hl.BFloat}  # by halide_type_code_t


def is_binary(path):
    """Whether `path` is an executable, and so perhaps made of Generators, and no Python file; nothing is run."""
    with open(path, "rb") as file:
        return file.read(len(ELF)) == ELF


def list_generators(path):
    """Names of the Generators in an executable. Raises ValueError, in one line, where there are none."""
    if not any(symbol in Path(path).read_bytes() for symbol in GENGEN_SYMBOLS):
        raise ValueError(f"{path}: an executable, but not one made of Halide Generators; link it with libHalide_GenGen")
    done = _run(path, [])
    names = re.search(r"available Generators are:\s*\n((?:\s+\S+\n?)+)", done.stderr + done.stdout)
    if not names:
        raise ValueError(f"{path}: does not tell its Generators: {_error(done)}")
    return names[1].split()


def build(path, generator, params=(), target="host", inputs=()):
    """(hl.Pipeline without its author's schedule, hl.Arguments as the Generator declares its inputs, used or not).

    params : ((name, text), ...) of GeneratorParams and open types; inputs : as of ProgramSpec. Estimates are as in C++, completed. Raises
    ValueError, in one line, for what the Generator refuses, and where g++ is missing.
    """
    return _restore(*_hand_over(path, generator, params, target, author=False), inputs)


def build_hand_scheduled(path, generator, params=(), target="host", inputs=()):
    """The hl.Pipeline with the schedule that its author wrote, or None where there is none. Arguments and errors as of build()."""
    pipeline = _restore(*_hand_over(path, generator, params, target, author=True), inputs)[0]
    try:
        schedule = schedules.read(pipeline)
    except ValueError:
        return pipeline  # there is one, if it can't be kept as data
    return pipeline if schedule != schedules.read(build(path, generator, params, target)[0]) else None


def _hand_over(path, generator, params, target, author):
    """(Serialized pipeline, what lies beside it) of the executable as it is now."""
    file = Path(path).resolve().stat()
    return _export(str(Path(path).resolve()), file.st_mtime_ns, file.st_size, generator, tuple(params), target, author)


@functools.lru_cache(maxsize=64)
def _export(path, modified, size, generator, params, target, author):
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "pipeline")
        request = {
            "generator": generator,
            "params": "\n".join(["", *map(":".join, params)]) + "\n",
            "author": str(author).lower(),
            "path": exported,
        }
        done = _run(
            path,
            ["-g", generator, "-f", "pipeline", "-o", folder, "-e", "hlpipe", "-p", plugin(), f"target={target}"]
            + ["autoscheduler=CostModelExport", *(f"autoscheduler.{key}={value}" for key, value in request.items())]
            + [f"{name}={value}" for name, value in params],
        )
        if done.returncode:
            raise ValueError(f"{path}: Generator {generator}: {_error(done)}")
        return exported.with_suffix(".hlpipe").read_bytes(), json.loads(exported.with_suffix(".json").read_text())


def _run(path, arguments):
    command = [str(Path(path).resolve()), *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ValueError(f"{path}: can't be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{path}: still running after {SECONDS} seconds; it should end at once") from error


def _error(done):
    """What an executable complains of, in one line."""
    text = (done.stderr or done.stdout).strip()
    if "undefined symbol" in text:
        return f"link it with the shared libHalide of version {importlib.metadata.version('halide')}: {text.splitlines()[-1]}"
    said = textwrap.shorten(re.sub(r"^.*?Error:", "", text, count=1, flags=re.S), MESSAGE_CHARACTERS, placeholder=" ...")
    if said.startswith("gengen"):
        return "it takes other arguments than GenGen of this Halide"
    if "Type is not defined for" in said:
        return f"{said} Give it with --params, say image.type=float32"
    return said or f"it ended with {f'signal {-done.returncode}' if done.returncode < 0 else f'exit code {done.returncode}'}"


# What serialization loses


def _restore(data, beside, inputs):
    try:
        parameters = hl.deserialize_parameters(data)
        for found in beside["inputs"]:
            if found["name"] in parameters:
                _set_estimates(parameters[found["name"]], found)
        pipeline = hl.deserialize_pipeline(data, parameters)
    except hl.HalideError as error:
        version = importlib.metadata.version("halide")
        raise ValueError(
            f"its pipeline can't be read with Halide {version}, was it built with another? {' '.join(str(error).split())}"
        ) from error
    for func, buffers in zip(pipeline.outputs(), beside["outputs"]):
        for buffer, found in zip(func.output_buffers(), buffers):
            _set_estimates(buffer.parameter(), found)
        known = [tuple(bounds) for bounds in buffers[0]["bounds"] if None not in bounds]
        if known and len(known) == buffers[0]["dimensions"]:
            func.set_estimates(known)  # those of the Func are apart from those of its buffers
    complete_estimates(pipeline, parameters.values(), inputs)
    used = {argument.name: argument for argument in pipeline.infer_arguments()}
    return pipeline, [used.get(found["name"]) or _unused(found) for found in beside["inputs"]]


def _set_estimates(parameter, found):
    if not found["is_buffer"]:
        if (estimate := _estimate(found)) is not None:
            parameter.set_estimate(estimate)
        return
    for i, (minimum, extent) in enumerate(found["bounds"]):
        if minimum is not None:
            parameter.set_min_constraint_estimate(i, hl.i32(minimum))
        if extent is not None:
            parameter.set_extent_constraint_estimate(i, hl.i32(extent))


def _estimate(found):
    """A scalar's estimate, or else its default, as an hl.Expr of its type; None where there is neither, a default of 0 being none."""
    value = found["estimate"] if found["estimate"] is not None else found["default"] or None
    if value is None:
        return None
    if found["code"] == 2:
        return hl.cast(hl.Float(found["bits"]), hl.f64(value))
    return hl.cast(_type(found), (hl.u64 if found["code"] == 1 else hl.i64)(int(value)))


def _type(found):
    return TYPES[found["code"]](found["bits"])


def _unused(found):
    """The hl.Argument of an input that the pipeline does not read, and that callers pass all the same."""
    if not found["is_buffer"]:
        parameter = hl.Param(_type(found), found["name"])
        if (estimate := _estimate(found)) is not None:
            parameter.set_estimate(estimate)
        return hl.Argument(parameter)
    image = hl.ImageParam(_type(found), found["dimensions"], found["name"])
    if not any(None in bounds for bounds in found["bounds"]):
        image.set_estimates([tuple(bounds) for bounds in found["bounds"]])
    return hl.Argument(image)


# The plug-in


@functools.cache
def plugin():
    """Path of the plug-in, built for this Halide if no process has done so before. Raises ValueError where that can't be."""
    version = importlib.metadata.version("halide")
    digest = hashlib.sha256(PLUGIN_SOURCE.read_bytes() + f"{version} {platform.machine()}".encode()).hexdigest()[:16]
    path = _cache_folder() / f"export_plugin-{version}-{digest}.so"
    if path.is_file():
        return path
    compiler = shutil.which("g++")
    if not compiler:
        raise ValueError("g++ is missing, and programs in C++ need it: install it (on Debian and Ubuntu: apt install g++)")
    halide = Path(hl.install_dir())
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(descriptor)
    try:
        command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{halide / 'include'}", str(PLUGIN_SOURCE), "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise ValueError(f"g++ can't build {PLUGIN_SOURCE.name}: {first}")
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)  # another process may have built the same meanwhile
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _cache_folder():
    """The user's folder for what can be made again; the system's temporary folder where that can't be written."""
    base = os.environ.get("XDG_CACHE_HOME") or ("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    for folder in (Path(base).expanduser() / "cost_model_LSTM", Path(tempfile.gettempdir()) / f"cost_model_LSTM-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise ValueError("there is no folder to keep the plug-in for C++ in: set XDG_CACHE_HOME to one that can be written")
