# SPDX-License-Identifier: Apache-2.0
"""What torch's functions do with a `SiteTensor`."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from ..sparse.cache import chunk_bytes
from ..sparse.functional import sparse_conv
from .site_tensor import OPERATIONS, SiteTensor
from .trace import UnsupportedOperation, is_pointwise


def known_operations() -> list[str]:
    """Names of torch's functions that have a form at single pixels."""
    return sorted({function.__name__ for function in OPERATIONS})


def _implements(*functions):
    def register(ours):
        OPERATIONS.update(dict.fromkeys(functions, ours))
        return ours

    return register


def _each_value(function):
    def ours(x: SiteTensor, *args, **kwargs):
        return x.like(function(x.rows, *args, **kwargs))

    return ours


for _function in (
    *(F.relu, F.relu_, F.relu6, F.hardtanh, F.leaky_relu, F.elu, F.silu, F.gelu, F.mish),
    *(F.hardswish, F.hardsigmoid, torch.relu, torch.relu_, torch.sigmoid, torch.tanh),
    *(torch.Tensor.sigmoid, torch.Tensor.relu),
):
    OPERATIONS[_function] = _each_value(_function)


@_implements(F.batch_norm)
def _batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    if training:
        raise UnsupportedOperation("batch_norm in training: the network must be in eval mode")
    return x.like(F.batch_norm(x.rows, running_mean, running_var, weight, bias, eps=eps))


@_implements(F.group_norm)
def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    """By the statistics of the small image's map."""
    parts = x.around(F.group_norm).reshape(num_groups, -1).float()
    each = x.rows.shape[1] // num_groups
    scale = (parts.var(1, unbiased=False) + eps).rsqrt().repeat_interleave(each)
    shift = -parts.mean(1).repeat_interleave(each) * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    shift = shift if bias is None else shift + bias
    return x.like(torch.addcmul(shift, x.rows, scale).to(x.dtype))


@_implements(F.dropout, F.dropout2d)
def _dropout(x, p=0.5, training=True, inplace=False):
    if training:
        raise UnsupportedOperation("dropout in training: the network must be in eval mode")
    return x


def _arithmetic(function):
    def ours(x, other, *args, **kwargs):
        whole = x if isinstance(x, SiteTensor) else other
        rows = []
        for value in (x, other):
            if isinstance(value, SiteTensor):
                _same_cells(whole, value, function)
            rows.append(value.rows if isinstance(value, SiteTensor) else _row(value, function))
        return whole.like(function(*rows, *args, **kwargs))

    return ours


for _name in ("add", "sub", "mul", "div"):
    for _function in (getattr(torch, _name), getattr(torch.Tensor, _name)):
        OPERATIONS[_function] = _arithmetic(getattr(torch, _name))


def _row(value, function):
    """A number as it is; a tensor (1,C,1,1), or (C,1,1), as (1,C) beside rows."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    if value.dim() < 3 or value.shape[-2:] != (1, 1):
        raise UnsupportedOperation(
            f"{function.__name__} of a map and a tensor {tuple(value.shape)}: it must have one "
            "value a channel"
        )
    return value.reshape(1, -1)


def _same_cells(x: SiteTensor, other: SiteTensor, function) -> None:
    if x.cells is not other.cells or any(x.pad) or any(other.pad):
        raise UnsupportedOperation(
            f"{function.__name__} of maps {tuple(x.shape)} and {tuple(other.shape)}: they must be "
            "of one stride"
        )


@_implements(torch.cat, torch.concat)
def _cat(tensors, dim=0):
    if dim not in (1, -3):
        raise UnsupportedOperation(f"cat along dimension {dim}: channels (1) alone are possible")
    for tensor in tensors[1:]:
        _same_cells(tensors[0], tensor, torch.cat)
    return tensors[0].like(torch.cat([tensor.rows for tensor in tensors], dim=1))


@_implements(F.pad)
def _pad(x, pad, mode="constant", value=None):
    if mode != "constant" or value or len(pad) != 4 or any(x.pad) or min(pad) < 0:
        raise UnsupportedOperation(f"pad by {tuple(pad)}, {mode} {value}: zeros, once, alone")
    return SiteTensor(x.rows, x.cells, x.resolutions, x.trace, tuple(pad))


@_implements(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x, output_size):
    """A plain tensor (1,C,1,1): the mean of the small image's map."""
    if output_size not in (1, (1, 1), [1, 1]):
        raise UnsupportedOperation(f"adaptive_avg_pool2d to {output_size}: 1 alone is possible")
    return F.adaptive_avg_pool2d(x.around(F.adaptive_avg_pool2d), 1)


@_implements(F.conv2d)
def _conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if is_pointwise(weight, bias, stride, padding, dilation, groups) and not any(x.pad):
        return x.like(F.linear(x.rows, weight.flatten(1), bias))
    stride, dilation, kernel = _pair(stride), _pair(dilation), tuple(weight.shape[-2:])
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
        padding = [n // 2 for n in reach] if padding == "same" else (0, 0)
    windows, source = _read(x, F.conv2d, kernel, stride, _pair(padding), dilation)
    if groups == 1:
        rows = _dense(source, weight, bias, windows)
    elif groups == weight.shape[0] == source.shape[1]:
        rows = _depthwise(source, weight, bias, windows.table)
    else:
        parts = zip(source.chunk(groups, dim=1), weight.chunk(groups))
        rows = torch.cat([_dense(*part, None, windows) for part in parts], dim=1)
        rows = rows if bias is None else rows.add_(bias)
    return x.like(rows, windows.cells)


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _read(x, function, kernel, stride, padding, dilation, outside: float = 0.0):
    """The windows of a function's output, and their `Windows.source`.

    Raises:
        UnsupportedOperation: strides differ, or the output does not cover the image.
    """
    left, right, top, bottom = x.pad
    size = [
        (n + before + after + 2 * pad - d * (k - 1) - 1) // s + 1
        for n, before, after, pad, k, s, d in zip(
            x.cells.size, (top, left), (bottom, right), padding, kernel, stride, dilation
        )
    ]
    if stride[0] != stride[1] or any(n // stride[0] != out for n, out in zip(x.cells.size, size)):
        raise UnsupportedOperation(
            f"{function.__name__} of {kernel[0]}x{kernel[1]}, stride {stride}, padding "
            f"{tuple(padding)}: it makes {size[0]}x{size[1]} of {x.cells.size[0]}x"
            f"{x.cells.size[1]}; a map must keep its size but for the stride"
        )
    around = x.around(function)
    cells = x.resolutions.at(x.cells.stride * stride[0])
    first = (top + padding[0], left + padding[1])
    last = [d * (k - 1) for d, k in zip(dilation, kernel)]

    def places():
        steps_y, steps_x = (
            torch.arange(k, device=cells.y.device) * d - before
            for k, d, before in zip(kernel, dilation, first)
        )
        y = (cells.y * stride[0])[:, None, None] + steps_y[:, None]
        x_ = (cells.x * stride[0])[:, None, None] + steps_x
        return tuple(part.flatten(1) for part in torch.broadcast_tensors(y, x_))

    kind = (kernel, first, dilation)
    reach = max(*first, *last)
    small = tuple(around.shape[-2:])
    windows = x.resolutions.windows(x.cells, cells, small, kind, reach, places)
    return windows, windows.source(x.rows, around[0], outside)


def _dense(source, weight, bias, windows):
    taps = windows.table.shape[1]
    # in memory (C_out, taps, C_in), as the matrix product reads it
    kernel = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], taps, -1).permute(1, 2, 0)
    return sparse_conv(source[:-1], kernel, windows.kernel_map, bias)


def _depthwise(source, weight, bias, table):
    kernel = weight.flatten(1).t().contiguous().to(source.dtype)  # (taps,C)
    rows = source.new_empty(len(table), source.shape[1])
    places = table.t().contiguous()
    # in parts that stay in the caches together with a gathered one
    step = max(64, chunk_bytes(rows.device.type) // (2 * rows.shape[1] * rows.element_size()))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        for tap, place in enumerate(places[:, start : start + step]):
            values = source.index_select(0, place)
            if tap == 0:
                torch.mul(values, kernel[0], out=part)
            else:
                part.addcmul_(values, kernel[tap])
    return rows if bias is None else rows.add_(bias)


@_implements(F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    if ceil_mode or return_indices or any(x.pad):
        raise UnsupportedOperation("max_pool2d with ceil_mode or return_indices, or after pad")
    kernel, stride = _pair(kernel_size), _pair(stride or kernel_size)
    padding, dilation = _pair(padding), _pair(dilation)
    windows, source = _read(x, F.max_pool2d, kernel, stride, padding, dilation, -torch.inf)
    values = (source.index_select(0, place) for place in windows.table.unbind(1))
    return x.like(functools.reduce(torch.maximum, values), windows.cells)


@_implements(F.interpolate)
def _interpolate(
    x,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    """To a finer map, nearest or bilinear."""
    factor = _factor(x, size, scale_factor)
    if mode not in ("nearest", "bilinear") or align_corners or antialias:
        raise UnsupportedOperation(
            f"interpolate, mode {mode!r}, align_corners {align_corners}, antialias {antialias}: "
            "nearest, or bilinear with align_corners False, are possible"
        )
    around, cells = x.around(F.interpolate), x.resolutions.at(x.cells.stride // factor)
    down, right = (_between(at, factor)[1] for at in (cells.y, cells.x))

    def places():
        if mode == "nearest":
            return (cells.y // factor)[:, None], (cells.x // factor)[:, None]
        y, x_ = (_between(at, factor)[0][:, None] for at in (cells.y, cells.x))
        y, x_ = y + y.new_tensor([0, 0, 1, 1]), x_ + y.new_tensor([0, 1, 0, 1])
        return y.clamp(0, x.cells.size[0] - 1), x_.clamp(0, x.cells.size[1] - 1)

    small = tuple(around.shape[-2:])
    windows = x.resolutions.windows(x.cells, cells, small, (mode, factor), 0, places)
    source = windows.source(x.rows, around[0], 0.0)
    values = [source.index_select(0, place) for place in windows.table.unbind(1)]
    if mode == "nearest":
        return x.like(values[0], cells)
    down, right = (share[:, None].to(x.dtype) for share in (down, right))
    above, below = torch.lerp(*values[:2], right), torch.lerp(*values[2:], right)
    return x.like(torch.lerp(above, below, down), cells)


def _between(at: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The coarse cell before a fine one, and how far behind it the fine one lies, 0..1. Centres lie
    at (i + 0.5) / n of a side (align_corners=False)."""
    position = (at + 0.5) / factor - 0.5
    before = position.floor()
    return before.long(), position - before


def _factor(x: SiteTensor, size, scale_factor) -> int:
    if size is not None:
        factors = [n / own for n, own in zip(_pair(size), x.cells.size)]
    else:
        several = isinstance(scale_factor, (tuple, list))
        factors = list(scale_factor) if several else [scale_factor] * 2
    factor = int(factors[0])
    if any(x.pad) or set(factors) != {factor} or factor < 1 or x.cells.stride % factor:
        raise UnsupportedOperation(
            f"interpolate of a map of stride {x.cells.stride} by {factors}: one whole number that "
            "divides the stride is possible"
        )
    return factor
