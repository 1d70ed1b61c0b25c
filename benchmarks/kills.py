"""Whether a collection that is killed twenty times at random moments ends with the schedules of one that nobody disturbs.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 5 --programs 2

Collects a few small random programs undisturbed, and then with `kill -9` after random times, up to what the undisturbed run took, each
time started again; one that finishes in spite of it is compared, and another begun, until all kills are spent. Prints the table and writes
benchmarks/results/kills.md and .json. Exit code 1 where the sets of schedules differ, a measurement is lost, or a process goes on
after its collection was killed. Use the machine for nothing else meanwhile.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
import psutil
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402

from config import Config, load_config, run_script  # noqa: E402


class KillsConfig(Config):
    kills: int = Field(20, ge=1, description="how often the collection is killed")
    programs: int = Field(3, ge=1, description="random programs to measure")
    schedules: int = Field(6, ge=1, description="schedules of each")


def start(config, output):
    flags = [f"--programs={config.programs}", f"--schedules={config.schedules}", "--max_stages=6", "--compile_seconds=60", f"--output={output}"]
    return subprocess.Popen([sys.executable, ROOT / "collect_schedules.py", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measured(output):
    """{program/number: hash of its features} of the schedules measured, in all parts of a collection."""
    records = [orjson.loads(path.read_bytes()) for path in output.parent.glob(f"{output.name}*/*/program.json")]
    return {f"{r['name']}/{key}": c["hash"] for r in records for key, c in r["candidates"].items() if c["outcome"] == "measured" and key.isdecimal()}


def compilers():
    """How many processes run that a killed collection should have taken with it."""
    names = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return sum("forkserver" in name and "collection" in name for name in names)


def main():
    config = load_config(KillsConfig)
    rng = np.random.default_rng(config.seed)
    rows, lost, left_over, n_finished, differing = [], 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        assert start(config, Path(folder, "whole")).wait() == 0
        undisturbed, expected = time.monotonic() - began, measured(Path(folder, "whole"))
        output, done = Path(folder, "killed_0_"), {}
        while True:
            process, seconds = start(config, output), rng.uniform(1, undisturbed)
            try:
                process.wait(seconds if len(rows) < config.kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                time.sleep(1)
                before, done = done, measured(output)
                lost += len(before.keys() - done.keys())
                left_over += compilers()
                rows.append([len(rows) + 1, n_finished + 1, f"{seconds:.1f}", len(before), len(done)])
                print(*rows[-1], flush=True)
            else:
                assert process.returncode == 0
                n_finished += 1
                differing += measured(output) != expected
                if len(rows) == config.kills:
                    break
                output, done = Path(folder, f"killed_{n_finished}_"), {}
    facts = {"undisturbed_seconds": undisturbed, "schedules": len(expected), "collections": n_finished, "differing": differing, "measurements_lost": lost, "processes_left": left_over}
    timing.write("kills", ["kill", "of collection", "seconds after its start", "schedules measured at its start", "when killed"], rows, facts)
    print(f"{n_finished} collections, {config.kills} kills: {differing} differ from the undisturbed one ({len(expected)} schedules), {lost} measurements lost, {left_over} processes left")
    if differing or lost or left_over:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
