# SPDX-License-Identifier: Apache-2.0
"""Sites: checked where they are made, split and read by image."""

import pytest
import torch

from sparse_refine.sites import Sites, View

SIZES = [(4, 5), (2, 9), (1, 1)]


def random_masks(share=0.4):
    return [torch.rand(size) < share for size in SIZES]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_masks_and_parts_and_coordinates_are_the_same_sites(share):
    masks = random_masks(share)
    parts = [mask.nonzero() for mask in masks]
    made = Sites.of_masks(masks)
    assert torch.equal(made.coordinates, Sites.of_images(parts, SIZES).coordinates)
    given = Sites(made.coordinates, SIZES)
    assert given.counts == made.counts == [len(part) for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(given.by_image(), parts))
    assert given.sizes == SIZES and len(given) == sum(given.counts)


def test_read_is_indexing():
    masks = random_masks()
    maps = [torch.randn(3, *size) for size in SIZES]
    expected = torch.cat([values[:, mask].t() for values, mask in zip(maps, masks)])
    assert torch.equal(Sites.of_masks(masks).read(maps), expected)


@pytest.mark.parametrize(
    "sites, message",
    [
        ([[0, 0, 1], [0, 0, 0]], r"\[0, 0, 1\] .* comes before \[0, 0, 0\]"),
        ([[0, 2, 0], [0, 1, 4]], r"comes before \[0, 1, 4\]"),
        ([[1, 0, 0], [0, 3, 4]], r"comes before \[0, 3, 4\]"),
        ([[0, 1, 1], [0, 1, 1]], r"\[0, 1, 1\] .* is there twice"),
        ([[0, 4, 0]], r"\[0, 4, 0\] .* outside .*\(4, 5\), \(2, 9\)"),
        ([[0, 0, 5]], "outside"),
        ([[1, 1, 9]], "outside"),
        ([[0, -1, 0]], "outside"),
        ([[0, 0, -1]], "outside"),
        ([[-1, 0, 0]], "outside"),
        ([[3, 0, 0]], "outside"),
        ([[0, 0]], r"\(P,3\) of \(image, y, x\)"),
        ([0, 0, 0], r"\(P,3\) of \(image, y, x\)"),
    ],
)
def test_what_is_refused(sites, message):
    with pytest.raises(ValueError, match=message):
        Sites(torch.tensor(sites), SIZES)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="torch.float32: torch.int64"):
        Sites(torch.zeros(1, 3), SIZES)
    with pytest.raises(ValueError, match=r"image 1 are \(1, 3\): \(P,2\)"):
        Sites.of_images([torch.zeros(0, 2).long(), torch.zeros(1, 3).long()], SIZES[:2])


def test_images_without_sites():
    none = Sites(torch.zeros(0, 3, dtype=torch.int64), [])
    assert len(none) == 0 and none.counts == []
    assert Sites(torch.tensor([[1, 1, 8]]), SIZES).counts == [0, 1, 0]


def test_a_view_of_an_input():
    image = torch.zeros(3, 4, 6)
    assert View.of_input({"image": image}) == View(0, 0, 4, 6, (4, 6))
    crop = View.of_input({"image": image, "crop": (1, 2, 30, 40)})
    assert crop == View(1, 2, 4, 6, (30, 40)) and crop.size == (4, 6)
