"""Whether a collection that is killed twenty times at random moments ends with the schedules of one that nobody disturbs.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 5 --programs 1

Collects a few small random programs undisturbed, and then with `kill -9`, each time started again; one that finishes in spite of it is
compared, and another begun, until all kills are spent. A kill waits for none to three schedules to be measured anew, and then for a random
time: up to that until the first measurement where it waits for none, else up to three seconds. So kills fall on starting, proposing,
compiling and measuring alike. Prints the table and writes benchmarks/results/kills.md and .json. Exit code 1 where the sets of schedules
differ, a measurement is lost, or a process outlives its collection. Use the machine for nothing else meanwhile.
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

import common

from config import Config, load_config, run_script

PATIENCE = 20  # seconds for a killed collection's processes to end


class KillsConfig(Config):
    kills: int = Field(20, ge=1, description="how often the collection is killed")
    programs: int = Field(2, ge=1, description="random programs to measure")
    schedules: int = Field(5, ge=1, description="schedules of each")


def start(config, output):
    flags = [
        f"--programs={config.programs}",
        f"--schedules={config.schedules}",
        "--max_stages=4",
        "--compile_seconds=60",
        f"--output={output}",
    ]
    return subprocess.Popen([sys.executable, ROOT / "collect_schedules.py", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measured(output):
    """{program/number: hash of its features} of the schedules measured, in all parts of a collection."""
    records = [orjson.loads(path.read_bytes()) for path in output.parent.glob(f"{output.name}*/*/program.json")]
    return {
        f"{r['name']}/{key}": c["hash"]
        for r in records
        for key, c in r["candidates"].items()
        if c["outcome"] == "measured" and key.isdecimal()
    }


def wait_for_measurements(process, output, n):
    """Seconds until `n` schedules are measured, or the collection has ended."""
    began = time.monotonic()
    while process.poll() is None and sum(1 for _ in output.parent.glob(f"{output.name}*/*/*.sample")) < n:
        time.sleep(0.1)
    return time.monotonic() - began


def seconds_to_end(processes):
    """(how long `processes` go on, up to PATIENCE; how many still do then)."""
    began = time.monotonic()
    _, alive = psutil.wait_procs(processes, PATIENCE)
    return time.monotonic() - began, len(alive)


def main():
    config = load_config(KillsConfig)
    rng = np.random.default_rng(config.seed)
    rows, lost, left_over, slowest_end, n_finished, differing = [], 0, 0, 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        process = start(config, Path(folder, "whole"))
        until_first = wait_for_measurements(process, Path(folder, "whole"), 1)
        assert process.wait() == 0
        expected = measured(Path(folder, "whole"))
        output, done = Path(folder, "killed_0_"), {}
        while True:
            process = start(config, output)
            began, n_waited = time.monotonic(), int(rng.integers(4))
            wait_for_measurements(process, output, len(done) + n_waited if len(rows) < config.kills else sys.maxsize)
            try:
                process.wait(rng.uniform(0, 3 if n_waited else until_first))
            except subprocess.TimeoutExpired:
                descendants = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                seconds = time.monotonic() - began
                process.wait()
                ending, n_alive = seconds_to_end(descendants)
                left_over, slowest_end = left_over + n_alive, max(slowest_end, ending)
                before, done = done, measured(output)
                lost += len(before.keys() - done.keys())
                rows.append([len(rows) + 1, n_finished + 1, f"{seconds:.1f}", len(before), len(done), len(descendants), f"{ending:.2f}"])
                print(*rows[-1], flush=True)
            else:
                assert process.returncode == 0
                n_finished += 1
                differing += measured(output) != expected
                if len(rows) == config.kills:
                    break
                output, done = Path(folder, f"killed_{n_finished}_"), {}
    facts = {
        "seconds_until_first_measurement": until_first, "schedules": len(expected), "collections": n_finished, "differing": differing,
        "measurements_lost": lost, "processes_left": left_over, "slowest_end_seconds": slowest_end,
    }  # fmt: skip
    header = [
        "kill",
        "of collection",
        "seconds after its start",
        "schedules measured at its start",
        "when killed",
        "its processes then",
        "seconds until they had ended",
    ]
    common.write("kills", header, rows, facts)
    print(
        f"{n_finished} collections, {config.kills} kills: {differing} differ from the undisturbed one ({len(expected)} schedules), {lost} measurements lost, "
        f"{left_over} processes left, all others ended within {slowest_end:.1f} s"
    )
    if differing or lost or left_over:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
