# SPDX-License-Identifier: Apache-2.0
"""Token merging in models: every family, nothing at rate 0, what presets change and save."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from sparse_refine import HuggingFaceSegmentor
from sparse_refine.evaluation.counting import multiply_adds
from sparse_refine.modeling import MixTransformer
from sparse_refine.modeling.token_merging import (
    PRESETS,
    Merge,
    StageMerging,
    apply_token_merging,
    remove_token_merging,
)
from sparse_refine.modeling.token_merging.applying import attention_stages
from sparse_refine.modeling.token_merging.matching import find_groups

from ..marks import slow_except
from .merging import FAMILIES, K, mit, segformer, vit

SIZE = (128, 128)


@pytest.fixture(params=FAMILIES)
def family(request):
    """(model of random weights that matter, blocks of each stage, attends by sdpa)."""
    make, blocks, sdpa = FAMILIES[request.param]
    model = make().eval()
    for parameter in model.parameters():  # transformers' are so small that attention says nothing
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model, blocks, sdpa


def features(model, images):
    output = model(images) if isinstance(model, MixTransformer) else model(pixel_values=images)
    if isinstance(model, MixTransformer):
        return torch.cat([x.flatten() for x in output.values()])
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.fixture
def images():
    return torch.randn(2, 3, *SIZE)


@torch.no_grad()
def test_rate_0_is_the_model_itself(family, images):
    model, blocks, sdpa = family
    before, names = features(model, images), list(model.state_dict())
    nothing = [Merge((2, 2), 0.0), Merge((1, 1))]
    for how in (StageMerging(), *(StageMerging(merge, merge) for merge in nothing)):
        apply_token_merging(model, [how] * len(blocks))
        after = features(model, images)
        if sdpa:
            assert torch.equal(after, before)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == names


@torch.no_grad()
def test_presets_change_the_output_and_can_be_taken_back(family, images):
    model, blocks, _ = family
    assert [len(stage) for stage in attention_stages(model).values()] == blocks
    before, seen = features(model, images), []
    for preset in PRESETS:
        assert apply_token_merging(model, preset) is model
        seen.append(features(model, images))
        others = [before] if preset.endswith("_near") else [before, *seen[:-1]]  # maps are small
        assert not any(torch.allclose(seen[-1], other, atol=1e-4) for other in others)
    copied = copy.deepcopy(model)
    remove_token_merging(model)
    remove_token_merging(model)
    assert torch.equal(features(model, images), before)
    assert torch.equal(features(copied, images), seen[-1])  # has attention of its own
    remove_token_merging(copied)
    assert torch.equal(features(copied, images), before)


def test_models_are_pickled_as_they_are(family):
    model, _, _ = family
    fresh = pickle.loads(pickle.dumps(apply_token_merging(model, "fast")))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    inside = next(iter(attention_stages(fresh).values()))[0]
    assert inside.forward.args[0] is inside
    remove_token_merging(fresh)
    assert not any("forward" in vars(module) for module in fresh.modules())


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(97, 131), (64, 64), (32, 200)])
def test_odd_and_small_sizes(preset, size):
    model = apply_token_merging(segformer().eval(), preset)
    images = torch.randn(2, 3, *size)
    both = features(model, images)
    assert both.isfinite().all()
    for i in range(2):  # images do not meet
        torch.testing.assert_close(features(model, images[i : i + 1]), both[i : i + 1])


def test_attention_is_the_formula():
    """One attention of one head by hand: merge, attend, un-merge."""
    how = StageMerging(query=Merge((4, 4), 0.8), key_value=Merge((2, 2), 0.6))
    model = apply_token_merging(mit().eval(), [how] * 4)
    module = model.stages["res2"].blocks[0].attention  # reduces by 8
    tokens, size = torch.randn(2, 32 * 32, 8), (32, 32)
    source = module.reduce(tokens.transpose(1, 2).unflatten(2, size))
    source = module.norm(source.flatten(2).transpose(1, 2))
    source = find_groups(source, (4, 4), how.key_value).merge(source)
    groups = find_groups(tokens, size, how.query)
    query, (key, value) = module.query(groups.merge(tokens)), module.key_value(source).chunk(2, 2)
    assert query.shape[1] == 205 and key.shape[1] == 7
    weights = F.softmax(query @ key.transpose(1, 2) / 8**0.5, dim=2)
    expected = groups.unmerge(module.out(weights @ value))
    torch.testing.assert_close(module(tokens, size), expected)


@pytest.mark.parametrize("preset", slow_except(PRESETS, "hq"))
def test_presets_save_multiply_adds(preset):
    size = (96, 96)
    model = segformer(depths=[1, 1, 1, 1], sr_ratios=[1, 1, 2, 1])  # attention dominates
    model = HuggingFaceSegmentor(model).eval()
    plain = multiply_adds(model, size)
    assert multiply_adds(apply_token_merging(model, preset), size) < 0.7 * plain


def test_training(images):
    """Gradients reach every parameter, and dropout is that of the model."""
    options = {"attention_probs_dropout_prob": 0.2, "hidden_dropout_prob": 0.2}
    model = apply_token_merging(segformer(**options).train(), "fast")
    labels = torch.randint(K, (2, *SIZE))
    model(pixel_values=images, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    query = [p for n, p in model.named_parameters() if "attention" in n and "weight" in n]
    assert all(p.grad.abs().sum() > 0 for p in query)
    assert not torch.equal(*(features(model, images) for _ in range(2)))


def test_training_lowers_the_loss(images):
    model = apply_token_merging(segformer().train(), "hq")
    labels = (images[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_masks_are_refused(images):
    model = apply_token_merging(vit().eval(), "fast")
    block = next(iter(attention_stages(model).values()))[0]
    with pytest.raises(ValueError, match="masked"):
        block(torch.randn(1, 65, 16), torch.ones(1, 1, 65, 65))


def test_parts_of_a_plain_model_are_refused(images):
    """Its blocks alone do not know the size of their map: they must not merge nothing unseen."""
    layers = vit().eval()
    part = next(m for n, m in layers.named_modules() if n in ("layers", "encoder"))
    apply_token_merging(part, "fast")
    with pytest.raises(ValueError, match=r"65 tokens of a map of \(0, 0\)"):
        features(layers, images)


def test_unknown_models_and_settings():
    with pytest.raises(ValueError, match="no attention whose tokens can be merged"):
        apply_token_merging(torch.nn.Conv2d(3, 3, 1), "hq")
    with pytest.raises(ValueError, match="'hp': one of hq, fast, 2x2"):
        apply_token_merging(segformer(), "hp")
    with pytest.raises(ValueError, match="3 entries and the model 4 stages"):
        apply_token_merging(segformer(), [StageMerging()] * 3)
    deep = segformer(
        num_encoder_blocks=5,
        depths=[1] * 5,
        hidden_sizes=[8] * 5,
        num_attention_heads=[1] * 5,
        sr_ratios=[1] * 5,
        mlp_ratios=[2] * 5,
        patch_sizes=[3] * 5,
        strides=[2] * 5,
    )
    with pytest.raises(ValueError, match="of 4 stages and the model has 5"):
        apply_token_merging(deep, "hq")
