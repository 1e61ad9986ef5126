# SPDX-License-Identifier: Apache-2.0
"""Tiles and their legend, and the figure that is laid out of them."""

from __future__ import annotations

import numpy as np
import torch

from sparse_refine.results import Refinement
from sparse_refine.visualization.figure import best_window, refinement_figure
from sparse_refine.visualization.layout import crop, fit_tile, lay_out, legend_of

COLORS = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
NAMES = ["soil", "weed", "crop"]


def test_legend_by_frequency():
    first = np.array([[1, 1, 2], [255, 2, 2]], np.uint8)
    second = np.array([[1, 1, 300]], np.int32)
    assert legend_of(NAMES, COLORS, first) == [("crop", (0, 0, 200)), ("weed", (0, 200, 0))]
    assert [name for name, _ in legend_of(NAMES, COLORS, first, second)] == ["weed", "crop"]


def test_tiles_keep_their_place_and_pixels():
    colors = [np.array([200, i, 90], np.uint8) for i in range(4)]
    tiles = [(f"tile {i}", np.tile(color, (20 + i, 310, 1))) for i, color in enumerate(colors)]
    canvas = lay_out(tiles, [])
    assert canvas.shape[1] == 3 * 310 + 4 * 10
    for index, (_, picture) in enumerate(tiles):
        y, x = (canvas == colors[index]).all(2).nonzero()
        assert y.max() - y.min() + 1 == picture.shape[0] and len(y) == picture.shape[0] * 310
        assert x.min() == 10 + index % 3 * 320
    assert lay_out(tiles, [(name, (1, 2, 3)) for name in NAMES * 50]).shape == canvas.shape


def test_size_of_a_tile():
    picture = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    assert fit_tile(picture, 27).shape == (18, 27, 3)
    same = fit_tile(picture, 27, enlarge=False)
    assert np.array_equal(same, picture) and not np.shares_memory(same, picture)
    assert fit_tile(picture, 3).shape == (2, 3, 3)
    part = crop(picture, (2, 3), (2, 4))
    assert np.array_equal(part, picture[2:4, 3:7]) and not np.shares_memory(part, picture)


def test_the_window_is_where_improved_pixels_outweigh_degraded_ones():
    truth = np.zeros((40, 60), np.uint8)
    coarse, fused = truth.copy(), truth.copy()
    coarse[5:9, 5:13:2] = 1  # 16 improved ...
    fused[5:9, 6:14:2] = 1  # ... between 16 degraded ones
    coarse[30:33, 40:43] = 1  # 9 improved
    top, left = best_window(coarse, fused, truth, (8, 8))
    assert 25 <= top <= 30 and 35 <= left <= 40


def figure_of(height: int, width: int) -> np.ndarray:
    """All is class 0; the coarse prediction took a square for class 1, and the truth ignores a row.
    The image is grey, so that colours are the labels'."""
    sites = torch.stack(torch.meshgrid(torch.arange(4, 8), torch.arange(5, 9), indexing="ij"), -1)
    sites = sites.reshape(-1, 2)
    zeros, ones = torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)
    labels = torch.zeros(height, width, dtype=torch.uint8)
    entropy = torch.zeros(height // 2, width // 2)
    refinement = Refinement(labels, sites, ones, zeros, zeros, entropy)
    truth = np.zeros((height, width), np.uint8)
    truth[-1] = 255
    image = np.full((height, width, 3), 120, np.uint8)
    return refinement_figure(image, refinement, truth, NAMES, COLORS, tile=60)


def test_figure_of_any_size():
    for size in ((30, 40), (400, 90), (300, 900), (9, 10)):
        figure = figure_of(*size)
        assert figure.dtype == np.uint8 and figure.shape[2] == 3
        green = (figure[..., 1].astype(int) > figure[..., 0] + 50).nonzero()[0]
        # the coarse prediction's square, in the close up whatever the image's size
        assert len(green)
