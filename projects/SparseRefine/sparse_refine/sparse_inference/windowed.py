# SPDX-License-Identifier: Apache-2.0
"""Torch's functions that read a neighbourhood of a `SiteTensor`: convolution, pooling, resizing.

Shapes: N cells of the output, T taps.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from ..sparse.cache import chunk_bytes
from ..sparse.functional import sparse_conv
from .partial_tensor import PartialTensor, implements
from .site_tensor import SiteTensor
from .trace import UnsupportedOperation, is_pointwise


@implements(SiteTensor, F.conv2d)
def _conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if is_pointwise(weight, bias, stride, padding, dilation, groups) and not any(x.pad):
        return x.like(F.linear(x.values, weight.flatten(1), bias))
    stride, dilation, kernel = pair(stride), pair(dilation), tuple(weight.shape[-2:])
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
        padding = [n // 2 for n in reach] if padding == "same" else (0, 0)
    windows, source = _read(x, F.conv2d, kernel, stride, pair(padding), dilation)
    if groups == 1:
        rows = _dense(source, weight, bias, windows)
    elif groups == weight.shape[0] == source.shape[1]:
        # a matrix product a channel would be slow
        rows = _depthwise(source, weight, bias, windows.table)
    else:
        parts = zip(source.chunk(groups, dim=1), weight.chunk(groups))
        rows = torch.cat([_dense(*part, None, windows) for part in parts], dim=1)
        rows = rows if bias is None else rows.add_(bias)
    return x.like(rows, windows.cells)


def pair(value) -> tuple[int, int]:
    """(vertical, horizontal) of what torch takes as one number or two."""
    return (value, value) if isinstance(value, int) else tuple(value)


def _read(x, function, kernel, stride, padding, dilation, outside: float = 0.0):
    """The windows of a function's output, and their `Windows.source` (P + A + 1, C).

    Raises:
        UnsupportedOperation: strides differ, or the output does not cover the image.
    """
    left, right, top, bottom = x.pad
    # the size of torch's output, by the formula of its Conv2d
    size = [
        (n + before + after + 2 * pad - d * (k - 1) - 1) // s + 1
        for n, before, after, pad, k, s, d in zip(
            x.cells.size, (top, left), (bottom, right), padding, kernel, stride, dilation
        )
    ]
    # cells of stride s are the pixels // s of the image: layers of another size would not fit them
    covered = [-(-n // stride[0]) for n in x.cells.size]
    if stride[0] != stride[1] or size != covered:
        raise UnsupportedOperation(
            f"{function.__name__} of {kernel[0]}x{kernel[1]}, stride {stride}, padding "
            f"{tuple(padding)}: it makes {size[0]}x{size[1]} of {x.cells.size[0]}x"
            f"{x.cells.size[1]}; a map must keep its size but for the stride"
        )
    around = x.small(function)
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
        return tuple(part.flatten(1) for part in torch.broadcast_tensors(y, x_))  # (N,T) each

    kind = (kernel, first, dilation)
    reach = max(*first, *last)
    small = tuple(around.shape[-2:])
    windows = x.resolutions.windows(x.cells, cells, small, kind, reach, places)
    return windows, windows.source(x.values, around[0], outside)


def _dense(source, weight, bias, windows):
    """One group: source (P + A + 1, C_in), weight (C_out,C_in,k,k) -> (N,C_out)."""
    taps = windows.table.shape[1]
    # in memory (C_out, taps, C_in), as the matrix product reads it
    kernel = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], taps, -1).permute(1, 2, 0)
    return sparse_conv(source[:-1], kernel, windows.kernel_map, bias)


def _depthwise(source, weight, bias, table):
    """A depthwise convolution: source (P + A + 1, C), weight (C,1,k,k), table (N,T) -> (N,C)."""
    kernel = weight.flatten(1).t().contiguous().to(source.dtype)  # (T,C)
    rows = source.new_empty(len(table), source.shape[1])  # (N,C)
    places = table.t().contiguous()  # (T,N)
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


@implements(SiteTensor, F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    if ceil_mode or return_indices or any(x.pad):
        raise UnsupportedOperation("max_pool2d with ceil_mode or return_indices, or after pad")
    kernel, stride = pair(kernel_size), pair(stride or kernel_size)
    padding, dilation = pair(padding), pair(dilation)
    windows, source = _read(x, F.max_pool2d, kernel, stride, padding, dilation, -torch.inf)
    values = (source.index_select(0, place) for place in windows.table.unbind(1))
    return x.like(functools.reduce(torch.maximum, values), windows.cells)


@implements(SiteTensor, F.interpolate)
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
    factor = enlargement(x, size, scale_factor, mode, align_corners, antialias)
    around, cells = x.small(F.interpolate), x.resolutions.at(x.cells.stride // factor)
    if cells.size != tuple(n * factor for n in x.cells.size):
        raise UnsupportedOperation(
            f"interpolate of a map {x.cells.size} by {factor}: the image's is {cells.size}"
        )
    (y, down), (x_, right) = (_between(at, factor) for at in (cells.y, cells.x))

    def places():
        if mode == "nearest":
            return (cells.y // factor)[:, None], (cells.x // factor)[:, None]
        corners_y = y[:, None] + y.new_tensor([0, 0, 1, 1])  # (N,4)
        corners_x = x_[:, None] + y.new_tensor([0, 1, 0, 1])
        return corners_y.clamp(0, x.cells.size[0] - 1), corners_x.clamp(0, x.cells.size[1] - 1)

    small = tuple(around.shape[-2:])
    windows = x.resolutions.windows(x.cells, cells, small, (mode, factor), 0, places)
    source = windows.source(x.values, around[0], 0.0)
    values = [source.index_select(0, place) for place in windows.table.unbind(1)]  # T of (N,C)
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


def enlargement(x: PartialTensor, size, scale_factor, mode, align_corners, antialias) -> int:
    """How many times finer the output of an interpolation is, a side.

    Raises:
        UnsupportedOperation: another mode, no whole number, or not one of the map's stride.
    """
    if mode not in ("nearest", "bilinear") or align_corners or antialias:
        raise UnsupportedOperation(
            f"interpolate, mode {mode!r}, align_corners {align_corners}, antialias {antialias}: "
            "nearest, or bilinear with align_corners False, are possible"
        )
    if size is not None:
        factors = [n / own for n, own in zip(pair(size), x.map_size)]
    else:
        several = isinstance(scale_factor, (tuple, list))
        factors = list(scale_factor) if several else [scale_factor] * 2
    factor = int(factors[0])
    if any(x.pad) or set(factors) != {factor} or factor < 1 or x.stride % factor:
        raise UnsupportedOperation(
            f"interpolate of a map of stride {x.stride} by {factors}: one whole number that "
            "divides the stride is possible"
        )
    return factor
