# SPDX-License-Identifier: Apache-2.0
"""Where plants stand, and of which kind and colour each one is: crop in rows, weeds in patches."""

from __future__ import annotations

import math

import numpy as np

from .drawing import Part
from .noise import fractal_noise
from .species import LAYERS, broadleaf, crop, feather, grass, runner, seedling, toothed

MARGIN = 200  # px around the image where plants that reach into it may stand


def make_plants(rng, height: int, width: int) -> list[list[Part]]:
    """Crop in rows and weeds in patches, on an image of that size in pixels and around it.

    Returns:
        The parts of all plants by layer, `LAYERS` lists, lowest first; within a layer in painter's
        order, crop and weed mixed at random.
    """
    layers: list[list[Part]] = [[] for _ in range(LAYERS)]
    kinds = (grass, seedling, runner, feather, broadleaf, toothed)
    share = rng.dirichlet((7.0, 7.0, 3.5, 2.2, 3.0, 2.5))
    area = (height + 2 * MARGIN) * (width + 2 * MARGIN)
    count = rng.poisson(area / rng.uniform(18000, 36000))
    rows, cols = ((side + 2 * MARGIN) // 8 + 1 for side in (height, width))
    patch = fractal_noise(rng, rows, cols, 32, 16, 0.5)
    plants = [(spot, crop) for spot in _rows(rng, height, width)]
    for kind in rng.choice(len(kinds), size=count, p=share):
        for _ in range(3):  # weeds gather in patches: try again where they are rare
            x, y = rng.uniform(-MARGIN, width + MARGIN), rng.uniform(-MARGIN, height + MARGIN)
            if patch[int(y + MARGIN) // 8, int(x + MARGIN) // 8] > rng.normal(0, 0.7):
                break
        plants.append(((x, y), kinds[kind]))
    for index in rng.permutation(len(plants)):
        spot, grow = plants[index]
        # Crop and weed draw from the same greens: dark, yellowish, bluish.
        greens = np.array([[56, 98, 42], [142, 170, 66], [108, 142, 100]])
        color = rng.dirichlet((1.2, 1.5, 1.0)) @ greens * rng.uniform(0.85, 1.2)
        grow(rng, np.array(spot), layers, color)
    return layers


def _rows(rng, height: int, width: int):
    """Where the crop stands: rows at a slant, some plants missing."""
    angle, between, along = rng.uniform(0, math.pi), rng.uniform(400, 520), rng.uniform(290, 390)
    reach = math.hypot(height, width) / 2 + MARGIN
    c, s = math.cos(angle), math.sin(angle)
    first, start = rng.uniform(0, between), rng.uniform(0, along)
    for row in np.arange(-reach - first, reach, between):
        for step in np.arange(-reach - start, reach, along):
            u, v = step + rng.normal(0, 45), row + rng.normal(0, 32)
            x, y = width / 2 + c * u - s * v, height / 2 + s * u + c * v
            inside = -MARGIN < x < width + MARGIN and -MARGIN < y < height + MARGIN
            if inside and rng.random() < 0.85:
                yield x, y
