# SPDX-License-Identifier: Apache-2.0
"""What precision convolutions compute in, as torch's own switches say."""

from __future__ import annotations

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes in on this kind of device, None where it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def tf32_allowed() -> bool:
    """Whether convolutions in float32 may round their inputs to TF32 (10 bits of mantissa), as
    cuDNN's do by default. The sparse ones follow the same switch of torch."""
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(convolutions, "fp32_precision"):  # torch 2.9
        return convolutions.fp32_precision == "tf32"
    return torch.backends.cudnn.allow_tf32
