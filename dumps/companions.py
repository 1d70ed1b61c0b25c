"""What lies beside dumps: which files are companions by their names, and what those say of programs, schedules and machines.

The words of a collection: `program.json` (calls, where schedules come from), `NAME.lowered.json` (counts in the lowered code),
`collection.json` (the machine that measured), and `calls.json` at the top of what was given.
"""

import os
import re
from dataclasses import dataclass

import numpy as np
import orjson

from config import UserError
from dumps.archives import COMPRESSED_SUFFIXES
from features import CALLS, LOWERED

CALLS_FILE = "calls.json"  # of programs whose program.json does not tell: {name: {kind of call: [calls a point of each stage]}}
# Of what was counted in a schedule's lowered code: {kind of count: [of each stage]}, and HASH: which other codes it equals.
LOWERED_SUFFIX, HASH = ".lowered.json", "hash"
EVERYWHERE = "body_cycles"  # a kind in features.LOWERED that every schedule has
SCHEDULE_SUFFIX = ".schedule.json"  # of dumps in the project's own format (own.py), which need nothing beside them
COLLECTION_FILE, PROGRAM_FILE, BENCH_FILE = "collection.json", "program.json", "bench.txt"
# What lies beside dumps: of this project's scripts; of Halide's autotune loops, and what Generators emit; of systems.
COMPANION_NAMES = {
    BENCH_FILE, COLLECTION_FILE, PROGRAM_FILE, CALLS_FILE, "report.json", "report.html", "best_schedule.py",
    "meta.json", "schedules.csv", "dropped.csv",
    "bench", "compile_log.txt", "compile_err.txt", "bench_err.txt", "autoschedule_command.txt", "compile_command.txt",
    "benchmark_command.txt", "extra_generator_args.txt", ".DS_Store", "Thumbs.db", "desktop.ini",
}  # fmt: skip
COMPANION_SUFFIXES = (
    LOWERED_SUFFIX, ".safetensors", ".h", ".weights", ".log", ".lock", ".tmp",  # .tmp: a file somebody is still writing
    ".a", ".o", ".s", ".so", ".lib", ".obj", ".dll", ".dylib", ".exe", ".ll", ".bc", ".stmt", ".stmt.html", ".cpp", ".c", ".hlpipe",
    ".benchmark.txt",
)  # fmt: skip
COMPANION_PREFIX = "._"  # what macOS packs beside each file
DUMP_SUFFIXES = (".sample", ".featurization", ".json")
BUILT = (b"\x7fELF", b"!<arch>\n", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe")  # what such a file begins with
VECTOR_BYTES = {"avx512": 64, "avx10": 64, "avx": 32}  # by what is in the name of a target, the first that is; 16 elsewhere
MAX_COUNT = float(np.finfo(np.float32).max)
REPEATED = re.compile(r"\d+r+")  # the name of a schedule that is measured once more
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
MALFORMED = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # what nonsense in a companion may raise
ADAMS2019 = "adams2019"  # where a schedule comes from, if nobody says
# What is saved under the name of a file in its place.
STANDS_FOR_A_FILE = [
    (re.compile(rb"version https://[\w.-]+/spec/"), "lfs_pointer", "a Git LFS pointer in place of the file; fetch it with: git lfs pull"),
    (re.compile(rb"(\.\./)*(\.git)?/?annex/objects/"), "annex_pointer", "a git-annex pointer in place of the file; see git annex get"),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*(<!--(?:(?!-->).)*-->\s*)*<(!doctype|html|head|body|\?xml)\b", re.IGNORECASE | re.DOTALL),
        "web_page",
        "a web page in place of the file; download the file itself",
    ),
]  # fmt: skip

# Names


def printable(name):
    """A file's name as text that can be written anywhere in one line, whatever bytes it is made of."""
    name = name.encode("utf-8", "backslashreplace").decode()
    return UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", name)


def is_companion(name):
    """Whether a file of this name lies beside dumps and is none."""
    return name in COMPANION_NAMES or name.lower().endswith(COMPANION_SUFFIXES) or name.startswith(COMPANION_PREFIX)


def is_built(head):
    """Whether a file that begins with these bytes is an executable, an object file or a library."""
    return head.startswith(BUILT)


def compressed_suffix(name):
    """`.gz` of `x.sample.gz`, else the empty text."""
    lower = name.lower()
    return next(suffix for suffix in COMPRESSED_SUFFIXES if lower.endswith(suffix)) if lower.endswith(COMPRESSED_SUFFIXES) else ""


def dump_suffix(name):
    """`.sample` of `x.sample` and of `x.sample.gz`."""
    return os.path.splitext(name.lower().removesuffix(compressed_suffix(name)))[1]


def stem_of(name):
    """`x` of `x.sample` and of `x.sample.gz`."""
    return os.path.splitext(name[: len(name) - len(compressed_suffix(name))])[0]


def schedule_of(name):
    """What a dump's name, say `07r.sample`, calls its schedule: `007`, as collections call it where it is measured the first time."""
    stem = stem_of(name)
    return stem.rstrip("r").zfill(3) if REPEATED.fullmatch(stem) else stem


def stands_for_a_file(data):
    """(reason, detail) where these bytes are not the file itself but what stands for it, else ()."""
    return next(((reason, detail) for pattern, reason, detail in STANDS_FOR_A_FILE if pattern.match(data[:1024])), ())


def read_or_none(path):
    """The bytes of a companion; None where it can't be read."""
    try:
        with open(path, "rb", buffering=0) as f:
            return f.read()
    except OSError:
        return None


# What they say


@dataclass
class ProgramRecord:
    """What is known of a program beside its dumps.

    calls : call_counts, or None; origins : {name of a schedule: where it comes from}; generator : of which it is one variant, or "".
    """

    calls: np.ndarray | None
    origins: dict
    generator: str = ""


def program_record(program_json, listed_calls):
    """The ProgramRecord in the bytes of a program.json, or None, as far as they make sense; `listed_calls` are taken where it has none."""
    content, origins, generator = None, {}, ""
    try:
        content = orjson.loads(program_json or b"{}")
        generator = content["generator"] if isinstance(content.get("generator"), str) else ""
        origins = {key.zfill(3): _origin(candidate) for key, candidate in content.get("candidates", {}).items()}
    except MALFORMED:
        pass
    try:
        return ProgramRecord(call_counts(content["calls"]), origins, generator)
    except MALFORMED:
        return ProgramRecord(listed_calls, origins, generator)


def _origin(candidate):
    """Where a candidate in program.json comes from: `mullapudi2016`; Adams2019 with or without noise in its weights if it does not say."""
    candidate = candidate if isinstance(candidate, dict) else {}
    try:
        return text_of_origin(candidate.get("origin") or candidate.get("autoscheduler"))
    except MALFORMED:
        return ADAMS2019


def text_of_origin(origin):
    """An origin as schedules.csv has it. Raises ValueError where it is no text."""
    if not isinstance(origin, str) or not origin.strip():
        raise ValueError(f"the origin is {origin!r}")
    return printable(origin.strip().lower())


def stage_counts(counts_by_kind, kinds):
    """(T, K) float32, a column for each of `kinds`, from {kind: [number for each stage]}, kinds that nobody tells 0; None if it is empty.

    Raises one of MALFORMED where it is anything else.
    """
    if unknown := sorted(counts_by_kind.keys() - set(kinds)):
        raise ValueError(f"no kind of count is named {unknown[0]!r}; there are {', '.join(kinds)}")
    nothing = [0] * max(map(len, counts_by_kind.values()), default=0)
    counts = np.array([counts_by_kind.get(kind, nothing) for kind in kinds], np.float64).T
    if not (counts.ndim == 2 and (counts >= 0).all() and (counts <= MAX_COUNT).all()):
        raise ValueError("a count is negative, no number or too large, or kinds have different numbers of stages")
    return counts.astype(np.float32) if len(counts) else None


def call_counts(counts_by_kind):
    return stage_counts(counts_by_kind, CALLS)


def lowered_in(text):
    """(stage_counts, hash of the lowered code) of what a schedule's file beside it tells, None each where it does not or makes no sense.

    Kinds that don't occur are left out, but no code runs in no cycles: a file without EVERYWHERE was counted before such things were, and
    what it lacks would pass for zeros. benchmarks/count_again.py counts such again.
    """
    try:
        found = orjson.loads(text or b"{}")
        number = found.pop(HASH, None)
        hash_ = int(number, 16) if isinstance(number, str) and re.fullmatch("[0-7][0-9a-f]{15}", number) else None
        return (stage_counts(found, LOWERED) if EVERYWHERE in found else None), hash_
    except MALFORMED:
        return None, None


def with_vector_bytes(lowered, machine):
    """Counts (T, K) that know how wide a native vector is: by the target in a collection's note, if they were made without it."""
    column, target = LOWERED.index("native_vector_bytes"), (machine or {}).get("target") or ""
    if lowered is None or lowered[:, column].any() or not target:
        return lowered
    lowered = lowered.copy()
    lowered[:, column] = next((size for name, size in VECTOR_BYTES.items() if name in target), 16)
    return lowered


def listed_calls(folder):
    """{program: call_counts} that the folder given as raw_path lists. Raises UserError where the list makes no sense."""
    text = read_or_none(folder / CALLS_FILE)
    try:
        return {name: call_counts(counts_by_kind) for name, counts_by_kind in orjson.loads(text or b"{}").items()}
    except MALFORMED as error:
        raise UserError(
            f'{folder / CALLS_FILE}: {error}; it should hold {{"FOLDER OF A PROGRAM": {{"exp": [calls a point of each stage], ...}}}}'
        ) from None


@dataclass
class Note:
    """What a collection.json says: the name that its collection was given, and the machine that measured, as of Dump."""

    name: str = ""
    machine: dict | None = None


def read_note(text):
    """The Note in the bytes of a collection.json, empty as far as they make no sense."""
    try:
        content = orjson.loads(text)
        name = content.get("name", "")
        machine = content.get("machine")
    except MALFORMED:
        return Note()
    if not isinstance(name, str):
        name = ""
    if not isinstance(machine, dict):
        return Note(name)
    protocol = machine.get("protocol") if isinstance(machine.get("protocol"), dict) else {}
    cores = _count_or_none(machine.get("cores"))
    threads = _count_or_none(machine.get("threads")) or _count_or_none(protocol.get("threads"))
    if protocol.get("threads") == "all cores":
        threads = threads or cores
    texts = {key: machine[key] if isinstance(machine.get(key), str) else None for key in ("processor", "target")}
    return Note(name, {"processor": texts["processor"], "cores": cores, "target": texts["target"], "threads": threads})


def _count_or_none(value):
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
