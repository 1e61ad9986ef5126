# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on a pixel grid. Knows nothing of segmentation.

`build_grid(backend, sites, levels, downsample)` makes a grid, the one interface that layers
see; `SparseUNet` is written on it once and runs on every engine with the same parameters.
"""

from __future__ import annotations

from ..sites import Sites
from .patches import Patches
from .pyramid import Pyramid
from .torch_engine import TorchGrid
from .unet import PRESETS, SparseUNet

BACKENDS = ("auto", "torch", "minkowski")

__all__ = ["BACKENDS", "PRESETS", "Patches", "Pyramid", "SparseUNet", "TorchGrid", "build_grid"]


def build_grid(
    backend: str,
    sites: Sites,
    levels: int,
    downsample: str = "floor",
):
    """The grid of `sites` for one engine.

    Args:
        backend: "torch", "minkowski", or "auto" (minkowski on a CUDA device where it is installed).
        sites: of the full resolution.
        levels: resolutions, the full one included.
        downsample: "floor" or "reach", where coarser levels have their sites (see `Pyramid`).

    Raises:
        ImportError: minkowski was asked for and is not installed.
        ValueError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"MODEL.SPARSE_REFINE.EXTRACTOR.BACKEND is {backend!r}: one of {BACKENDS}")
    pyramid = Pyramid(sites, levels, downsample)
    if backend == "torch" or (backend == "auto" and sites.device.type != "cuda"):
        return TorchGrid(pyramid)
    from .minkowski_engine import MinkowskiGrid, minkowski_available

    if backend == "auto" and not minkowski_available(cuda=True):
        return TorchGrid(pyramid)
    return MinkowskiGrid(pyramid)
