"""What a candidate's process and its parent tell each other: a dataclass for each thing that can be said."""

from dataclasses import dataclass, field

from halide_tools.execution import Pass

# From the parent


@dataclass(frozen=True)
class GoOn:
    """Do the next step: compile, then check (the reference: run, then featurize), then measure one pass, as often as this is said."""


@dataclass(frozen=True)
class BuildLibrary:
    """Write PREFIX.a and PREFIX.h: the program, as this candidate schedules it, as a function `name` in C."""

    prefix: str
    name: str


@dataclass(frozen=True)
class FindMinimumExtents:
    """Find the smallest outputs that this candidate's schedule can be called with."""


@dataclass(frozen=True)
class CompareSizes:
    """Compare the outputs with the reference's at other sizes, as execution.compare_sizes does."""

    way: str
    smallest: list | None


@dataclass(frozen=True)
class PrintLoopNest:
    """Tell the loops that this candidate's schedule makes."""


@dataclass(frozen=True)
class Profile:
    """Run for so many seconds under Halide's profiler."""

    seconds: float


# From the candidate, in this order; Failed may come at any time, and is the last


@dataclass(frozen=True)
class Proposed:
    """A schedule, not compiled yet.

    description : of the program (programs.describe_stages), for the reference only; schedule : Schedule.to_json, "" where it was not
    asked for or can't be kept as data; lowered_hash : of lowered_identity, None for the reference.
    """

    featurization: bytes
    source: str
    seconds: float
    description: dict = field(default_factory=dict)
    schedule: str = ""
    lowered_hash: int | None = None


@dataclass(frozen=True)
class Compiled:
    seconds: float


@dataclass(frozen=True)
class ReferenceRun:
    """The reference has run, and its outputs are on disk. inputs : execution.describe_inputs."""

    inputs: dict


@dataclass(frozen=True)
class Featurized:
    """The bytes of Adams2019's featurization of the program, from the reference alone."""

    featurization: bytes


@dataclass(frozen=True)
class Checked:
    """The output is the reference's. lowered : lowered_features.as_dict of what was counted in the lowered code; None if nothing was."""

    lowered: dict | None


@dataclass(frozen=True)
class Measured:
    one_pass: Pass


@dataclass(frozen=True)
class LibraryBuilt:
    """PREFIX.a and PREFIX.h are there."""


@dataclass(frozen=True)
class MinimumExtents:
    """As of execution.minimum_extents: a list for each output."""

    extents: list


@dataclass(frozen=True)
class SizesCompared:
    """As of execution.compare_sizes."""

    sizes: list


@dataclass(frozen=True)
class LoopNest:
    """As Halide prints it."""

    text: str


@dataclass(frozen=True)
class Profiled:
    """func_ms : {label of the Func: milliseconds a call}, as of execution.profile."""

    func_ms: dict


@dataclass(frozen=True)
class Failed:
    """detail : a line for a person.

    reason : `timeout`, `deadline`, `too_slow`, `out_of_memory`, `no_legal_state`, `halide_error`, `crashed`, `wrong_result`,
    `no_change` (of a mutation), `no_schedule` (of an author), `not_featurized` (Adams2019's features of the program are not to be had).
    """

    reason: str
    detail: str
