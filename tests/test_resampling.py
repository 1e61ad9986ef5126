# SPDX-License-Identifier: Apache-2.0
"""Shrinking images, reading small maps at full size, and the one nearest-neighbour rule."""

import pytest
import torch
import torch.nn.functional as F

from sparse_refine.resampling import (
    argmax_labels,
    downsample,
    enlarge,
    enlarge_labels,
    first_under,
    low_size,
    nearest_index,
    pixels_under,
    read_at,
)
from sparse_refine.sites import View

SIZES = [((3, 4), (6, 8)), ((4, 5), (4, 5)), ((2, 3), (5, 7)), ((5, 3), (13, 11)), ((1, 1), (3, 2))]


def whole(height, width):
    return View(0, 0, height, width, (height, width))


# ---- sizes and resampling ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, scale, expected",
    [
        ((2448, 3264), 0.25, (612, 816)),
        ((1024, 2048), 0.5, (512, 1024)),
        ((101, 51), 0.3, (30, 15)),
        ((7, 9), 1.0, (7, 9)),
        ((1, 3), 0.1, (1, 1)),
    ],
)
def test_low_size(size, scale, expected):
    assert low_size(size, scale) == expected


def test_downsample_is_antialiased():
    # At half size a low pixel weighs the four pixels around its centre by 1 3 3 1, over 8; without
    # antialiasing the edge would stay sharp: 0 0 8 8.
    row = torch.tensor([0, 0, 0, 0, 8, 8, 8, 8], dtype=torch.uint8)
    image = row.expand(3, 8, 8)
    assert downsample(image, (4, 4)) == pytest.approx(torch.tensor([0.0, 1, 7, 8]).expand(3, 4, 4))
    assert downsample(image.transpose(1, 2), (4, 4))[1, :, 2].tolist() == [0, 1, 7, 8]


def test_downsample_keeps_range_and_size():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(downsample(image, (5, 7)), image.float())
    assert downsample(torch.full((3, 9, 11), 255, dtype=torch.uint8), (4, 3)) == pytest.approx(
        torch.full((3, 4, 3), 255.0)
    )


# ---- reading logits at full resolution -----------------------------------------------------------


def test_nearest_at_sites_by_hand():
    logits = torch.arange(12.0).view(2, 2, 3)  # class 0: 0..5, class 1: 6..11
    sites = torch.tensor([[0, 0], [2, 3], [3, 2], [4, 6]])
    # centres of 5 rows: 0-1 in low row 0, 2-4 in 1; of 7 columns 0-1 in low 0, 2-4 in 1, 5-6 in 2
    values = read_at(logits, sites, whole(5, 7), "nearest")
    assert values.tolist() == [[0, 6], [4, 10], [4, 10], [5, 11]]
    crop = View(1, 2, 4, 5, (5, 7))
    moved = read_at(logits, sites[1:] - torch.tensor([1, 2]), crop, "nearest")
    assert torch.equal(moved, values[1:])


def test_bilinear_at_sites_by_hand():
    # Two low pixels over four: centres 0.5 and 2.5 in full pixels, 0 + 8 (x - 0.5) / 2 between them
    logits = torch.tensor([0.0, 8.0]).view(1, 1, 2)
    sites = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
    values = read_at(logits, sites, whole(1, 4), "bilinear")
    assert values.flatten().tolist() == pytest.approx([0, 2, 6, 8])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("low, full", SIZES)
def test_sites_full_logits_and_labels_agree_with_torch(interpolation, low, full):
    logits = torch.randn(3, *low)
    modes = {"nearest": {"mode": "nearest-exact"}, "bilinear": {"mode": "bilinear"}}
    expected = F.interpolate(logits[None], size=full, **modes[interpolation])[0]

    sites = torch.ones(full).nonzero()
    values = read_at(logits, sites, whole(*full), interpolation)
    assert torch.allclose(values.t().reshape(3, *full), expected, atol=1e-5)
    assert torch.allclose(enlarge(logits, full, interpolation), expected, atol=1e-6)
    labels = enlarge_labels(logits, full, interpolation)
    assert labels.dtype == torch.uint8 and labels.shape == full
    top = expected.topk(2, dim=0).values
    clear = (top[0] - top[1]) > 1e-4  # bilinear numbers differ in the last bits
    assert torch.equal(labels.long()[clear], expected.argmax(0)[clear])
    assert clear.float().mean() > 0.9

    crop = View(1, 1, full[0] - 1, full[1] - 1, full)
    inside = (sites >= 1).all(1)
    part = read_at(logits, sites[inside] - 1, crop, interpolation)
    assert torch.allclose(part, values[inside], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_labels_of_a_tall_image_with_many_classes(interpolation):
    logits = torch.randn(300, 20, 2)
    labels = enlarge_labels(logits, (601, 4), interpolation)
    assert labels.dtype == torch.int16
    agree = labels.long() == enlarge(logits, (601, 4), interpolation).argmax(0)
    assert agree.float().mean() > 0.999 and labels.max() > 255


def test_labels_are_the_first_highest_score():
    scores = torch.tensor([[1.0, 5.0, 2.0, 7.0], [3.0, 5.0, 2.0, 7.0], [3.0, 4.0, 6.0, 8.0]])
    assert argmax_labels(scores[:, None]).tolist() == [[1, 0, 2, 2]]
    for classes, dtype in ((1, torch.uint8), (256, torch.uint8), (257, torch.int16)):
        many = torch.randn(classes, 4, 5)
        assert torch.equal(argmax_labels(many).long(), many.argmax(0))
        assert argmax_labels(many).dtype == dtype


def test_no_sites():
    none = torch.zeros(0, 2, dtype=torch.int64)
    for interpolation in ("nearest", "bilinear"):
        values = read_at(torch.randn(3, 2, 2), none, whole(4, 4), interpolation)
        assert values.shape == (0, 3)


@pytest.mark.parametrize("low, size", [(1, 7), (3, 7), (5, 8), (612, 2448), (7, 3), (5, 5)])
def test_nearest_is_where_the_centre_lies(low, size):
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * low / size
    index = nearest_index(size, low)
    assert torch.equal(index, centres.floor().long())
    for place in range(low + 1):
        first = (index >= place).nonzero()
        assert first_under(place, size, low) == (int(first[0]) if len(first) else size)
    under = pixels_under((low, 1), (size, 1))[:, 0]
    assert torch.equal(under, torch.bincount(index, minlength=low)) and int(under.sum()) == size
