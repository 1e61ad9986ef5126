# SPDX-License-Identifier: Apache-2.0
"""Which pixels are refined (paper, section 3.2).

A selector scores the coarse logits of one image at low resolution, where a score is a quarter of
the work or less, and repeats the result at full resolution by nearest neighbour. The paper's
release repeats the logits and scores them: the same sites.

Shapes: K classes, (H, W) full size, (h, w) low size, P selected pixels of the image.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod

import torch
from detectron2.config import configurable
from fvcore.common.registry import Registry
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from .resampling import first_under, nearest_index, pixels_under
from .sites import View, highest

logger = logging.getLogger(__name__)

_MAPS = WeakTensorKeyDictionary()  # logits of a forward pass -> their entropy, None before it

SELECTOR_REGISTRY = Registry("SPARSE_REFINE_SELECTOR")
SELECTOR_REGISTRY.__doc__ = """
Selectors, by the name in MODEL.SPARSE_REFINE.SELECTOR.NAME. A class is built with (cfg) and called
as `selector(logits, view)`, see `Selector`.
"""


def entropy(logits: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """-sum p ln(clamp(p, 1e-5)) over `dim`, p = softmax(logits): nats, 0..ln K (section 3.2)."""
    return distribution_entropy(logits.softmax(dim), dim)


def keep_entropy(logits: torch.Tensor) -> None:
    """Let `entropy_map` of these logits (K,h,w), which nobody changes any more, be computed once:
    a selector asks for it, and the record of the refinement."""
    _MAPS[logits] = None


def entropy_map(logits: torch.Tensor) -> torch.Tensor:
    """`entropy` of logits (K,h,w) -> (h,w); the one that is kept, see `keep_entropy`."""
    kept = _MAPS.get(logits)
    if kept is None:
        kept = entropy(logits)
        if logits in _MAPS:
            _MAPS[logits] = kept
    return kept


def distribution_entropy(probabilities: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """`entropy` of probabilities (sum 1 over `dim`): nats, 0..ln K."""
    return -(probabilities * probabilities.clamp(min=1e-5).log()).sum(dim)


def margin(logits: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Difference of the two largest probabilities over `dim`, 0..1; 1 where K is 1."""
    if logits.shape[dim] < 2:
        return torch.ones_like(logits.select(dim, 0))
    top = logits.softmax(dim).topk(2, dim=dim).values
    return top.select(dim, 0) - top.select(dim, 1)


def expand_mask(mask: torch.Tensor, view: View) -> torch.Tensor:
    """A mask (h,w) bool of the whole image, repeated at full resolution by nearest neighbour -> its
    sites (P,2) int64 in the view: (y, x) in the view's pixels, raster order."""
    rows = nearest_index(view.full[0], mask.shape[0], mask.device)  # (H,)
    columns = nearest_index(view.full[1], mask.shape[1], mask.device)  # (W,)
    rows = rows[view.top : view.top + view.height]
    columns = columns[view.left : view.left + view.width]
    return mask[:, columns][rows].nonzero()


class Selector(nn.Module, ABC):
    """Base class: `forward(logits (K,h,w), view) -> sites (P,2)` int64, (y, x), raster order."""

    @abstractmethod
    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        """The sites to refine in `view`, in its pixels. `logits` are of the whole image, so that a
        training crop holds what inference would select there."""


@SELECTOR_REGISTRY.register()
class EntropySelector(Selector):
    """Pixels whose entropy is above a threshold, in nats: the paper's.

    Thresholds of its release: HRNet-W48 0.3, SegFormer-B5 0.1, SegNeXt-L 0.1, Mask2Former-T 0.05,
    Mask2Former-L 0.005.

    Raises:
        ValueError: a threshold below 0.
    """

    @configurable
    def __init__(self, *, threshold: float):
        super().__init__()
        if not threshold >= 0:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD is {threshold}: entropy is never below 0"
            )
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg) -> dict:
        threshold = cfg.MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if classes > 0 and threshold >= math.log(classes):
            logger.warning(
                f"MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD is {threshold:g} nats, but the entropy of "
                f"{classes} classes is at most ln {classes} = {math.log(classes):.3f}: no pixel "
                "will be refined. `python -m sparse_refine calibrate` finds a threshold"
            )
        return {"threshold": threshold}

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        return expand_mask(~(entropy_map(logits) <= self.threshold), view)


@SELECTOR_REGISTRY.register()
class MarginSelector(Selector):
    """Pixels whose two largest probabilities differ by less than a threshold, 0..1."""

    @configurable
    def __init__(self, *, threshold: float):
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD is {threshold}: a margin is in [0, 1]"
            )
        self.threshold = threshold

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {"threshold": cfg.MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD}

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        return expand_mask(~(margin(logits) >= self.threshold), view)


class _Budget(Selector):
    """The pixels of highest score, exactly as many as asked for: the cost of an image is fixed.

    Equal scores are taken in raster order, of low-resolution pixels and, inside the last of them,
    of full-resolution ones.

    Args:
        fraction: share of the image's full-resolution pixels, 0..1; their number is rounded.
        train_fractions: in training the share is drawn from [low, high] for each image, so that one
            refiner serves them all; () takes `fraction`.
        count: their number instead, where not None; an image that has fewer gives all.

    Raises:
        ValueError: an impossible share or number.
    """

    @configurable
    def __init__(
        self,
        *,
        fraction: float = 0.1,
        count: int | None = None,
        train_fractions: tuple[float, float] | tuple[()] = (),
    ):
        super().__init__()
        limits = tuple(train_fractions)
        if limits and not (len(limits) == 2 and 0 <= limits[0] <= limits[1] <= 1):
            raise ValueError(
                f"MODEL.SPARSE_REFINE.SELECTOR.TRAIN_FRACTIONS is {list(limits)}: [low, high], "
                "0 <= low <= high <= 1, or []"
            )
        self.train_fractions = limits
        if count is None and not 0 <= fraction <= 1:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.SELECTOR.FRACTION is {fraction}: a share in [0, 1]"
            )
        if count is not None and count < 0:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.SELECTOR.COUNT is {count}: a number of pixels, or -1"
            )
        self.fraction = fraction
        self.count = count

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.SPARSE_REFINE.SELECTOR
        return {
            "fraction": node.FRACTION,
            "count": None if node.COUNT == -1 else node.COUNT,
            "train_fractions": tuple(node.TRAIN_FRACTIONS),
        }

    @abstractmethod
    def score(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (K,h,w) -> (h,w), at least 0: the highest are refined."""

    def _budget(self, pixels: int) -> int:
        if self.training and self.train_fractions:
            low, high = self.train_fractions
            return round((low + (high - low) * torch.rand(()).item()) * pixels)
        return round(self.fraction * pixels) if self.count is None else min(self.count, pixels)

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        (height, width), low = view.full, logits.shape[-2:]
        budget = self._budget(height * width)
        weights = pixels_under(low, view.full, logits.device)
        mask, last, rest = highest(self.score(logits), weights, budget)
        if rest == 0:
            return expand_mask(mask, view)
        # the next low-resolution pixel is taken in part: the first `rest` of the pixels in it
        row, column = last // low[1], last % low[1]
        mask[row, column] = True
        sites = expand_mask(mask, view)
        top, bottom = (first_under(at, height, low[0]) for at in (row, row + 1))
        left, right = (first_under(at, width, low[1]) for at in (column, column + 1))
        y, x = sites[:, 0] + view.top, sites[:, 1] + view.left
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        return sites[~(inside & ((y - top) * (right - left) + x - left >= rest))]


@SELECTOR_REGISTRY.register()
class BudgetSelector(_Budget):
    """A budget of the pixels of highest entropy."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        return entropy_map(logits)


@SELECTOR_REGISTRY.register()
class MarginBudgetSelector(_Budget):
    """A budget of the pixels whose two largest probabilities differ least."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        return 1 - margin(logits)


@SELECTOR_REGISTRY.register()
class RandomBudgetSelector(_Budget):
    """A budget of random low-resolution pixels, the same at every call: a baseline. Pixels whose
    logits are no numbers come first, as in every selector."""

    def score(self, logits: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        scores = torch.rand(logits.shape[-2:], generator=generator).to(logits.device)
        return scores.masked_fill(entropy(logits).isnan(), math.inf)  # as the others have it
