# SPDX-License-Identifier: Apache-2.0
"""Layers on feature matrices (P,C) whose rows are the sites of a grid.

A grid is an engine's, see torch_engine.py; a level is a resolution of it, 0 the full one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn

from .cache import chunk_bytes
from .norm import FrozenNorm
from .triton_support import kernels_for


class SparseConv2d(nn.Module):
    """A 3x3 convolution without bias between the sites of a grid.

    `weight` is (9,C_in,C_out); tap k is row k // 3 and column k % 3 of the window.

    Args:
        kind: "submanifold" (stride 1, sites stay), "down" (stride 2) or "up" (its transpose).

    Raises:
        ValueError: another kind.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str = "submanifold"):
        super().__init__()
        if kind not in ("submanifold", "down", "up"):
            raise ValueError(f"kind is {kind!r}: one of 'submanifold', 'down', 'up'")
        self.kind = kind
        # He et al. 2015 (arXiv 1502.01852), by the taps that reach an output: 9 / 4 on the way up
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
        """norm(convolution) + residual, each where given: (P_in,C_in) -> (P_out,C_out).

        `level` is the finer of the two where the kind changes resolution. At inference `norm` is
        folded into the weights, and all is one pass.
        """
        convolve = getattr(grid, self.kind)
        if self.training or torch.is_grad_enabled():
            output = convolve(features, self.weight, level)
            output = output if norm is None else norm(output)
            return output if residual is None else output + residual
        options = {} if residual is None else {"residual": residual}
        if norm is not None:
            # folded at each call: a kept copy would double the memory and could go stale
            options.update(norm=norm.frozen(), relu=True)
        return convolve(features, self.weight, level, **options)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[2]}, kind={self.kind!r}"


class SiteNorm(nn.BatchNorm1d):
    """Batch norm over sites, (P,C) -> (P,C).

    A training batch of fewer than two sites has no variance (torch raises): it is normalised by the
    running statistics, and leaves them as they are.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training and len(features) < 2:
            return _by_running_statistics(self, features)
        return super().forward(features)


class SyncSiteNorm(SiteNorm):
    """`SiteNorm` over the sites of all processes, which may have different numbers of them.

    The same result as in one process that has all sites. Detectron2's NaiveSyncBatchNorm keeps the
    biased variance in its running statistics, and takes (B,C,H,W).
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(features)
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        sums = torch.cat([x.sum(0), x.square().sum(0), x.new_full((1,), len(x))])  # (2C+1,)
        sums = differentiable_all_reduce(sums)
        count = sums[-1].item()
        if count < 2:  # so in every process: none waits for the gradient of another
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
    """Batch norm, then ReLU.

    Args:
        norm: a name in `NORMS`.

    Raises:
        ValueError: another name.
    """

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
        kernels = kernels_for(parts[0])
        if len(parts) == 1:
            if kernels is None:
                return F.relu_(self.norm(parts[0]))
            output = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
            kernels.norm_relu_(output, parts[0].contiguous(), self.frozen())
            return output
        channels = [part.shape[1] for part in parts]
        output = parts[0].new_empty(len(parts[0]), sum(channels))  # (P, sum of C_i)
        frozen = self.frozen()
        tensors = zip(*(tensor.split(channels) for tensor in frozen[:4]))
        norms = [FrozenNorm(*four, frozen.eps) for four in tensors]  # one for each part
        if kernels is not None:
            for target, part, norm in zip(output.split(channels, dim=1), parts, norms):
                kernels.norm_relu_(target, part.contiguous(), norm)
            return output
        # rows that stay in the cache: the concatenation of the parts is never made
        step = max(1, chunk_bytes(output.device.type) // (4 * max(1, output.shape[1])))
        for start in range(0, len(output), step):
            rows = slice(start, start + step)
            normed = [
                F.relu_(F.batch_norm(part[rows], n.mean, n.variance, n.weight, n.bias, eps=n.eps))
                for part, n in zip(parts, norms)
            ]
            torch.cat(normed, dim=1, out=output[rows])
        return output

    def frozen(self) -> FrozenNorm:
        """The norm as inference applies it."""
        norm = self.norm
        return FrozenNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): norm, ReLU, 3x3, twice; a
    1x1 skip where channels change."""

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
        """Features (P,C), or several (P,C_i) that stand for their concatenation -> (P,C_out)."""
        x = self.act1(features)
        skip = features if self.skip is None else self._project(features)
        x = self.conv1(x, grid, level, norm=self.act2)
        return self.conv2(x, grid, level, residual=skip)

    def _project(self, features: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The 1x1 skip, (P,C_out)."""
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
