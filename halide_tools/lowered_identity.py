"""When two schedules are the same: their lowered code is equal but for names.

The normalisation, RENAMED: each name is replaced by its number in the order of first appearance. What is called (`min(`), types and the
words of Halide's printer (`for`, `parallel`, `Stack`) are no names.
Halide names temporaries by a counter (`t999`, `t1000`) that depends on what its process has built before, and sorts some operands and
statements by name, as text. `skip_short_numbers` makes all of these numbers equally long, so that they sort by age whatever the road. What
Halide sorts by the names of Funcs and loops may still differ: then one schedule looks like two, never two like one.
"""

import re

import halide as hl

from dumps.parsing import stable_hash

RENAMED = "names numbered in order of appearance"
# What Halide's IRPrinter writes beside names.
WORDS = """
    Auto Heap Stack Register GPUShared GPUTexture LockedCache VTCM AMXTile acquire allocate assert atomic buffer consume custom_delete
    custom_new else external external_plus_argv external_plus_metadata fork for free func gpu_block gpu_lane gpu_thread
    hoisted_storage if in internal join let module name parallel predicate prefetch produce realize reinterpret serial static struct
    target unrolled vectorized void
""".split()
TYPE = r"(?:u?int|b?float|handle)\d+(?:x\d+)?"
# A name: but what is called is none.
IDENTIFIER = re.compile(rf"(?<![\w$.])(?!(?:{'|'.join(WORDS)}|{TYPE})(?![\w$.]))[A-Za-z_$.][\w$.]*(?!\w*\()")
FIRST_NUMBER = 10_000  # of temporaries; a large pipeline takes a few thousand
TEMPORARIES_A_CALL = 5  # that hl.fast_log names


def renamed(text):
    """Lowered code with its names numbered in order of appearance."""
    numbers = {}
    # A function is called as its output, but for `$`: of `out$1` it is `out_1`, and of `out` it is `out`, too.
    return IDENTIFIER.sub(lambda match: numbers.setdefault(match[0].replace("$", "_"), f"n{len(numbers)}"), text)


def lowered_hash(text):
    """63 bits that two lowered codes share where they are equal but for names."""
    return stable_hash(renamed(text))


def skip_short_numbers():
    """Let Halide's temporaries in this process have numbers from FIRST_NUMBER on, all of five digits. Takes a tenth of a second."""
    x = hl.f32(hl.Var("x"))
    for _ in range(FIRST_NUMBER // TEMPORARIES_A_CALL):
        hl.fast_log(x)
