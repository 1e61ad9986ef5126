# SPDX-License-Identifier: Apache-2.0
"""Masks of selected pixels for `benchmark_sparse.py`: read, generated, grown, shrunk and tiled.

The selector works at half resolution or less, so that masks consist of blocks; 2x2 ones here.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from sparse_refine.data.image_files import label_extensions, list_images


def read_masks(paths: list[str]) -> dict[str, np.ndarray]:
    """Name -> (H,W) bool, true where a pixel is not 0, of files or of all images of folders.

    Raises:
        ValueError: names the file, or the folder, and what is wrong with it.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = list_images(path, label_extensions()).files
            if not found:
                raise ValueError(f"{path}: a folder without an image of a lossless kind")
            files += found
        else:
            files.append(path)
    return {file.name: _read(file) for file in files}


def _read(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            mask = np.asarray(image)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as an image ({error})") from error
    if mask.ndim != 2:
        raise ValueError(f"{file}: is {mask.shape}, a mask is (height, width): one channel")
    if min(mask.shape) < 8:
        raise ValueError(f"{file}: is {mask.shape}, smaller than 8 x 8 pixels")
    if not mask.any():
        raise ValueError(f"{file}: all {mask.size} pixels are 0, so that no pixel is selected")
    return mask != 0


def synthetic_mask(
    height: int = 1024, width: int = 2048, density: float = 0.12, seed: int = 0
) -> np.ndarray:
    """(H,W) bool: a band around the borders of random regions, as uncertainty has it."""
    noise = np.random.default_rng(seed).normal(size=(height // 2, width // 2)).astype(np.float32)
    regions = cv2.GaussianBlur(noise, (0, 0), max(1.0, height / 32)) > 0
    borders = regions & (cv2.erode(regions.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
    return at_density(_blocks_to_pixels(borders), density)


def at_density(mask: np.ndarray, density: float) -> np.ndarray:
    """The mask shrunk or grown to a share of its pixels: 2x2 blocks are ranked by their distance to
    its edge, negative inside, and the first of them are kept. Sides must be even, or lose a pixel.
    """
    blocks = mask[: mask.shape[0] // 2 * 2 : 2, : mask.shape[1] // 2 * 2 : 2]
    inside = blocks.astype(np.uint8)
    distance = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    distance -= cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    kept = np.zeros(blocks.size, bool)
    order = np.argsort(distance, axis=None, kind="stable")  # the same blocks on every machine
    kept[order[: max(1, round(density * blocks.size))]] = True
    return _blocks_to_pixels(kept.reshape(blocks.shape))


def tiled(masks: list[np.ndarray], side: int) -> np.ndarray:
    """side x side tiles: the masks in turn, those of another size than the first left out."""
    masks = [mask for mask in masks if mask.shape == masks[0].shape]
    tiles = [masks[i % len(masks)] for i in range(side * side)]
    return np.block([tiles[row * side : (row + 1) * side] for row in range(side)])


def sites_of(mask: np.ndarray, device: torch.device) -> torch.Tensor:
    """(P,3) int64 (0, y, x) in raster order."""
    y, x = (torch.from_numpy(axis) for axis in mask.nonzero())
    return torch.stack([torch.zeros_like(y), y, x], dim=1).to(device)


def neighbours_present(mask: np.ndarray) -> float:
    """Share of the nine pixels around and at a site that are sites, over all sites."""
    counts = cv2.boxFilter(
        mask.astype(np.float32), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return float(counts[mask].mean()) / 9


def _blocks_to_pixels(blocks: np.ndarray) -> np.ndarray:
    return blocks.repeat(2, 0).repeat(2, 1)
