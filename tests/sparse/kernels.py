# SPDX-License-Identifier: Apache-2.0
"""What the tests of the GPU's kernels share: cases, numbers, gradients in double precision."""

from __future__ import annotations

import os

import pytest
import torch

from sparse_refine.sites import Sites
from sparse_refine.sparse import Pyramid
from sparse_refine.sparse.layers import NormReLU

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU else "cpu"
KINDS = ("submanifold", "down", "up")
CASES = {
    "none": ([(6, 8)], 0.0),
    "one": ([(1, 1)], 1.0),
    "odd": ([(37, 29)], 0.7),  # more sites than one program takes, and than one split
    "batch": ([(9, 30), (0, 0), (22, 7)], 0.4),
}

kernels = pytest.mark.skipif(
    not ON_GPU and not INTERPRETED, reason="no GPU: test_in_the_interpreter runs it"
)


def pyramid_of(case: str, mode: str = "floor", levels: int = 2) -> Pyramid:
    sizes, share = CASES[case]
    generator = torch.Generator().manual_seed(3)
    parts = []
    for image, size in enumerate(sizes):
        y, x = (torch.rand(size, generator=generator) < share).nonzero().unbind(1)
        parts.append(torch.stack([torch.full_like(y, image), y, x], dim=1))
    return Pyramid(Sites(torch.cat(parts).to(DEVICE), sizes), levels, mode)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)


def norm_of(channels: int) -> NormReLU:
    """With numbers of its own everywhere, at inference."""
    module = NormReLU(channels).double().to(DEVICE).eval()
    norm = module.norm
    with torch.no_grad():
        for i, tensor in enumerate((norm.running_mean, norm.weight, norm.bias)):
            tensor.copy_(numbers(channels, seed=i))
        norm.running_var.copy_(numbers(channels, seed=4).square() + 0.1)
    return module


def triton_launch():
    from sparse_refine.sparse import triton_launch

    return triton_launch


def close(values, expected, tolerance=1e-5):
    assert values.shape == expected.shape
    assert (values - expected).norm() <= tolerance * (1 + expected.norm())


def gradients(call, tensors):
    """Output and gradients of a call of copies of the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = call(*leaves)
    (output * numbers(*output.shape, seed=9).to(output.dtype)).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]
