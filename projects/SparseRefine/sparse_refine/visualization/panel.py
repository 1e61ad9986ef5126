# SPDX-License-Identifier: Apache-2.0
"""The panel that shows why: one image's coarse, entropy, selected, refined and changed pixels in
one picture. Drawn with OpenCV and Pillow, for folders and videos; matplotlib takes seconds."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..results import Refinement
from .pictures import (
    changed_picture,
    densest_window,
    entropy_picture,
    overlay,
    selected_picture,
)

_GAP, _TITLE = 10, 30  # pixels of the panel: between tiles, and of the line above each
_PAPER, _INK = (24, 24, 24), (235, 235, 235)


def refinement_panel(
    image: np.ndarray,
    refinement: Refinement,
    metadata,
    tile: int = 640,
    close_up: bool = True,
) -> np.ndarray:
    """Image, coarse, entropy, selected, refined and changed pixels side by side.

    Args:
        image: (H,W,3) uint8 RGB, as the model was given it.
        refinement: of that image.
        metadata: with `stuff_classes` and `stuff_colors`, such as `SparseRefinePredictor.metadata`.
        tile: longest side of a tile in pixels.
        close_up: for an image larger than a tile, two more rows with the window of `tile` pixels in
            which most labels changed, pixel for pixel; it moves between the frames of a video.

    Returns:
        (height, width, 3) uint8 RGB, of the same size for all images of one size.
    """
    colors = metadata.stuff_colors
    labels = {kind: refinement.label_map(kind).cpu().numpy() for kind in ("coarse", "fused")}
    selected = refinement.selected().cpu().numpy()
    changed = labels["coarse"] != labels["fused"]
    entropy = refinement.entropy.float().cpu().numpy()
    # made one after the other: six pictures of a large image at once are gigabytes
    makers = {
        "image": lambda: image,
        "coarse": lambda: overlay(image, labels["coarse"], colors),
        f"entropy, 0 to {math.log(len(colors)):.2f} nats": lambda: entropy_picture(
            entropy, selected.shape, len(colors)
        ),
        f"selected: {100 * selected.mean():.2f} %": lambda: selected_picture(image, selected),
        "refined": lambda: overlay(image, labels["fused"], colors),
        f"changed: {100 * changed.mean():.2f} %": lambda: changed_picture(
            image, labels["coarse"], labels["fused"], colors
        ),
    }
    titles, tiles, details = list(makers), [], []
    close_up = close_up and max(changed.shape) > tile
    if close_up:
        top, left = densest_window(changed.astype(np.float32), (tile, tile))
        titles += [f"{title.split(':')[0].split(',')[0]}, close up" for title in makers]
    for title, make in makers.items():
        picture = make()
        tiles.append(fit_tile(picture, tile, changed if title.startswith("changed") else None))
        if close_up:
            details.append(np.ascontiguousarray(picture[top : top + tile, left : left + tile]))
            draw_window(tiles[-1], (top, left), (tile, tile), changed.shape)
    ids = labels["fused"].astype(np.uint16)
    counts = cv2.calcHist([ids], [0], None, [len(colors)], [0, len(colors)]).ravel()
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    legend = [(metadata.stuff_classes[index], tuple(colors[index])) for index in order]
    return lay_out(tiles + details, titles, legend)


def fit_tile(picture: np.ndarray, side: int, keep: np.ndarray | None) -> np.ndarray:
    """A picture whose longest side is `side`; a small one is enlarged by a whole factor.

    Pixels of the mask `keep` would vanish among those around them: where there are any under a
    pixel of the result, it is the mean of those alone.
    """
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= side:
        factor = max(1, side // longest)
        return picture.repeat(factor, 0).repeat(factor, 1)
    size = max(1, round(width * side / longest)), max(1, round(height * side / longest))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if keep is None or not keep.any():
        return small
    weight = cv2.resize(keep.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    found = weight > 0
    for channel in range(picture.shape[2]):
        kept = np.where(keep, picture[..., channel], 0).astype(np.float32)
        kept = cv2.resize(kept, size, interpolation=cv2.INTER_AREA)
        small[..., channel][found] = (kept[found] / weight[found]).clip(0, 255)
    return small


def draw_window(
    picture: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, int],
    full: tuple[int, int],
    color: tuple[int, int, int] = _INK,
) -> None:
    """A frame, in place, around the window of `size` (height, width) whose `corner` (top, left) is
    that of an image of size `full`; the picture shows that image at any size."""
    (top, left), (height, width) = corner, size
    scale_y, scale_x = picture.shape[0] / full[0], picture.shape[1] / full[1]
    first = round(left * scale_x), round(top * scale_y)
    last = round((left + width) * scale_x) - 1, round((top + height) * scale_y) - 1
    cv2.rectangle(picture, first, last, color, 2)


def lay_out(tiles: list[np.ndarray], titles: list[str], legend: list[tuple]) -> np.ndarray:
    """Rows of three titled tiles, and a line of class names, as many as fit."""
    font = ImageFont.load_default(16)
    rows = [tiles[start : start + 3] for start in range(0, len(tiles), 3)]
    cell = max(300, *(tile.shape[1] for tile in tiles))
    heights = [max(tile.shape[0] for tile in row) + _TITLE for row in rows]
    size = 3 * cell + 4 * _GAP, sum(heights) + (len(rows) + 1) * _GAP + _TITLE
    paper = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(paper)
    top = _GAP
    for row, height in zip(rows, heights):
        for column, tile in enumerate(row):
            left = _GAP + column * (cell + _GAP)
            pen.text((left, top + 5), titles.pop(0), _INK, font)
            paper.paste(Image.fromarray(tile), (left, top + _TITLE))
        top += height + _GAP
    left = _GAP
    for name, color in legend:
        end = left + 24 + pen.textlength(name, font) + 20
        if end > size[0]:
            break
        pen.rectangle((left, top + 3, left + 16, top + 19), color)
        pen.text((left + 24, top), name, _INK, font)
        left = end
    return np.asarray(paper)
