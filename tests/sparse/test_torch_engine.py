# SPDX-License-Identifier: Apache-2.0
"""The PyTorch engine against dense convolutions of the zero-filled images, read at the sites."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparse_refine.sites import Sites
from sparse_refine.sparse import Pyramid, TorchGrid, functional, products, torch_engine

MODES = ("floor", "reach")
OPERATIONS = ("submanifold", "down", "up")
# name -> (sizes of the images, share of the pixels that are sites)
CASES = {
    "none": ([(6, 8)], 0.0),
    "one": ([(6, 8)], None),
    "all": ([(6, 8)], 1.0),
    "all of two": ([(5, 6), (5, 6)], 1.0),
    "odd": ([(11, 7)], 0.4),
    "one pixel": ([(1, 1)], 1.0),
    "batch": ([(9, 30), (1, 1), (22, 7), (16, 15)], 0.3),
    "batch with an empty image": ([(5, 6), (0, 0), (8, 3)], 0.5),
}


@pytest.fixture(params=("windows", "runs", "frame", "taps", "images"), autouse=True)
def form(request, monkeypatch):
    """Each form of a submanifold convolution's map, whatever suits these small levels."""

    def chosen(level, weight):
        possible = level.whole if request.param == "images" else level.count
        return request.param if possible else "windows"

    monkeypatch.setattr(torch_engine, "best_form", chosen)


def smallest_chunks(monkeypatch) -> None:
    """64 rows."""
    monkeypatch.setattr(functional, "chunk_bytes", lambda device: 1)
    monkeypatch.setattr(functional, "_MIN_ROWS", 64)


def grid_of(case: str, mode: str, levels: int = 2) -> TorchGrid:
    sizes, share = CASES[case]
    generator = torch.Generator().manual_seed(3)
    parts = []
    for image, size in enumerate(sizes):
        if share is None:
            yx = torch.tensor([[3, 4]])
        else:
            yx = (torch.rand(size, generator=generator) < share).nonzero()
        parts.append(F.pad(yx, (1, 0), value=image))
    return TorchGrid(Pyramid(Sites(torch.cat(parts), sizes), levels, mode))


def dense_operation(operation, features, weight, pyramid):
    """The same by conv2d or conv_transpose2d, image by image."""
    fine, coarse = pyramid.levels[:2]
    source = coarse if operation == "up" else fine
    target = coarse if operation == "down" else fine
    kernel = weight.view(3, 3, *weight.shape[1:])
    floor = pyramid.downsample == "floor"
    rows = []
    for image, (height, width) in enumerate(source.sizes):
        if height == 0:
            continue
        y, x = source.sites[source.sites[:, 0] == image][:, 1:].unbind(1)
        dense = features.new_zeros(height, width, features.shape[1])
        dense = dense.index_put((y, x), features[source.sites[:, 0] == image])
        dense = dense.permute(2, 0, 1)[None]
        high, wide = target.sizes[image]
        if operation == "submanifold":
            dense = F.conv2d(dense, kernel.permute(3, 2, 0, 1), padding=1)
        elif operation == "down":
            # the window starts one before 2 o ("floor") or at it ("reach"); zeros up to its end
            before = 1 if floor else 0
            after_y, after_x = (2 * o + 1 - n - before for o, n in ((high, height), (wide, width)))
            dense = F.pad(dense, (before, after_x, before, after_y))
            dense = F.conv2d(dense, kernel.permute(3, 2, 0, 1), stride=2)
        else:
            dense = F.conv_transpose2d(dense, kernel.permute(2, 3, 0, 1), stride=2)
            start = 1 if floor else 0
            dense = dense[:, :, start : start + high, start : start + wide]
        y, x = target.sites[target.sites[:, 0] == image][:, 1:].unbind(1)
        rows.append(dense[0, :, y, x].t())
    return torch.cat(rows)


def inputs_of(grid: TorchGrid, operation: str, dtype=torch.float64, channels=(3, 4)):
    rows = grid.pyramid.levels[1 if operation == "up" else 0].count
    features = torch.randn(rows, channels[0], dtype=dtype, requires_grad=True)
    weight = torch.randn(9, *channels, dtype=dtype, requires_grad=True)
    return features, weight


# float32 is multiplied by other kernels than float64
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward_and_gradients_equal_dense(operation, mode, case, dtype, error):
    grid = grid_of(case, mode)
    features, weight = inputs_of(grid, operation, dtype)
    output = getattr(grid, operation)(features, weight, 0)
    expected = dense_operation(operation, features, weight, grid.pyramid)
    torch.testing.assert_close(output, expected, rtol=0, atol=error)
    probe = torch.randn_like(output)
    gradients = torch.autograd.grad(output, (features, weight), probe)
    # a dense layer that no image reached has no graph at all
    reference = torch.autograd.grad(expected, (features, weight), probe, materialize_grads=True)
    torch.testing.assert_close(gradients, reference, rtol=0, atol=error)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_epilogue(operation, mode, case):
    """relu(convolution + bias) + residual, in one pass without gradients and in steps with them."""
    grid = grid_of(case, mode)
    features, weight = inputs_of(grid, operation)
    bias = torch.randn(weight.shape[2], dtype=weight.dtype)
    plain = getattr(grid, operation)(features, weight, 0)
    residual = torch.randn_like(plain)
    for options, expected in (
        ({"bias": bias}, plain + bias),
        ({"relu": True}, plain.relu()),
        ({"residual": residual}, plain + residual),
        ({"bias": bias, "relu": True, "residual": residual}, (plain + bias).relu() + residual),
    ):
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                output = getattr(grid, operation)(features, weight, 0, **options)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_layout_of_the_weight_does_not_matter(operation):
    grid = grid_of("batch", "floor")
    features, weight = inputs_of(grid, operation)
    packed = weight.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    outputs = [getattr(grid, operation)(features, w, 0) for w in (weight, packed)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradcheck(operation, mode):
    grid = grid_of("odd", mode)
    features, weight = inputs_of(grid, operation, channels=(2, 3))
    assert torch.autograd.gradcheck(
        lambda f, w: getattr(grid, operation)(f, w, 0), (features, weight)
    )


@pytest.mark.parametrize("mode", MODES)
def test_up_is_the_transpose_of_down(mode):
    grid = grid_of("batch", mode)
    weight = torch.randn(9, 3, 4, dtype=torch.float64)
    fine, coarse = (level.count for level in grid.pyramid.levels)
    x, y = torch.randn(fine, 3).double(), torch.randn(coarse, 4).double()
    down, up = grid.down(x, weight, 0), grid.up(y, weight.transpose(1, 2), 0)
    torch.testing.assert_close((down * y).sum(), (x * up).sum())


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_its_images_one_by_one(mode):
    grid = grid_of("batch", mode, levels=3)
    weight = torch.randn(9, 2, 2, dtype=torch.float64)
    features = torch.randn(grid.pyramid.levels[0].count, 2, dtype=torch.float64)

    def through(grid, x):
        for level in (0, 1):
            x = grid.down(grid.submanifold(x, weight, level), weight, level)
        return grid.up(grid.up(x, weight, 1), weight, 0)

    together = through(grid, features)
    sites = grid.pyramid.levels[0].sites
    for image, size in enumerate(grid.pyramid.levels[0].sizes):
        rows = sites[:, 0] == image
        own = F.pad(sites[rows][:, 1:], (1, 0))
        alone = through(TorchGrid(Pyramid(Sites(own, [size]), 3, mode)), features[rows])
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_same_bits_on_every_run(operation):
    grid = grid_of("batch", "floor")
    features, weight = inputs_of(grid, operation, torch.float32, (16, 16))
    runs = []
    for _ in range(2):
        output = getattr(grid, operation)(features, weight, 0)
        runs.append((output, *torch.autograd.grad(output.square().sum(), (features, weight))))
        grid = grid_of("batch", "floor")  # kernel maps made anew too
    assert all(torch.equal(first, second) for first, second in zip(*runs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_chunks_do_not_change_results(operation, mode, monkeypatch):
    grid = grid_of("batch", mode)
    features, weight = inputs_of(grid, operation)

    def run():
        output = getattr(grid, operation)(features, weight, 0)
        return output, *torch.autograd.grad(output.square().sum(), (features, weight))

    whole = run()
    smallest_chunks(monkeypatch)
    assert grid.pyramid.levels[0].count > 3 * 64
    torch.testing.assert_close(run(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_autocast(operation):
    grid = grid_of("batch", "floor")
    features, weight = inputs_of(grid, operation, torch.float32, (32, 16))
    exact = getattr(grid, operation)(features, weight, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = getattr(grid, operation)(features, weight, 0)
    assert output.dtype == torch.bfloat16
    # 8 bits of mantissa: a share of the typical size of an output
    assert (output.float() - exact).abs().max() < 0.02 * exact.std()
    probe = torch.randn_like(exact)
    gradients = torch.autograd.grad(output, (features, weight), probe.bfloat16())
    for gradient, reference in zip(
        gradients, torch.autograd.grad(exact, (features, weight), probe)
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).abs().max() < 0.03 * reference.std()


def test_weight_gradient_of_bfloat16_is_summed_in_float32(monkeypatch):
    smallest_chunks(monkeypatch)
    side = 200
    sites = F.pad(torch.ones(side, side).nonzero(), (1, 0))
    grid = TorchGrid(Pyramid(Sites(sites, [(side, side)]), 1))
    features = torch.ones(side * side, 1, dtype=torch.bfloat16)
    weight = torch.zeros(9, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    grid.submanifold(features, weight, 0).sum().backward()
    # 625 chunks of 64 ones: in bfloat16 the sum would stand still at 16384, where 64 is half a unit
    reach = torch.tensor([side - 1, side, side - 1])
    expected = (reach[:, None] * reach).reshape(9).float()
    torch.testing.assert_close(weight.grad.float().reshape(9), expected, rtol=2**-8, atol=0)


def test_features_of_another_type_follow_the_weight():
    grid = grid_of("odd", "floor")
    features, weight = inputs_of(grid, "submanifold", torch.float32)
    assert grid.submanifold(features.half(), weight, 0).dtype == torch.float32
    assert grid.submanifold(features, weight.double(), 0).dtype == torch.float64


@pytest.mark.parametrize(
    "sizes, count, whole",
    [
        ([(5, 6)], 30, True),
        ([(5, 6), (5, 6)], 60, True),
        ([(5, 6), (5, 6)], 59, False),
        ([(5, 6), (6, 5)], 60, False),  # as many pixels, but no stack of images
        ([(5, 6), (0, 0)], 30, False),
        ([(0, 0)], 0, False),
        ([], 0, False),
    ],
)
def test_only_whole_images_go_without_a_map(sizes, count, whole):
    yx = [F.pad(torch.ones(size).nonzero(), (1, 0), value=i) for i, size in enumerate(sizes)]
    sites = torch.cat([torch.zeros(0, 3, dtype=torch.int64), *yx])[:count]
    level = Pyramid(Sites(sites, sizes), 1).levels[0]
    assert level.whole == whole
    assert (products.best_form(level, torch.zeros(9, 4, 4)) == "images") == whole
