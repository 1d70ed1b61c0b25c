"""What every process that compiles schedules starts from: the forkserver imports this module once, its children inherit the result.

Halide compiles its runtime library (threads, allocation, errors) once a process, which takes as long as a small schedule.
"""

import halide as hl

import halide_tools.execution  # noqa: F401  (what the children need, imported once)
from halide_tools.lowered_identity import skip_short_numbers

_x, _f = hl.Var("x"), hl.Func("warm_up")
_f[_x] = _x
hl.Pipeline(_f).compile_to_callable([], hl.get_host_target())
skip_short_numbers()  # so that what a schedule lowers to does not depend on what its process did before
