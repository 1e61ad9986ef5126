# SPDX-License-Identifier: Apache-2.0
"""A feature map that is known at its active cells alone: the form of a network at inference."""

from __future__ import annotations

import torch

from .cells import Cells, Resolutions
from .partial_tensor import PartialTensor
from .trace import Trace


class SiteTensor(PartialTensor):
    """A map (1,C,H,W) that is known at its active cells.

    Args:
        values: (P,C), at the active cells.
        cells: P active cells of the map.
        resolutions: the cells of other strides.
        trace, pad: see `PartialTensor`.
    """

    def __init__(
        self,
        values: torch.Tensor,
        cells: Cells,
        resolutions: Resolutions,
        trace: Trace,
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    ):
        super().__init__(values, trace, pad)
        self.cells, self.resolutions = cells, resolutions

    def like(self, values: torch.Tensor, cells: Cells | None = None) -> SiteTensor:
        """Other values (P,C), at the same cells or at others, without padding."""
        cells = self.cells if cells is None else cells  # none at all is false in Python
        return SiteTensor(values, cells, self.resolutions, self.trace)

    def with_pad(self, pad: tuple[int, int, int, int]) -> SiteTensor:
        return SiteTensor(self.values, self.cells, self.resolutions, self.trace, pad)

    @property
    def stride(self) -> int:
        return self.cells.stride

    @property
    def map_size(self) -> tuple[int, int]:
        return self.cells.size

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    def each_channel(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[None]  # (1,C)

    def has_cells_of(self, other: PartialTensor) -> bool:
        return isinstance(other, SiteTensor) and self.cells is other.cells
