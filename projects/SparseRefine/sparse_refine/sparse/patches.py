# SPDX-License-Identifier: Apache-2.0
"""Patches of pixels as the sites of a coarser grid: fewer sites, each with more features."""

from __future__ import annotations

import torch

from .pyramid import Level


class Patches:
    """Square patches of `side` pixels that hold sites: a coarser grid whose cells have the pixels'
    features side by side, as a vision transformer's patches do.

    A base at a quarter of the resolution selects blocks of 4x4 pixels, so patches of 2 are full and
    a quarter in number. Pixels of a patch that were not selected are zeros.

    Args:
        sites: (P,3) int64 (image, y, x), unique, raster order in each image.
        sizes: (H,W) of each image.

    Attributes:
        sites: (N,3) int64, the patches, in raster order. sizes: of the images, in patches.
    """

    def __init__(self, sites: torch.Tensor, sizes: list[tuple[int, int]], side: int):
        self.side = side
        self.sizes = [(-(-height // side), -(-width // side)) for height, width in sizes]
        image, y, x = sites.unbind(1)
        cells = image, y // side, x // side
        level = Level(sites[:0], self.sizes)
        occupied = torch.zeros(level.canvas, dtype=torch.bool, device=sites.device)
        level = level.filled(occupied.index_fill_(0, level.position(*cells), True))
        self.sites = level.sites
        row = level.rows(level.position(*cells)).long()
        self._place = row * side**2 + y % side * side + x % side

    def gather(self, features: torch.Tensor) -> torch.Tensor:
        """(P,C) of the pixels -> (N, side*side*C) of the patches."""
        cells, channels = len(self.sites) * self.side**2, features.shape[1]
        pixels = features.new_zeros(cells, channels).index_copy(0, self._place, features)
        return pixels.view(len(self.sites), self.side**2 * channels)

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """(N, side*side*C) of the patches -> (P,C) of the pixels."""
        pixels = self.side**2
        return values.reshape(len(values) * pixels, values.shape[1] // pixels)[self._place]
