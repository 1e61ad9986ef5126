# SPDX-License-Identifier: Apache-2.0
"""A refiner in the format of the paper's release, against a reference written out densely.

`Release` computes what the release's network does, tap by tap from TorchSparse's weights, for the
case that every pixel is selected; then its sparse convolutions are dense ones.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine.conversion import FORMATS, compare, convert
from sparse_refine.conversion.refiner import PIXEL_MEAN, PIXEL_STD, refiner_rules
from sparse_refine.ensembler import GatedEnsembler
from sparse_refine.extractors import Selection, SparseUNetExtractor
from sparse_refine.sites import Sites, View

CLASSES, CHANNELS, SIZE = 5, (4, 6, 8), (14, 18)


class Release:
    """`state`: tensors under the release's names, random; `refine`: its network on full images."""

    def __init__(self, channels=CHANNELS, prefix="model."):
        self.state, self.prefix, self.channels = {}, prefix, channels
        self._kernel("backbone.net.0", 9, 3, channels[0])
        self._level("backbone.net.1", channels)
        self._norm("backbone.net.2", channels[0])
        self._linear("classifier", channels[0], CLASSES)
        self._linear("ensembler.attn.0", 2 * CLASSES + 2, 64)
        self._linear("ensembler.attn.2", 64, 2)
        self._linear("ensembler.fuser.0", CLASSES, 64)
        self._linear("ensembler.fuser.2", 64, CLASSES)

    def _put(self, name, tensor):
        self.state[self.prefix + name] = tensor

    def _kernel(self, name, taps, inputs, outputs):
        kernel = torch.randn(taps, inputs, outputs) / (taps * inputs) ** 0.5
        self._put(f"{name}.kernel", kernel[0] if taps == 1 else kernel)

    def _norm(self, name, channels):
        self._put(f"{name}.weight", torch.rand(channels) + 0.5)
        self._put(f"{name}.bias", torch.randn(channels) / 4)
        self._put(f"{name}.running_mean", torch.randn(channels) / 4)
        self._put(f"{name}.running_var", torch.rand(channels) + 0.5)
        self._put(f"{name}.num_batches_tracked", torch.tensor(7))

    def _linear(self, name, inputs, outputs):
        self._put(f"{name}.weight", torch.randn(outputs, inputs) / inputs**0.5)
        self._put(f"{name}.bias", torch.randn(outputs))

    def _block(self, name, inputs, outputs):
        if inputs != outputs:
            self._kernel(f"{name}.0", 1, inputs, outputs)
        self._norm(f"{name}.1.0", inputs)
        self._kernel(f"{name}.1.2", 9, inputs, outputs)
        self._norm(f"{name}.1.3", outputs)
        self._kernel(f"{name}.1.5", 9, outputs, outputs)

    def _level(self, name, channels):
        for i in (0, 2):
            self._block(f"{name}.{i}", channels[0], channels[0])
        if len(channels) > 1:
            self._norm(f"{name}.4.1.0", channels[0])
            self._kernel(f"{name}.4.1.2", 9, channels[0], channels[1])
            self._level(f"{name}.4.1.3", channels[1:])
            self._norm(f"{name}.4.1.4", channels[1])
            self._kernel(f"{name}.4.1.6", 9, channels[1], channels[0])
            self._block(f"{name}.6", 2 * channels[0], channels[0])
            self._block(f"{name}.8", channels[0], channels[0])

    # ---- the network, on (1,C,H,W) ---------------------------------------------------------------
    def _get(self, name):
        return self.state[self.prefix + name]

    def _dense(self, name):
        """(C_out,C_in,3,3): tap number y + 3 x of the kernel stands at row y, column x."""
        kernel = self._get(f"{name}.kernel")
        dense = kernel.new_empty(kernel.shape[2], kernel.shape[1], 3, 3)
        for y in range(3):
            for x in range(3):
                dense[:, :, y, x] = kernel[y + 3 * x].t()
        return dense

    def _norm_relu(self, name, x):
        parts = (self._get(f"{name}.{p}") for p in ("running_mean", "running_var"))
        return F.batch_norm(
            x, *parts, self._get(f"{name}.weight"), self._get(f"{name}.bias"), eps=1e-5
        ).relu()

    def _run_block(self, name, x):
        skip = x
        if f"{self.prefix}{name}.0.kernel" in self.state:
            skip = torch.einsum("bchw,cd->bdhw", x, self._get(f"{name}.0.kernel"))
        for norm, conv in ((0, 2), (3, 5)):
            x = self._norm_relu(f"{name}.1.{norm}", x)
            x = F.conv2d(x, self._dense(f"{name}.1.{conv}"), padding=1)
        return skip + x

    def _run_level(self, name, x):
        for i in (0, 2):
            x = self._run_block(f"{name}.{i}", x)
        if f"{self.prefix}{name}.4.1.2.kernel" in self.state:
            inner = f"{name}.4.1"
            down = F.conv2d(self._norm_relu(f"{inner}.0", x), self._dense(f"{inner}.2"), stride=2)
            coarse = self._norm_relu(f"{inner}.4", self._run_level(f"{inner}.3", down))
            kernel = self._dense(f"{inner}.6").transpose(0, 1)
            up = F.conv_transpose2d(coarse, kernel, stride=2)
            height, width = x.shape[-2:]  # a last row or column may be out of every window's reach
            up = F.pad(up, (0, width - up.shape[-1], 0, height - up.shape[-2]))
            x = torch.cat([x, up], dim=1)
            for i in (6, 8):
                x = self._run_block(f"{name}.{i}", x)
        return x

    def refine(self, pixels):
        x = F.conv2d(pixels, self._dense("backbone.net.0"), padding=1)
        x = self._norm_relu("backbone.net.2", self._run_level("backbone.net.1", x))
        x = x[0].flatten(1).t()
        return F.linear(x, self._get("classifier.weight"), self._get("classifier.bias"))

    def fuse(self, coarse, refined):
        def evidence(logits):
            p = logits.softmax(1)
            return torch.cat([p, -(p * p.clamp(min=1e-5).log()).sum(1, keepdim=True)], dim=1)

        def mlp(name, x):
            for i in (0, 2):
                layer = f"ensembler.{name}.{i}"
                x = F.linear(x, self._get(f"{layer}.weight"), self._get(f"{layer}.bias"))
                x = x.relu() if i == 0 else x
            return x

        weights = mlp("attn", torch.cat([evidence(coarse), evidence(refined)], dim=1)).softmax(1)
        return mlp("fuser", weights[:, :1] * coarse + weights[:, 1:] * refined)


def ours(channels=CHANNELS, backend="torch"):
    return nn.ModuleDict(
        {
            "extractor": SparseUNetExtractor(
                num_classes=CLASSES,
                pixel_mean=PIXEL_MEAN,
                pixel_std=PIXEL_STD,
                channels=channels,
                blocks=2,
                downsample="reach",
                backend=backend,
            ),
            "ensembler": GatedEnsembler(num_classes=CLASSES),
        }
    ).eval()


@pytest.mark.parametrize("size", [(14, 18), (15, 19)])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_the_converted_refiner_gives_the_releases_numbers(size, prefix):
    release, model = Release(prefix=prefix), ours()
    converted, report = convert(release.state, refiner_rules(levels=3))
    compare(report, converted, model.state_dict())
    assert report.complete, report.summary()
    model.load_state_dict(converted)

    image = torch.randint(0, 256, (3, *size)).float()  # RGB
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    # what the release feeds: red and blue swapped, then normalised as if they were not
    swapped = (image.flip(0) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = release.refine(swapped[None])

    sites = Sites.of_masks([torch.ones(size, dtype=torch.bool)])
    coarse = torch.randn(len(sites), CLASSES)
    selection = Selection(sites, [image], [image], coarse, [View(0, 0, *size, size)])
    with torch.no_grad():
        refined = model["extractor"](selection)
        fused = model["ensembler"](coarse, refined)
    assert expected.std() > 0.1
    torch.testing.assert_close(refined, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused, release.fuse(coarse, expected), rtol=1e-4, atol=1e-4)


def test_the_releases_size_is_the_paper_preset():
    channels = (32, 64, 128, 256, 512, 1024)
    with torch.device("meta"):
        release, model = Release(channels), ours(channels)
    converted, report = convert(release.state, FORMATS["sparserefine"].rules)
    compare(report, converted, model.state_dict())
    assert report.complete, report.summary()
    assert sum(t.numel() for n, t in converted.items() if "weight" in n) > 79e6


def test_another_refiner_is_refused():
    _, report = convert(Release((4, 6)).state, refiner_rules(levels=1))
    assert report.left_over and not report.complete
    state = Release((4, 6)).state
    state["model.backbone.net.0.kernel"] = torch.ones(9, 5, 4)
    with pytest.raises(ValueError, match="5 input channels"):
        convert(state, refiner_rules(levels=2))
