# SPDX-License-Identifier: Apache-2.0
"""What a plant is made of: the crop and six kinds of weed.

Each function grows one plant at `base`, (2,) x, y in pixels, in about the colour `color`, (3,) RGB
in 0..255, and appends its parts to `layers`, lists of parts by height. Crop and weed share their
colours and differ in shape; blades, stalks and threads are 1 to 5 pixels wide, which is what low
resolution loses.
"""

from __future__ import annotations

import math

import numpy as np

from .drawing import CROP, WEED, add_parts
from .shapes import TURN, arcs, headings, lobed, ovals, ribbons

LAYERS = 4  # heights above the ground; each one casts its shadow on all below
SPIRAL = math.radians(137.5)  # from one leaf of a rosette to the next


def crop(rng, base, layers, color) -> None:
    """A rosette: stalks in a spiral of one, three or five lobed leaflets; inner ones higher."""
    size, lobes, depth = rng.uniform(0.6, 1.25), int(rng.integers(3, 6)), rng.uniform(0.3, 0.5)
    count = int(rng.integers(5, 10))
    young = np.arange(count) / count  # 0..1, outer leaves are the oldest and longest
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.2, count)
    length = size * rng.uniform(95, 150, count) * (1 - 0.6 * young)
    stalks = arcs(base, angle, length, rng.normal(0, 0.3, count), 12)
    heading = headings(stalks)
    leaflet = size * rng.uniform(48, 68, count) * (1 - 0.35 * young)
    stalk_color, tones = color * 0.9 + np.array([18, 12, 8]), _leaf_colors(rng, color, count)

    # leaflets: one at the end of each stalk, then pairs along it; `owner` is the stalk's number
    owner, spot = [np.arange(count)], [stalks[:, -1]]
    out, share = [heading[:, -1]], [np.ones(count)]
    stems, pairs = [], rng.integers(1, 3, count) * (young < 0.7)
    for pair, place in enumerate((7, 4)):
        for side in (-1, 1):
            mine = np.flatnonzero(pairs > pair)
            aside = heading[mine, place] + side * rng.uniform(0.8, 1.3, len(mine))
            reach = leaflet[mine] * rng.uniform(0.2, 0.5, len(mine))
            stems.append(arcs(stalks[mine, place], aside, reach, -0.2 * side, 5))
            owner.append(mine)
            spot.append(stems[-1][:, -1])
            out.append(aside - 0.3 * side)
            share.append(rng.uniform(0.6, 0.85, len(mine)))
    owner, spot, out, share = map(np.concatenate, (owner, spot, out, share))
    out = out + rng.normal(0, 0.15, len(out))
    leaves, veins = lobed(rng, spot, out, leaflet[owner] * share, lobes, depth)
    tones = tones[owner] * rng.uniform(0.9, 1.08, (len(owner), 1))
    stalks = ribbons(stalks, rng.uniform(2.4, 4.4, count) * size, 0.5)
    stems = ribbons(np.concatenate(stems), 1.6 * size, 0.3)
    # the inner, younger half stands above the outer one and shades it
    for level, low, high in ((1, 0, count // 2), (2, count // 2, count)):
        add_parts(layers[level], stalks[low:high], stalk_color, CROP)
        add_parts(
            layers[level], stems[(owner[count:] >= low) & (owner[count:] < high)], stalk_color, CROP
        )
        mine = np.flatnonzero((owner >= low) & (owner < high))
        mine = mine[np.argsort(owner[mine], kind="stable")]
        add_parts(layers[level], leaves[mine], tones[mine], CROP, [veins[k] for k in mine])


def grass(rng, base, layers, color) -> None:
    """A tuft of tapering blades, 1 to 5 px wide; some bend over."""
    count = int(rng.integers(2, 10))
    angle = rng.uniform(0, TURN) + rng.uniform(-1, 1, count) * rng.uniform(0.5, 3.1)
    length, bend = rng.uniform(45, 190, count), rng.normal(0, 0.45, count)
    paths = arcs(base + rng.normal(0, 3, (count, 2)), angle, length, bend, 14)
    width = rng.uniform(0.5, 1.0, count) * rng.uniform(1.0, 4.2)
    blades = ribbons(paths, width, 1.0, rng.uniform(0, 0.6))
    tones = _leaf_colors(rng, color * 0.92 + np.array([12, 16, 2]), count)
    for k, level in enumerate(rng.integers(1, LAYERS, count)):
        add_parts(layers[level], blades[k : k + 1], tones[k], WEED)


def seedling(rng, base, layers, color) -> None:
    """Seed leaves and a first pair or two of undivided leaves on hair-thin stems."""
    count, size = 2 * int(rng.integers(1, 4)), rng.uniform(0.6, 1.7)
    angle = rng.uniform(0, TURN) + np.array([0, 2, 1, 3, 0.5, 2.5])[:count] * math.pi / 2
    angle = angle + rng.normal(0, 0.2, count)
    stems = arcs(base, angle, size * rng.uniform(8, 26, count), rng.normal(0, 0.2, count), 6)
    length = size * rng.uniform(18, 36, count)
    leaves, veins = ovals(rng, stems[:, -1], angle, length, rng.uniform(0.35, 0.8))
    parts = layers[int(rng.integers(0, 3))]
    add_parts(parts, ribbons(stems, 1.0 * size, 0.2), color * 1.05, WEED)
    add_parts(parts, leaves, _leaf_colors(rng, color, count), WEED, veins)


def runner(rng, base, layers, color) -> None:
    """Creeping stems with small leaves in pairs."""
    parts, leaf = layers[int(rng.integers(1, LAYERS))], rng.uniform(12, 27)
    for _ in range(int(rng.integers(1, 4))):
        path = arcs(base, rng.uniform(0, TURN, 1), rng.uniform(80, 240), rng.normal(0, 0.5), 18)
        add_parts(parts, ribbons(path, rng.uniform(0.8, 2.2), 0.5), color * (1.1, 0.9, 0.85), WEED)
        at = np.repeat(np.arange(2, 18, int(rng.integers(2, 4))), 2)
        side = np.where(np.arange(len(at)) % 2, 1, -1)
        angle = headings(path)[0, at] + side * rng.uniform(0.7, 1.4, len(at))
        length, ratio = leaf * rng.uniform(0.6, 1.1, len(at)), rng.uniform(0.35, 0.65)
        leaves, veins = ovals(rng, path[0, at], angle, length, ratio)
        add_parts(parts, leaves, _leaf_colors(rng, color, len(at)), WEED, veins)


def feather(rng, base, layers, color) -> None:
    """Threads on threads, as mayweed has: leaves with hardly any area."""
    parts, size = layers[int(rng.integers(1, LAYERS))], rng.uniform(0.6, 1.2)
    count = rng.integers(3, 8)
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.2, count)
    paths = arcs(base, angle, size * rng.uniform(50, 110, count), rng.normal(0, 0.25, count), 14)
    tones = _leaf_colors(rng, color, count)
    at = np.repeat(np.arange(3, 14), 2)
    side = np.where(np.arange(len(at)) % 2, 1, -1)
    reach = size * 26 * np.sin(math.pi * (at - 1) / 14)  # longest in the middle of a leaf
    for path, heading, tone in zip(paths, headings(paths), tones):
        aside = heading[at] + side * rng.uniform(0.6, 1.1, len(at))
        threads = arcs(path[at], aside, reach * rng.uniform(0.6, 1.2, len(at)), -0.2 * side, 5)
        add_parts(parts, ribbons(path[None], rng.uniform(0.8, 1.8), 0.5), tone, WEED)
        add_parts(parts, ribbons(threads, rng.uniform(0.3, 1.3, len(at)), 0.3), tone, WEED)


def broadleaf(rng, base, layers, color) -> None:
    """Large undivided leaves on stalks: the size of a crop's, another margin."""
    count, size, ratio = int(rng.integers(3, 8)), rng.uniform(0.5, 1.25), rng.uniform(0.45, 0.85)
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.2, count)
    stalks = arcs(base, angle, size * rng.uniform(25, 90, count), rng.normal(0, 0.25, count), 8)
    length = size * rng.uniform(45, 95, count)
    leaves, veins = ovals(rng, stalks[:, -1], angle, length, ratio, rng.uniform(0, 0.12), 27)
    stalks = ribbons(stalks, rng.uniform(1.5, 3.2, count), 0.3)
    tones = _leaf_colors(rng, color, count)
    for level, mine in ((1, slice(0, 4)), (2, slice(4, None))):
        add_parts(layers[level], stalks[mine], color * 0.95, WEED)
        add_parts(layers[level], leaves[mine], tones[mine], WEED, veins[mine])


def toothed(rng, base, layers, color) -> None:
    """A flat rosette of narrow, deeply toothed leaves without stalks, jagged as the crop is."""
    count, size, ratio = int(rng.integers(5, 12)), rng.uniform(0.6, 1.1), rng.uniform(0.22, 0.36)
    angle = rng.uniform(0, TURN) + SPIRAL * np.arange(count) + rng.normal(0, 0.15, count)
    length = size * rng.uniform(60, 135, count)
    leaves, veins = ovals(rng, base, angle, length, ratio, rng.uniform(0.4, 1.0), 25)
    midribs = [lines[:1] for lines in veins]
    add_parts(layers[1], leaves, _leaf_colors(rng, color, count), WEED, midribs)


def _leaf_colors(rng, color: np.ndarray, count: int) -> np.ndarray:
    """(N, 3): a plant's leaves, brighter or darker, now and then withering."""
    dry = rng.uniform(0.3, 0.9, (count, 1)) * (rng.random((count, 1)) < 0.07)
    color = color + dry * (np.array([160, 130, 76]) - color)
    return color * rng.uniform(0.8, 1.18, (count, 1)) + rng.normal(0, 4, (count, 3))
