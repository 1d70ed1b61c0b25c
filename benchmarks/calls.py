"""Which measured programs call the C library, for collections whose program.json does not tell: data/raw/library_calls.json.

    python benchmarks/library_calls.py

Builds the programs of every packed collection under raw_path anew (random programs from their numbers, applications from pipelines/) and
lists, for those that do, the calls of each stage. Collections measured since carry the same in their program.json.
"""

import sys
import tarfile
from pathlib import Path

import orjson

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data_utils  # noqa: E402
import halide_utils  # noqa: E402
from config import load_config, run_script  # noqa: E402
from pipelines import random_programs  # noqa: E402


def records(archive):
    """(max_stages or None, program.json) of each program of a packed collection that does not tell."""
    with tarfile.open(archive) as tar:
        files = {member.name: orjson.loads(tar.extractfile(member).read()) for member in tar if member.name.endswith(".json")}
    source = next(content for name, content in files.items() if name.endswith("collection.json"))["source"]
    max_stages = source.get("random_programs", {}).get("max_stages")
    return [(max_stages, content) for name, content in files.items() if name.endswith("program.json") and "library_calls" not in content]


def main():
    config = load_config()
    applications = {s.name: s for f in sorted((ROOT / "pipelines").glob("*.py")) if f.stem != "random_programs" for s in halide_utils.programs_in(f)}
    found = {}
    for archive in sorted(Path(config.raw_path).rglob("*.tar.xz")):
        for max_stages, record in records(archive):
            pipeline = random_programs.build(record["seed"], max_stages)[0] if max_stages else applications[record["name"]].build()
            calls = halide_utils.describe_stages(pipeline)["library_calls"]
            if len(calls) != len(record["stages"]):
                print(f"{archive}: {record['name']} is built differently today and left out")
            elif any(calls):
                found[record["name"]] = calls
    path = Path(config.raw_path) / data_utils.LIBRARY_CALLS
    path.write_bytes(orjson.dumps(found) + b"\n")
    print(f"{path}: {len(found)} programs call the C library")


if __name__ == "__main__":
    run_script(main)
