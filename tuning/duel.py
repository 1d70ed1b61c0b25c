"""The fastest schedules of a search measured anew: which one is the answer, and how fast it is.

Whatever chooses the fastest of several measurements chooses lucky ones, too, and would report them as faster than they are. So there are
three sets of fresh, interleaved runs. The winner is chosen on the first. The second may overrule it, where it turns out slower than a
schedule that the answer must not be slower than. The third, which decides nothing, is reported. It is measured whatever the second says:
if figures of the second were reported where they let the winner pass, they would be biased towards it.
"""

from dataclasses import dataclass

import numpy as np

from config import UserError

FINALISTS = 3  # of the fastest are measured again beside Adams2019's choice, the author's schedule, and an earlier answer
REPEATS = 3  # measurements of each in each set of runs
CHOOSING_SHARE, CHECKING_SHARE, REPORTING_SHARE = 0.71, 0.75, 0.82  # of --minutes after which each set has to be through
ONE_SET_SHARE = 0.9  # the same where there was no time for the first, and the third is all there is
NOISE = 0.03  # differences that are no larger tell nothing on an idle machine (two measurements differ by 3.0 % at the 90th percentile)


@dataclass(frozen=True)
class Answer:
    """key : of the winner; times : {key: [milliseconds, ...]} of the runs that decided nothing; notes : lines for a person."""

    key: str
    times: dict
    notes: list

    def ms(self, key):
        """Median milliseconds of a schedule in those runs; None where it did not run."""
        return median(self.times[key]) if key in self.times else None


def median(values):
    return float(np.median(values))


def is_slower(times, key, other):
    """Whether the runs of `key` are slower than those of `other` by more than NOISE, and by more than either's runs differ by."""
    mine, others = times[key], times[other]
    noise = max(NOISE, *((max(values) - min(values)) / median(values) / 2 for values in (mine, others)))
    return median(mine) > median(others) * (1 + noise)


def remeasure_finalists(run, finalists, previous, clock):
    """The Answer among `finalists` (keys that were measured), the `previous` answer (or None), and the run's baselines.

    Raises UserError where none of them can be measured again.
    """
    baselines = [key for key in run.baselines() if key in run.measured()]
    must_match = [*baselines, *([previous] if previous and previous not in baselines else [])]
    fastest = [key for key in finalists if key not in must_match]
    run.set_deadline(clock.after(CHOOSING_SHARE))
    chosen_on = run.measure_again([*must_match, *fastest], REPEATS)
    order, notes = sorted(chosen_on, key=lambda key: median(chosen_on[key])), []
    if not order:  # on a busy machine their processes may have to be made anew, for which the first set's time was too short
        order = sorted([*must_match, *fastest], key=run.runtime_ms)
        notes.append("there was no time to measure the fastest again before choosing: the measurements of the search choose the answer")
    while order:
        winner = order[0]
        must_match = [key for key in must_match if key in chosen_on or not chosen_on]
        run.set_deadline(clock.after(CHECKING_SHARE))
        answer = overrule(run, winner, must_match, notes)
        run.set_deadline(clock.after(REPORTING_SHARE if chosen_on else ONE_SET_SHARE))
        reported_on = run.measure_again(list(dict.fromkeys([answer, *must_match])), REPEATS)
        if answer in reported_on:
            return Answer(answer, {key: values for key, values in reported_on.items() if key in (answer, *baselines)}, notes)
        notes.append(f"{run.name_of(answer)} gave no further measurement, and is not the answer")
        order.remove(answer)
    raise UserError(
        f"none of the fastest schedules of {run.spec.name} could be measured again, so there is no answer "
        f"(limits or failures are in {run.path}); what was measured is kept: start again, with more --minutes if there is a limit"
    )


def overrule(run, winner, must_match, notes):
    """The winner, or the fastest of `must_match` where new runs say that it is slower than one of them by more than noise."""
    rivals = [key for key in must_match if key != winner]
    if not rivals:
        return winner
    times = run.measure_again([winner, *rivals], REPEATS)
    if winner not in times:
        return winner  # the runs that follow tell whether it still runs at all
    better = [key for key in rivals if key in times and is_slower(times, winner, key)]
    if not better:
        return winner
    fastest = min(better, key=lambda key: median(times[key]))
    notes.append(
        f"{run.name_of(winner)} won the first runs, but was slower than {run.name_of(fastest)} in new ones "
        f"({median(times[winner]):.4g} ms against {median(times[fastest]):.4g} ms), which is the answer"
    )
    return fastest
