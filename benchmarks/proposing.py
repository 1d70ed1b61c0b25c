"""How many schedules tune_schedule.py proposes, featurizes and scores a second, beside doing so one at a time.

    python benchmarks/proposing.py
    python benchmarks/proposing.py --pipelines pipelines/harris.py --proposals 200

Nothing is compiled or run. One at a time means: Adams2019 in this process, its featurization parsed, its code lowered and counted, and
the two turned into features and scored by themselves. Together, all are scored first, on all cores, and only those that look fast are
lowered and counted. Directives: the same schedules as data, as changes of schedules are, applied to fresh pipelines, lowered, counted and
scored, without Adams2019; the program has been featurized before. Writes benchmarks/results/proposing.md and .json.
"""

import sys
import tempfile
import time
from pathlib import Path

import halide as hl
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

import train_utils
from config import Config, UserError, load_config, run_script
from dumps.companions import call_counts
from features import featurize
from halide_tools import lowered_features, schedules
from halide_tools.autoschedulers import Proposal
from halide_tools.mutations import Edited
from halide_tools.programs import (
    describe_stages,
    find_programs,
)
from measuring.candidate import prepare_processes
from measuring.processes import count, on_all_cores
from tuning.pool import (
    Pool,
    proposed_schedule,
)
from tuning.run import TuningRun


class ProposingConfig(Config):
    pipelines: str = Field(
        "pipelines/harris.py,pipelines/unsharp.py,pipelines/camera_pipe.py", description="files of Generators, separated by commas"
    )
    proposals: int = Field(100, ge=1, description="schedules proposed a round")
    rounds: int = Field(3, ge=1, description="times that each way is timed")


def one_at_a_time(spec, proposals, model, device):
    """Seconds that the model took."""
    predicting, calls = 0.0, call_counts(describe_stages(spec.build())["calls"])
    for proposal in proposals:
        try:
            pipeline = spec.build()
            featurization, _ = proposal.apply(pipeline, spec)
            lowered = lowered_features.count_lowered(pipeline, spec)
        except hl.HalideError:
            continue
        schedule = proposed_schedule(featurization, calls, lowered)
        began = time.perf_counter()
        train_utils.predict_sequences(model, featurize([schedule]), device)
        predicting += time.perf_counter() - began
    return predicting


def together(spec, proposals, model, meta, device):
    """As tune_schedule.py does it; seconds that the model took."""
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(TuningRun(spec, Path(folder), 60), model, meta, device)
        pool.propose(proposals)
    return pool.seconds["predict"]


def as_directives(spec, proposals):
    """(Schedules as data that proposals give, a Schedule of the program by Adams2019)."""
    found = []
    for proposal in proposals:
        pipeline = spec.build()
        unscheduled = schedules.read(pipeline)
        try:
            featurization, _ = proposal.apply(pipeline, spec)
            found.append(schedules.read(pipeline, unscheduled).to_json())
        except (hl.HalideError, ValueError, RuntimeError, LookupError):
            continue
    calls = call_counts(describe_stages(spec.build())["calls"])
    return [Edited(text, "", ()) for text in dict.fromkeys(found)], proposed_schedule(featurization, calls, None)


def from_directives(spec, edited, like, model, device):
    """Seconds that the model took."""
    counts = [found for found in on_all_cores(count, spec, edited).values() if len(found) == len(like.calls)]
    began = time.perf_counter()
    train_utils.predict_sequences(model, featurize([like.another(found, number) for number, found in enumerate(counts)]), device)
    return time.perf_counter() - began


def main():
    config = load_config(ProposingConfig)
    device = train_utils.pick_device(config)
    prepare_processes()
    model, meta = train_utils.load_model(train_utils.SHIPPED_MODEL, device)
    try:
        specs = [spec for path in config.pipelines.split(",") for spec in find_programs(ROOT / path.strip())]
    except ValueError as error:
        raise UserError(str(error)) from None
    rows, facts = [], {}
    for spec in specs:
        proposals = [Proposal.draw(spec.seed, k) for k in range(config.proposals)]
        edited, like = common.in_fork(600, as_directives, spec, proposals)
        predicting = {"together": [], "directives": [], "one at a time": []}
        rivals = {
            "together": lambda s=spec, p=proposals, seconds=predicting["together"]: seconds.append(together(s, p, model, meta, device)),
            "directives": lambda s=spec, e=edited, f=like, seconds=predicting["directives"]: seconds.append(
                from_directives(s, e, f, model, device)
            ),
            "one at a time": lambda s=spec, p=proposals, seconds=predicting["one at a time"]: seconds.append(
                one_at_a_time(s, p, model, device)
            ),
        }
        seconds = common.interleave(rivals, config.rounds)
        per_second = {name: (len(edited) if name == "directives" else len(proposals)) / values for name, values in seconds.items()}
        for name, values in seconds.items():
            share = predicting[name][1:] / values
            rows.append(
                [
                    spec.name,
                    name,
                    common.spread(per_second[name]),
                    common.spread(per_second[name] / per_second["one at a time"]),
                    common.spread(share),
                ]
            )
            facts[f"{spec.name}, {name}"] = {"proposals_per_second": per_second[name].tolist(), "share_of_model": share.tolist()}
    header = ["application", "proposed", "schedules a second", "times as fast as one at a time", "share of the time that the model takes"]
    common.write("proposing", header, rows, facts)


if __name__ == "__main__":
    run_script(main)
