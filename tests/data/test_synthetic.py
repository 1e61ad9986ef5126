# SPDX-License-Identifier: Apache-2.0
"""The synthetic field: the same for the same seed, exact, and too fine for a low resolution."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sparse_refine.data import synthetic
from sparse_refine.data.synthetic import CROP, SOIL, WEED, drawing, generate_field

SIZE = (640, 768)


@pytest.fixture(scope="module")
def fields():
    return [generate_field(*SIZE, seed) for seed in range(6)]


def test_types_and_classes(fields):
    for image, labels in fields:
        assert image.shape == (*SIZE, 3) and image.dtype == np.uint8
        assert labels.shape == SIZE and labels.dtype == np.uint8
        assert image.flags.c_contiguous and labels.flags.c_contiguous
        assert set(np.unique(labels)) == {SOIL, WEED, CROP}
    share = np.bincount(np.stack([f[1] for f in fields]).ravel()) / (6 * SIZE[0] * SIZE[1])
    assert 0.6 < share[SOIL] < 0.9 and min(share[WEED], share[CROP]) > 0.04
    assert len(synthetic.CLASS_NAMES) == len(synthetic.CLASS_COLORS) == 3


def test_deterministic(fields):
    image, labels = generate_field(*SIZE, 3)
    np.testing.assert_array_equal(image, fields[3][0])
    np.testing.assert_array_equal(labels, fields[3][1])
    assert not np.array_equal(fields[0][1], fields[1][1])


def test_threads_and_global_seeds_do_not_matter(fields):
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        np.random.seed(5)
        image, labels = generate_field(*SIZE, 0)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(image, fields[0][0])
    np.testing.assert_array_equal(labels, fields[0][1])


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (1, 50), (7, 3), (33, 517), (256, 256)])
def test_any_size(size):
    image, labels = generate_field(*size, 1)
    assert image.shape == (*size, 3) and labels.shape == size and labels.max() <= CROP


@pytest.mark.parametrize("arguments", [(0, 5, 0), (5, -1, 0), (5, 5, -1)])
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError, match="field"):
        generate_field(*arguments)


def test_label_is_what_lies_on_top():
    canvas, creases = np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20), np.uint8)
    square = np.array([[[2, 2], [12, 2], [12, 12], [2, 12]]], float)
    parts = []
    drawing.add_parts(parts, square, (10, 20, 30), WEED)
    drawing.add_parts(parts, square + 5, (40, 50, 60), CROP)
    drawing.draw_parts(canvas, creases, parts)
    assert canvas[4, 4].tolist() == [10, 20, 30, WEED]
    assert canvas[10, 10].tolist() == canvas[15, 15].tolist() == [40, 50, 60, CROP]
    assert canvas[19, 19].tolist() == [0, 0, 0, SOIL]
    # A colour of its own for each part: colour and label change at the same pixels.
    assert len(np.unique(canvas.reshape(-1, 4), axis=0)) == 3


def test_shadow_leaves_labels_alone():
    canvas = np.full((60, 60, 4), 200, np.uint8)
    canvas[..., 3] = CROP
    parts = []
    square = np.array([[[5, 5], [30, 5], [30, 30], [5, 30]]], float)
    drawing.add_parts(parts, square, (0, 0, 0), WEED)
    drawing.cast_shadow(canvas, parts, np.array([4.0, 0.0]), 1.0)
    assert (canvas[..., 3] == CROP).all()
    assert canvas[15, 20, 0] < 110 < 190 < canvas[15, 55, 0]


def test_plants_are_seen_where_the_labels_say(fields):
    for image, labels in fields:
        green = image[..., 1].astype(float) - image[..., 0]
        assert green[labels != SOIL].mean() > green[labels == SOIL].mean() + 15


def test_colour_does_not_tell_crop_from_weed(fields):
    """The best threshold on greenness, over all images, is hardly better than a coin."""
    image = np.concatenate([f[0].reshape(-1, 3) for f in fields]).astype(float)
    labels = np.concatenate([f[1].ravel() for f in fields])
    for value in (image[:, 1] - image[:, 0], image[:, 1] - image[:, 2], image.sum(1)):
        weed, crop = np.sort(value[labels == WEED]), np.sort(value[labels == CROP])
        cuts = np.linspace(value.min(), value.max(), 200)
        gap = np.searchsorted(weed, cuts) / len(weed) - np.searchsorted(crop, cuts) / len(crop)
        assert 0.5 + np.abs(gap).max() / 2 < 0.68


def low_resolution_loss(fields, factor):
    """1 - mIoU of the truth itself, sampled at block centres and repeated."""
    confusion = np.zeros((3, 3))
    for _, labels in fields:
        low = labels[factor // 2 :: factor, factor // 2 :: factor]
        back = low.repeat(factor, 0).repeat(factor, 1)
        confusion += np.bincount(3 * labels.ravel() + back.ravel(), minlength=9).reshape(3, 3)
    hit = np.diag(confusion)
    return 1 - (hit / (confusion.sum(0) + confusion.sum(1) - hit)).mean()


def test_low_resolution_loses_what_is_thin(fields):
    losses = [low_resolution_loss(fields, factor) for factor in (2, 4, 8)]
    assert losses[0] < losses[1] < losses[2]
    assert 0.08 < losses[1] < 0.2


@pytest.mark.slow
def test_a_crop_is_like_any_image(fields):
    """Lengths are in pixels: a larger image has more plants, not larger ones."""
    large = [generate_field(1536, 1536, seed) for seed in range(3)]
    assert abs(low_resolution_loss(large, 4) - low_resolution_loss(fields, 4)) < 0.04
