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
from typing import Literal

import numpy as np
import orjson
import psutil
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

from config import Config, load_config, run_script
from dumps.companions import SCHEDULE_SUFFIX
from measuring.machine import PROTOCOLS

PATIENCE = 20  # seconds for a killed collection's processes to end


class KillsConfig(Config):
    kills: int = Field(20, ge=1, description="how often the collection is killed")
    programs: int = Field(2, ge=1, description="random programs to measure")
    schedules: int = Field(5, ge=1, description="schedules of each")
    protocol: Literal[*PROTOCOLS] = Field("careful", description="as of collect_schedules.py")


def start(config, output):
    flags = [
        f"--programs={config.programs}",
        f"--schedules={config.schedules}",
        "--max_stages=4",
        "--compile_seconds=60",
        f"--protocol={config.protocol}",
        f"--output={output}",
    ]
    return subprocess.Popen([sys.executable, ROOT / "collect_schedules.py", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def n_dumps(output):
    return sum(1 for suffix in (".sample", SCHEDULE_SUFFIX) for _ in output.parent.glob(f"{output.name}*/*/*{suffix}"))


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
    while process.poll() is None and n_dumps(output) < n:
        time.sleep(0.1)
    return time.monotonic() - began


def seconds_to_end(processes):
    """(how long `processes` go on, up to PATIENCE; how many still do then)."""
    began = time.monotonic()
    _, alive = psutil.wait_procs(processes, PATIENCE)
    return time.monotonic() - began, len(alive)


class Tally:
    """What the kills did: a row each, and what was lost or left over."""

    def __init__(self):
        self.rows, self.lost, self.left_over, self.slowest_end = [], 0, 0, 0.0
        self.n_finished = self.differing = 0

    def kill(self, process, began, output, done):
        """Kill a collection and note what is left of it; returns what it had measured. `done` : what it had at its start."""
        descendants = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        seconds = time.monotonic() - began
        process.wait()
        ending, n_alive = seconds_to_end(descendants)
        self.left_over, self.slowest_end = self.left_over + n_alive, max(self.slowest_end, ending)
        found = measured(output)
        self.lost += len(done.keys() - found.keys())
        self.rows.append(
            [len(self.rows) + 1, self.n_finished + 1, f"{seconds:.1f}", len(done), len(found), len(descendants), f"{ending:.2f}"]
        )
        print(*self.rows[-1], flush=True)
        return found

    def finish(self, process, found, expected):
        assert process.returncode == 0
        self.n_finished += 1
        self.differing += found != expected


def disturb(config, folder, expected, until_first):
    """Kill collections of the same programs as often as `config` says, and have each finish; returns the Tally."""
    rng, tally = np.random.default_rng(config.seed), Tally()
    output, done = Path(folder, "killed_0_"), {}
    while True:
        process = start(config, output)
        began, n_waited = time.monotonic(), int(rng.integers(4))
        wait_for_measurements(process, output, len(done) + n_waited if len(tally.rows) < config.kills else sys.maxsize)
        try:
            process.wait(rng.uniform(0, 3 if n_waited else until_first))
        except subprocess.TimeoutExpired:
            done = tally.kill(process, began, output, done)
        else:
            tally.finish(process, measured(output), expected)
            if len(tally.rows) == config.kills:
                return tally
            output, done = Path(folder, f"killed_{tally.n_finished}_"), {}


def main():
    config = load_config(KillsConfig)
    with tempfile.TemporaryDirectory() as folder:
        process = start(config, Path(folder, "whole"))
        until_first = wait_for_measurements(process, Path(folder, "whole"), 1)
        assert process.wait() == 0
        expected = measured(Path(folder, "whole"))
        tally = disturb(config, folder, expected, until_first)
    facts = {
        "seconds_until_first_measurement": until_first, "schedules": len(expected), "collections": tally.n_finished,
        "differing": tally.differing, "measurements_lost": tally.lost, "processes_left": tally.left_over,
        "slowest_end_seconds": tally.slowest_end,
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
    common.write("kills", header, tally.rows, facts)
    print(
        f"{tally.n_finished} collections, {config.kills} kills: {tally.differing} differ from the undisturbed one "
        f"({len(expected)} schedules), {tally.lost} measurements lost, {tally.left_over} processes left, "
        f"all others ended within {tally.slowest_end:.1f} s"
    )
    if tally.differing or tally.lost or tally.left_over:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
