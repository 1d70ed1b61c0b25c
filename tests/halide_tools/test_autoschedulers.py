"""Halide's autoschedulers and the schedules they propose."""

import numpy as np

from features import STAGE_BYTES
from halide_tools.autoschedulers import WEIGHT_SHAPES, Proposal, baseline_weights


def test_the_shipped_weights_are_found():
    weights = baseline_weights()
    assert [w.shape[0] for w in weights] == [np.prod(s) for s in WEIGHT_SHAPES]
    assert all(np.isfinite(w).all() and w.std() > 0 for w in weights)


def test_equal_proposals_give_equal_schedules_and_others_differ(blur):
    def apply(k):
        return Proposal.draw(1, k).apply(blur.build(), blur)

    featurization, source = apply(0)
    assert featurization == apply(0)[0] and len(featurization) == 2 * STAGE_BYTES and ".compute_root()" in source
    assert len({apply(k)[0] for k in range(8)}) > 2
