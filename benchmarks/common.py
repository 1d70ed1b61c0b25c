"""What the benchmarks share: applications by name, interleaved rivals, medians with their spread, a table and the same as JSON."""

import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import orjson

from measuring.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


from config import UserError

RESULTS = ROOT / "benchmarks" / "results"
SPREAD = re.compile(r"\(\S+ to \S+\)")  # as `spread` writes it


def interleave(rivals, rounds):
    """{name: (rounds,) seconds} of each of `rivals` {name: function}, interleaved, after one round that does not count."""
    seconds = {name: [] for name in rivals}
    for i in range(rounds + 1):
        for name, function in rivals.items():
            began = time.perf_counter()
            function()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values):
    """Median and the 10th and 90th percentiles, for a table."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return f"{number(median)} ({number(low)} to {number(high)})"


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def in_fork(seconds, function, *arguments):
    """What `function` returns in a forked process, or ("failed", error's type, text); None after so many seconds. Its output is lost."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run():
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        try:
            sender.send(function(*arguments))
        except Exception as error:  # whatever Halide raises
            sender.send(("failed", type(error).__name__, str(error)))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else None
    except EOFError:
        return ("failed", "", "its process ended")
    finally:
        process.kill()
        process.join()


def machine():
    """The processor's name and number of cores."""
    found = describe_machine()
    return f"{found['processor']}, {found['cores']} cores"


def write(name, header, rows, facts=()):
    """Print a table of `rows` (lists of text) under `header`.

    It goes to benchmarks/results/NAME.md, and with `facts` {name: value} to NAME.json.
    """
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]
    spreads = "; median, and 10th to 90th percentile" if any(SPREAD.search(str(cell)) for row in rows for cell in row) else ""
    text = "\n".join([*lines, "", f"({machine()}{spreads})"])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text + "\n")
    table = [dict(zip(header, map(str, row))) for row in rows]
    (RESULTS / f"{name}.json").write_bytes(
        orjson.dumps({"machine": machine(), "table": table, **dict(facts)}, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
    )


def chosen_files(applications):
    """{name: file in pipelines/} of those named, separated by commas, or of all. Raises UserError for one that is not there."""
    files = {f.stem: f for f in sorted((ROOT / "pipelines").glob("*.py")) if f.stem not in ("__init__", "random_programs")}
    names = [name.strip() for name in applications.split(",") if name.strip()] or list(files)
    for name in names:
        if name not in files:
            raise UserError(f"--applications: no {name!r} in pipelines/; there are {', '.join(files)}")
    return {name: files[name] for name in names}
