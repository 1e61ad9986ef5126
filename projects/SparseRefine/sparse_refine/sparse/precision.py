# SPDX-License-Identifier: Apache-2.0
"""What precision convolutions compute in, as torch's own switches say."""

from __future__ import annotations

import functools
import logging
import time

import torch

logger = logging.getLogger(__name__)


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


@functools.cache
def product_seconds() -> tuple[float, float]:
    """Seconds of one matrix product on this CPU in float32 and in bfloat16, the best of three each:
    (2048, 288) by (288, 32), a 3x3 convolution of 32 channels at 2048 sites. A processor without
    instructions for bfloat16 (AVX2 alone) takes longer in it, by how much depends on the shape.
    """
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(2048, 288, dtype=dtype), torch.ones(288, 32, dtype=dtype)
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, b)
            runs.append(time.perf_counter() - start)
        seconds.append(min(runs))
    return seconds[0], seconds[1]


@functools.cache
def warn_of_slow_bfloat16(asked_by: str) -> None:
    """Say once, with both figures, that bfloat16 does not pay on this CPU, where that is so."""
    single, brain = product_seconds()
    if brain > single:
        logger.warning(
            f"{asked_by}: a matrix product takes this processor {1e3 * brain:.2f} ms in bfloat16 "
            f"and {1e3 * single:.2f} ms in float32. float32 is faster here"
        )
