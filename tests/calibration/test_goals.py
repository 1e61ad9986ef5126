# SPDX-License-Identifier: Apache-2.0
"""From a goal (seconds, kept accuracy) to a share of the pixels."""

from __future__ import annotations

import pytest

from sparse_refine.calibration import goals
from sparse_refine.calibration.curve import Point

POINTS = [
    Point(None, 0.0, 1.0, 60.0),
    Point(0.1, 0.1, 2.0, 68.0),
    Point(0.2, 0.2, 1.9, 69.0),  # noise: cheaper than the one before
    Point(0.4, 0.4, 4.0, 70.0),
]


@pytest.mark.parametrize(
    "seconds, fraction", [(1.5, 0.05), (2.0, 0.2), (3.0, 0.3), (9.0, 0.4), (1.0, 0.0)]
)
def test_fraction_for_seconds(seconds, fraction):
    assert goals.fraction_for_seconds(POINTS, seconds) == pytest.approx(fraction)


@pytest.mark.parametrize("keep, fraction", [(0.4, 0.05), (0.8, 0.1), (0.85, 0.15), (1.0, 0.4)])
def test_fraction_for_accuracy(keep, fraction):
    assert goals.fraction_for_accuracy(POINTS, keep) == pytest.approx(fraction)


def test_goals_out_of_reach():
    with pytest.raises(ValueError, match="nothing refined an image takes 1 seconds.*is 0.5"):
        goals.fraction_for_seconds(POINTS, 0.5)
    with pytest.raises(ValueError, match="gains nothing here: mIoU 60.00 without it.*59.00"):
        goals.fraction_for_accuracy([POINTS[0], Point(0.1, 0.1, 2.0, 59.0)], 0.9)
    with pytest.raises(ValueError, match="needs labels"):
        goals.fraction_for_accuracy([Point(None, 0.0, 1.0)], 0.9)
