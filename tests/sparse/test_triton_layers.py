# SPDX-License-Identifier: Apache-2.0
"""Layers and the UNet on the GPU's kernels against the engine without them, in double precision.

Without a GPU test_triton_kernels.py runs this file in Triton's interpreter.
"""

from __future__ import annotations

import pytest
import torch

from sparse_refine.sparse import SparseUNet, TorchGrid
from sparse_refine.sparse.layers import NormReLU, SparseConv2d

from .kernels import DEVICE, KINDS, close, kernels, norm_of, numbers, pyramid_of

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for Linux alone")
pytestmark = pytest.mark.usefixtures("exact")  # no TF32


@kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["none", "odd"])
def test_norm_relu_and_residual_at_the_end(with_kernels, case, kind):
    pyramid = pyramid_of(case)
    counts = [level.count for level in pyramid.levels]
    rows, out = (counts[i] for i in {"submanifold": (0, 0), "down": (0, 1), "up": (1, 0)}[kind])
    layer, norm = SparseConv2d(12, 18, kind).double().to(DEVICE).eval(), norm_of(18)
    features, residual = numbers(rows, 12), numbers(out, 18, seed=2)

    @torch.no_grad()
    def call(dtype):
        return [
            layer.to(dtype)(features.to(dtype), TorchGrid(pyramid), 0, **options)
            for options in (
                {},
                {"norm": norm.to(dtype)},
                {"residual": residual.to(dtype)},
                {"norm": norm.to(dtype), "residual": residual.to(dtype)},
            )
        ]

    expected = call(torch.float64)
    with_kernels()
    for single, double in zip(call(torch.float32), expected):
        close(single, double)


@kernels
@pytest.mark.parametrize("parts", [(24,), (40, 8), (7, 140)])
def test_norm_of_a_concatenation(with_kernels, parts):
    norm = norm_of(sum(parts))
    features = [numbers(333, width, seed=i) for i, width in enumerate(parts)]

    @torch.no_grad()
    def call(dtype):
        given = [part.to(dtype) for part in features]
        return norm.to(dtype)(given[0] if len(given) == 1 else tuple(given))

    expected = call(torch.float64)
    assert (expected > 0).any()
    with_kernels()
    close(call(torch.float32), expected)


@kernels
def test_unet(with_kernels):
    pyramid = pyramid_of("batch")
    unet = SparseUNet(5, (8, 12), blocks=1).double().to(DEVICE)
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, NormReLU):
                module.norm.weight.uniform_(0.5, 2)
                module.norm.bias.uniform_(-0.5, 0.5)
    features = numbers(pyramid.levels[0].count, 5)

    def run(dtype):
        unet.to(dtype).train().zero_grad()
        output = unet(features.to(dtype), TorchGrid(pyramid))
        output.square().mean().backward()
        results = [p.grad.double() for p in unet.parameters()]
        with torch.no_grad():
            results.append(unet.eval()(features.to(dtype), TorchGrid(pyramid)))
        return results

    saved = {key: value.clone() for key, value in unet.state_dict().items()}
    expected = run(torch.float64)
    unet.load_state_dict(saved)  # the running statistics too
    with_kernels()
    for single, double in zip(run(torch.float32), expected):
        close(single, double, 1e-4)
