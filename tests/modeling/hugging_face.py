# SPDX-License-Identifier: Apache-2.0
"""Tiny models of transformers, written to folders as the hub has them."""

import os
from pathlib import Path

import pytest
import torch

from sparse_refine.base import build_base

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

K = 3
NODE = "MODEL.HUGGING_FACE."
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def swin():
    return transformers.SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=STAGES,
    )


def vit(**options):
    return {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 64,
        "patch_size": 16,
        "num_labels": K,
        **options,
    }


def queries(**options):
    return {
        "num_queries": 21,  # more than are summed at once
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
        "num_labels": K,
        **options,
    }


def segformer_config(**options):
    return transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[2, 2, 1, 1],
        decoder_hidden_size=16,
        **{"num_labels": K, **options},
    )


def mask2former_config():
    return transformers.Mask2FormerConfig(
        backbone_config=swin(), **queries(hidden_dim=32, feature_size=32, mask_feature_size=32)
    )


def maskformer_config():
    detr = transformers.DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=7,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(),
    )
    return transformers.MaskFormerConfig(
        backbone_config=swin(),
        decoder_config=detr,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=K,
    )


def oneformer_config():
    return transformers.OneFormerConfig(
        backbone_config=swin(),
        **queries(hidden_dim=32, conv_dim=32, mask_dim=32, text_encoder_width=16),
    )


def upernet_config():
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=STAGES
    )
    return transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        pool_scales=[1, 2],
        num_labels=K,
    )


SEMANTIC = {
    "beit": lambda: transformers.BeitConfig(
        **vit(out_indices=[0, 1, 2, 3], use_relative_position_bias=True, auxiliary_channels=8)
    ),
    "dpt": lambda: transformers.DPTConfig(
        **vit(
            backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8
        )
    ),
    "mobilenet_v2": lambda: transformers.MobileNetV2Config(num_labels=K, depth_multiplier=0.35),
    "mobilevit": lambda: transformers.MobileViTConfig(num_labels=K, hidden_sizes=[24, 32, 40]),
    "segformer": segformer_config,
    "upernet": upernet_config,
}
UNIVERSAL = {
    "eomt": lambda: transformers.EomtConfig(**vit(num_blocks=2, num_queries=7)),
    "mask2former": mask2former_config,
    "maskformer": maskformer_config,
    "oneformer": oneformer_config,
}
PROCESSORS = {
    "beit": "BeitImageProcessor",
    "dpt": "DPTImageProcessor",
    "eomt": "EomtImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
    "maskformer": "MaskFormerImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
    "oneformer": "OneFormerImageProcessor",
    "segformer": "SegformerImageProcessor",
    "upernet": "SegformerImageProcessor",
}


def write_tokenizer(folder):
    """A vocabulary that spells letters: enough for CLIP's tokenizer."""
    letters = "acdehikmnst"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    folder.mkdir(exist_ok=True)
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[]
    )
    tokenizer.save_pretrained(folder)


def saved(folder, config, processor=True, **processor_options):
    """As the hub has it: config, weights in safetensors, image processor."""
    kind = config.model_type
    auto = "SemanticSegmentation" if kind in SEMANTIC else "UniversalSegmentation"
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "bias" not in name and "norm" not in name:  # sure of some pixels
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    if processor:
        getattr(transformers, PROCESSORS[kind])(**processor_options).save_pretrained(folder)
    if kind == "oneformer":
        write_tokenizer(Path(folder))
    return model


def image_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def run(model, image, **item):
    with torch.inference_mode():
        (output,) = model.eval()([{"image": image, **item}])
    return output["sem_seg"]


def hugging_face(make_cfg, *options):
    return build_base(
        make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "HuggingFaceSegmentor", *options)
    )


def encoder_only(folder):
    """What nvidia/mit-b5 is: a classifier's encoder, no segmentation head."""
    transformers.SegformerForImageClassification(segformer_config()).save_pretrained(folder)
    transformers.SegformerImageProcessor().save_pretrained(folder)
