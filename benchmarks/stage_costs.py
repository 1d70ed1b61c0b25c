"""The predicted cost of each stage beside Halide's profiler: does the model know where a program spends its time?

    python benchmarks/stage_costs.py
    python benchmarks/stage_costs.py --pipelines pipelines/harris.py,pipelines/unsharp.py --schedules 4

For each application it draws --schedules schedules, predicts the cost of every stage with the shipped model (or --checkpoint), runs
the program under Halide's profiler, and compares the shares of time Func by Func. Prints a table and writes it to
runs/stage_costs/table.md. The applications are never trained on.
"""

import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train_utils
from config import Config, UserError, load_config, run_script
from dumps.companions import call_counts
from features import SCHEDULE_FEATURES, featurize
from halide_tools import (
    execution,
    lowered_features,
)
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import (
    describe_stages,
    find_programs,
)
from measuring.candidate import HALIDE_ERRORS
from tuning.pool import proposed_schedule

PROFILE_SECONDS = 1.0


class StageCostsConfig(Config):
    pipelines: str = Field(
        ",".join(f"pipelines/{name}.py" for name in ("harris", "unsharp", "bilateral_grid", "camera_pipe", "wavelet")),
        description="files of Generators, separated by commas",
    )
    schedules: int = Field(3, ge=1, description="schedules of each")
    checkpoint: str = Field(str(ROOT / "models" / "default.safetensors"), description="model to check")


def profile(spec, proposal, connection):
    """In a process of its own, where Funcs have the names that the profiler prints: sends what `profiled` returns, or an error's words."""
    try:
        pipeline = spec.build()
        description = describe_stages(pipeline)
        featurization, _ = proposal.apply(pipeline, spec)
        schedule = proposed_schedule(featurization, call_counts(description["calls"]), lowered_features.count_lowered(pipeline, spec))
        connection.send((description["stages"], schedule, execution.profile(pipeline, spec, PROFILE_SECONDS)))
    except HALIDE_ERRORS as error:
        connection.send(str(error))


def profiled(spec, proposal):
    """(names of the stages, Schedule, {Func: milliseconds a call} as the profiler reports)."""
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=profile, args=(spec, proposal, theirs))
    process.start()
    theirs.close()
    try:
        found = connection.recv()
    except EOFError:
        process.join()
        found = f"its process ended with exit code {process.exitcode}"
    process.join()
    if isinstance(found, str):
        raise UserError(f"{spec.name}: could not be profiled: {found}")
    return found


def predicted_ms(model, stages, schedule):
    """({Func: predicted milliseconds}, those of them that are inlined)."""
    features = torch.from_numpy(featurize([schedule])[0])[None]
    with torch.no_grad():
        costs = model.stage_costs(features, torch.tensor([len(stages)])).mean(0).exp()[0].tolist()
    totals, inlined = {}, set()
    for name, ms, calls in zip(stages, costs, schedule.schedule_features[:, SCHEDULE_FEATURES.index("inlined_calls")]):
        func = name.split(".update(")[0]
        totals[func] = totals.get(func, 0.0) + ms
        if calls > 0:
            inlined.add(func)
    return totals, inlined


def main():
    config = load_config(StageCostsConfig)
    model, _ = train_utils.load_model(config.checkpoint, torch.device("cpu"))
    try:
        specs = [spec for path in config.pipelines.split(",") for spec in find_programs(ROOT / path.strip())]
    except ValueError as error:
        raise UserError(str(error)) from None
    lines = [
        "| application | schedule | Funcs | Spearman | shares in common | most expensive | predicted so |",
        "|---|---|---|---|---|---|---|",
    ]
    overlaps, hits = [], []
    for spec in specs:
        for k in range(config.schedules):
            proposal = Proposal.draw(spec.seed, k)
            stages, schedule, measured = profiled(spec, proposal)
            predicted, inlined = predicted_ms(model, stages, schedule)
            # An inlined Func runs within its readers, where the profiler counts it.
            names = [name for name in predicted if name in measured and name not in inlined]
            if len(names) < 2:
                continue
            a, b = (np.array([d[n] for n in names]) for d in (measured, predicted))
            a, b = a / a.sum(), b / b.sum()
            overlaps.append(np.minimum(a, b).sum())
            hits.append(names[a.argmax()] == names[b.argmax()])
            lines.append(
                f"| {spec.name} | {k} | {len(names)} | {spearmanr(a, b).statistic:.2f} | {overlaps[-1]:.0%} | "
                f"{names[a.argmax()]} | {names[b.argmax()]} |"
            )
            print(lines[-1], flush=True)
    lines.append(
        f"\n{np.mean(overlaps):.0%} of the time is put on the right Func; "
        f"the most expensive Func is the predicted one in {sum(hits)} of {len(hits)} schedules."
    )
    folder = ROOT / "runs" / "stage_costs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
