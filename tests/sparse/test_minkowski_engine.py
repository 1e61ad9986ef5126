# SPDX-License-Identifier: Apache-2.0
"""MinkowskiEngine against the PyTorch engine: each operation, the whole UNet, and what kills it."""

from __future__ import annotations

import collections
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sparse_refine.extractors import Selection, SparseUNetExtractor
from sparse_refine.sites import Sites, View
from sparse_refine.sparse import PRESETS, Pyramid, SparseUNet, TorchGrid, build_grid
from sparse_refine.sparse.minkowski_engine import MinkowskiGrid, minkowski_available

HAD_SEQUENCE = hasattr(collections, "Sequence")  # asked before the package's first import
needs_minkowski = pytest.mark.skipif(
    not minkowski_available(), reason="MinkowskiEngine is not installed (`make env` compiles it)"
)

MODES = ("floor", "reach")
OPERATIONS = ("submanifold", "down", "up")
CASES = {
    "none": ([(6, 8)], 0.0),
    "one": ([(6, 8)], None),
    "all": ([(16, 20)], 1.0),
    "odd": ([(31, 17)], 0.4),
    "one pixel": ([(1, 1)], 1.0),
    "batch": ([(9, 30), (1, 1), (22, 7), (16, 15)], 0.3),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def pyramid_of(case: str, mode: str, levels: int) -> Pyramid:
    sizes, share = CASES[case]
    generator = torch.Generator().manual_seed(3)
    parts = []
    for image, size in enumerate(sizes):
        if share is None:
            yx = torch.tensor([[3, 4]])
        else:
            yx = (torch.rand(size, generator=generator) < share).nonzero()
        parts.append(F.pad(yx, (1, 0), value=image))
    return Pyramid(Sites(torch.cat(parts), sizes), levels, mode)


def run_operation(grid, operation: str, features, weight, level: int):
    """Rows in the order of the pyramid's sites on both sides, whatever the engine's own is."""
    if isinstance(grid, TorchGrid):
        return getattr(grid, operation)(features, weight, level)
    features = grid.enter(features, level + (operation == "up"))
    output = getattr(grid, operation)(features, weight, level)
    return grid.leave(output, level + (operation == "down"))


def operands(pyramid: Pyramid, operation: str, level: int):
    rows = pyramid.levels[level + (operation == "up")].count
    features = torch.randn(rows, 5, requires_grad=True)
    return features, torch.randn(9, 5, 6, requires_grad=True)


@needs_minkowski
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_equal(operation, mode, case):
    pyramid = pyramid_of(case, mode, levels=4)
    ours, theirs = TorchGrid(pyramid), MinkowskiGrid(pyramid)
    for level in range(3):
        features, weight = operands(pyramid, operation, level)
        expected = run_operation(ours, operation, features, weight, level)
        output = run_operation(theirs, operation, features, weight, level)
        torch.testing.assert_close(output, expected, **CLOSE)
        probe = torch.randn_like(output)
        gradients = torch.autograd.grad(output, (features, weight), probe)
        reference = torch.autograd.grad(expected, (features, weight), probe)
        torch.testing.assert_close(gradients, reference, **CLOSE)


@needs_minkowski
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", ["batch", "one pixel", "none"])
def test_an_island_of_float32_under_autocast(case, operation, mode):
    pyramid = pyramid_of(case, mode, levels=2)
    features, weight = operands(pyramid, operation, 0)
    expected = run_operation(TorchGrid(pyramid), operation, features, weight, 0)
    grid = MinkowskiGrid(pyramid)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            output = run_operation(grid, operation, features, weight, 0)
            gradient = torch.autograd.grad(output.sum(), weight)[0]
        torch.testing.assert_close(output, expected, **CLOSE)
        assert output.dtype == gradient.dtype == torch.float32
    half = features.detach().bfloat16()
    near = run_operation(grid, operation, half, weight, 0)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, expected, rtol=0, atol=0.2)


@needs_minkowski
def test_double_stays_double():
    pyramid = pyramid_of("odd", "floor", levels=2)
    features, weight = (tensor.double() for tensor in operands(pyramid, "down", 0))
    output = run_operation(MinkowskiGrid(pyramid), "down", features, weight, 0)
    expected = run_operation(TorchGrid(pyramid), "down", features, weight, 0)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@needs_minkowski
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_unet_equals(mode, dtype, training, case):
    pyramid = pyramid_of(case, mode, levels=4)
    unet = SparseUNet(3, *PRESETS["small"]).train(training).to(dtype)
    features = torch.randn(pyramid.levels[0].count, 3, dtype=dtype, requires_grad=True)
    leaves = (features, *unet.parameters())
    results = []
    for grid in (TorchGrid(pyramid), MinkowskiGrid(pyramid)):
        output = unet(features, grid)
        loss = (output * torch.linspace(-1, 1, 16, dtype=dtype)).sum()
        results.append((output, *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(results[1][0], results[0][0], **CLOSE)
    for ours, theirs in zip(*results):
        # a rounding that turns one value's sign at a ReLU changes float32 gradients by whole
        # terms; in float64 none is that near to zero
        error = (theirs - ours).norm() / ours.norm().clamp(min=1)
        assert error < (1e-9 if dtype == torch.float64 else 1e-2)


@needs_minkowski
def test_no_site_at_a_deep_level_alone():
    # "reach" on 7 x 7: 3 x 3 sites, then 1, then none
    pyramid = Pyramid(Sites(F.pad(torch.ones(7, 7).nonzero(), (1, 0)), [(7, 7)]), 4, "reach")
    assert [level.count for level in pyramid.levels] == [49, 9, 1, 0]
    unet = SparseUNet(3, *PRESETS["small"]).train()
    features = torch.randn(49, 3)
    expected = unet(features, TorchGrid(pyramid))
    output = unet(features, MinkowskiGrid(pyramid))
    torch.testing.assert_close(output, expected, **CLOSE)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


@needs_minkowski
def test_unet_under_autocast():
    pyramid = pyramid_of("batch", "floor", levels=4)
    unet = SparseUNet(3, *PRESETS["small"]).train()
    features = torch.randn(pyramid.levels[0].count, 3)
    exact = unet(features, TorchGrid(pyramid))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = unet(features, MinkowskiGrid(pyramid))
    # the 1x1 skips are still bfloat16
    assert (near - exact).abs().mean() < 0.02 * exact.abs().mean()
    near.sum().backward()
    assert all(p.grad.isfinite().all() for p in unet.parameters())


@needs_minkowski
@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_loads_on_either_engine(mode):
    pyramid = pyramid_of("batch", mode, levels=4)
    sites, sizes = pyramid.levels[0].sites, pyramid.levels[0].sizes
    options = {"num_classes": 4, "features": ("rgb", "probabilities"), "downsample": mode}
    channels, blocks = PRESETS["small"]
    options.update(channels=channels, blocks=blocks)
    ours = SparseUNetExtractor(backend="torch", **options)
    theirs = SparseUNetExtractor(backend="minkowski", **options)
    assert not torch.equal(ours.classifier.weight, theirs.classifier.weight)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = [torch.randn(3, *size) for size in sizes]
    views = [View(0, 0, *size, size) for size in sizes]
    coarse = torch.randn(len(sites), 4)
    selection = Selection(Sites(sites, sizes), images, images, coarse, views)
    for training in (True, False):  # in training the statistics move together too
        outputs = [model.train(training)(selection) for model in (ours, theirs)]
        torch.testing.assert_close(*outputs, **CLOSE)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name], **CLOSE, msg=name)


@needs_minkowski
def test_rows_are_put_back_by_the_engines_own_maps():
    pyramid = pyramid_of("batch", "floor", levels=3)
    grid = MinkowskiGrid(pyramid)
    for level, (key, order, _) in enumerate(grid._maps):
        sites = pyramid.levels[level].sites
        image, x, y = grid._manager.get_coordinates(key).unbind(1)
        coordinates = torch.stack([image, y, x], dim=1).long()
        coordinates[:, 1:] //= 2**level
        assert torch.equal(coordinates, sites[order])
        # another order, as on a GPU, is only a matter of the two maps
        shuffled = torch.randperm(len(sites))
        grid._maps[level] = (key, shuffled, shuffled.argsort())
        features = torch.randn(len(sites), 2)
        assert torch.equal(grid.leave(grid.enter(features, level), level), features)


@needs_minkowski
def test_import_leaves_collections_as_it_was():
    assert hasattr(collections, "Sequence") == HAD_SEQUENCE
    sites = torch.tensor([[0, 1, 1]])
    assert isinstance(build_grid("minkowski", Sites(sites, [(4, 4)]), 2), MinkowskiGrid)


def test_the_error_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)
    assert not minkowski_available()
    sites = torch.tensor([[0, 1, 1]])
    with pytest.raises(ImportError, match="make env.*EXTRACTOR.BACKEND torch"):
        build_grid("minkowski", Sites(sites, [(4, 4)]), 2)
    assert isinstance(build_grid("auto", Sites(sites, [(4, 4)]), 2), TorchGrid)


def test_one_compiled_for_the_cpu_does_not_serve_a_gpu(monkeypatch):
    engine = SimpleNamespace(is_cuda_available=lambda: False)
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", engine)
    assert minkowski_available() and not minkowski_available(cuda=True)
    on_gpu = SimpleNamespace(levels=[SimpleNamespace(sites=SimpleNamespace(is_cuda=True))])
    with pytest.raises(ImportError, match="without CUDA.*EXTRACTOR.BACKEND torch"):
        MinkowskiGrid(on_gpu)
