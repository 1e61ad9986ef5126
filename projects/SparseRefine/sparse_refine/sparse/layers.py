# SPDX-License-Identifier: Apache-2.0
"""Layers on feature matrices (P,C) whose rows are the sites of a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
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


class SyncSiteNorm(NaiveSyncBatchNorm):
    """Batch normalisation over the sites of all processes, each with as many as it has; in a single
    process it does what `SiteNorm` does."""

    def __init__(self, channels: int):
        super().__init__(channels, stats_mode="N")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training and len(features) < 2 and comm.get_world_size() == 1:
            return _by_running_statistics(self, features)
        # the numbers of sites are summed in the features' type: bfloat16 counts only to 256
        dtype = torch.promote_types(features.dtype, torch.float32)
        normalised = super().forward(features.to(dtype)[:, :, None, None])
        return normalised[:, :, 0, 0].to(features.dtype)


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
