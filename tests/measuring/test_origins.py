"""Which proposal each number of a candidate stands for."""

import pytest

from halide_tools.programs import ProgramSpec
from measuring.candidate import origin
from measuring.origins import ORIGINS, parse_origins, proposal

RANDOM, USERS = ProgramSpec("random_000003", 3), ProgramSpec("mine", 3, "mine.py")


def names(origins, spec, n=14):
    found = (proposal(parse_origins(origins), spec, k) for k in range(n))
    return [origin(p) for p in found if p]


def test_what_has_one_choice_comes_once_and_first():
    mix = names(",".join(ORIGINS), USERS)
    assert mix[:4] == ["adams2019", "mullapudi2016", "li2018", "hand_written"] and len(mix) == 14
    assert mix[4:].count("mutated") == 6 and mix[4:].count("adams2019") == 4
    assert "hand_written" not in names(",".join(ORIGINS), RANDOM), "nobody has scheduled random programs"
    assert names("adams2019", USERS) == ["adams2019"] * 14 and names("mutated", RANDOM) == ["mutated"] * 14
    assert names("li2018, Mullapudi2016,li2018", RANDOM) == ["mullapudi2016", "li2018"], "in one order, each once"
    assert names("adams2019,mutated", RANDOM)[0] == "adams2019" and names("mutated,li2018", RANDOM)[:2] == ["li2018", "mutated"]


def test_a_number_means_the_same_each_time_and_another_in_each_program():
    for origins in (ORIGINS, ("mutated",)):
        drawn = [proposal(origins, RANDOM, k) for k in range(30)]
        assert drawn == [proposal(origins, RANDOM, k) for k in range(30)] and len(set(drawn)) == 30
        others = [proposal(origins, ProgramSpec("another", 4), k) for k in range(30)]
        assert len(set(drawn) & set(others)) <= 3  # Adams2019's own choice, Mullapudi2016's, Li2018's
    adams = [proposal(("adams2019",), RANDOM, k) for k in range(30)]
    assert all(p in adams for p in (proposal(ORIGINS, RANDOM, k) for k in range(30)) if origin(p) == "adams2019"), "as they always were"


@pytest.mark.parametrize("text, words", [("adams2019,mutant", "mutant"), (" , ", "at least one"), ("", "at least one")])
def test_unknown_origins_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_origins(text)
