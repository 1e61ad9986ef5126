# SPDX-License-Identifier: Apache-2.0
"""Pictures of what refinement did to an image: a panel for any image, and a figure beside the
truth."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw, ImageFont

from .data import read_image, read_labels
from .files import write_whole
from .pictures import (
    changed_picture,
    distinct_colors,
    entropy_picture,
    overlay,
    selected_picture,
    write_label_map,
    write_picture,
)
from .refinement import Refinement

__all__ = [
    "best_window",
    "changed_picture",
    "densest_window",
    "distinct_colors",
    "draw",
    "entropy_picture",
    "overlay",
    "refinement_panel",
    "save_refinement_figure",
    "selected_picture",
    "write_label_map",
    "write_picture",
]

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
    selected = np.zeros(labels["fused"].shape, dtype=bool)
    y, x = refinement.sites.cpu().numpy().T
    selected[y, x] = True
    changed = labels["coarse"] != labels["fused"]
    entropy = refinement.entropy.float().cpu().numpy()
    pictures = {
        "image": image,
        "coarse": overlay(image, labels["coarse"], colors),
        f"entropy, 0 to {math.log(len(colors)):.2f} nats": entropy_picture(
            entropy, selected.shape, len(colors)
        ),
        f"selected: {100 * selected.mean():.2f} %": selected_picture(image, selected),
        "refined": overlay(image, labels["fused"], colors),
        f"changed: {100 * changed.mean():.2f} %": changed_picture(
            image, labels["coarse"], labels["fused"], colors
        ),
    }
    masks = {title: changed for title in pictures if title.startswith("changed")}
    tiles = [fit_tile(picture, tile, masks.get(title)) for title, picture in pictures.items()]
    titles = list(pictures)
    if close_up and max(changed.shape) > tile:
        top, left = densest_window(changed.astype(np.float32), (tile, tile))
        window = slice(top, top + tile), slice(left, left + tile)
        for picture in tiles:
            draw_window(picture, (top, left, tile), changed.shape)
        tiles += [np.ascontiguousarray(picture[window]) for picture in pictures.values()]
        titles += [f"{title.split(':')[0].split(',')[0]}, close up" for title in pictures]
    shares = np.bincount(labels["fused"].ravel(), minlength=len(colors))
    order = [int(index) for index in np.argsort(-shares, kind="stable") if shares[index]]
    legend = [(metadata.stuff_classes[index], tuple(colors[index])) for index in order]
    return lay_out(tiles, titles, legend)


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
    kept = np.where(keep[..., None], picture, 0).astype(np.float32)
    kept = cv2.resize(kept, size, interpolation=cv2.INTER_AREA)
    found = weight > 0
    small[found] = (kept[found] / weight[found][:, None]).clip(0, 255)
    return small


def draw_window(picture: np.ndarray, window: tuple[int, int, int], full: tuple[int, int]) -> None:
    """A frame around the window (top, left, side) of an image of size `full`, in place."""
    top, left, side = window
    scale_y, scale_x = picture.shape[0] / full[0], picture.shape[1] / full[1]
    corner = round(left * scale_x), round(top * scale_y)
    other = round((left + side) * scale_x) - 1, round((top + side) * scale_y) - 1
    cv2.rectangle(picture, corner, other, _INK, 2)


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


def best_window(
    coarse: np.ndarray, fused: np.ndarray, truth: np.ndarray, size: tuple[int, int]
) -> tuple[int, int]:
    """Top left corner of the window (height, width) in which refinement mended the most pixels.

    Mended: right after and wrong before, less those that were right before and wrong after.
    """
    return densest_window((fused == truth).astype(np.float32) - (coarse == truth), size)


def densest_window(weights: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Top left corner of the window (height, width) with the largest sum of `weights` (H,W), float;
    of a window that does not fit, as much as fits."""
    height, width = min(size[0], weights.shape[0]), min(size[1], weights.shape[1])
    total = cv2.integral(weights)
    sums = (
        total[height:, width:]
        - total[:-height, width:]
        - total[height:, :-width]
        + total[:-height, :-width]
    )
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def draw(path: str | Path, model, dataset_name: str, position: int, image_format: str) -> None:
    """Run SparseRefine on the image at `position` of a registered data set and save its figure."""
    record = DatasetCatalog.get(dataset_name)[position]
    metadata = MetadataCatalog.get(dataset_name)
    image = read_image(record["file_name"], format=image_format)
    with torch.inference_mode():
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        refinement = model([{"image": tensor}])[0]["refinement"]
    save_refinement_figure(
        path,
        image if image_format == "RGB" else image[..., ::-1],
        refinement,
        read_labels(record["sem_seg_file_name"]),
        metadata.stuff_classes,
        metadata.stuff_colors,
    )


def save_refinement_figure(
    path: str | Path,
    image: np.ndarray,
    refinement,
    truth: np.ndarray,
    class_names: list[str],
    colors,
    crop: tuple[int, int] = (256, 384),
) -> None:
    """Image, coarse, entropy, selected pixels, refined and truth; below them the crop where
    refinement mended most.

    Args:
        image: (H,W,3) uint8 RGB. truth: (H,W) labels.
        refinement: a `Refinement` of that image.
        colors: RGB a class. crop: (height, width) in pixels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    labels = {kind: refinement.label_map(kind).cpu().numpy() for kind in ("coarse", "fused")}
    selected = np.zeros(truth.shape, dtype=bool)
    y, x = refinement.sites.cpu().numpy().T
    selected[y, x] = True
    uncertain = refinement.entropy.cpu().numpy()
    uncertain = cv2.resize(uncertain, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
    dimmed = (image * 0.35).astype(np.uint8)
    dimmed[selected] = image[selected]
    panels = {
        "image": image,
        "coarse prediction": overlay(image, labels["coarse"], colors),
        f"entropy, 0..{uncertain.max():.2f} nats": uncertain,
        f"refined pixels: {100 * refinement.selected_fraction:.1f} %": dimmed,
        "SparseRefine": overlay(image, labels["fused"], colors),
        "truth": overlay(image, truth, colors),
    }
    top, left = best_window(labels["coarse"], labels["fused"], truth, crop)
    aspect = image.shape[0] / image.shape[1]
    figure, axes = plt.subplots(
        4, 3, figsize=(15, 5 * (2 * aspect + 2 * crop[0] / crop[1]) + 1.4), dpi=100
    )
    for position, (title, panel) in enumerate(panels.items()):
        whole = axes[position // 3][position % 3]
        detail = axes[2 + position // 3][position % 3]
        options = {"cmap": "magma", "vmin": 0, "vmax": uncertain.max()} if panel.ndim == 2 else {}
        whole.imshow(panel, **options)
        whole.add_patch(Rectangle((left, top), crop[1], crop[0], fill=False, color="white", lw=2))
        detail.imshow(panel[top : top + crop[0], left : left + crop[1]], **options)
        whole.set_title(title)
        detail.set_title(f"{title} (crop)")
        whole.axis("off")
        detail.axis("off")
    figure.legend(
        handles=[Patch(color=np.array(c) / 255, label=n) for n, c in zip(class_names, colors)],
        loc="lower center",
        ncol=len(class_names),
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    write_whole(path, lambda temporary: figure.savefig(temporary))
    plt.close(figure)
