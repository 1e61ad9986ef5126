# SPDX-License-Identifier: Apache-2.0
"""Bare ground: soil with crumbs and stones, and the litter that lies on it."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .drawing import SOIL, Part, add_parts
from .noise import fractal_noise, relief
from .shapes import TURN, arcs, ovals, ribbons


def make_soil(rng, height: int, width: int, light: np.ndarray) -> list[np.ndarray]:
    """Clods, stones and crumbs under slanting light, moist and mossy in patches.

    `light` is the way it travels, a unit (x, y). Returns the R, G, B planes, (H, W) uint8 each.
    """
    rough = fractal_noise(rng, height, width, 256, 32, 0.8)  # where clods lie
    surface = 5 * fractal_noise(rng, height, width, 128, 2, 0.66)
    surface += _crumbs(rng, height, width, rng.uniform(8, 12))
    surface += np.clip(rough + 1, 0, 2.5) * _crumbs(rng, height, width, rng.uniform(22, 34))
    stone = _scatter_stones(rng, surface)

    shading = relief(surface, light, rng.uniform(0.7, 1.2))
    small = (max(width // 8, 1), max(height // 8, 1))
    # the mean height around, at an eighth of the size: what lies below it is moist and dark
    mean = cv2.GaussianBlur(cv2.resize(surface, small, interpolation=cv2.INTER_AREA), (0, 0), 2)
    hollow = np.clip(surface - cv2.resize(mean, (width, height)), -10, 8)
    moist = 1.5 * fractal_noise(rng, height, width, 512, 16, 0.6) + rng.uniform(-1.5, 1.8)
    moist -= 0.12 * hollow
    moist = 1 / (1 + np.exp(-moist))  # (H,W), share 0..1 of the wet colour
    moss = fractal_noise(rng, height, width, 128, 8, 0.7) - rng.uniform(0.8, 1.6)
    moss = np.clip(1.5 * moss, 0, 1) * rng.uniform(0.5, 1.0)
    tone = 1 + 0.42 * shading + 0.045 * hollow
    tone += 0.1 * fractal_noise(rng, height, width, 4, 1, 0.9)
    np.maximum(tone, 0.12, out=tone)

    dry = np.array([168, 138, 112]) + rng.uniform(-12, 14) * np.array([1, 0.4, -0.3])
    dry *= rng.uniform(0.85, 1.12)
    wet = dry * rng.uniform(0.42, 0.6) * np.array([1.0, 0.94, 0.88])
    green = np.array([104, 110, 58]) * rng.uniform(0.7, 1.1)
    grey = np.array([172, 163, 154]) * rng.uniform(0.85, 1.15)
    planes = []
    for c in range(3):  # a plane at a time: float32 of all three would be the peak of memory
        plane = moist * np.float32(wet[c] - dry[c]) + np.float32(dry[c])
        plane += moss * (np.float32(green[c]) - plane)
        plane += stone * (np.float32(grey[c]) - plane)
        planes.append(cv2.multiply(plane, tone, dtype=cv2.CV_8U))
    return planes


def _crumbs(rng, height: int, width: int, pitch: float) -> np.ndarray:
    """Domes of all sizes, `pitch` px apart on average: (H, W) float32, 0..pitch / 2 px high."""
    dots = np.full((height + 64, width + 64), 255, np.uint8)
    count = int(dots.size / pitch**2) + 1
    dots[rng.integers(0, dots.shape[0], count), rng.integers(0, dots.shape[1], count)] = 0
    # a Voronoi diagram: each pixel's distance to its nearest dot, and which one that is
    away, owner = cv2.distanceTransformWithLabels(
        dots, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    away, owner = away[32:-32, 32:-32], owner[32:-32, 32:-32]
    radii = (pitch * rng.uniform(0.2, 1.0, count + 1) ** 1.5).astype(np.float32)
    away = away + fractal_noise(rng, height, width, 8, 4, 1.0) * np.float32(0.06 * pitch)
    return np.maximum(1 - np.square(away / radii[owner]), 0) * (0.5 * radii)[owner]


def _scatter_stones(rng, surface: np.ndarray) -> np.ndarray:
    """Raise stones on the surface, in place; return the share of stone in each pixel's colour."""
    height, width = surface.shape
    tint = np.zeros_like(surface)
    stamps = [_stone(rng) for _ in range(12)]
    count = rng.poisson((height + 80) * (width + 80) / 2600)
    radii = np.minimum(2.2 * rng.pareto(1.5, count) + 2.2, 40.0)  # many small, few large
    corners = rng.uniform((-40, -40), (width + 40, height + 40), (count, 2)) - radii[:, None]
    kinds = rng.integers(len(stamps), size=count)
    greys = rng.uniform(-0.5, 0.9, count).clip(0)
    for radius, (x, y), kind, grey in zip(radii, corners.astype(int), kinds, greys):
        size = int(2 * radius) + 2
        left, top = max(-x, 0), max(-y, 0)
        right, bottom = min(size, width - x), min(size, height - y)
        if left >= right or top >= bottom:
            continue
        dome = cv2.resize(stamps[kind], (size, size))[top:bottom, left:right]
        window = np.s_[y + top : y + bottom, x + left : x + right]
        surface[window] += dome * np.float32(radius * 0.7)
        tint[window] += dome * (np.float32(grey) - tint[window])
    return tint


def _stone(rng, size: int = 48) -> np.ndarray:
    """A dome with an irregular foot, (size, size) float32 in 0..1."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    theta, foot = np.arctan2(y, x), 0.82
    for k in (2, 3, 4, 5, 7):  # harmonics of the outline, weaker the finer
        foot = foot + rng.uniform(-0.22, 0.22) / k * np.cos(k * theta + rng.uniform(0, TURN))
    c, s, flat = math.cos(foot[0, 0] * 40), math.sin(foot[0, 0] * 40), rng.uniform(0.6, 1.0)
    radius = np.hypot(x * c + y * s, (y * c - x * s) / flat)
    return np.sqrt(np.clip(1 - (radius / foot) ** 2, 0, 1)).astype(np.float32)


def make_litter(rng, height: int, width: int) -> list[Part]:
    """Straw, roots and dead leaves: soil by label, whatever they look like."""
    parts: list[Part] = []
    count = rng.poisson((height + 80) * (width + 80) / 12000)
    base = rng.uniform((-40, -40), (width + 40, height + 40), (count, 2))
    angle, length = rng.uniform(0, TURN, count), 12 + rng.exponential(34, count)
    color = np.array([186, 164, 124]) * rng.uniform(0.45, 1.1, (count, 1))
    color += rng.uniform(-12, 12, (count, 3))
    color[rng.random(count) < 0.15] *= (0.75, 0.92, 0.55)  # greenish
    paths = arcs(base, angle, length, rng.normal(0, 0.35, count), 8)
    add_parts(parts, ribbons(paths, rng.uniform(0.1, 2.2, count), 0.6), color, SOIL)
    dead = np.flatnonzero(rng.random(count) < 0.12)
    size = np.minimum(12 + 0.7 * length[dead], 44)
    leaves, _ = ovals(rng, base[dead], angle[dead] + 1, size, 0.35)
    add_parts(parts, leaves, color[dead] * 0.75, SOIL)
    return parts
