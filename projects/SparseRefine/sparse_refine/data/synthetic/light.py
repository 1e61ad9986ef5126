# SPDX-License-Identifier: Apache-2.0
"""From the canvas to the photograph: light and shade of the scene, then lens and sensor."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .drawing import SOIL
from .noise import fractal_noise, relief, white_noise


def illuminate(rng, planes, creases, labels, light) -> list[np.ndarray]:
    """Curved, blotched leaves, then the scene's light and shade.

    Args:
        planes: R, G, B, (H, W) uint8 each.
        creases: (H, W) uint8, 255 on plants, 0 off them and along their creases.
        labels: (H, W) uint8.
        light: the way that the light travels, a unit (x, y).

    Returns:
        R, G, B, (H, W) float32 each, 0..255 and up.
    """
    height, width = labels.shape
    plant = (labels != SOIL).astype(np.float32)
    # leaves bulge: height grows with the root of the distance to the nearest crease
    inside = np.sqrt(np.minimum(cv2.distanceTransform(creases, cv2.DIST_L2, 3), 14))
    vein = (inside == 0).astype(np.float32)
    texture = fractal_noise(rng, height, width, 32, 2, 0.75)
    tone = 0.24 * relief(inside, light, 4.0) + 0.06 * texture + 0.1 * vein
    tone = tone * plant + 1
    blotch = np.clip(-texture - 1.35, 0, 0.7) * plant

    # Shade of things outside the picture, and light that falls off across it; an eighth is enough.
    rows, cols = height // 8 + 2, width // 8 + 2
    sun = fractal_noise(rng, rows, cols, 64, 4, 0.45)
    sun = 1 / (1 + np.exp(-rng.uniform(3, 9) * (sun + rng.uniform(-0.3, 1.8))))
    deep = rng.uniform(0.35, 0.75)
    falls = np.add.outer(np.linspace(-1, 1, rows), rng.normal(0, 1) * np.linspace(-1, 1, cols))
    sun = (deep + (1 - deep) * sun) * (1 + falls * rng.uniform(-0.12, 0.12))
    tone *= cv2.resize(sun.astype(np.float32), (cols * 8, rows * 8))[:height, :width]

    lit = []
    for plane, brown in zip(planes, (156, 126, 72)):
        plane = plane.astype(np.float32)
        plane += blotch * (brown - plane)
        plane *= tone
        lit.append(plane)
    return lit


def expose(rng, planes: Sequence[np.ndarray]) -> np.ndarray:
    """Lens and sensor: defocus, white balance, exposure, noise. (H, W, 3) uint8."""
    blur, exposure = rng.uniform(0.6, 1.4), rng.uniform(0.9, 1.3)
    noise, exposed = rng.uniform(3, 9), []
    for plane in planes:
        gain = exposure * rng.uniform(0.93, 1.07)
        plane = cv2.GaussianBlur(plane, (0, 0), blur)
        # a sensor's noise is a little soft: neighbours share it since colours are interpolated
        grain = cv2.GaussianBlur(white_noise(rng, plane.shape), (0, 0), 0.6)
        exposed.append(cv2.addWeighted(plane, gain, grain, noise, 0, dtype=cv2.CV_8U))
    return cv2.merge(exposed)
