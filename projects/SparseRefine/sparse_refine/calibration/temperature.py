# SPDX-License-Identifier: Apache-2.0
"""Temperature scaling of the coarse logits (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..resampling import nearest_index

LIMITS = (0.05, 20.0)  # beyond them the data say nothing: all right, or no better than chance


@dataclass(frozen=True)
class Fit:
    """`temperature`, and the negative log-likelihood of a label, mean nats, `before` (at 1) and
    `after`."""

    temperature: float
    before: float
    after: float


class PixelSample:
    """Raw coarse logits of a bounded number of pixels with their true labels.

    Args:
        images: how many will be added.
        pixels: most that are kept, of all images together.
        ignore: label of pixels that are left out.
    """

    def __init__(self, images: int, ignore: int, pixels: int = 50_000, seed: int = 0):
        self._each = max(1, pixels // max(images, 1))
        self._ignore = ignore
        self._random = torch.Generator().manual_seed(seed)
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, truth: torch.Tensor) -> None:
        """One image: logits (K,h,w), truth (H,W) integer. A low-resolution pixel has the label that
        the truth has at its centre."""
        rows, columns = map(nearest_index, logits.shape[-2:], truth.shape)
        labels = truth[rows][:, columns].flatten().long()  # (h*w,)
        known = (labels != self._ignore).nonzero()[:, 0]
        # as many of each image: one of many unsure pixels would count for more than its share
        chosen = known[torch.randperm(len(known), generator=self._random)[: self._each]]
        self._logits.append(logits.flatten(1)[:, chosen.to(logits.device)].t().cpu())
        self._labels.append(labels[chosen])

    def fit(self) -> Fit:
        """The temperature of least negative log-likelihood.

        Raises:
            ValueError: no pixel has a label, or none of LIMITS is better than all beyond it.
        """
        return fit_temperature(torch.cat(self._logits), torch.cat(self._labels))


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> Fit:
    """`PixelSample.fit` for logits (P,K) and labels (P,).

    The likelihood is concave in 1/T, so its slope has one zero: bisection finds it.
    """
    if not len(labels):
        raise ValueError("no pixel has a label: there is nothing to fit a temperature to")
    logits = logits.double()
    of_truth = logits.gather(1, labels[:, None])[:, 0].mean()  # mean logit of the true class

    def slope(log_temperature: float) -> float:
        """Of the negative log-likelihood by 1/T: expected logit less the true class's."""
        probabilities = (logits / math.exp(log_temperature)).softmax(1)
        return float((probabilities * logits).sum(1).mean() - of_truth)

    # on a logarithmic scale, where a factor of two is a step of one size
    low, high = map(math.log, LIMITS)
    always_right = slope(low) <= 0
    if always_right or slope(high) > 0:
        at = LIMITS[0] if always_right else LIMITS[1]
        why = "the base is always right here" if always_right else "the base is no help here"
        raise ValueError(
            f"the best temperature lies beyond {at:g}: {why}. Use images that it was not trained "
            "on, and check that labels and classes belong together"
        )
    for _ in range(40):
        middle = (low + high) / 2
        if slope(middle) > 0:  # too sure: hotter
            low = middle
        else:
            high = middle
    temperature = math.exp((low + high) / 2)
    before, after = (float(F.cross_entropy(logits / t, labels)) for t in (1.0, temperature))
    return Fit(temperature, before, after)
