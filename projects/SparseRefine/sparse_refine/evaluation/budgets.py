# SPDX-License-Identifier: Apache-2.0
"""A SparseRefine on several budgets, image by image, with a single coarse pass for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from torch import nn

from ..coarse import CoarseOutput
from ..selector import BudgetSelector, Selector
from .metrics import boundary_band, boundary_counts, confusion_matrix, summarize
from .predictions import label_map_of


@contextlib.contextmanager
def one_coarse_pass(model: nn.Module):
    """Inside, the base of a SparseRefine runs at the first call alone: for calls on ONE image."""
    forward, kept = model.coarse.forward, []

    def once(inputs: Sequence[dict]) -> list[CoarseOutput]:
        if not kept:
            kept.extend(forward(inputs))
        return list(kept)

    model.coarse.forward = once  # the instance's attribute goes before the method of its class
    try:
        yield
    finally:
        del model.coarse.forward


@contextlib.contextmanager
def selecting(model: nn.Module, selector: Selector):
    """Inside, a SparseRefine refines what `selector` selects; its own is put back at the end."""
    own, model.selector = model.selector, selector
    try:
        yield
    finally:
        model.selector = own


class BudgetSweep:
    """Accuracies of a SparseRefine on several budgets.

    Args:
        fractions: of the pixels, 0..1.
        boundary_distance: pixels, as for `SparseRefineEvaluator`.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, fractions: Sequence[float], boundary_distance: int
    ):
        self.model = model
        self.fractions = list(fractions)
        self._classes = num_classes
        self._distance = boundary_distance
        size = len(self.fractions), num_classes
        self._confusions = np.zeros((*size, num_classes), dtype=np.int64)
        self._boundaries = np.zeros((size[0], 2, num_classes), dtype=np.int64)

    def add(
        self, inputs: list[dict], truth: np.ndarray, known: dict[float, np.ndarray] | None = None
    ) -> None:
        """Predict one image with every budget and count; best inside `one_coarse_pass`.

        Args:
            inputs: the image's dict, in a list. truth: (H,W), see `metrics.remap_ignored`.
            known: labels (H,W) by fraction, of budgets that were predicted already.
        """
        known = known or {}
        classes = self._classes
        # the truth's band, (H,W) bool, is the same for all budgets
        band = boundary_band(truth, self._distance) if self.fractions else None
        for index, fraction in enumerate(self.fractions):
            labels = known.get(fraction)
            if labels is None:
                with selecting(self.model, BudgetSelector(fraction=fraction)):
                    labels = label_map_of(self.model(inputs)[0])
            self._confusions[index] += confusion_matrix(labels, truth, classes, classes)
            edges = boundary_counts(labels, truth, classes, classes, self._distance, band)
            self._boundaries[index] += np.stack(edges)

    def results(self) -> list[dict[str, float]]:
        """{"fraction", "mIoU", "pACC", "BoundaryIoU"} a budget, percent but for the fraction."""
        return [
            {"fraction": fraction, **summarize(confusion, tuple(boundary))}
            for fraction, confusion, boundary in zip(
                self.fractions, self._confusions, self._boundaries
            )
        ]
