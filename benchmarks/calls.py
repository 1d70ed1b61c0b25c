"""How often each stage of the measured programs calls what Halide's features don't tell apart: data/raw/calls.json.

    python benchmarks/calls.py

For packed collections whose program.json does not tell: builds their programs anew (random programs from their numbers, applications
from pipelines/) and lists, for those that have any, the calls of each stage by kind (features.CALLS). Collections measured since carry
the same in their program.json.
"""

import sys
import tarfile
from pathlib import Path

import numpy as np
import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data_utils  # noqa: E402
import halide_utils  # noqa: E402
from config import load_config, run_script  # noqa: E402
from features import CALLS  # noqa: E402
from pipelines import random_programs  # noqa: E402


def records(archive):
    """(max_stages or None, program.json) of each program of a packed collection that does not tell."""
    with tarfile.open(archive) as tar:
        files = {member.name: orjson.loads(tar.extractfile(member).read()) for member in tar if member.name.endswith(".json")}
    source = next(content for name, content in files.items() if name.endswith("collection.json"))["source"]
    max_stages = source.get("random_programs", {}).get("max_stages")
    return [(max_stages, content) for name, content in files.items() if name.endswith("program.json") and "calls" not in content]


def main():
    config = load_config()
    applications = {s.name: s for f in sorted((ROOT / "pipelines").glob("*.py")) if f.stem != "random_programs" for s in halide_utils.programs_in(f)}
    found = {}
    for archive in sorted(Path(config.raw_path).rglob("*.tar.xz")):
        for max_stages, record in records(archive):
            pipeline = random_programs.build(record["seed"], max_stages)[0] if max_stages else applications[record["name"]].build()
            description = halide_utils.describe_stages(pipeline)
            if len(description["stages"]) != len(record["stages"]):
                print(f"{archive}: {record['name']} is built differently today and left out")
            elif calls := {kind: counts for kind, counts in description["calls"].items() if any(counts)}:
                found[record["name"]] = calls
    path = Path(config.raw_path) / data_utils.CALLS_FILE
    path.write_bytes(orjson.dumps(found) + b"\n")
    totals = ", ".join(f"{np.sum([kind in calls for calls in found.values()])} {kind}" for kind in CALLS)
    print(f"{path}: {len(found)} programs ({totals})")


if __name__ == "__main__":
    run_script(main)
