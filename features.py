"""The input features of a stage: Halide's own features, and what is computed from them.

`featurize` turns the features of a dump, and its lowered-code counts if there are any, into the inputs of the model. FEATURES are their
names, FEATURE_UNITS their units.

Axes: T stages of a schedule, S stages of several schedules end to end, F features.
"""

import numpy as np

# Halide's Adams2019 featurization, version 3 (Featurization.h): a stage is 39 schedule features, then the histograms by type.

SCHEDULE_FEATURES = """
num_realizations num_productions points_computed_per_realization points_computed_per_production points_computed_total
points_computed_minimum innermost_loop_extent innermost_pure_loop_extent unrolled_loop_extent inner_parallelism outer_parallelism
bytes_at_realization bytes_at_production bytes_at_root innermost_bytes_at_realization innermost_bytes_at_production
innermost_bytes_at_root inlined_calls unique_bytes_read_per_realization unique_lines_read_per_realization
allocation_bytes_read_per_realization working_set vector_size native_vector_size num_vectors num_scalars scalar_loads_per_vector
vector_loads_per_vector scalar_loads_per_scalar bytes_at_task innermost_bytes_at_task unique_bytes_read_per_vector
unique_lines_read_per_vector unique_bytes_read_per_task unique_lines_read_per_task working_set_at_task working_set_at_production
working_set_at_realization working_set_at_root
""".split()
TYPES = ["bool", "uint8", "uint16", "uint32", "uint64", "float", "double"]
OPS = """
const cast variable param add sub mod mul div min max eq ne lt le and or not select image_call func_call self_call extern_call let
""".split()
# Halide's labels transpose and broadcast are swapped in its source; they are kept as its own weights were trained with them.
PATTERNS = [
    f"{pattern}_{access}"
    for pattern in ("pointwise", "transpose", "broadcast", "slice")
    for access in ("load_func", "load_self", "load_image", "store")
]  # fmt: skip

N_SCHEDULE = len(SCHEDULE_FEATURES)  # 39
N_HISTOGRAMS = 1 + len(OPS) + len(PATTERNS)  # 41 rows: types in use, operations, memory access patterns
STAGE_BYTES = 4 * (N_SCHEDULE + N_HISTOGRAMS * len(TYPES))  # 1,304
# JSON dumps have no types: their histograms go into a column of their own behind Halide's seven types.
TYPE_COLUMNS = [*TYPES, "unknown"]
STAGE_COUNTS = N_HISTOGRAMS * len(TYPE_COLUMNS)  # algorithm features of a stage
# Operations that Halide's histograms do not tell apart, though their costs range from one instruction a vector (abs) to thirty (atan2):
# calls of the C library, a lane at a time; functions computed in vectors; integer division that is no shift. The last is div or mod in
# the histograms, the others are extern_call.
CALLS = ["sin_cos", "library", "exp", "log", "pow", "sqrt", "int_division"]
# Counts of what a stage does in a run of the program, from the lowered code (halide_tools/lowered_features.py). First as the text says:
# `statements` are those in the code, however often they run. Then what a processor makes of it: "native" are operations on whole vector
# registers, so that narrow types need fewer; loads and stores "executed" are those that are left once registers keep what they can.
# `branched_lanes` are loaded or stored one by one, each if a predicate lets it through; `masked_stores` store whole vectors under a mask.
# Lines come from, or go to, the cache that holds what a loop touches. Cycles are estimates: `body_cycles` on the busiest unit, and
# `chain_cycles` more where an update waits for another.
LOWERED_EVENTS = [
    "iterations", "statements", "points_stored", "points_scattered", "bytes_loaded", "bytes_stored",
    "allocations", "bytes_allocated", "stack_allocations", "stack_bytes",
    "native_operations", "native_multiplications", "native_divisions", "native_casts", "native_shuffles", "native_functions",
    "library_calls", "scalar_instructions", "index_instructions", "loads_executed", "stores_executed", "points_gathered_executed",
    "points_scattered_executed", "branched_lanes", "masked_stores", "body_cycles", "chain_cycles", "updates_in_memory", "spilled_vectors",
    "lines_from_l2", "lines_from_l3", "lines_from_memory", "lines_to_l2", "lines_to_l3", "lines_to_memory", "parallel_cycles",
    "wall_cycles", "tasks", "parallel_loops",
]  # fmt: skip
# Of each stage, too, though it is the same for all: what "native" means on the machine that the schedule was lowered for.
LOWERED = [*LOWERED_EVENTS, "native_vector_bytes"]
# What the model is told of a schedule besides the algorithm: Halide's schedule features and lowered-code counts, or one of them.
INPUTS = ("all", "without_counts", "counts_alone")


def inputs_of(has_lowered_counts, has_schedule_features):
    """Which of INPUTS schedules come with, (N,), from bool (N,) each."""
    return np.where(has_lowered_counts, np.where(has_schedule_features, "all", "counts_alone"), "without_counts")


def featurize(schedules):
    """Per-stage inputs of the model for each Schedule, not normalised: a list of (T, F) float32, the columns FEATURES names.

    Logarithms of Halide's schedule features; ratios and flags; the cost terms of Adams2019's cost model (cost_model_generator.cpp in
    Halide); calls; counts from the lowered code, 0 where there are none; and operation and access histograms, summed over types and by
    type. What depends on Halide's schedule features is 0 where a schedule has none but the sizes of its stages. The stages of all schedules
    are computed at once, end to end: a column is (S,), S stages in all.
    """
    if not schedules:
        return []
    lengths = np.array([len(schedule.schedule_features) for schedule in schedules])
    schedule_features = np.concatenate([schedule.schedule_features for schedule in schedules])  # (S, 39)
    s = dict(zip(SCHEDULE_FEATURES, schedule_features.T.astype(np.float64)))
    calls = dict(zip(CALLS, np.concatenate([schedule.calls for schedule in schedules]).T.astype(np.float64)))  # {kind: (S,)}
    owner, size = np.repeat([range(len(schedules)), lengths], lengths, axis=1)  # (S,) each
    has_schedule_features = np.array([schedule.has_schedule_features for schedule in schedules])[owner]
    position = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # The columns of the algorithm are computed once a program; `at` (S,) is the place of a stage's algorithm in them.
    programs = {schedule.program: schedule.algorithm_features for schedule in schedules}
    ends = dict(zip(programs, np.cumsum([len(histograms) for histograms in programs.values()])))
    at = np.array([ends[schedule.program] for schedule in schedules])[owner] - size + position
    by_op, algorithm_columns = _algorithm_columns(np.concatenate(list(programs.values())))
    work = by_op.sum(1)[at] * s["points_computed_total"]
    loops = _loop_bodies(s, owner, position)
    columns = [
        np.log1p(schedule_features),
        np.stack(list(_ratios(s, loops, owner).values()), 1),
        np.log1p(np.stack(list(_cost_terms(s, loops, by_op[at, OPS.index("extern_call")], calls).values()), 1)),
        _lowered_columns(schedules, s, owner),
        np.stack([has_schedule_features, np.log1p(work)], 1),
        np.log1p(np.stack([*calls.values(), position, size - 1 - position], 1)),
        algorithm_columns[at],
    ]
    columns = np.concatenate(columns, 1, dtype=np.float32, casting="same_kind")  # (S, F)
    columns[np.ix_(~has_schedule_features, SCHEDULE_COLUMNS)] = 0
    return np.split(columns, np.cumsum(lengths)[:-1])


def _algorithm_columns(histograms):
    """Operations a point of some stages, (S, 24), and all the columns that depend on their algorithm features (S, 41, 8) alone."""
    h = np.maximum(histograms, 0)
    types, ops = h[:, 0], h[:, 1 : 1 + len(OPS)]
    over_types = h @ np.ones(len(TYPE_COLUMNS), np.float32)  # (S, 41); numpy's sum takes ten times as long over so short an axis
    by_op, by_type = over_types[:, 1 : 1 + len(OPS)], ops.sum(1)  # (S, 24), (S, 8)
    in_floating_point = ops[:, :, 5] + ops[:, :, 6]
    logs = np.log1p(np.concatenate([by_type, by_op, in_floating_point, over_types[:, 1 + len(OPS) :]], 1))
    return by_op, np.concatenate([types > 0, logs], 1)


def _loop_bodies(s, owner, position):
    """How often the innermost loop body of each stage runs, (S,) each: over `full` vectors, over `partial` ones, and over `scalar`s.

    num_vectors and num_scalars count the points that consumers need, as if the rest beyond whole vectors ran one point at a time. Halide
    runs a vector there, too, most of whose lanes may be waste. points_computed_per_production has the extents of its loops rounded up,
    so it gives the number of vectors. An inlined stage runs inside its consumer's loops, as often as it is called there.
    """
    is_vector, inlined = s["vector_size"] > 1, s["inlined_calls"] > 0
    executed = s["num_productions"] * s["points_computed_per_production"] / np.maximum(s["vector_size"], 1)
    full = np.where(is_vector, np.minimum(s["num_vectors"], executed), 0)
    bodies = {"full": full, "partial": np.where(is_vector, executed - full, 0), "scalar": np.where(is_vector, 0, executed)}
    # The consumer is the last stage before it in its schedule that is computed in loops with the same numbers of points.
    order = np.lexsort([position, s["num_scalars"], s["num_vectors"], owner])
    keys = np.stack([owner, s["num_vectors"], s["num_scalars"]])[:, order]
    starts = np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(0)]
    place = np.arange(len(order))
    last = np.maximum.accumulate(np.where(inlined[order], -1, place))
    has_consumer = np.zeros(len(order), bool)
    has_consumer[order] = last >= np.maximum.accumulate(np.where(starts, place, 0))
    consumer = np.zeros(len(order), int)
    consumer[order] = order[np.maximum(last, 0)]
    # A stage with several consumers has no such numbers of its own: they are sums over its consumers.
    rest = s["num_scalars"] / np.where(is_vector, np.maximum(s["vector_size"], 1), 1)
    summed = {"full": s["num_vectors"], "partial": np.where(is_vector, rest, 0), "scalar": np.where(is_vector, 0, rest)}
    calls = s["inlined_calls"] / np.maximum(s["num_vectors"] * s["vector_size"] + s["num_scalars"], 1)
    return {
        kind: np.where(inlined, calls * np.where(has_consumer, values[consumer], summed[kind]), values) for kind, values in bodies.items()
    }


def _ratios(s, loops, owner):
    """Shares and flags, (S,) each, from schedule features by name."""

    def log_ratio(a, b):
        return np.log1p(s[a]) - np.log1p(s[b])

    padding = np.log1p(s["num_productions"] * s["points_computed_per_production"]) - np.log1p(s["points_computed_total"])
    instances = s["num_vectors"] + s["num_scalars"]
    tasks = s["inner_parallelism"] * s["outer_parallelism"]
    return {
        "recompute": log_ratio("points_computed_total", "points_computed_minimum"),
        "productions_per_realization": log_ratio("num_productions", "num_realizations"),
        "padding": padding,
        "outer_padding": _outer_padding(s, padding, owner),
        "partial_share": loops["partial"] / np.maximum(loops["full"] + loops["partial"] + loops["scalar"], 1),
        "vector_fill": s["vector_size"] / np.maximum(s["native_vector_size"], 1),
        "vector_share": s["num_vectors"] / np.maximum(instances, 1),
        "points_per_instance": np.log1p(s["points_computed_total"] / np.maximum(instances, 1)),
        "unrolled_share": log_ratio("unrolled_loop_extent", "innermost_loop_extent"),
        "pure_loop_share": log_ratio("innermost_pure_loop_extent", "innermost_loop_extent"),
        "is_inlined": s["inlined_calls"] > 0,
        "is_at_root": s["num_realizations"] == 1,
        "is_parallel": tasks > 1,
        "tasks": np.log1p(tasks),
        "points_per_task": np.log1p(s["points_computed_total"] / np.maximum(tasks, 1)),
        "bytes_per_line_realization": log_ratio("unique_bytes_read_per_realization", "unique_lines_read_per_realization"),
        "bytes_per_line_vector": log_ratio("unique_bytes_read_per_vector", "unique_lines_read_per_vector"),
        "bytes_per_line_task": log_ratio("unique_bytes_read_per_task", "unique_lines_read_per_task"),
        "allocation_read_share": log_ratio("unique_bytes_read_per_realization", "allocation_bytes_read_per_realization"),
        "storage_share": log_ratio("bytes_at_production", "bytes_at_realization"),
        "row_share": log_ratio("innermost_bytes_at_production", "bytes_at_production"),
        "working_set_growth": log_ratio("working_set_at_root", "working_set_at_task"),
    }  # fmt: skip


def _outer_padding(s, padding, owner):
    """Padding of the loops that a stage probably lies in, (S,): those of the last stage before it that is produced less often.

    Halide counts the productions of a stage inside another's loops without the rounding up of those loops.
    """
    computed = np.flatnonzero(s["inlined_calls"] <= 0)
    found, around, schedule = [], [], None
    for own, productions, own_padding in zip(
        *(column[computed].tolist() for column in (owner, s["num_productions"], np.maximum(padding, 0)))
    ):
        if own != schedule:
            schedule, around = own, []  # (productions, padding in all) of the loops that may be open, outermost first
        while around and around[-1][0] >= productions:
            around.pop()
        found.append(around[-1][1] if around else 0.0)
        around.append((productions, own_padding + found[-1]))
    outer = np.zeros(len(padding))
    outer[computed] = found
    return outer


def _lowered_columns(schedules, s, owner):
    """The counts from the lowered code, whether there are any, the ratio of points stored to those by Halide's features, LOWERED_RATIOS.

    (S, K + 6).
    """
    has_counts = np.array([schedule.lowered is not None for schedule in schedules])[owner]
    n_events = len(LOWERED_EVENTS)
    columns = np.zeros((len(owner), n_events + 2 + len(LOWERED_RATIOS)))
    if not has_counts.any():
        return columns
    lowered = np.concatenate([schedule.lowered for schedule in schedules if schedule.lowered is not None]).astype(np.float64)
    columns[has_counts, :n_events] = np.log1p(lowered[:, :n_events])
    columns[:, n_events] = has_counts
    by_halide = np.maximum(s["points_computed_total"], s["num_productions"] * s["points_computed_per_production"])[has_counts]
    stored = lowered[:, LOWERED.index("points_stored")] + lowered[:, LOWERED.index("points_scattered")]
    known = (stored > 0) & (by_halide > 0) & (s["inlined_calls"][has_counts] <= 0)
    columns[has_counts, n_events + 1] = np.log(np.where(known, stored, 1) / np.where(known, by_halide, 1))
    columns[has_counts, -len(LOWERED_RATIOS) :] = _lowered_ratios(lowered)
    return columns


LOWERED_RATIOS = ["parallel_share", "wall_share", "chain_share", "cycles_a_task", "wide_vectors"]
WIDE_BYTES = 64  # of a native vector: AVX-512 and its like, another kind of machine


def _lowered_ratios(lowered):
    """LOWERED_RATIOS of counts (S, K): (S, 5)."""
    count = dict(zip(LOWERED, lowered.T))
    cycles = np.maximum(count["body_cycles"] + count["chain_cycles"], 1)
    shares = [count[kind] / cycles for kind in ("parallel_cycles", "wall_cycles", "chain_cycles")]
    return np.stack([*shares, np.log1p(cycles / np.maximum(count["tasks"], 1)), count["native_vector_bytes"] >= WIDE_BYTES], 1)


def _cost_terms(s, loops, math_calls, calls):
    """Counts of events that take time, (S,) each: the terms of Adams2019's cost model, and calls of mathematical functions."""
    inlined, parallel = s["inlined_calls"] > 0, s["inner_parallelism"] > 1
    innermost_task = np.maximum(s["innermost_bytes_at_task"], 1)
    vectors = loops["full"] + loops["partial"]
    points = vectors * s["vector_size"] + loops["scalar"]
    instances = s["num_vectors"] + s["num_scalars"]
    lines_written = s["inner_parallelism"] * s["bytes_at_task"] / innermost_task
    sharing = parallel * instances / innermost_task
    return {
        "vector_points": ~inlined * vectors * s["vector_size"],
        "scalar_points": ~inlined * loops["scalar"],
        "inlined_vector_points": inlined * vectors * s["vector_size"],
        "inlined_scalar_points": inlined * loops["scalar"],
        "lines_read": s["num_realizations"] * s["unique_lines_read_per_realization"],
        "bytes_read": s["num_realizations"] * s["unique_bytes_read_per_realization"],
        "gathers": vectors * s["scalar_loads_per_vector"],
        "scalar_loads": loops["scalar"] * s["scalar_loads_per_scalar"],
        "vector_loads": vectors * s["vector_loads_per_vector"],
        "lines_read_by_vectors": vectors * s["unique_lines_read_per_vector"],
        "bytes_read_by_vectors": vectors * s["unique_bytes_read_per_vector"],
        "lines_read_by_tasks": s["num_productions"] * s["inner_parallelism"] * s["unique_lines_read_per_task"],
        "bytes_read_by_tasks": s["num_productions"] * s["inner_parallelism"] * s["unique_bytes_read_per_task"],
        "bytes_written": s["num_realizations"] * s["bytes_at_realization"],
        "lines_written": s["num_realizations"] * lines_written,
        "bytes_produced": s["num_productions"] * s["bytes_at_production"],
        "false_sharing": sharing,
        "page_faults": parallel * s["num_productions"] * np.minimum(s["inner_parallelism"], 4096 / innermost_task),
        "allocations": s["num_realizations"],
        "parallel_launches": parallel * s["num_productions"],
        "parallel_tasks": parallel * s["num_productions"] * s["inner_parallelism"],
        "working_set_traffic": s["num_productions"] * s["working_set_at_production"],
        "math_lanes": vectors * s["vector_size"] * math_calls,
    } | {f"{kind}_calls": points * count for kind, count in calls.items()}


def _feature_units():
    nothing = {name: np.zeros(1) for name in SCHEDULE_FEATURES}
    units = {f"log_{name}": "log1p of Halide's feature" for name in SCHEDULE_FEATURES}
    owner = np.zeros(1, int)
    loops = _loop_bodies(nothing, owner, owner)
    units |= {name: "ratio, log ratio or flag" for name in _ratios(nothing, loops, owner)}
    units |= {f"log_cost_{name}": "log1p of events a run" for name in _cost_terms(nothing, loops, 0, dict.fromkeys(CALLS, 0))}
    units |= {f"log_cost_lowered_{kind}": "log1p of events a run" for kind in LOWERED_EVENTS}
    units |= {"lowered_is_counted": "flag", "lowered_stored_over_said": "log ratio"}
    units |= {f"lowered_{name}": "ratio, log ratio or flag" for name in LOWERED_RATIOS}
    units |= {"has_schedule_features": "flag", "log_work": "log1p of operations a run"}
    units |= {f"log_{kind}_calls": "log1p of calls a point" for kind in CALLS}
    units |= {"log_stages_before": "log1p of stages", "log_stages_after": "log1p of stages"}
    units |= {f"uses_{type}": "flag" for type in TYPE_COLUMNS}
    units |= {f"log_ops_{type}": "log1p of operations a point" for type in TYPE_COLUMNS}
    units |= {f"log_{op}": "log1p of operations a point" for op in OPS}
    units |= {f"log_float_{op}": "log1p of operations a point" for op in OPS}
    return units | {f"log_{pattern}": "log1p of accesses a point" for pattern in PATTERNS}


FEATURE_UNITS = _feature_units()
FEATURES = list(FEATURE_UNITS)
COST_COLUMNS = [i for i, name in enumerate(FEATURES) if name.startswith("log_cost_")]
# Whether a stage runs in parallel: of schedules without lowered-code counts, and with.
PARALLEL_COLUMNS = FEATURES.index("is_parallel"), FEATURES.index("lowered_parallel_share")
FLAG_COLUMNS = FEATURES.index("lowered_is_counted"), FEATURES.index("has_schedule_features")  # what inputs_of tells INPUTS by
# All are 0 for schedules without Halide's schedule features: what is computed from these, but for the sizes of the stages.
SCHEDULE_COLUMNS = [
    *(i for i, name in enumerate(FEATURES[: FEATURES.index("log_cost_lowered_iterations")]) if name != "log_points_computed_minimum"),
    *map(FEATURES.index, ("lowered_stored_over_said", "has_schedule_features", "log_work")),
]
LOWERED_COLUMNS = [i for i, name in enumerate(FEATURES) if "lowered_" in name]  # all are 0 for schedules without lowered-code counts
