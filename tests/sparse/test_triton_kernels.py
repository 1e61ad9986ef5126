# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels against the engine without them, in double precision.

On a GPU as they are. Without one a second process runs this file in Triton's interpreter, which
does the same in NumPy.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from sparse_refine.sites import Sites
from sparse_refine.sparse import Pyramid, SparseUNet, TorchGrid, kernel_map, torch_engine
from sparse_refine.sparse import functional as engine
from sparse_refine.sparse import layers as layers_module
from sparse_refine.sparse.layers import NormReLU, SparseConv2d
from sparse_refine.sparse.norm import FrozenNorm

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for Linux alone")

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


@pytest.fixture(autouse=True)
def _exact():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture
def with_kernels(monkeypatch):
    """A context in which the engine uses them on any device, for all that is not double."""

    def start():
        def kernels_for(features):
            return None if features.dtype == torch.float64 else triton_launch()

        monkeypatch.setattr(engine, "kernels_for", kernels_for)
        monkeypatch.setattr(layers_module, "kernels_for", kernels_for)
        # as on a GPU
        monkeypatch.setattr(torch_engine, "best_form", lambda level, weight: "windows")
        group = kernel_map.TapGroup
        monkeypatch.setattr(
            kernel_map, "tap_group", lambda taps, table, inputs, **o: group(taps, table, **o)
        )

    return start


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


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="here they run without it")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30  # and not skipped


@kernels
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["floor", "reach"])
@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_and_their_gradients(with_kernels, kind, mode, case):
    pyramid = pyramid_of(case, mode)
    rows = pyramid.levels[1 if kind == "up" else 0].count
    tensors = numbers(rows, 20), numbers(9, 20, 40, seed=1)

    def call(features, weight):
        return getattr(TorchGrid(pyramid), kind)(features, weight, 0)

    expected = gradients(call, tensors)
    with_kernels()
    for single, double in zip(gradients(call, [t.float() for t in tensors]), expected):
        close(single, double)


@kernels
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("shape", [(3, 16), (70, 33), (16, 150), (130, 8)])
def test_channels(with_kernels, monkeypatch, shape, large):
    """Fewer than a tile has, and more, and no power of two; as tensors of billions of numbers and
    many rows have them, and else."""
    pyramid = pyramid_of("batch")
    tensors = numbers(pyramid.levels[0].count, shape[0]), numbers(9, *shape, seed=1)

    def call(features, weight):
        return TorchGrid(pyramid).submanifold(features, weight, 0)

    expected = gradients(call, tensors)
    with_kernels()
    if large:
        tiles = triton_launch()._tiles
        monkeypatch.setattr(triton_launch(), "_large", lambda *tensors: True)
        monkeypatch.setattr(triton_launch(), "_tiles", lambda *given: tiles(*given[:3], True))
    for single, double in zip(gradients(call, [t.float() for t in tensors]), expected):
        close(single, double)
    # the interpreter's NumPy has no bfloat16
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 3e-2))[: 1 + ON_GPU]:
        for half, double in zip(gradients(call, [t.to(dtype) for t in tensors]), expected):
            assert half.dtype == dtype
            close(half, double, tolerance)


@kernels
def test_bias_and_residual_with_gradients(with_kernels):
    pyramid = pyramid_of("batch")
    windows = kernel_map.submanifold_map(pyramid.levels[0], "windows")
    count = pyramid.levels[0].count
    tensors = numbers(count, 6), numbers(9, 6, 20), numbers(40, seed=2), numbers(20, count, seed=3)

    def call(features, weight, bias, residual):  # neither lies row by row
        return engine.sparse_conv(features, weight, windows, bias[::2], True, residual.t())

    expected = gradients(call, tensors)
    with torch.no_grad():
        inference = call(*tensors)
    with_kernels()
    windows = kernel_map.submanifold_map(pyramid.levels[0], "windows")
    single = [t.float() for t in tensors]
    for value, double in zip(gradients(call, single), expected):
        close(value, double)
    with torch.no_grad():
        close(call(*single), inference)


@kernels
def test_norm_with_gradients(with_kernels):
    pyramid = pyramid_of("batch")
    frozen = norm_of(20).frozen()

    def call(features, weight):
        grid = TorchGrid(pyramid)
        given = FrozenNorm(*(t.to(features.dtype) for t in frozen[:4]), frozen.eps)
        return grid.submanifold(features, weight, 0, norm=given, relu=True)

    tensors = numbers(pyramid.levels[0].count, 6), numbers(9, 6, 20)
    expected = gradients(call, tensors)
    with_kernels()
    for single, double in zip(gradients(call, [t.float() for t in tensors]), expected):
        close(single, double)


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


@kernels
def test_windows_of_any_size(with_kernels):
    """25 taps, with a bias: what a pretrained network's 5 x 5 convolutions are."""
    table = torch.randint(0, 91, (80, 25), generator=torch.Generator().manual_seed(0)).int()
    group = kernel_map.TapGroup((tuple(range(25)),), table.to(DEVICE))  # row 90: none
    windows = kernel_map.KernelMap(90, 80, [group])
    features, weight, bias = numbers(90, 10), numbers(25, 10, 6, seed=1), numbers(6, seed=2)

    @torch.no_grad()
    def call(dtype):
        return engine.sparse_conv(features.to(dtype), weight.to(dtype), windows, bias.to(dtype))

    expected = call(torch.float64)
    with_kernels()
    close(call(torch.float32), expected)


@kernels
def test_twice_is_the_same_to_the_bit(with_kernels):
    pyramid = pyramid_of("odd")
    tensors = numbers(pyramid.levels[0].count, 32).float(), numbers(9, 32, 32, seed=1).float()
    with_kernels()

    def call(features, weight):
        return TorchGrid(pyramid).submanifold(features, weight, 0)

    for one, two in zip(gradients(call, tensors), gradients(call, tensors)):
        assert torch.equal(one, two)


def test_a_norm_has_its_own_bias():
    level = pyramid_of("batch").levels[0]
    windows = kernel_map.submanifold_map(level, "windows")
    tensors = numbers(level.count, 6), numbers(9, 6, 20)
    with pytest.raises(ValueError, match="not both"):
        engine.sparse_conv(*tensors, windows, numbers(20), norm=norm_of(20).frozen())


def test_rows_by_kind_in_two_ways():
    kinds = torch.randint(0, 4, (50,))
    kinds[kinds == 2] = 1  # one of them empty
    one, two = kernel_map._rows_by(kinds.cpu(), 4), kernel_map._rows_by_sorting(kinds, 4)
    assert len(one) == len(two) == 4 and all(torch.equal(a, b) for a, b in zip(one, two))
