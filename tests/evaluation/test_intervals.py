"""Calibration and coverage of intervals."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation import intervals
from train_utils import RowPredictions


def test_conformal_intervals_count_programs_not_rows():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        sizes = rng.integers(1, 40, 60)
        programs = np.repeat(np.arange(60), sizes)
        residuals = np.repeat(rng.normal(size=60), sizes) + 0.1 * rng.normal(size=len(programs))
        half_width = intervals.conformal_half_width(residuals[programs < 30], programs[programs < 30], 0.8)
        inside = np.abs(residuals[programs >= 30]) <= half_width
        covered.append(np.mean([inside[programs[programs >= 30] == p].mean() for p in range(30, 60)]))
    assert np.mean(covered) == pytest.approx(0.8, abs=0.03)


class Rows(SimpleNamespace):
    """Columns of rows, as a Sequences has them."""

    def subset(self, at):
        return Rows(**{name: column[at] for name, column in vars(self).items()})


def make_rows(programs, inputs, log_runtime):
    return Rows(program=programs, instance=programs, inputs=inputs, log_runtime=log_runtime)


def test_each_interval_is_calibrated_on_schedules_of_its_kind():
    programs = np.repeat(np.arange(40), 5)
    has_all = programs < 20
    rows = make_rows(programs, np.where(has_all, "all", "without_counts"), np.zeros(200))
    # With all inputs errors are 0.1, without counts 1; masking the counts makes them 0.5, masking the others 0.3.
    predicted = {
        "all": np.where(has_all, 0.1, 1.0),
        "without_counts": np.where(has_all, 0.5, 1.0),
        "counts_alone": np.where(has_all, 0.3, 1),
    }
    agreeing, one_kind = np.zeros(200), np.ones((200, 1))
    predicted = {inputs: RowPredictions(values, agreeing, one_kind, agreeing) for inputs, values in predicted.items()}
    found = intervals.calibrations(predicted, rows, 0.9)
    widths = {"all": 0.1, "without_counts": 1.0, "counts_alone": 0.3}
    assert {inputs: c["log_half_width"] for inputs, c in found["errors"].items()} == pytest.approx(widths)
    assert [found["errors"][inputs]["programs"] for inputs in widths] == [20, 40, 20]
    assert np.allclose(intervals.half_widths(found, rows.inputs, agreeing), np.where(has_all, 0.1, 1.0))
    # Without any counts nothing is known of predictions with them.
    rows = make_rows(programs, np.full(200, "without_counts"), np.zeros(200))
    none = intervals.calibrations(predicted, rows, 0.9)["errors"]
    assert [none[inputs]["programs"] for inputs in widths] == [0, 40, 0]
    assert len({none[inputs]["log_half_width"] for inputs in widths}) == 1


def test_where_the_members_disagree_intervals_are_wider():
    rng = np.random.default_rng(0)
    programs = np.repeat(np.arange(200), 10)
    spread = rng.uniform(0.02, 0.5, 2000)
    residuals = rng.normal(size=2000) * (intervals.SPREAD_FLOOR + spread)
    rows = make_rows(programs, np.full(2000, "all"), residuals)
    found = intervals.calibrations({"all": RowPredictions(np.zeros(2000), spread, np.ones((2000, 1)), np.zeros(2000))}, rows, 0.9)
    widths = intervals.half_widths(found, rows.inputs, spread)
    for part in (spread < 0.1, spread > 0.4):
        assert np.mean(np.abs(residuals[part]) <= widths[part]) == pytest.approx(0.9, abs=0.05)
    assert found["errors"]["all"]["log_half_width"] == pytest.approx(widths.mean())


def test_too_few_calibration_programs_are_said():
    assert [intervals.programs_needed(level) for level in (0.5, 0.8, 0.9, 0.95)] == [1, 4, 9, 19]

    def warning(programs):
        errors = {"all": {"programs": programs}, "without_counts": {"programs": 50}}
        return intervals.calibration_warning({"interval": 0.9, "errors": errors}, ["without_counts", "all"])

    assert "calibrated on 2 programs; 90% needs at least 9" in warning(2)
    assert warning(9) == ""


def test_coverage_counts_rows_and_programs():
    rows = make_rows(np.array([0] * 8 + [1] * 2), np.full(10, "all"), np.zeros(10))
    predicted = np.array([0.1] * 8 + [3.0, 0.1])
    found = intervals.coverage(rows, predicted, np.full(10, 0.5), 0.9)
    assert (found["coverage"], found["coverage_by_program"], found["log_half_width"]) == (0.9, 0.75, 0.5)
    assert intervals.coverage(rows, predicted, np.full(10, 5.0), 0.9)["coverage_by_program"] == 1
    nothing = intervals.coverage(rows.subset([]), [], [], 0.9)
    lines = intervals.coverage_warnings({"here": found, "there": found | {"coverage_by_program": 0.88}, "empty": nothing})
    assert len(lines) == 1 and "`here`" in lines[0] and "75%" in lines[0]
