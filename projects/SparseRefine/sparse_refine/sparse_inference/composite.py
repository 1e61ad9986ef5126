# SPDX-License-Identifier: Apache-2.0
"""The training form of a network at selected pixels: whole maps of a window, under autograd.

A function that reads a neighbourhood reads a composite: what was computed where cells are active,
and the small image's map everywhere else. Values at other cells are computed too, and never read.
At the active cells the numbers are those of `SiteTensor`; the cost is the dense network's, whatever
the number of selected pixels, and no sparse function needs a gradient.

Shapes: the window has (H,W) pixels, a map of it (1,C,H,W) cells, the small image's map (1,C,h,w).
"""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F

from .partial_tensor import PartialTensor, implements
from .trace import Trace, UnsupportedOperation, is_pointwise
from .windowed import enlargement, pair


class Window:
    """A part of an image, its active cells at each stride, and where the small image covers them.

    Args:
        sites: (P,2) int64 (y, x) of the selected pixels, in the window.
        view: (top, left, height, width) of the window in the image, in pixels.
        image: (H,W) of the whole image.
        divisor: a multiple of all strides of the network. The window grows to multiples of it.
        scale: (vertical, horizontal), the small image's size over the image's, see `Resolutions`.
        deepest: the largest stride at which cells are active, see `Resolutions`.
    """

    def __init__(
        self,
        sites: torch.Tensor,
        view: tuple[int, int, int, int],
        image: tuple[int, int],
        divisor: int,
        scale: tuple[float, float],
        deepest: int | None = None,
    ):
        first, length = view[:2], view[2:]
        shift = tuple(at % divisor for at in first)
        self.first = tuple(at - by for at, by in zip(first, shift))
        self.size = tuple(_up(n + by, divisor) for n, by in zip(length, shift))
        self.image, self.scale, self.deepest = image, scale, deepest
        self.padded = tuple(_up(n, divisor) for n in image)
        self.sites = sites + sites.new_tensor(shift)  # in the window that has grown
        mask = torch.zeros(self.size, dtype=torch.bool, device=sites.device)
        mask[self.sites.unbind(1)] = True
        self._masks = {1: mask}

    def cells(self, stride: int) -> tuple[int, int]:
        """(H,W) of a map of the window."""
        return self.size[0] // stride, self.size[1] // stride

    def mask(self, stride: int) -> torch.Tensor:
        """(H,W) bool: the active cells of a map, those that hold selected pixels."""
        if stride not in self._masks:
            height, width = self.cells(stride)
            blocks = self._masks[1].view(height, stride, width, stride)
            active = self.deepest is None or stride <= self.deepest
            self._masks[stride] = blocks.any(3).any(1) & active
        return self._masks[stride]

    def at(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (1,C,H,W) of stride 1 -> (P,C) at the sites."""
        y, x = self.sites.unbind(1)
        return maps[0, :, y, x].t()

    def image_of(self, rows: torch.Tensor) -> torch.Tensor:
        """(P,C) at the sites -> (1,C,H,W), zeros elsewhere."""
        maps = rows.new_zeros(1, *self.size, rows.shape[1])
        maps[0][self.sites.unbind(1)] = rows
        return maps.permute(0, 3, 1, 2)

    def beside(self, stride: int) -> tuple[int, int, int, int]:
        """How many cells of the image's map lie (left, right, top, bottom) of the window."""
        (top, bottom), (left, right) = (
            (start // stride, max(0, -(-whole // stride) - (start + size) // stride))
            for start, size, whole in zip(self.first, self.size, self.padded)
        )
        return left, right, top, bottom

    def around(
        self, small: torch.Tensor, stride: int, frame: tuple[int, int, int, int], outside: float
    ) -> torch.Tensor:
        """(1,C,H + top + bottom,W + left + right): the small image's map, read at the cells of the
        window and of a frame (left, right, top, bottom) around it, and `outside` beyond the
        image."""
        pad, maps = [], small
        for axis, (before, after) in enumerate((frame[2:], frame[:2])):
            start, count = self.first[axis] // stride, self.size[axis] // stride
            # the padding of the image itself is zeros, not a copy of its last pixels
            whole = self.image[axis] if stride == 1 else -(-self.padded[axis] // stride)
            first, last = max(0, start - before), min(whole, start + count + after)
            at = torch.arange(first, last, device=small.device)
            place = ((at + 0.5) * self.scale[axis]).to(torch.int32)  # as in Resolutions
            maps = maps.index_select(axis + 2, place.clamp(max=small.shape[axis + 2] - 1))
            pad = [first - (start - before), start + count + after - last, *pad]
        return F.pad(maps, pad, value=outside)


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


class CompositeTensor(PartialTensor):
    """A map (1,C,H,W) of a window, of which the active cells count.

    Args:
        values: (1,C,H,W).
        stride: of the map, in pixels.
        window: where it lies, and which cells are active.
        trace, pad: see `PartialTensor`.
    """

    def __init__(
        self,
        values: torch.Tensor,
        stride: int,
        window: Window,
        trace: Trace,
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
    ):
        super().__init__(values, trace, pad)
        self.stride, self.window = stride, window

    def like(self, values: torch.Tensor, stride: int | None = None) -> CompositeTensor:
        """Other values, of the same stride or of another, without padding."""
        return CompositeTensor(values, stride or self.stride, self.window, self.trace)

    def with_pad(self, pad: tuple[int, int, int, int]) -> CompositeTensor:
        return CompositeTensor(self.values, self.stride, self.window, self.trace, pad)

    @property
    def map_size(self) -> tuple[int, int]:
        return tuple(self.values.shape[-2:])

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    def each_channel(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[:, None, None]  # (C,1,1)

    def has_cells_of(self, other: PartialTensor) -> bool:
        return isinstance(other, CompositeTensor) and self.stride == other.stride

    def read(
        self, function: Callable, frame: tuple[int, int, int, int], outside: float = 0.0
    ) -> torch.Tensor:
        """(1,C,H + top + bottom,W + left + right): what `function` reads of the map and of a frame
        (left, right, top, bottom) around it, the composite."""
        small = self.small(function).to(self.dtype)
        around = self.window.around(small, self.stride, frame, outside)
        active = F.pad(self.window.mask(self.stride), frame)
        return torch.where(active, F.pad(self.values, frame), around)


@implements(CompositeTensor, F.conv2d)
def _conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if is_pointwise(weight, bias, stride, padding, dilation, groups) and not any(x.pad):
        return x.like(F.conv2d(x.values, weight, bias))
    stride, dilation = pair(stride), pair(dilation)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[-2:])]
        padding = [n // 2 for n in reach] if padding == "same" else (0, 0)
    maps = x.read(F.conv2d, _frame(x, pair(padding)))
    return _of_stride(
        x, F.conv2d(maps, weight, bias, stride, 0, dilation, groups), stride, "conv2d"
    )


@implements(CompositeTensor, F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    if ceil_mode or return_indices or any(x.pad):
        raise UnsupportedOperation("max_pool2d with ceil_mode or return_indices, or after pad")
    stride = pair(stride or kernel_size)
    maps = x.read(F.max_pool2d, _frame(x, pair(padding)), -torch.inf)
    maps = F.max_pool2d(maps, kernel_size, stride, 0, dilation)
    return _of_stride(x, maps, stride, "max_pool2d")


def _frame(x: CompositeTensor, padding) -> tuple[int, int, int, int]:
    left, right, top, bottom = x.pad
    return left + padding[1], right + padding[1], top + padding[0], bottom + padding[0]


def _of_stride(x: CompositeTensor, maps, stride: tuple[int, int], name: str) -> CompositeTensor:
    """
    Raises:
        UnsupportedOperation: strides differ, or the output does not cover the window.
    """
    fits = stride[0] == stride[1] and x.window.cells(x.stride * stride[0]) == maps.shape[-2:]
    if not fits:
        raise UnsupportedOperation(
            f"{name}, stride {stride}: it makes {tuple(maps.shape[-2:])} of {x.map_size}; a map "
            "must keep its size but for the stride"
        )
    return x.like(maps, x.stride * stride[0])


@implements(CompositeTensor, F.interpolate)
def _interpolate(
    x,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    """To a finer map, nearest or bilinear."""
    factor = enlargement(x, size, scale_factor, mode, align_corners, antialias)
    # bilinear reads a cell further, where the image has one; its last cell goes on beyond it
    further = 1 if mode == "bilinear" else 0
    frame = tuple(min(further, n) for n in x.window.beside(x.stride))
    maps = x.read(F.interpolate, frame)
    align = None if mode == "nearest" else False
    maps = F.interpolate(maps, scale_factor=factor, mode=mode, align_corners=align)
    (left, _, top, _), (height, width) = frame, x.map_size
    maps = maps[..., factor * top :, factor * left :][..., : factor * height, : factor * width]
    return x.like(maps, x.stride // factor)
