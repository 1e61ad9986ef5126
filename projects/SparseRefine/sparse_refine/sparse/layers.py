# SPDX-License-Identifier: Apache-2.0
"""Layers on feature matrices (P,C) whose rows are the sites of a grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn

from .cache import chunk_bytes
from .fused import kernels_for
from .norm import Statistics


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
        # He et al. 2015, by the taps that a site's output really has: on the way up 9 / 4 of 9
        taps = 9 / 4 if kind == "up" else 9
        weight = torch.empty(9, in_channels, out_channels)
        nn.init.normal_(weight, std=math.sqrt(2 / (taps * in_channels)))
        # in memory (C_out,9,C_in), as the matrix product reads it
        self.weight = nn.Parameter(weight.permute(2, 0, 1).contiguous().permute(1, 2, 0))

    def forward(
        self,
        features: torch.Tensor,
        grid,
        level: int,
        norm: NormReLU | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """norm(convolution) + residual, each where given.

        `level` is the finer of the two where the kind changes resolution. At inference `norm` is
        folded into the weights, and everything is one pass.
        """
        convolve = getattr(grid, self.kind)
        if self.training or torch.is_grad_enabled():
            output = convolve(features, self.weight, level)
            output = output if norm is None else norm(output)
            return output if residual is None else output + residual
        options = {} if residual is None else {"residual": residual}
        if norm is not None:
            # folded anew each time: a copy that is kept doubles the memory, and goes stale
            options.update(norm=norm.statistics(), relu=True)
        return convolve(features, self.weight, level, **options)

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

    def forward(self, features: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Features (P,C), or several (P,C_i) that stand for their concatenation."""
        parts = (features,) if isinstance(features, torch.Tensor) else features
        if self.training or torch.is_grad_enabled():
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            return F.relu_(self.norm(whole))
        fused = kernels_for(parts[0])
        if len(parts) == 1:
            if fused is None:
                return F.relu_(self.norm(parts[0]))
            output = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
            fused.norm_relu_(output, parts[0].contiguous(), self.statistics())
            return output
        channels = [part.shape[1] for part in parts]
        output = parts[0].new_empty(len(parts[0]), sum(channels))
        statistics = self.statistics()
        tensors = zip(*(tensor.split(channels) for tensor in statistics[:4]))
        pieces = [Statistics(*four, statistics.eps) for four in tensors]
        if fused is not None:
            for target, part, piece in zip(output.split(channels, dim=1), parts, pieces):
                fused.norm_relu_(target, part.contiguous(), piece)
            return output
        # piece by piece, while it is in the cache: the concatenation is never made
        step = max(1, chunk_bytes(output.device.type) // (4 * max(1, output.shape[1])))
        for start in range(0, len(output), step):
            rows = slice(start, start + step)
            normed = [
                F.relu_(F.batch_norm(part[rows], p.mean, p.variance, p.weight, p.bias, eps=p.eps))
                for part, p in zip(parts, pieces)
            ]
            torch.cat(normed, dim=1, out=output[rows])
        return output

    def statistics(self) -> Statistics:
        """What inference normalises by."""
        norm = self.norm
        return Statistics(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


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

    def forward(
        self, features: torch.Tensor | tuple[torch.Tensor, ...], grid, level: int
    ) -> torch.Tensor:
        """Features (P,C), or several (P,C_i) that stand for their concatenation."""
        x = self.act1(features)
        skip = features if self.skip is None else self._project(features)
        x = self.conv1(x, grid, level, norm=self.act2)
        return self.conv2(x, grid, level, residual=skip)

    def _project(self, features: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        if isinstance(features, torch.Tensor):
            return self.skip(features)
        # the sum of the parts' products is the product of their concatenation
        weights = self.skip.weight.split([part.shape[1] for part in features], dim=1)
        total = F.linear(features[0], weights[0])
        for part, weight in zip(features[1:], weights[1:]):
            if torch.is_grad_enabled():
                total = total + F.linear(part, weight)
            else:  # in place: at full resolution a sum of its own is the UNet's peak of memory
                total.addmm_(part.to(total.dtype), weight.to(total.dtype).t())
        return total
