"""The correction of a program's predictions by a few of its measured schedules."""

import numpy as np
import pytest

from evaluation import correction

COVARIANCE = {"offset": 0.01, "alike": 0.06, "own": 0.03, "length": 0.2}
MEMORY, ARITHMETIC = [1.0, 0.0], [0.0, 1.0]  # event shares: what takes a schedule's time


def draw_residuals(programs, schedules, covariance, seed=0):
    """Residuals of that covariance, the programs' numbers, and event shares of two kinds."""
    rng = np.random.default_rng(seed)
    memory = rng.uniform(0, 1, (programs, schedules))
    shares = np.stack([memory, 1 - memory], 2)
    residuals = []
    for of_program in shares:
        shared = correction.shared(covariance, correction.distances(of_program, of_program))
        residuals.append(rng.multivariate_normal(np.zeros(schedules), shared + covariance["own"] * np.eye(schedules)))
    return np.concatenate(residuals), np.repeat(np.arange(programs), schedules), shares.reshape(-1, 2)


def test_the_distance_of_event_shares_by_hand():
    found = correction.distances(np.array([MEMORY, [0.5, 0.5]]), np.array([MEMORY, ARITHMETIC]))
    assert found == pytest.approx(np.array([[0, 2**0.5], [(2 - 2**0.5) ** 0.5] * 2]))


def test_the_covariance_is_recovered():
    known = {"offset": 0.2, "alike": 0.4, "own": 0.1, "length": 0.3}
    found = correction.fit_covariance(*draw_residuals(600, 12, known))
    assert found == pytest.approx(known, rel=0.2)
    # Programs of unequal size, in any order of rows, and nothing that their schedules share.
    rng = np.random.default_rng(0)
    instances = rng.permutation(np.arange(900) // 7)
    found = correction.fit_covariance(rng.normal(0, 1, 900), instances, np.full((900, 1), 1.0))
    assert found["offset"] + found["alike"] < 0.1 and found["own"] == pytest.approx(1, rel=0.15)
    # Even where hardly anything is known it is a covariance.
    least = correction.fit_covariance(np.zeros(1), np.zeros(1, int), np.ones((1, 1)))
    assert all(low <= least[name] * 1.001 and least[name] <= high for name, (low, high, _) in correction.PARAMETERS.items())


def test_a_correction_by_hand():
    covariance = {"offset": 1.0, "alike": 1.0, "own": 2.0, "length": 0.1}
    found = correction.Correction.fit(np.array([2.0]), np.array([MEMORY]), covariance)
    offsets, factors = found.of(np.array([MEMORY, ARITHMETIC]))
    # Alike they share 2 of 4 parts of the variance; else the program's offset alone, 1 of 4.
    assert offsets == pytest.approx([2 * 2 / 4, 2 * 1 / 4], abs=1e-6)
    assert factors == pytest.approx([((4 - 2 * 2 / 4) / 4) ** 0.5, ((4 - 1 / 4) / 4) ** 0.5], abs=1e-6)
    two = correction.Correction.fit(np.array([2.0, 2.0]), np.array([MEMORY, MEMORY]), covariance)
    assert two.of(np.array([MEMORY]))[0] == pytest.approx([2 * 2 / (2 + 2 / 2)])


def test_measuring_more_leaves_less_error():
    residuals, programs, shares = draw_residuals(60, 12, COVARIANCE)
    half_widths = np.full(len(residuals), 1.645 * 0.1**0.5)  # of 90 % before
    lines = correction.few_shot_errors(programs, residuals, half_widths, shares, COVARIANCE, 0.9, seed=0)
    assert [line["k"] for line in lines] == [1, 3, 8] and all(line["programs"] == 60 for line in lines)
    errors = [line["mse_log"] for line in lines]
    assert errors == sorted(errors, reverse=True) and 0.03 < errors[-1] < 0.06
    assert all(line["uncorrected_mse_log"] == pytest.approx(np.mean(residuals**2), rel=0.1) for line in lines)
    assert all(line["coverage"] == pytest.approx(0.9, abs=0.04) for line in lines)
    # What schedules are alike in is worth something: without it the correction is poorer.
    blind = correction.few_shot_errors(programs, residuals, half_widths, np.ones_like(shares[:, :1]), COVARIANCE, 0.9, seed=0)
    assert all(line["mse_log"] > 1.02 * better for line, better in zip(blind[1:], errors[1:]))
    # Programs with no schedule left to judge by are left out.
    pairs = np.arange(4) // 2, np.ones(4), np.ones(4), np.ones((4, 1))
    assert [line["k"] for line in correction.few_shot_errors(*pairs, COVARIANCE, 0.9, 0)] == [1]


def test_a_correction_is_no_narrower_than_its_measurements():
    prior = {"offset": 0.01, "alike": 0.0, "own": 0.09, "length": 0.2}

    def correct(residuals):
        shares = np.tile(MEMORY, (len(residuals), 1))
        found = correction.correct(np.array(residuals), np.full(len(residuals), 0.5), shares, prior, 0.9)
        offsets, factors = found.of(shares[:1])
        return found.widened, offsets[0], factors[0]

    widened, offset, factor = correct([0.2, -0.1, 0.3])
    assert not widened and factor < 1 and offset == pytest.approx(0.4 / 3 * 0.25)
    # Far from what the validation programs showed: their shrinkage no longer holds.
    widened, offset, factor = correct([5.0, 5.1, 4.9])
    assert widened and offset == pytest.approx(5, abs=0.1) and factor >= 0.2
    widened, offset, factor = correct([5.0])
    assert widened and offset == pytest.approx(0.5) and factor >= 9  # the schedule alone may be the odd one
    scattered = np.array([4.0, -4.0, 3.0, -3.0, 0.0, 1.0, -1.0, 2.0, -2.0, 0.5])
    widened, offset, factor = correct(scattered)
    assert widened and np.mean(np.abs(scattered - offset) <= 0.5 * factor) >= 0.9
