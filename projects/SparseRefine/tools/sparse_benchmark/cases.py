# SPDX-License-Identifier: Apache-2.0
"""What `benchmark_sparse.py` runs on our own layers, and how a pass is run and counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable

import torch
from torch import nn

from sparse_refine.sites import Sites
from sparse_refine.sparse import Pyramid, SparseUNet, build_grid
from sparse_refine.sparse.layers import SparseConv2d


@dataclass(frozen=True)
class Case:
    """One 3x3 convolution without bias: weight (9,C_in,C_out), features (P_in,C_in) in the order of
    the sites of `pyramid`, two levels in mode "reach"; `train`: forward and backward."""

    kind: str
    weight: torch.Tensor
    features: torch.Tensor
    pyramid: Pyramid
    train: bool

    @property
    def rows(self) -> int:
        """The sites that nine products each are counted for: the coarser ones where there are two
        kinds."""
        return self.pyramid.levels[0 if self.kind == "submanifold" else 1].count

    @property
    def forward_flops(self) -> int:
        """Two a multiplication; absent neighbours counted as present."""
        return 2 * self.rows * self.weight.numel()

    @property
    def flops(self) -> int:
        """Of the pass. Backward is two products of the size of forward's."""
        return (3 if self.train else 1) * self.forward_flops


def in_pass(forward: Callable[[], torch.Tensor], leaves, train: bool):
    """A call of `forward` without gradients or, in training, with the backward pass of the mean of
    squares, whose gradients are freed at the end."""

    def inference():
        with torch.no_grad():
            return forward()

    def training():
        output = forward()
        output.square().mean(dtype=torch.float32).backward()
        for leaf in leaves:
            leaf.grad = None
        return output.detach()

    return training if train else inference


def autocast_of(engine: str, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=engine.endswith("bf16"))


class LayerPeer:
    """`SparseConv2d` on one of our own engines. bf16 means autocast, and features that have been
    bfloat16 before, as within a network."""

    def __init__(self, engine: str, pyramid: Pyramid):
        sites, sizes = pyramid.levels[0].sites, pyramid.levels[0].sizes
        backend = "minkowski" if engine == "minkowski" else "torch"
        levels = len(pyramid.levels)
        self.engine, self.backend = engine, backend
        self.grid = build_grid(backend, Sites(sites, sizes), levels, pyramid.downsample)

    def make_maps(self, case: Case) -> None:
        """All that is made once for convolutions of this kind and size."""
        case = replace(case, train=False)
        if self.backend == "minkowski":  # one map for all sizes
            case = replace(case, weight=case.weight[:, :1], features=case.features[:, :1])
        self.convolution(case)()

    def convolution(self, case: Case):
        layer = SparseConv2d(*case.weight.shape[1:], case.kind).train(case.train)
        layer = layer.to(case.weight.device)
        layer.weight.data.copy_(case.weight)
        features = case.features
        if case.kind != "up":
            features = self.grid.enter(features)
        elif self.backend == "minkowski":
            features = self.grid.enter(features, 1)
        features = features.to(torch.bfloat16 if self.engine.endswith("bf16") else torch.float32)
        features = features.clone().requires_grad_(case.train)

        def forward():
            with autocast_of(self.engine, features.device):
                return layer(features, self.grid, 0)

        return in_pass(forward, [layer.weight, features], case.train)

    def read(self, output: torch.Tensor, case: Case) -> torch.Tensor:
        if case.kind != "down":
            return self.grid.leave(output)
        return self.grid.leave(output, 1) if self.backend == "minkowski" else output


def unet_products(unet: SparseUNet, pyramid: Pyramid) -> list[tuple[int, int, int]]:
    """(n,k,m) of the products that a UNet's convolutions and skips count as."""
    shapes = []
    for name, module in unet.named_modules():
        if not isinstance(module, (SparseConv2d, nn.Linear)):
            continue
        level = int(name.split(".")[1]) if "." in name else 0  # as in downs.1, encoders.1.0.conv1
        if isinstance(module, SparseConv2d):
            rows = pyramid.levels[level + (module.kind != "submanifold")].count
            shapes.append((rows, 9 * module.weight.shape[1], module.weight.shape[2]))
        else:
            shapes.append((pyramid.levels[level].count, module.in_features, module.out_features))
    return shapes


def unet_call(engine: str, unet: SparseUNet, pyramid: Pyramid, features: torch.Tensor, train: bool):
    """A call of `unet` on features (P,C_in), from the sites on: all maps are made in it."""
    sites, sizes = pyramid.levels[0].sites, pyramid.levels[0].sizes
    backend = "minkowski" if engine == "minkowski" else "torch"
    unet.train(train)

    def forward():
        with autocast_of(engine, features.device):
            return unet(features, build_grid(backend, Sites(sites, sizes), unet.levels))

    return in_pass(forward, list(unet.parameters()), train)
