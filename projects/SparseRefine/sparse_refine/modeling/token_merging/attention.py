# SPDX-License-Identifier: Apache-2.0
"""Self-attention on merged tokens.

Shapes: B images, a map of (h,w) = N tokens of C numbers after P that are on no map (class tokens).
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

    Keys and values come from one map, which has been reduced where the stage does so.
    """

    query: Merge | None = None
    key_value: Merge | None = None


@dataclass(frozen=True)
class Parts:
    """A library's attention module taken apart.

    Args:
        query, out: (B,n,C) -> (B,n,C).
        key_value: (B,n,C) -> both, (B,n,C) each.
        heads: that C is divided into.
        convolution, norm: where keys and values come from a smaller map, what makes it.
        dropout: share of the attention's weights that training sets to zero.
        finish: what follows on the output at all positions.
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

    They are merged before the layers that make queries, keys and values of them, and the output
    goes back to all positions after the last layer, as in SegFormer++: those layers are saved too.
    """
    size = (int(size[0]), int(size[1]))  # tensors under torch.jit.trace
    groups = find_groups(tokens, size, how.query)
    merged = tokens if groups is None else groups.merge(tokens)
    if parts.convolution is None and how.key_value == how.query:
        source = merged
    else:
        source, source_size = tokens, size
        if parts.convolution is not None:
            reduced = parts.convolution(tokens.transpose(1, 2).unflatten(2, size))
            source_size = (int(reduced.shape[2]), int(reduced.shape[3]))
            source = parts.norm(reduced.flatten(2).transpose(1, 2))
        source_groups = find_groups(source, source_size, how.key_value)
        if source_groups is not None:
            source = source_groups.merge(source)
    query, key, value = (
        x.unflatten(2, (parts.heads, -1)).transpose(1, 2)
        for x in (parts.query(merged), *parts.key_value(source))
    )
    context = F.scaled_dot_product_attention(query, key, value, dropout_p=parts.dropout)
    output = parts.out(context.transpose(1, 2).flatten(2))
    if groups is not None:
        output = groups.unmerge(output)
    return output if parts.finish is None else parts.finish(output)
