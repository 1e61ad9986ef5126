# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution over a kernel map: gather a chunk of neighbourhoods, then one matrix product.

The gathered chunk stays in the processor's cache, so memory traffic is that of the features
themselves and nothing is ever allocated that grows with 9 x channels x sites. Gradients use the
same gather: of the input through the transposed map, of the weights chunk by chunk; nothing is
scattered with collisions, so that results are the same on every run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .kernel_map import KernelMap, TapGroup

# Bytes of a chunk's gathered neighbourhoods: about the size of the L2 cache of a processor core; on
# a GPU, enough to fill it.
_CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 27}


def sparse_conv(features: torch.Tensor, weight: torch.Tensor, kernel_map: KernelMap):
    """Features (P_in,C_in), weight (9,C_in,C_out) -> (P_out,C_out). Follows autocast."""
    dtype = _autocast_dtype(features.device.type) or weight.dtype
    features, weight = features.to(dtype), weight.to(dtype)
    return _SparseConv.apply(features, weight, kernel_map)


def _autocast_dtype(device: str) -> torch.dtype | None:
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
        return _gather_multiply(features, weight, kernel_map)

    @staticmethod
    def backward(ctx, gradient):
        features, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_features = of_weight = None
        if ctx.needs_input_grad[0]:
            of_features = _gather_multiply(
                gradient, weight.transpose(1, 2), ctx.kernel_map.transposed
            )
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(features, gradient, weight, ctx.kernel_map)
        return of_features, of_weight, None


def _gather_multiply(features, weight, kernel_map: KernelMap) -> torch.Tensor:
    padded = F.pad(features, (0, 0, 0, 1))  # the last row stands for absent neighbours
    output = features.new_empty(kernel_map.outputs, weight.shape[2])
    for group in kernel_map.groups:
        matrix = weight[list(group.taps)].reshape(-1, weight.shape[2])
        for start, stop in _chunks(group, padded):
            gathered = _gather(padded, group, start, stop)
            if group.rows is None:
                torch.mm(gathered, matrix, out=output[start:stop])
            else:
                output[group.rows[start:stop]] = gathered @ matrix
    return output


def _weight_gradient(features, gradient, weight, kernel_map: KernelMap) -> torch.Tensor:
    padded = F.pad(features, (0, 0, 0, 1))
    # half precision would lose small terms of a sum over a million sites
    total = torch.zeros(
        weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device
    )
    for group in kernel_map.groups:
        taps = list(group.taps)
        for start, stop in _chunks(group, padded):
            gathered = _gather(padded, group, start, stop)
            rows = slice(start, stop) if group.rows is None else group.rows[start:stop]
            product = gathered.t() @ gradient[rows]
            total[taps] += product.view(len(taps), *weight.shape[1:])
    return total.to(weight.dtype)


def _gather(padded: torch.Tensor, group: TapGroup, start: int, stop: int) -> torch.Tensor:
    """(n, T C_in): the rows' neighbourhoods, side by side."""
    rows = padded.index_select(0, group.table[start:stop].reshape(-1))
    return rows.view(stop - start, len(group.taps) * padded.shape[1])


def _chunks(group: TapGroup, features: torch.Tensor):
    row = max(1, len(group.taps) * features.shape[1] * features.element_size())
    step = max(64, _CHUNK_BYTES.get(features.device.type, 1 << 24) // row)
    for start in range(0, len(group.table), step):
        yield start, min(start + step, len(group.table))
