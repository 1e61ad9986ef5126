# SPDX-License-Identifier: Apache-2.0
"""The folded head of SegFormer: in evaluation transformers' own logits, in training as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from sparse_refine import HuggingFaceSegmentor
from sparse_refine.evaluation.counting import multiply_adds
from sparse_refine.modeling import folded_head
from sparse_refine.modeling.folded_head import fold_head, unfold_head
from sparse_refine.training.trainer import Trainer

transformers = pytest.importorskip("transformers")

SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 20, 32],
    "num_attention_heads": [1, 2, 2, 4],
    "decoder_hidden_size": 48,
    "num_labels": 3,
}


@pytest.fixture
def model():
    """SegFormer whose every number matters: weights of size 1, a batch norm that has seen data."""
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**SEGFORMER))
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5
        torch.nn.init.normal_(parameter, std=spread)
    norm = model.decode_head.batch_norm
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


def logits(model, images):
    return model(pixel_values=images).logits


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (33, 40)])
def test_same_logits(model, size, monkeypatch):
    monkeypatch.setattr(folded_head, "_CHANNELS", 20)  # does not divide 48
    images = torch.randn(2, 3, *size)
    before, names = logits(model, images), list(model.state_dict())
    assert fold_head(model) is model
    after = logits(model, images)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert not torch.equal(after, before)  # it does work otherwise
    assert list(model.state_dict()) == names
    model.decode_head.linear_fuse.weight.mul_(2)
    changed = logits(model, images)
    assert not torch.allclose(changed, after, atol=1e-2)
    assert torch.equal(logits(copy.deepcopy(model), images), changed)
    model.decode_head.linear_fuse.weight.div_(2)
    assert torch.equal(logits(unfold_head(unfold_head(model)), images), before)


@torch.no_grad()
def test_bfloat16(model):
    images = torch.randn(1, 3, 96, 96)
    exact = logits(model, images)

    def error():
        with torch.autocast("cpu", torch.bfloat16):
            return (logits(model, images) - exact).abs().mean()

    plain = error()
    fold_head(model)
    assert error() < 1.5 * plain
    half = copy.deepcopy(model).bfloat16()
    assert logits(half, images.bfloat16()).dtype == torch.bfloat16


def test_training_is_as_before(model):
    folded, images = fold_head(copy.deepcopy(model)).train(), torch.randn(2, 3, 64, 64)
    for own in (model.train(), folded):
        torch.manual_seed(0)
        logits(own, images).square().mean().backward()
    for a, b in zip(model.parameters(), folded.parameters()):
        assert torch.equal(a.grad, b.grad)


def test_gradients_in_evaluation(model):
    folded, images = fold_head(copy.deepcopy(model)), torch.randn(2, 3, 64, 64)
    for own in (model, folded):
        logits(own, images).square().mean().backward()
    for a, b in zip(model.parameters(), folded.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-3)


def test_saves_multiply_adds(model):
    base = HuggingFaceSegmentor(model).eval()
    plain = multiply_adds(base, (64, 64))
    gone = 16 * 16 * 4 * 48 * 48  # the layer that mixes 4 x 48 channels at stride 4
    assert plain - multiply_adds(fold_head(base), (64, 64)) > 0.9 * gone


@pytest.mark.parametrize("key", ["MODEL", "MODEL.SPARSE_REFINE.BASE"])
def test_from_a_config(make_cfg, key):
    options = ["MODEL.HUGGING_FACE.CONFIG", {"model_type": "segformer", **SEGFORMER}]
    options += [f"{key}.META_ARCHITECTURE", "HuggingFaceSegmentor"]
    for fold in (True, False):
        model = Trainer.build_model(make_cfg(*options, "MODEL.HUGGING_FACE.FOLD_HEAD", fold))
        heads = [m for m in model.modules() if type(m).__name__ == "SegformerDecodeHead"]
        assert ["forward" in vars(head) for head in heads] == [fold]


def test_other_models():
    with pytest.raises(ValueError, match="FOLD_HEAD: Conv2d has no head"):
        fold_head(torch.nn.Conv2d(3, 3, 1))
