# SPDX-License-Identifier: Apache-2.0
"""The engine in plain PyTorch: always there, on CPU and GPU, with gradients.

An engine is a grid class with these members; layers see nothing else of it.
"""

from __future__ import annotations

import torch

from .functional import sparse_conv
from .kernel_map import KernelMap, down_map, submanifold_map
from .pyramid import Pyramid


class TorchGrid:
    """Convolutions over a pyramid of sites; kernel maps are made once and shared by all layers.

    Features are (P_l,C) matrices. At level 0, before `enter` and after `leave`, row i belongs to
    site i of the pyramid; between them the order is the engine's own.
    """

    def __init__(self, pyramid: Pyramid):
        self.pyramid = pyramid
        self._submanifold: dict[int, KernelMap] = {}
        self._down: dict[int, KernelMap] = {}

    def enter(self, features: torch.Tensor) -> torch.Tensor:
        """Features in the order of the sites -> in the engine's order."""
        return features

    def leave(self, features: torch.Tensor) -> torch.Tensor:
        """The way back of `enter`."""
        return features

    def submanifold(self, features: torch.Tensor, weight: torch.Tensor, level: int):
        """3x3, stride 1: (P_l,C_in), weight (9,C_in,C_out) -> (P_l,C_out)."""
        if level not in self._submanifold:
            self._submanifold[level] = submanifold_map(self.pyramid.levels[level])
        return sparse_conv(features, weight, self._submanifold[level])

    def down(self, features: torch.Tensor, weight: torch.Tensor, level: int):
        """3x3, stride 2: (P_l,C_in) -> (P_{l+1},C_out)."""
        return sparse_conv(features, weight, self._down_map(level))

    def up(self, features: torch.Tensor, weight: torch.Tensor, level: int):
        """The transpose of `down`, 3x3, stride 2: (P_{l+1},C_in) -> (P_l,C_out)."""
        return sparse_conv(features, weight, self._down_map(level).transposed)

    def _down_map(self, level: int) -> KernelMap:
        if level not in self._down:
            self._down[level] = down_map(self.pyramid, level)
        return self._down[level]
