# SPDX-License-Identifier: Apache-2.0
"""How exactly a GPU may multiply."""

from __future__ import annotations

import torch


def tf32_allowed() -> bool:
    """Whether convolutions in float32 may round their inputs to TF32, as cuDNN's may by default."""
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(convolutions, "fp32_precision"):  # torch 2.9
        return convolutions.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32
