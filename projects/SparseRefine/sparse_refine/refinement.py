# SPDX-License-Identifier: Apache-2.0
"""What SparseRefine did to an image: the record that evaluators and pictures are made from."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Refinement:
    """One image's predictions, without any K x H x W tensor.

    `labels` (H,W) integer: the fused label map, at the size of the image that the model was given.
    `sites` (P,2) int64: (y, x) of the selected pixels, in raster order.
    `coarse`, `refined`, `fused` (P,) integer: the three predictions at the sites; everywhere else
    all three are the coarse one. `entropy` (h,w) float: of the coarse prediction, in nats.
    """

    labels: torch.Tensor
    sites: torch.Tensor
    coarse: torch.Tensor
    refined: torch.Tensor
    fused: torch.Tensor
    entropy: torch.Tensor

    @property
    def selected_fraction(self) -> float:
        """Selected pixels over all pixels, 0..1."""
        return len(self.sites) / self.labels.numel()

    def selected(self) -> torch.Tensor:
        """(H,W) bool: which pixels were looked at again."""
        mask = torch.zeros_like(self.labels, dtype=torch.bool)
        mask[self.sites[:, 0], self.sites[:, 1]] = True
        return mask

    def label_map(self, kind: str) -> torch.Tensor:
        """(H,W) labels with the "coarse", "refined" or "fused" prediction put in at the sites."""
        if kind == "fused":
            return self.labels
        if kind not in ("coarse", "refined"):
            raise ValueError(f"kind is {kind!r}: one of 'coarse', 'refined', 'fused'")
        labels = self.labels.clone()
        labels[self.sites[:, 0], self.sites[:, 1]] = getattr(self, kind)
        return labels
