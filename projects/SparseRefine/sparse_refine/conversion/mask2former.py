# SPDX-License-Identifier: Apache-2.0
"""MMSegmentation's Mask2Former with a Swin backbone -> Detectron2's Mask2Former project.

The head's names are those of MMDetection, which MMSegmentation's is built on: of 3.x, and of 2.x,
where attentions and feed-forward layers are numbered.
"""

from __future__ import annotations

import torch

from .mmseg import NOT_NEEDED
from .rules import Drop, Rule

_PAIR = "weight|bias"


def _unfold_to_slices(channels: torch.Tensor) -> torch.Tensor:
    """The input channels of patch merging (...,4C), from MMSegmentation's order to Swin's own.

    MMSegmentation unfolds 2x2 neighbours: the column varies fastest, then the row, then the
    channel. Swin concatenates four slices: the channel varies fastest, then the row, then the
    column.
    """
    head = channels.shape[:-1]
    cut = channels.reshape(*head, channels.shape[-1] // 4, 2, 2)  # channel, row, column
    return cut.permute(*range(len(head)), -1, -2, -3).reshape(channels.shape)


def _merging(channels: torch.Tensor) -> tuple[torch.Tensor]:
    """`_unfold_to_slices` as a rule's transform."""
    return (_unfold_to_slices(channels),)


_SWIN_BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)"
_SWIN_TO = r"backbone.layers.\1.blocks.\2"
_SWIN = (
    Rule(rf"backbone\.patch_embed\.projection\.({_PAIR})", r"backbone.patch_embed.proj.\1"),
    Rule(rf"backbone\.patch_embed\.norm\.({_PAIR})", r"backbone.patch_embed.norm.\1"),
    Rule(rf"backbone\.norm([0-3])\.({_PAIR})", r"backbone.norm\1.\2"),
    Rule(rf"{_SWIN_BLOCK}\.norm([12])\.({_PAIR})", rf"{_SWIN_TO}.norm\3.\4"),
    Rule(
        rf"{_SWIN_BLOCK}\.attn\.w_msa\."
        rf"(relative_position_(?:bias_table|index)|(?:qkv|proj)\.(?:{_PAIR}))",
        rf"{_SWIN_TO}.attn.\3",
    ),
    Rule(rf"{_SWIN_BLOCK}\.ffn\.layers\.0\.0\.({_PAIR})", rf"{_SWIN_TO}.mlp.fc1.\3"),
    Rule(rf"{_SWIN_BLOCK}\.ffn\.layers\.1\.({_PAIR})", rf"{_SWIN_TO}.mlp.fc2.\3"),
    Rule(
        rf"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.({_PAIR})",
        r"backbone.layers.\1.downsample.\2.\3",
        _merging,
    ),
)

_PIXEL = r"decode_head\.pixel_decoder"
_PIXEL_TO = "sem_seg_head.pixel_decoder"
_ENCODER = rf"{_PIXEL}\.encoder\.layers\.(\d+)"
_ENCODER_TO = rf"{_PIXEL_TO}.transformer.encoder.layers.\1"
_PIXEL_DECODER = (
    Rule(rf"{_PIXEL}\.input_convs\.(\d)\.conv\.({_PAIR})", rf"{_PIXEL_TO}.input_proj.\1.0.\2"),
    Rule(rf"{_PIXEL}\.input_convs\.(\d)\.gn\.({_PAIR})", rf"{_PIXEL_TO}.input_proj.\1.1.\2"),
    Rule(rf"{_PIXEL}\.level_encoding\.weight", f"{_PIXEL_TO}.transformer.level_embed"),
    Rule(
        rf"{_ENCODER}\.(?:self_attn|attentions\.0)\."
        rf"((?:sampling_offsets|attention_weights|value_proj|output_proj)\.(?:{_PAIR}))",
        rf"{_ENCODER_TO}.self_attn.\2",
    ),
    Rule(rf"{_ENCODER}\.(?:ffn|ffns\.0)\.layers\.0\.0\.({_PAIR})", rf"{_ENCODER_TO}.linear1.\2"),
    Rule(rf"{_ENCODER}\.(?:ffn|ffns\.0)\.layers\.1\.({_PAIR})", rf"{_ENCODER_TO}.linear2.\2"),
    Rule(rf"{_ENCODER}\.norms\.0\.({_PAIR})", rf"{_ENCODER_TO}.norm1.\2"),
    Rule(rf"{_ENCODER}\.norms\.1\.({_PAIR})", rf"{_ENCODER_TO}.norm2.\2"),
    Rule(rf"{_PIXEL}\.lateral_convs\.0\.conv\.({_PAIR})", rf"{_PIXEL_TO}.adapter_1.\1"),
    Rule(rf"{_PIXEL}\.lateral_convs\.0\.gn\.({_PAIR})", rf"{_PIXEL_TO}.adapter_1.norm.\1"),
    Rule(rf"{_PIXEL}\.output_convs\.0\.conv\.({_PAIR})", rf"{_PIXEL_TO}.layer_1.\1"),
    Rule(rf"{_PIXEL}\.output_convs\.0\.gn\.({_PAIR})", rf"{_PIXEL_TO}.layer_1.norm.\1"),
    Rule(rf"{_PIXEL}\.mask_feature\.({_PAIR})", rf"{_PIXEL_TO}.mask_features.\1"),
)

_LAYER = r"decode_head\.transformer_decoder\.layers\.(\d+)"
_TO = "sem_seg_head.predictor"
_ATTENTION = rf"attn\.(in_proj_(?:{_PAIR})|out_proj\.(?:{_PAIR}))"
_CROSS_TO = rf"{_TO}.transformer_cross_attention_layers.\1"
_SELF_TO = rf"{_TO}.transformer_self_attention_layers.\1"
_FFN_TO = rf"{_TO}.transformer_ffn_layers.\1"
# in a layer: cross-attention, norm, self-attention, norm, feed-forward, norm
_DECODER = (
    Rule(
        rf"{_LAYER}\.(?:cross_attn|attentions\.0)\.{_ATTENTION}", rf"{_CROSS_TO}.multihead_attn.\2"
    ),
    Rule(rf"{_LAYER}\.(?:self_attn|attentions\.1)\.{_ATTENTION}", rf"{_SELF_TO}.self_attn.\2"),
    Rule(rf"{_LAYER}\.(?:ffn|ffns\.0)\.layers\.0\.0\.({_PAIR})", rf"{_FFN_TO}.linear1.\2"),
    Rule(rf"{_LAYER}\.(?:ffn|ffns\.0)\.layers\.1\.({_PAIR})", rf"{_FFN_TO}.linear2.\2"),
    Rule(rf"{_LAYER}\.norms\.0\.({_PAIR})", rf"{_CROSS_TO}.norm.\2"),
    Rule(rf"{_LAYER}\.norms\.1\.({_PAIR})", rf"{_SELF_TO}.norm.\2"),
    Rule(rf"{_LAYER}\.norms\.2\.({_PAIR})", rf"{_FFN_TO}.norm.\2"),
    Rule(rf"decode_head\.transformer_decoder\.post_norm\.({_PAIR})", rf"{_TO}.decoder_norm.\1"),
    Rule(r"decode_head\.(query_embed|query_feat|level_embed)\.weight", rf"{_TO}.\1.weight"),
    Rule(rf"decode_head\.cls_embed\.({_PAIR})", rf"{_TO}.class_embed.\1"),
    *(  # linear layers with ReLUs between them
        Rule(rf"decode_head\.mask_embed\.{2 * i}\.({_PAIR})", rf"{_TO}.mask_embed.layers.{i}.\1")
        for i in range(3)
    ),
    Drop(r"decode_head\.loss_cls\.class_weight", "only training uses it"),
)

MASK2FORMER = (*NOT_NEEDED, *_SWIN, *_PIXEL_DECODER, *_DECODER)

# what Mask2Former's own checkpoints hold besides the model that predicts
MASK2FORMER_DETECTRON2 = (
    Drop(r"criterion\..+", "the loss, which only training uses"),
    Drop(r"pixel_(mean|std)", "see MODEL.PIXEL_MEAN"),
    # names of the project's first version, which it upgrades while loading
    Rule(r"sem_seg_head\.predictor\.static_query\.(.+)", r"sem_seg_head.predictor.query_feat.\1"),
    Rule(r"sem_seg_head\.(?!predictor\.|pixel_decoder\.)(.+)", r"sem_seg_head.pixel_decoder.\1"),
    Rule(r"((?:backbone|sem_seg_head)\..+)", r"\1"),
)
