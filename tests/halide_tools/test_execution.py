"""Buffers, compiled programs, and the comparison with the reference."""

import numpy as np
import pytest

from halide_tools import execution
from halide_tools.autoschedulers import Proposal
from halide_tools.programs import (
    Region,
    estimated_arguments,
    schedule_everything_at_root,
)
from measuring import machine


def test_a_compiled_schedule_computes_what_the_reference_does(blur):
    scheduled, reference = blur.build(), blur.build()
    Proposal.draw(1, 2).apply(scheduled, blur)
    schedule_everything_at_root(reference)
    results = []
    for pipeline in (scheduled, reference):
        program = execution.Program(pipeline)
        program.allocate(seed=3)
        program()
        results.append(program.results())
    assert execution.mismatch(*results) == ""
    assert "100.00%" in execution.mismatch([results[0][0] + 1], results[1])
    one_pass = execution.benchmark(program, 0)
    assert len(one_pass.batch_ms) >= 1 and 0 < one_pass.ms < 1000
    assert sum(one_pass.batch_ms) * one_pass.batch >= 1000 * (execution.PASS_SECONDS - execution.BATCH_SECONDS)


def test_buffers_begin_at_distances_drawn_anew():
    estimated = estimated_arguments(machine.calibration_pipelines()["memory"])

    def distance():
        inputs, outputs = execution.make_buffers(estimated, 0)
        return np.array(outputs[0], copy=False).ctypes.data - np.array(inputs[0], copy=False).ctypes.data

    assert len({distance() for _ in range(5)}) >= 4  # of some thousand


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32", "bool"])
def test_inputs_are_random_to_their_last_point_and_the_same_again(dtype):
    region = Region(np.dtype(dtype), [(0, 1000), (-3, 200)])  # three times as many points as are drawn

    def filled(seed):
        (buffer,), _ = execution.make_buffers(([region], []), seed)
        assert [buffer.dim(i).min() for i in range(2)] == [0, -3]
        return np.array(buffer)

    found = filled(1)
    assert found.shape == (200, 1000) and np.array_equal(found, filled(1)) and not np.array_equal(found, filled(2))
    assert len(np.unique(found, axis=0)) == 200 and (found != 0).any(axis=1).all()
