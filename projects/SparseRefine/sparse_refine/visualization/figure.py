# SPDX-License-Identifier: Apache-2.0
"""The figure of what refinement did to an image, beside the truth. For images without truth, and
for many of them: panel.py."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import read_image, read_labels
from ..storage.files import write_whole
from .pictures import densest_window, overlay, selected_picture


def best_window(
    coarse: np.ndarray, fused: np.ndarray, truth: np.ndarray, size: tuple[int, int]
) -> tuple[int, int]:
    """Top left corner of the window (height, width) in which refinement mended the most pixels.

    Mended: right after and wrong before, less those that were right before and wrong after.
    """
    return densest_window((fused == truth).astype(np.float32) - (coarse == truth), size)


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
    uncertain = refinement.entropy.cpu().numpy()
    uncertain = cv2.resize(uncertain, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
    panels = {
        "image": image,
        "coarse prediction": overlay(image, labels["coarse"], colors),
        f"entropy, 0..{uncertain.max():.2f} nats": uncertain,
        f"refined pixels: {100 * refinement.selected_fraction:.1f} %": selected_picture(
            image, refinement.selected().cpu().numpy()
        ),
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
