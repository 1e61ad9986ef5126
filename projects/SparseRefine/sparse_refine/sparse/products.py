# SPDX-License-Identifier: Apache-2.0
"""The matrix products of a sparse convolution, by the kernels that are fastest for them.

On a CPU oneDNN multiplies float32 faster than the library behind `torch.mm`, and its convolutions
read overlapping windows of gathered rows without copying them; elsewhere `torch.mm` does it all.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from .kernel_map import TapGroup
from .pyramid import Level


def product(group: TapGroup, weight: torch.Tensor, bias: torch.Tensor | None):
    """A function from gathered rows (n + width - 1, T C_in) to products (n,C_out)."""
    taps = [k for place in group.taps for k in place]
    weight = weight if taps == list(range(9)) else weight[taps]
    outputs, length = weight.shape[2], len(taps) // group.width * weight.shape[1]

    @functools.cache  # made where it is needed: a copy unless it lies so already
    def kernel():
        matrix = weight.permute(2, 0, 1).reshape(outputs, group.width, length, 1)
        return matrix.permute(0, 2, 3, 1)

    @functools.cache
    def matrix():
        if weight.stride(2) == 1:
            return weight.reshape(-1, outputs)
        return weight.permute(2, 0, 1).reshape(outputs, -1).t()

    def by_convolution(gathered):
        # oneDNN's convolution reads overlapping windows in place, and in float32 its 1 x 1 one is
        # faster than the library of `mm`
        image = gathered.view(1, 1, -1, length).permute(0, 3, 1, 2)
        return F.conv2d(image, kernel(), bias)[0, :, 0].t()

    def by_product(gathered):
        windows = gathered
        if group.width > 1:
            size = (len(gathered) - group.width + 1, group.width * length)
            windows = gathered.as_strided(size, (length, 1))
        if bias is None:
            return torch.mm(windows, matrix())
        return torch.addmm(bias, windows, matrix())

    if not on_onednn(weight):
        return by_product
    if group.width > 1:
        return by_convolution

    def either(gathered):
        # a convolution brings the weights into an order of its own, at each call: not worth it for
        # a few rows, nor where `mm` has the same kernels
        few = len(gathered) < 2 * outputs
        return (by_product if few or weight.dtype != torch.float32 else by_convolution)(gathered)

    return either


def on_onednn(tensor: torch.Tensor) -> bool:
    """Whether oneDNN convolves this kind of tensor."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


def prefers_runs(level: Level, weight: torch.Tensor) -> bool:
    """Whether a convolution of a level should go by runs. Measured: to gather one number costs as
    much as 17 multiplications."""
    if level.count == 0 or not on_onednn(weight):
        return False
    gather, outputs = 17, weight.shape[2]
    by_runs = level.spread * (9 * outputs + 3 * gather) + gather
    return by_runs < 9 * outputs + 9 * gather


def correlate_(sums: torch.Tensor, gathered: torch.Tensor, rows: torch.Tensor) -> None:
    """To `sums` (width,C,D) add the products of gathered rows (n + width - 1, C) with the rows
    (n,D) that their windows meet."""
    width, length, columns = sums.shape
    count = len(rows)
    # the convolution's backward pass is the faster one, unless the matrix is large for its rows
    single = width == 1 and (rows.dtype != torch.float32 or count < 8 * columns)
    if not single and on_onednn(rows):
        images = [x.view(1, 1, -1, x.shape[1]).permute(0, 3, 1, 2) for x in (gathered, rows)]
        kernel = conv2d_weight(images[0], (columns, length, 1, width), images[1])
        sums += kernel[:, :, 0].permute(2, 1, 0)
        return
    for place in range(width):
        part = gathered[place : place + count].t()
        if rows.dtype == sums.dtype:
            sums[place].addmm_(part, rows)
        else:
            sums[place] += part @ rows
