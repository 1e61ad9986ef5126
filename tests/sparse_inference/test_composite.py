# SPDX-License-Identifier: Apache-2.0
"""The training form of a network at selected pixels against its form at inference: the same numbers
at the selected pixels, and the gradients of what they are computed from."""

import pytest
import torch
from torch import nn

from sparse_refine.sparse_inference import (
    CompositeTensor,
    Recording,
    Resolutions,
    SiteTensor,
    UnsupportedOperation,
    Window,
)

from .networks import NETWORKS, network_of

IMAGE, DIVISOR = (45, 62), 4  # padded: (48, 64)
SMALL, SMALL_PADDED = (22, 31), (24, 32)
VIEWS = {"whole": (0, 0, 45, 62), "crop": (5, 9, 30, 41), "corner": (17, 30, 28, 32)}


def case(network, view, share, dtype=torch.float32, deepest=None):
    """Values (P,4) of some pixels of a view, their window, their cells in the whole image, and the
    trace of the network on a small image."""
    generator = torch.Generator().manual_seed(5)
    top, left, height, width = view
    sites = (torch.rand(height, width, generator=generator) < share).nonzero()
    rows = torch.randn(len(sites), 4, generator=generator).to(dtype)
    small = torch.randn(1, 4, *SMALL_PADDED, generator=generator).to(dtype)
    small[..., SMALL[0] :, :] = 0  # as ImageList pads
    small[..., SMALL[1] :] = 0
    with torch.no_grad(), Recording() as recording:
        network(small)
    scale = tuple(a / b for a, b in zip(SMALL, IMAGE))
    window = Window(sites, view, IMAGE, DIVISOR, scale, deepest)
    yx = sites + torch.tensor([top, left])
    resolutions = Resolutions(yx, IMAGE, (48, 64), scale, deepest)
    return rows, window, resolutions, recording.of_image(0, SMALL)


def composite(network, rows, window, trace):
    return network(CompositeTensor(window.image_of(rows), 1, window, trace.from_start()))


def at_cells(maps, window, cells):
    """(P,C) of a composite's map at cells of the whole image's."""
    y, x = (at - first // maps.stride for at, first in zip((cells.y, cells.x), window.first))
    return maps.values[0, :, y, x].t()


@pytest.mark.parametrize("share", [0.02, 0.4, 1.0])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_form_at_inference(name, view, share):
    network = network_of(name)
    rows, window, resolutions, trace = case(network, VIEWS[view], share)
    with torch.no_grad():
        inference = network(SiteTensor(rows, resolutions.at(1), resolutions, trace.from_start()))
    training = composite(network, rows, window, trace)
    assert training.stride == inference.stride and training.channels == inference.channels
    values = at_cells(training, window, inference.cells)
    torch.testing.assert_close(values, inference.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deepest", [1, 2])
@pytest.mark.parametrize("name", ["nearest", "bilinear"])
def test_deep_maps_are_the_small_images(name, deepest):
    """Of strides beyond the deepest no cell is computed, in either form."""
    network = network_of(name)
    rows, window, resolutions, trace = case(network, VIEWS["crop"], 0.4, deepest=deepest)
    assert not window.mask(4).any() and len(resolutions.at(4)) == 0
    assert window.mask(2).any() == (deepest == 2) and window.mask(1).any()
    with torch.no_grad():
        inference = network(SiteTensor(rows, resolutions.at(1), resolutions, trace.from_start()))
    training = composite(network, rows, window, trace)
    values = at_cells(training, window, inference.cells)
    torch.testing.assert_close(values, inference.values, rtol=1e-4, atol=1e-5)
    rows, window, resolutions, trace = case(network, VIEWS["crop"], 0.4)
    assert (composite(network, rows, window, trace).values - training.values).abs().max() > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_against_finite_differences(name):
    network = network_of(name).double()
    parameters = list(network.parameters())
    rows, window, _, trace = case(network, VIEWS["crop"], 0.3, torch.float64)
    rows.requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    variables = [rows, *parameters]
    directions = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in variables]

    def loss():
        output = composite(network, rows, window, trace)  # the small image's maps are constants
        return output.values[0, :, window.mask(output.stride)].square().mean()

    def after(step):
        with torch.no_grad():
            for variable, direction in zip(variables, directions):
                variable.add_(direction, alpha=step)
            value = loss().item()
            for variable, direction in zip(variables, directions):
                variable.sub_(direction, alpha=step)
        return value

    gradients = torch.autograd.grad(loss(), variables)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions)).item()
    step = 1e-6
    assert slope == pytest.approx((after(step) - after(-step)) / (2 * step), rel=1e-4)


def test_nothing_is_learned_from_pixels_that_are_not_selected():
    """A value that is not selected is read nowhere: the small image's stands in its place."""
    network = network_of("3x3")
    rows, window, _, trace = case(network, VIEWS["crop"], 0.3)
    expected = composite(network, rows, window, trace).values[0, :, window.mask(1)]
    image = window.image_of(rows)
    image = torch.where(window.mask(1), image, torch.full_like(image, torch.nan))
    output = network(CompositeTensor(image, 1, window, trace.from_start()))
    assert torch.equal(output.values[0, :, window.mask(1)], expected)


def test_a_window_grows_to_the_strides():
    window = Window(torch.tensor([[0, 0]]), (5, 9, 30, 41), IMAGE, DIVISOR, (0.5, 0.5))
    assert window.first == (4, 8) and window.size == (32, 44)
    assert window.mask(1).nonzero().tolist() == [[1, 1]]
    assert window.mask(4).nonzero().tolist() == [[0, 0]]
    assert window.beside(4) == (2, 3, 1, 3)  # of 16 x 12 cells, 11 x 8 from (2, 1) on


@pytest.mark.parametrize(
    "network, message",
    [
        (lambda x: nn.functional.softmax(x, dim=1), "softmax.*Known are .*conv2d"),
        (lambda x: nn.functional.conv2d(x, torch.zeros(2, 4, 3, 3)), "makes .30, 42. of .32, 44."),
        (lambda x: nn.functional.max_pool2d(x, 3, 2, ceil_mode=True), "ceil_mode"),
        (lambda x: nn.functional.interpolate(x, scale_factor=0.5), "map of stride 1 by"),
        (lambda x: x[:, :2], "uses indexing"),
    ],
)
def test_what_has_no_form_is_said(network, message):
    rows, window, _, trace = case(nn.Conv2d(4, 2, 3), VIEWS["crop"], 0.3)
    with pytest.raises(UnsupportedOperation, match=message):
        composite(network, rows, window, trace)


def test_bfloat16():
    network = network_of("residual")
    rows, window, _, trace = case(network, VIEWS["crop"], 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = composite(network, rows, window, trace).values
    whole = composite(network, rows, window, trace).values
    assert (half.float() - whole)[0, :, window.mask(1)].abs().max() < 0.05 * whole.std()
