"""Metrics against values worked out by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from evaluation import metrics


def test_error_metrics():
    measured, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.0, 4.0, 2.0])
    scores = metrics.error_metrics(np.log(measured), np.log(predicted))
    ln2 = math.log(2) ** 2
    assert scores["mse_log"] == pytest.approx(2 * ln2 / 3)
    assert scores["r2_log"] == pytest.approx(0)  # the variance of ln 1, ln 2, ln 4 is 2/3 (ln 2)^2
    assert scores["mse"] == pytest.approx(8 / 3)
    assert scores["mape"] == pytest.approx(50)
    assert scores["median_ape"] == pytest.approx(50)


def test_order_metrics():
    runtime, predicted = np.array([1.0, 1.05, 2.0, 4.0]), np.array([2.0, 1.0, 3.0, 3.0])
    scores = metrics.program_metrics(runtime, predicted)
    assert scores["top1_regret"] == pytest.approx(1.05)
    assert scores["top5_regret"] == 1
    # Pairs more than 10 % apart: all but the first two; (2, 4) is tied and counts half.
    assert scores["pairwise_accuracy"] == pytest.approx(4.5 / 5)
    assert scores["spearman"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [2, 1, 3.5, 3.5])[0, 1])
    assert (scores["n_slow"], scores["n_ordered"]) == (2, 2)


def test_ties_count_at_their_mean():
    runtime = np.array([1.0, 2.0, 3.0])
    assert metrics.top_k_regret(runtime, np.zeros(3), 1) == pytest.approx(2)
    assert metrics.top_k_regret(runtime, np.zeros(3), 2) == pytest.approx((1 + 1 + 2) / 3)
    assert metrics.top_k_regret(runtime, np.array([1.0, 1.0, 0.0]), 2) == pytest.approx((1 + 2) / 2)
    assert metrics.top_k_regret(runtime, np.zeros(3), 5) == 1


def test_a_constant_predictor():
    runtime = np.array([1.0, 2.0, 3.0])
    scores = metrics.program_metrics(runtime, np.ones(3))
    assert (scores["spearman"], scores["kendall"], scores["pairwise_accuracy"]) == (0, 0, 0.5)
    assert scores["n_ordered"] == scores["n_slow"] == 2  # predicted no faster than the fastest


def test_constant_runtimes_have_no_r2():
    assert np.isnan(metrics.error_metrics(np.full(3, 0.1), np.zeros(3))["r2_log"])


def test_programs_are_averaged_and_singles_left_out():
    groups = np.array([7, 7, 8, 8, 9])
    log_runtime = np.log([1.0, 2.0, 1.0, 4.0, 5.0])
    scores = metrics.all_metrics(groups, log_runtime, np.log([1.0, 2.0, 4.0, 1.0, 5.0]))
    assert scores["spearman"] == pytest.approx(0)
    assert scores["top1_regret"] == pytest.approx(2)  # the geometric mean of 1 and 4
    assert scores["correct_ordering_rate"] == pytest.approx(0.5)


def test_bootstrap_resamples_programs():
    rng = np.random.default_rng(0)
    programs = np.repeat(np.arange(30), 4)
    log_runtime = rng.normal(size=120)
    log_predicted = log_runtime + np.repeat(rng.normal(size=30), 4)
    low, high = metrics.bootstrap(programs, programs, log_runtime, log_predicted, 300, 0.95, seed=0)["mse_log"]
    point = metrics.error_metrics(log_runtime, log_predicted)["mse_log"]
    assert low < point < high
    # Errors are shared within a program, so resampling single rows would give a far narrower interval.
    alone = metrics.bootstrap(np.arange(120), programs, log_runtime, log_predicted, 300, 0.95, seed=0)["mse_log"]
    assert high - low > 1.4 * (alone[1] - alone[0])


def test_pairs_are_counted_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    runtime, predicted = rng.choice([1.0, 1.05, 1.2, 3.0], 60), rng.choice([1.0, 2.0, 3.0], 60)
    pairs = [(i, j) for i in range(60) for j in range(i) if max(runtime[i], runtime[j]) > 1.1 * min(runtime[i], runtime[j])]
    rightly = [(1 + np.sign((runtime[i] - runtime[j]) * (predicted[i] - predicted[j]))) / 2 for i, j in pairs]
    for at_a_time in (1, 7 * 60, 10**6):
        monkeypatch.setattr(metrics, "PAIRS_AT_A_TIME", at_a_time)
        assert metrics.pairwise_accuracy(runtime, predicted) == pytest.approx(np.mean(rightly))
    assert np.isnan(metrics.pairwise_accuracy(np.ones(5), np.arange(5.0)))


def test_a_program_of_many_schedules_takes_little_memory():
    rng = np.random.default_rng(0)
    log_runtime = rng.normal(size=6000)
    tracemalloc.start()
    scores = metrics.all_metrics(np.zeros(6000, int), log_runtime, log_runtime + rng.normal(size=6000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6 and 0.7 < scores["pairwise_accuracy"] < 0.8  # all pairs at once took 1 GB


def test_the_cost_of_the_bootstrap_is_bounded():
    assert metrics.resamplings(1000, 2644) == 1000 and metrics.resamplings(0, 10**9) == 0
    assert metrics.resamplings(1000, 10**6) == 200 and metrics.resamplings(1000, 10**9) == metrics.MIN_RESAMPLINGS
