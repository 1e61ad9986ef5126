# SPDX-License-Identifier: Apache-2.0
"""Where a pyramid has its sites: against the definition, written out with sets of tuples."""

from __future__ import annotations

import pytest
import torch

from sparse_refine.sites import Sites
from sparse_refine.sparse import Pyramid, TorchGrid, build_grid

MODES = ("floor", "reach")


def random_sites(sizes: list[tuple[int, int]], share: float, seed: int = 0) -> torch.Tensor:
    """(P,3) in raster order, each pixel with probability `share`."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for image, size in enumerate(sizes):
        yx = (torch.rand(size, generator=generator) < share).nonzero()
        parts.append(torch.cat([torch.full((len(yx), 1), image), yx], dim=1))
    return torch.cat(parts) if parts else torch.zeros(0, 3, dtype=torch.int64)


def coarser(sites: set, mode: str) -> set:
    """The next level's sites, straight from the definition."""
    if mode == "floor":
        return {(image, y // 2, x // 2) for image, y, x in sites}
    found = set()
    for image in {site[0] for site in sites}:
        own = {(y, x) for i, y, x in sites if i == image}
        last_y = (max(y for y, _ in own) - 2) // 2
        last_x = (max(x for _, x in own) - 2) // 2
        for out_y in range(last_y + 1):
            for out_x in range(last_x + 1):
                window = {(2 * out_y + dy, 2 * out_x + dx) for dy in range(3) for dx in range(3)}
                if window & own:
                    found.add((image, out_y, out_x))
    return found


def tuples(sites: torch.Tensor) -> list[tuple]:
    return [tuple(site) for site in sites.tolist()]


BATCHES = {
    "one image": [(16, 24)],
    "different sizes": [(9, 30), (22, 7), (16, 16)],
    "odd sizes": [(13, 21), (1, 17), (5, 3)],
    "single pixels": [(1, 1), (1, 1), (2, 1)],
}


@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("mode", MODES)
def test_levels_follow_the_definition(mode, batch, share):
    sizes = BATCHES[batch]
    pyramid = Pyramid(Sites(random_sites(sizes, share), sizes), 5, mode)
    for fine, coarse in zip(pyramid.levels, pyramid.levels[1:]):
        # sorted: rows are in raster order, image by image, and unique
        assert tuples(coarse.sites) == sorted(coarser(set(tuples(fine.sites)), mode))
        assert coarse.sizes == [((h + 1) // 2, (w + 1) // 2) for h, w in fine.sizes]
        assert all(
            0 <= y < coarse.sizes[image][0] and 0 <= x < coarse.sizes[image][1]
            for image, y, x in tuples(coarse.sites)
        )


def test_by_hand():
    sites = torch.tensor([[0, 0, 0], [0, 3, 4], [0, 4, 6]])
    floor = Pyramid(Sites(sites, [(5, 7)]), 2, "floor").levels[1].sites
    assert tuples(floor) == [(0, 0, 0), (0, 1, 2), (0, 2, 3)]
    # largest y 4 and x 6: o up to (1, 2). (0,0) is seen from (0,0) alone, (3,4) from (1,1) and
    # (1,2), (4,6) from (1,2) alone
    reach = Pyramid(Sites(sites, [(5, 7)]), 2, "reach").levels[1].sites
    assert tuples(reach) == [(0, 0, 0), (0, 1, 1), (0, 1, 2)]


def test_reach_drops_an_image_too_small_for_its_window():
    pyramid = Pyramid(Sites(torch.tensor([[0, 1, 1], [1, 2, 2]]), [(2, 2), (3, 3)]), 3, "reach")
    assert [tuples(level.sites) for level in pyramid.levels[1:]] == [[(1, 0, 0)], []]


@pytest.mark.parametrize("mode", MODES)
def test_an_image_does_not_depend_on_its_batch(mode):
    sizes = [(12, 40), (31, 9), (1, 1), (20, 20)]
    sites = random_sites(sizes, 0.2)
    together = Pyramid(Sites(sites, sizes), 4, mode)
    for image, size in enumerate(sizes):
        own = sites[sites[:, 0] == image][:, 1:]
        alone = Pyramid(Sites(torch.nn.functional.pad(own, (1, 0)), [size]), 4, mode)
        for all_images, level in zip(together.levels, alone.levels):
            rows = all_images.sites[all_images.sites[:, 0] == image]
            assert torch.equal(rows[:, 1:], level.sites[:, 1:])


@pytest.mark.parametrize("mode", MODES)
def test_index_finds_each_row_and_nothing_else(mode):
    sizes = [(9, 14), (6, 5)]
    for level in Pyramid(Sites(random_sites(sizes, 0.3), sizes), 3, mode).levels:
        assert torch.equal(level.flat, level.flat.unique())
        assert torch.equal(level.index[level.flat], torch.arange(level.count, dtype=torch.int32))
        assert (level.index == level.count).sum() == level.canvas - level.count
        assert level.index.dtype == torch.int32


@pytest.mark.parametrize("sizes", [[(8, 8)], [(3, 5), (1, 1)], []])
@pytest.mark.parametrize("mode", MODES)
def test_no_sites(mode, sizes):
    pyramid = Pyramid(Sites(torch.zeros(0, 3, dtype=torch.int64), sizes), 4, mode)
    assert [level.count for level in pyramid.levels] == [0, 0, 0, 0]
    assert all(level.sites.shape == (0, 3) for level in pyramid.levels)
    features = TorchGrid(pyramid).submanifold(torch.zeros(0, 2), torch.ones(9, 2, 5), 3)
    assert features.shape == (0, 5)


def test_one_level_is_the_sites_themselves():
    sites = random_sites([(4, 4)], 0.5)
    levels = Pyramid(Sites(sites, [(4, 4)]), 1).levels
    assert len(levels) == 1 and torch.equal(levels[0].sites, sites)


def test_bad_arguments():
    sites = random_sites([(4, 4)], 0.5)
    with pytest.raises(ValueError, match="DOWNSAMPLE_SITES is 'ceil'.*floor.*reach"):
        Pyramid(Sites(sites, [(4, 4)]), 2, "ceil")
    with pytest.raises(ValueError, match="BACKEND is 'spconv'.*auto.*torch.*minkowski"):
        build_grid("spconv", Sites(sites, [(4, 4)]), 2)
