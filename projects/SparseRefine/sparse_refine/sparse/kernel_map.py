# SPDX-License-Identifier: Apache-2.0
"""Which input rows each output row of a sparse convolution reads, tap by tap.

A kernel map is a list of groups. A group's rows all use the same taps, so that a group is one
gather and one matrix product. Taps that the parity of a site rules out (transposed convolution) are
not multiplied at all. The transpose of a map, for gradients and for transposed convolution, is a
map of the same kind: no scatter has collisions.

A submanifold convolution comes in one of four forms, the cheapest for its level and channels
(`products.best_form`):

- windows: a row of the table holds the nine neighbours of an output site;
- runs: sites of an image row that lie side by side share neighbours. The table holds the sites in
  raster order, and one empty position at each end of a run of them; a row of it holds the three
  neighbours above, at and below a position, and a site's window is three rows of it that follow one
  another. That gathers a third as much, and multiplies at the empty positions in vain;
- frame: the table is the whole canvas, and a window is three places of three lines of it. Where
  nearly all pixels are sites, there is little to leave out;
- taps: a group a tap, of the sites that have that neighbour, and the groups' products are added up.
  On the coarsest levels a quarter of the neighbours are absent, and multiplications are nearly all
  of the cost.

Where all pixels are sites, the features are images, and there is no map: `KernelMap.images`.

Shapes: P sites, n windows of a group, T places of a table's row, A absent neighbours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from .pyramid import Level, Pyramid, on_device

TAPS = [(dy, dx) for dy in range(3) for dx in range(3)]  # tap k of a 3x3 kernel, y first


@dataclass(frozen=True)
class Chunk:
    """Outputs start .. stop - 1 of a group, which come from rows first .. last - 1 of its table.

    `absent`: places in that part of the table, flattened, to be filled with zeros. `pick`: which of
    the part's windows are the outputs; None where all are.
    """

    start: int
    stop: int
    first: int
    last: int
    absent: torch.Tensor | None
    pick: torch.Tensor | None


@dataclass
class TapGroup:
    """A gather and the taps that its rows are multiplied by.

    A window, what one output reads, is `len(taps)` successive rows of the table; or, where `line`
    is not 0, 3 by 3 of its rows, of which `line` make a line of an image.

    `taps`: a tuple of T tap indices for each row of a window.
    `table` (n + overlap, T) int32: the input rows. Where `absent` is None, absent ones hold the
    number of input rows; else an arbitrary row, and `absent` (A,) int64, ascending, holds their
    places in the flattened table.
    `pick` (P,) int64, ascending: which of the n windows are outputs; None where all are.
    `rows` (n,) int64: the output rows of the windows; None where they are all rows, in order.
    `add`: the products are added to what earlier groups wrote there.
    """

    taps: tuple[tuple[int, ...], ...]
    table: torch.Tensor
    absent: torch.Tensor | None = None
    pick: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    line: int = 0
    add: bool = False
    _chunks: dict = field(default_factory=dict, repr=False)

    @property
    def overlap(self) -> int:
        """How many rows more than windows any part of the table has."""
        return 2 * self.line if self.line else len(self.taps) - 1

    @property
    def outputs(self) -> int:
        """Number of output rows."""
        windows = len(self.table) - self.overlap
        return windows if self.pick is None else len(self.pick)

    def chunks(self, step: int) -> list[Chunk]:
        """Parts of at most `step` outputs. Kept: all layers of a level ask for the same."""
        if step not in self._chunks:
            starts = list(range(0, self.outputs, step))
            stops = [*starts[1:], self.outputs]
            first, last = starts, stops
            if self.pick is not None:  # two transfers, not two a chunk, where the map is on a GPU
                first = self.pick[starts].tolist()
                last = (self.pick[[stop - 1 for stop in stops]] + 1).tolist()
            if self.line:  # whole lines
                first = [at // self.line * self.line for at in first]
                last = [-(-at // self.line) * self.line for at in last]
            last = [stop + self.overlap for stop in last]
            self._chunks[step] = [
                Chunk(*bounds, self._absent_in(*bounds[2:]), self._pick_in(*bounds[:3]))
                for bounds in zip(starts, stops, first, last)
            ]
        return self._chunks[step]

    def _absent_in(self, first: int, last: int) -> torch.Tensor | None:
        if self.absent is None:
            return None
        edges = torch.tensor([first, last]) * self.table.shape[1]
        low, high = torch.searchsorted(self.absent, edges).tolist()
        return self.absent[low:high] - first * self.table.shape[1]

    def _pick_in(self, start: int, stop: int, first: int) -> torch.Tensor | None:
        return None if self.pick is None else self.pick[start:stop] - first


@dataclass
class KernelMap:
    """The groups of a convolution from `inputs` to `outputs` rows.

    `images`: (B,H,W) where the rows are all pixels of B images, in raster order; then there are no
    groups. `transposed`: the map of the transposed convolution, which gradients need; None for
    images, and where there are no gradients.
    """

    inputs: int
    outputs: int
    groups: list[TapGroup]
    images: tuple[int, int, int] | None = None
    transposed: KernelMap | None = field(default=None, repr=False)


def tap_group(taps, table: torch.Tensor, inputs: int, **options) -> TapGroup:
    """A group from a table in which absent rows hold `inputs`. Writes to the table."""
    # A few zeros are cheaper written after the gather than read from a row appended to a copy of
    # all features. On a GPU that copy is one quick launch.
    if table.device.type == "cpu":
        absent = (table.view(-1) == inputs).nonzero()[:, 0]
        if len(absent) < inputs:
            return TapGroup(taps, table.clamp_(max=inputs - 1), absent, **options)
    return TapGroup(taps, table, **options)


def submanifold_map(level: Level, form: str) -> KernelMap:
    """3x3, stride 1, the output sites are the input sites.

    Args:
        form: "windows", "runs", "frame", "taps" (see above), or "images" where `level.whole`.
    """
    if form == "images":
        return KernelMap(level.count, level.count, [], (len(level.sizes), *level.sizes[0]))
    if form == "taps":
        groups = _by_taps(level)
    else:
        groups = [_in_one(level, form)]
    forward = KernelMap(level.count, level.count, groups)
    # p reads q through tap k exactly where q reads p through tap 8 - k
    flipped = [
        dataclasses.replace(group, taps=tuple(tuple(8 - k for k in place) for place in group.taps))
        for group in groups
    ]
    backward = KernelMap(level.count, level.count, flipped)
    forward.transposed, backward.transposed = backward, forward
    return forward


def _by_taps(level: Level) -> list[TapGroup]:
    """A group a tap; the first is the centre, which all sites have."""
    table = level.neighbours()  # (P,9)
    groups = []
    for tap in (4, 0, 1, 2, 3, 5, 6, 7, 8):
        column, options = table[:, tap], {}
        if tap != 4:
            rows = (column < level.count).nonzero()[:, 0]
            column, options = column[rows], {"rows": rows, "add": True}
        none_absent = level.flat[:0]
        groups.append(TapGroup(((tap,),), column[:, None].contiguous(), none_absent, **options))
    return groups


def _in_one(level: Level, form: str) -> TapGroup:
    if form == "frame":
        table = level.index.clone()[:, None]  # (canvas,1)
        taps = tuple((k,) for k in range(9))
        options = {"pick": level.flat - level.width, "line": level.width}
    elif form == "runs":
        stream, pick = level.stream()
        steps = on_device(tuple((dy - 1) * level.width for dy in range(3)), stream.device)
        table = level.rows(stream[:, None] + steps)  # (n + 2, 3)
        taps = tuple(tuple(3 * dy + dx for dy in range(3)) for dx in range(3))
        options = {"pick": pick}
    else:
        table = level.neighbours()  # (P,9)
        taps, options = (tuple(range(9)),), {}
    return tap_group(taps, table, level.count, **options)


def _rows_by(kinds: torch.Tensor, count: int) -> list[torch.Tensor]:
    """For each kind 0 .. count - 1 the places of `kinds` (P,) that hold it, int64, ascending."""
    if kinds.device.type == "cpu":
        return [(kinds == kind).nonzero()[:, 0] for kind in range(count)]
    return _rows_by_sorting(kinds, count)


def _rows_by_sorting(kinds: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The same with one wait for a GPU, where each `nonzero` would be one."""
    kinds, order = kinds.to(torch.uint8).sort(stable=True)
    ends = torch.searchsorted(kinds, torch.arange(count, device=kinds.device).to(kinds), right=True)
    return list(order.tensor_split(ends[:-1].cpu()))


def down_map(pyramid: Pyramid, level: int) -> KernelMap:
    """3x3, stride 2, from `level` to `level + 1`; its `transposed` is the convolution back up."""
    fine, coarse = pyramid.levels[level], pyramid.levels[level + 1]
    first = pyramid.window
    image, y, x = coarse.sites.unbind(1)
    base = fine.position(image, 2 * y + first, 2 * x + first)
    steps = on_device(tuple(dy * fine.width + dx for dy, dx in TAPS), base.device)
    table = fine.rows(base[:, None] + steps)  # (P_coarse,9)
    forward = KernelMap(
        fine.count, coarse.count, [tap_group((tuple(range(9)),), table, fine.count)]
    )

    # back up, along each axis fine = 2 coarse + first + d: where fine - first is odd, tap d = 1
    # alone reaches it, else taps 0 and 2. So there is a group for each parity of y and x
    groups = []
    image, y, x = fine.sites.unbind(1)
    y, x = y - first, x - first
    base, parity = coarse.position(image, y >> 1, x >> 1), torch.add(x & 1, y & 1, alpha=2)
    for place, rows in enumerate(_rows_by(parity, 4)):
        taps = [(dy, dx) for dy, dx in TAPS if 2 * (dy % 2) + dx % 2 == place]
        steps = tuple(-(dy // 2) * coarse.width - dx // 2 for dy, dx in taps)
        table = base.index_select(0, rows)[:, None] + on_device(steps, base.device)  # (n,T)
        taps = (tuple(3 * dy + dx for dy, dx in taps),)
        groups.append(tap_group(taps, coarse.rows(table), coarse.count, rows=rows))
    backward = KernelMap(coarse.count, fine.count, groups)
    forward.transposed, backward.transposed = backward, forward
    return forward
