"""The project's own dump format: a measured schedule that has no Adams2019 features, whoever wrote it. One JSON file a schedule.

`write` makes the bytes of a `NAME.schedule.json`, `read` takes them; docs/data_formats.md describes the keys. Everything that identifies
the schedule is in the file: what its program computes, how large its stages are, and what the schedule lowers to.

Axes: T stages, output first, as in Halide's featurizations.
"""

from dataclasses import dataclass, field

import numpy as np
import orjson

from dumps.archives import MAX_DUMP_BYTES
from dumps.companions import MALFORMED, call_counts, stage_counts, text_of_origin
from dumps.files import Unusable
from features import CALLS, LOWERED, LOWERED_EVENTS, N_HISTOGRAMS, N_SCHEDULE, SCHEDULE_FEATURES, STAGE_BYTES, TYPE_COLUMNS, TYPES

FORMAT, VERSION = "halide_schedule", 1  # values of the keys `format` and `version`
SIZES = SCHEDULE_FEATURES.index("points_computed_minimum")  # the one schedule feature that is the same for all schedules of a program
MAX_HASH = 2**63
MAX_STAGES = MAX_DUMP_BYTES // STAGE_BYTES
ADDED_LATER = {"branched_lanes", "masked_stores"}  # kinds of which most schedules have none; dumps written before lack them


@dataclass(frozen=True)
class Program:
    """What all schedules of a program share.

    sizes : (T,) float32, the least number of points that each stage computes; algorithm : (T, 41, 7 or 8) float32, operation and access
    histograms by type; stages : names; calls : {kind of features.CALLS: [calls a point of each stage]}
    """

    sizes: np.ndarray
    algorithm: np.ndarray
    stages: list = field(default_factory=list)
    calls: dict = field(default_factory=dict)

    @classmethod
    def of_featurization(cls, data, stages=(), calls=()):
        """The Program that Adams2019 has featurized, from those bytes (326 float32 a stage); ValueError where they are none."""
        found = np.frombuffer(data, "<f4").reshape(-1, N_SCHEDULE + N_HISTOGRAMS * len(TYPES))
        algorithm = found[:, N_SCHEDULE:].reshape(-1, N_HISTOGRAMS, len(TYPES))
        return cls(found[:, SIZES], algorithm, list(stages), dict(calls))

    def to_json(self):
        """What `from_json` takes. Of the algorithm only what is not 0 is kept, with its place in the array."""
        at = np.flatnonzero(self.algorithm)
        return {
            "stages": self.stages, "sizes": self.sizes.tolist(), "calls": self.calls,
            "algorithm": {"types": self.algorithm.shape[2], "at": at.tolist(), "values": self.algorithm.reshape(-1)[at].tolist()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, tree):
        """Raises Unusable, or one of MALFORMED, where `tree` is none."""
        sizes, algorithm = np.asarray(tree["sizes"], np.float64), tree["algorithm"]
        n_types, at, values = algorithm["types"], np.asarray(algorithm["at"]), np.asarray(algorithm["values"], np.float64)
        if sizes.ndim != 1 or n_types not in (len(TYPES), len(TYPE_COLUMNS)):
            raise Unusable("missing_field", f"sizes should be a list of numbers, and types {len(TYPES)} or {len(TYPE_COLUMNS)}")
        if len(sizes) > MAX_STAGES:
            raise Unusable("too_large", f"{len(sizes)} stages, more than any .sample may have")
        histograms = np.zeros(len(sizes) * N_HISTOGRAMS * n_types, np.float32)
        at = at.astype(np.int64) if not at.size else at
        if at.ndim != 1 or at.shape != values.shape or at.dtype.kind != "i":
            raise Unusable("missing_field", "`at` and `values` of the algorithm should be as many whole numbers and numbers")
        if len(at) and not (0 <= at.min() and at.max() < len(histograms) and len(np.unique(at)) == len(at)):
            raise Unusable("bad_feature", f"a place of the algorithm's features comes twice or is none of {len(sizes)} stages")
        with np.errstate(over="ignore"):  # infinite is found later, as in any dump
            histograms[at] = values
            return cls(
                sizes.astype(np.float32), histograms.reshape(-1, N_HISTOGRAMS, n_types), list(tree["stages"]), dict(tree.get("calls") or {})
            )


@dataclass(frozen=True)
class OwnDump:
    """A dump in this format.

    lowered_hash : of halide_tools.lowered_identity; counts : {kind: [count of each stage]} in the lowered code, or None, as of
    lowered_features.as_dict; directives : text of schedules.Schedule.to_json, "" where the schedule can't be kept so; origin : where it
    comes from; runtime_ms : None where it was not measured; passes_ms : of each pass
    """

    program: Program
    lowered_hash: int
    normalisation: str
    counts: dict | None
    directives: str
    origin: str
    runtime_ms: float | None
    passes_ms: list = field(default_factory=list)


def write(dump):
    """The bytes of an OwnDump.

    Kinds of counts that don't occur are written out as zeros: a kind that is not there was not counted.
    """
    n_stages, counts = len(dump.program.sizes), dump.counts
    if counts is not None:
        counts = {kind: counts.get(kind, [0] * n_stages) for kind in dict.fromkeys([*LOWERED, *counts])}
    return orjson.dumps({
        "format": FORMAT, "version": VERSION, "origin": dump.origin, "runtime_ms": dump.runtime_ms, "passes_ms": dump.passes_ms,
        "program": dump.program.to_json(),
        "lowered": {"hash": f"{dump.lowered_hash:016x}", "normalisation": dump.normalisation, "counts": counts},
        "directives": orjson.loads(dump.directives) if dump.directives else None,
    })  # fmt: skip


def is_own(tree):
    """Whether parsed JSON claims to be of this format."""
    return isinstance(tree, dict) and tree.get("format") == FORMAT


def read(tree):
    """The OwnDump in parsed JSON that is_own. Raises Unusable where it is damaged, or of a later version."""
    if tree.get("version") != VERSION:
        raise Unusable("unknown_format", f"version {tree.get('version')!r} of {FORMAT}, which this project reads in version {VERSION}")
    try:
        lowered, program = tree["lowered"], Program.from_json(tree["program"])
        number = int(lowered["hash"], 16)
        if not 0 <= number < MAX_HASH:
            raise ValueError("the hash of its lowered code has more than 63 bits")
        directives = tree["directives"]
        return OwnDump(
            program, number, str(lowered["normalisation"]), _counts(lowered["counts"]),
            orjson.dumps(directives).decode() if directives else "", text_of_origin(tree["origin"]), _milliseconds(tree["runtime_ms"]),
            list(tree["passes_ms"]),
        )  # fmt: skip
    except MALFORMED as error:
        raise Unusable("missing_field", f"{type(error).__name__}: {error}"[:200]) from None


def counts_of_stages(dump):
    """(calls (T, 7), counts in the lowered code (T, K) or None) of an OwnDump. Raises Unusable.

    Counts that lack a kind of features.LOWERED_EVENTS were made by a version that did not count it: then there are none, but for kinds of
    ADDED_LATER, which are 0.
    """
    n_stages, counts = len(dump.program.sizes), dump.counts
    try:
        calls = call_counts({kind: dump.program.calls[kind] for kind in CALLS if kind in dump.program.calls})
        lowered = None
        if counts is not None and counts.keys() | ADDED_LATER >= set(LOWERED_EVENTS):
            lowered = stage_counts({kind: counts[kind] for kind in LOWERED if kind in counts}, LOWERED)
    except MALFORMED as error:
        raise Unusable("bad_feature", f"{type(error).__name__}: {error}"[:200]) from None
    if any(found is not None and len(found) != n_stages for found in (calls, lowered)) or len(dump.program.stages) != n_stages:
        raise Unusable("missing_field", f"it has sizes of {n_stages} stages, and names, calls or counts of another number")
    return calls, lowered


def _counts(counts):
    if counts is not None and not isinstance(counts, dict):
        raise TypeError("counts should be {kind: [count of each stage]}")
    return counts


def _milliseconds(value):
    if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise TypeError(f"the runtime is {value!r}")
    return None if value is None else float(value)
