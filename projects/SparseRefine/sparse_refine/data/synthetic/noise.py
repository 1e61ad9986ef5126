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
    """Octaves of smooth noise on top of one another, (H, W) float32 of about unit variance.

    Args:
        height, width: in pixels.
        coarsest, finest: cell size in px of the first and the last octave; each halves the one
            before.
        gain: an octave's amplitude as a share of the one before: the larger, the rougher.
    """
    rows, cols = height // coarsest + 2, width // coarsest + 2
    field, cell, amplitude, power = white_noise(rng, (rows, cols)), coarsest, 1.0, 1.0
    while cell > finest:
        rows, cols, cell, amplitude = 2 * rows, 2 * cols, cell // 2, amplitude * gain
        field = cv2.resize(field, (cols, rows), interpolation=cv2.INTER_LINEAR)
        field = cv2.scaleAdd(white_noise(rng, (rows, cols)), amplitude, field)
        power += amplitude**2
    field *= np.float32(power**-0.5)  # variances of independent octaves add up
    field = cv2.resize(field, (cols * cell, rows * cell), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(field[:height, :width])


def relief(surface: np.ndarray, light: np.ndarray, gain: float) -> np.ndarray:
    """How a surface takes slanting light: its slope along the light's way, squashed to -1..1.

    Args:
        surface: (H, W) float32, heights in px.
        light: the way that the light travels, a unit (x, y).
        gain: the surface is made this much steeper first.

    Returns:
        (H, W) float32: above 0 where the surface rises along the light's way, and so faces it.
    """
    slope = cv2.Sobel(surface, cv2.CV_32F, 1, 0, ksize=3, scale=gain * light[0] / 8)
    slope += cv2.Sobel(surface, cv2.CV_32F, 0, 1, ksize=3, scale=gain * light[1] / 8)
    return slope / (1 + np.abs(slope))
