# SPDX-License-Identifier: Apache-2.0
"""Torch's functions that act on each place of a map by itself: activations, norms, sums, padding.
Global statistics (group norm, global pooling) are the small image's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .partial_tensor import PartialTensor, implements
from .trace import UnsupportedOperation


def _unpadded(x: PartialTensor, function) -> None:
    """
    Raises:
        UnsupportedOperation: `x` was padded, and `function` is no convolution.
    """
    if any(x.pad):
        raise UnsupportedOperation(
            f"{function.__name__} after pad: a convolution alone can read the zeros"
        )


def _each_value(function):
    """The form of a function that acts on each value by itself."""

    def ours(x: PartialTensor, *args, **kwargs):
        _unpadded(x, function)
        return x.like(function(x.values, *args, **kwargs))

    return ours


for _function in (
    *(F.relu, F.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.silu, F.gelu, F.mish),
    *(F.hardswish, F.hardsigmoid, torch.relu, torch.relu_, torch.sigmoid, torch.tanh),
    *(torch.Tensor.sigmoid, torch.Tensor.relu),
):
    PartialTensor.operations[_function] = _each_value(_function)


@implements(PartialTensor, F.batch_norm)
def _batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    if training:
        raise UnsupportedOperation("batch_norm in training: the network must be in eval mode")
    _unpadded(x, F.batch_norm)
    return x.like(F.batch_norm(x.values, running_mean, running_var, weight, bias, eps=eps))


@implements(PartialTensor, F.group_norm)
def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    """By the statistics of the small image's map."""
    _unpadded(x, F.group_norm)
    parts = x.small(F.group_norm).reshape(num_groups, -1).float()  # (groups, C / groups h w)
    each = x.channels // num_groups
    scale = (parts.var(1, unbiased=False) + eps).rsqrt().repeat_interleave(each)  # (C,)
    shift = -parts.mean(1).repeat_interleave(each) * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    shift = shift if bias is None else shift + bias
    scaled = torch.addcmul(x.each_channel(shift), x.values, x.each_channel(scale))
    return x.like(scaled.to(x.dtype))


@implements(PartialTensor, F.dropout, F.dropout2d)
def _dropout(x, p=0.5, training=True, inplace=False):
    if training:
        raise UnsupportedOperation("dropout in training: the network must be in eval mode")
    return x


def _arithmetic(function):
    """The form of a function of two maps of the same cells, or of a map and a value a channel."""

    def ours(x, other, *args, **kwargs):
        whole = x if isinstance(x, PartialTensor) else other
        values = []
        for value in (x, other):
            if isinstance(value, PartialTensor):
                _same_cells(whole, value, function)
                values.append(value.values)
            else:
                values.append(_of_each_channel(whole, value, function))
        return whole.like(function(*values, *args, **kwargs))

    return ours


for _name in ("add", "sub", "mul", "div"):
    for _function in (getattr(torch, _name), getattr(torch.Tensor, _name)):
        PartialTensor.operations[_function] = _arithmetic(getattr(torch, _name))


def _of_each_channel(x: PartialTensor, value, function):
    """A number as it is; a tensor (1,C,1,1) or (C,1,1) in the shape that broadcasts over `x`."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    if value.dim() < 3 or value.shape[-2:] != (1, 1):
        raise UnsupportedOperation(
            f"{function.__name__} of a map and a tensor {tuple(value.shape)}: it must have one "
            "value a channel"
        )
    return x.each_channel(value.reshape(-1))


def _same_cells(x: PartialTensor, other: PartialTensor, function) -> None:
    """
    Raises:
        UnsupportedOperation: `function` of what are not maps of the same cells, without padding.
    """
    if not (isinstance(x, PartialTensor) and isinstance(other, PartialTensor)):
        raise UnsupportedOperation(f"{function.__name__} of a map and a plain tensor")
    if not x.has_cells_of(other) or any(x.pad) or any(other.pad):
        raise UnsupportedOperation(
            f"{function.__name__} of maps {tuple(x.shape)} and {tuple(other.shape)}: they must be "
            "of one stride"
        )


@implements(PartialTensor, torch.cat, torch.concat)
def _cat(tensors, dim=0):
    if dim not in (1, -3):
        raise UnsupportedOperation(f"cat along dimension {dim}: channels (1) alone are possible")
    for tensor in tensors:
        _same_cells(tensors[0], tensor, torch.cat)
    return tensors[0].like(torch.cat([tensor.values for tensor in tensors], dim=1))


@implements(PartialTensor, F.pad)
def _pad(x, pad, mode="constant", value=None):
    """Kept aside: the next convolution reads the zeros."""
    if mode != "constant" or value or len(pad) != 4 or any(x.pad) or min(pad) < 0:
        raise UnsupportedOperation(f"pad by {tuple(pad)}, {mode} {value}: zeros, once, alone")
    return x.with_pad(tuple(pad))


@implements(PartialTensor, F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x, output_size):
    """A plain tensor (1,C,1,1): the mean of the small image's map."""
    _unpadded(x, F.adaptive_avg_pool2d)
    if output_size not in (1, (1, 1), [1, 1]):
        raise UnsupportedOperation(f"adaptive_avg_pool2d to {output_size}: 1 alone is possible")
    return F.adaptive_avg_pool2d(x.small(F.adaptive_avg_pool2d), 1)
