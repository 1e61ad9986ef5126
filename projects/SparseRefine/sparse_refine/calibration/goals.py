# SPDX-License-Identifier: Apache-2.0
"""From a goal and a measured curve to the share of the pixels to refine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .curve import Point


def fraction_for_seconds(points: Sequence[Point], seconds: float) -> float:
    """The largest share 0..1 at which an image takes at most `seconds`, on straight lines between
    the points (ascending by fraction, the first at 0); at most the last point's.

    Raises:
        ValueError: even with nothing refined an image takes longer; says both numbers.
    """
    fractions = np.array([point.fraction for point in points])
    # more pixels never take less time: what is measured otherwise is noise
    costs = np.maximum.accumulate([point.seconds for point in points])
    if costs[0] > seconds:
        raise ValueError(
            f"with nothing refined an image takes {costs[0]:.3g} seconds, the goal is {seconds:g}: "
            "choose a smaller MODEL.SPARSE_REFINE.BASE.SCALE or a cheaper base"
        )
    if costs[-1] <= seconds:
        return float(fractions[-1])
    index = int(np.searchsorted(costs, seconds, side="right"))  # the first that takes longer
    return _between(costs, fractions, index, seconds)


def fraction_for_accuracy(points: Sequence[Point], keep: float) -> float:
    """The smallest share 0..1 that brings `keep` (0..1) of the largest gain in mIoU over the coarse
    prediction, the first point, on straight lines between the points.

    Raises:
        ValueError: there are no labels, or refinement gains nothing at any point.
    """
    if points[0].miou is None:
        raise ValueError("keeping accuracy needs labels: there are none for these images")
    gains = np.array([point.miou - points[0].miou for point in points])  # points of mIoU
    if not gains.max() > 0:
        raise ValueError(
            f"refinement gains nothing here: mIoU {points[0].miou:.2f} without it, at most "
            f"{max(point.miou for point in points[1:]):.2f} with it"
        )
    fractions = np.array([point.fraction for point in points])
    wanted = keep * gains.max()
    index = int((gains >= wanted).argmax())
    return _between(gains, fractions, index, wanted) if index else float(fractions[0])


def _between(values: np.ndarray, fractions: np.ndarray, index: int, value: float) -> float:
    """Where the line from point index - 1 to point index reaches `value`."""
    low, high = values[index - 1], values[index]
    share = (value - low) / (high - low)
    return float(fractions[index - 1] + share * (fractions[index] - fractions[index - 1]))
