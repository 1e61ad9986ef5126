# SPDX-License-Identifier: Apache-2.0
"""Histograms of the uncertainty, and thresholds from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_refine.calibration.histogram import UncertaintyHistogram
from sparse_refine.calibration.kinds import KINDS
from sparse_refine.sites import View


def test_histogram_by_hand():
    """Four low pixels over 3 x 3: they stand for 4, 2, 2 and 1 (second row and column twice)."""
    histogram = UncertaintyHistogram(math.log(3))
    wrong = np.zeros((3, 3), dtype=bool)
    wrong[1, 1:] = wrong[0, 0] = True
    histogram.add(np.array([[0.9, 0.2], [0.0, 0.5]]), (3, 3), wrong)
    # at 0.3: those with 0.5 and 0.9, 4 + 1 of 9 pixels, with all three errors
    for fraction, low, high, share, found in (
        (0.6, 0.2, 0.5, 5 / 9, 1.0),
        (0.2, 0.5, 0.9, 1 / 9, 1 / 3),
        (0.9, 0.0, 0.2, 7 / 9, 1.0),
        (0.05, 0.9, 1.1, 0.0, 0.0),
    ):
        threshold = histogram.threshold(fraction)
        assert low <= threshold < high
        index = int((histogram.edges[::-1] == threshold).argmax())
        assert histogram.shares()[index] == pytest.approx(share)
        assert histogram.errors_found()[index] == pytest.approx(found)
    assert histogram.shares()[-1] == histogram.errors_found()[-1] == 1


def test_histogram_without_labels():
    histogram = UncertaintyHistogram(1.0)
    histogram.add(np.array([[0.5]]), (2, 2), None)
    assert histogram.errors_found() is None and histogram.shares()[-1] == 1


@pytest.mark.parametrize("name", ["EntropySelector", "MarginSelector"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.8])
def test_thresholds_select_the_share(name, fraction):
    """Over images of several sizes, by the selectors themselves."""
    kind, histogram, images = KINDS[name], UncertaintyHistogram(KINDS[name].highest(5)), []
    for height, width in ((40, 60), (31, 47), (64, 20)):
        logits = torch.randn(5, height, width) * 3
        size = (2 * height, 2 * width + 1)
        histogram.add(kind.score(logits).numpy(), size, None)
        images.append((logits, View(0, 0, *size, size)))
    selector = kind.build(kind.to_setting(histogram, fraction))
    selected = sum(len(selector(logits, view)) for logits, view in images)
    pixels = sum(view.height * view.width for _, view in images)
    assert selected / pixels == pytest.approx(fraction, rel=0.02)
