# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels against the engine without them, in double precision.

On a GPU as they are. Without one a second process runs this file and test_triton_layers.py in
Triton's interpreter, which does the same in NumPy.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_refine.sparse import TorchGrid, kernel_map
from sparse_refine.sparse import functional as engine
from sparse_refine.sparse.norm import FrozenNorm

from .kernels import (
    CASES,
    DEVICE,
    INTERPRETED,
    KINDS,
    ON_GPU,
    close,
    gradients,
    kernels,
    norm_of,
    numbers,
    pyramid_of,
    triton_launch,
)

pytest.importorskip("triton", reason="Triton comes with PyTorch's builds for Linux alone")
FILES = [str(Path(__file__).with_name(f"test_triton_{part}.py")) for part in ("kernels", "layers")]
pytestmark = pytest.mark.usefixtures("exact")  # no TF32


@pytest.mark.slow
@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="here they run without it")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *FILES],
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
