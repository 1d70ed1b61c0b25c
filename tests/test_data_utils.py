"""Dumps in, features out: formats, identities, drops, splits."""

import pandas as pd
import pytest

import data_utils
from config import load_config


def split_of(programs, *flags):
    features = [p * 1000 + i for i, p in enumerate(programs)]
    rows = pd.DataFrame({"collection": 0, "program": programs, "generator": data_utils.UNKNOWN, "features": features})
    return rows, pd.Series(data_utils.split_rows(rows, [], load_config(argv=list(flags))))


def test_splits_are_stable_and_keep_programs_together():
    few, many = list(range(100)) * 2, list(range(500)) * 2
    rows, split = split_of(few)
    assert (split.groupby(rows.program).nunique() == 1).all()
    assert split.value_counts(normalize=True)["test"] == pytest.approx(0.2, abs=0.12)
    more_rows, more = split_of(many)
    assert dict(zip(rows.program, split)).items() <= dict(zip(more_rows.program, more)).items()


def test_folds_cover_every_program_once_and_validate_on_others():
    tested, validated = [], []
    for fold in range(4):
        rows, split = split_of(list(range(200)), "--folds", "4", "--fold", str(fold))
        tested += rows.program[split == "test"].tolist()
        validated.append(set(rows.program[split == "val"]))
        assert {"train", "val", "test"} == set(split)
    assert sorted(tested) == list(range(200))
    assert len(set.union(*validated)) > 2 * max(map(len, validated))  # one lucky draw would touch every fold


def test_held_out_programs_are_never_trained_on():
    rows = pd.DataFrame({"collection": [1] * 5 + [0] * 50, "program": list(range(5)) + list(range(50)), "features": range(55)})
    rows["generator"] = data_utils.UNKNOWN
    split = data_utils.split_rows(rows, [1], load_config(argv=[]))
    assert (split[:5] == "holdout").all()
    assert (split[5:10] == "test").all()  # the same programs in another collection


def test_variants_of_one_generator_are_in_one_split():
    rows = pd.DataFrame({"collection": [0] * 60 + [1], "program": [*range(60), 7], "features": range(61)})
    rows["generator"] = [1000 + p // 6 for p in range(60)] + [data_utils.UNKNOWN]
    split = pd.Series(data_utils.split_rows(rows, [], load_config(argv=[])))
    assert (split[:60].groupby(rows.generator[:60]).nunique() == 1).all() and split.nunique() > 1
    assert split[60] == split[7], "the same program, elsewhere, where nobody says of which Generator"
    held_out = pd.Series(data_utils.split_rows(rows.assign(generator=5), [1], load_config(argv=[])))
    assert held_out[60] == "holdout" and (held_out[:60] == "test").all(), "another variant of it is held out"


def test_split_by_schedule_keeps_identical_features_together():
    rows = pd.DataFrame({"collection": 0, "program": [1] * 400, "generator": data_utils.UNKNOWN, "features": list(range(200)) * 2})
    split = pd.Series(data_utils.split_rows(rows, [], load_config(argv=["--split_by", "schedule"])))
    assert (split.groupby(rows.features).nunique() == 1).all() and set(split) == {"train", "val", "test"}
