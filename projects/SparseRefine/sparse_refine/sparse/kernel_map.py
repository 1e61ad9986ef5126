# SPDX-License-Identifier: Apache-2.0
"""Which input rows each output row of a sparse convolution reads, tap by tap.

A map is a list of groups. A group's rows all use the same taps, so that a group is one gather and
one matrix product, without a multiplication by an absent neighbour's zeros where parity rules a tap
out, and its transpose (for gradients and for transposed convolution) is a map of the same kind:
there is never a scatter with colliding rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .pyramid import Level, Pyramid

TAPS = [(dy, dx) for dy in range(3) for dx in range(3)]  # tap k of a 3x3 kernel, y first


@dataclass(frozen=True)
class TapGroup:
    """`table` (n,T) int32: for each of n output rows, the input rows under `taps` (T indices into
    the kernel); an absent one holds the number of input rows. `rows` (n,) int64: the output rows,
    or None where they are all, in order."""

    taps: tuple[int, ...]
    table: torch.Tensor
    rows: torch.Tensor | None = None


@dataclass
class KernelMap:
    """`inputs` and `outputs`: numbers of rows. `transposed` exchanges them."""

    inputs: int
    outputs: int
    groups: list[TapGroup]
    transposed: KernelMap | None = field(default=None, repr=False)


def submanifold_map(level: Level) -> KernelMap:
    """3x3, stride 1, output sites = input sites."""
    steps = [(dy - 1) * level.width + (dx - 1) for dy, dx in TAPS]
    table = torch.stack([level.index[level.flat + step] for step in steps], dim=1)
    forward = KernelMap(level.count, level.count, [TapGroup(tuple(range(9)), table)])
    # p reads q through tap k exactly where q reads p through tap 8 - k
    backward = KernelMap(level.count, level.count, [TapGroup(tuple(range(8, -1, -1)), table)])
    forward.transposed, backward.transposed = backward, forward
    return forward


def down_map(pyramid: Pyramid, level: int) -> KernelMap:
    """3x3, stride 2, from `level` to `level + 1`; its `transposed` is the convolution back up."""
    fine, coarse = pyramid.levels[level], pyramid.levels[level + 1]
    first = pyramid.window
    image, y, x = coarse.sites.unbind(1)
    base = fine.position(image, 2 * y + first, 2 * x + first)
    table = torch.stack([fine.index[base + dy * fine.width + dx] for dy, dx in TAPS], dim=1)
    forward = KernelMap(fine.count, coarse.count, [TapGroup(tuple(range(9)), table)])

    groups = []
    image, y, x = fine.sites.unbind(1)
    for parity_y in (0, 1):
        for parity_x in (0, 1):
            rows = ((y % 2 == parity_y) & (x % 2 == parity_x)).nonzero()[:, 0]
            # fine = 2 coarse + first + d: only taps d of the site's own parity reach it
            taps = [
                k
                for k, (dy, dx) in enumerate(TAPS)
                if (dy + first) % 2 == parity_y and (dx + first) % 2 == parity_x
            ]
            columns = []
            for k in taps:
                dy, dx = TAPS[k]
                out_y = (y[rows] - first - dy) // 2
                out_x = (x[rows] - first - dx) // 2
                columns.append(coarse.index[coarse.position(image[rows], out_y, out_x)])
            groups.append(TapGroup(tuple(taps), torch.stack(columns, dim=1), rows))
    backward = KernelMap(coarse.count, fine.count, groups)
    forward.transposed, backward.transposed = backward, forward
    return forward
