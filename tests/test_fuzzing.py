"""A few hundred mutated dumps and archives: none ends more than itself. benchmarks/fuzzing.py makes as many as one likes."""

import sys

from conftest import ROOT

from config import load_config

sys.path.append(str(ROOT / "benchmarks"))

import fuzzing  # noqa: E402


def test_mutated_dumps_and_archives_end_nothing_but_themselves():
    config = load_config(fuzzing.FuzzingConfig, ["--mutations=600", "--num_threads=1", f"--raw_path={ROOT / 'data' / 'raw'}"])
    found = fuzzing.fuzz(config)
    crashes = [crash for counts in found.values() for crash in counts["crashes"]]
    assert not crashes, crashes[0]
    assert sum(counts["inputs"] for counts in found.values()) == 600
    for kind, counts in found.items():
        assert counts["read"] == counts["kept"] + counts["merged"] + counts["dropped"] > 0, kind
        assert counts["without_outcome"] == 0 and sum(counts["reasons"].values()) == counts["dropped"], kind
    assert sum(counts["kept"] for counts in found.values()) > 100  # not all of it was damaged beyond reading
    assert len({reason for counts in found.values() for reason in counts["reasons"]}) > 8


def test_a_crash_is_found(monkeypatch):
    monkeypatch.setattr(fuzzing.data_utils, "parse_chunk", lambda dumps, limit: 1 / 0)
    config = load_config(fuzzing.FuzzingConfig, ["--mutations=40", "--num_threads=1", f"--raw_path={ROOT / 'data' / 'raw'}"])
    inputs = fuzzing.seed_inputs(fuzzing.seed_samples(config.raw_path))
    counts = fuzzing.fuzz_batch(".sample", inputs[".sample"], [b"other"], seed=0, n=3)
    assert len(counts["crashes"]) == 3 and "ZeroDivisionError" in counts["crashes"][0]
