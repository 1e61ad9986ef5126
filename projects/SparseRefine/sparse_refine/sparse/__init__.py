# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on a pixel grid. Knows nothing of segmentation.

Features are a matrix (P,C) with a row for each site. A submanifold convolution (Graham and van der
Maaten, arXiv 1706.01307) has outputs at the sites alone, so that they stay as sparse as they were.

`build_grid(backend, sites, levels, downsample)` makes a grid, the one interface that layers
see; `SparseUNet` is written on it once and runs on every engine with the same parameters.

    pyramid.py           sites of each level, and the map from pixels to rows
    kernel_map.py        which input rows each output row reads
    functional.py        the convolution and its gradients: gather, multiply (products.py, cache.py)
    triton_*.py          the same on a GPU in one kernel
    torch_engine.py      a grid on the above; minkowski_engine.py, one on MinkowskiEngine
    layers.py, unet.py   the network (norm.py); patches.py, patches of pixels as its sites
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
    """The grid of `sites` for one engine: a `TorchGrid`, or what has its methods.

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
