# SPDX-License-Identifier: Apache-2.0
"""How well the coarse prediction's entropy says where it is wrong, and what a selection by it could
reach.

Shapes: (H,W) full size, (h,w) low size, K classes. Counts are summed over images first and divided
once, as in metrics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..resampling import pixels_under, repeat_nearest


def expand(low: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h,w) -> (H,W): a pixel gets the low-resolution one that it lies in, as selectors do it."""
    return repeat_nearest(torch.from_numpy(low), size).numpy()


def selection_levels(
    entropy: np.ndarray, size: tuple[int, int], fractions: Sequence[float]
) -> np.ndarray:
    """Which of the budgets `fractions` (ascending, shares of the pixels) selects a pixel, (h,w).

    Level i: `fractions[i]` is the smallest that does, `len(fractions)`: none. Low-resolution pixels
    are taken whole, where `BudgetSelector` takes the last one in part.
    """
    order = np.argsort(-entropy, axis=None, kind="stable")  # (h*w,), most uncertain first
    # full-size pixels that are taken with each low-resolution one and all before it
    total = pixels_under(entropy.shape, size).numpy().ravel()[order].cumsum()
    budgets = [round(fraction * size[0] * size[1]) for fraction in fractions]
    levels = np.empty(entropy.size, dtype=np.uint8)
    levels[order] = np.searchsorted(budgets, total)
    return levels.reshape(entropy.shape)


class EntropyErrors:
    """Errors before and after refinement by entropy of the coarse prediction.

    Attributes:
        edges: (bins + 1,) nats, 0..ln K, equal widths.
        pixels, selected, coarse_errors, fused_errors: (bins,) int64, pixels with a label.
    """

    def __init__(self, num_classes: int, bins: int = 24):
        self.edges = np.linspace(0, max(math.log(num_classes), 1e-6), bins + 1)
        # by bin, selected, coarse wrong, fused wrong; the last bin holds pixels without a label
        self._counts = np.zeros((bins + 1, 2, 2, 2), dtype=np.int64)

    def add(self, entropy, selected, coarse_wrong, fused_wrong, valid) -> None:
        """One image: entropy (h,w) in nats; the others (H,W) bool."""
        bins = len(self._counts) - 1
        index = (entropy * (bins / self.edges[-1])).astype(np.int64).clip(0, bins - 1)  # (h,w)
        # (H,W): bin and the three masks as one number, so that one pass counts all combinations
        joint = np.where(valid, expand(index.astype(np.int16), valid.shape), np.int16(bins))
        for mask in (selected, coarse_wrong, fused_wrong):
            joint = 2 * joint + mask
        counts = np.bincount(joint.ravel(), minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    @property
    def pixels(self) -> np.ndarray:
        return self._counts[:-1].sum((1, 2, 3))

    @property
    def selected(self) -> np.ndarray:
        return self._counts[:-1, 1].sum((1, 2))

    @property
    def coarse_errors(self) -> np.ndarray:
        return self._counts[:-1, :, 1].sum((1, 2))

    @property
    def fused_errors(self) -> np.ndarray:
        return self._counts[:-1, :, :, 1].sum((1, 2))


class SelectionLimits:
    """What budgets of highest entropy could reach at best: which share of the coarse prediction's
    errors they contain, and its accuracy with the truth put in at the selected pixels.

    Args:
        fractions: of the pixels, 0..1, ascending; at most 254.
    """

    def __init__(self, num_classes: int, fractions: Sequence[float]):
        self.fractions = list(fractions)
        self._classes = num_classes
        # coarse confusions by level, see `selection_levels`
        self._counts = np.zeros((len(self.fractions) + 1, num_classes, num_classes), np.int64)

    def add(self, entropy: np.ndarray, coarse: np.ndarray, truth: np.ndarray) -> None:
        """One image: entropy (h,w); labels (H,W), the truth as `metrics.remap_ignored` gives it."""
        levels = expand(selection_levels(entropy, truth.shape, self.fractions), truth.shape)
        valid = truth < self._classes
        joint = levels[valid].astype(np.uint32)  # level, truth and coarse label as one number
        for labels in (truth, coarse):
            joint = joint * np.uint32(self._classes) + labels[valid]
        counts = np.bincount(joint, minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)

    @property
    def selected(self) -> np.ndarray:
        """Coarse confusions at the selected pixels, (len(fractions), K, K) int64."""
        return self._counts.cumsum(0)[:-1]  # a larger budget contains the smaller ones

    def errors_found(self) -> np.ndarray:
        """Share 0..1 of all coarse errors that a budget contains; NaN where there are none."""
        return np.array([errors_found(part, self._counts.sum(0)) for part in self.selected])

    def oracle(self) -> np.ndarray:
        """Confusions with the truth at the selected pixels, (len(fractions), K, K) int64."""
        return np.stack([oracle(part, self._counts.sum(0)) for part in self.selected])


def errors_found(selected: np.ndarray, everywhere: np.ndarray) -> float:
    """Share of the errors of a confusion that lie in the part `selected` of it."""
    errors = everywhere.sum() - everywhere.trace()
    return float((selected.sum() - selected.trace()) / errors) if errors else float("nan")


def oracle(selected: np.ndarray, everywhere: np.ndarray) -> np.ndarray:
    """The confusion `everywhere` (K,K) with the truth at the pixels of the part `selected`."""
    return everywhere - selected + np.diag(selected.sum(1))
