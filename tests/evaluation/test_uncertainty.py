# SPDX-License-Identifier: Apache-2.0
"""Entropy against errors, and what a budget of highest entropy could reach, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_refine.evaluation.metrics import confusion_matrix
from sparse_refine.evaluation.uncertainty import (
    EntropyErrors,
    SelectionLimits,
    errors_found,
    expand,
    oracle,
    selection_levels,
)
from sparse_refine.selector import BudgetSelector, entropy
from sparse_refine.sites import View

CLASSES = 3
FRACTIONS = (0.1, 0.25, 1.0)


def case(seed: int, size=(24, 32), low=(12, 16)):
    """(logits, entropy, coarse labels, truth with ignored pixels)."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(CLASSES, *low)
    random = np.random.default_rng(seed)
    truth = random.integers(0, CLASSES + 1, size).astype(np.uint8)
    coarse = expand(logits.argmax(0).numpy().astype(np.uint8), size)
    return logits, entropy(logits).numpy(), coarse, truth


@pytest.mark.parametrize("size, low", [((24, 32), (12, 16)), ((25, 31), (6, 8)), ((7, 5), (7, 5))])
def test_levels_are_what_the_selector_selects(size, low):
    logits, uncertain, _, _ = case(0, size, low)
    levels = expand(selection_levels(uncertain, size, FRACTIONS), size)
    for index, fraction in enumerate(FRACTIONS):
        sites = BudgetSelector(fraction=fraction)(logits, View(0, 0, *size, size))
        selected = np.zeros(size, bool)
        selected[tuple(sites.T.numpy())] = True
        whole = levels <= index
        assert not (whole & ~selected).any()
        # the selector takes its last low-resolution pixel in part
        block = math.ceil(size[0] / low[0]) * math.ceil(size[1] / low[1])
        assert (selected & ~whole).sum() < block


def test_errors_by_entropy():
    errors = EntropyErrors(CLASSES, bins=4)
    expected = np.zeros((4, 4), int)  # pixels, selected, coarse, fused
    for seed in range(2):
        _, uncertain, coarse, truth = case(seed)
        random = np.random.default_rng(seed + 9)
        fused, selected = random.integers(0, CLASSES, truth.shape), random.random(truth.shape) < 0.5
        valid = truth < CLASSES
        errors.add(uncertain, selected, coarse != truth, fused != truth, valid)
        full = expand(uncertain, truth.shape)
        for index, value in np.ndenumerate(full):
            if valid[index]:
                bin = min(int(value / math.log(CLASSES) * 4), 3)
                wrong = coarse[index] != truth[index], fused[index] != truth[index]
                expected[:, bin] += [1, selected[index], *wrong]
    found = errors.pixels, errors.selected, errors.coarse_errors, errors.fused_errors
    np.testing.assert_array_equal(np.stack(found), expected)
    assert errors.edges[-1] == pytest.approx(math.log(CLASSES))


def test_largest_entropy_is_in_the_last_bin():
    errors = EntropyErrors(CLASSES, bins=4)
    off = np.zeros((1, 1), bool)
    errors.add(np.full((1, 1), math.log(CLASSES) + 1e-6), off, off, off, ~off)
    assert errors.pixels.tolist() == [0, 0, 0, 1]


def test_limits():
    limits = SelectionLimits(CLASSES, FRACTIONS)
    size = (3, CLASSES, CLASSES)
    selected, corrected = np.zeros(size, np.int64), np.zeros(size, np.int64)
    everywhere = np.zeros(size[1:], np.int64)
    for seed in range(2):
        _, uncertain, coarse, truth = case(seed)
        limits.add(uncertain, coarse, truth)
        levels = expand(selection_levels(uncertain, truth.shape, FRACTIONS), truth.shape)
        everywhere += confusion_matrix(coarse, truth, CLASSES, CLASSES)
        for index in range(3):
            inside = levels <= index
            part = confusion_matrix(coarse[inside], truth[inside], CLASSES, CLASSES)
            selected[index] += part
            with_truth = np.where(inside & (truth < CLASSES), truth, coarse)
            corrected[index] += confusion_matrix(with_truth, truth, CLASSES, CLASSES)
    np.testing.assert_array_equal(limits.selected, selected)
    np.testing.assert_array_equal(limits.oracle(), corrected)
    shares = limits.errors_found()
    wrong = everywhere.sum() - everywhere.trace()
    assert shares[0] == (selected[0].sum() - selected[0].trace()) / wrong
    assert shares[-1] == 1 and 0 < shares[0] < shares[1] < 1
    assert limits.oracle()[-1].trace() == everywhere.sum()


def test_no_errors():
    right = np.diag([3, 4])
    assert math.isnan(errors_found(right, right))
    np.testing.assert_array_equal(oracle(np.zeros((2, 2), int), right), right)
