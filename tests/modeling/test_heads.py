# SPDX-License-Identifier: Apache-2.0
"""FCNHead, LightHamHead and SegFormerHead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from sparse_refine.modeling import FCNHead, LightHamHead, SegFormerHead
from sparse_refine.modeling.light_ham_head import NMF2d

HEADS = (FCNHead, LightHamHead, SegFormerHead)
SHAPES = {"res3": ShapeSpec(channels=5, stride=8), "res2": ShapeSpec(channels=3, stride=4)}


def tiny(kind, **options):
    head = kind(SHAPES, num_classes=4, conv_dims=32, **options)
    torch.nn.init.normal_(head.predictor.weight)
    return head


def features(batch: int = 2):
    return {"res2": torch.randn(batch, 3, 8, 12), "res3": torch.randn(batch, 5, 4, 6)}


@pytest.mark.parametrize("kind", HEADS)
def test_logits_and_loss(kind):
    head = tiny(kind, loss_weight=2.0, ignore_value=9)
    assert head.in_features == ["res2", "res3"] and head.common_stride == 4
    logits, losses = head.eval()(features())
    assert logits.shape == (2, 4, 32, 48) and losses == {}
    labels = torch.randint(0, 4, (2, 32, 48))
    labels[:, :8] = 9
    nothing, losses = head.train()(features(), labels)
    assert nothing is None and list(losses) == ["loss_sem_seg"]
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_loss_is_weighted_cross_entropy_without_ignored_labels():
    head = tiny(FCNHead, loss_weight=2.0, ignore_value=9)
    given, labels = features(), torch.randint(0, 4, (2, 32, 48))
    labels[:, :8] = 9
    loss = head.train()(given, labels)[1]["loss_sem_seg"]
    for module in head.modules():  # the same statistics in eval mode
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    logits = head.eval()(given)[0]
    kept = labels != 9
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[kept], labels[kept])
    torch.testing.assert_close(loss, 2 * expected)


@pytest.mark.parametrize("kind", HEADS)
def test_a_crop_without_any_label_costs_nothing(kind):
    """Its mean would be NaN, at which Detectron2's trainer stops."""
    head = tiny(kind).train()
    _, losses = head(features(), torch.full((2, 32, 48), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"] == 0 and head.predictor.weight.grad.abs().sum() == 0


def test_fcn_is_a_convolution_over_resized_features_side_by_side():
    head = tiny(FCNHead, norm="").eval()
    given = features()
    resized = F.interpolate(given["res3"], size=(8, 12), mode="bilinear", align_corners=False)
    x = torch.cat([given["res2"], resized], dim=1)
    x = F.conv2d(x, head.convs[0].weight, head.convs[0].bias).relu()
    x = F.conv2d(x, head.predictor.weight, head.predictor.bias)
    x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(given)[0], x)


@pytest.mark.parametrize("options", [{"num_convs": 0}, {"kernel_size": 2}])
def test_impossible_convolutions(options):
    with pytest.raises(ValueError, match="NUM_CONVS is .* KERNEL_SIZE"):
        tiny(FCNHead, **options)


def test_no_features():
    with pytest.raises(ValueError, match="IN_FEATURES"):
        FCNHead({}, num_classes=4, conv_dims=32)


def test_light_ham_answers_the_same_in_each_run_and_batch():
    given = features(3)
    head = tiny(LightHamHead).eval()
    torch.manual_seed(5)
    first = head(given)[0]
    torch.manual_seed(6)
    assert torch.equal(head(given)[0], first)
    alone = head({name: x[1:2] for name, x in given.items()})[0]
    torch.testing.assert_close(alone, first[1:2])
    again = tiny(LightHamHead)
    again.load_state_dict(head.state_dict())  # the bases are no part of a checkpoint
    torch.testing.assert_close(again.eval()(given)[0], first)
    assert not [name for name in head.state_dict() if "bases" in name]


def test_light_ham_draws_bases_anew_in_training():
    ham, x = NMF2d(32, rank=4).train(), torch.rand(1, 32, 4, 5)
    assert not torch.equal(ham(x), ham(x))
    torch.manual_seed(1)
    first = ham(x)
    torch.manual_seed(1)
    assert torch.equal(ham(x), first)


def test_the_factorisation_finds_a_low_rank_map():
    truth = (torch.rand(1, 32, 3) @ torch.rand(1, 3, 40)).view(1, 32, 5, 8)
    approximate = NMF2d(32, rank=3, eval_steps=300).eval()
    error = (approximate(truth) - truth).norm() / truth.norm()
    assert error < 0.02
    rough = NMF2d(32, rank=3, eval_steps=1).eval()
    assert (rough(truth) - truth).norm() / truth.norm() > 2 * error
    assert torch.equal(approximate(torch.zeros(1, 32, 5, 8)), torch.zeros(1, 32, 5, 8))


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_autocast(kind):
    head, given = tiny(kind).eval(), features()
    exact = head(given)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head(given)[0]
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
