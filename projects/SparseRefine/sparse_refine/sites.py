# SPDX-License-Identifier: Apache-2.0
"""Sites: the selected pixels of a batch, in the one form in which all parts hand them on; and which
pixels of an image a budget takes.

Shapes: B images of (H,W) pixels, P sites of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class View:
    """The window of an image that the refiner works on: all of it, or a training crop.

    `top`, `left`, `height`, `width` in pixels of the whole image, which is `full` = (H, W).
    """

    top: int
    left: int
    height: int
    width: int
    full: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @classmethod
    def of_input(cls, item: dict) -> View:
        """Of a model's input: all of "image" (3,H,W), or what "crop" (top, left, H, W) says."""
        height, width = item["image"].shape[-2:]
        top, left, *full = item.get("crop", (0, 0, height, width))
        return cls(top, left, height, width, tuple(full))


class Sites:
    """Pixels of a batch of images: each once, in raster order, image after image.

    Kernel maps, patches and scatters rely on that order, so it is checked here, where sites are
    made, and nowhere else.

    Args:
        coordinates: (P,3) int64 (image, y, x).
        sizes: (H,W) of each image, in pixels.

    Raises:
        ValueError: another shape or type, or a site that is outside, out of order or there twice.
    """

    def __init__(self, coordinates: torch.Tensor, sizes: Sequence[tuple[int, int]]):
        sizes = [tuple(size) for size in sizes]
        _check(coordinates, sizes)
        self._set(coordinates, sizes, None)

    def _set(self, coordinates, sizes, counts) -> None:
        self.coordinates = coordinates
        self.sizes = sizes
        self._counts = counts

    @classmethod
    def of_images(cls, parts: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]]) -> Sites:
        """From (P_i,2) int64 (y, x) of each image."""
        for index, part in enumerate(parts):
            if part.dim() != 2 or part.shape[1] != 2:
                raise ValueError(
                    f"sites of image {index} are {tuple(part.shape)}: (P,2) of (y, x) are needed"
                )
        indexed = [F.pad(part, (1, 0), value=index) for index, part in enumerate(parts)]
        sites = cls(torch.cat(indexed), sizes)  # (P,3)
        sites._counts = [len(part) for part in parts]
        return sites

    @classmethod
    def of_masks(cls, masks: Sequence[torch.Tensor]) -> Sites:
        """The True pixels of masks (H,W), an image each."""
        return cls.of_images([mask.nonzero() for mask in masks], [mask.shape for mask in masks])

    @classmethod
    def ordered(cls, coordinates: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> Sites:
        """Without the check, for coordinates that come in raster order by how they were made."""
        sites = cls.__new__(cls)
        sites._set(coordinates, [tuple(size) for size in sizes], None)
        return sites

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def device(self) -> torch.device:
        return self.coordinates.device

    @property
    def counts(self) -> list[int]:
        """Sites of each image."""
        if self._counts is None:
            image = self.coordinates[:, 0]
            self._counts = torch.bincount(image, minlength=len(self.sizes)).tolist()
        return self._counts

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Values (P,...) of the batch -> (P_i,...) of each image."""
        return values.split(self.counts)

    def by_image(self) -> tuple[torch.Tensor, ...]:
        """(P_i,2) int64 (y, x) of each image."""
        return self.split(self.coordinates[:, 1:])

    def read(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (C,H,W) of each image, of its own size -> (P,C) at the sites."""
        parts = [
            values.flatten(1).index_select(1, yx[:, 0] * values.shape[2] + yx[:, 1]).t()
            for values, yx in zip(maps, self.by_image())
        ]
        return torch.cat(parts)


def highest(
    scores: torch.Tensor, weights: torch.Tensor, budget: int
) -> tuple[torch.Tensor, int, int]:
    """The places of highest score whose weights sum to at most `budget`, in descending order until
    one no longer fits; of equal scores the first in raster order.

    Sorting all scores took 40 ms at half a million. Here a histogram of their upper 16 bits (of
    non-negative floats the bits order as the values do) finds the few among which the border runs.

    Args:
        scores: (h,w), at least 0 (negative ones, by rounding, count as 0, and NaN as the highest).
        weights: (h,w) int64, above 0.
        budget: at least 0.

    Returns:
        Their mask (h,w); the flat index of the next place, and what is left of the budget for it
        (0 and 0 where all fit).
    """
    scores = scores.float().nan_to_num(nan=math.inf).clamp(min=0) + 0.0  # -0.0 + 0.0 is 0.0
    bits = scores.view(torch.int32).flatten()  # (h w,)
    bins, weights = (bits >> 16).long(), weights.flatten()
    # counted by bin and weight, of which there are few: sums of integers do not depend on the order
    least, most = int(weights.min()), int(weights.max())
    steps = most - least + 1
    # 0x7F80 is the bin of infinity
    counts = torch.bincount(bins * steps + (weights - least), minlength=(0x7F80 + 1) * steps)
    values = torch.arange(least, most + 1, device=counts.device)
    above = (counts.view(-1, steps) * values).sum(1).flip(0).cumsum(0)  # highest bin first
    # the first bin, from the highest, that does not fit as a whole
    border = int((above <= budget).sum())
    if border == len(above):
        return torch.ones_like(scores, dtype=torch.bool), 0, 0
    rest = budget - (int(above[border - 1]) if border else 0)
    border = len(above) - 1 - border
    mask = bins > border
    inside = (bins == border).nonzero()[:, 0]
    inside = inside[bits[inside].sort(descending=True, stable=True).indices]
    total = weights[inside].cumsum(0)
    whole = int((total <= rest).sum())
    mask[inside[:whole]] = True
    rest -= int(total[whole - 1]) if whole else 0
    return mask.view(scores.shape), int(inside[whole]), rest


def _check(coordinates: torch.Tensor, sizes: list[tuple[int, int]]) -> None:
    if coordinates.dim() != 2 or coordinates.shape[1] != 3:
        raise ValueError(f"sites are {tuple(coordinates.shape)}: (P,3) of (image, y, x) are needed")
    if coordinates.dtype != torch.int64:
        raise ValueError(f"sites are of {coordinates.dtype}: torch.int64 is needed")
    if len(coordinates) == 0:
        return
    image, y, x = coordinates.unbind(1)
    bounds = coordinates.new_tensor([*sizes, (0, 0)])  # a last one, for no images at all
    height, width = bounds[image.clamp(0, len(sizes))].unbind(1)
    inside = (image >= 0) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    # ascending by (image, y, x); an image's rows are counted on from those of the one before
    starts = bounds[:, 0].cumsum(0) - bounds[:, 0]
    row = y + starts[image.clamp(0, len(sizes))]
    place = row * max((width for _, width in sizes), default=1) + x
    ascending = place.diff() > 0
    if bool(inside.all() & ascending.all()):  # one wait for a GPU
        return
    if not inside.all():
        site = coordinates[int((~inside).nonzero()[0])].tolist()
        raise ValueError(
            f"site {site} (image, y, x) lies outside of the images, whose sizes are {sizes}"
        )
    first = int((~ascending).nonzero()[0])
    one, other = coordinates[first].tolist(), coordinates[first + 1].tolist()
    what = "is there twice" if one == other else f"comes before {other}"
    raise ValueError(
        f"site {one} (image, y, x) {what}: each site once, in raster order of each image"
    )
