# SPDX-License-Identifier: Apache-2.0
"""A batch norm at inference, in the form in which an engine folds it into a convolution."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .cache import chunk_bytes


class FrozenNorm(NamedTuple):
    """(x - mean) / sqrt(variance + eps) * weight + bias: (C,) each; `mean` and `variance` are
    the running ones.

    As Detectron2's FrozenBatchNorm2d, but for features (P,C).
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    eps: float

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(C,) each: the norm is x * scale + shift."""
        scale = self.weight * (self.variance + self.eps).rsqrt()
        return scale, self.bias - self.mean * scale

    def fold(self, weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (T,C_in,C), in `dtype`, and bias (C,) of a convolution without bias and this norm
        after it."""
        scale, shift = self.scale_and_shift()
        if dtype == weight.dtype:
            return weight * scale, shift
        folded = torch.empty_like(weight, dtype=dtype)
        # in parts that stay in the cache: torch's product into another type took 13 times as long
        step = max(1, chunk_bytes(weight.device.type) // (4 * weight[..., 0].numel()))
        parts = (tensor.split(step, dim=-1) for tensor in (folded, weight, scale))
        for target, part, factor in zip(*parts):
            target.copy_(part * factor)
        return folded, shift
