# SPDX-License-Identifier: Apache-2.0
"""Pictures of one image beside its truth: a page of tiles, and the small ones of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparse_refine.evaluation import predictions_of
from sparse_refine.visualization.panel import draw_window, fit_tile, lay_out
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
MENDED, SPOILED, STILL_WRONG = (70, 150, 255), (255, 95, 30), (250, 220, 70)
VERDICTS = [
    ("mended: wrong before, right now", MENDED),
    ("spoiled: right before, wrong now", SPOILED),
    ("changed, still wrong", STILL_WRONG),
]
FRAMES = {"mended": MENDED, "spoiled": SPOILED}
OPAQUE = 0.6  # class colours over the image


@dataclass
class View:
    """One image as it is shown.

    `pictures`: (H,W,3) uint8 RGB by title. `masks`: (H,W) bool, pixels that must not vanish when
    the picture of that title is made small. `counts`: pixels. `legend`: (class name, colour).
    `windows`: top left corner of the TILE x TILE pixels with the most "mended" and "spoiled" ones,
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
    wrong = {arm: (maps[arm] != truth) & valid for arm in ("coarse", "fused")}
    mended = wrong["coarse"] & ~wrong["fused"]
    spoiled = wrong["fused"] & ~wrong["coarse"]
    still = wrong["fused"] & wrong["coarse"] & (maps["fused"] != maps["coarse"])
    pictures = {
        "image": image,
        "truth": overlay(image, truth, colors, OPAQUE),
        "coarse": overlay(image, maps["coarse"], colors, OPAQUE),
        "refined": overlay(image, maps["fused"], colors, OPAQUE),
        "changes": painted(image, (mended, MENDED), (spoiled, SPOILED), (still, STILL_WRONG)),
        "selected": selected_picture(image, selected),
        "entropy": entropy_picture(entropy, truth.shape, len(colors)),
        "errors before": painted(image, (wrong["coarse"], SPOILED)),
        "errors after": painted(image, (wrong["fused"], SPOILED)),
    }
    masks = {
        "changes": mended | spoiled | still,
        "errors before": wrong["coarse"],
        "errors after": wrong["fused"],
    }
    windows = {}
    if max(truth.shape) > TILE:
        for name, mask in (("mended", mended), ("spoiled", spoiled)):
            if mask.any():
                windows[name] = densest_window(mask.astype(np.float32), (TILE, TILE))
    counts = {
        "mended": int(mended.sum()),
        "spoiled": int(spoiled.sum()),
        "selected": len(sites),
        "before": int(wrong["coarse"].sum()),
        "after": int(wrong["fused"].sum()),
    }
    found = np.bincount(np.minimum(truth, len(colors)).ravel(), minlength=len(colors) + 1)[:-1]
    found = found + np.bincount(maps["fused"].ravel(), minlength=len(colors))
    order = [int(index) for index in np.argsort(-found, kind="stable") if found[index]]
    legend = [(class_names[index], tuple(colors[index])) for index in order]
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
        "truth": "truth",
        "errors before": f"errors before: {share['before']:.2f} % of the pixels",
        "errors after": f"errors after: {share['after']:.2f} %",
        "entropy": f"entropy of the coarse one, 0 to {shown.max_entropy:.2f} nats",
        "selected": f"refined pixels: {share['selected']:.2f} %",
        "changes": f"mended {counts['mended']:,}, spoiled {counts['spoiled']:,} pixels",
    }
    tiles = [fit_tile(shown.pictures[key], TILE, shown.masks.get(key)) for key in titles]
    size = shown.pictures["image"].shape[:2]
    for name, (top, left) in shown.windows.items():
        for tile in tiles:
            draw_window(tile, (top, left), (TILE, TILE), size, FRAMES[name])
    titles = list(titles.values())
    for name, (top, left) in shown.windows.items():
        for key in ("image", "coarse", "refined", "truth", "selected", "changes"):
            crop = shown.pictures[key][top : top + TILE, left : left + TILE]
            tiles.append(np.ascontiguousarray(crop))
            titles.append(f"{key}, where most is {name} (frame)")
    return lay_out(tiles, titles, [*VERDICTS, *shown.legend])


def thumbnails(shown: View, kind: str) -> dict[str, np.ndarray]:
    """Small pictures by caption: the whole image and its changes, then the window where most is
    "mended" or "spoiled" (`kind`); of a small image all of it."""
    window = shown.windows.get(kind)
    size = shown.pictures["image"].shape[:2]
    results = {
        key: fit_tile(shown.pictures[key], THUMBNAIL, shown.masks.get(key))
        for key in ("image", "changes")
    }
    top, left = window or (0, 0)
    if window:
        for tile in results.values():
            draw_window(tile, (top, left), (TILE, TILE), size, FRAMES[kind])
    for key in ("truth", "coarse", "refined", "changes"):
        picture, mask = shown.pictures[key], shown.masks.get(key)
        if window:
            picture = picture[top : top + TILE, left : left + TILE]
            mask = mask if mask is None else mask[top : top + TILE, left : left + TILE]
        elif key == "changes":
            continue
        caption = f"{key}, close up" if window else key
        results[caption] = fit_tile(np.ascontiguousarray(picture), THUMBNAIL, mask)
    return results
