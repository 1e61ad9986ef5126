# SPDX-License-Identifier: Apache-2.0
"""MMSegmentation's checkpoints of HRNet, SegFormer and SegNeXt.

Source names are those of MMSegmentation 0.x and 1.x; targets are those of Detectron2's
`SemanticSegmentor` on the backbones and heads of `sparse_refine.modeling`.
"""

from __future__ import annotations

import torch

from .rules import Drop, Rule

_BATCH_NORM = "weight|bias|running_mean|running_var|num_batches_tracked"
_PAIR = "weight|bias"

# what any of its checkpoints may hold besides the model that predicts
NOT_NEEDED = (
    Drop(r"auxiliary_head\..+", "auxiliary heads, which only training uses"),
    Drop(r"data_preprocessor\..+", "mean and std: see MODEL.PIXEL_MEAN"),
)
_CLASSIFIER = Rule(rf"decode_head\.conv_seg\.({_PAIR})", r"sem_seg_head.predictor.\1")


def _conv_module(source: str, target: str, norm: str = "bn") -> tuple[Rule, ...]:
    """mmcv's ConvModule (convolution, norm) -> Detectron2's Conv2d."""
    return (
        Rule(rf"{source}\.conv\.({_PAIR})", rf"{target}.\g<1>"),
        Rule(rf"{source}\.{norm}\.({_BATCH_NORM})", rf"{target}.norm.\g<1>"),
    )


# `fcn_hr48` and the like: MMSegmentation's HRNet has the names of timm's
HRNET = (
    *NOT_NEEDED,
    Rule(
        r"backbone\.((?:conv[12]|bn[12]|layer1|transition[1-3]|stage[2-4])\..+)",
        r"backbone.model.\1",
    ),
    Rule(r"decode_head\.convs\.(\d+)\.conv\.(weight)", r"sem_seg_head.convs.\1.\2"),
    Rule(rf"decode_head\.convs\.(\d+)\.bn\.({_BATCH_NORM})", r"sem_seg_head.convs.\1.norm.\2"),
    _CLASSIFIER,
)


def _mscan() -> tuple[Rule, ...]:
    rules = []
    for i in range(1, 5):
        target = f"backbone.stages.res{i + 1}"
        block, to = rf"backbone\.block{i}\.(\d+)", rf"{target}.blocks.\1"
        attention = rf"{block}\.attn\.spatial_gating_unit"
        strips = rf"{to}.attention.strip_attention"
        embed = rf"backbone\.patch_embed{i}\."
        if i == 1:  # convolution, norm, GELU, convolution, norm
            rules.append(Rule(rf"{embed}proj\.([0134])\.({_BATCH_NORM})", rf"{target}.embed.\1.\2"))
        else:
            rules.append(Rule(rf"{embed}proj\.({_PAIR})", rf"{target}.embed.0.\1"))
            rules.append(Rule(rf"{embed}norm\.({_BATCH_NORM})", rf"{target}.embed.1.\1"))
        rules += [
            Rule(rf"backbone\.norm{i}\.({_PAIR})", rf"{target}.norm.\1"),
            Rule(rf"{block}\.norm([12])\.({_BATCH_NORM})", rf"{to}.norm\2.\3"),
            Rule(rf"{block}\.layer_scale_([12])", rf"{to}.scale\2", _per_channel),
            Rule(rf"{block}\.attn\.proj_1\.({_PAIR})", rf"{to}.attention.before.\2"),
            Rule(rf"{block}\.attn\.proj_2\.({_PAIR})", rf"{to}.attention.after.\2"),
            Rule(rf"{attention}\.conv0\.({_PAIR})", rf"{strips}.local.\2"),
            Rule(rf"{attention}\.conv3\.({_PAIR})", rf"{strips}.mix.\2"),
            Rule(rf"{attention}\.conv([0-2])_1\.({_PAIR})", rf"{strips}.strips.\2.0.\3"),
            Rule(rf"{attention}\.conv([0-2])_2\.({_PAIR})", rf"{strips}.strips.\2.1.\3"),
            Rule(rf"{block}\.mlp\.fc1\.({_PAIR})", rf"{to}.mlp.0.\2"),
            # the official code wraps the depthwise convolution once more
            Rule(rf"{block}\.mlp\.dwconv\.(?:dwconv\.)?({_PAIR})", rf"{to}.mlp.1.\2"),
            Rule(rf"{block}\.mlp\.fc2\.({_PAIR})", rf"{to}.mlp.3.\2"),
        ]
    return tuple(rules)


def _per_channel(scale: torch.Tensor) -> tuple[torch.Tensor]:
    """(C,) -> (C,1,1)."""
    return (scale.view(-1, 1, 1),)


SEGNEXT = (
    *NOT_NEEDED,
    *_mscan(),
    *_conv_module(r"decode_head\.squeeze", "sem_seg_head.squeeze", norm="gn"),
    *_conv_module(r"decode_head\.hamburger\.ham_in", "sem_seg_head.ham_in", norm="gn"),
    *_conv_module(r"decode_head\.hamburger\.ham_out", "sem_seg_head.ham_out", norm="gn"),
    *_conv_module(r"decode_head\.align", "sem_seg_head.align", norm="gn"),
    Drop(r"decode_head\.hamburger\.ham\.bases", "bases of the factorisation: drawn, not learnt"),
    _CLASSIFIER,
)


def _mix_transformer() -> tuple[Rule, ...]:
    rules = []
    for i in range(4):
        # a stage is a list of three: patches, blocks, norm
        source, target = rf"backbone\.layers\.{i}", f"backbone.stages.res{i + 2}"
        block, to = rf"{source}\.1\.(\d+)", rf"{target}.blocks.\1"
        rules += [
            Rule(rf"{source}\.0\.projection\.({_PAIR})", rf"{target}.embed.\1"),
            Rule(rf"{source}\.0\.norm\.({_PAIR})", rf"{target}.embed_norm.\1"),
            Rule(rf"{source}\.2\.({_PAIR})", rf"{target}.norm.\1"),
            Rule(rf"{block}\.norm([12])\.({_PAIR})", rf"{to}.norm\2.\3"),
            Rule(
                rf"{block}\.attn\.attn\.in_proj_({_PAIR})",
                (rf"{to}.attention.query.\2", rf"{to}.attention.key_value.\2"),
                _split_query,
            ),
            Rule(rf"{block}\.attn\.attn\.out_proj\.({_PAIR})", rf"{to}.attention.out.\2"),
            Rule(rf"{block}\.attn\.sr\.({_PAIR})", rf"{to}.attention.reduce.\2"),
            Rule(rf"{block}\.attn\.norm\.({_PAIR})", rf"{to}.attention.norm.\2"),
            Rule(rf"{block}\.ffn\.layers\.0\.(weight)", rf"{to}.fc1.\2", _as_linear),
            Rule(rf"{block}\.ffn\.layers\.0\.(bias)", rf"{to}.fc1.\2"),
            Rule(rf"{block}\.ffn\.layers\.1\.({_PAIR})", rf"{to}.depthwise.\2"),
            Rule(rf"{block}\.ffn\.layers\.4\.(weight)", rf"{to}.fc2.\2", _as_linear),
            Rule(rf"{block}\.ffn\.layers\.4\.(bias)", rf"{to}.fc2.\2"),
        ]
    return tuple(rules)


def _split_query(projection: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(3C,...) rows of query, key, value -> query (C,...); key and value (2C,...)."""
    channels = projection.shape[0] // 3
    query, key_value = projection.split([channels, 2 * channels])
    return query, key_value


def _as_linear(kernel: torch.Tensor) -> tuple[torch.Tensor]:
    """The weight of a 1x1 convolution (C_out,C_in,1,1) -> of a linear layer (C_out,C_in)."""
    return (kernel.squeeze(3).squeeze(2),)


SEGFORMER = (
    *NOT_NEEDED,
    *_mix_transformer(),
    Rule(r"decode_head\.convs\.(\d+)\.conv\.(weight)", r"sem_seg_head.project.\1.\2"),
    Rule(rf"decode_head\.convs\.(\d+)\.bn\.({_BATCH_NORM})", r"sem_seg_head.project.\1.norm.\2"),
    *_conv_module(r"decode_head\.fusion_conv", "sem_seg_head.fuse"),
    _CLASSIFIER,
)
