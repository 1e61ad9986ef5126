# SPDX-License-Identifier: Apache-2.0
"""Labels, entropy, selected and changed pixels as pictures, and pictures and label maps as files.

Images are (H,W,3) uint8 RGB, labels (H,W) integers, colours RGB 0..255 a class.
"""

from __future__ import annotations

import colorsys
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..storage.files import write_whole


def distinct_colors(count: int) -> list[list[int]]:
    """`count` different RGB colours 0..255, the first ones far apart: for classes without any."""
    colors = []
    for index in range(count):
        # steps of the golden ratio never come close to where they were
        hue, light = index * 0.618034 % 1, index % 8 // 2
        color = colorsys.hsv_to_rgb(hue, (0.9, 0.6)[light % 2], (0.95, 0.6)[light // 2])
        colors.append([round(255 * part) for part in color])
    return colors


def overlay(image: np.ndarray, labels: np.ndarray, colors, alpha: float = 0.5) -> np.ndarray:
    """Class colours over an image: (H,W,3) uint8 RGB; a label without a colour leaves the image."""
    palette = np.asarray(colors, dtype=np.uint8)  # (K,3)
    painted = palette[np.minimum(labels, len(palette) - 1)]
    mixed = cv2.addWeighted(image, 1 - alpha, painted, alpha, 0)
    unknown = labels >= len(palette)
    mixed[unknown] = image[unknown]
    return mixed


def write_label_map(path: str | Path, labels: np.ndarray, colors) -> None:
    """Write labels (H,W) as PNG, atomically, with every id kept: `read_labels` reads them back.

    Up to 256 classes it is an indexed PNG of 8 bits with the classes' colours, which viewers show;
    with more a grey one of 16 bits, which has no palette.

    Args:
        labels: integers 0..K-1, or 255 for no class where K <= 255.
        colors: K times (R,G,B), 0..255.

    Raises:
        ValueError: more classes than 16 bits hold, or a label that the file would not keep.
    """
    limit = 256 if len(colors) <= 256 else 65536
    low, high = int(labels.min()), int(labels.max())
    if len(colors) > limit or low < 0 or high >= limit:
        raise ValueError(
            f"{path}: labels from {low} to {high} of {len(colors)} classes do not fit a PNG of "
            f"{'8' if limit == 256 else '16'} bits"
        )
    if limit == 256:
        picture = Image.fromarray(labels.astype(np.uint8))
        # all 256 entries: with fewer Pillow stores 1, 2 or 4 bits, which some readers stretch
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colors)] = colors
        picture.putpalette(palette.tobytes())
    else:
        picture = Image.fromarray(labels.astype(np.uint16))
    write_whole(path, picture.save)


def write_picture(path: str | Path, picture: np.ndarray, quality: int = 92) -> None:
    """Write (H,W,3) uint8 RGB in the format of the path's extension, atomically.

    Raises:
        ValueError: a side is longer than the format holds (JPEG: 65535, WebP: 16383 pixels).
    """
    suffix = Path(path).suffix.lower()
    limit = {".jpg": 65535, ".jpeg": 65535, ".webp": 16383}.get(suffix, 2**31 - 1)
    if max(picture.shape[:2]) > limit:
        raise ValueError(
            f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} pixels, and {suffix} "
            f"holds sides up to {limit}: write PNG"
        )
    options = {"compress_level": 3} if suffix == ".png" else {"quality": quality}
    write_whole(path, lambda temporary: Image.fromarray(picture).save(temporary, **options))


def entropy_picture(entropy: np.ndarray, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Entropy (h,w) in nats -> (H,W,3) uint8 RGB, dark where sure; the scale is 0..ln K, the same
    for every image. `size` is (H,W)."""
    share = entropy / max(math.log(num_classes), 1e-6)  # (h,w); of one class ln K is 0
    grey = (255 * np.clip(share, 0, 1)).astype(np.uint8)
    colored = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[..., ::-1]
    return cv2.resize(colored, size[::-1], interpolation=cv2.INTER_NEAREST)


def selected_picture(image: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """The image, dimmed where it was not looked at again: (H,W,3) uint8 RGB, mask (H,W) bool."""
    dimmed = cv2.convertScaleAbs(image, alpha=0.3)
    dimmed[selected] = image[selected]
    return dimmed


def grey_picture(image: np.ndarray) -> np.ndarray:
    """The image without colours and dimmed, as ground for marks: (H,W,3) uint8 RGB."""
    grey = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), alpha=0.35)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def changed_picture(image: np.ndarray, before: np.ndarray, after: np.ndarray, colors) -> np.ndarray:
    """Where labels (H,W) changed, the colour of the new class; elsewhere the image, dimmed and
    grey. (H,W,3) uint8 RGB."""
    picture = grey_picture(image)
    changed = before != after
    picture[changed] = np.asarray(colors, dtype=np.uint8)[after[changed]]
    return picture


def densest_window(weights: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Top left corner of the window (height, width) with the largest sum of `weights` (H,W), float;
    of a window that does not fit, as much as fits."""
    height, width = min(size[0], weights.shape[0]), min(size[1], weights.shape[1])
    total = cv2.integral(weights)  # (H+1,W+1): sums of all that lies above and to the left
    sums = (
        total[height:, width:]
        - total[:-height, width:]
        - total[height:, :-width]
        + total[:-height, :-width]
    )
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)
