# SPDX-License-Identifier: Apache-2.0
"""Active cells of feature maps of every stride, and where the values around them come from."""

from __future__ import annotations

from functools import cached_property
from typing import Callable

import torch

from ..sparse.kernel_map import KernelMap, tap_group


class Cells:
    """The active cells of a feature map, those that hold selected pixels.

    Args:
        y, x: (N,) int64 cells, in any order and as often as may be.
        size: (H,W) of the map.
        stride: of the map, in pixels.

    Attributes:
        y, x: (P,) int64, each cell once, in raster order.
    """

    def __init__(self, y: torch.Tensor, x: torch.Tensor, size: tuple[int, int], stride: int):
        self.size, self.stride = size, stride
        occupied = torch.zeros(size[0] * size[1], dtype=torch.bool, device=y.device)
        flat = occupied.index_fill_(0, y * size[1] + x, True).nonzero()[:, 0]  # (P,)
        self.y, self.x = flat // size[1], flat % size[1]

    def __len__(self) -> int:
        return len(self.y)


class Windows:
    """What a function of T taps reads of a map at each cell of its output.

    Args:
        cells: active cells of the output, N.
        active, small: P, active cells of the map that is read; h w, places of the small map.
        places: (N,T) int32. Below P: active cells; below P + h w: places of the small map in raster
            order; P + h w: outside of the map.

    Attributes:
        needed: (A,) int64, the places of the small map that are read.
        table: (N,T) int32, rows of `source`.
        outside: the last row of `source`.
    """

    def __init__(self, cells: Cells, active: int, small: int, places: torch.Tensor):
        self.cells = cells
        reached = torch.zeros(active + small + 1, dtype=torch.bool, device=places.device)
        # marked, not sorted as `unique` would do
        reached.index_fill_(0, places.view(-1).long(), True)
        self.needed = reached[active : active + small].nonzero()[:, 0]
        # the small map's places close up to those that are reached
        row = torch.arange(len(reached), dtype=torch.int32, device=places.device)
        row[active + self.needed] = row[active : active + len(self.needed)].clone()
        self.outside = row[-1] = active + len(self.needed)
        self.table = row.index_select(0, places.view(-1)).view(places.shape)

    def source(self, rows: torch.Tensor, small: torch.Tensor, outside: float) -> torch.Tensor:
        """(P + A + 1, C): the map's rows (P,C), those needed of the small map (C,h,w), and a row of
        the value `outside`."""
        if small.stride(0) == 1:  # channels last: a place's values lie together
            around = small.permute(1, 2, 0).flatten(0, 1).index_select(0, self.needed)  # (A,C)
        else:
            around = small.flatten(1).index_select(1, self.needed).t()
        last = rows.new_full((1, rows.shape[1]), outside)
        return torch.cat([rows, around.to(rows.dtype), last])

    @cached_property
    def kernel_map(self) -> KernelMap:
        """The windows as a kernel map over `source` without its last row, for `sparse_conv`. It has
        no transpose: no gradients."""
        taps = (tuple(range(self.table.shape[1])),)
        group = tap_group(taps, self.table.clone(), self.outside)
        return KernelMap(self.outside, len(self.cells), [group])


class Resolutions:
    """The selected pixels of one image as cells of each stride, and how the small image covers it.

    Args:
        sites: (P,2) int64 (y, x), unique, in raster order.
        image: (H,W) of the image.
        size: (H,W) of it with the network's padding, zeros at the right and bottom.
        scale: (vertical, horizontal), the small image's size over the image's, without padding, in
            (0, 1]. A cell of any stride lies in that cell of the small image's map of the same
            depth that is `scale` times as far from the top left corner.
        deepest: the largest stride at which cells are computed, in pixels; maps of larger strides
            are the small image's everywhere. None: all are computed.
    """

    def __init__(
        self,
        sites: torch.Tensor,
        image: tuple[int, int],
        size: tuple[int, int],
        scale: tuple[float, float],
        deepest: int | None = None,
    ):
        self.sites, self.image, self.size, self.scale = sites, image, size, scale
        self.deepest = deepest
        self._cells: dict[int, Cells] = {}
        self._windows: dict[tuple, Windows] = {}

    def at(self, stride: int) -> Cells:
        """The active cells of a stride in pixels; a map's last cells may exceed the padding."""
        if stride not in self._cells:
            y, x = self.sites.unbind(1)
            if self.deepest is not None and stride > self.deepest:
                y, x = y[:0], x[:0]
            size = (-(-self.size[0] // stride), -(-self.size[1] // stride))
            self._cells[stride] = Cells(y // stride, x // stride, size, stride)
        return self._cells[stride]

    def windows(
        self,
        source: Cells,
        cells: Cells,
        small: tuple[int, int],
        kind: tuple,
        reach: int,
        places: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    ) -> Windows:
        """The windows of a function; kept for later layers of the same kind.

        Args:
            source, cells: active cells of the map that is read, and of the output.
            small: (h,w) of the small image's map.
            kind: what `places` depends on besides both cells.
            reach: how many cells outside of the map the places may lie.
            places: makes y and x of what is read, (N,T) int64 each, in cells of `source`.
        """
        key = (source.stride, cells.stride, small, kind)
        if key not in self._windows:
            y, x = places()
            flat = (y + reach) * (source.size[1] + 2 * reach) + (x + reach)
            found = self._map(source, small, reach).index_select(0, flat.view(-1))
            self._windows[key] = Windows(
                cells, len(source), small[0] * small[1], found.view(flat.shape)
            )
        return self._windows[key]

    def _map(self, source: Cells, small: tuple[int, int], reach: int) -> torch.Tensor:
        """The place (see `Windows`) of each cell of a map and of `reach` cells around it, flat:
        ((H + 2 reach) (W + 2 reach),) int32."""
        height, width = source.size
        # the place of the small map in which a cell's centre lies
        below, right = (
            ((torch.arange(n, device=source.y.device) + 0.5) * share)
            .to(torch.int32)
            .clamp(max=limit - 1)
            for n, share, limit in zip(source.size, self.scale, small)
        )
        outside = len(source) + small[0] * small[1]
        size = (height + 2 * reach, width + 2 * reach)
        places = torch.full(size, outside, dtype=torch.int32, device=below.device)
        inner = places[reach : reach + height, reach : reach + width]
        torch.add((len(source) + below * small[1])[:, None], right, out=inner)
        if source.stride == 1:  # the padding is zeros, not a copy of the small image's last pixels
            inner[self.image[0] :] = outside
            inner[:, self.image[1] :] = outside
        rows = torch.arange(len(source), dtype=torch.int32, device=below.device)
        inner[source.y, source.x] = rows
        return places.view(-1)
