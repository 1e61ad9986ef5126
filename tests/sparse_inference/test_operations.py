# SPDX-License-Identifier: Apache-2.0
"""A network at selected pixels against the whole of it: where the small image is the image itself,
what lies around a pixel is exact, and so must every output be."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine.sparse_inference import (
    Recording,
    Resolutions,
    SiteTensor,
    UnsupportedOperation,
    known_operations,
)

SIZE = (32, 48)


class Residual(nn.Module):
    """A bottleneck with squeeze and excitation, as timm's and torchvision's."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.outer = nn.Conv2d(8, channels, 1)

    def forward(self, x):
        inner = self.inner(x)
        return x + self.outer(inner * self.gate(inner)) / 2


class InPlace(nn.Module):
    """What is read first and changed later is another tensor; what is changed is read later."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.first(x)
        kept = y
        y += x
        y -= 1
        y *= 2
        y /= 3
        return self.second(1 - y) + kept + (2 / (3 + F.relu(y)) - -x)


class Pooled(nn.Module):
    """What is computed of the pooled map is no matter of single pixels."""

    def __init__(self):
        super().__init__()
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x * self.pooled(x))


class Pyramid(nn.Module):
    """Down to stride 4, back up, joined: an FPN and a UNet in small."""

    def __init__(self, mode):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(2))
        self.up = nn.Upsample(
            scale_factor=2, mode=mode, align_corners=None if mode == "nearest" else False
        )
        self.join = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        half = F.relu(self.down[0](x))
        quarter = F.relu(self.down[1](half))
        half = torch.cat([half, self.up(quarter)], dim=1)
        return F.interpolate(self.join(half), size=SIZE, mode="bilinear", align_corners=False)


NETWORKS = {
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "3x3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "5x5 dilated": lambda: nn.Conv2d(4, 6, 5, padding=6, dilation=3),
    "1x7": lambda: nn.Conv2d(4, 6, (1, 7), padding=(0, 3)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "grouped 1x1": lambda: nn.Conv2d(4, 6, 1, groups=2),
    "depthwise 5x5": lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4),
    "padded on one side": lambda: nn.Sequential(nn.ZeroPad2d((0, 2, 2, 0)), nn.Conv2d(4, 6, 3)),
    "stride 2": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "stride 2, 1x1": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "stride 2, one side": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, stride=2)
    ),
    "patches": lambda: nn.Conv2d(4, 6, 4, stride=4),
    "max pool": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max pool 2x2": lambda: nn.MaxPool2d(2),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Dropout(0.5), nn.GELU()),
    "group norm, plain": lambda: nn.GroupNorm(2, 4, affine=False),
    "residual": lambda: nn.Sequential(Residual(4), Residual(4)),
    "in place": InPlace,
    "pooled": Pooled,
    "nearest": lambda: Pyramid("nearest"),
    "bilinear": lambda: Pyramid("bilinear"),
}


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


def network_of(name):
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


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
    torch.testing.assert_close(output.rows, whole[0, :, cells.y, cells.x].t(), rtol=1e-4, atol=1e-5)


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
    torch.testing.assert_close(output.rows, whole[0, :, cells.y, cells.x].t(), rtol=1e-4, atol=1e-5)


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
    assert output.rows[:, 0].tolist() == [9, 4]


def test_what_lies_around_comes_from_the_small_image():
    """A box filter at one pixel: itself at full resolution, its eight neighbours from the small
    image, whose pixel (i, j) lies over the four pixels from (2 i, 2 j)."""
    box = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(box.weight)
    image, small = torch.full((1, 1, 4, 4), 100.0), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    inner = run(box, image, small, torch.tensor([[1, 2]]))
    # rows 0 and 1 lie in the small image's first row, row 2 in its second; columns 1 | 2, 3
    assert inner.rows.item() == 100 + (1 + 2 + 2) + (1 + 2) + (3 + 4 + 4)
    corner = run(box, image, small, torch.tensor([[3, 3]]))
    assert corner.rows.item() == 100 + 3 * 4  # beyond the border is nothing
    both = run(box, image, small, torch.tensor([[1, 2], [1, 3]]))
    assert both.rows[0].item() == inner.rows.item() + 100 - 2  # a neighbour that is active


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
    assert (output.rows.float() - whole).abs().max() < 0.03 * whole.std()


def test_known_operations_are_named():
    assert {"conv2d", "batch_norm", "interpolate", "max_pool2d"} <= set(known_operations())
