# SPDX-License-Identifier: Apache-2.0
"""The attention modules whose tokens can be merged: how their `forward` is called, their layers.

Known are MiT of this project, and of transformers SegFormer, PVT, ViT, DeiT and DPT. They attend to
all of a map, and have no position bias or windows as BEiT and Swin have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..mix_transformer import ReducedAttention
from .attention import Parts, StageMerging, attend

_SPATIAL = ("SegformerAttention", "PvtAttention")  # called with the size of their map
_PLAIN = ("ViTAttention", "DeiTAttention", "DPTViTAttention")


class Grid:
    """The size (h,w) of the map of a plain ViT's current call: its blocks get a row of tokens."""

    def __init__(self):
        self.size = (0, 0)


def merged_forward(module: nn.Module) -> Callable | None:
    """The function that replaces the `forward` of an attention module, called as (module, how,
    grid, *arguments of that `forward`). None for other modules."""
    if isinstance(module, ReducedAttention):
        return _own_forward
    name = type(module).__name__
    if type(module).__module__.startswith("transformers."):
        if name in _SPATIAL:
            return _spatial_forward
        if name in _PLAIN:
            return _plain_forward
    return None


def is_patch_embedding(name: str, module: nn.Module) -> bool:
    """Whether `module`, called `name` in its model, is the patch embedding of a plain ViT."""
    return name.endswith("patch_embeddings.projection") and isinstance(module, nn.Conv2d)


def recording_forward(embed: nn.Conv2d, grid: Grid, images: torch.Tensor) -> torch.Tensor:
    """Replaces the `forward` of a patch embedding: keeps the size of its map in `grid`."""
    output = type(embed).forward(embed, images)
    grid.size = tuple(output.shape[-2:])
    return output


def _own_forward(module: ReducedAttention, how: StageMerging, grid: Grid, x, size):
    parts = Parts(
        query=module.query,
        key_value=lambda source: module.key_value(source).chunk(2, dim=2),
        out=module.out,
        heads=module.heads,
        convolution=module.reduce,
        norm=module.norm,
    )
    return attend(parts, x, size, how)


def _spatial_forward(
    module: nn.Module, how: StageMerging, grid: Grid, hidden_states, height, width, *args, **options
):
    return attend(_parts(module), hidden_states, (height, width), how), None


def _plain_forward(
    module: nn.Module, how: StageMerging, grid: Grid, hidden_states, mask=None, *args, **options
):
    if mask is not None or options.get("attention_mask") is not None:
        raise ValueError(f"{type(module).__name__}: merged tokens cannot be masked")
    if not 0 < grid.size[0] * grid.size[1] <= hidden_states.shape[1]:
        raise ValueError(
            f"{type(module).__name__} got {hidden_states.shape[1]} tokens of a map of {grid.size}: "
            "merge tokens of the whole model, which makes the map, not of a part"
        )
    output = attend(_parts(module), hidden_states, grid.size, how)
    return (output, None) if hasattr(module, "q_proj") else output


def _parts(module: nn.Module) -> Parts:
    """The layers of a module of transformers: in one module since version 5; before that, and in
    PVT and DPT, in two."""
    if hasattr(module, "q_proj"):
        reduction = getattr(module, "sequence_reduction", None)
        return Parts(
            query=module.q_proj,
            key_value=lambda source: (module.k_proj(source), module.v_proj(source)),
            out=module.o_proj,
            heads=module.num_attention_heads,
            convolution=reduction and reduction.sequence_reduction,
            norm=reduction and reduction.layer_norm,
            dropout=module.attention_dropout if module.training else 0.0,
        )
    inner = module.self if hasattr(module, "self") else module.attention
    dropout = inner.dropout.p if hasattr(inner, "dropout") else inner.dropout_prob
    return Parts(
        query=inner.query,
        key_value=lambda source: (inner.key(source), inner.value(source)),
        out=module.output.dense,
        heads=inner.num_attention_heads,
        convolution=getattr(inner, "sr", getattr(inner, "sequence_reduction", None)),
        norm=getattr(inner, "layer_norm", None),
        dropout=dropout if module.training else 0.0,
        finish=module.output.dropout,
    )
