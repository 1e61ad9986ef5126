# SPDX-License-Identifier: Apache-2.0
"""Losses against numbers worked out by hand, and their mean over processes."""

import math

import pytest
import torch
from detectron2.utils import comm

from sparse_refine.losses import cross_entropy, global_mean, soft_dice

LN3 = math.log(3)


def test_cross_entropy_by_hand():
    # (ln 3, 0) is 3/4 and 1/4: -ln 3/4 = 0.287682, -ln 1/4 = 1.386294
    logits = torch.tensor([[LN3, 0.0], [LN3, 0.0], [0.0, 0.0]])
    assert cross_entropy(logits, torch.tensor([0, 1, 0])).item() == pytest.approx(
        (0.287682 + 1.386294 + 0.693147) / 3, abs=1e-6
    )


def test_cross_entropy_is_computed_in_single_precision():
    logits = torch.tensor([[LN3, 0.0]])
    loss = cross_entropy(logits.bfloat16(), torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1.386294, abs=3e-3)


def test_dice_by_hand():
    # Probabilities of class 0: 3/4, 1/2; labels 0, 1; epsilon 1.
    logits = torch.tensor([[LN3, 0.0], [0.0, 0.0]])
    # class 0: (2 * 0.75 + 1) / (1.25 + 1 + 1) = 2.5 / 3.25
    # class 1: (2 * 0.5 + 1) / (0.75 + 1 + 1) = 2 / 2.75
    expected = 1 - (2.5 / 3.25 + 2 / 2.75) / 2
    assert soft_dice(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, abs=1e-6)


def test_dice_counts_the_classes_that_are_there():
    # Three classes, (4, 3, 1) / 8; the only label is 0: (2 * 0.5 + 1) / (0.5 + 1 + 1) = 0.8. The
    # absent ones would have 1 / 1.375 and 1 / 1.125.
    logits = torch.tensor([[4.0, 3.0, 1.0]]).log()
    assert soft_dice(logits, torch.tensor([0])).item() == pytest.approx(0.2, abs=1e-6)


def test_dice_of_a_perfect_prediction_is_zero():
    labels = torch.tensor([0, 1, 2, 2])
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3)
    assert soft_dice(logits, labels).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, soft_dice])
def test_nothing_to_learn_from_is_zero_with_a_gradient(loss):
    logits = torch.zeros(0, 3, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.int64))
    assert value.item() == 0
    value.backward()
    assert logits.grad.shape == (0, 3)


def test_mean_over_processes_by_hand(monkeypatch):
    """Two processes with 1, 2, 3 and with 6: DistributedDataParallel averages what they return."""
    values = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0]), torch.tensor([])]

    def of_process(mine, others):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda count: count.add_(float(others))
        )
        return global_mean(mine).item()

    # four values over two processes, two each: 6 / 2 and 6 / 2; their mean is (1 + 2 + 3 + 6) / 4
    assert of_process(values[0], 1) == 3
    assert of_process(values[1], 3) == 3
    # three values beside none: 6 / 1.5 = 4 and 0; their mean is (1 + 2 + 3) / 3
    assert of_process(values[0], 0) == 4
    assert of_process(values[2], 3) == 0
    # none anywhere
    assert of_process(values[2], 0) == 0
