# SPDX-License-Identifier: Apache-2.0
"""The temperature of a base, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_refine.calibration.temperature import PixelSample, fit_temperature


def test_temperature_by_hand():
    """Two classes, logits 4 apart, right in 3 of 4 pixels: sigmoid(4 / T) = 3/4, T = 4 / ln 3."""
    logits = torch.tensor([[2.0, -2.0]]).repeat(4, 1)
    fit = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert fit.temperature == pytest.approx(4 / math.log(3), rel=1e-6)
    assert fit.after == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    assert fit.before == pytest.approx((4 * math.log(1 + math.exp(-4)) + 4) / 4)


def test_temperature_is_found_again():
    """Labels drawn from the probabilities at temperature 3."""
    logits = torch.randn(20_000, 5) * 4
    labels = (logits / 3).softmax(1).multinomial(1)[:, 0]
    assert fit_temperature(logits, labels).temperature == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 0, 0, 0], "beyond 0.05: the base is always right"),
        ([1, 1, 1, 0], "beyond 20: the base is no help"),
        ([], "no pixel has a label"),
    ],
)
def test_temperatures_that_do_not_exist(labels, message):
    logits = torch.tensor([[2.0, -2.0]]).repeat(len(labels), 1)
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, torch.tensor(labels, dtype=torch.int64))


def test_sampled_pixels_have_the_label_at_their_centre():
    truth = torch.tensor([[0, 1, 2, 2, 0, 1], [9, 1, 2, 2, 0, 1], [1, 9, 0, 0, 2, 9]])  # 9: ignored
    logits = torch.arange(4.0).view(1, 1, 4) + torch.arange(3.0).view(3, 1, 1) * 10  # (3,1,4)
    sample = PixelSample(1, ignore=9)
    sample.add(logits, truth)
    found = {int(row[0]): int(label) for row, label in zip(sample._logits[0], sample._labels[0])}
    assert found == {0: 9, 1: 2, 2: 2, 3: 1} or found == {1: 2, 2: 2, 3: 1}
    few = PixelSample(2, ignore=9, pixels=4)  # two an image
    few.add(logits, truth)
    assert len(few._labels[0]) == 2
