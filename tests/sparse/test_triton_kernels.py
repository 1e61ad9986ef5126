# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels against the engine without them, in double precision.

On a GPU as they are. Without one a second process runs this file in Triton's interpreter, which
does the same in NumPy.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch

from sparse_refine.sparse import Pyramid, SparseUNet, TorchGrid, fused, kernel_map, torch_engine
from sparse_refine.sparse import functional as engine
from sparse_refine.sparse import layers as layers_module
from sparse_refine.sparse.layers import NormReLU, SparseConv2d

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
        from sparse_refine.sparse import triton_kernels

        def kernels_for(features):
            return None if features.dtype == torch.float64 else triton_kernels

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
    return Pyramid(torch.cat(parts).to(DEVICE), sizes, levels, mode)


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)


def close(values, expected, tolerance=1e-5):
    assert values.shape == expected.shape
    assert (values - expected).norm() <= tolerance * (1 + expected.norm())


def gradients(call, tensors):
    """Output and gradients of a call of copies of the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = call(*leaves)
    (output * numbers(*output.shape, seed=9).to(output.dtype)).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="here they run without it")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


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
@pytest.mark.parametrize("shape", [(3, 16), (70, 33), (16, 150), (130, 8)])
def test_channels(with_kernels, shape):
    """Fewer than a tile has, and more, and no power of two."""
    pyramid = pyramid_of("batch")
    tensors = numbers(pyramid.levels[0].count, shape[0]), numbers(9, *shape, seed=1)

    def call(features, weight):
        return TorchGrid(pyramid).submanifold(features, weight, 0)

    expected = gradients(call, tensors)
    with_kernels()
    for single, double in zip(gradients(call, [t.float() for t in tensors]), expected):
        close(single, double)
    for half, double in zip(gradients(call, [t.half() for t in tensors]), expected):
        assert half.dtype == torch.float16
        close(half, double, 5e-3)


@kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["none", "odd"])
def test_norm_relu_and_residual_at_the_end(with_kernels, case, kind):
    pyramid = pyramid_of(case)
    counts = [level.count for level in pyramid.levels]
    rows, out = (counts[i] for i in {"submanifold": (0, 0), "down": (0, 1), "up": (1, 0)}[kind])
    layer, norm = SparseConv2d(12, 18, kind).double().to(DEVICE), NormReLU(18).double().to(DEVICE)
    layer, norm = layer.eval(), norm.eval()
    with torch.no_grad():
        for i, tensor in enumerate((norm.norm.running_mean, norm.norm.weight, norm.norm.bias)):
            tensor.copy_(numbers(18, seed=i))
        norm.norm.running_var.copy_(numbers(18, seed=4).square() + 0.1)
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
    norm = NormReLU(sum(parts)).double().to(DEVICE).eval()
    norm.norm.running_mean.copy_(numbers(sum(parts)))
    norm.norm.running_var.copy_(numbers(sum(parts), seed=4).square() + 0.1)
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
    pyramid = pyramid_of("odd", levels=3)
    unet = SparseUNet(5, (8, 12, 24), blocks=1).double().to(DEVICE)
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


# ---- where they serve ----------------------------------------------------------------------------


def test_not_on_a_cpu_and_not_in_double_precision():
    assert fused.kernels_for(torch.zeros(3, 4)) is None
    if ON_GPU:
        assert fused.kernels_for(torch.zeros(3, 4, device="cuda").double()) is None


@pytest.fixture
def gpu_of(monkeypatch):
    """A pretended GPU of some compute capability, of NVIDIA's or AMD's."""

    def pretend(capability, hip=None):
        fused._kernels.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)

    yield pretend
    fused._kernels.cache_clear()


def test_on_gpus_since_ampere(gpu_of):
    gpu_of((8, 0))
    assert fused._kernels(0).convolve_
    gpu_of((7, 5))
    assert fused._kernels(0) is None
    gpu_of((9, 4), hip="6.2")
    assert fused._kernels(0) is None


def test_a_warning_where_triton_is_missing(gpu_of, monkeypatch, caplog):
    gpu_of((9, 0))
    monkeypatch.delitem(sys.modules, "sparse_refine.sparse.triton_kernels", raising=False)
    monkeypatch.delattr("sparse_refine.sparse.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.WARNING):
        assert fused._kernels(0) is None and fused._kernels(0) is None
    assert len(caplog.records) == 1 and "triton" in caplog.text


def test_tf32_as_convolutions_have_it():
    assert not fused.tf32_allowed()  # by the fixture
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert fused.tf32_allowed()
