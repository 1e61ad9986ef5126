# SPDX-License-Identifier: Apache-2.0
"""Numbers at the edges of what the parts of SparseRefine compute with: zeros, halves, bfloat16."""

import math

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from sparse_refine.coarse import CoarsePass, to_logits
from sparse_refine.extractors import Selection, SparseUNetExtractor
from sparse_refine.losses import LossWeights, global_mean, refinement_losses, soft_dice
from sparse_refine.resampling import low_size
from sparse_refine.selector import BudgetSelector
from sparse_refine.sites import Sites, View, highest


@pytest.mark.parametrize(
    "size, scale, expected",
    [
        ((11, 13), 0.25, (3, 3)),
        ((7, 9), 0.4, (3, 4)),
        ((2, 2), 0.24, (1, 1)),
        ((3, 1), 0.9, (3, 1)),
    ],
)
def test_low_sizes_are_rounded_on_either_side(size, scale, expected):
    assert low_size(size, scale) == expected


@pytest.mark.parametrize("score_type", ["scores", "probabilities"])
def test_logits_of_scores_are_logarithms_of_shares(score_type):
    """What the gate weighs: their exponentials sum to 1, whatever the scores summed to."""
    scores = torch.tensor([2.0, -1.0, 1.0])  # shares 2/3, 0 and 1/3
    expected = [math.log(2 / 3), math.log(1e-12), math.log(1 / 3)]
    assert to_logits(scores, score_type).tolist() == pytest.approx(expected, rel=1e-6)


def test_logits_of_a_base_in_half_precision_are_single():
    class Half(nn.Module):
        def forward(self, inputs):
            return [{"sem_seg": torch.randn(3, 2, 2, dtype=torch.bfloat16)} for _ in inputs]

    (out,) = CoarsePass(base=Half(), num_classes=3, scale=0.5)([{"image": torch.zeros(3, 4, 4)}])
    assert out.logits.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_base_of_another_precision_sees_images_of_its_own(dtype):
    """Any module, also one that does not convert its input; crops' contexts come as uint8."""

    class Typed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=dtype))

        def forward(self, inputs):
            assert all(item["image"].dtype == dtype for item in inputs)
            return [{"sem_seg": item["image"] * self.scale} for item in inputs]

    inputs = [{"image": torch.zeros(3, 4, 4)}]
    inputs.append({**inputs[0], "context": torch.zeros(3, 2, 2, dtype=torch.uint8)})
    outputs = CoarsePass(base=Typed(), num_classes=3, scale=0.5)(inputs)
    assert [out.logits.dtype for out in outputs] == [torch.float32] * 2


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 17)])
def test_a_negative_zero_is_a_zero(size):
    """The entropy of a pixel without any doubt is -(1 ln 1) = -0.0."""
    scores = torch.full(size, -0.0)
    scores[0, 0] = 0.0
    weights = torch.ones(size, dtype=torch.int64)
    mask, following, rest = highest(scores, weights, size[0] * size[1] - 1)
    assert mask.flatten().tolist() == [True] * (mask.numel() - 1) + [False]
    assert (following, rest) == (mask.numel() - 1, 0)
    sure = torch.tensor([500.0, 0.0]).view(2, 1, 1).expand(2, *size)
    view = View(0, 0, *size, size)
    assert len(BudgetSelector(fraction=1.0)(sure, view)) == size[0] * size[1]
    assert BudgetSelector(count=1)(sure, view).tolist() == [[0, 0]]


def test_a_mean_over_fewer_pixels_than_processes(monkeypatch):
    """One value, 6, among four processes: theirs are 24, 0, 0, 0, and the mean of those is 6."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.fill_(1.0))
    assert global_mean(torch.tensor([6.0])).item() == 24
    assert global_mean(torch.tensor([])).item() == 0


def test_dice_is_computed_in_single_precision():
    logits, labels = torch.randn(400, 3), torch.arange(400) % 3
    loss = soft_dice(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(soft_dice(logits.bfloat16().float(), labels).item(), abs=0)


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_both_predictions_get_a_gradient_whatever_the_weights(weights, count):
    """An ensembler may leave the refined logits out, a weight of 0 the fused ones; processes that
    train together wait for the gradient of each parameter."""
    refined, fused = (torch.randn(count, 3, requires_grad=True) for _ in range(2))
    losses = refinement_losses(refined, fused, torch.zeros(count).long(), LossWeights(*weights))
    sum(losses.values()).backward()
    assert refined.grad is not None and fused.grad is not None
    assert bool(refined.grad.any()) == bool(count and weights[0])
    assert bool(fused.grad.any()) == bool(count and (weights[1] or weights[2]))


def test_the_unet_sees_normalised_pixels():
    extractor = SparseUNetExtractor(
        num_classes=2,
        pixel_mean=(10.0, 20.0, 30.0),
        pixel_std=(1.0, 2.0, 4.0),
        channels=(4,),
        backend="torch",
    )
    seen = []
    extractor.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.tensor([12, 26, 22], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 2)
    sites, view = Sites.of_masks([torch.eye(2).bool()]), View(0, 0, 2, 2, (2, 2))
    extractor(Selection(sites, [image], [image], torch.zeros(2, 2), [view]))
    assert seen[0].tolist() == [[2.0, 3.0, -2.0]] * 2
