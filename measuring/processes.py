"""One function for many proposals, or programs, each in a process that it may crash: proposing, counting, identities."""

import math
import os
import time
from concurrent.futures import TimeoutError
from dataclasses import dataclass
from functools import partial

import numpy as np
from pebble import ProcessExpired, ProcessPool

from config import usable_cores
from halide_tools import lowered_features, mutations
from halide_tools.autoschedulers import Proposal
from halide_tools.buffers import lowered_text
from halide_tools.lowered_identity import lowered_hash
from halide_tools.program_rows import apply_from_data, by_names, stage_labels
from halide_tools.programs import describe_stages
from halide_tools.schedules import Schedule
from measuring.candidate import HALIDE_ERRORS, Candidate, as_data, failure, failure_of_process, limit_memory
from measuring.messages import Failed

NOT_COUNTED = Failed("not_counted", "what its lowered code does can't be told")
PROPOSAL_SECONDS = 60  # for Adams2019 to come up with one, or for counting in its code; it is left out if it takes longer


def on_all_cores(function, spec, proposals, deadline=math.inf, failures=None, cores=None, report=None, tasks_each=0):
    """{proposal: function(spec, proposal)}, worked out on `cores` (all usable ones) until the deadline (time.monotonic()).

    Those that gave none are left out; why is added to the list `failures` (Failed each). report : called with (how many are done, of how
    many). tasks_each : after so many a process is replaced by a new one; 0: never.
    """
    found, failures = {}, [] if failures is None else failures
    if time.monotonic() >= deadline:
        failures += [Failed("deadline", "its share of --minutes was over")] * len(proposals)
        return found
    with ProcessPool(cores or usable_cores(), context=Candidate.context, max_tasks=tasks_each, initializer=prepare_worker) as pool:
        futures = {p: pool.schedule(partial(function, spec), args=(p,), timeout=PROPOSAL_SECONDS) for p in proposals}
        for n_done, (proposal, future) in enumerate(futures.items()):
            if report:
                report(n_done, len(futures))
            result = _result(future, deadline)
            if isinstance(result, Failed):
                failures.append(result)
            else:
                found[proposal] = result
            if time.monotonic() > deadline:
                pool.stop()
                failures += [Failed("deadline", "its share of --minutes was over")] * (len(futures) - n_done - 1)
                break
    return found


def _result(future, deadline):
    try:
        return future.result(None if math.isinf(deadline) else max(deadline - time.monotonic(), 0))
    except ProcessExpired as error:
        return failure_of_process(error.exitcode, "")
    except TimeoutError:
        if future.done():
            return Failed("timeout", f"not proposed within {PROPOSAL_SECONDS} s")
        return Failed("deadline", "its share of --minutes was over")


def propose(spec, proposal):
    """(featurization, source) of a proposal, neither compiled nor run; Failed where Halide can't schedule it so."""
    try:
        return proposal.apply(spec.build(), spec)
    except HALIDE_ERRORS as error:
        return failure(error)


def count(spec, proposal):
    """What lowered_features.count_lowered finds in the code of a proposal, neither compiled nor run; Failed where Halide can't lower it."""
    try:
        pipeline = spec.build()
        if isinstance(proposal, mutations.Edited):
            of_program = apply_from_data(Schedule.from_json(proposal.text), pipeline)
            counts = lowered_features.count_lowered(pipeline, spec)
            found = None if counts is None else of_program(counts)
        else:
            proposal.apply(pipeline, spec)
            found = lowered_features.count_lowered(pipeline, spec)
    except (*HALIDE_ERRORS, LookupError) as error:
        return failure(error)
    return NOT_COUNTED if found is None else found


def featurize_author(spec, _):
    """What is predicted of the schedule that a program's author wrote, or of the program as it stands.

    {"featurization" of the program by Adams2019, "stages" and "calls" as of describe_stages, "counts" in the lowered code of that schedule,
    "hash" of that code, "is_written": whether there is one}, or Failed. Nothing is compiled or run.
    """
    try:
        described = describe_stages(spec.build())  # first: a second program of a process gets other names
        featurization, _ = Proposal.draw(spec.seed, 0).apply(spec.build(), spec)
        written = spec.build_hand_scheduled()
        fresh = spec.build()
        labels = stage_labels(fresh)
        data = as_data(fresh if written is None else written)
        if data is None:  # specialize, say
            number, counts = count_scheduled(written, spec)
            counts = None if counts is None else by_names(written, labels)(counts)
        else:
            number, counts = count_from_data(data, fresh, spec)
    except (*HALIDE_ERRORS, LookupError) as error:
        return failure(error)
    if counts is None or len(counts) != len(described["stages"]):
        return NOT_COUNTED
    found = {"featurization": featurization, "stages": described["stages"], "calls": described["calls"]}
    return found | {"counts": counts, "hash": number, "is_written": written is not None}


def count_from_data(schedule, pipeline, spec):
    """(Hash of the lowered code, counts in it or None) of a fresh pipeline, a row for each of its stages, with a schedule that is data."""
    of_program = apply_from_data(schedule, pipeline)
    number, counts = count_scheduled(pipeline, spec)
    return number, None if counts is None else of_program(counts)


def count_scheduled(pipeline, spec):
    """(Hash of the lowered code, counts in it or None) of a scheduled pipeline."""
    number = lowered_hash(lowered_text(pipeline, spec.halide_target(), keep=True))
    return number, lowered_features.count_lowered(pipeline, spec)


@dataclass(frozen=True)
class Edit:
    """What to try: `n` changes of the schedule `text`, drawn by `seed` and `weights` ((kind, weight), ...).

    other : a schedule of which it first gets parts, or "".
    """

    text: str
    edit_of: str
    n: int
    seed: int
    weights: tuple
    other: str = ""


def edit(spec, wanted):
    """(mutations.Edited, hash of its lowered code, counts in it) of an Edit, neither compiled nor run; Failed where there is none."""
    rng, schedule, kinds = np.random.default_rng(wanted.seed), Schedule.from_json(wanted.text), []
    try:
        pipeline = spec.build()
        known = mutations.facts(pipeline, spec.halide_target())
        if wanted.other and (joined := mutations.join(schedule, Schedule.from_json(wanted.other), rng)):
            schedule, kinds = joined, ["join"]
        schedule, more = mutations.several(schedule, known, wanted.n, rng, dict(wanted.weights))
        kinds += more
        if not kinds:
            return Failed("no_change", "no kind of change applies to it")
        schedule = mutations.serial(schedule) if spec.threads == 1 else schedule
        number, found = count_from_data(schedule, pipeline, spec)
    except (*HALIDE_ERRORS, LookupError) as error:
        return failure(error)
    if found is None:
        return NOT_COUNTED
    return mutations.Edited(schedule.to_json(), wanted.edit_of, tuple(kinds)), number, found


def identities(specs):
    """{ProgramSpec: its identity}, each worked out in a process that has built nothing else; those that can't be built are left out.

    That of a program of which a process has built another one before may come out differently: Halide numbers names.
    """
    return on_all_cores(_identity, None, specs, tasks_each=1)


def _identity(_, spec):
    try:
        return spec.identity()
    except Exception as error:  # whatever a user's file may raise
        return failure(error)


def prepare_worker():
    """Send what Halide prints in this process nowhere, and bound its memory."""
    limit_memory()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
