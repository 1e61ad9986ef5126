# SPDX-License-Identifier: Apache-2.0
"""Which pixels are refined (paper, section 3.2).

A selector scores the coarse logits (K,h,w) of one image at low resolution, where a score is a
quarter of the work or less, and turns the scores into full-resolution sites.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod

import torch
from detectron2.config import configurable
from fvcore.common.registry import Registry
from torch import nn

from .coarse import View, nearest_index, pixels_under

logger = logging.getLogger(__name__)

SELECTOR_REGISTRY = Registry("SPARSE_REFINE_SELECTOR")
SELECTOR_REGISTRY.__doc__ = """
Selectors, by the name in MODEL.SPARSE_REFINE.SELECTOR.NAME. A class is built with (cfg) and called
as `selector(logits, view)`, see `Selector`.
"""


def entropy(logits: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """-sum p ln(clamp(p, 1e-5)) over `dim`, p = softmax(logits): nats, 0..ln K (section 3.2)."""
    return distribution_entropy(logits.softmax(dim), dim)


def distribution_entropy(probabilities: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The same of probabilities."""
    return -(probabilities * probabilities.clamp(min=1e-5).log()).sum(dim)


def margin(logits: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Difference of the two largest probabilities over `dim`, 0..1; 1 where K is 1."""
    if logits.shape[dim] < 2:
        return torch.ones_like(logits.select(dim, 0))
    top = logits.softmax(dim).topk(2, dim=dim).values
    return top.select(dim, 0) - top.select(dim, 1)


def expand_mask(mask: torch.Tensor, view: View) -> torch.Tensor:
    """A low-resolution mask (h,w), repeated to full resolution by nearest neighbour -> sites (P,2).

    Sites are (y, x) in the view's pixels, int64, in raster order.
    """
    rows = nearest_index(view.full[0], mask.shape[0], mask.device)
    columns = nearest_index(view.full[1], mask.shape[1], mask.device)
    rows = rows[view.top : view.top + view.height]
    columns = columns[view.left : view.left + view.width]
    return mask[:, columns][rows].nonzero()


class Selector(nn.Module, ABC):
    """Base class: `forward(logits (K,h,w), view) -> sites (P,2)` int64, (y, x), raster order."""

    @abstractmethod
    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        """The sites of `view` to refine, in the view's pixels. Selection looks at the whole image,
        so that a training crop holds what inference would select there."""


@SELECTOR_REGISTRY.register()
class EntropySelector(Selector):
    """Pixels whose entropy is above a threshold, in nats (the paper's; its values: HRNet-W48 0.3,
    SegFormer-B5 0.1, SegNeXt-L 0.1, Mask2Former-T 0.05, Mask2Former-L 0.005)."""

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
                "will be refined. tools/calibrate.py finds a threshold"
            )
        return {"threshold": threshold}

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        return expand_mask(entropy(logits) > self.threshold, view)


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
        return expand_mask(margin(logits) < self.threshold, view)


@SELECTOR_REGISTRY.register()
class BudgetSelector(Selector):
    """The pixels of highest entropy, exactly as many as asked for: cost does not hang on the image.

    Equal entropies are taken in raster order, of low-resolution pixels and, inside the last of
    them, of full-resolution ones.

    Args:
        fraction: share of the image's full-resolution pixels, 0..1, rounded.
        count: their number instead, where not None; an image that has fewer gives all.
    """

    @configurable
    def __init__(self, *, fraction: float = 0.1, count: int | None = None):
        super().__init__()
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
        return {"fraction": node.FRACTION, "count": None if node.COUNT == -1 else node.COUNT}

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        low = logits.shape[-2:]
        device = logits.device
        pixels = view.full[0] * view.full[1]
        budget = round(self.fraction * pixels) if self.count is None else min(self.count, pixels)
        rows = nearest_index(view.full[0], low[0], device)
        columns = nearest_index(view.full[1], low[1], device)
        order = entropy(logits).flatten().sort(descending=True, stable=True).indices
        total = pixels_under(low, view.full, device).flatten()[order].cumsum(0)
        whole = int((total <= budget).sum())
        mask = torch.zeros(low[0] * low[1], dtype=torch.bool, device=device)
        mask[order[:whole]] = True
        rest = budget - (int(total[whole - 1]) if whole else 0)
        if rest == 0:
            return expand_mask(mask.view(low), view)
        last = int(order[whole])  # taken in part: its first `rest` pixels
        mask[last] = True
        sites = expand_mask(mask.view(low), view)
        block_rows = (rows == last // low[1]).nonzero()[:, 0]
        block_columns = (columns == last % low[1]).nonzero()[:, 0]
        y, x = sites[:, 0] + view.top - block_rows[0], sites[:, 1] + view.left - block_columns[0]
        inside = (y >= 0) & (y < len(block_rows)) & (x >= 0) & (x < len(block_columns))
        return sites[~(inside & (y * len(block_columns) + x >= rest))]
