# SPDX-License-Identifier: Apache-2.0
"""The selectors that can be calibrated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..selector import (
    BudgetSelector,
    EntropySelector,
    MarginBudgetSelector,
    MarginSelector,
    Selector,
    entropy,
    margin,
)
from .histogram import UncertaintyHistogram


@dataclass(frozen=True)
class Kind:
    """`selector`: the class. `key`: of MODEL.SPARSE_REFINE.SELECTOR, what is calibrated. `score`:
    coarse logits (K,...) -> (...), higher is refined first, at most `highest(K)`. `to_setting`: the
    key's value that selects a share 0..1 of the pixels of a histogram of scores. `budget`: the
    class that selects a share of each image by the same score."""

    selector: type[Selector]
    key: str
    score: Callable[[torch.Tensor], torch.Tensor]
    highest: Callable[[int], float]
    to_setting: Callable[[UncertaintyHistogram, float], float]
    budget: type[Selector]

    def build(self, setting: float) -> Selector:
        return self.selector(**{self.key.lower(): setting})


def rounded(value: float) -> float:
    """Four digits: what a yaml needs."""
    return float(f"{value:.4g}")


# by the name in MODEL.SPARSE_REFINE.SELECTOR.NAME
KINDS = {
    "EntropySelector": Kind(
        EntropySelector,
        "THRESHOLD",
        entropy,
        math.log,
        lambda histogram, fraction: rounded(histogram.threshold(fraction)),
        BudgetSelector,
    ),
    "MarginSelector": Kind(
        MarginSelector,
        "THRESHOLD",
        lambda logits: 1 - margin(logits),
        lambda classes: 1.0,
        lambda histogram, fraction: rounded(1 - histogram.threshold(fraction)),
        MarginBudgetSelector,
    ),
    "BudgetSelector": Kind(
        BudgetSelector,
        "FRACTION",
        entropy,
        math.log,
        lambda histogram, fraction: rounded(fraction),
        BudgetSelector,
    ),
}


def kind_of(name: str) -> Kind:
    """
    Raises:
        ValueError: no selector of that name can be calibrated; lists those that can.
    """
    if name not in KINDS:
        raise ValueError(
            f"MODEL.SPARSE_REFINE.SELECTOR.NAME is {name!r}: one of {', '.join(KINDS)} can be "
            "calibrated; name one in its place"
        )
    return KINDS[name]
