# SPDX-License-Identifier: Apache-2.0
"""The head of transformers' SegFormer without its largest product, the same but for rounding.

The head brings four maps to D channels and to one size, and mixes all 4 D of them. Interpolation
acts on positions and the linear layers around it on channels, so they commute, and two successive
linear layers are one:

    F [up(P1 x1 + b1) ... up(P4 x4 + b4)]  =  up(F1 P1 x1) + F1 b1 + ... + up(F4 P4 x4) + F4 b4

with the four parts F1 ... F4 of F, into which the batch norm is folded. D x c products a pixel of
each map, at the map's own size, are left; the 4 D x D a pixel of the largest are gone. At 1024x2048
with D = 768 that is 12 GMACs in place of 322.

Shapes: maps x1 ... x4 (B,c,h,w), the largest first; D channels inside the head, K classes.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

_CHANNELS = 192  # of the D at once: a map of all takes 400 MB at 1024x2048


def fold_head(model: nn.Module) -> nn.Module:
    """Let every SegFormer head in `model` compute this in evaluation, in place; returns `model`.

    Parameters and their names stay as they are, training is as before, and weights may be loaded
    later: the layers are folded at each call.

    Raises:
        ValueError: there is none.
    """
    heads = [module for module in model.modules() if _is_head(module)]
    if not heads:
        raise ValueError(
            f"MODEL.HUGGING_FACE.FOLD_HEAD: {type(model).__name__} has no head of SegFormer's"
        )
    for head in heads:
        head.forward = functools.partial(_folded_forward, head)
    return model


def unfold_head(model: nn.Module) -> nn.Module:
    """Undo `fold_head` where it was called, in place; returns `model`."""
    for module in model.modules():
        own = vars(module).get("forward")
        if isinstance(own, functools.partial) and own.func is _folded_forward:
            del module.forward
    return model


def _is_head(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "SegformerDecodeHead" and kind.__module__.startswith("transformers.")


def _folded_forward(head: nn.Module, maps, *args, **options) -> torch.Tensor:
    """Stands for `head.forward`: maps (B,c,h,w), the largest first -> logits (B,K,h,w)."""
    if head.training or any(x.dim() != 4 for x in maps):
        return type(head).forward(head, maps, *args, **options)
    weights, bias = folded_weights(head)
    classify = head.classifier.weight
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    logits = head.classifier.bias.float()[:, None, None]
    for start in range(0, len(bias), _CHANNELS):
        part = slice(start, start + _CHANNELS)
        mixed = F.conv2d(maps[0], weights[0][part], bias[part])  # (B,_CHANNELS,h,w)
        for x, weight in zip(maps[1:], weights[1:]):
            x = F.conv2d(x, weight[part])
            mixed += F.interpolate(x, mixed.shape[-2:], mode="bilinear", align_corners=False)
        logits = logits + F.conv2d(head.activation(mixed), classify[:, part]).float()
    return logits.to(classify.dtype)


def folded_weights(head: nn.Module) -> tuple[list[torch.Tensor], torch.Tensor]:
    """F1 P1 ... F4 P4 with the batch norm folded in, (D,c,1,1) each, the largest map's first; and
    the sum of all biases (D,)."""
    norm, kind = head.batch_norm, head.linear_fuse.weight.dtype
    # folded at each call, in a hundredth of the head's time: nothing can be out of date
    with torch.autocast(head.linear_fuse.weight.device.type, enabled=False):
        scale = norm.weight.float() / (norm.running_var.float() + norm.eps).sqrt()
        fuse = head.linear_fuse.weight.float().flatten(1) * scale[:, None]
        bias = norm.bias.float() - norm.running_mean.float() * scale
        # transformers concatenates the smallest map first
        projections = [layer.proj for layer in _projections(head)]
        weights = []
        for mix, layer in zip(reversed(fuse.chunk(len(projections), dim=1)), projections):
            weights.append((mix @ layer.weight.float())[..., None, None].to(kind))
            bias = bias + mix.mv(layer.bias.float())
    return weights, bias.to(kind)


def _projections(head: nn.Module) -> nn.ModuleList:
    """P1 ... P4; renamed in transformers 5."""
    return head.linear_projections if hasattr(head, "linear_projections") else head.linear_c
