# SPDX-License-Identifier: Apache-2.0
"""The sparse residual UNet (paper, section 3.3), written once for every engine.

Shapes: P sites, P_l of them at level l (0 is the full resolution), C_l channels there.
"""

from __future__ import annotations

import torch
from torch import nn

from .layers import NormReLU, ResidualBlock, SparseConv2d

# name -> (channels a level, full resolution first; residual blocks a level, down and up).
# Parameters with a 3-channel stem: paper 79.33 M (the release's size), base 2.97 M, small 0.74 M.
PRESETS = {
    "paper": ((32, 64, 128, 256, 512, 1024), 2),
    "base": ((32, 64, 128, 256), 1),
    "small": ((16, 32, 64, 128), 1),
}


class SparseUNet(nn.Module):
    """Features (P,C_in) at the sites of a grid -> (P,C_0), after a last norm and ReLU.

    Down: residual blocks, norm, ReLU, 3x3 of stride 2. Up: the transpose of that, concatenation
    with the skip, residual blocks. Parameters do not depend on the engine.

    Args:
        in_channels: C_in.
        channels: a level, full resolution first; the grid must have as many levels.
        blocks: residual blocks a level on the way down and again on the way up.
        norm: "BN" or "SyncBN".

    Raises:
        ValueError: no level, a width or a number of blocks below 1, or an unknown norm.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...] | list[int],
        blocks: int,
        norm: str = "BN",
    ):
        super().__init__()
        if not channels or min(channels) < 1 or blocks < 1:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.CHANNELS is {list(channels)} and BLOCKS {blocks}: "
                "both need numbers of at least 1"
            )
        self.levels = len(channels)
        self.stem = SparseConv2d(in_channels, channels[0])
        self.encoders = nn.ModuleList(_stage(width, width, blocks, norm) for width in channels)
        steps = list(zip(channels, channels[1:]))
        self.before_down = nn.ModuleList(NormReLU(fine, norm) for fine, _ in steps)
        self.downs = nn.ModuleList(SparseConv2d(fine, coarse, "down") for fine, coarse in steps)
        self.before_up = nn.ModuleList(NormReLU(coarse, norm) for _, coarse in steps)
        self.ups = nn.ModuleList(SparseConv2d(coarse, fine, "up") for fine, coarse in steps)
        self.decoders = nn.ModuleList(_stage(2 * fine, fine, blocks, norm) for fine, _ in steps)
        self.last = NormReLU(channels[0], norm)

    def forward(self, features: torch.Tensor, grid) -> torch.Tensor:
        x = self.stem(grid.enter(features), grid, 0)
        skips = []
        for level in range(self.levels):
            if level > 0:
                x = self.downs[level - 1](self.before_down[level - 1](x), grid, level - 1)
            for block in self.encoders[level]:
                x = block(x, grid, level)  # (P_l,C_l)
            skips.append(x)
        skips.pop()  # the coarsest level is x itself
        for level in range(self.levels - 2, -1, -1):
            x = self.ups[level](self.before_up[level](x), grid, level)
            x = (skips.pop(), x)  # stands for their concatenation (P_l, 2 C_l), which is not made
            for block in self.decoders[level]:
                x = block(x, grid, level)
        return grid.leave(self.last(x))


def _stage(in_channels: int, out_channels: int, blocks: int, norm: str) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(in_channels if i == 0 else out_channels, out_channels, norm)
        for i in range(blocks)
    )
