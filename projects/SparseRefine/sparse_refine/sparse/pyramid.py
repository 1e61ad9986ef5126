# SPDX-License-Identifier: Apache-2.0
"""Active sites of a batch of images at every level of a UNet, and where they lie in memory.

An image is a bounded grid, so no hash table is needed: a level's images are stacked into one tall
canvas with a border of one empty pixel around each, and a dense map from canvas positions to rows
of the feature matrix answers every "who is my neighbour" by one read.
"""

from __future__ import annotations

import functools

import torch

from ..sites import Sites


def on_device(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Numbers (N,) int64. Kept on a GPU: each transfer waits until the GPU is idle."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int64, device=device)
    tensor = _kept(numbers, device)
    if type(tensor) is not torch.Tensor:  # a stand-in of torch.export
        _kept.cache_clear()
    return tensor


@functools.lru_cache(maxsize=1024)
def _kept(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.int64, device=device)


class Level:
    """Sites of one resolution, and the canvas in which they lie.

    `sites` (P,3) int64 (image, y, x). `sizes`: (H,W) of each image. `width`: of the canvas, the
    widest image with its border; `canvas`: number of its positions. `offsets` (B,) int64: where
    each image begins. `flat` (P,) int64: positions of the sites, ascending. `index` (canvas,)
    int32: a position's row, or P where it holds no site.
    """

    def __init__(
        self, sites: torch.Tensor, sizes: list[tuple[int, int]], flat: torch.Tensor | None = None
    ):
        self.sizes = sizes
        self.sites = sites
        self.width = max((width for _, width in sizes), default=0) + 2
        starts = [0]
        for height, _ in sizes:
            starts.append(starts[-1] + (height + 2) * self.width)
        self.canvas = starts.pop()
        self.offsets = on_device(tuple(starts), sites.device)
        self.flat = self.position(*sites.unbind(1)) if flat is None else flat
        self._index = None
        self._spread = None
        self._present = None

    def filled(self, occupied: torch.Tensor) -> Level:
        """A level of the same images with a site at each True of `occupied` (canvas,)."""
        flat = occupied.nonzero()[:, 0]  # (P,)
        if len(self.sizes) == 1:
            image, rest = torch.zeros_like(flat), flat
        else:
            image = torch.bucketize(flat, self.offsets, right=True) - 1
            rest = flat - self.offsets.index_select(0, image)
        y, x = rest // self.width - 1, rest % self.width - 1
        return Level(torch.stack([image, y, x], dim=1), self.sizes, flat)

    @property
    def count(self) -> int:
        """P."""
        return len(self.sites)

    @property
    def whole(self) -> bool:
        """Whether all pixels of images of one size are sites: their features are images."""
        height, width = self.sizes[0] if self.sizes else (0, 0)
        same = all(tuple(size) == (height, width) for size in self.sizes)
        return same and 0 < self.count == len(self.sizes) * height * width

    @property
    def index(self) -> torch.Tensor:
        # made when it is first asked for: a coarser level is built from positions alone
        if self._index is None:
            index = torch.full(
                (self.canvas,), self.count, dtype=torch.int32, device=self.sites.device
            )
            rows = torch.arange(self.count, dtype=torch.int32, device=self.sites.device)
            index.index_copy_(0, self.flat, rows)
            self._index = index
        return self._index

    def stream(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of all sites and of an empty one at each end of a run of them.

        Returns:
            (n + 2,) int64, ascending; and which of the middle n are sites, (P,) int64, 0 .. n - 1.
        """
        flat = self.flat
        # empty positions before a site: none within a run, one between runs two apart, else two
        before = (flat.diff() - 1).clamp_(max=2)
        place = torch.arange(1, self.count + 1, device=flat.device)
        place[1:] += before.cumsum(0)
        stream = flat.new_empty(int(place[-1]) + 2)
        for beside in (-1, 0, 1):
            stream.index_copy_(0, place + beside, flat + beside)
        return stream, place - 1

    @property
    def spread(self) -> float:
        """Length of `stream` over the number of sites, at least 1: about 1 where runs are long."""
        if self._spread is None:
            gaps = (self.flat.diff() - 1).clamp_(max=2).sum()
            self._spread = 1 + (int(gaps) + 2) / max(1, self.count)
        return self._spread

    def neighbours(self) -> torch.Tensor:
        """(P,9) int32: the rows of the 3x3 window around each site, y first; P for absent ones."""
        steps = tuple(dy * self.width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        return self.rows(self.flat[:, None] + on_device(steps, self.flat.device))

    @property
    def present(self) -> float:
        """Share 0..1 of `neighbours` that are sites."""
        if self._present is None:
            self._present = (self.neighbours() < self.count).float().mean().item()
        return self._present

    def position(self, image: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Canvas positions (N,) int64; y and x may be one pixel outside the image: its border."""
        places = torch.add(x, y, alpha=self.width).add_(self.width + 1)
        return places if len(self.sizes) < 2 else places.add_(self.offsets.index_select(0, image))

    def rows(self, positions: torch.Tensor) -> torch.Tensor:
        """`index` at positions of any shape, int32."""
        # several times faster than index[positions]
        return self.index.index_select(0, positions.reshape(-1)).view(positions.shape)


class Pyramid:
    """Levels of sites, each at half the resolution of the one before, rounded up.

    Args:
        sites: of the full resolution.
        levels: how many, the full resolution included.
        downsample: where a stride-2 convolution puts its output sites.
            "floor": as MinkowskiEngine, the unique o = floor(site / 2), window 2 o - 1 .. 2 o + 1.
            "reach": as the paper's release (TorchSparse 2.1, padding 0), each o with 0 <= o <=
            (largest coordinate of the image - 2) // 2 whose window 2 o .. 2 o + 2 holds a site.

    Attributes:
        levels: a `Level` for each resolution.
        window: where the window begins, from 2 o: -1 or 0.

    Raises:
        ValueError: an unknown `downsample`.
    """

    def __init__(
        self,
        sites: Sites,
        levels: int,
        downsample: str = "floor",
    ):
        if downsample not in ("floor", "reach"):
            raise ValueError(
                "MODEL.SPARSE_REFINE.EXTRACTOR.DOWNSAMPLE_SITES is "
                f"{downsample!r}: one of ('floor', 'reach')"
            )
        self.downsample = downsample
        self.window = -1 if downsample == "floor" else 0
        self.levels = [Level(sites.coordinates, sites.sizes)]
        for _ in range(levels - 1):
            self.levels.append(self._coarser(self.levels[-1]))

    def _coarser(self, fine: Level) -> Level:
        sizes = [((height + 1) // 2, (width + 1) // 2) for height, width in fine.sizes]
        image, y, x = fine.sites.unbind(1)
        coarse = Level(fine.sites[:0], sizes)
        occupied = torch.zeros(coarse.canvas, dtype=torch.bool, device=fine.sites.device)
        if self.downsample == "floor":
            occupied.index_fill_(0, coarse.position(image, y >> 1, x >> 1), True)
        else:
            # along each axis a site lies in the windows of two outputs at most
            last_y, last_x = (self._last(image, axis, len(sizes)) for axis in (y, x))
            for out_y in (y // 2, (y - 1) // 2):
                for out_x in (x // 2, (x - 1) // 2):
                    inside = (out_y >= 0) & (out_y <= last_y) & (out_x >= 0) & (out_x <= last_x)
                    position = coarse.position(image, out_y, out_x)
                    occupied[position[inside]] = True
        return coarse.filled(occupied)

    @staticmethod
    def _last(image: torch.Tensor, axis: torch.Tensor, images: int) -> torch.Tensor:
        """For each site the largest output coordinate of its image along an axis."""
        largest = torch.full((images,), -1, dtype=axis.dtype, device=axis.device)
        largest.scatter_reduce_(0, image, axis, "amax")
        return ((largest - 2) // 2)[image]
