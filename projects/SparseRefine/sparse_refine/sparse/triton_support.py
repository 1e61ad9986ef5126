# SPDX-License-Identifier: Apache-2.0
"""Where Triton's kernels can be used.

Triton comes with PyTorch's builds for Linux. Where it is missing or does not work, on older GPUs
and in double precision a GPU gathers and multiplies as a CPU does; with the environment variable
SPARSE_REFINE_TRITON=0 on every GPU.
"""

from __future__ import annotations

import functools
import logging
import os

import torch

logger = logging.getLogger(__name__)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_for(features: torch.Tensor):
    """The module `triton_launch` where its kernels can compute with these features, else None."""
    if features.device.type != "cuda" or features.dtype not in _TYPES:
        return None
    return _kernels(features.device.index)


@functools.cache
def _kernels(device: int):
    # TF32 and bfloat16 came with Ampere; AMD's GPUs have not been tried
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    if os.environ.get("SPARSE_REFINE_TRITON") == "0":
        return None
    try:
        import triton

        version = triton.__version__
        if tuple(int(part) for part in version.split(".")[:2]) < (3, 3):
            raise ImportError(f"its version is {version}: 3.3 is needed, which torch 2.7 brings")
        from . import triton_launch

        triton_launch.try_one(device)
    except Exception as error:  # of any kind: Triton looks for a C compiler, writes to disk ...
        logger.warning(
            "Sparse convolutions run several times slower on this GPU than they could: Triton does "
            f"not work here ({type(error).__name__}: {error}). It is the package triton (on "
            "Windows triton-windows) and needs a C compiler and a home folder to write to. "
            "SPARSE_REFINE_TRITON=0 in the environment does without it, and without this line."
        )
        return None
    return triton_launch
