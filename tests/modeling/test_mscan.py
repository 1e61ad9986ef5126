# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_backbone

from sparse_refine.modeling import MSCAN, MixTransformer
from sparse_refine.modeling.stages import stage_drop_paths

KINDS = {"MSCAN": MSCAN, "MIX_TRANSFORMER": MixTransformer}
CHANNELS, DEPTHS = (8, 16, 20, 32), (1, 1, 2, 1)


def tiny(kind: str, **options):
    options = {"heads": (1, 2, 4, 8), **options} if kind == "MIX_TRANSFORMER" else options
    return KINDS[kind](CHANNELS, DEPTHS, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_shapes(kind, size):
    backbone = tiny(kind).eval()
    with torch.no_grad():
        outputs = backbone(torch.randn(2, 3, *size))
    assert list(outputs) == ["res2", "res3", "res4", "res5"]
    for i, (name, output) in enumerate(outputs.items()):
        stride = 4 * 2**i
        assert output.shape == (2, CHANNELS[i], size[0] // stride, size[1] // stride)
        assert backbone.output_shape()[name].channels == CHANNELS[i]
        assert backbone.output_shape()[name].stride == stride
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize("kind", KINDS)
def test_stages_past_the_last_feature_are_left_out(kind):
    backbone = tiny(kind, out_features=["res4", "res2"])
    assert list(backbone.stages) == ["res2", "res3", "res4"]
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["res2", "res4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [[], ["res2", "res6"]])
def test_unknown_features(kind, names):
    with pytest.raises(ValueError, match=rf"MODEL.{kind}.OUT_FEATURES is .*res2.*res5"):
        tiny(kind, out_features=names)


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_and_gradients(kind):
    backbone = tiny(kind, drop_path=0.9).train()
    image = torch.randn(4, 3, 32, 32)
    first, second = backbone(image)["res5"], backbone(image)["res5"]
    assert not torch.allclose(first, second)
    backbone = tiny(kind).train()
    sum(output.square().mean() for output in backbone(image).values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_drop_paths_grow_linearly_from_zero():
    assert stage_drop_paths(0.4, (1, 2, 2)) == [[0.0], [0.1, 0.2], pytest.approx([0.3, 0.4])]
    assert stage_drop_paths(0.4, (1,)) == [[0.0]]


@pytest.mark.slow
@pytest.mark.parametrize("kind, sizes", [("MSCAN", "tsbl"), ("MIX_TRANSFORMER", ["b0", "b5"])])
def test_sizes_by_config(make_cfg, kind, sizes):
    name = {"MSCAN": "build_mscan_backbone"}.get(kind, "build_mix_transformer_backbone")
    # millions of parameters, of the papers' tables: backbones without a classifier
    expected = {"t": 3.9, "s": 13.6, "b": 26.5, "l": 44.9, "b0": 3.3, "b5": 81.4}
    for size in sizes:
        cfg = make_cfg("MODEL.BACKBONE.NAME", name, f"MODEL.{kind}.SIZE", size)
        with torch.device("meta"):
            backbone = build_backbone(cfg)
        count = sum(p.numel() for p in backbone.parameters()) / 1e6
        assert count == pytest.approx(expected[size], rel=0.03), size
    cfg = make_cfg("MODEL.BACKBONE.NAME", name, f"MODEL.{kind}.SIZE", "xxl")
    with pytest.raises(ValueError, match=f"MODEL.{kind}.SIZE is 'xxl'"):
        build_backbone(cfg)


def test_stages_that_do_not_fit_together():
    with pytest.raises(ValueError, match="4 channels, 2 depths"):
        MSCAN(CHANNELS, (1, 1))
    with pytest.raises(ValueError, match="do not divide"):
        MixTransformer(CHANNELS, DEPTHS, heads=(1, 3, 4, 8))
