# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution over a kernel map: gather a chunk of neighbourhoods, then one matrix product.

The gathered chunk stays in the processor's cache, so memory traffic is that of the features
themselves and nothing is ever allocated that grows with 9 x channels x sites. Gradients use the
same gather: of the input through the transposed map, of the weights chunk by chunk; nothing is
scattered with collisions, so that results are the same on every run.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from .cache import chunk_bytes
from .kernel_map import Chunk, KernelMap, TapGroup
from .pyramid import Level

# A chunk has at least as many rows: the matrix product reads all weights once a chunk.
_MIN_ROWS = 1024


def sparse_conv(
    features: torch.Tensor,
    weight: torch.Tensor,
    kernel_map: KernelMap,
    bias: torch.Tensor | None = None,
    relu: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """relu(convolution + bias) + residual, each where given, of features (P_in,C_in) and weight
    (9,C_in,C_out) -> (P_out,C_out). Follows autocast. Differentiable in all tensors."""
    dtype = autocast_dtype(features.device.type) or weight.dtype
    features, weight = features.to(dtype), weight.to(dtype)
    if residual is not None:
        residual = residual.to(dtype)
    if bias is not None:
        bias = bias.to(dtype)
    if not torch.is_grad_enabled():
        return _convolve(features, weight, kernel_map, bias, relu, residual)
    output = _SparseConv.apply(features, weight, kernel_map)
    if bias is not None:
        output = output + bias
    if relu:
        output = F.relu(output)
    return output if residual is None else output + residual


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes in on this kind of device, None where it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


class _SparseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, kernel_map):
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        return _convolve(features, weight, kernel_map)

    @staticmethod
    def backward(ctx, gradient):
        features, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_features = of_weight = None
        if ctx.needs_input_grad[0]:
            of_features = _convolve(gradient, weight.transpose(1, 2), ctx.kernel_map.transposed)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(features, gradient, weight, ctx.kernel_map)
        return of_features, of_weight, None


def _convolve(features, weight, kernel_map: KernelMap, bias=None, relu=False, residual=None):
    channels = weight.shape[2]
    if kernel_map.inputs == 0:  # a sum over nothing
        output = features.new_zeros(kernel_map.outputs, channels)
        output = output if bias is None else output + bias
        output = output.relu_() if relu else output
        return output if residual is None else output + residual
    output = features.new_empty(kernel_map.outputs, channels)
    sources = _sources(features, kernel_map)
    for group in kernel_map.groups:
        multiply = _product(group, weight, bias)
        source = sources[group.absent is None]
        for chunk in group.chunks(_step(group, features)):
            result = multiply(_gather(source, group, chunk))
            if group.rows is None:
                outputs = slice(chunk.start, chunk.stop)
                _finish(result, output[outputs], chunk.pick, relu, residual, outputs)
                continue
            rows = group.rows[chunk.start : chunk.stop]
            result = result.relu_() if relu else result
            output.index_copy_(0, rows, result if residual is None else result + residual[rows])
    return output


def _finish(result, output, pick, relu: bool, residual, outputs: slice) -> None:
    """output = relu(result[pick]) + residual[outputs] in as few passes as there are."""
    if pick is not None:
        torch.index_select(result, 0, pick, out=output)
        result = output
    if relu:
        result = torch.clamp_min(result, 0, out=output)
    if residual is not None:
        torch.add(result, residual[outputs], out=output)
    elif result is not output:
        output.copy_(result)


def _product(group: TapGroup, weight: torch.Tensor, bias: torch.Tensor | None):
    """A function from gathered rows (n + width - 1, T C_in) to products (n,C_out)."""
    taps = [k for place in group.taps for k in place]
    weight = weight if taps == list(range(9)) else weight[taps]
    outputs, length = weight.shape[2], len(taps) // group.width * weight.shape[1]

    @functools.lru_cache(maxsize=None)  # made where it is needed: a copy unless it lies so already
    def kernel():
        matrix = weight.permute(2, 0, 1).reshape(outputs, group.width, length, 1)
        return matrix.permute(0, 2, 3, 1)

    @functools.lru_cache(maxsize=None)
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

    if not _by_convolution(weight):
        return by_product
    if group.width > 1:
        return by_convolution

    def either(gathered):
        # a convolution brings the weights into an order of its own, at each call: not worth it for
        # a few rows, nor where `mm` has the same kernels
        few = len(gathered) < 2 * outputs
        return (by_product if few or weight.dtype != torch.float32 else by_convolution)(gathered)

    return either


def _by_convolution(tensor: torch.Tensor) -> bool:
    """Whether oneDNN convolves this kind of tensor."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    )


def prefers_runs(level: Level, weight: torch.Tensor) -> bool:
    """Whether a convolution of a level should go by runs. Measured: to gather one number costs as
    much as 17 multiplications."""
    if level.count == 0 or not _by_convolution(weight):
        return False
    gather, outputs = 17, weight.shape[2]
    by_runs = level.spread * (9 * outputs + 3 * gather) + gather
    return by_runs < 9 * outputs + 9 * gather


def _weight_gradient(features, gradient, weight, kernel_map: KernelMap) -> torch.Tensor:
    # half precision would lose small terms of a sum over a million sites
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if kernel_map.inputs == 0:
        return torch.zeros_like(weight)
    total, outputs = None, weight.shape[2]
    sources = _sources(features, kernel_map)
    for group in kernel_map.groups:
        source = sources[group.absent is None]
        length = source.shape[1] * group.table.shape[1]
        matrix = features.new_zeros((outputs, group.width, length), dtype=dtype)
        for chunk in group.chunks(_step(group, features)):
            gathered = _gather(source, group, chunk)
            rows = slice(chunk.start, chunk.stop)
            rows = gradient[rows] if group.rows is None else gradient[group.rows[rows]]
            if chunk.pick is not None:
                windows = rows.new_zeros(len(gathered) - group.width + 1, outputs)
                rows = windows.index_copy_(0, chunk.pick, rows)
            _correlate_(matrix, gathered, rows)
        taps = [k for place in group.taps for k in place]
        matrix = matrix.view(outputs, len(taps), -1).permute(1, 2, 0)  # (taps,C_in,C_out)
        if taps == list(range(9)):
            return matrix.to(weight.dtype)
        total = features.new_zeros(weight.shape, dtype=dtype) if total is None else total
        total[taps] = matrix
    return total.to(weight.dtype)


def _correlate_(matrix: torch.Tensor, gathered: torch.Tensor, gradient: torch.Tensor) -> None:
    """To matrix (C_out,width,D) add the products of rows (n + width - 1, D) with the gradients
    (n,C_out) of their windows."""
    outputs, width, length = matrix.shape
    count = len(gradient)
    # the convolution's backward pass is the faster one, unless the matrix is large for its rows
    single = width == 1 and (gradient.dtype != torch.float32 or count < 8 * outputs)
    if not single and _by_convolution(gradient):
        images = [x.view(1, 1, -1, x.shape[1]).permute(0, 3, 1, 2) for x in (gathered, gradient)]
        kernel = conv2d_weight(images[0], (outputs, length, 1, width), images[1])
        matrix += kernel[:, :, 0].transpose(1, 2)
        return
    for place in range(width):
        rows = gathered[place : place + count]
        if gradient.dtype == matrix.dtype:
            matrix[:, place].addmm_(gradient.t(), rows)
        else:
            matrix[:, place] += gradient.t() @ rows


def _sources(features: torch.Tensor, kernel_map: KernelMap) -> dict[bool, torch.Tensor]:
    """What groups gather from: the features; with a last row of zeros where `absent` is None."""
    padded = any(group.absent is None for group in kernel_map.groups)
    return {False: features.contiguous(), True: F.pad(features, (0, 0, 0, 1)) if padded else None}


def _gather(source: torch.Tensor, group: TapGroup, chunk: Chunk) -> torch.Tensor:
    """(n + width - 1, T C): the chunk's rows side by side, zeros for absent ones."""
    table = group.table[chunk.first : chunk.last]
    rows = source.index_select(0, table.reshape(-1))
    if chunk.absent is not None:
        rows.index_fill_(0, chunk.absent, 0)
    return rows.view(len(table), -1)


def _step(group: TapGroup, features: torch.Tensor) -> int:
    row = max(1, group.table.shape[1] * features.shape[1] * features.element_size())
    return max(_MIN_ROWS, chunk_bytes(features.device.type) // row)
