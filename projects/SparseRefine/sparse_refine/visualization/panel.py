# SPDX-License-Identifier: Apache-2.0
"""The panel that shows why: one image's coarse, entropy, selected, refined and changed pixels in
one picture. For images without labels, folders and videos; beside the labels: figure.py."""

from __future__ import annotations

import math

import numpy as np

from ..results import Refinement
from .layout import crop, draw_window, fit_tile, lay_out, legend_of
from .pictures import (
    changed_picture,
    densest_window,
    entropy_picture,
    overlay,
    selected_picture,
)


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
    selected = refinement.selected().cpu().numpy()  # (H,W) bool
    changed = labels["coarse"] != labels["fused"]
    entropy = refinement.entropy.float().cpu().numpy()  # (h,w) nats
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
    window = (tile, tile)
    close_up = close_up and max(changed.shape) > tile
    corner = densest_window(changed.astype(np.float32), window) if close_up else (0, 0)
    tiles, details = [], []
    for title, make in makers.items():
        picture = make()
        small = fit_tile(picture, tile, changed if title.startswith("changed") else None)
        tiles.append((title, small))
        if close_up:
            draw_window(small, corner, window, changed.shape)
            name = title.split(":")[0].split(",")[0]
            details.append((f"{name}, close up", crop(picture, corner, window)))
    legend = legend_of(metadata.stuff_classes, colors, labels["fused"])
    return lay_out(tiles + details, legend)
