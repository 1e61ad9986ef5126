# SPDX-License-Identifier: Apache-2.0
"""Entropy and margin against numbers worked out by hand."""

import math

import pytest
import torch

from sparse_refine.selector import (
    entropy,
    margin,
)


def logits_of(*distribution):
    """(K,1,1) logits whose softmax is this distribution."""
    return torch.tensor(distribution).log()[:, None, None]


def test_entropy_by_hand():
    # -(0.7 ln 0.7 + 0.2 ln 0.2 + 0.1 ln 0.1) = 0.249672 + 0.321888 + 0.230259
    assert entropy(logits_of(0.7, 0.2, 0.1)).item() == pytest.approx(0.801819, abs=1e-6)
    # -(0.75 ln 0.75 + 0.25 ln 0.25) = 0.215762 + 0.346574
    assert entropy(logits_of(0.75, 0.25)).item() == pytest.approx(0.562335, abs=1e-6)
    assert entropy(torch.tensor([500.0, 0.0, -500.0])).item() == 0


@pytest.mark.parametrize("classes", [1, 2, 19, 150])
def test_entropy_is_at_most_the_logarithm_of_the_class_count(classes):
    assert entropy(torch.full((classes,), 3.7)).item() == pytest.approx(math.log(classes), abs=1e-5)
    assert entropy(torch.randn(classes, 50) * 3).max() <= math.log(classes) + 1e-5


def test_entropy_clamps_inside_the_logarithm():
    # p2 = 1 / (1 + e^20) = 2.0612e-9: p2 ln 1e-5 = -2.373e-8 and p1 ln p1 = -0.206e-8. Without the
    # clamp, p2 ln p2 = -4.122e-8 would make it 4.328e-8.
    two = torch.tensor([0.0, -20.0], dtype=torch.float64)
    assert entropy(two).item() == pytest.approx(2.5791e-8, rel=1e-4)
    # 99 classes of 8.3146e-7 each: 99 * 8.3146e-7 * 11.5129 = 9.4767e-4, and 8.231e-5 of the first
    hundred = torch.tensor([14.0] + [0.0] * 99, dtype=torch.float64)
    assert entropy(hundred).item() == pytest.approx(1.02999e-3, rel=1e-4)


def test_entropy_along_either_dimension():
    logits = torch.randn(3, 4, 5)
    rows = logits.flatten(1).t()
    assert torch.allclose(entropy(logits).flatten(), entropy(rows, dim=1))
    assert torch.allclose(margin(logits).flatten(), margin(rows, dim=1))


def test_margin_by_hand():
    assert margin(logits_of(0.7, 0.2, 0.1)).item() == pytest.approx(0.5)
    assert margin(logits_of(0.1, 0.45, 0.45)).item() == pytest.approx(0, abs=1e-6)
    assert margin(torch.tensor([500.0, 0.0, -500.0])).item() == 1
    assert margin(torch.randn(1, 2, 2)).tolist() == [[1, 1], [1, 1]]
