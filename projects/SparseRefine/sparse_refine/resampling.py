# SPDX-License-Identifier: Apache-2.0
"""Between resolutions: the one rule to shrink an image, to read a small map at full size, and which
small pixel a large one lies in. Training, evaluation and prediction call these and nothing else.

Pixel centres lie at (i + 0.5) / n of an image's side (`align_corners=False`).
Shapes: K classes, (H, W) full size, (h, w) low size, P sites.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .sites import View

INTERPOLATIONS = ("nearest", "bilinear")
_STRIP = 128  # rows of full resolution whose scores exist at once


def low_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) -> (h, w) at `scale`, each side rounded and at least 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def downsample(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Antialiased bilinear resize (C,H,W) -> float (C,h,w) in the value range of the image: what
    the base of SparseRefine sees."""
    image = image.float()
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(
        image[None], size=size, mode="bilinear", align_corners=False, antialias=True
    )[0]


def resize_pixels(image: np.ndarray, size: tuple[int, int], box=None) -> np.ndarray:
    """Antialiased bilinear resize of (H,W,3) uint8 -> (h,w,3) uint8, of a float `box`
    (x0,y0,x1,y1) where given: what a dense model sees, and a crop of a resized image without the
    rest of it."""
    if box is None and tuple(size) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.BILINEAR, box=box)
    return np.asarray(resized)


def nearest_index(size: int, low: int, device=None) -> torch.Tensor:
    """(size,) int64: of `low` pixels along a side, the one in which the centre of each of `size`
    pixels lies. As torch's "nearest-exact", and "nearest" where `size` is a multiple of `low`."""
    return nearest(torch.arange(size, device=device), size, low)


def nearest(index, size: int, low: int):
    """The same for given pixels: integers, or a tensor of them."""
    return (2 * index + 1) * low // (2 * size)


def first_under(index: int, size: int, low: int) -> int:
    """The first of `size` pixels that lies in pixel `index` of `low`."""
    return max(0, -((low - 2 * index * size) // (2 * low)))


def repeat_nearest(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(...,h,w) -> (...,H,W): each pixel gets the low-resolution one that it lies in.

    Of any type, where torch's interpolate knows only some.
    """
    rows = nearest_index(size[0], maps.shape[-2], maps.device)
    columns = nearest_index(size[1], maps.shape[-1], maps.device)
    return maps[..., columns][..., rows, :]


def pixels_under(low: tuple[int, int], size: tuple[int, int], device=None) -> torch.Tensor:
    """(h,w) int64: how many of the (H,W) = `size` pixels lie in each low-resolution one. They
    differ where the scale is odd."""
    rows, columns = (
        torch.bincount(nearest_index(new, old, device), minlength=old)
        for new, old in zip(size, low)
    )
    return rows[:, None] * columns


def read_at(logits: torch.Tensor, sites: torch.Tensor, view: View, how: str) -> torch.Tensor:
    """Logits (K,h,w) of a whole image read at `sites` (P,2), (y, x) in the view's pixels -> (P,K).

    `how`: one of INTERPOLATIONS.
    """
    classes, height, width = logits.shape
    y, x = sites[:, 0] + view.top, sites[:, 1] + view.left
    if how == "nearest":
        index = nearest(y, view.full[0], height) * width + nearest(x, view.full[1], width)
        return logits.reshape(classes, -1)[:, index].t().contiguous()
    grid_y = (y + 0.5) * (2.0 / view.full[0]) - 1
    grid_x = (x + 0.5) * (2.0 / view.full[1]) - 1
    grid = torch.stack([grid_x, grid_y], dim=1)[None, None].to(logits.dtype)
    values = F.grid_sample(logits[None], grid, padding_mode="border", align_corners=False)
    return values[0, :, 0].t().contiguous()


def enlarge(logits: torch.Tensor, size: tuple[int, int], how: str) -> torch.Tensor:
    """(K,h,w) -> (K,H,W). The one tensor of that size; only OUTPUT "logits" makes it."""
    if how == "bilinear":
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    return repeat_nearest(logits, size)


def enlarge_labels(logits: torch.Tensor, size: tuple[int, int], how: str) -> torch.Tensor:
    """(K,h,w) -> label map (H,W) of `enlarge`, see `argmax_labels`. K x H x W never exists."""
    height = logits.shape[-2]
    if how == "nearest":
        return repeat_nearest(argmax_labels(logits), size)
    # F.interpolate in strips: along the rows inside it, between the rows by hand
    y = ((torch.arange(size[0]) + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
    above = y.long()
    below = (above + 1).clamp(max=height - 1)
    share = (y - above).to(logits)[:, None]
    strips = []
    # found on the CPU, brought over at once: no strip waits for a GPU
    places = [line.to(logits.device) for line in (above, below)]
    for start in range(0, size[0], _STRIP):
        strip = slice(start, start + _STRIP)
        first, last = int(above[start]), int(below[strip][-1])
        rows = F.interpolate(
            logits[None, :, first : last + 1],
            size=(last + 1 - first, size[1]),
            mode="bilinear",
            align_corners=False,
        )[0]
        upper, lower = (rows[:, line[strip] - first] for line in places)
        strips.append(argmax_labels(torch.lerp(upper, lower, share[strip])))
    return torch.cat(strips)


def argmax_labels(scores: torch.Tensor) -> torch.Tensor:
    """Scores (K,...) -> the class of the highest, the first of equals, and 0 where all are NaN.

    uint8 where K <= 256, else int16. On a CPU a running maximum over the classes: no int64 map is
    made, and on one core it took 0.12 s where `argmax(0)` took 1.03 s (3 classes, 8 megapixels). A
    GPU would wait for the launches, two a class.
    """
    scores = scores.detach()
    dtype = torch.uint8 if len(scores) <= 256 else torch.int16
    if scores.is_cuda:
        return scores.argmax(0).to(dtype)
    labels = torch.zeros(scores.shape[1:], dtype=dtype, device=scores.device)
    best = scores[0].clone()
    for index, score in enumerate(scores[1:], start=1):
        labels.masked_fill_(score > best, index)
        torch.maximum(best, score, out=best)
    return labels
