# SPDX-License-Identifier: Apache-2.0
"""Outlines of blades and leaves, from the path of each. Knows neither colour nor class.

N parts of one kind, P points each, are made in one go: (N, P, 2) float x, y in pixels.
"""

from __future__ import annotations

import math

import numpy as np

TURN = 2 * math.pi


def arcs(base, angle, length, bend, points: int) -> np.ndarray:
    """(N, P, 2): arcs from `base` (N, 2) or (2,), heading `angle` (N,), turning by 2 `bend`."""
    angle, length, bend = np.broadcast_arrays(angle, length, bend)
    t = np.arange(points) / (points - 1)
    heading = angle[:, None] + 2 * bend[:, None] * t
    step = np.stack([np.cos(heading), np.sin(heading)], 2) * (length[:, None, None] / (points - 1))
    step[:, 0] = 0
    return np.cumsum(step, 1) + np.reshape(base, (-1, 1, 2))


def headings(paths: np.ndarray) -> np.ndarray:
    """(N, P): the direction of a path at each of its points, in radians."""
    step = np.diff(paths, axis=1, prepend=2 * paths[:, :1] - paths[:, 1:2])
    return np.arctan2(step[..., 1], step[..., 0])


def _sides(paths: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, 2P, 2): the outline `left` and `right` px (N, P) beside a path."""
    heading = headings(paths)
    normal = np.stack([-np.sin(heading), np.cos(heading)], 2)
    edges = paths + normal * left[..., None], paths - normal * right[..., None]
    return np.concatenate([edges[0], edges[1][:, ::-1]], 1)


def ribbons(paths: np.ndarray, width, taper: float = 1.0, swell: float = 0.0) -> np.ndarray:
    """Blades along paths, `width` (N,) px at the base and (1 - taper) of it at the tip."""
    t = np.arange(paths.shape[1]) / (paths.shape[1] - 1)
    half = (1 - taper * t**1.5 + swell * np.sin(np.pi * t)) / 2
    half = half * np.broadcast_to(width, len(paths))[:, None]
    return _sides(paths, half, half)


def ovals(rng, base, angle, length, ratio, tooth: float = 0.0, points: int = 13):
    """Undivided leaves: outlines, and creases as a list a leaf. `ratio` is width over length."""
    count = len(angle)
    t = np.arange(points) / (points - 1)
    half = np.sin(np.pi * t**0.8) ** 0.9 * np.reshape(np.multiply(ratio, length) / 2, (-1, 1))
    half = half * (
        1 + tooth * (np.arange(points) % 2 - 0.5) * rng.uniform(0.4, 1.3, (count, points))
    )
    paths = arcs(base, angle, length, rng.normal(0, 0.22, count), points)
    left, right = half * rng.uniform(0.7, 1.05, (2, count, 1))
    outlines = _sides(paths, left, right)
    creases = [paths[:, : points - 2]]
    if points > 20:  # large enough to show side veins
        for k in range(2, points - 8, 4):
            creases += [paths[:, k : k + 1], outlines[:, [k + 4]], outlines[:, [-(k + 5)]]]
    veins = []
    for leaf in range(count):
        lines = [creases[0][leaf]]
        for foot, *tips in zip(creases[1::3], creases[2::3], creases[3::3]):
            lines += [np.concatenate([foot[leaf], tip[leaf]]) for tip in tips]
        veins.append(lines)
    return outlines, veins


def lobed(rng, base, angle, length, lobes: int, depth: float):
    """Leaflets with toothed lobes, from their base: outlines, and veins to the lobes' tips."""
    count, points = len(angle), 8 * lobes + 1
    u = np.linspace(-1, 1, points)
    crest = np.abs(np.sin(np.pi * (u + 1) / 2 * lobes)) ** 0.7  # 1 at the tip of a lobe
    radius = (1 - 0.42 * u**2) * (1 - depth * (1 - crest)) * (1 - 0.09 * (np.arange(points) % 2))
    radius = radius * rng.uniform(0.92, 1.06, (count, points)) * length[:, None]
    theta = u * rng.uniform(1.15, 1.45, (count, 1))
    theta = angle[:, None] + np.arctan(np.tan(theta) * rng.uniform(0.55, 1.0, (count, 1)))
    outlines = np.stack([radius * np.cos(theta), radius * np.sin(theta)], 2)
    outlines[:, 0] = outlines[:, -1] = 0
    outlines += base[:, None]
    tips = 0.92 * outlines[:, 4::8] + 0.08 * base[:, None]
    veins = np.stack([np.broadcast_to(base[:, None], tips.shape), tips], 2)
    return outlines, list(veins)
