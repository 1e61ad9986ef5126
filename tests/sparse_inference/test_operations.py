# SPDX-License-Identifier: Apache-2.0
"""A network at selected pixels against the whole of it: where the small image is the image itself,
what lies around a pixel is exact, and so must every output be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine.sparse_inference import (
    CompositeTensor,
    Recording,
    Resolutions,
    SiteTensor,
    UnsupportedOperation,
    known_operations,
)

from .networks import NETWORKS, network_of

SIZE = (32, 48)


def run(network, image, small, sites):
    """The network's `SiteTensor` of an image (1,C,H,W) at sites (P,2)."""
    with torch.no_grad():
        with Recording() as recording:
            network(small)
        size = tuple(image.shape[-2:])
        scale = tuple(a / b for a, b in zip(small.shape[-2:], size))
        resolutions = Resolutions(sites, size, size, scale)
        rows = image[0, :, sites[:, 0], sites[:, 1]].t()
        trace = recording.of_image(0, tuple(small.shape[-2:]))
        return network(SiteTensor(rows, resolutions.at(1), resolutions, trace))


def some_sites(share, size=SIZE):
    generator = torch.Generator().manual_seed(5)
    return (torch.rand(size, generator=generator) < share).nonzero()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("share", [0.004, 0.2, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_whole_network(name, share, channels_last):
    network, image = network_of(name), torch.randn(1, 4, *SIZE)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    output = run(network, image, image, some_sites(share))
    whole = network(image)
    assert tuple(output.shape) == tuple(whole.shape)
    cells = output.cells
    expected = whole[0, :, cells.y, cells.x].t()
    torch.testing.assert_close(output.values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_odd_maps(share):
    """33 rows, then 17, then 9: a map has as many cells as reach into the image."""
    down = nn.Sequential(*(nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(2)))
    network = nn.Sequential(down, nn.MaxPool2d(1, stride=2)).eval()  # as Detectron2's p6
    image = torch.randn(1, 4, 33, 47)
    output = run(network, image, image, some_sites(share, (33, 47)))
    whole = network(image)
    assert tuple(output.shape) == tuple(whole.shape) == (1, 4, 5, 6)
    cells = output.cells
    expected = whole[0, :, cells.y, cells.x].t()
    torch.testing.assert_close(output.values, expected, rtol=1e-4, atol=1e-5)


def test_the_padding_is_zeros():
    """A 3x5 image in 4x8 pixels, all ones, a small image of ones: beyond the image is nothing."""
    box = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(box.weight)
    with torch.no_grad(), Recording() as recording:
        box(torch.ones(1, 1, 2, 4))
    sites = torch.tensor([[1, 1], [2, 4]])
    resolutions = Resolutions(sites, (3, 5), (4, 8), (0.5, 0.5))
    trace = recording.of_image(0, (2, 3))
    with torch.no_grad():
        output = box(SiteTensor(torch.ones(2, 1), resolutions.at(1), resolutions, trace))
    assert output.values[:, 0].tolist() == [9, 4]


def test_what_lies_around_comes_from_the_small_image():
    """A box filter at one pixel: itself at full resolution, its eight neighbours from the small
    image, whose pixel (i, j) lies over the four pixels from (2 i, 2 j)."""
    box = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(box.weight)
    image, small = torch.full((1, 1, 4, 4), 100.0), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    inner = run(box, image, small, torch.tensor([[1, 2]]))
    # rows 0 and 1 lie in the small image's first row, row 2 in its second; columns 1 | 2, 3
    assert inner.values.item() == 100 + (1 + 2 + 2) + (1 + 2) + (3 + 4 + 4)
    corner = run(box, image, small, torch.tensor([[3, 3]]))
    assert corner.values.item() == 100 + 3 * 4  # beyond the border is nothing
    both = run(box, image, small, torch.tensor([[1, 2], [1, 3]]))
    assert both.values[0].item() == inner.values.item() + 100 - 2  # a neighbour that is active


@pytest.mark.parametrize(
    "network, message",
    [
        (lambda x: x.permute(0, 2, 3, 1), "permute"),
        (lambda x: F.softmax(x, dim=1), "softmax.*Known are .*conv2d"),
        (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm in training"),
        (lambda x: F.dropout(x, training=True), "dropout in training"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad by .*reflect"),
        (lambda x: torch.cat([x, x], dim=2), "along dimension 2"),
        (lambda x: x + torch.zeros(1, 4, *SIZE), "one value a channel"),
        (lambda x: x + F.max_pool2d(x, 2), "one stride"),
        (lambda x: F.conv2d(x, torch.zeros(2, 4, 3, 3)), "makes 30x46 of 32x48"),
        (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode"),
        (lambda x: F.interpolate(x, scale_factor=0.5), "interpolate of a map of stride 1 by"),
        (lambda x: F.interpolate(F.max_pool2d(x, 4), size=(20, 20)), "interpolate .*stride 4"),
        (lambda x: F.interpolate(F.max_pool2d(x, 2), SIZE, mode="bicubic"), "'bicubic'"),
        (lambda x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d to 2"),
        (lambda x: F.relu(F.pad(x, (1, 0, 1, 0))), "relu after pad"),
        (lambda x: x[:, :2], "uses indexing"),
        (lambda x: x**2, "uses pow"),
        (lambda x: torch.cat([x, F.adaptive_avg_pool2d(x, 1).expand(1, 4, *SIZE)], 1), "plain"),
        (lambda x: F.interpolate(F.max_pool2d(x, 1, 32), scale_factor=32), "the image's is"),
    ],
)
def test_what_has_no_form_is_said(network, message):
    image = torch.randn(1, 4, *SIZE)

    def both(x):
        if isinstance(x, torch.Tensor) and "training" in message:
            return x
        return network(x if isinstance(x, SiteTensor) else x.clone())

    if message == "one stride":  # which is no network at all

        def both(x):
            return F.max_pool2d(x, 2) if isinstance(x, torch.Tensor) else network(x)

    with pytest.raises(UnsupportedOperation, match=message):
        run(both, image, image, some_sites(0.1))


def test_another_architecture_is_said():
    image = torch.randn(1, 4, *SIZE)
    conv, pool = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)

    def differs(first, second):
        return lambda x: (first if isinstance(x, torch.Tensor) else second)(x)

    for first, second, message in (
        (pool, conv, "conv2d of 4 channels where max_pool2d of 4 was recorded"),
        (nn.Identity(), conv, "where nothing more was recorded"),
    ):
        with pytest.raises(UnsupportedOperation, match=message):
            run(differs(first, second), image, image, some_sites(0.1))


def test_a_map_that_is_changed_after_it_was_read_is_said():
    conv = nn.Conv2d(4, 4, 3, padding=1)

    def network(x):
        y = x * 1
        z = conv(y)
        return F.relu(y, inplace=True) + z

    image = torch.randn(1, 4, *SIZE)
    with pytest.raises(UnsupportedOperation, match="changes the input .* of conv2d in place"):
        run(network, image, image, some_sites(0.1))


def test_bfloat16():
    network, image = network_of("residual"), torch.randn(1, 4, *SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(network, image, image, some_sites(0.2))
    whole = network(image)[0, :, output.cells.y, output.cells.x].t()
    assert (output.values.float() - whole).abs().max() < 0.03 * whole.std()


def test_known_operations_are_named():
    known = set(known_operations(SiteTensor))
    assert {"conv2d", "batch_norm", "interpolate", "max_pool2d"} <= known
    assert known == set(known_operations(CompositeTensor))  # what can be used can be trained
