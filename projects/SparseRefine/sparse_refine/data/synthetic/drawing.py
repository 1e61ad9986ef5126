# SPDX-License-Identifier: Apache-2.0
"""Parts of plants, and their way onto the canvas: (H, W, 4) uint8, R, G, B and label.

Colour and label are filled by the same polygon call, so that the label is what lies on top; a
shadow touches the colours only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

CLASS_NAMES = ("soil", "weed", "crop")
CLASS_COLORS = ((120, 85, 60), (220, 60, 50), (60, 170, 75))
SOIL, WEED, CROP = range(3)

SHIFT = 4  # fractional bits of polygon coordinates
SHADOW_BITS = 2  # shadows are drawn at 1 / 2**2 of the resolution: they are soft anyway


class Part(NamedTuple):
    """A leaf, a blade or a stem, in fixed-point pixels; creases are margin, midrib and veins."""

    outline: np.ndarray
    color: tuple[int, int, int, int]  # R, G, B, label
    creases: Sequence[np.ndarray] = ()


def enlarged(part: Part, factor: float) -> Part:
    """The same part seen from nearer by: all its lengths times `factor`."""
    outline, *creases = (
        np.rint(points * factor).astype(np.int32) for points in (part.outline, *part.creases)
    )
    return Part(outline, part.color, creases)


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(np.multiply(points, 1 << SHIFT)).astype(np.int32)


def add_parts(parts: list[Part], outlines: np.ndarray, colors, label: int, creases=None) -> None:
    """Append N parts: outlines (N, P, 2), colours (N, 3) or (3,), creases a list of lines each."""
    colors = np.broadcast_to(np.clip(colors, 0, 255), (len(outlines), 3)).astype(int).tolist()
    for k, outline in enumerate(_fixed(outlines)):
        lines = [outline, *map(_fixed, creases[k])] if creases is not None else ()
        parts.append(Part(outline, (*colors[k], label), lines))


def draw_parts(canvas: np.ndarray, creases: np.ndarray, parts: Sequence[Part]) -> None:
    """Fill the parts in order. Colour and label go down in one call, with hard edges."""
    for part in parts:
        cv2.fillPoly(canvas, [part.outline], part.color, cv2.LINE_8, SHIFT)
        if part.color[3] != SOIL:
            cv2.fillPoly(creases, [part.outline], 255, cv2.LINE_8, SHIFT)
        if part.creases:
            cv2.polylines(creases, part.creases, False, 0, 1, cv2.LINE_8, SHIFT)


def cast_shadow(canvas: np.ndarray, parts: Sequence[Part], offset, sigma: float) -> None:
    """Darken what lies below the parts, `offset` px along the light."""
    height, width = canvas.shape[:2]
    scale, offset = 1 << SHADOW_BITS, _fixed(offset)
    shadow = np.zeros((-(-height // scale), -(-width // scale)), np.uint8)
    for part in parts:
        cv2.fillPoly(shadow, [part.outline + offset], 255, cv2.LINE_8, SHIFT + SHADOW_BITS)
    shadow = cv2.GaussianBlur(shadow, (0, 0), sigma)
    keep = [
        cv2.LUT(shadow, np.linspace(255, dark, 256).astype(np.uint8)) for dark in (92, 100, 114)
    ]
    keep = cv2.merge([*keep, np.full_like(shadow, 255)])  # the label stays
    keep = cv2.resize(keep, (shadow.shape[1] * scale, shadow.shape[0] * scale))[:height, :width]
    cv2.multiply(canvas, keep, canvas, scale=1 / 255)
