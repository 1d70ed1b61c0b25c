"""Peak memory of generate_dataset.py on the shipped measurements, and on a hundred times as many.

    python benchmarks/memory.py
    python benchmarks/memory.py --copies 10

The copies are the shipped dumps again with one of the algorithm's features changed, so that every copy of a program is a program of its
own and nothing merges. They lie in uncompressed archives in a temporary folder: with 100 copies 22 GB, and while the shards are written
30 GB more.
Writes benchmarks/results/memory.md and .json.
"""

import io
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import orjson
import psutil
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

from config import Config, load_config, run_script
from dumps.files import (
    iter_dumps,
    read_bytes,
)
from features import N_SCHEDULE


class MemoryConfig(Config):
    copies: int = Field(100, ge=2, description="how many times the shipped measurements")


def write_copies(raw_path, folder, copies):
    """An archive a copy; the first is as measured."""
    dumps = [(dump.file, read_bytes(dump)) for dump in iter_dumps(raw_path) if dump.file.endswith(".sample")]
    for copy in range(copies):
        with tarfile.open(folder / f"copy_{copy:03d}.tar", "w") as archive:
            for name, data in dumps:
                if copy:
                    data = bytearray(data)
                    at = 4 * N_SCHEDULE  # the first stage's first histogram: whether it uses bool
                    data[at : at + 4] = struct.pack("<f", copy)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def run(raw_path, data_path, config):
    """(peak MB of the script itself, peak MB of it and its readers together, seconds, counts)."""
    command = [
        sys.executable,
        ROOT / "generate_dataset.py",
        f"--raw_path={raw_path}",
        f"--data_path={data_path}",
        f"--num_threads={config.num_threads}",
    ]
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    alone = together = 0
    while process.poll() is None:
        try:
            alone = max(alone, process.memory_info().rss)
            together = max(together, sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    assert process.returncode == 0
    return alone / 1e6, together / 1e6, time.perf_counter() - began, orjson.loads((data_path / "meta.json").read_bytes())["counts"]


def main():
    config = load_config(MemoryConfig)
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, config.copies):
            raw, data = Path(folder, f"raw_{copies}"), Path(folder, f"data_{copies}")
            raw.mkdir()
            write_copies(config.raw_path, raw, copies)
            alone, together, seconds, counts = run(raw, data, config)
            facts[f"{copies} x"] = {"script_mb": alone, "all_processes_mb": together, "seconds": seconds, "counts": counts}
            first = facts["1 x"]
            ratios = f"{alone / first['script_mb']:.2f}", f"{together / first['all_processes_mb']:.2f}"
            rows.append([f"{copies} x", f"{counts['kept']:,}", f"{alone:.0f}", ratios[0], f"{together:.0f}", ratios[1], f"{seconds:.0f}"])
    header = ["data", "schedules kept", "peak MB, the script", "against 1 x", "peak MB, with its readers", "against 1 x ", "seconds"]
    common.write("memory", header, rows, facts)


if __name__ == "__main__":
    run_script(main)
