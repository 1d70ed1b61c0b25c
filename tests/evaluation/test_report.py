"""The parts of report.json, from rows made up here."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from evaluation import metrics, report
from train_utils import RowPredictions

COVARIANCE = {"offset": 1.0, "alike": 0.5, "own": 0.5, "length": 0.2}


def rows(programs, schedules, log_runtime=None):
    programs = np.array(programs)
    return SimpleNamespace(
        program=programs, instance=programs, schedule=np.array(schedules), lengths=np.full(len(programs), 3),
        inputs=np.full(len(programs), "all"), log_runtime=np.zeros(len(programs)) if log_runtime is None else log_runtime,
    )  # fmt: skip


def own(predicted):
    """RowPredictions of six rows, the first unlike anything seen; intervals are 0.5 either way where width_per_spread is 5."""
    return RowPredictions(predicted["lstm"], np.zeros(6), np.ones((6, 1)), np.array([0.5, 0, 0, 0, 0, 0]))


def test_leakage_is_counted():
    train, val = rows([1, 1, 2], [10, 11, 10]), rows([3], [10])
    assert report.leakage(rows([4, 4], [10, 11]), train, val) == {"programs": 0, "schedules": 0}
    # Programs 1 and 3 are in training and validation; of their schedules, (1, 11) and (3, 10) are.
    assert report.leakage(rows([1, 1, 3, 4, 2], [11, 99, 10, 10, 77]), train, val) == {"programs": 3, "schedules": 2}


def test_each_origin_has_its_own_metrics():
    log_runtime = np.log([1.0, 2.0, 4.0, 1.0, 3.0, 9.0])
    part = rows([1, 1, 1, 2, 2, 2], range(6), log_runtime)
    origins = ["mutated", "mutated", "mutated", "li2018", "li2018", "li2018"]
    table = pd.DataFrame({"file": [f"p{p}/x.sample" for p in part.program], "collection": list("aabbbb"), "origin": origins})
    predicted = {"lstm": log_runtime * np.array([1, 1, 1, -1, -1, -1]), "constant": np.zeros(6)}
    meta = {"interval": 0.9, "errors": {"all": {"covariance": COVARIANCE, "width_per_spread": 5.0}}}
    found = report.part_report(part, table, predicted, own(predicted), meta, SimpleNamespace(seed=0))
    assert set(found["origins"]) == {"mutated", "li2018"} and {c: f["schedules"] for c, f in found["collections"].items()} == {
        "a": 2,
        "b": 4,
    }
    assert found["sizes"] == {"1 to 5 stages": {"schedules": 6, "models": found["models"]}}
    assert found["origins"]["mutated"]["models"]["lstm"]["spearman"] == pytest.approx(1)
    assert found["origins"]["li2018"]["models"]["lstm"]["spearman"] == pytest.approx(-1)
    assert found["origins"]["li2018"]["models"]["lstm"] == metrics.all_metrics(part.instance[3:], log_runtime[3:], -log_runtime[3:])
    # Of li2018's rows one lies within: ln 1 is its own negative.
    assert found["interval"]["coverage"] == pytest.approx(4 / 6) and found["interval"]["coverage_by_program"] == pytest.approx(2 / 3)
    assert found["interval"]["unfamiliar"] == pytest.approx(1 / 6)
    assert [line["k"] for line in found["few_shot"]] == [1] and [line["name"] for line in found["programs"]] == ["p2", "p1"]
    unknown = report.part_report(part, table.drop(columns="origin"), predicted, own(predicted), meta, SimpleNamespace(seed=0))
    assert set(unknown["origins"]) == {"adams2019"}


def test_a_model_that_cannot_tell_of_some_rows_stands_where_it_can():
    log_runtime = np.log([1.0, 2.0, 4.0, 1.0, 3.0, 9.0])
    part = rows([1, 1, 1, 2, 2, 2], range(6), log_runtime)
    table = pd.DataFrame({"file": ["p/x"] * 6, "collection": "c", "origin": ["adams2019"] * 3 + ["mutated"] * 3})
    predicted = {"lstm": log_runtime, "adams2019": np.r_[log_runtime[:3], np.full(3, np.nan)]}
    meta = {"interval": 0.9, "errors": {"all": {"covariance": COVARIANCE, "width_per_spread": 5.0}}}
    found = report.part_report(part, table, predicted, own(predicted), meta, SimpleNamespace(seed=0))
    assert set(found["models"]) == {"lstm"} == set(found["origins"]["mutated"]["models"])
    assert found["origins"]["adams2019"]["models"]["adams2019"]["mse_log"] == 0


def test_sizes_are_told_apart():
    part = rows([1, 1, 2, 2, 3, 3], range(6), np.log([1.0, 2.0, 1.0, 3.0, 1.0, 4.0]))
    part.lengths = np.array([1, 1, 6, 6, 16, 16])
    table = pd.DataFrame({"file": ["p/x"] * 6, "collection": "c"})
    meta = {"interval": 0.9, "errors": {"all": {"covariance": COVARIANCE, "width_per_spread": 5.0}}}
    predicted = {"lstm": part.log_runtime + [0, 0, 1, 1, 2, 2]}
    sizes = report.part_report(part, table, predicted, own(predicted), meta, SimpleNamespace(seed=0))["sizes"]
    errors = {size: found["models"]["lstm"]["mse_log"] for size, found in sizes.items()}
    assert errors == pytest.approx({"1 to 5 stages": 0, "6 to 15 stages": 1, "more than 15 stages": 4})


def test_programs_a_model_has_seen():
    programs = {"train": ["a", "b"], "val": ["c"]}
    assert report.seen_programs({"programs": programs}, False, {"b", "c", "d"}) == 2
    assert report.seen_programs({"programs": programs}, True, {"d"}) == 0
    assert report.seen_programs({}, False, {"d"}) is None and report.seen_programs({}, True, {"d"}) == 0
    # What it was fine-tuned from counts on any data.
    assert report.seen_programs({"programs": programs | {"init_from": ["d"]}}, True, {"b", "d"}) == 1
    assert report.seen_programs({"programs": programs | {"init_from": None}}, True, {"d"}) is None
