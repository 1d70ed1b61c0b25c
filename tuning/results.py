"""What a tuning leaves for its user: the best schedule, a library built with it, and the plot of the search."""

import math

import matplotlib
from pebble import ProcessPool

from halide_tools import autoschedulers
from measuring.candidate import Candidate, build_library, silence
from tuning import search
from tuning.run import ADAMS2019

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BUILD_SECONDS = 3600
# What Halide's own command line wraps a schedule's directives in, so that a C++ Generator can include it.
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


def build_best(run, key, output):
    """Write the winner for those who will use it; returns {what: file or parameters} for the report."""
    name = run.spec.name.replace(".", "_")
    directives = (run.folder / f"{key.zfill(3)}.schedule.h").read_text()
    (output / "best.schedule.h").write_text(SCHEDULE_HEADER.format(name=name, directives=directives))
    proposal = run.proposals[key]
    (output / "best.weights").unlink(missing_ok=True)
    if proposal.autoscheduler == "Adams2019":
        autoschedulers.write_weights(output / "best.weights", proposal.weights())
    with ProcessPool(1, context=Candidate.context, initializer=silence) as processes:
        processes.schedule(build_library, args=(run.spec, proposal, str(output / name), name), timeout=BUILD_SECONDS).result()
    parameters = {k: str(v) for k, v in ({"parallelism": run.spec.threads} | proposal.parameters("best.weights")).items()}
    return {
        "key": key, "autoscheduler": proposal.autoscheduler, "autoscheduler_params": parameters, "proposal": vars(proposal),
        "library": f"{name}.a", "header": f"{name}.h",
    }  # fmt: skip


def plot_search(path, run, measured):
    """Best runtime against measurements: a curve for each way to choose, a line for each other autoscheduler."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, keys in measured.items():
        best = search.best_so_far(run, keys)
        if len(keys) > 1:
            axis.plot(range(1, len(best) + 1), best, ".-", label=name)
        elif keys and math.isfinite(best[0]):
            axis.axhline(best[0], color="gray", ls={"mullapudi2016": ":", "li2018": "-."}.get(name, "-"), label=name)
    if math.isfinite(run.runtime_ms(ADAMS2019)):
        axis.axhline(run.runtime_ms(ADAMS2019), color="k", lw=0.8, label="adams2019")
    axis.set(xlabel="schedules measured", ylabel="fastest so far, ms", yscale="log", title=run.spec.name)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def within(best, limit):
    """How many measurements it took to come within the limit, or None."""
    return next((i + 1 for i, ms in enumerate(best) if ms <= limit), None)
