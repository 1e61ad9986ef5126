# SPDX-License-Identifier: Apache-2.0
"""Self-attention on merged tokens.

Shapes: B images, P leading tokens that are on no map (class tokens), then N = h w tokens of a map
(h,w); C channels; M tokens are left of the N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .matching import Merge, find_groups


@dataclass(frozen=True)
class StageMerging:
    """What is merged in the attention of one stage's blocks; None merges nothing.

    `key_value`: keys and values come from one map, in SegFormer and PVT a reduced one.
    """

    query: Merge | None = None
    key_value: Merge | None = None


@dataclass(frozen=True)
class Parts:
    """The layers of a library's attention module.

    Args:
        query, out: (B,n,C) -> (B,n,C).
        key_value: (B,n,C) -> keys and values, (B,n,C) each.
        heads: number of them.
        convolution, norm: where keys and values come from a smaller map, what makes it.
        dropout: share of the attention weights that training sets to zero, 0..1.
        finish: what follows on the output of all tokens.
    """

    query: nn.Module
    key_value: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    out: nn.Module
    heads: int
    convolution: nn.Conv2d | None = None
    norm: nn.Module | None = None
    dropout: float = 0.0
    finish: nn.Module | None = None


def attend(
    parts: Parts, tokens: torch.Tensor, size: tuple[int, int], how: StageMerging
) -> torch.Tensor:
    """Tokens (B,P+N,C) of a map of (h,w) = `size` -> the attention's output (B,P+N,C).

    As in SegFormer++ tokens are merged before the linear layers that make queries, keys and values
    of them, and unmerged after the last linear layer: these layers get cheaper, too.
    """
    size = (int(size[0]), int(size[1]))  # tensors under torch.jit.trace
    groups = find_groups(tokens, size, how.query)
    merged = tokens if groups is None else groups.merge(tokens)  # (B,P+M,C)
    if parts.convolution is None and how.key_value == how.query:
        source = merged
    else:
        source, source_size = tokens, size
        if parts.convolution is not None:
            reduced = parts.convolution(tokens.transpose(1, 2).unflatten(2, size))  # (B,C,h',w')
            source_size = (int(reduced.shape[2]), int(reduced.shape[3]))
            source = parts.norm(reduced.flatten(2).transpose(1, 2))
        source_groups = find_groups(source, source_size, how.key_value)
        if source_groups is not None:
            source = source_groups.merge(source)
    query, key, value = (
        x.unflatten(2, (parts.heads, -1)).transpose(1, 2)  # (B,heads,n,C/heads)
        for x in (parts.query(merged), *parts.key_value(source))
    )
    context = F.scaled_dot_product_attention(query, key, value, dropout_p=parts.dropout)
    output = parts.out(context.transpose(1, 2).flatten(2))
    if groups is not None:
        output = groups.unmerge(output)
    return output if parts.finish is None else parts.finish(output)
