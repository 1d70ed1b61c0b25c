"""Formats to schedules, and the reasons for what is unusable."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from conftest import json_tree, make_stages, parse, sample_bytes

from dumps.files import Unusable
from features import FEATURES, OPS, SCHEDULE_FEATURES, featurize


def test_sample_by_hand():
    stages = np.zeros((2, 326), np.float32)
    stages[0, 0], stages[1, 38] = 3, 7  # num_realizations of the output; working_set_at_root of the other stage
    stages[0, 39 + 5] = 1  # uses float
    stages[0, 39 + 7 + 4 * 7 + 5] = 2  # two float additions: op 4, type 5
    schedule = parse(sample_bytes(stages, 2.5))
    assert schedule.runtime_ms == 2.5 and schedule.schedule_features.shape == (2, 39)
    assert schedule.algorithm_features.shape == (2, 41, 8) and schedule.algorithm_features.sum() == 3

    features = pd.DataFrame(featurize([schedule])[0], columns=FEATURES)
    assert features.log_num_realizations.tolist() == pytest.approx([math.log(4), 0])
    assert features.log_working_set_at_root.tolist() == pytest.approx([0, math.log(8)])
    assert features.uses_float.tolist() == [1, 0]
    assert features.log_add.tolist() == features.log_float_add.tolist() == pytest.approx([math.log(3), 0])
    assert features.log_stages_after.tolist() == pytest.approx([math.log(2), 0])


def test_json_stages_are_brought_into_halides_order():
    schedule = parse(json.dumps(json_tree()).encode(), "x.json")
    points = schedule.schedule_features[:, SCHEDULE_FEATURES.index("points_computed_minimum")]
    assert points.tolist() == [10, 30, 20]  # output, blur's update, blur
    add = 1 + OPS.index("add")
    assert schedule.algorithm_features[:, add, -1].tolist() == [1, 5, 0]
    assert schedule.runtime_ms == 2.0


def test_featurization_takes_its_runtime_from_bench_txt():
    stages = make_stages()
    bench = b"Benchmark for x produces best case of 0.0125 sec/iter"
    assert parse(stages.tobytes(), "x.featurization", bench=bench).runtime_ms == pytest.approx(12.5)
    same = parse(sample_bytes(stages, 12.5))
    assert parse(stages.tobytes(), "x.featurization", bench=bench).schedule == same.schedule


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("x.sample", sample_bytes(make_stages(), 0), "zero_runtime"),
        ("x.sample", sample_bytes(make_stages(), 2e5), "implausible_runtime"),
        ("x.sample", sample_bytes(make_stages(), -1), "implausible_runtime"),
        ("x.sample", sample_bytes(make_stages(), math.nan), "not_a_number"),
        ("x.sample", sample_bytes(make_stages() * np.float32(np.nan), 1), "not_a_number"),
        ("x.sample", sample_bytes(make_stages() - 200, 1), "bad_feature"),
        ("x.sample", sample_bytes(np.where(np.arange(326) == 50, np.float32(3e38), make_stages()), 1), "bad_feature"),
        ("x.sample", sample_bytes(make_stages(), 1)[:-5], "truncated"),
        ("x.sample", b"", "truncated"),
        ("x.sample", sample_bytes(make_stages(n_stages=1)[:0], 1), "no_stages"),
        ("x.sample", np.ones(360 * 2, "<f4").tobytes() + b"\0" * 12, "other_featurization"),
        ("x.featurization", make_stages().tobytes(), "no_runtime"),
        ("x.json", b'{"programming_details": ', "malformed_json"),
        ("x.json", b'{"a": 1}', "unknown_format"),
        ("x.json", json.dumps(json_tree(0)).encode(), "zero_runtime"),
        ("x.json", json.dumps(json_tree(math.nan)).encode(), "not_a_number"),
        ("x.json", json.dumps(json_tree() | {"scheduling_data": [{"Name": "f"}]}).encode(), "missing_field"),
        ("x.json", json.dumps(json_tree() | {"scheduling_data": []}).encode(), "no_stages"),
        ("x.json", b"\0" * 100, "malformed_json"),
        ("x.json", json.dumps(json_tree("NaN")).encode(), "not_a_number"),
        ("x.json", json.dumps(json_tree(True)).encode(), "missing_field"),
        ("x.json", json.dumps(json_tree("fast")).encode(), "missing_field"),
        ("x.json", json.dumps(json_tree(None)).encode(), "no_runtime"),
        ("x.json", json.dumps(json_tree(10**400)).encode(), "not_a_number"),
        ("x.json", json.dumps(json_tree()).replace(" 7.0", ' "NaN"').encode(), "not_a_number"),
        ("x.json", json.dumps(json_tree()).replace(" 7.0", " 1" + "0" * 400).encode(), "not_a_number"),
        ("x.json", json.dumps(json_tree()).replace(" 7.0", " 1" + "0" * 5000).encode(), "malformed_json"),
        ("x.json", json.dumps(json_tree()).replace(" 7.0", " [7.0]").encode(), "missing_field"),
        ("x.json", b'{"programming_details": ' + b"[" * 100_000, "malformed_json"),
        ("x.json", b"[" * 5000 + b"]" * 5000, "malformed_json"),
        ("x.sample", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "lfs_pointer"),
        ("x.sample", b"../.git/annex/objects/Xk/9/SHA256E-s2--4.sample", "annex_pointer"),
        ("x.json", b"<html><body>404</body></html>", "web_page"),
        ("x.json", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "web_page"),
        ("x.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "unknown_format"),
    ],
)
def test_unusable_dumps_are_dropped_with_their_reason(name, data, reason):
    with pytest.raises(Unusable) as caught:
        parse(data, name)
    assert caught.value.reason == reason


def test_of_a_json_key_that_comes_twice_the_last_counts():
    tree = json.dumps(json_tree(2.0)).replace('"value": 2.0', '"value": 9.0, "value": 2.0')
    assert parse(tree.encode(), "x.json").runtime_ms == 2.0


def test_comments_before_a_web_page_take_no_time():
    with pytest.raises(Unusable):
        parse(b"<!---->" * 140, "x.json")


def test_formats_are_recognised_by_content():
    assert parse(sample_bytes(make_stages(), 1.5), "renamed.bin").runtime_ms == 1.5
    assert parse(json.dumps(json_tree()).encode(), "renamed.txt").runtime_ms == 2.0


def test_identity():
    small, large = (parse(sample_bytes(make_stages(1, 0, size=s), 1)) for s in (64, 128))
    again = parse(sample_bytes(make_stages(1, 0, size=64), 9, program_id=77, schedule_id=5))
    other = parse(sample_bytes(make_stages(2, 0, size=64), 1))
    assert small.program == large.program != other.program
    assert small.instance != large.instance
    assert (again.instance, again.schedule) == (small.instance, small.schedule)
