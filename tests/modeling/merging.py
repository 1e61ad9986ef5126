# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every family that merges tokens."""

from __future__ import annotations

import pytest

from sparse_refine.modeling import MixTransformer

transformers = pytest.importorskip("transformers")

K = 3
WIDTHS = {"depths": [1, 2, 2, 1], "hidden_sizes": [8, 16, 20, 32]}
HEADS = [1, 2, 2, 4]
SEGFORMER = {**WIDTHS, "num_attention_heads": HEADS, "decoder_hidden_size": 16, "num_labels": K}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 128,
    "patch_size": 16,
}


def segformer(**options):
    config = transformers.SegformerConfig(**{**SEGFORMER, **options})
    return transformers.SegformerForSemanticSegmentation(config)


def pvt(**options):
    return transformers.PvtModel(
        transformers.PvtConfig(image_size=128, num_attention_heads=HEADS, **WIDTHS, **options)
    )


def vit(**options):
    return transformers.ViTModel(transformers.ViTConfig(**VIT, **options))


def deit(**options):
    return transformers.DeiTModel(transformers.DeiTConfig(**VIT, **options))


def dpt(**options):
    config = transformers.DPTConfig(
        **VIT,
        num_labels=K,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        **options,
    )
    return transformers.DPTForSemanticSegmentation(config)


def mit(**options):
    return MixTransformer((8, 16, 20, 32), (1, 2, 2, 1), heads=HEADS)


FAMILIES = {  # make, blocks of each stage, whether it attends by scaled_dot_product_attention
    "segformer": (segformer, [1, 2, 2, 1], not transformers.__version__.startswith("4.")),
    "pvt": (pvt, [1, 2, 2, 1], False),
    "vit": (vit, [4], True),
    "deit": (deit, [4], True),
    "dpt": (dpt, [4], True),
    "mit": (mit, [1, 2, 2, 1], True),
}
