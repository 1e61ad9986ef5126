# SPDX-License-Identifier: Apache-2.0
"""A batch normalisation at inference, as an engine takes it to fold it in."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Statistics(NamedTuple):
    """weight, bias, running mean, running variance: (C,) each; (x - mean) / sqrt(variance + eps) *
    weight + bias."""

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    eps: float

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(C,) each: the normalisation is x * scale + shift."""
        scale = self.weight * (self.variance + self.eps).rsqrt()
        return scale, self.bias - self.mean * scale
