"""How fast dumps are read, parsed and turned into features, beside a JSON parser alone.

    python benchmarks/reading.py
    python benchmarks/reading.py --dumps DUMPS.tar.xz         # JSON dumps of one's own, too

The files are unpacked first, and lie in the page cache. Every rival uses the same number of processes on the same files. Writes
benchmarks/results/reading.md and .json.
"""

import itertools
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import orjson
from joblib import Parallel, delayed
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

import data_utils
from config import Config, load_config, run_script
from dumps.files import (
    iter_dumps,
    read_bytes,
)
from measuring.fan_out import fan_out

CHUNK = 64  # files a task, for every rival


class ReadingConfig(Config):
    dumps: str = Field("", description="JSON dumps, as raw_path; empty: .sample files alone")
    files: int = Field(2000, ge=1, description="how many of each are read")
    rounds: int = Field(7, ge=1, description="times that each rival reads them")


def unpack(raw_path, suffix, folder, n):
    """Write the first `n` dumps whose name ends in `suffix` to `folder`; returns the files."""
    folder.mkdir()
    files = []
    for dump in itertools.islice((d for d in iter_dumps(raw_path) if d.file.endswith(suffix)), n):
        files.append(folder / f"{len(files):06d}{suffix}")
        files[-1].write_bytes(read_bytes(dump))
    return files


def load_chunk(parse, files):
    for file in files:
        parse(file.read_bytes())


def load_all(parse, files, n_jobs):
    Parallel(n_jobs=n_jobs)(delayed(load_chunk)(parse, files[i : i + CHUNK]) for i in range(0, len(files), CHUNK))


def read_all(config, folder):
    """What generate_dataset.py does before it writes shards."""
    settings = config.model_copy(update={"raw_path": str(folder)})
    with tempfile.TemporaryDirectory() as spools:
        data_utils.read_dumps(settings, *(data_utils.Spool(spools) for _ in range(3)))


def main():
    config = load_config(ReadingConfig)
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as folder, fan_out(config) as n_jobs:
        for kind, raw_path in ((".json", config.dumps), (".sample", config.raw_path)):
            files = unpack(raw_path, kind, Path(folder, kind[1:]), config.files) if raw_path else []
            if not files:
                continue
            megabytes = sum(f.stat().st_size for f in files) / 1e6
            parsers = (
                {"json.loads alone": json.loads, "orjson.loads alone": orjson.loads}
                if kind == ".json"
                else {"reading the bytes alone": len}
            )
            rivals = {f"{kind}: generate_dataset.py": partial(read_all, config, files[0].parent)}
            rivals |= {f"{kind}: {name}": partial(load_all, parse, files, n_jobs) for name, parse in parsers.items()}
            seconds = common.interleave(rivals, config.rounds)
            ours = next(iter(seconds.values()))
            for name, values in seconds.items():
                rows.append([name, common.spread(len(files) / values), common.spread(megabytes / values), common.spread(ours / values)])
                facts[name] = {"files_per_second": (len(files) / values).tolist(), "times_as_long": (ours / values).tolist()}
    common.write("reading", ["what", "files a second", "MB a second", "generate_dataset.py takes so many times as long"], rows, facts)


if __name__ == "__main__":
    run_script(main)
