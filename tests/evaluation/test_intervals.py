"""Correcting a program's predictions by the few of its schedules that were measured."""

import numpy as np
import pytest

from evaluation import intervals


def residuals_of(programs, schedules, between, within, seed=0):
    rng = np.random.default_rng(seed)
    offsets = rng.normal(0, between**0.5, programs)
    residuals = np.repeat(offsets, schedules) + rng.normal(0, within**0.5, programs * schedules)
    return residuals, np.repeat(np.arange(programs), schedules)


def test_variance_components_are_recovered():
    residuals, programs = residuals_of(2000, 6, between=0.5, within=0.1)
    components = intervals.variance_components(residuals, programs)
    assert components["between"] == pytest.approx(0.5, rel=0.1) and components["within"] == pytest.approx(0.1, rel=0.05)
    # Groups of unequal size, and none that differ: no negative variance.
    residuals, _ = residuals_of(300, 4, between=0, within=1)
    components = intervals.variance_components(residuals[:900], np.arange(900) // 7)
    assert 0 <= components["between"] < 0.1 and components["within"] == pytest.approx(1, rel=0.15)


def test_the_offset_is_shrunk_by_hand():
    components = {"between": 1.0, "within": 2.0}
    assert intervals.offset(np.array([3.0]), components) == pytest.approx(1.0)
    assert intervals.offset(np.array([3.0, 3.0]), components) == pytest.approx(1.5)
    assert intervals.remaining_error(1, components) == pytest.approx(((2 / 3 + 2) / 3) ** 0.5)


def test_measuring_more_leaves_less_error():
    residuals, programs = residuals_of(60, 12, between=0.5, within=0.1)
    predicted = np.zeros(len(residuals))
    lines = intervals.few_shot_errors(programs, residuals, predicted, {"between": 0.5, "within": 0.1}, seed=0)
    assert [line["k"] for line in lines] == [1, 3, 8] and all(line["programs"] == 60 for line in lines)
    errors = [line["mse_log"] for line in lines]
    assert errors == sorted(errors, reverse=True) and errors[-1] == pytest.approx(0.11, rel=0.2)
    assert all(line["uncorrected_mse_log"] == pytest.approx(np.mean(residuals**2), rel=0.1) for line in lines)
    # Programs with no schedule left to judge by are left out.
    assert [
        line["k"] for line in intervals.few_shot_errors(np.arange(4) // 2, np.ones(4), np.zeros(4), {"between": 1, "within": 1}, 0)
    ] == [1]
