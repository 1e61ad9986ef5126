# SPDX-License-Identifier: Apache-2.0
"""Procedural photographs of a field plot, seen from above, with exact labels.

`generate_field(height, width, seed)` draws soil, crop rosettes and weeds in painter's order: one
canvas holds colour and label, filled by the same polygon call, so that the label is what lies on
top. Light, shade, blur and noise touch the colours only. Every length is in pixels whatever the
image's size: a larger image holds more plants, not larger ones, so a crop of one looks like any
other image. Crop and weed share their colours and differ in shape; blades, stalks and threads are
1 to 5 pixels wide, which is what low resolution loses.

The same arguments give the same image with the same versions of numpy (PCG64) and opencv;
`GENERATOR_VERSION` changes whenever the pictures do.

N parts of one kind, P points each, are made in one go: (N, P, 2) float x, y in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np

__all__ = ["CLASS_COLORS", "CLASS_NAMES", "GENERATOR_VERSION", "generate_field"]

GENERATOR_VERSION = "1"
CLASS_NAMES = ("soil", "weed", "crop")
CLASS_COLORS = ((120, 85, 60), (220, 60, 50), (60, 170, 75))

SOIL, WEED, CROP = range(3)
TURN = 2 * math.pi
SPIRAL = math.radians(137.5)  # from one leaf of a rosette to the next
SHIFT = 4  # fractional bits of polygon coordinates
LAYERS = 4  # heights above the ground; each one casts its shadow on all below
SHADOW_BITS = 2  # shadows are drawn at 1 / 2**2 of the resolution: they are soft anyway
MARGIN = 200  # px around the image where plants that reach into it may stand
BELL = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


class Part(NamedTuple):
    """A leaf, a blade or a stem, in fixed-point pixels; creases are margin, midrib and veins."""

    outline: np.ndarray
    color: tuple[int, int, int, int]  # R, G, B, label
    creases: Sequence[np.ndarray] = ()


def generate_field(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one field plot.

    Args:
        height, width: size in pixels, at least 1.
        seed: a non-negative integer; each seed is another plot.

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

    canvas = cv2.merge([*_soil(rng, height, width, light), np.zeros((height, width), np.uint8)])
    creases = np.zeros(
        (height, width), np.uint8
    )  # 255 on plants, 0 along their creases and off them
    _draw(canvas, creases, _litter(rng, height, width))
    for level, parts in enumerate(_plants(rng, height, width)):
        _cast_shadow(canvas, parts, light * (3 + 4 * level), sigma=0.8 + 0.5 * level)
        _draw(canvas, creases, parts)

    *planes, labels = cv2.split(canvas)
    planes = _light(rng, planes, creases, labels, light)
    return _expose(rng, planes), labels


# ------------------------------------------------------------------------------------------- ground


def _white(rng, shape: tuple[int, ...]) -> np.ndarray:
    """White noise, float32 of unit variance: 256 levels do, in a fifth of the time of normals."""
    draws = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)
    return cv2.LUT(draws, BELL)


def _noise(rng, height: int, width: int, coarsest: int, finest: int, gain: float) -> np.ndarray:
    """Fractal noise, (H, W) float32 of unit variance: cells from `coarsest` down to `finest` px."""
    rows, cols = height // coarsest + 2, width // coarsest + 2
    field, cell, amplitude, power = _white(rng, (rows, cols)), coarsest, 1.0, 1.0
    while cell > finest:
        rows, cols, cell, amplitude = 2 * rows, 2 * cols, cell // 2, amplitude * gain
        field = cv2.resize(field, (cols, rows), interpolation=cv2.INTER_LINEAR)
        field = cv2.scaleAdd(_white(rng, (rows, cols)), amplitude, field)
        power += amplitude**2
    field *= np.float32(power**-0.5)
    field = cv2.resize(field, (cols * cell, rows * cell), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(field[:height, :width])


def _relief(surface: np.ndarray, light: np.ndarray, gain: float) -> np.ndarray:
    """How a surface takes slanting light, in -1..1: its slope against the light's way."""
    slope = cv2.Sobel(surface, cv2.CV_32F, 1, 0, ksize=3, scale=gain * light[0] / 8)
    slope += cv2.Sobel(surface, cv2.CV_32F, 0, 1, ksize=3, scale=gain * light[1] / 8)
    return slope / (1 + np.abs(slope))


def _crumbs(rng, height: int, width: int, pitch: float) -> np.ndarray:
    """Domes of all sizes, `pitch` px apart on average: (H, W) float32, 0..pitch / 2 px high."""
    dots = np.full((height + 64, width + 64), 255, np.uint8)
    count = int(dots.size / pitch**2) + 1
    dots[rng.integers(0, dots.shape[0], count), rng.integers(0, dots.shape[1], count)] = 0
    away, owner = cv2.distanceTransformWithLabels(
        dots, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    away, owner = away[32:-32, 32:-32], owner[32:-32, 32:-32]
    radii = (pitch * rng.uniform(0.2, 1.0, count + 1) ** 1.5).astype(np.float32)
    away = away + _noise(rng, height, width, 8, 4, 1.0) * np.float32(0.06 * pitch)
    return np.maximum(1 - np.square(away / radii[owner]), 0) * (0.5 * radii)[owner]


def _soil(rng, height: int, width: int, light: np.ndarray) -> list[np.ndarray]:
    """Clods, stones and crumbs under slanting light, moist and mossy in patches: R, G, B planes."""
    rough = _noise(rng, height, width, 256, 32, 0.8)  # where clods lie
    surface = 5 * _noise(rng, height, width, 128, 2, 0.66)
    surface += _crumbs(rng, height, width, rng.uniform(8, 12))
    surface += np.clip(rough + 1, 0, 2.5) * _crumbs(rng, height, width, rng.uniform(22, 34))
    stone = _scatter_stones(rng, surface)

    shading = _relief(surface, light, rng.uniform(0.7, 1.2))
    small = (max(width // 8, 1), max(height // 8, 1))
    mean = cv2.GaussianBlur(cv2.resize(surface, small, interpolation=cv2.INTER_AREA), (0, 0), 2)
    hollow = np.clip(surface - cv2.resize(mean, (width, height)), -10, 8)
    moist = 1.5 * _noise(rng, height, width, 512, 16, 0.6) + rng.uniform(-1.5, 1.8) - 0.12 * hollow
    moist = 1 / (1 + np.exp(-moist))
    moss = _noise(rng, height, width, 128, 8, 0.7) - rng.uniform(0.8, 1.6)
    moss = np.clip(1.5 * moss, 0, 1) * rng.uniform(0.5, 1.0)
    tone = 1 + 0.42 * shading + 0.045 * hollow
    tone += 0.1 * _noise(rng, height, width, 4, 1, 0.9)
    np.maximum(tone, 0.12, out=tone)

    dry = np.array([168, 138, 112]) + rng.uniform(-12, 14) * np.array([1, 0.4, -0.3])
    dry *= rng.uniform(0.85, 1.12)
    wet = dry * rng.uniform(0.42, 0.6) * np.array([1.0, 0.94, 0.88])
    green = np.array([104, 110, 58]) * rng.uniform(0.7, 1.1)
    grey = np.array([172, 163, 154]) * rng.uniform(0.85, 1.15)
    planes = []
    for c in range(3):
        plane = moist * np.float32(wet[c] - dry[c]) + np.float32(dry[c])
        plane += moss * (np.float32(green[c]) - plane)
        plane += stone * (np.float32(grey[c]) - plane)
        planes.append(cv2.multiply(plane, tone, dtype=cv2.CV_8U))
    return planes


def _scatter_stones(rng, surface: np.ndarray) -> np.ndarray:
    """Raise stones on the surface, in place; return the share of stone in each pixel's colour."""
    height, width = surface.shape
    tint = np.zeros_like(surface)
    stamps = [_stone(rng) for _ in range(12)]
    count = rng.poisson((height + 80) * (width + 80) / 2600)
    radii = np.minimum(2.2 * rng.pareto(1.5, count) + 2.2, 40.0)
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
    for k in (2, 3, 4, 5, 7):
        foot = foot + rng.uniform(-0.22, 0.22) / k * np.cos(k * theta + rng.uniform(0, TURN))
    c, s, flat = math.cos(foot[0, 0] * 40), math.sin(foot[0, 0] * 40), rng.uniform(0.6, 1.0)
    radius = np.hypot(x * c + y * s, (y * c - x * s) / flat)
    return np.sqrt(np.clip(1 - (radius / foot) ** 2, 0, 1)).astype(np.float32)


def _litter(rng, height: int, width: int) -> list[Part]:
    """Straw, roots and dead leaves: soil by label, whatever they look like."""
    parts: list[Part] = []
    count = rng.poisson((height + 80) * (width + 80) / 12000)
    base = rng.uniform((-40, -40), (width + 40, height + 40), (count, 2))
    angle, length = rng.uniform(0, TURN, count), 12 + rng.exponential(34, count)
    color = np.array([186, 164, 124]) * rng.uniform(0.45, 1.1, (count, 1))
    color += rng.uniform(-12, 12, (count, 3))
    color[rng.random(count) < 0.15] *= (0.75, 0.92, 0.55)  # greenish
    paths = _arcs(base, angle, length, rng.normal(0, 0.35, count), 8)
    _add(parts, _ribbons(paths, rng.uniform(0.1, 2.2, count), 0.6), color, SOIL)
    dead = np.flatnonzero(rng.random(count) < 0.12)
    size = np.minimum(12 + 0.7 * length[dead], 44)
    leaves, _ = _ovals(rng, base[dead], angle[dead] + 1, size, 0.35)
    _add(parts, leaves, color[dead] * 0.75, SOIL)
    return parts


# ------------------------------------------------------------------------------------------- shapes


def _arcs(base, angle, length, bend, points: int) -> np.ndarray:
    """(N, P, 2): arcs from `base` (N, 2) or (2,), heading `angle` (N,), turning by 2 `bend`."""
    angle, length, bend = np.broadcast_arrays(angle, length, bend)
    t = np.arange(points) / (points - 1)
    heading = angle[:, None] + 2 * bend[:, None] * t
    step = np.stack([np.cos(heading), np.sin(heading)], 2) * (length[:, None, None] / (points - 1))
    step[:, 0] = 0
    return np.cumsum(step, 1) + np.reshape(base, (-1, 1, 2))


def _headings(paths: np.ndarray) -> np.ndarray:
    """(N, P): the direction of a path at each of its points, in radians."""
    step = np.diff(paths, axis=1, prepend=2 * paths[:, :1] - paths[:, 1:2])
    return np.arctan2(step[..., 1], step[..., 0])


def _sides(paths: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(N, 2P, 2): the outline `left` and `right` px (N, P) beside a path."""
    heading = _headings(paths)
    normal = np.stack([-np.sin(heading), np.cos(heading)], 2)
    edges = paths + normal * left[..., None], paths - normal * right[..., None]
    return np.concatenate([edges[0], edges[1][:, ::-1]], 1)


def _ribbons(paths: np.ndarray, width, taper: float = 1.0, swell: float = 0.0) -> np.ndarray:
    """Blades along paths, `width` (N,) px at the base and (1 - taper) of it at the tip."""
    t = np.arange(paths.shape[1]) / (paths.shape[1] - 1)
    half = (1 - taper * t**1.5 + swell * np.sin(np.pi * t)) / 2
    half = half * np.broadcast_to(width, len(paths))[:, None]
    return _sides(paths, half, half)


def _ovals(rng, base, angle, length, ratio, tooth: float = 0.0, points: int = 13):
    """Undivided leaves: outlines, and creases as a list a leaf. `ratio` is width over length."""
    count = len(angle)
    t = np.arange(points) / (points - 1)
    half = np.sin(np.pi * t**0.8) ** 0.9 * np.reshape(np.multiply(ratio, length) / 2, (-1, 1))
    half = half * (
        1 + tooth * (np.arange(points) % 2 - 0.5) * rng.uniform(0.4, 1.3, (count, points))
    )
    paths = _arcs(base, angle, length, rng.normal(0, 0.22, count), points)
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


def _lobed(rng, base, angle, length, lobes: int, depth: float):
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


# ------------------------------------------------------------------------------------------- plants


def _plants(rng, height: int, width: int) -> list[list[Part]]:
    """Crop in rows and weeds in patches, as parts by layer, lowest first."""
    layers: list[list[Part]] = [[] for _ in range(LAYERS)]
    kinds = (_grass, _seedling, _runner, _feather, _broadleaf, _toothed)
    share = rng.dirichlet((7.0, 7.0, 3.5, 2.2, 3.0, 2.5))
    area = (height + 2 * MARGIN) * (width + 2 * MARGIN)
    count = rng.poisson(area / rng.uniform(18000, 36000))
    rows, cols = ((side + 2 * MARGIN) // 8 + 1 for side in (height, width))
    patch = _noise(rng, rows, cols, 32, 16, 0.5)
    plants = [(spot, _crop) for spot in _rows(rng, height, width)]
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


def _leaf_colors(rng, color: np.ndarray, count: int) -> np.ndarray:
    """(N, 3): a plant's leaves, brighter or darker, now and then withering."""
    dry = rng.uniform(0.3, 0.9, (count, 1)) * (rng.random((count, 1)) < 0.07)
    color = color + dry * (np.array([160, 130, 76]) - color)
    return color * rng.uniform(0.8, 1.18, (count, 1)) + rng.normal(0, 4, (count, 3))


def _crop(rng, base, layers, color) -> None:
    """A rosette: stalks in a spiral of one, three or five lobed leaflets; inner ones higher."""
    size, lobes, depth = rng.uniform(0.6, 1.25), int(rng.integers(3, 6)), rng.uniform(0.3, 0.5)
    count = int(rng.integers(5, 10))
    young = np.arange(count) / count
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.2, count)
    length = size * rng.uniform(95, 150, count) * (1 - 0.6 * young)
    stalks = _arcs(base, angle, length, rng.normal(0, 0.3, count), 12)
    heading = _headings(stalks)
    leaflet = size * rng.uniform(48, 68, count) * (1 - 0.35 * young)
    stalk_color, tones = color * 0.9 + np.array([18, 12, 8]), _leaf_colors(rng, color, count)

    owner, spot, out, share = (
        [np.arange(count)],
        [stalks[:, -1]],
        [heading[:, -1]],
        [np.ones(count)],
    )
    stems, pairs = [], rng.integers(1, 3, count) * (young < 0.7)
    for pair, place in enumerate((7, 4)):
        for side in (-1, 1):
            mine = np.flatnonzero(pairs > pair)
            aside = heading[mine, place] + side * rng.uniform(0.8, 1.3, len(mine))
            reach = leaflet[mine] * rng.uniform(0.2, 0.5, len(mine))
            stems.append(_arcs(stalks[mine, place], aside, reach, -0.2 * side, 5))
            owner.append(mine)
            spot.append(stems[-1][:, -1])
            out.append(aside - 0.3 * side)
            share.append(rng.uniform(0.6, 0.85, len(mine)))
    owner, spot, out, share = map(np.concatenate, (owner, spot, out, share))
    out = out + rng.normal(0, 0.15, len(out))
    leaves, veins = _lobed(rng, spot, out, leaflet[owner] * share, lobes, depth)
    tones = tones[owner] * rng.uniform(0.9, 1.08, (len(owner), 1))
    stalks = _ribbons(stalks, rng.uniform(2.4, 4.4, count) * size, 0.5)
    stems = _ribbons(np.concatenate(stems), 1.6 * size, 0.3)
    for level, low, high in ((1, 0, count // 2), (2, count // 2, count)):
        _add(layers[level], stalks[low:high], stalk_color, CROP)
        _add(
            layers[level], stems[(owner[count:] >= low) & (owner[count:] < high)], stalk_color, CROP
        )
        mine = np.flatnonzero((owner >= low) & (owner < high))
        mine = mine[np.argsort(owner[mine], kind="stable")]
        _add(layers[level], leaves[mine], tones[mine], CROP, [veins[k] for k in mine])


def _grass(rng, base, layers, color) -> None:
    """A tuft of tapering blades, 1 to 5 px wide; some bend over."""
    count = int(rng.integers(2, 10))
    angle = rng.uniform(0, TURN) + rng.uniform(-1, 1, count) * rng.uniform(0.5, 3.1)
    length, bend = rng.uniform(45, 190, count), rng.normal(0, 0.45, count)
    paths = _arcs(base + rng.normal(0, 3, (count, 2)), angle, length, bend, 14)
    width = rng.uniform(0.5, 1.0, count) * rng.uniform(1.0, 4.2)
    blades = _ribbons(paths, width, 1.0, rng.uniform(0, 0.6))
    tones = _leaf_colors(rng, color * 0.92 + np.array([12, 16, 2]), count)
    for k, level in enumerate(rng.integers(1, LAYERS, count)):
        _add(layers[level], blades[k : k + 1], tones[k], WEED)


def _seedling(rng, base, layers, color) -> None:
    """Seed leaves and a first pair or two of undivided leaves on hair-thin stems."""
    count, size = 2 * int(rng.integers(1, 4)), rng.uniform(0.6, 1.7)
    angle = rng.uniform(0, TURN) + np.array([0, 2, 1, 3, 0.5, 2.5])[:count] * math.pi / 2
    angle = angle + rng.normal(0, 0.2, count)
    stems = _arcs(base, angle, size * rng.uniform(8, 26, count), rng.normal(0, 0.2, count), 6)
    length = size * rng.uniform(18, 36, count)
    leaves, veins = _ovals(rng, stems[:, -1], angle, length, rng.uniform(0.35, 0.8))
    parts = layers[int(rng.integers(0, 3))]
    _add(parts, _ribbons(stems, 1.0 * size, 0.2), color * 1.05, WEED)
    _add(parts, leaves, _leaf_colors(rng, color, count), WEED, veins)


def _runner(rng, base, layers, color) -> None:
    """Creeping stems with small leaves in pairs."""
    parts, leaf = layers[int(rng.integers(1, LAYERS))], rng.uniform(12, 27)
    for _ in range(int(rng.integers(1, 4))):
        path = _arcs(base, rng.uniform(0, TURN, 1), rng.uniform(80, 240), rng.normal(0, 0.5), 18)
        _add(parts, _ribbons(path, rng.uniform(0.8, 2.2), 0.5), color * (1.1, 0.9, 0.85), WEED)
        at = np.repeat(np.arange(2, 18, int(rng.integers(2, 4))), 2)
        side = np.where(np.arange(len(at)) % 2, 1, -1)
        angle = _headings(path)[0, at] + side * rng.uniform(0.7, 1.4, len(at))
        length, ratio = leaf * rng.uniform(0.6, 1.1, len(at)), rng.uniform(0.35, 0.65)
        leaves, veins = _ovals(rng, path[0, at], angle, length, ratio)
        _add(parts, leaves, _leaf_colors(rng, color, len(at)), WEED, veins)


def _feather(rng, base, layers, color) -> None:
    """Threads on threads, as mayweed has: leaves with hardly any area."""
    parts, size, count = (
        layers[int(rng.integers(1, LAYERS))],
        rng.uniform(0.6, 1.2),
        rng.integers(3, 8),
    )
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.2, count)
    paths = _arcs(base, angle, size * rng.uniform(50, 110, count), rng.normal(0, 0.25, count), 14)
    tones = _leaf_colors(rng, color, count)
    at = np.repeat(np.arange(3, 14), 2)
    side = np.where(np.arange(len(at)) % 2, 1, -1)
    reach = size * 26 * np.sin(math.pi * (at - 1) / 14)
    for path, heading, tone in zip(paths, _headings(paths), tones):
        aside = heading[at] + side * rng.uniform(0.6, 1.1, len(at))
        threads = _arcs(path[at], aside, reach * rng.uniform(0.6, 1.2, len(at)), -0.2 * side, 5)
        _add(parts, _ribbons(path[None], rng.uniform(0.8, 1.8), 0.5), tone, WEED)
        _add(parts, _ribbons(threads, rng.uniform(0.3, 1.3, len(at)), 0.3), tone, WEED)


def _broadleaf(rng, base, layers, color) -> None:
    """Large undivided leaves on stalks: the size of a crop's, another margin."""
    count, size, ratio = int(rng.integers(3, 8)), rng.uniform(0.5, 1.25), rng.uniform(0.45, 0.85)
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.2, count)
    stalks = _arcs(base, angle, size * rng.uniform(25, 90, count), rng.normal(0, 0.25, count), 8)
    length = size * rng.uniform(45, 95, count)
    leaves, veins = _ovals(rng, stalks[:, -1], angle, length, ratio, rng.uniform(0, 0.12), 27)
    stalks, tones = (
        _ribbons(stalks, rng.uniform(1.5, 3.2, count), 0.3),
        _leaf_colors(rng, color, count),
    )
    for level, mine in ((1, slice(0, 4)), (2, slice(4, None))):
        _add(layers[level], stalks[mine], color * 0.95, WEED)
        _add(layers[level], leaves[mine], tones[mine], WEED, veins[mine])


def _toothed(rng, base, layers, color) -> None:
    """A flat rosette of narrow, deeply toothed leaves without stalks, jagged as the crop is."""
    count, size, ratio = int(rng.integers(5, 12)), rng.uniform(0.6, 1.1), rng.uniform(0.22, 0.36)
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.15, count)
    length = size * rng.uniform(60, 135, count)
    leaves, veins = _ovals(rng, base, angle, length, ratio, rng.uniform(0.4, 1.0), 25)
    _add(layers[1], leaves, _leaf_colors(rng, color, count), WEED, [lines[:1] for lines in veins])


# ------------------------------------------------------------------------------------------ drawing


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.rint(np.multiply(points, 1 << SHIFT)).astype(np.int32)


def _add(parts: list[Part], outlines: np.ndarray, colors, label: int, creases=None) -> None:
    """Append N parts: outlines (N, P, 2), colours (N, 3) or (3,), creases a list of lines each."""
    colors = np.broadcast_to(np.clip(colors, 0, 255), (len(outlines), 3)).astype(int).tolist()
    for k, outline in enumerate(_fixed(outlines)):
        lines = [outline, *map(_fixed, creases[k])] if creases is not None else ()
        parts.append(Part(outline, (*colors[k], label), lines))


def _draw(canvas: np.ndarray, creases: np.ndarray, parts: Sequence[Part]) -> None:
    """Fill the parts in order. Colour and label go down in one call, with hard edges."""
    for part in parts:
        cv2.fillPoly(canvas, [part.outline], part.color, cv2.LINE_8, SHIFT)
        if part.color[3] != SOIL:
            cv2.fillPoly(creases, [part.outline], 255, cv2.LINE_8, SHIFT)
        if part.creases:
            cv2.polylines(creases, part.creases, False, 0, 1, cv2.LINE_8, SHIFT)


def _cast_shadow(canvas: np.ndarray, parts: Sequence[Part], offset, sigma: float) -> None:
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


# -------------------------------------------------------------------------------------------- light


def _light(rng, planes, creases, labels, light) -> list[np.ndarray]:
    """Curved, blotched leaves, then the scene's light and shade: float32 planes, 0..255 and up."""
    height, width = labels.shape
    plant = (labels != SOIL).astype(np.float32)
    inside = np.sqrt(np.minimum(cv2.distanceTransform(creases, cv2.DIST_L2, 3), 14))
    vein = (inside == 0).astype(np.float32)
    texture = _noise(rng, height, width, 32, 2, 0.75)
    tone = 0.24 * _relief(inside, light, 4.0) + 0.06 * texture + 0.1 * vein
    tone = tone * plant + 1
    blotch = np.clip(-texture - 1.35, 0, 0.7) * plant

    # Shade of things outside the picture, and light that falls off across it; an eighth is enough.
    rows, cols = height // 8 + 2, width // 8 + 2
    sun = _noise(rng, rows, cols, 64, 4, 0.45)
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


def _expose(rng, planes: Sequence[np.ndarray]) -> np.ndarray:
    """Lens and sensor: defocus, white balance, exposure, noise. (H, W, 3) uint8."""
    blur, exposure = rng.uniform(0.6, 1.4), rng.uniform(0.9, 1.3)
    noise, exposed = rng.uniform(3, 9), []
    for plane in planes:
        gain = exposure * rng.uniform(0.93, 1.07)
        plane = cv2.GaussianBlur(plane, (0, 0), blur)
        grain = cv2.GaussianBlur(_white(rng, plane.shape), (0, 0), 0.6)
        exposed.append(cv2.addWeighted(plane, gain, grain, noise, 0, dtype=cv2.CV_8U))
    return cv2.merge(exposed)
