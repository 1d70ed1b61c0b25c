"""The machine that measures: what it is, by which protocol it measures, whether others use it, and whether it still runs as it did.

Machines differ, and one machine differs from day to day. So a collection notes what it was measured on and how (`describe_machine`),
and the times of a few fixed calibration programs, at its beginning and throughout (`record_calibration`).
"""

import datetime
import functools
import importlib.metadata
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import halide as hl
import numpy as np
import orjson
import psutil
from filelock import FileLock

from config import replace_file, usable_cores
from halide_tools import execution

REPEATED_SHARE = 0.05  # of the schedules are measured again in a fresh process, which tells the noise
VAIN_WAITS = 2  # waits in a row that did not find an idle machine, after which there are no more of them until a pass is undisturbed
BACKGROUND_SECONDS = 1.0  # over which it is told how busy the machine is


@dataclass(frozen=True)
class Protocol:
    """How schedules are measured: in short passes, some seconds apart, since others on the host slow a machine for seconds at a time.

    tries : measurements of one pass on a busy machine before it is kept and flagged noisy
    calm_seconds : longest wait for an idle machine before another try
    min_passes, max_passes, agreeing, agreement : there are so many passes at least, and more until the `agreeing` fastest differ by no
        more than the share `agreement`. The fastest pass counts
    slow_ms, slow_min_passes, slow_max_passes, slow_agreeing : the same for schedules that take longer than so many milliseconds: a few
        of them would take as long as a hundred others, and a moment of disturbance is a smaller part of their calls
    calibration_passes : of the calibration programs
    max_drift : share by which their times may drift before measurements no longer belong to one collection
    """

    name: str
    tries: int
    calm_seconds: float
    min_passes: int
    max_passes: int
    agreeing: int
    agreement: float
    slow_ms: float
    slow_min_passes: int
    slow_max_passes: int
    slow_agreeing: int
    calibration_passes: int
    max_drift: float

    def has_converged(self, passes):
        """Whether several execution.Pass are enough: the fastest of those on an idle machine agree."""
        fastest = sorted(p.ms for p in passes if not is_noisy(p))
        is_slow = bool(passes) and runtime_ms(passes) > self.slow_ms
        least, most, agreeing = (
            (self.slow_min_passes, self.slow_max_passes, self.slow_agreeing)
            if is_slow
            else (self.min_passes, self.max_passes, self.agreeing)
        )
        agree = len(fastest) >= agreeing and fastest[agreeing - 1] <= fastest[0] * (1 + self.agreement)
        return len(passes) >= most or (len(passes) >= least and agree)


CAREFUL = Protocol(
    "careful", tries=3, calm_seconds=3, min_passes=5, max_passes=16, agreeing=3, agreement=0.02,
    slow_ms=100, slow_min_passes=3, slow_max_passes=6, slow_agreeing=2, calibration_passes=16, max_drift=0.05,
)  # fmt: skip
# For trying things out, and for machines that are never idle: its times are rough, and are never mixed with careful ones.
QUICK = Protocol(
    "quick", tries=1, calm_seconds=0, min_passes=1, max_passes=2, agreeing=1, agreement=0.02,
    slow_ms=100, slow_min_passes=1, slow_max_passes=1, slow_agreeing=1, calibration_passes=2, max_drift=4,
)  # fmt: skip
PROTOCOLS = {protocol.name: protocol for protocol in (CAREFUL, QUICK)}


@dataclass
class Background:
    """How busy others keep the machine: the share that they used during each measurement, and whether it is worth waiting for them."""

    protocol: Protocol
    shares: list = field(default_factory=list)
    vain_waits: int = 0

    def note(self, one_pass):
        self.shares.append(one_pass.background_cpu_share)
        if not is_noisy(one_pass):
            self.vain_waits = 0

    def wait_for_calm(self):
        """Until nobody else uses the machine, but not for ever: the measurement itself tells whether it was disturbed.

        Returns whether another try is worth it: after VAIN_WAITS in a row it is not, and nothing is waited for.
        """
        if self.vain_waits >= VAIN_WAITS:
            return False
        deadline = time.monotonic() + self.protocol.calm_seconds
        while execution.background_cpu_share_now() > execution.BACKGROUND_CPU_LIMIT:
            if time.monotonic() >= deadline:
                self.vain_waits += 1
                break
        return True

    def share(self):
        """Mean share of the machine that others used, of all measurements so far; None before the first."""
        return round(float(np.mean(self.shares)), 4) if self.shares else None


def is_noisy(one_pass):
    return one_pass.background_cpu_share > execution.BACKGROUND_CPU_LIMIT


def runtime_ms(passes):
    """Milliseconds that a call takes, of several execution.Pass."""
    return min(p.ms for p in passes)


def summary(passes):
    """What is noted of a measurement in several execution.Pass, of which those on an idle machine count, if there are any.

    {"runtime_ms", "samples": batches, "calls", "spread": by how much the median batch of all passes is slower, "cpu_share",
    "foreign_share", "noisy", "passes_ms": runtime_ms of each pass}
    """
    calm = [p for p in passes if not is_noisy(p)]
    counted = calm or [min(passes, key=lambda p: p.background_cpu_share)]
    ms, times = runtime_ms(counted), np.concatenate([p.batch_ms for p in counted])
    return {
        "runtime_ms": round(ms, 6), "samples": len(times), "calls": sum(p.batch * len(p.batch_ms) for p in counted),
        "spread": round(float(np.median(times)) / ms - 1, 4), "cpu_share": round(float(np.mean([p.cpu_share for p in counted])), 4),
        "foreign_share": max(p.background_cpu_share for p in counted), "noisy": not calm, "passes_ms": [round(p.ms, 6) for p in passes],
    }  # fmt: skip


def describe_machine(protocol=CAREFUL, target="host", threads=None):
    """What a measurement depends on: processor, cores, threads, target, versions, protocol."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    u, p, cores = execution, protocol, usable_cores()
    return {
        "processor": model, "cores": cores, "threads": threads or cores, "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(), "python": platform.python_version(), "halide": importlib.metadata.version("halide"),
        "target": str(hl.Target(target)),
        "protocol": {
            "name": p.name, "freed_memory": "kept by the process", "batch_seconds": u.BATCH_SECONDS, "pass_seconds": u.PASS_SECONDS,
            "foreign_share_limit": u.BACKGROUND_CPU_LIMIT, "tries": p.tries, "passes": [p.min_passes, p.max_passes],
            "agreement": [p.agreeing, p.agreement],
            "slow": {"ms": p.slow_ms, "passes": p.slow_min_passes, "agreement": p.slow_agreeing},
            "pass": "a fork, buffers at drawn offsets", "repeated_share": REPEATED_SHARE,
            "runtime": f"of the fastest pass: milliseconds a call that a share of {u.FAST_SHARE} of its batches is faster than",
        },
    }  # fmt: skip


def differences(noted, here, prefix=""):
    """What differs between two notes of describe_machine, in words: ["processor A, here B", ...]. What an older note lacks is left out."""
    if noted.get("name", here.get("name")) != here.get("name"):  # of protocols: all else follows from it
        return [f"{prefix.rstrip('.')} {noted['name']}, here {here['name']}"]
    found = []
    for key in noted.keys() & here.keys():
        if isinstance(noted[key], dict) and isinstance(here[key], dict):
            found += differences(noted[key], here[key], f"{prefix}{key}.")
        elif noted[key] != here[key]:
            found.append(f"{prefix}{key} {noted[key]}, here {here[key]}")
    return sorted(found)


def calibration_pipelines():
    """{name: hl.Pipeline}: fixed work with a fixed schedule on all cores, whose time tells how fast the machine is today."""
    x, y, xi, yi = hl.vars("x y xi yi")
    r = hl.RDom([(0, 64)])
    image = hl.ImageParam(hl.Float(32), 2, "image")
    image.set_estimates([(0, 4096), (0, 2048)])
    memory, arithmetic, mathematics = hl.Func("memory"), hl.Func("arithmetic"), hl.Func("mathematics")
    memory[x, y] = image[x, y] + image[4095 - x, y]
    memory.set_estimates([(0, 4096), (0, 2048)]).parallel(y, 64).vectorize(x, 8)
    arithmetic[x, y] = 0.0
    arithmetic[x, y] += image[x + r, y] * image[r, y]
    arithmetic.set_estimates([(0, 2048), (0, 128)]).parallel(y, 8).vectorize(x, 8)
    arithmetic.update().tile(x, y, xi, yi, 32, 1).reorder(xi, r.x, yi, x, y).vectorize(xi, 8).unroll(xi).parallel(y, 8)
    mathematics[x, y] = hl.exp(image[x, y]) * hl.log(image[x, y] + 1.0)
    mathematics.set_estimates([(0, 2048), (0, 256)]).parallel(y, 16).vectorize(x, 8)
    return {f.name().split("$")[0]: hl.Pipeline(f) for f in (memory, arithmetic, mathematics)}


@functools.cache
def calibration_programs():
    """{name: compiled program} of a few fixed ones that need the memory, the arithmetic units, or the library of mathematics."""
    programs = {}
    for name, pipeline in calibration_pipelines().items():
        programs[name] = execution.Program(pipeline)
    return programs


def calibrate(passes):
    """({calibration program: milliseconds}, whether others used the machine), measured now in so many passes."""
    programs = calibration_programs()
    times = [[execution.benchmark(program, 0) for program in programs.values()] for _ in range(passes)]
    noted = {name: summary(own) for name, own in zip(programs, zip(*times))}
    return {name: found["runtime_ms"] for name, found in noted.items()}, any(found["noisy"] for found in noted.values())


def record_calibration(folder, protocol):
    """Measure the calibration programs and add their times to the collection's note.

    Returns by how much they have drifted: the median over the programs of their time over that of the collection's first
    measurement, less 1. On a machine that looks drifted, or that others use, it is measured again, as often as the protocol tries; the
    nearest of the calmest counts. A first measurement that was disturbed would make all later ones look drifted.
    """
    path = folder / "collection.json"
    first = orjson.loads(path.read_bytes())["calibration"][:1]
    found, background = [], Background(protocol)
    for _ in range(protocol.tries):
        times, disturbed = calibrate(protocol.calibration_passes)
        drift = float(np.median([times[name] / ms for name, ms in first[0]["ms"].items()])) - 1 if first else 0.0
        found.append((disturbed, abs(drift), drift, times))
        if not disturbed and abs(drift) <= protocol.max_drift or not background.wait_for_calm():
            break
    _, _, drift, times = min(found, key=lambda one: one[:2])
    with FileLock(str(path) + ".lock"):
        note = orjson.loads(path.read_bytes())
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        note["calibration"].append({"when": now, "ms": times, "drift": round(drift, 4)})
        replace_file(path, orjson.dumps(note, option=orjson.OPT_INDENT_2))
    return drift
