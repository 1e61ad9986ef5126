# SPDX-License-Identifier: Apache-2.0
"""Titled tiles on one canvas: what panels, figures and the pages of reports are laid out with.

Pictures are (H,W,3) uint8 RGB. Drawn with OpenCV and Pillow: importing matplotlib takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 3
_GAP, _TITLE = 10, 30  # pixels: between tiles, and of the line above each
_BACKGROUND, _TEXT = (24, 24, 24), (235, 235, 235)


def lay_out(tiles: Sequence[tuple[str, np.ndarray]], legend: Sequence[tuple]) -> np.ndarray:
    """Rows of titled tiles, and below them a line of names with their colours, as many as fit.

    Args:
        tiles: (title, picture), row by row.
        legend: (name, (R,G,B)).

    Returns:
        (height, width, 3) uint8 RGB, of one size for all tiles of the same sizes, whatever the
        legend: frames of a video have to agree.
    """
    font = ImageFont.load_default(16)
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    cell = max(300, *(picture.shape[1] for _, picture in tiles))  # room for a title
    heights = [max(picture.shape[0] for _, picture in row) + _TITLE for row in rows]
    width = COLUMNS * cell + (COLUMNS + 1) * _GAP
    canvas = Image.new("RGB", (width, sum(heights) + (len(rows) + 1) * _GAP + _TITLE), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for row, height in zip(rows, heights):
        for column, (title, picture) in enumerate(row):
            left = _GAP + column * (cell + _GAP)
            draw.text((left, top + 5), title, _TEXT, font)
            canvas.paste(Image.fromarray(picture), (left, top + _TITLE))
        top += height + _GAP
    left = _GAP
    for name, color in legend:
        end = left + 24 + draw.textlength(name, font) + 20
        if end > width:
            break
        draw.rectangle((left, top + 3, left + 16, top + 19), color)
        draw.text((left + 24, top), name, _TEXT, font)
        left = end
    return np.asarray(canvas)


def legend_of(class_names: Sequence[str], colors, *label_maps: np.ndarray) -> list[tuple]:
    """(name, colour) of the classes in label maps (H,W), most pixels first; what has no colour,
    such as the ignore label, is left out."""
    classes = len(colors)
    counts = np.zeros(classes)
    for labels in label_maps:
        labels = labels.astype(np.uint16)  # the widest that OpenCV counts
        counts += cv2.calcHist([labels], [0], None, [classes], [0, classes]).ravel()
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    return [(class_names[index], tuple(colors[index])) for index in order]


def fit_tile(
    picture: np.ndarray, side: int, keep: np.ndarray | None = None, enlarge: bool = True
) -> np.ndarray:
    """A copy whose longest side is at most `side`; a small one is enlarged by a whole factor.

    Args:
        keep: (H,W) bool; such pixels would vanish among those around them: where there are any
            under a pixel of the result, it is the mean of those alone.
        enlarge: False leaves a small one as it is.
    """
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= side:
        factor = side // longest if enlarge else 1
        return picture.repeat(factor, 0).repeat(factor, 1)
    size = max(1, round(width * side / longest)), max(1, round(height * side / longest))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)  # mean of the pixels under each
    if keep is None or not keep.any():
        return small
    # sum of kept values over the number of kept pixels; the area's factor cancels out
    weight = cv2.resize(keep.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    found = weight > 0
    for channel in range(picture.shape[2]):
        kept = np.where(keep, picture[..., channel], 0).astype(np.float32)
        kept = cv2.resize(kept, size, interpolation=cv2.INTER_AREA)
        small[..., channel][found] = (kept[found] / weight[found]).clip(0, 255)
    return small


def crop(picture: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A copy of the window of `size` (height, width) whose corner is (top, left)."""
    (top, left), (height, width) = corner, size
    return picture[top : top + height, left : left + width].copy()


def draw_window(
    picture: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, int],
    full: tuple[int, int],
    color: tuple[int, int, int] = _TEXT,
) -> None:
    """A frame, in place, around the window of `size` (height, width) whose `corner` (top, left) is
    that of an image of size `full`; the picture shows that image at any size."""
    (top, left), (height, width) = corner, size
    scale_y, scale_x = picture.shape[0] / full[0], picture.shape[1] / full[1]
    first = round(left * scale_x), round(top * scale_y)
    last = round((left + width) * scale_x) - 1, round((top + height) * scale_y) - 1
    cv2.rectangle(picture, first, last, color, 2)
