# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a map become one: bipartite soft matching on a grid, and pooling.

The matching is Bolya and Hoffman's for images (arXiv 2303.17604, section 4), as SegFormer++ uses it
(Kienzle et al., arXiv 2405.14467): without random choices, and done again in every block.

Shapes: B images; P leading tokens that are not on the map (a class token) and stay as they are,
then the N = h w tokens of a map (h,w) in raster order; C channels; M tokens are left of the N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_STRIP = 1 << 18  # similarities computed at once, at least a row of cells: they stay in cache


@dataclass(frozen=True)
class Merge:
    """How the tokens of one map are merged.

    Args:
        cell: (rows, columns) of the grid's cells, in tokens.
        rate: None averages each cell, partial ones at the bottom and right included. Else the top
            left token of each whole cell is a destination, all others are sources, and the
            int(N * rate) sources most similar to a destination (at most all sources) are merged
            into it; 0 merges nothing. 0 <= rate <= 1.
        reach: how many cells away the destinations are that a source is compared with: 1 for those
            of the 3 x 3 cells around it. None, the paper's way, for all of the map.

    Raises:
        ValueError: an impossible value.
    """

    cell: tuple[int, int]
    rate: float | None = None
    reach: int | None = None

    def __post_init__(self):
        cell = self.cell
        if not isinstance(cell, tuple) or [type(n) for n in cell] != [int, int] or min(cell) < 1:
            raise ValueError(f"cell is {cell}: two whole numbers (rows, columns), at least 1")
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}: a share of the tokens, 0 to 1")
        if self.reach is not None and (self.rate is None or self.reach < 0):
            raise ValueError(f"reach is {self.reach}: cells, at least 0, and only with a rate")

    def left(self, size: tuple[int, int]) -> int:
        """M for a map of (h,w) = `size`."""
        (height, width), (rows, columns) = size, self.cell
        if self.rate is None:
            return math.ceil(height / rows) * math.ceil(width / columns)
        whole = (height // rows) * (width // columns)
        if whole == 0:  # no destination
            return height * width
        return height * width - min(int(height * width * self.rate), height * width - whole)


@dataclass(frozen=True)
class Groups:
    """Tokens that become one: `index` (B or 1, P+N) int64, the group of each token; `count`, the
    number of groups, P+M."""

    index: torch.Tensor
    count: int

    def merge(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B,P+N,C) -> (B,P+M,C), the mean of each group; gradients reach all of its tokens."""
        images, _, channels = tokens.shape
        index = self._of_batch(images).flatten()
        order = index.argsort(stable=True)
        # embedding_bag sums each group in one pass over its rows, without collisions
        starts = torch.searchsorted(
            index[order], torch.arange(images * self.count, device=index.device)
        )
        means = F.embedding_bag(order, tokens.reshape(-1, channels), starts, mode="mean")
        return means.view(images, self.count, channels)

    def unmerge(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B,P+M,C) -> (B,P+N,C): each token gets a copy of its group's."""
        images, _, channels = tokens.shape
        return F.embedding(self._of_batch(images), tokens.reshape(-1, channels))

    def _of_batch(self, images: int) -> torch.Tensor:
        """(B,P+N) `index` with numbers that run through the batch, 0 .. B count - 1."""
        first = torch.arange(images, device=self.index.device)[:, None] * self.count
        return self.index + first


@torch.no_grad()
def find_groups(tokens: torch.Tensor, size: tuple[int, int], how: Merge | None) -> Groups | None:
    """Groups among tokens (B,P+N,C) whose last N lie on a grid of (h,w) = `size`.

    None where `how` merges nothing of such a map.
    """
    count = size[0] * size[1]
    if how is None or how.left(size) == count:
        return None
    leading = int(tokens.shape[1]) - count
    if how.rate is None:
        index = _cell_index(size, how.cell, tokens.device)
    else:
        # in float32: from 0.5 to 1 bfloat16 has 128 values, and of equals the first ones win
        with torch.autocast(tokens.device.type, enabled=False):
            unit = F.normalize(tokens[:, leading:].float(), dim=2)  # (B,N,C)
            best, target = nearest_destinations(unit, size, how.cell, how.reach)
        index = _matched_index(best, target, count - how.left(size))
    if leading:
        own = torch.arange(leading, device=index.device).expand(len(index), -1)
        index = torch.cat([own, index + leading], dim=1)
    return Groups(index, how.left(size) + leading)


def nearest_destinations(
    unit: torch.Tensor, size: tuple[int, int], cell: tuple[int, int], reach: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of the unit vectors (B,N,C) the largest cosine to a destination, (B,N), and the
    index of that destination among the N, (B,N) int64. For destinations the cosine is -inf.

    Tokens beyond the whole cells count to the last cell of their row and column.
    """
    (height, width), (rows, columns) = size, cell
    down, across = height // rows, width // columns
    device = unit.device
    grid = unit.unflatten(1, (height, width))  # (B,h,w,C)
    destinations = grid[:, : down * rows : rows, : across * columns : columns]  # (B,down,across,C)
    places = torch.arange(down, device=device)[:, None] * (rows * width)
    places = places + torch.arange(across, device=device) * columns  # (down, across)
    if reach is None:
        step = max(1, _STRIP // (rows * width * down * across))
    else:
        step = 1
        own = (torch.arange(width, device=device) // columns).clamp(max=across - 1)
        distance = (own[:, None] - torch.arange(across, device=device)).abs()
        far = torch.where(distance > reach, -torch.inf, 0.0)  # (w, across)
    best, target = [], []
    for start in range(0, down, step):
        end = height if start + step >= down else (start + step) * rows
        first, last = (0, down) if reach is None else (max(0, start - reach), start + reach + 1)
        strip = grid[:, start * rows : end].flatten(1, 2)
        # (B, tokens of the strip, destinations in reach)
        similarity = strip @ destinations[:, first:last].flatten(1, 2).transpose(1, 2)
        if reach is not None:
            by_column = similarity.view(len(unit), -1, width, similarity.shape[2] // across, across)
            by_column += far[:, None]
        values, which = similarity.max(2)
        best.append(values)
        target.append(places[first:last].flatten()[which])
    best = torch.cat(best, dim=1)
    best[:, places.flatten()] = -torch.inf
    return best, torch.cat(target, dim=1)


def _matched_index(best: torch.Tensor, target: torch.Tensor, merged: int) -> torch.Tensor:
    """(B,N) the group of each token, numbered in the order of the tokens that stay. The `merged`
    tokens of highest `best`, of equals the first, join their targets."""
    gone = best.sort(dim=1, descending=True, stable=True).indices[:, :merged]
    stays = torch.ones_like(best, dtype=torch.bool).scatter_(1, gone, 0)
    own = torch.arange(best.shape[1], device=best.device)
    number = stays.cumsum(1) - 1
    return number.gather(1, torch.where(stays, own, target))


def _cell_index(size: tuple[int, int], cell: tuple[int, int], device) -> torch.Tensor:
    """(1,N) the cell of each token, in raster order of cells."""
    rows = torch.arange(size[0], device=device) // cell[0]
    columns = torch.arange(size[1], device=device) // cell[1]
    return (rows[:, None] * math.ceil(size[1] / cell[1]) + columns).view(1, -1)
