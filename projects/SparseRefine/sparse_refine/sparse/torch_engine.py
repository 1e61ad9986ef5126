# SPDX-License-Identifier: Apache-2.0
"""The engine on PyTorch alone: always there, on CPU and GPU, with gradients.

An engine is a class of grids with these five methods; layers see nothing else of it. Shapes: P_l
sites of level l, 0 the full resolution.
"""

from __future__ import annotations

import torch

from .functional import sparse_conv
from .kernel_map import KernelMap, down_map, submanifold_map
from .products import best_form
from .pyramid import Pyramid


class TorchGrid:
    """Convolutions over a pyramid of sites; kernel maps are made once and shared by all layers.

    Features are (P_l,C) matrices. At level 0, before `enter` and after `leave`, row i belongs to
    site i of the pyramid; between them the order is the engine's own.
    """

    def __init__(self, pyramid: Pyramid):
        self.pyramid = pyramid
        self._submanifold: dict[tuple[int, str], KernelMap] = {}
        self._down: dict[int, KernelMap] = {}

    def enter(self, features: torch.Tensor) -> torch.Tensor:
        """Features (P_0,C) in the order of the sites -> in the engine's order."""
        return features

    def leave(self, features: torch.Tensor) -> torch.Tensor:
        """The inverse of `enter`."""
        return features

    def submanifold(self, features: torch.Tensor, weight: torch.Tensor, level: int, **epilogue):
        """3x3, stride 1: (P_l,C_in), weight (9,C_in,C_out) -> (P_l,C_out).

        Here and below `epilogue` is what follows, relu(norm(convolution)) + residual: norm, a
        `FrozenNorm`, at inference alone; relu, a bool; residual, of the output's shape.
        """
        sites = self.pyramid.levels[level]
        form = best_form(sites, weight)
        if (level, form) not in self._submanifold:
            self._submanifold[level, form] = submanifold_map(sites, form)
        return sparse_conv(features, weight, self._submanifold[level, form], **epilogue)

    def down(self, features: torch.Tensor, weight: torch.Tensor, level: int, **epilogue):
        """3x3, stride 2: (P_l,C_in) -> (P_{l+1},C_out)."""
        return sparse_conv(features, weight, self._down_map(level), **epilogue)

    def up(self, features: torch.Tensor, weight: torch.Tensor, level: int, **epilogue):
        """The transpose of `down`, 3x3, stride 2: (P_{l+1},C_in) -> (P_l,C_out)."""
        return sparse_conv(features, weight, self._down_map(level).transposed, **epilogue)

    def _down_map(self, level: int) -> KernelMap:
        if level not in self._down:
            self._down[level] = down_map(self.pyramid, level)
        return self._down[level]
