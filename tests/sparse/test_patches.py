# SPDX-License-Identifier: Apache-2.0
"""Patches against the dense image cut into squares."""

import pytest
import torch

from sparse_refine.sites import Sites
from sparse_refine.sparse import Patches


def sites_of(*masks):
    return torch.cat(
        [
            torch.cat([torch.full((int(m.sum()), 1), i), m.nonzero()], dim=1)
            for i, m in enumerate(masks)
        ]
    )


def cut(image, side):
    """(C,H,W) -> (rows, columns, side*side*C), zeros past the edge, pixel by pixel."""
    channels, height, width = image.shape
    rows, columns = -(-height // side), -(-width // side)
    padded = image.new_zeros(channels, rows * side, columns * side)
    padded[:, :height, :width] = image
    squares = padded.view(channels, rows, side, columns, side).permute(1, 3, 2, 4, 0)
    return squares.reshape(rows, columns, side * side * channels)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_against_dense(side, share):
    torch.manual_seed(side)
    images = [torch.randn(3, 9, 7), torch.randn(3, 4, 12), torch.randn(3, 1, 1)]
    masks = [torch.rand(image.shape[1:]) < share for image in images]
    patches = Patches(Sites(sites_of(*masks), [tuple(m.shape) for m in masks]), side)
    expected_sites, expected = [], []
    for i, (image, mask) in enumerate(zip(images, masks)):
        occupied = cut(mask[None].float(), side).any(-1)
        expected_sites.append(torch.nn.functional.pad(occupied.nonzero(), (1, 0), value=i))
        expected.append(cut(image * mask, side)[occupied])
    assert torch.equal(patches.sites.coordinates, torch.cat(expected_sites))
    assert patches.sites.sizes == [(-(-m.shape[0] // side), -(-m.shape[1] // side)) for m in masks]
    features = torch.cat([image[:, mask].t() for image, mask in zip(images, masks)])
    gathered = patches.gather(features)
    assert torch.equal(gathered, torch.cat(expected))
    assert torch.equal(patches.scatter(gathered), features)


def test_gradients():
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    patches = Patches(Sites(sites_of(mask), [(5, 6)]), 2)
    features = torch.randn(int(mask.sum()), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: patches.scatter(patches.gather(x) ** 2), features)
