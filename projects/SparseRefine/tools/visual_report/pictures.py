# SPDX-License-Identifier: Apache-2.0
"""Pictures of one image beside its ground truth: a page of tiles, and the report's small ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparse_refine.evaluation import predictions_of
from sparse_refine.visualization.layout import crop, draw_window, fit_tile, lay_out, legend_of
from sparse_refine.visualization.pictures import (
    densest_window,
    entropy_picture,
    grey_picture,
    overlay,
    selected_picture,
)

TILE = 480  # longest side of a page's tile, and of the window that is shown pixel for pixel
THUMBNAIL = 300
# Blue and orange: told apart by those who confuse red and green.
IMPROVED, DEGRADED, STILL_WRONG = (70, 150, 255), (255, 95, 30), (250, 220, 70)
VERDICTS = [
    ("improved: wrong before, right after", IMPROVED),
    ("degraded: right before, wrong after", DEGRADED),
    ("changed, still wrong", STILL_WRONG),
]
FRAMES = {"improved": IMPROVED, "degraded": DEGRADED}
CAPTIONS = {"truth": "ground truth"}  # of other pictures their keys
ALPHA = 0.6  # weight of class colours over the image


@dataclass
class View:
    """One image as it is shown.

    `pictures`: (H,W,3) uint8 RGB by title. `masks`: (H,W) bool, pixels that must not vanish when
    the picture of that title is made small. `counts`: pixels. `legend`: (class name, colour).
    `windows`: top left corner of the TILE x TILE pixels of which most are "improved" or "degraded",
    where there are any and the image is larger than a tile.
    """

    pictures: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    counts: dict[str, int]
    legend: list[tuple]
    windows: dict[str, tuple[int, int]]
    max_entropy: float  # ln K, nats


def view(image: np.ndarray, output: dict, truth: np.ndarray, class_names, colors) -> View:
    """Args:
    image: (H,W,3) uint8 RGB.
    output: of a SparseRefine for it.
    truth: (H,W) labels, K where ignored.
    class_names, colors: K of them.
    """
    maps, sites = predictions_of(output, truth.shape)
    selected = np.zeros(truth.shape, dtype=bool)
    selected.flat[sites] = True
    entropy = output["refinement"].entropy.float().cpu().numpy()
    valid = truth < len(colors)
    wrong = {kind: (maps[kind] != truth) & valid for kind in ("coarse", "fused")}
    improved = wrong["coarse"] & ~wrong["fused"]
    degraded = wrong["fused"] & ~wrong["coarse"]
    still = wrong["fused"] & wrong["coarse"] & (maps["fused"] != maps["coarse"])
    pictures = {
        "image": image,
        "truth": overlay(image, truth, colors, ALPHA),
        "coarse": overlay(image, maps["coarse"], colors, ALPHA),
        "refined": overlay(image, maps["fused"], colors, ALPHA),
        "changes": painted(image, (improved, IMPROVED), (degraded, DEGRADED), (still, STILL_WRONG)),
        "selected": selected_picture(image, selected),
        "entropy": entropy_picture(entropy, truth.shape, len(colors)),
        "errors before": painted(image, (wrong["coarse"], DEGRADED)),
        "errors after": painted(image, (wrong["fused"], DEGRADED)),
    }
    masks = {
        "changes": improved | degraded | still,
        "errors before": wrong["coarse"],
        "errors after": wrong["fused"],
    }
    windows = {}
    if max(truth.shape) > TILE:
        for name, mask in (("improved", improved), ("degraded", degraded)):
            if mask.any():
                windows[name] = densest_window(mask.astype(np.float32), (TILE, TILE))
    counts = {
        "improved": int(improved.sum()),
        "degraded": int(degraded.sum()),
        "selected": len(sites),
        "before": int(wrong["coarse"].sum()),
        "after": int(wrong["fused"].sum()),
    }
    legend = legend_of(class_names, colors, truth, maps["fused"])
    return View(pictures, masks, counts, legend, windows, math.log(len(colors)))


def painted(image: np.ndarray, *layers: tuple[np.ndarray, tuple[int, int, int]]) -> np.ndarray:
    """The image, grey and dimmed, with (mask, colour) layers."""
    picture = grey_picture(image)
    for mask, color in layers:
        picture[mask] = color
    return picture


def page(shown: View) -> np.ndarray:
    """Nine tiles of the whole image, then six of each window, pixel for pixel."""
    pixels = math.prod(shown.pictures["image"].shape[:2])
    counts, share = shown.counts, {k: 100 * n / pixels for k, n in shown.counts.items()}
    titles = {
        "image": "image",
        "coarse": "coarse prediction",
        "refined": "refined prediction (SparseRefine)",
        "truth": "ground truth",
        "errors before": f"errors before: {share['before']:.2f} % of the pixels",
        "errors after": f"errors after: {share['after']:.2f} %",
        "entropy": f"entropy of the coarse one, 0 to {shown.max_entropy:.2f} nats",
        "selected": f"refined pixels: {share['selected']:.2f} %",
        "changes": f"improved {counts['improved']:,}, degraded {counts['degraded']:,} pixels",
    }
    tiles = [
        (title, fit_tile(shown.pictures[key], TILE, shown.masks.get(key)))
        for key, title in titles.items()
    ]
    size = shown.pictures["image"].shape[:2]
    for name, corner in shown.windows.items():
        for _, tile in tiles:
            draw_window(tile, corner, (TILE, TILE), size, FRAMES[name])
    for name, corner in shown.windows.items():
        for key in ("image", "coarse", "refined", "truth", "selected", "changes"):
            title = f"{CAPTIONS.get(key, key)}, most {name} pixels (frame)"
            tiles.append((title, crop(shown.pictures[key], corner, (TILE, TILE))))
    return lay_out(tiles, [*VERDICTS, *shown.legend])


def thumbnails(shown: View, kind: str) -> dict[str, np.ndarray]:
    """Small pictures by caption: the whole image and its changes, then the window where most is
    "improved" or "degraded" (`kind`); of a small image all of it."""
    corner = shown.windows.get(kind)
    size = shown.pictures["image"].shape[:2]
    results = {
        key: fit_tile(shown.pictures[key], THUMBNAIL, shown.masks.get(key))
        for key in ("image", "changes")
    }
    if corner is not None:
        for tile in results.values():
            draw_window(tile, corner, (TILE, TILE), size, FRAMES[kind])
    for key in ("truth", "coarse", "refined", "changes"):
        picture, mask = shown.pictures[key], shown.masks.get(key)
        caption = CAPTIONS.get(key, key)
        if corner is not None:
            picture = crop(picture, corner, (TILE, TILE))
            mask = mask if mask is None else crop(mask, corner, (TILE, TILE))
            caption = f"{caption}, close up"
        elif key == "changes":
            continue
        results[caption] = fit_tile(picture, THUMBNAIL, mask)
    return results
