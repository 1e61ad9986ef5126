# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution over a kernel map: gather a chunk of neighbourhoods, then one matrix product.

The gathered chunk stays in the processor's cache, so memory traffic is that of the features
themselves, and no tensor grows with 9 x channels x sites. Training keeps the inputs alone: both
gradients come from one gather of the output's gradient through the transposed map, chunk by chunk.
No scatter has collisions, so results are the same on every run. On a GPU a kernel of
`triton_kernels` computes a whole group without chunks.

Shapes: P_in and P_out rows of features, T taps of the kernel (9 for 3x3), n windows of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .cache import chunk_bytes
from .kernel_map import Chunk, KernelMap, TapGroup
from .norm import FrozenNorm
from .precision import autocast_dtype
from .products import correlate_, product
from .triton_support import kernels_for

# A chunk has at least as many rows: the matrix product reads all weights once a chunk.
_MIN_ROWS = 1024


def sparse_conv(
    features: torch.Tensor,
    weight: torch.Tensor,
    kernel_map: KernelMap,
    bias: torch.Tensor | None = None,
    relu: bool = False,
    residual: torch.Tensor | None = None,
    norm: FrozenNorm | None = None,
) -> torch.Tensor:
    """relu(norm(convolution) + bias) + residual -> (P_out,C_out), each step where it is given.

    Computes in autocast's type, or in that of `weight`. The norm is folded into the weight, or
    applied in the same kernel. Differentiable in all tensors; maps need their `transposed` for it.

    Args:
        features: (P_in,C_in).
        weight: (T,C_in,C_out), T the taps of `kernel_map`.
        bias: (C_out,); not beside a norm, which has its own.
        residual: (P_out,C_out).
        norm: (C_out,) each.

    Raises:
        ValueError: both norm and bias.
    """
    if norm is not None and bias is not None:
        raise ValueError("sparse_conv takes a norm or a bias, not both: the norm has a bias")
    dtype = autocast_dtype(features.device.type) or weight.dtype
    features = features.to(dtype)
    plain = torch.is_grad_enabled() or kernel_map.images is not None
    if norm is not None and (plain or kernels_for(features) is None):
        weight, bias = norm.fold(weight, dtype)
        norm = None
    weight = weight.to(dtype)
    if residual is not None:
        residual = residual.to(dtype)
    if bias is not None:
        bias = bias.to(dtype).contiguous()
    if kernel_map.images is not None:
        output = _convolve_images(features, weight, kernel_map.images, bias)
        if not torch.is_grad_enabled():
            output = output.relu_() if relu else output
            return output if residual is None else output.add_(residual)
    elif not torch.is_grad_enabled():
        return _convolve(features, weight, kernel_map, bias, relu, residual, norm)
    else:
        output = _SparseConv.apply(features, weight, kernel_map)
        output = output if bias is None else output + bias
    if relu:
        output = F.relu(output)
    return output if residual is None else output + residual


class _SparseConv(torch.autograd.Function):
    """Saves features and weight; autograd would keep all that is gathered."""

    @staticmethod
    def forward(ctx, features, weight, kernel_map):
        ctx.save_for_backward(features, weight)
        ctx.kernel_map = kernel_map
        return _convolve(features, weight, kernel_map)

    @staticmethod
    def backward(ctx, gradient):
        features, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        return *_gradients(features, weight, gradient, ctx.kernel_map.transposed, *wanted), None


def _convolve_images(features, weight, images: tuple[int, int, int], bias):
    """torch's own convolution: rows of pixels in raster order are images with channels last."""
    pixels = features.view(*images, -1).permute(0, 3, 1, 2)  # (B,C_in,H,W)
    kernel = weight.view(3, 3, *weight.shape[1:]).permute(3, 2, 0, 1)  # (C_out,C_in,3,3)
    return F.conv2d(pixels, kernel, bias, padding=1).permute(0, 2, 3, 1).flatten(0, 2)  # (P,C_out)


def _convolve(
    features, weight, kernel_map: KernelMap, bias=None, relu=False, residual=None, norm=None
):
    if kernel_map.inputs == 0:  # a sum over nothing: no row could stand for an absent one
        output = features.new_zeros(kernel_map.outputs, weight.shape[2])
        shift = bias if norm is None else norm.scale_and_shift()[1].to(output.dtype)
        output = output if shift is None else output + shift
        output = output.relu_() if relu else output
        return output if residual is None else output + residual
    output = features.new_empty(kernel_map.outputs, weight.shape[2])  # (P_out,C_out)
    kernels = kernels_for(features)
    if kernels is not None:
        features = features.contiguous()
        residual = None if residual is None else residual.contiguous()
        for group in kernel_map.groups:
            kernels.convolve_(output, features, weight, group, norm, bias, relu, residual)
        return output
    summed = any(group.add for group in kernel_map.groups)
    sums, epilogue = (_sums_for(output), ()) if summed else (output, (relu, residual))
    sources = _sources(features, kernel_map)
    for group in kernel_map.groups:
        multiply = product(group, weight, None if group.add else bias)
        source = sources[group.absent is None]
        for chunk in group.chunks(_step(group, features)):
            _finish(multiply(_gather(source, group, chunk)), sums, group, chunk, *epilogue)
    if summed:
        output = sums if sums is output else output.copy_(sums)
        output = output.relu_() if relu else output
        output = output if residual is None else output.add_(residual)
    return output


def _sums_for(output: torch.Tensor) -> torch.Tensor:
    """Where products are summed for `output`: sums in half precision would lose bits."""
    if output.element_size() > 2:
        return output
    return torch.empty_like(output, dtype=torch.float32)


def _gradients(features, weight, gradient, kernel_map: KernelMap, of_features, of_weight):
    """Gradients of features and weight, where wanted. `kernel_map` is the transposed one: what it
    gathers of the outputs' gradient (P_out,C_out) serves both."""
    gradient = gradient.contiguous()
    to_features = to_weight = None
    if of_weight:  # half precision would lose small terms of a sum over a million sites
        sums = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    # gradients of gradients need operations that torch knows
    kernels = None if torch.is_grad_enabled() else kernels_for(features)
    if kernels is not None and kernel_map.inputs:
        sums = sums if of_weight else None
        return _gradients_by(kernels, features, weight, gradient, kernel_map, of_features, sums)
    if of_features:
        to_features = torch.empty_like(features)
        if any(group.add for group in kernel_map.groups):
            to_features = _sums_for(to_features)
        if kernel_map.inputs == 0:
            to_features.zero_()
    sources = _sources(gradient, kernel_map)
    for group in kernel_map.groups if kernel_map.inputs else ():
        multiply = product(group, weight.transpose(1, 2), None)
        source = sources[group.absent is None]
        for chunk in group.chunks(_step(group, gradient)):
            gathered = _gather(source, group, chunk)
            if of_features:
                _finish(multiply(gathered), to_features, group, chunk)
            if of_weight:
                rows = slice(chunk.start, chunk.stop)
                rows = features[rows if group.rows is None else group.rows[rows]]
                if chunk.pick is not None:  # a row for every window, zero where it is no output
                    windows = rows.new_zeros(len(gathered) - group.overlap, rows.shape[1])
                    rows = windows.index_copy_(0, chunk.pick, rows)
                correlate_(sums, group, gathered, rows, add=chunk.start > 0)
    if of_weight:
        # taps of groups without outputs were never written
        idle = [g for g in kernel_map.groups if g.outputs == 0] if kernel_map.inputs else [None]
        for group in idle:
            taps = range(9) if group is None else [k for place in group.taps for k in place]
            sums[list(taps)] = 0
        to_weight = sums.to(weight.dtype)
    return to_features if to_features is None else to_features.to(features.dtype), to_weight


def _gradients_by(kernels, features, weight, gradient, kernel_map, of_features, sums):
    """`_gradients` by Triton's kernels; `sums` (T,C_in,C_out) is None where it is not wanted."""
    features = features.contiguous()
    to_features = torch.empty_like(features) if of_features else None
    for group in kernel_map.groups:
        if of_features:
            kernels.convolve_(to_features, gradient, weight.transpose(1, 2), group)
        if sums is not None:
            kernels.correlate_(sums, features, gradient, group)
    return to_features, None if sums is None else sums.to(weight.dtype)


def _finish(result, output, group: TapGroup, chunk: Chunk, relu=False, residual=None) -> None:
    """Write a chunk's relu(result) + residual to its rows of `output`, in as few passes over memory
    as possible."""
    outputs = slice(chunk.start, chunk.stop)
    if group.rows is not None:
        rows = group.rows[outputs]
        if group.add:
            output.index_add_(0, rows, result.to(output.dtype))
            return
        result = result.relu_() if relu else result
        output.index_copy_(0, rows, result if residual is None else result + residual[rows])
        return
    output = output[outputs]
    if chunk.pick is not None:
        torch.index_select(result, 0, chunk.pick, out=output)
        result = output
    if relu:
        result = torch.clamp_min(result, 0, out=output)
    if residual is not None:
        torch.add(result, residual[outputs], out=output)
    elif result is not output:
        output.copy_(result)


def _sources(features: torch.Tensor, kernel_map: KernelMap) -> dict[bool, torch.Tensor]:
    """What groups gather from, by whether their `absent` is None: False, the features; True, the
    features with a last row of zeros, which absent neighbours read."""
    padded = any(group.absent is None for group in kernel_map.groups)
    return {False: features.contiguous(), True: F.pad(features, (0, 0, 0, 1)) if padded else None}


def _gather(source: torch.Tensor, group: TapGroup, chunk: Chunk) -> torch.Tensor:
    """(n + overlap, T C): the chunk's rows side by side, zeros for absent ones."""
    table = group.table[chunk.first : chunk.last]
    rows = source.index_select(0, table.reshape(-1))
    if chunk.absent is not None:
        rows.index_fill_(0, chunk.absent, 0)
    return rows.view(len(table), -1)


def _step(group: TapGroup, features: torch.Tensor) -> int:
    """Outputs of a chunk."""
    row = max(1, group.table.shape[1] * features.shape[1] * features.element_size())
    if len(group.taps) == 1 == len(group.taps[0]):
        return max(4 * _MIN_ROWS, chunk_bytes(features.device.type) // row)
    # lines of a frame are read three times: few enough chunks that most of them lie within one
    return max(_MIN_ROWS, chunk_bytes(features.device.type) // row, 16 * group.line)
