"""The runtime in a bench.txt, as Halide's RunGen writes it and as systems, flags and warnings change it.

RunGen (Halide's tools/RunGen.h) prints `Benchmark for NAME produces best case of SECONDS sec/iter (over ...`, or with --parsable_output
`NAME  BEST_TIME_MSEC_PER_ITER  MILLISECONDS`. Halide's autotune loop cuts the eighth word out of the first, whatever stands there.
"""

import codecs
import math
import re

SENTENCE = re.compile(r"Benchmark for[ \t]+(.*?)[ \t]+produces best case of\s+(\S+?)[ \t]*(n|u|m|)s(?:ec)?(?:onds?)?[ \t]*/[ \t]*iter")
PARSABLE = re.compile(r"^[ \t]*(.*?)[ \t]*\bBEST_TIME_(N|U|M|)SEC\w*[ \t:=]+(\S+)", re.MULTILINE)
MS_PER_UNIT = {"": 1e3, "m": 1.0, "u": 1e-3, "n": 1e-6}
EIGHTH = 7  # position of the word that the autotune loop takes
SPEAKS_OF_TROUBLE = re.compile(r"warning|error|fail|timed out|abort|usage", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+(?:[eE][-+]?\d+)?")
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def bench_runtime(bench, schedule="", is_shared=False):
    """Milliseconds an iteration from the bytes of a bench.txt, the fastest of several runs; infinite or NaN where it says so.

    `schedule` : name of the schedule's files; of the runs of several programs those of this name count
    `is_shared` : whether several schedules lie beside this bench.txt, so that only a run of this name can be this schedule's
    Raises ValueError, which shows what stands in place of the number.
    """
    if bench is None:
        raise ValueError("there is no bench.txt beside it")
    text = TERMINAL_COLOURS.sub("", decode(bench)).strip()
    if not text:
        raise ValueError("the bench.txt beside it is empty")
    runs = [(name, word, MS_PER_UNIT[unit]) for name, word, unit in SENTENCE.findall(text)]
    runs += [(name, word, MS_PER_UNIT[unit.lower()]) for name, unit, word in PARSABLE.findall(text)]
    if not runs:
        return _eighth_word(text, is_shared)
    names = {name for name, *_ in runs}
    if schedule in names:
        runs = [run for run in runs if run[0] == schedule]
    elif is_shared or len(names) > 1:
        raise ValueError(f"the bench.txt beside it tells of {', '.join(sorted(names))[:80]}, not of {schedule}")
    times = [number(word) * factor for _, word, factor in runs]
    return min((ms for ms in times if math.isfinite(ms)), default=times[0])


def decode(data):
    """The text in bytes of UTF-8, of UTF-16 as PowerShell redirects it, or of UTF-32, with a byte order mark or without."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return data.decode("utf-32", "replace")
    if data[1:4] == b"\0\0\0":
        return data.decode("utf-32-le", "replace")
    if data[:3] == b"\0\0\0":
        return data.decode("utf-32-be", "replace")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    if data[1:2] == b"\0":
        return data.decode("utf-16-le", "replace")
    if data[:1] == b"\0":
        return data.decode("utf-16-be", "replace")
    return data.decode("utf-8-sig", "replace")


def number(word):
    """The number in a word, a decimal comma allowed. Raises ValueError, which shows the word."""
    try:
        return float(word.replace(",", ".") if DECIMAL_COMMA.fullmatch(word) else word)
    except ValueError:
        raise ValueError(f"the bench.txt beside it has {word[:40]!r} in place of the time") from None


def _eighth_word(text, is_shared):
    """Milliseconds from a line that has the time where RunGen's sentence has it, whatever the other words are."""
    line = text.splitlines()[0].strip()
    words = line.split()
    if len(words) <= EIGHTH or SPEAKS_OF_TROUBLE.search(line) or is_shared:
        raise ValueError(f"the bench.txt beside it says {line[:80]!r} and no time")
    return number(words[EIGHTH]) * 1e3
