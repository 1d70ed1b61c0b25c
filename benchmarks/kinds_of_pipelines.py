"""What tune_schedule.py makes of pipelines of many kinds: a line each, tuned or the reason why not.

    python benchmarks/kinds_of_pipelines.py
    python benchmarks/kinds_of_pipelines.py --kinds interleaved,extern_stage

Tunes each Generator of tests/kinds_of_pipelines.py and tests/difficult_pipelines.py with a small budget, in a process and a folder of
its own. Fails where one ends with a traceback, or without a result and without one line that says why. Speed-ups are of few and rough
measurements: they say that a kind can be tuned, not by how much. Of all kinds, kinds_of_pipelines.md and .json are written to
benchmarks/results, and the table at the end of docs/kinds_of_pipelines.md anew.
"""

import dataclasses
import inspect
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import halide as hl
import orjson
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import common

from config import Config, UserError, load_config, run_script
from halide_tools.programs import as_script, find_programs, load_module

TESTS, PAGE = ROOT / "tests", ROOT / "docs" / "kinds_of_pipelines.md"
HEADER = ["kind", "what is unusual about it", "outcome", "measured", "failed", "exit code"]
LONGEST_BEGIN, LONGEST_END = 150, 110  # characters of a line that are shown
# Flags of kinds that need some, and kinds that are tuned once more with other flags: what is unusual then.
FLAGS = {
    "parameters": ["--params=input.type=uint16 output.type=float32 radius=1 signed=true"],
}
AGAIN = {
    "promised": ("The same, its contents given with --inputs", ["--inputs=index=17"]),
    "scalar_without_estimate": ("The same, its value given with --inputs", ["--inputs=gain=0.5"]),
    "open_type": ("The same, given with --params", ["--params=input.type=int16"]),
    "planar": ("The same, for one thread and an older processor", ["--num_threads=1", "--target=x86-64-linux-sse41"]),
}
SECONDS_MORE = 60  # than --minutes, after which a tuning is ended: its imports come before


class KindsConfig(Config):
    kinds: str = Field("", description="names of kinds, separated by commas; empty: all")
    budget: int = Field(3, ge=1, description="as of tune_schedule.py")
    proposals: int = Field(12, ge=1, description="as of tune_schedule.py")
    minutes: float = Field(2, gt=0, description="as of tune_schedule.py, for each kind")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A program to tune: its file, the Generator, what is unusual about it, and flags of tune_schedule.py."""

    file: Path
    name: str
    unusual: str
    flags: tuple = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a tuning ended: exit code, standard error, what report.json says ({} where there is none), and seconds."""

    exit_code: int
    errors: str
    report: dict
    seconds: float

    def fault(self):
        """What should never happen, in words; "" for a result, or a refusal in one line."""
        if "Traceback" in self.errors:
            return "a traceback"
        if self.exit_code == 0:
            return "" if math.isfinite(self.report.get("best_ms", math.nan)) else "no result, and no reason"
        if self.exit_code != 2:
            return f"exit code {self.exit_code}"
        return "" if len(self.errors.strip().splitlines()) == 1 else "not one line that says why"

    def in_words(self, file):
        if self.exit_code == 0 and self.report:
            if self.report["speedup"] is None:
                return f"tuned ({self.report['origin']}); Adams2019's own choice could not be measured"
            return f"tuned ({self.report['origin']}), {self.report['speedup']:.2f} x"
        line = (self.errors.strip().splitlines() or ["nothing said"])[-1]
        line = line.removeprefix("tune_schedule.py: ").replace(f"{file.parent}/", "").removeprefix(f"{file.name}: ")
        is_long = len(line) > LONGEST_BEGIN + LONGEST_END
        return f"{line[:LONGEST_BEGIN]} ... {line[-LONGEST_END:]}" if is_long else line


def all_kinds(folder):
    """Kinds of both files. Those with a stage in C run from a copy in `folder`, beside which it is compiled."""
    difficult = shutil.copy(TESTS / "difficult_pipelines.py", folder)
    if shutil.which("cc"):
        library, include = Path(folder, "librows.so"), Path(hl.install_dir(), "include")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{include}", TESTS / "sum_rows.c", "-o", library], check=True)
    kinds = []
    for file in (TESTS / "kinds_of_pipelines.py", Path(difficult)):
        with as_script(file):
            _, generators = load_module(str(file))
        for spec in find_programs(file):
            unusual = " ".join(inspect.getdoc(generators[spec.name]).split()).rstrip(".")
            kinds.append(Kind(file, spec.name, unusual, tuple(FLAGS.get(spec.name, ()))))
            if spec.name in AGAIN:
                kinds.append(Kind(file, spec.name, *AGAIN[spec.name]))
    return kinds


def tune(kind, config, output):
    """The Outcome of a Kind."""
    flags = [f"--{key}={getattr(config, key)}" for key in ("budget", "proposals", "minutes")]
    command = [sys.executable, ROOT / "tune_schedule.py", kind.file, f"--generator={kind.name}", *flags, *kind.flags]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--protocol=quick", f"--output={output}"],
            capture_output=True,
            text=True,
            timeout=60 * config.minutes + SECONDS_MORE,
        )
        code, errors = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, errors = -1, f"still running {SECONDS_MORE} s after --minutes were over"
    path = output / "report.json"
    report = orjson.loads(path.read_bytes()) if path.exists() else {}
    return Outcome(code, errors, report, time.monotonic() - began)


def row(kind, outcome):
    """The cells of a kind's line."""
    failed = ", ".join(f"{n} {reason}" for reason, n in outcome.report.get("failed", {}).items()) or "-"
    words = outcome.in_words(kind.file) if not outcome.fault() else f"FAULT: {outcome.fault()}"
    name = f"{kind.name} ({' '.join(kind.flags)})" if kind.flags else kind.name
    cells = [name, kind.unusual, words, str(outcome.report.get("measured", 0)), failed, str(outcome.exit_code)]
    return [cell.replace("|", "\\|") for cell in cells]


def main():
    config = load_config(KindsConfig)
    with tempfile.TemporaryDirectory() as folder:
        kinds, wanted = all_kinds(folder), [name.strip() for name in config.kinds.split(",") if name.strip()]
        for name in wanted:
            if name not in {kind.name for kind in kinds}:
                raise UserError(f"--kinds: no {name!r}; there are {', '.join(sorted({kind.name for kind in kinds}))}")
        kinds = [kind for kind in kinds if not wanted or kind.name in wanted]
        outcomes = []
        for number, kind in enumerate(kinds):
            outcomes.append(tune(kind, config, Path(folder, f"tuned_{number}")))
            print(f"{' | '.join(row(kind, outcomes[-1]))} ({outcomes[-1].seconds:.0f} s)", flush=True)
            if outcomes[-1].fault():
                print(outcomes[-1].errors, flush=True)
    rows = [row(kind, outcome) for kind, outcome in zip(kinds, outcomes)]
    faults = [f"{kind.name}: {outcome.fault()}" for kind, outcome in zip(kinds, outcomes) if outcome.fault()]
    if not wanted:
        tuned = sum(outcome.exit_code == 0 for outcome in outcomes)
        facts = {"tuned": tuned, "refused": len(outcomes) - tuned - len(faults), "faults": faults}
        common.write("kinds_of_pipelines", HEADER, rows, facts)
        before, _, _ = PAGE.read_text().partition(f"| {HEADER[0]} |")
        PAGE.write_text(before + (common.RESULTS / "kinds_of_pipelines.md").read_text())
    if faults:
        raise SystemExit(f"{len(faults)} of {len(kinds)} kinds end as none should: {'; '.join(faults)}")


if __name__ == "__main__":
    run_script(main)
