# SPDX-License-Identifier: Apache-2.0
"""The UNet against a dense one that sets every pixel without a site to zero after each layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine.sites import Sites
from sparse_refine.sparse import PRESETS, Pyramid, SparseUNet, TorchGrid
from sparse_refine.sparse.layers import NormReLU, ResidualBlock, SiteNorm, SparseConv2d

MODES = ("floor", "reach")


def sites_of(sizes: list[tuple[int, int]], share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    parts = [
        F.pad((torch.rand(size, generator=generator) < share).nonzero(), (1, 0), value=image)
        for image, size in enumerate(sizes)
    ]
    return torch.cat(parts)


def randomised(unet: nn.Module) -> nn.Module:
    """Norms as after a training: statistics and affine parameters that all matter."""
    for norm in (m for m in unet.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        nn.init.normal_(norm.running_mean, std=0.3)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    return unet


class DenseUNet:
    """A `SparseUNet` in eval mode on one image, by convolutions of whole feature maps."""

    def __init__(self, unet: SparseUNet, pyramid: Pyramid):
        self.unet = unet
        self.floor = pyramid.downsample == "floor"
        self.sizes = [level.sizes[0] for level in pyramid.levels]
        self.masks = []
        for level in pyramid.levels:
            mask = torch.zeros(level.sizes[0], dtype=torch.float64)
            mask[level.sites[:, 1], level.sites[:, 2]] = 1
            self.masks.append(mask)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(1,C,H,W), zero where there is no site -> (1,channels[0],H,W)."""
        unet, levels = self.unet, self.unet.levels
        x, skips = self._same(x, unet.stem, 0), []
        for level in range(levels):
            if level > 0:
                x = self._act(x, unet.before_down[level - 1], level - 1)
                x = self._down(x, unet.downs[level - 1], level - 1)
            x = self._stage(x, unet.encoders[level], level)
            skips.append(x)
        for level in range(levels - 2, -1, -1):
            x = self._up(self._act(x, unet.before_up[level], level + 1), unet.ups[level], level)
            x = self._stage(torch.cat([skips[level], x], 1), unet.decoders[level], level)
        return self._act(x, unet.last, 0)

    def _act(self, x, layer: NormReLU, level: int):
        norm = layer.norm
        x = F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        return x.relu() * self.masks[level]

    def _stage(self, x, blocks: nn.ModuleList, level: int):
        block: ResidualBlock
        for block in blocks:
            y = self._same(self._act(x, block.act1, level), block.conv1, level)
            y = self._same(self._act(y, block.act2, level), block.conv2, level)
            if block.skip is not None:
                x = F.conv2d(x, block.skip.weight[:, :, None, None])
            x = x + y
        return x

    def _same(self, x, conv: SparseConv2d, level: int):
        return F.conv2d(x, _kernel(conv).permute(3, 2, 0, 1), padding=1) * self.masks[level]

    def _down(self, x, conv: SparseConv2d, level: int):
        before = 1 if self.floor else 0
        (high, wide), (out_high, out_wide) = self.sizes[level : level + 2]
        after_x, after_y = 2 * out_wide + 1 - wide - before, 2 * out_high + 1 - high - before
        x = F.pad(x, (before, after_x, before, after_y))
        return F.conv2d(x, _kernel(conv).permute(3, 2, 0, 1), stride=2) * self.masks[level + 1]

    def _up(self, x, conv: SparseConv2d, level: int):
        start, (high, wide) = (1 if self.floor else 0), self.sizes[level]
        x = F.conv_transpose2d(x, _kernel(conv).permute(2, 3, 0, 1), stride=2)
        return x[:, :, start : start + high, start : start + wide] * self.masks[level]


def _kernel(conv: SparseConv2d) -> torch.Tensor:
    return conv.weight.view(3, 3, *conv.weight.shape[1:])


@pytest.mark.parametrize(
    ("channels", "blocks"), [((6,), 1), ((4, 6), 2), ((4, 6, 8, 10), 1), ((3, 4, 5, 6, 7, 8), 2)]
)
@pytest.mark.parametrize("share", [0.15, 1.0])
@pytest.mark.parametrize("mode", MODES)
def test_equals_a_dense_unet(mode, share, channels, blocks):
    size = (37, 50)
    sites = sites_of([size], share)
    pyramid = Pyramid(Sites(sites, [size]), len(channels), mode)
    unet = randomised(SparseUNet(5, channels, blocks)).double().eval()
    features = torch.randn(len(sites), 5, dtype=torch.float64, requires_grad=True)
    output = unet(features, TorchGrid(pyramid))

    y, x = sites[:, 1:].unbind(1)
    image = torch.zeros(*size, 5, dtype=torch.float64).index_put((y, x), features)
    dense = DenseUNet(unet, pyramid)(image.permute(2, 0, 1)[None])[0]
    expected = dense[:, y, x].t()
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    assert output.std() > 0.05
    with torch.no_grad():  # norms folded, residuals added on the way
        torch.testing.assert_close(unet(features, TorchGrid(pyramid)), expected, atol=1e-9, rtol=0)
        single = copy.deepcopy(unet).float()(features.float(), TorchGrid(pyramid))
    torch.testing.assert_close(single.double(), expected, atol=1e-4, rtol=1e-4)

    leaves = (features, *unet.parameters())
    probe = torch.randn_like(output)
    gradients = torch.autograd.grad(output, leaves, probe)
    reference = torch.autograd.grad(expected, leaves, probe)
    for gradient, same in zip(gradients, reference):
        torch.testing.assert_close(gradient, same, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_its_images_one_by_one(mode):
    sizes = [(20, 33), (0, 0), (1, 1), (31, 8)]
    sites = sites_of(sizes, 0.4)
    unet = randomised(SparseUNet(3, (4, 6, 8), 1)).double().eval()
    features = torch.randn(len(sites), 3, dtype=torch.float64)
    together = unet(features, TorchGrid(Pyramid(Sites(sites, sizes), 3, mode)))
    for image, size in enumerate(sizes):
        rows = sites[:, 0] == image
        own = F.pad(sites[rows][:, 1:], (1, 0))
        alone = unet(features[rows], TorchGrid(Pyramid(Sites(own, [size]), 3, mode)))
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-12)


# The paper gives 79.33 M for its own size, classifier left out.
@pytest.mark.parametrize(
    ("preset", "parameters"), [("paper", 79_334_560), ("base", 2_970_016), ("small", 743_888)]
)
def test_presets_have_their_sizes(preset, parameters):
    with torch.device("meta"):
        unet = SparseUNet(3, *PRESETS[preset])
    assert sum(p.numel() for p in unet.parameters()) == parameters
    assert set(PRESETS) == {"paper", "base", "small"}


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [0, 1])
def test_training_on_no_site_or_one(count, mode, norm):
    unet = SparseUNet(3, (4, 6, 8), 1, norm).train()
    before = {name: value.clone() for name, value in unet.named_buffers()}
    sites = torch.tensor([[0, 2, 2]])[:count]
    features = torch.randn(count, 3, requires_grad=True)
    output = unet(features, TorchGrid(Pyramid(Sites(sites, [(5, 5)]), 3, mode)))
    assert output.shape == (count, 4)
    output.sum().backward()
    # every parameter takes part, or processes that have sites would wait for this one
    gradients = [parameter.grad for parameter in unet.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients) == (count == 1)
    assert features.grad.shape == (count, 3)
    # one value has no variance to learn from
    for name, value in unet.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_two_sites_train_the_statistics():
    norm = SiteNorm(2).train()
    norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.2, 0.4]))
    torch.testing.assert_close(norm.running_var, torch.tensor([0.9 + 0.2, 0.9 + 0.8]))


@pytest.mark.parametrize("training", [True, False])
def test_sync_norm_in_one_process_is_the_ordinary_one(training):
    sizes = [(15, 16), (9, 9)]
    sites = sites_of(sizes, 0.5)
    grid = TorchGrid(Pyramid(Sites(sites, sizes), 3))
    ordinary = randomised(SparseUNet(3, (4, 6, 8), 1, "BN")).train(training)
    synchronised = SparseUNet(3, (4, 6, 8), 1, "SyncBN").train(training)
    synchronised.load_state_dict(ordinary.state_dict())
    features = torch.randn(len(sites), 3)
    torch.testing.assert_close(synchronised(features, grid), ordinary(features, grid))
    for name, value in synchronised.state_dict().items():
        torch.testing.assert_close(value, ordinary.state_dict()[name], msg=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert synchronised(features, grid).isfinite().all()


@pytest.mark.slow
def test_training_learns():
    sizes = [(24, 24)]
    sites = sites_of(sizes, 0.4)
    grid = TorchGrid(Pyramid(Sites(sites, sizes), 3))
    unet = SparseUNet(3, (8, 12, 16), 1).train()
    features = torch.randn(len(sites), 3)
    target = torch.randint(8, (len(sites),))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(unet(features, grid), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_autocast_is_near_float32():
    sizes = [(40, 30)]
    sites = sites_of(sizes, 0.3)
    grid = TorchGrid(Pyramid(Sites(sites, sizes), 4))
    unet = randomised(SparseUNet(3, *PRESETS["small"])).eval()
    features = torch.randn(len(sites), 3)
    with torch.no_grad():
        exact = unet(features, grid)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = unet(features, grid)
    assert (near.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_inference_sees_changed_weights_and_statistics():
    """What inference folds is never older than the model."""
    sites = sites_of([(20, 20)], 0.4)
    grid = TorchGrid(Pyramid(Sites(sites, [(20, 20)]), 2))
    unet = randomised(SparseUNet(3, (4, 6), 1)).eval()
    features = torch.randn(len(sites), 3)
    with torch.no_grad():
        unet(features, grid)
        for change in (
            lambda: unet.encoders[0][0].conv1.weight.data.mul_(2),
            lambda: unet.encoders[0][0].act2.norm.running_var.data.mul_(3),
        ):
            change()
            folded = unet(features, grid)
            with torch.enable_grad():
                plain = unet(features, grid)
            torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_parts_stand_for_their_concatenation(training):
    parts = torch.randn(50, 6).split([2, 4], dim=1)
    sites = sites_of([(10, 10)], 1)[:50]
    grid = TorchGrid(Pyramid(Sites(sites, [(10, 10)]), 1))
    block = randomised(ResidualBlock(6, 5)).train(training)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(block(parts, grid, 0), block(torch.cat(parts, 1), grid, 0))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"CHANNELS is \[\]"):
        SparseUNet(3, (), 1)
    with pytest.raises(ValueError, match=r"CHANNELS is \[4, 0\]"):
        SparseUNet(3, (4, 0), 1)
    with pytest.raises(ValueError, match="BLOCKS 0"):
        SparseUNet(3, (4,), 0)
    with pytest.raises(ValueError, match="NORM is 'GN'.*BN.*SyncBN"):
        SparseUNet(3, (4,), 1, "GN")
    with pytest.raises(ValueError, match="kind is 'same'"):
        SparseConv2d(3, 4, "same")
