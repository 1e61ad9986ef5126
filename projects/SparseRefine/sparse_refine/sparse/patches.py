# SPDX-License-Identifier: Apache-2.0
"""Patches of pixels as the sites of a coarser grid: fewer sites, each with more features."""

from __future__ import annotations

import torch

from ..sites import Sites
from .pyramid import Level


class Patches:
    """Square patches of `side` pixels that hold sites: a coarser grid whose sites have the pixels'
    features side by side, as the patches of a vision transformer.

    A base at a quarter of the resolution selects blocks of 4x4 pixels: patches of 2x2 are then full
    and a quarter in number. Pixels of a patch that were not selected are zeros.

    Args:
        sites: of the pixels, P.
        side: of a patch, in pixels, >= 1.

    Attributes:
        sites: the patches, N, as pixels of images that are smaller by `side`.
    """

    def __init__(self, sites: Sites, side: int):
        self.side = side
        sizes = [(-(-height // side), -(-width // side)) for height, width in sites.sizes]
        image, y, x = sites.coordinates.unbind(1)
        cells = image, y // side, x // side
        level = Level(sites.coordinates[:0], sizes)
        occupied = torch.zeros(level.canvas, dtype=torch.bool, device=sites.device)
        level = level.filled(occupied.index_fill_(0, level.position(*cells), True))
        self.sites = Sites.ordered(level.sites, sizes)
        row = level.rows(level.position(*cells)).long()  # (P,) each pixel's patch
        self._place = row * side**2 + y % side * side + x % side  # (P,) in (N side side)

    def gather(self, features: torch.Tensor) -> torch.Tensor:
        """(P,C) of the pixels -> (N, side*side*C) of the patches."""
        cells, channels = len(self.sites) * self.side**2, features.shape[1]
        pixels = features.new_zeros(cells, channels).index_copy(0, self._place, features)
        return pixels.view(len(self.sites), self.side**2 * channels)

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """(N, side*side*C) of the patches -> (P,C) of the pixels, the inverse of `gather`."""
        pixels = self.side**2
        return values.reshape(len(values) * pixels, values.shape[1] // pixels)[self._place]
