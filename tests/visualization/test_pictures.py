# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions, and label maps as files: held against what they are made of."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.data import read_image, read_labels
from sparse_refine.results import Refinement
from sparse_refine.visualization.layout import draw_window
from sparse_refine.visualization.panel import refinement_panel
from sparse_refine.visualization.pictures import (
    changed_picture,
    densest_window,
    distinct_colors,
    entropy_picture,
    overlay,
    selected_picture,
    write_label_map,
    write_picture,
)

COLORS = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def refinement_of(height: int, width: int) -> Refinement:
    """Sure of class 0 but for a square of 4 pixels a side, of which the lower half becomes 2."""
    labels = torch.zeros(height, width, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(4, 8), torch.arange(5, 9), indexing="ij")
    sites = torch.stack([y.flatten(), x.flatten()], 1)
    fused = torch.where(sites[:, 0] >= 6, 2, 1).to(torch.uint8)
    labels[sites[:, 0], sites[:, 1]] = fused
    entropy = torch.zeros(height // 2, width // 2)
    entropy[2:4, 3:5] = math.log(3)
    return Refinement(labels, sites, torch.ones(16, dtype=torch.uint8), fused, fused, entropy)


def test_colors_differ():
    for count in (1, 3, 19, 150, 300):
        colors = np.array(distinct_colors(count))
        assert colors.shape == (count, 3) and colors.min() >= 0 and colors.max() <= 255
        assert len(np.unique(colors, axis=0)) == count
    first = np.array(distinct_colors(8)).astype(int)
    distances = np.abs(first[:, None] - first[None]).sum(2)
    assert distances[~np.eye(8, dtype=bool)].min() > 60


def test_overlay(image):
    labels = np.full((20, 30), 1, np.uint8)
    labels[3] = 255
    picture = overlay(image, labels, COLORS, 0.25)
    expected = 0.75 * image.astype(float) + 0.25 * np.array(COLORS[1])
    assert np.abs(np.delete(picture - expected, 3, 0)).max() <= 0.5
    assert np.array_equal(picture[3], image[3])  # a label without a colour


@pytest.mark.parametrize("classes", [1, 2, 3, 16, 255, 256])
def test_label_map_with_palette(tmp_path, classes):
    labels = (np.arange(20 * 30).reshape(20, 30) % classes).astype(np.uint8)
    colors = distinct_colors(classes)
    write_label_map(tmp_path / "labels.png", labels, colors)
    assert np.array_equal(read_labels(str(tmp_path / "labels.png")), labels)
    with Image.open(tmp_path / "labels.png") as file:
        assert file.mode == "P"
        assert np.array_equal(np.asarray(file), labels)
        assert np.array_equal(np.asarray(file.convert("RGB")), np.array(colors)[labels])
    raw = (tmp_path / "labels.png").read_bytes()
    assert raw[24] == 8  # bits: fewer are stretched by some readers


def test_label_map_of_many_classes(tmp_path):
    labels = np.arange(20 * 30, dtype=np.int16).reshape(20, 30)
    write_label_map(tmp_path / "labels.png", labels, distinct_colors(600))
    assert np.array_equal(read_labels(str(tmp_path / "labels.png")), labels)
    assert np.array_equal(cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED), labels)


def test_label_map_that_would_lose_ids(tmp_path):
    for labels in (np.full((2, 2), -1), np.full((2, 2), 256)):
        with pytest.raises(ValueError, match=r"labels\.png.*8 bits"):
            write_label_map(tmp_path / "labels.png", labels, COLORS)
    assert not list(tmp_path.iterdir())


def test_pictures_as_files(image, tmp_path):
    write_picture(tmp_path / "a.png", image)
    assert np.array_equal(read_image(str(tmp_path / "a.png")), image)
    smooth = cv2.resize(image, (300, 200))
    write_picture(tmp_path / "a.jpg", smooth)
    read = read_image(str(tmp_path / "a.jpg")).astype(int)
    assert np.abs(read - smooth).mean() < 10
    with pytest.raises(ValueError, match=r"70000.*\.jpg holds sides up to 65535"):
        write_picture(tmp_path / "b.jpg", np.zeros((1, 70000, 3), np.uint8))
    write_picture(tmp_path / "b.png", np.zeros((1, 70000, 3), np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png", "b.png"]


def test_entropy_picture():
    entropy = np.linspace(0, math.log(3), 12, dtype=np.float32).reshape(3, 4)
    picture = entropy_picture(entropy, (7, 10), 3)
    assert picture.shape == (7, 10, 3)
    light = entropy_picture(entropy, (3, 4), 3).astype(int).sum(2).ravel()
    assert (np.diff(light) > 0).all() and light[0] < 30 and light[-1] > 600
    assert entropy_picture(np.zeros((1, 1)), (2, 2), 1).max() < 10  # one class: ln 1 is 0


def test_selected_and_changed(image):
    selected = np.zeros((20, 30), bool)
    selected[4:8, 5:9] = True
    picture = selected_picture(image, selected)
    assert np.array_equal(picture[selected], image[selected])
    assert picture[~selected].max() < 80
    before, after = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    after[selected] = 2
    picture = changed_picture(image, before, after, COLORS)
    assert (picture[selected] == COLORS[2]).all()
    rest = picture[~selected]
    assert (rest == rest[:, :1]).all() and rest.max() < 100


def test_a_frame_lies_around_its_window():
    """Of 20 x 40 pixels at (10, 30) of an image of 100 x 200, on a picture of half its size."""
    picture = np.zeros((50, 100, 3), np.uint8)
    draw_window(picture, (10, 30), (20, 40), (100, 200), (255, 0, 0))
    y, x = picture[..., 0].nonzero()
    assert (y.min(), y.max(), x.min(), x.max()) == (4, 15, 14, 35)  # two pixels wide
    assert not picture[7:13, 17:33].any() and not picture[..., 1:].any()


def test_densest_window():
    weights = np.zeros((30, 40), np.float32)
    weights[20:24, 10:14] = 1
    top, left = densest_window(weights, (6, 6))
    assert 18 <= top <= 20 and 8 <= left <= 10
    assert densest_window(weights, (100, 100)) == (0, 0)


@pytest.mark.parametrize("size", [(20, 30), (90, 400), (300, 20), (8, 9)])
def test_panel(size):
    """Every size has a panel, of one size whatever is in it; pictures stand in their places."""
    metadata = SimpleNamespace(stuff_classes=["soil", "weed", "crop"], stuff_colors=COLORS)
    image = np.full((*size, 3), 120, np.uint8)
    panel = refinement_panel(image, refinement_of(*size), metadata, tile=60)
    assert panel.dtype == np.uint8 and panel.shape[2] == 3
    sure = Refinement(
        torch.zeros(size, dtype=torch.uint8),
        *(torch.zeros(0, 2, dtype=torch.long), *[torch.zeros(0, dtype=torch.uint8)] * 3),
        torch.zeros(size[0] // 2, size[1] // 2),
    )
    assert refinement_panel(image, sure, metadata, tile=60).shape == panel.shape
    # the changed pixels, at full strength although they are few: the lower half of the square
    assert (np.abs(panel.astype(int) - COLORS[2]).sum(2) < 12).sum() > 20
    assert (panel == 120).all(2).sum() > 20  # the image itself
    # a close up for what is larger than a tile
    without = refinement_panel(image, refinement_of(*size), metadata, tile=60, close_up=False)
    assert (panel.shape[0] > without.shape[0]) == (max(size) > 60)


def test_panel_of_many_classes():
    """More class names than fit: the frequent ones, in a panel of the same size."""
    names = [f"a rather long name of class {index}" for index in range(150)]
    metadata = SimpleNamespace(stuff_classes=names, stuff_colors=distinct_colors(150))
    image = np.zeros((20, 30, 3), np.uint8)
    labels = (torch.arange(600) % 150).reshape(20, 30).to(torch.uint8)
    many = refinement_of(20, 30)
    many = Refinement(labels, many.sites, many.coarse, many.refined, many.fused, many.entropy)
    few = SimpleNamespace(stuff_classes=names[:3], stuff_colors=COLORS)
    sizes = [refinement_panel(image, many, metadata, tile=60).shape]
    sizes.append(refinement_panel(image, refinement_of(20, 30), few, tile=60).shape)
    assert sizes[0] == sizes[1]
