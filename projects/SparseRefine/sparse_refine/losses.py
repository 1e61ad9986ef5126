# SPDX-License-Identifier: Apache-2.0
"""Losses of the refiner, on selected pixels with a valid label (paper, section 3.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.utils import comm


def global_mean(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over their mean number in a process; 0 where there are none.

    Averaged over processes, as DistributedDataParallel does with gradients, this is the mean over
    all pixels of all processes, however they are spread.
    """
    count = torch.tensor(float(values.numel()), device=values.device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(count)
        count /= comm.get_world_size()
    return values.sum() / count.clamp(min=1e-6)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of logits (P,K) against labels (P,) in 0..K-1; 0 where P is 0."""
    # as an image of one row (1,K,P): over short rows (P,K) a softmax takes three times as long
    rows = logits.float().t().contiguous()[None]
    return global_mean(F.cross_entropy(rows, labels[None], reduction="none"))


def soft_dice(logits: torch.Tensor, labels: torch.Tensor, epsilon: float = 1.0) -> torch.Tensor:
    """1 - mean over the classes in `labels` of (2 sum p t + e) / (sum p + sum t + e), 0..1.

    Logits (P,K), labels (P,) in 0..K-1; 0 where P is 0 (Milletari et al., 3DV 2016).
    """
    if labels.numel() == 0:
        return logits.sum() * 0.0
    probabilities = logits.float().softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).to(probabilities.dtype)
    overlap = (probabilities * truth).sum(0)
    size = probabilities.sum(0) + truth.sum(0)
    dice = (2 * overlap + epsilon) / (size + epsilon)
    return 1 - dice[truth.sum(0) > 0].mean()
