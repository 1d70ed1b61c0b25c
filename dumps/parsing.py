"""From a dump's bytes to a Schedule: Halide's binary formats, JSON and our own (own.py), recognised by content and checked.

The stage order everywhere is that of Halide's featurizations: the output Func first, and within a Func the last update first and the
pure stage last. What is unusable has a reason. To add a format: a function that returns a Schedule or raises Unusable, called from
`parse_json_or_binary`.

Axes: T stages.
"""

import functools
import hashlib
import itertools
import json
import math
import operator
from dataclasses import dataclass

import numpy as np
import orjson

from dumps import own
from dumps.archives import looks_like_an_archive
from dumps.bench import bench_runtime
from dumps.companions import DUMP_SUFFIXES, dump_suffix, stands_for_a_file, stem_of, with_vector_bytes
from dumps.files import Unusable, read_bytes
from features import CALLS, N_HISTOGRAMS, N_SCHEDULE, OPS, PATTERNS, SCHEDULE_FEATURES, STAGE_BYTES, TYPE_COLUMNS, TYPES

ANDERSON_STAGE_BYTES = 1440  # Anderson2021, for GPUs: 73 + 287 floats
MAX_SCHEDULE_FEATURE = 1e14  # what Halide's own trainer accepts
MIN_RUNTIME_MS = 1e-6  # less than a nanosecond is no measurement
IN_ORDER = operator.itemgetter(*SCHEDULE_FEATURES)


@dataclass
class Schedule:
    """One measured schedule of one program.

    schedule_features : (T, 39) float32, as Halide computes them; without has_schedule_features zeros, but for points_computed_minimum
    algorithm_features : (T, 41, 8) float32: types in use, operation and access histograms, by type; other schedules may share the array
    program : a hash of the algorithm features, never an id from the file
    runtime_ms : float; NaN where the dump need not tell
    calls : (T, 7) float32, calls a point of each kind in features.CALLS; zeros where nobody says
    lowered : (T, K) float32, counts in the lowered code of each kind in features.LOWERED; None where nobody counted
    lowered_hash : the same number for all schedules that lower to the same code; None where nobody says
    origin : where the schedule comes from, where the dump itself says; else ""
    """

    schedule_features: np.ndarray
    algorithm_features: np.ndarray
    program: int
    runtime_ms: float
    calls: np.ndarray | None = None
    lowered: np.ndarray | None = None
    has_schedule_features: bool = True
    lowered_hash: int | None = None
    origin: str = ""

    def __post_init__(self):
        if self.calls is None:
            self.calls = np.zeros((len(self.schedule_features), len(CALLS)), np.float32)

    @functools.cached_property
    def schedule(self):
        """A hash of the schedule features; what the schedule lowers to where it has none."""
        return stable_hash(self.schedule_features) if self.has_schedule_features else self.lowered_hash

    @property
    def instance(self):
        """The program at these sizes."""
        return stable_hash(self.program, self.schedule_features[:, own.SIZES])

    def another(self, lowered, lowered_hash):
        """Another Schedule of the same program at the same sizes, of which the counts in its lowered code alone are known."""
        sizes = np.zeros_like(self.schedule_features)
        sizes[:, own.SIZES] = self.schedule_features[:, own.SIZES]
        return Schedule(sizes, self.algorithm_features, self.program, math.nan, self.calls, lowered.astype(np.float32), False, lowered_hash)


def stable_hash(*parts):
    """63 bits that depend on the contents (float arrays, bytes, text or numbers) alone, the same on every machine."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            with np.errstate(invalid="ignore"):  # of a NaN that signals
                part = np.ascontiguousarray(part + np.float32(0), "<f4").tobytes()  # + 0: -0 is 0
        digest.update(part if isinstance(part, bytes) else str(part).encode())
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def hex_id(number):
    return f"{int(number):016x}"


def parse_dump(dump, max_runtime_ms, need_runtime=True):
    """The Schedule in a Dump, recognised by content. Raises Unusable with one of the reasons that docs/data_formats.md lists."""
    data = read_bytes(dump)
    suffix = dump_suffix(dump.file)
    if not data:
        raise Unusable("truncated", "the file is empty")
    if instead := stands_for_a_file(data):
        raise Unusable(*instead)
    if suffix not in DUMP_SUFFIXES and looks_like_an_archive(data):
        raise Unusable("nested_archive", "an archive in an archive, or compressed twice; unpack it")
    schedule = parse_json_or_binary(data, suffix)
    _check_features(schedule)
    if need_runtime:
        if schedule.runtime_ms is None:
            schedule.runtime_ms = _runtime_beside(dump, suffix, schedule.has_schedule_features)
        _check_runtime(schedule.runtime_ms, max_runtime_ms)
    elif schedule.runtime_ms is None:
        schedule.runtime_ms = math.nan
    if dump.calls is not None and len(dump.calls) == len(schedule.calls):
        schedule.calls = dump.calls
    if dump.lowered is not None and len(dump.lowered) == len(schedule.calls):
        schedule.lowered = dump.lowered
    schedule.lowered = with_vector_bytes(schedule.lowered, dump.machine)
    if schedule.lowered is None and not schedule.has_schedule_features:
        raise Unusable("no_counts", "neither Halide's features nor all counts in its lowered code: nothing tells its schedule")
    if schedule.lowered_hash is None:
        schedule.lowered_hash = dump.lowered_hash
    return schedule


def parse_json_or_binary(data, suffix):
    """The Schedule in bytes of either kind, not checked; its runtime is None where it lies beside them. Raises Unusable."""
    if suffix != ".json" and not data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return parse_binary(data, suffix)
    try:
        return parse_json(data)
    except Unusable as unusable:
        if suffix == ".json" or unusable.reason != "malformed_json":
            raise
        return parse_binary(data, suffix)  # floats whose first byte happens to be a brace


def parse_binary(data, suffix):
    """A `.sample` (stages, runtime in ms, two ids) or a `.featurization` (stages only)."""
    footer = 12 if len(data) % STAGE_BYTES == 12 else 0
    if suffix in (".sample", ".featurization") and len(data) % STAGE_BYTES != (12 if suffix == ".sample" else 0):
        if len(data) % ANDERSON_STAGE_BYTES == (12 if suffix == ".sample" else 0):
            raise Unusable("other_featurization", "360 floats a stage: Anderson2021's, for GPUs; this project reads Adams2019's 326")
        raise Unusable("truncated", f"{len(data)} bytes is no whole number of stages of {STAGE_BYTES} bytes")
    if len(data) % STAGE_BYTES not in (0, 12):
        if len(data) % ANDERSON_STAGE_BYTES in (0, 12) and _plausible(data[: len(data) // 1440 * 1440]):
            raise Unusable("other_featurization", "360 floats a stage: Anderson2021's, for GPUs; this project reads Adams2019's 326")
        raise Unusable("unknown_format", "neither a .sample, a .featurization nor a JSON dump")
    body = data[: len(data) - footer]
    if suffix not in (".sample", ".featurization") and not _plausible(body):
        raise Unusable("unknown_format", "neither a .sample, a .featurization nor a JSON dump")
    stages = np.frombuffer(body, "<f4").reshape(-1, STAGE_BYTES // 4)  # (T, 326)
    runtime_ms = float(np.frombuffer(data, "<f4", 1, len(body))[0]) if footer else None
    return Schedule(stages[:, :N_SCHEDULE].astype(np.float32), *_algorithm_in_binary(stages[:, N_SCHEDULE:].tobytes()), runtime_ms)


@functools.lru_cache(32)  # the schedules of a program come together, and all say the same of it
def _algorithm_in_binary(data):
    """(algorithm features (T, 41, 8), their hash) from the bytes of the histograms of all stages."""
    histograms = np.frombuffer(data, "<f4").reshape(-1, N_HISTOGRAMS, len(TYPES))
    features = np.zeros((*histograms.shape[:2], len(TYPE_COLUMNS)), np.float32)
    features[:, :, : len(TYPES)] = histograms
    return features, stable_hash(features)


def _plausible(body):
    """Whether bytes without a telling name look like features: finite, not negative and not huge."""
    values = np.frombuffer(body[: len(body) // 4 * 4], "<f4")
    with np.errstate(invalid="ignore"):
        return bool(len(values) and np.isfinite(values).all() and (values >= 0).all() and (values <= MAX_SCHEDULE_FEATURE).all())


def _runtime_beside(dump, suffix, has_bench):
    """Milliseconds from the bench.txt beside a dump that does not hold its own runtime. Raises Unusable where there is no time in it."""
    if suffix == ".json" or not has_bench:
        raise Unusable("no_runtime", "it holds no runtime")
    try:
        return bench_runtime(dump.bench, stem_of(dump.file.rpartition("/")[2]), dump.bench_is_shared)
    except ValueError as error:
        raise Unusable("no_runtime", str(error)) from None


def parse_json(data):
    """A JSON dump: our own, or programming_details.Nodes and scheduling_data, closed by total_execution_time_ms."""
    try:
        tree = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            tree = json.loads(data)  # slower, but takes NaN and Infinity, which deserve a better reason
        except (ValueError, RecursionError):
            raise Unusable("malformed_json", str(error)) from None
    if own.is_own(tree):
        return _schedule_from_own(own.read(tree))
    if not isinstance(tree, dict) or not {"programming_details", "scheduling_data"} <= tree.keys():
        raise Unusable("unknown_format", f"JSON, but neither programming_details and scheduling_data nor the format {own.FORMAT}")
    try:
        return _schedule_from_json(tree)
    except OverflowError:
        raise Unusable("not_a_number", "a number in it is larger than any float") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise Unusable("missing_field", f"{type(error).__name__}: {error}"[:200]) from None


def _schedule_from_json(tree):
    runtime_ms, stages = None, []
    for entry in tree["scheduling_data"]:
        if entry.get("name") == "total_execution_time_ms":
            runtime_ms = _milliseconds(entry["value"])
        else:
            features = entry["Details"]["scheduling_feature"]
            stages.append((entry["Name"], IN_ORDER(features)))
    histograms = {}
    for node in tree["programming_details"]["Nodes"]:
        details = node["Details"]
        histograms[node["Name"]] = "\n".join(details["Op histogram"]), "\n".join(details["Memory access patterns"])
    rows, funcs = [], []
    # The dump puts a Func's pure stage first; and it keeps one histogram a Func, that of its last definition.
    for name, group in itertools.groupby(stages, key=lambda stage: stage[0].partition(".update(")[0]):
        first = len(rows)
        rows += [features for _, features in group][::-1]
        funcs.append((*histograms[name], len(rows) - first))
    with np.errstate(over="ignore"):
        schedule_features = np.fromiter(itertools.chain.from_iterable(rows), np.float32, len(rows) * N_SCHEDULE).reshape(-1, N_SCHEDULE)
        return Schedule(schedule_features, *_algorithm_in_json(tuple(funcs)), runtime_ms)


def _schedule_from_own(dump):
    """The Schedule in an own.OwnDump: the sizes of its stages are all the schedule features there are."""
    calls, lowered = own.counts_of_stages(dump)
    n_stages, _, n_types = dump.program.algorithm.shape
    schedule_features = np.zeros((n_stages, N_SCHEDULE), np.float32)
    schedule_features[:, own.SIZES] = dump.program.sizes
    algorithm = np.zeros((n_stages, N_HISTOGRAMS, len(TYPE_COLUMNS)), np.float32)
    algorithm[:, :, :n_types] = dump.program.algorithm
    return Schedule(
        schedule_features, algorithm, stable_hash(algorithm), dump.runtime_ms, calls, lowered, False, dump.lowered_hash, dump.origin
    )


def _milliseconds(value):
    """A JSON value as a runtime; None of null. Raises ValueError or TypeError where it is no number."""
    if isinstance(value, bool):
        raise TypeError(f"the runtime is {value}")
    return None if value is None else float(value)


@functools.lru_cache(32)  # as _algorithm_in_binary
def _algorithm_in_json(funcs):
    """(algorithm features (T, 41, 8), their hash) of Funcs, each (lines such as `Add:  3`, lines such as `Pointwise:  1 0 0 1`, stages)."""
    features, first = np.zeros((sum(n for *_, n in funcs), N_HISTOGRAMS, len(TYPE_COLUMNS)), np.float32), 0
    for operations, patterns, n_stages in funcs:
        ops = np.array([float(line.rsplit(":", 1)[1]) for line in operations.split("\n")])
        accesses = np.array([[float(v) for v in line.rsplit(":", 1)[1].split()] for line in patterns.split("\n")])
        features[first, 1:, -1] = np.concatenate([ops.reshape(-1, len(OPS)).sum(0), accesses.reshape(-1, len(PATTERNS)).sum(0)])
        first += n_stages
    return features, stable_hash(features)


def _check_features(schedule):
    """Raises Unusable for what can't be learned from; the limits are those of Halide's own trainer."""
    features, algorithm = schedule.schedule_features, schedule.algorithm_features
    if len(features) == 0:
        raise Unusable("no_stages", "not a single stage in it")
    extremes = [features.min(), features.max(), algorithm.min(), algorithm.max()]  # NaN where there is one
    if not all(map(math.isfinite, extremes)):
        raise Unusable("not_a_number", "a feature is NaN or infinite")
    if max(-extremes[2], extremes[3]) > MAX_SCHEDULE_FEATURE:
        raise Unusable("bad_feature", f"an operation or access count is above {MAX_SCHEDULE_FEATURE:g}")
    if extremes[0] < 0 or extremes[1] > MAX_SCHEDULE_FEATURE:
        stage, column = np.argwhere((features < 0) | (features > MAX_SCHEDULE_FEATURE))[0]
        raise Unusable("bad_feature", f"{SCHEDULE_FEATURES[column]} of stage {stage} is {features[stage, column]:g}")


def _check_runtime(runtime_ms, max_runtime_ms):
    """Raises Unusable for a runtime that is no measurement."""
    if not math.isfinite(runtime_ms):
        raise Unusable("not_a_number", f"the runtime is {runtime_ms}")
    if runtime_ms == 0:
        raise Unusable("zero_runtime", "the runtime is 0: its benchmark failed")
    if not MIN_RUNTIME_MS <= runtime_ms <= max_runtime_ms:
        limits = f"from {MIN_RUNTIME_MS:g} to {max_runtime_ms:g} is believed"
        raise Unusable("implausible_runtime", f"the runtime is {runtime_ms:g} ms; {limits}")
