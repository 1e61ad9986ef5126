# SPDX-License-Identifier: Apache-2.0
"""Procedural photographs of a field plot, seen from above, with exact labels.

`generate_field(height, width, seed)` draws soil (ground.py), crop rosettes and weeds (plants.py,
species.py) in painter's order: one canvas holds colour and label, filled by the same polygon call
(drawing.py), so that the label is what lies on top. Light, shade, blur and noise (light.py) touch
the colours only. Every length is in pixels whatever the image's size: a larger image holds more
plants, not larger ones, so a crop of one looks like any other image.

The same arguments give the same image with the same versions of numpy (PCG64) and opencv;
`GENERATOR_VERSION` changes whenever the pictures do.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .drawing import (
    CLASS_COLORS,
    CLASS_NAMES,
    CROP,
    SOIL,
    WEED,
    cast_shadow,
    draw_parts,
    enlarged,
)
from .ground import make_litter, make_soil
from .light import expose, illuminate
from .plants import make_plants
from .shapes import TURN

__all__ = [
    "CLASS_COLORS",
    "CLASS_NAMES",
    "CROP",
    "GENERATOR_VERSION",
    "SOIL",
    "WEED",
    "generate_field",
]

GENERATOR_VERSION = "2"


def generate_field(
    height: int, width: int, seed: int, plant_scale: int = 1, ground_scale: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one field plot.

    Args:
        height, width: size in pixels, at least 1.
        seed: a non-negative integer; each seed is another plot.
        plant_scale, ground_scale: pixels of the image for each pixel of plants.py and species.py,
            and of ground.py: how near the camera is.

    Returns:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) uint8, indices into `CLASS_NAMES`; no pixel is left without a class.

    Raises:
        ValueError: a size below 1 or a negative seed.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a field is at least 1 x 1 pixels, got {height} x {width}")
    if seed < 0:
        raise ValueError(f"a field's seed is 0 or more, got {seed}")
    rng = np.random.Generator(np.random.PCG64(seed))
    angle = rng.uniform(0, TURN)
    light = np.array([math.cos(angle), math.sin(angle)])  # the way it travels, x, y

    small = (math.ceil(height / ground_scale), math.ceil(width / ground_scale))
    soil = cv2.merge([*make_soil(rng, *small, light), np.zeros(small, np.uint8)])
    draw_parts(soil, np.zeros(small, np.uint8), make_litter(rng, *small))
    size = (small[1] * ground_scale, small[0] * ground_scale)
    canvas = cv2.resize(soil, size, interpolation=cv2.INTER_CUBIC)[:height, :width].copy()
    canvas[..., 3] = SOIL
    creases = np.zeros((height, width), np.uint8)  # 255 on plants, 0 off them and along creases
    field = (math.ceil(height / plant_scale), math.ceil(width / plant_scale))
    for level, parts in enumerate(make_plants(rng, *field)):
        parts = [enlarged(part, plant_scale) for part in parts]
        offset, sigma = light * (3 + 4 * level), 0.8 + 0.5 * level
        cast_shadow(canvas, parts, plant_scale * offset, plant_scale * sigma)
        draw_parts(canvas, creases, parts)

    *planes, labels = cv2.split(canvas)
    planes = illuminate(rng, planes, creases, labels, light)
    return expose(rng, planes), labels
