# SPDX-License-Identifier: Apache-2.0
"""Noise of all scales, and how a surface made of it takes the light."""

from __future__ import annotations

import math
from statistics import NormalDist

import cv2
import numpy as np

BELL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


def white_noise(rng, shape: tuple[int, ...]) -> np.ndarray:
    """White noise, float32 of unit variance: 256 levels do, in a fifth of the time of normals."""
    draws = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)
    return cv2.LUT(draws, BELL)


def fractal_noise(
    rng, height: int, width: int, coarsest: int, finest: int, gain: float
) -> np.ndarray:
    """Fractal noise, (H, W) float32 of unit variance: cells from `coarsest` down to `finest` px."""
    rows, cols = height // coarsest + 2, width // coarsest + 2
    field, cell, amplitude, power = white_noise(rng, (rows, cols)), coarsest, 1.0, 1.0
    while cell > finest:
        rows, cols, cell, amplitude = 2 * rows, 2 * cols, cell // 2, amplitude * gain
        field = cv2.resize(field, (cols, rows), interpolation=cv2.INTER_LINEAR)
        field = cv2.scaleAdd(white_noise(rng, (rows, cols)), amplitude, field)
        power += amplitude**2
    field *= np.float32(power**-0.5)
    field = cv2.resize(field, (cols * cell, rows * cell), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(field[:height, :width])


def relief(surface: np.ndarray, light: np.ndarray, gain: float) -> np.ndarray:
    """How a surface takes slanting light, in -1..1: its slope against the light's way."""
    slope = cv2.Sobel(surface, cv2.CV_32F, 1, 0, ksize=3, scale=gain * light[0] / 8)
    slope += cv2.Sobel(surface, cv2.CV_32F, 0, 1, ksize=3, scale=gain * light[1] / 8)
    return slope / (1 + np.abs(slope))
