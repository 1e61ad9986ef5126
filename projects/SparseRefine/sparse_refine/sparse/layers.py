# SPDX-License-Identifier: Apache-2.0
"""Layers on feature matrices (P,C) whose rows are the sites of a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn


class SparseConv2d(nn.Module):
    """A 3x3 convolution without bias between the sites of a grid.

    Args:
        kind: "submanifold" (stride 1, sites stay), "down" (stride 2) or "up" (its transpose).

    `weight` is (9,C_in,C_out); tap k is row k // 3 and column k % 3 of the window.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str = "submanifold"):
        super().__init__()
        if kind not in ("submanifold", "down", "up"):
            raise ValueError(f"kind is {kind!r}: one of 'submanifold', 'down', 'up'")
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(9, in_channels, out_channels))
        # He et al. 2015, by the taps that a site's output really has: on the way up 9 / 4 of 9
        taps = 9 / 4 if kind == "up" else 9
        nn.init.normal_(self.weight, std=math.sqrt(2 / (taps * in_channels)))

    def forward(self, features: torch.Tensor, grid, level: int) -> torch.Tensor:
        """`level` is the finer of the two where the kind changes resolution."""
        return getattr(grid, self.kind)(features, self.weight, level)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}, kind={self.kind!r}"


class SiteNorm(nn.BatchNorm1d):
    """Batch normalisation over sites. A batch of fewer than two sites has no variance: it is
    normalised by the running statistics, and leaves them as they are."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training and len(features) < 2:
            return _by_running_statistics(self, features)
        return super().forward(features)


class SyncSiteNorm(SiteNorm):
    """`SiteNorm` over the sites of all processes, each with as many as it has.

    The same numbers as in one process that has them all; Detectron2's NaiveSyncBatchNorm keeps the
    biased variance in its running statistics, and needs another shape.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(features)
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        sums = torch.cat([x.sum(0), x.square().sum(0), x.new_full((1,), len(x))])
        sums = differentiable_all_reduce(sums)
        count = sums[-1].item()
        if count < 2:  # in every process: none of them waits for this one's gradient
            return _by_running_statistics(self, features)
        mean, square = (sums[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp(min=0)
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean) * scale + self.bias).to(features.dtype)


def _by_running_statistics(norm: nn.Module, features: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(
        features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


NORMS = {"BN": SiteNorm, "SyncBN": SyncSiteNorm}


class NormReLU(nn.Module):
    """Normalisation, then ReLU."""

    def __init__(self, channels: int, norm: str = "BN"):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.NORM is {norm!r}: one of {tuple(NORMS)}"
            )
        self.norm = NORMS[norm](channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.norm(features))


class ResidualBlock(nn.Module):
    """Pre-activation residual block: (norm, ReLU, 3x3) twice, a 1x1 skip where channels change."""

    def __init__(self, in_channels: int, out_channels: int, norm: str = "BN"):
        super().__init__()
        self.act1 = NormReLU(in_channels, norm)
        self.conv1 = SparseConv2d(in_channels, out_channels)
        self.act2 = NormReLU(out_channels, norm)
        self.conv2 = SparseConv2d(out_channels, out_channels)
        self.skip = None
        if in_channels != out_channels:
            self.skip = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, features: torch.Tensor, grid, level: int) -> torch.Tensor:
        skip = features if self.skip is None else self.skip(features)
        x = self.conv1(self.act1(features), grid, level)
        return skip + self.conv2(self.act2(x), grid, level)
