# SPDX-License-Identifier: Apache-2.0
"""The matrix products of a sparse convolution, by the kernels that are fastest for them.

On a CPU oneDNN multiplies float32 faster than the library behind `torch.mm`, and its convolutions
read overlapping windows of gathered rows without copying them. Elsewhere `torch.mm` does it all;
GPUs with Triton's kernels do not come here.

Shapes: n windows of w rows, T taps a row (w T = 9 for a 3x3 kernel): see `kernel_map.TapGroup`.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from .kernel_map import TapGroup
from .pyramid import Level


def product(group: TapGroup, weight: torch.Tensor, bias: torch.Tensor | None):
    """A function from gathered rows (n + overlap, T C_in) to products (n,C_out).

    Args:
        weight: (9,C_in,C_out), or of any number of taps: all taps of the convolution.
        bias: (C_out,), added.
    """
    taps, width = [k for place in group.taps for k in place], len(group.taps)
    if len(taps) == 1:
        return functools.partial(_one_tap, weight[taps[0]], bias)
    outputs, length = weight.shape[2], len(taps) // width * weight.shape[1]
    in_place = weight.stride(2) == 1 and taps == list(range(9))

    # weights in the layouts that the kernels want, on demand: a copy, unless they have it already
    @functools.cache
    def chosen():
        return weight if taps == list(range(9)) else weight[taps]

    @functools.cache
    def kernel():
        high, wide = (3, 3) if group.line else (1, width)
        matrix = chosen().permute(2, 0, 1).reshape(outputs, high, wide, length)
        return matrix.permute(0, 3, 1, 2)  # (C_out, T C_in, 1, w), or (C_out,C_in,3,3)

    @functools.cache
    def matrix():  # (w T C_in, C_out)
        if weight.stride(2) == 1:
            return chosen().reshape(-1, outputs)
        return chosen().permute(2, 0, 1).reshape(outputs, -1).t()

    def by_convolution(gathered):
        # oneDNN's convolution reads overlapping windows in place, and in float32 its 1 x 1 one is
        # faster than the library of `mm`
        image, padding = _as_image(gathered, group.line)
        return F.conv2d(image, kernel(), bias, padding=padding)[0].flatten(1).t()

    def by_product(gathered):
        windows = gathered
        if width > 1:
            size = (len(gathered) - width + 1, width * length)
            windows = gathered.as_strided(size, (length, 1))  # (n, w T C_in), overlapping
        if bias is None:
            return torch.mm(windows, matrix())
        return torch.addmm(bias, windows, matrix())

    def by_taps(gathered):
        # one product a tap: slower, but without a copy of the weights
        parts = gathered.split(weight.shape[1], dim=1)
        first, *rest = zip(parts, taps)
        result = first[0] @ weight[first[1]]
        for part, tap in rest:
            result.addmm_(part, weight[tap])
        return result if bias is None else result.add_(bias)

    if group.line or (width > 1 and _has_onednn(weight)):
        return by_convolution
    if not _has_onednn(weight):
        return by_product

    def either(gathered):
        # a convolution brings the weights into an order of its own, at each call: not worth it for
        # a few rows, nor where `mm` has the same kernels
        if weight.dtype != torch.float32:
            return by_product(gathered)
        if len(gathered) >= 2 * outputs:
            return by_convolution(gathered)
        return (by_product if in_place else by_taps)(gathered)

    return either


def _one_tap(weight, bias, gathered):
    return torch.mm(gathered, weight) if bias is None else torch.addmm(bias, gathered, weight)


def _as_image(rows: torch.Tensor, line: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Rows (n,C) as an image (1,C,1,n), or (1,C,n / line,line), and the padding with which a
    convolution of it has a column for each window."""
    image = rows.view(1, -1, line or len(rows), rows.shape[1]).permute(0, 3, 1, 2)
    return image, (0, 1) if line else (0, 0)


def _has_onednn(tensor: torch.Tensor) -> bool:
    """Whether oneDNN computes convolutions of such tensors."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


def best_form(level: Level, weight: torch.Tensor) -> str:
    """The form of a level's submanifold convolution, see `kernel_map`, that costs least.

    Costs are multiplications for each site and input channel. Measured: gathering a number costs as
    much as 17 of them, adding one to a sum in memory as 60.
    """
    if level.whole:
        return "images"
    if level.count == 0 or not _has_onednn(weight):
        return "windows"
    gather, add, products = 17, 60, 9 * weight.shape[2]
    costs = {
        "frame": level.canvas / level.count * (products + gather) + gather,
        "runs": level.spread * (products + 3 * gather) + gather,
        "windows": products + 9 * gather,
    }
    if weight.shape[2] >= 128:  # below, gathering for each tap costs more than absent ones
        costs["taps"] = level.present * (products + 9 * (gather + add))
    return min(costs, key=costs.get)


def correlate_(
    sums: torch.Tensor, group: TapGroup, gathered: torch.Tensor, rows: torch.Tensor, add: bool
) -> None:
    """Write products of rows (n,D) with the gathered rows (n + overlap, T C) of their windows,
    summed over the windows, to `sums` (9,D,C) at the group's taps: added, or in place of what is
    there."""
    width, length, columns = len(group.taps), gathered.shape[1], rows.shape[1]
    count, channels = len(rows), sums.shape[2]
    # the convolution's backward pass is the faster one, unless the matrix is large for its rows
    single = width == 1 and (rows.dtype != torch.float32 or count < 8 * columns)
    if group.line or (not single and _has_onednn(rows)):
        image, padding = _as_image(gathered, group.line)
        shape = (columns, length, *((3, 3) if group.line else (1, width)))
        kernel = conv2d_weight(image, shape, _as_image(rows, group.line)[0], padding=padding)
        for taps, place in zip(group.taps, kernel.flatten(2).unbind(2)):
            for tap, part in zip(taps, place.split(channels, dim=1)):
                _put(sums[tap], part, add)
        return
    for place, taps in enumerate(group.taps):
        parts = gathered[place : place + count].split(channels, dim=1)
        for tap, part in zip(taps, parts):
            if rows.dtype == sums.dtype:  # where beta is 0 what was there does not matter
                sums[tap].addmm_(rows.t(), part, beta=int(add))
            else:
                _put(sums[tap], rows.t() @ part, add)


def _put(target: torch.Tensor, values: torch.Tensor, add: bool) -> None:
    if add:
        target.add_(values)
    else:
        target.copy_(values)
