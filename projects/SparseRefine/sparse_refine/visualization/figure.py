# SPDX-License-Identifier: Apache-2.0
"""The figure of what refinement did to an image, beside its labels. For images without labels, and
for many of them: panel.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import read_image, read_labels
from ..results import Refinement
from .layout import crop, draw_window, fit_tile, lay_out, legend_of
from .pictures import densest_window, entropy_picture, overlay, selected_picture, write_picture

_WHITE = (255, 255, 255)


def draw(path: str | Path, model, dataset_name: str, position: int, image_format: str) -> None:
    """Run SparseRefine on the image at `position` of a registered data set and save its figure."""
    record = DatasetCatalog.get(dataset_name)[position]
    metadata = MetadataCatalog.get(dataset_name)
    image = read_image(record["file_name"], format=image_format)
    with torch.inference_mode():
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())  # (3,H,W)
        refinement = model([{"image": tensor}])[0]["refinement"]
    figure = refinement_figure(
        image if image_format == "RGB" else image[..., ::-1],
        refinement,
        read_labels(record["sem_seg_file_name"]),
        metadata.stuff_classes,
        metadata.stuff_colors,
    )
    write_picture(path, figure)


def refinement_figure(
    image: np.ndarray,
    refinement: Refinement,
    truth: np.ndarray,
    class_names: Sequence[str],
    colors,
    tile: int = 480,
) -> np.ndarray:
    """Image, coarse, entropy, refined pixels, SparseRefine and ground truth; below them the window
    in which refinement improved most.

    Args:
        image: (H,W,3) uint8 RGB.
        refinement: of that image.
        truth: (H,W) labels; one without a colour, such as the ignore label, shows the image.
        colors: (R,G,B) a class.
        tile: longest side of a tile in pixels. The window is a tile wide and two thirds as high,
            pixel for pixel; of a small image half of each side, enlarged by a whole factor.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    labels = {kind: refinement.label_map(kind).cpu().numpy() for kind in ("coarse", "fused")}
    entropy = refinement.entropy.float().cpu().numpy()  # (h,w) nats
    pictures = {
        "image": image,
        "coarse prediction": overlay(image, labels["coarse"], colors),
        f"entropy, 0 to {math.log(len(colors)):.2f} nats": entropy_picture(
            entropy, truth.shape, len(colors)
        ),
        f"refined pixels: {100 * refinement.selected_fraction:.1f} %": selected_picture(
            image, refinement.selected().cpu().numpy()
        ),
        "SparseRefine": overlay(image, labels["fused"], colors),
        "ground truth": overlay(image, truth, colors),
    }
    window = tuple(
        max(1, min(side, whole // 2)) for side, whole in zip((tile * 2 // 3, tile), truth.shape)
    )
    corner = best_window(labels["coarse"], labels["fused"], truth, window)
    tiles = [(title, fit_tile(picture, tile)) for title, picture in pictures.items()]
    for _, small in tiles:
        draw_window(small, corner, window, truth.shape, _WHITE)
    details = [
        (f"{title.split(':')[0].split(',')[0]}, close up", fit_tile(crop(p, corner, window), tile))
        for title, p in pictures.items()
    ]
    return lay_out(tiles + details, legend_of(class_names, colors, truth, labels["fused"]))


def best_window(
    coarse: np.ndarray, fused: np.ndarray, truth: np.ndarray, size: tuple[int, int]
) -> tuple[int, int]:
    """Top left corner of the window (height, width) with the most improved pixels less degraded
    ones: wrong before and right after, less right before and wrong after."""
    # (H,W) of 1 improved, -1 degraded, 0 else; where the truth is ignored nothing equals it
    return densest_window((fused == truth).astype(np.float32) - (coarse == truth), size)
