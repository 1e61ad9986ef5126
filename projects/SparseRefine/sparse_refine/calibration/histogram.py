# SPDX-License-Identifier: Apache-2.0
"""How uncertain the coarse prediction is over all images, and what a threshold would select.

No logits are kept: pixels are counted in bins, narrow ones where thresholds are small, so that
0.005 nats come out as exactly as 0.5. Shapes: (H,W) full size, (h,w) low size.
"""

from __future__ import annotations

import numpy as np

from ..evaluation.uncertainty import expand
from ..resampling import pixels_under

SMALLEST = 1e-6  # uncertainty below this, in nats or as a share, is none


class UncertaintyHistogram:
    """Pixels and coarse errors by an uncertainty score, 0..`highest`, of which selectors take the
    highest first: entropy in nats, or 1 - margin.

    `edges`, ascending: the thresholds that are distinguished.
    """

    def __init__(self, highest: float):
        highest = max(highest, 2 * SMALLEST)  # of one class it is 0
        ratios, steps = np.geomspace(SMALLEST, highest, 4096), np.linspace(0, highest, 8193)
        self.edges = np.union1d(ratios, steps[steps > SMALLEST])
        self._pixels = np.zeros(len(self.edges) + 1, dtype=np.int64)  # [0]: at most SMALLEST
        self._errors = np.zeros_like(self._pixels)

    def add(self, score: np.ndarray, size: tuple[int, int], wrong: np.ndarray | None) -> None:
        """One image: score (h,w); `size` (H,W); `wrong` (H,W) bool, where the coarse label is not
        the true one, False where there is no truth; None for images without labels."""
        # place i + 1 holds edges[i] < score <= edges[i + 1]: thresholds are strict
        places = np.searchsorted(self.edges, score, side="left").astype(np.int16)
        sizes = pixels_under(score.shape, size).numpy()  # (h,w) full-size pixels under each
        counts = np.bincount(places.ravel(), sizes.ravel(), minlength=len(self._pixels))
        self._pixels += counts.astype(np.int64)
        if wrong is not None:
            found = expand(places, size)[wrong]
            self._errors += np.bincount(found, minlength=len(self._errors))

    def threshold(self, fraction: float) -> float:
        """The lowest threshold that selects at most this share 0..1 of all pixels."""
        above = _from_each(self._pixels)[1:] / self._pixels.sum()
        return float(self.edges[min(int((above > fraction).sum()), len(self.edges) - 1)])

    def shares(self) -> np.ndarray:
        """(edges + 1,) ascending: the share of all pixels, 0..1, that a threshold at each edge
        selects, the highest edge first; and last, 1, what no threshold at all does."""
        return _from_each(self._pixels)[::-1] / self._pixels.sum()

    def errors_found(self) -> np.ndarray | None:
        """The shares of all coarse errors, 0..1, among them; None where there are no errors."""
        errors = self._errors.sum()
        return _from_each(self._errors)[::-1] / errors if errors else None


def _from_each(counts: np.ndarray) -> np.ndarray:
    """Sum of each count and those after it."""
    return counts[::-1].cumsum()[::-1]
