"""Input features of a stage."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import make_stages, parse, sample_bytes

from features import FEATURES, SCHEDULE_FEATURES, featurize


def test_loops_run_longer_than_what_is_asked_for():
    # 486 points in a row by vectors of 32: 15 whole vectors and one with 6 points in it, 20 rows a production, 144 productions.
    names = SCHEDULE_FEATURES
    consumer = {
        "num_productions": 144,
        "points_computed_per_production": 20 * 512,
        "points_computed_total": 144 * 20 * 486,
        "vector_size": 32,
    }
    consumer |= {"num_vectors": 144 * 20 * 15, "num_scalars": 144 * 20 * 6}
    inlined = {"inlined_calls": 3 * 144 * 20 * 486, "vector_size": 32, "num_vectors": 144 * 20 * 15, "num_scalars": 144 * 20 * 6}
    scalar = {
        "num_productions": 288,
        "points_computed_per_production": 7,
        "points_computed_total": 288 * 7,
        "vector_size": 1,
        "num_scalars": 288 * 7,
    }
    stages = np.zeros((3, 326), np.float32)
    for stage, values in zip(stages, (consumer, inlined, scalar)):
        for name, value in values.items():
            stage[names.index(name)] = value
    features = pd.DataFrame(featurize([parse(sample_bytes(stages, 1))])[0], columns=FEATURES)
    counts = np.expm1(features.astype(float))
    assert counts.log_cost_vector_points.tolist() == pytest.approx([32 * 144 * 20 * 16, 0, 0], rel=1e-4)
    assert counts.log_cost_inlined_vector_points.tolist() == pytest.approx([0, 3 * 32 * 144 * 20 * 16, 0], rel=1e-4)
    assert counts.log_cost_scalar_points.tolist() == pytest.approx([0, 0, 288 * 7], rel=1e-4)
    assert features.partial_share.tolist() == pytest.approx([1 / 16, 1 / 16, 0], rel=1e-4)
    assert features.padding[0] == pytest.approx(math.log(512 / 486), rel=1e-2)
    assert features.outer_padding.tolist() == pytest.approx([0, 0, math.log(512 / 486)], rel=1e-2)  # produced inside the consumer's loops


def test_features_do_not_depend_on_the_schedules_beside():
    schedules = [
        parse(sample_bytes(make_stages(program, schedule, n_stages), 1))
        for program, schedule, n_stages in [(0, 0, 5), (0, 1, 5), (1, 0, 1), (2, 7, 9)]
    ]
    for alone, together in zip(schedules, featurize(schedules)):
        np.testing.assert_array_equal(featurize([alone])[0], together)


def test_features_are_finite_for_extreme_values():
    stages = np.zeros((1, 326), np.float32)
    stages[0, :39] = 1e14
    assert np.isfinite(featurize([parse(sample_bytes(stages, 1))])[0]).all()
    assert np.isfinite(featurize([parse(sample_bytes(stages * 0, 1))])[0]).all()
