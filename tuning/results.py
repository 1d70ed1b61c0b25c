"""What a tuning leaves for its user: the best schedule, a library built with it, and the plot of the search."""

import math
import os
import tempfile
from pathlib import Path

import matplotlib

from halide_tools import autoschedulers
from halide_tools.mutations import Edited
from halide_tools.schedules import Schedule
from measuring.candidate import HandWritten, origin
from measuring.messages import Failed
from tuning import search
from tuning.run import ADAMS2019

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ORIGIN_COLOURS = {"adams2019": "C0", "mullapudi2016": "C2", "li2018": "C4", "hand_written": "C3", "mutated": "C1"}
# What Halide's own command line wraps a schedule's directives in, for one that can't be kept as data: nothing in it checks the pipeline.
SCHEDULE_HEADER = """#ifndef {name}_SCHEDULE_H
#define {name}_SCHEDULE_H

#include "Halide.h"

inline void apply_schedule_{name}(::Halide::Pipeline pipeline, ::Halide::Target target) {{
using ::Halide::Func;
using ::Halide::MemoryType;
using ::Halide::RVar;
using ::Halide::TailStrategy;
using ::Halide::Var;

{directives}
}}

#endif  // {name}_SCHEDULE_H
"""
AS_WRITTEN = "// The schedule that the program's author wrote is the fastest: build the program without an autoscheduler.\n"


def build_best(run, key, output):
    """Write the winner for those who will use it.

    Returns ({what: file or parameters} for the report, why there is no library or "").

    Everything is written elsewhere and then moved into place. Where the library can't be built, one of an earlier answer is removed: it
    would not be that of the schedule beside it.
    """
    name, proposal = run.spec.c_name, run.proposals[key]
    with tempfile.TemporaryDirectory(dir=output) as folder:
        write_schedule(run, key, Path(folder))
        message = run.build_library(key, Path(folder, name), name)
        stale = {"best.weights", "best_schedule.py", f"{name}.a", f"{name}.h"}
        for path in Path(folder).iterdir():
            if path.name not in (f"{name}.a", f"{name}.h") or not isinstance(message, Failed):
                os.replace(path, output / path.name)
                stale.discard(path.name)
        for file in stale:
            (output / file).unlink(missing_ok=True)
    best = {
        "key": key, "autoscheduler": proposal.autoscheduler, "autoscheduler_params": parameters_of(run.spec, proposal),
        "proposal": {name: value for name, value in vars(proposal).items() if name != "text"}, "schedule": "best.schedule.h",
        "python": "best_schedule.py" if run.outcomes[key].get("schedule") else None,
    }  # fmt: skip
    if isinstance(message, Failed):
        return best | {"library": None, "header": None}, f"{message.reason}: {message.detail}"
    return best | {"library": f"{name}.a", "header": f"{name}.h"}, ""


def write_schedule(run, key, folder):
    """best.schedule.h, best_schedule.py where the schedule could be kept as data, and, where Adams2019 made it, best.weights."""
    name, proposal, stored = run.spec.c_name, run.proposals[key], run.outcomes[key].get("schedule")
    schedule = Schedule.from_json(stored) if stored else None
    if schedule:
        (folder / "best_schedule.py").write_text(schedule.to_python_module())
    if schedule:
        header = schedule.to_cpp_header(name)
    elif isinstance(proposal, HandWritten):
        header = AS_WRITTEN
    else:
        header = SCHEDULE_HEADER.format(name=name, directives=(run.folder / f"{key.zfill(3)}.schedule.h").read_text())
    (folder / "best.schedule.h").write_text(header)
    if origin(proposal) == "adams2019":
        autoschedulers.write_weights(folder / "best.weights", proposal.weights())


def parameters_of(spec, proposal):
    """The autoscheduler's parameters, as text, that give a proposal's schedule again; {} where none did."""
    if isinstance(proposal, (HandWritten, Edited)):
        return {}
    return {k: str(v) for k, v in ({"parallelism": spec.threads} | proposal.parameters("best.weights")).items()}


def draw_search(run, measured):
    """A figure of the runtimes in the order of measuring: points by origin, and the best so far of each way to choose.

    What the answer must not be slower than, and other autoschedulers, are lines.
    """
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    known = {ms for own in [*measured.values(), run.baselines()] for ms in map(run.runtime_ms, own) if math.isfinite(ms)}
    axis.set(xlabel="schedules measured", ylabel="ms", yscale="log")
    if known:  # limits are set, since matplotlib finds none where all values are the same
        axis.set_ylim(min(known) / 1.1, max(known) * 1.1)
    keys = measured["lstm"]
    for source, colour in ORIGIN_COLOURS.items():
        at = [(i, run.runtime_ms(key)) for i, key in enumerate(keys, 1) if run.outcomes[key]["origin"] == source]
        if at:
            axis.plot(*zip(*at), "o", ms=4, color=colour, label=source)
    for name, own in measured.items():
        best = search.best_so_far(run, own)
        if own is keys or len(own) > 1:
            style = {"color": "k", "lw": 1.5, "label": "fastest so far"} if own is keys else {"lw": 1, "label": f"{name}, fastest so far"}
            axis.step(range(1, len(best) + 1), best, where="post", **style)
        elif own and own[0] not in keys and math.isfinite(best[0]):
            axis.axhline(best[0], color=ORIGIN_COLOURS.get(name, "gray"), ls=":", lw=1, label=f"{name}'s choice")
    for key, name in zip(run.baselines(), ("adams2019", "hand_written")):
        if math.isfinite(run.runtime_ms(key)):
            label = "Adams2019's own choice" if key == ADAMS2019 else "the author's schedule"
            axis.axhline(run.runtime_ms(key), color=ORIGIN_COLOURS[name], ls="--", lw=1, label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_title(run.spec.name, parse_math=False)
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def plot_search(path, run, measured):
    figure = draw_search(run, measured)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def within(best, limit):
    """How many measurements it took to come within the limit, or None."""
    return next((i + 1 for i, ms in enumerate(best) if ms <= limit), None)
