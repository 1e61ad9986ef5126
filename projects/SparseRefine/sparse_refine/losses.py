# SPDX-License-Identifier: Apache-2.0
"""Losses of the refiner, on selected pixels with a valid label (paper, section 3.5).

Shapes: K classes, P selected pixels of the batch that have a label.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils import comm


def global_mean(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over their mean number in a process -> (); 0 where there are none.

    Averaged over processes, as DistributedDataParallel does with gradients, this is the mean over
    all pixels of all processes, however many each has.
    """
    count = torch.tensor(float(values.numel()), device=values.device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(count)
        count /= comm.get_world_size()
    return values.sum() / count.clamp(min=1e-6)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of logits (P,K) against labels (P,) in 0..K-1; 0 where P is 0."""
    # (1,K,P), an image of one row: a softmax over short rows (P,K) takes three times as long
    rows = logits.float().t().contiguous()[None]
    return global_mean(F.cross_entropy(rows, labels[None], reduction="none"))


def soft_dice(logits: torch.Tensor, labels: torch.Tensor, epsilon: float = 1.0) -> torch.Tensor:
    """1 - mean over the classes in `labels` of (2 sum p t + e) / (sum p + sum t + e), 0..1: p the
    probabilities, t one-hot labels (Milletari et al., 3DV 2016, arXiv 1606.04797).

    Logits (P,K), labels (P,) in 0..K-1; 0 where P is 0.
    """
    if labels.numel() == 0:
        return logits.sum() * 0.0
    probabilities = logits.float().softmax(1)
    truth = F.one_hot(labels, logits.shape[1]).to(probabilities.dtype)  # (P,K)
    overlap = (probabilities * truth).sum(0)
    size = probabilities.sum(0) + truth.sum(0)
    dice = (2 * overlap + epsilon) / (size + epsilon)
    return 1 - dice[truth.sum(0) > 0].mean()


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean Kullback-Leibler divergence in nats of the distributions of logits (P,K) from those of a
    teacher's (Hinton et al. 2015, arXiv 1503.02531, at temperature 1); 0 where P is 0."""
    expected = teacher.float().log_softmax(1)
    found = logits.float().log_softmax(1)
    return global_mean((expected.exp() * (expected - found)).sum(1))


@dataclass(frozen=True)
class LossWeights:
    """Factors, each at least 0; a term with 0 is left out.

    Raises:
        ValueError: a factor below 0, or all 0.
    """

    refined: float = 1.0  # cross-entropy of the refined logits
    fused: float = 1.0  # cross-entropy of the fused logits
    dice: float = 0.0  # soft Dice of the fused probabilities
    distillation: float = 0.0  # divergence of the refined distribution from the teacher's

    def __post_init__(self):
        for name, weight in vars(self).items():
            if not weight >= 0:
                raise ValueError(
                    f"MODEL.SPARSE_REFINE.LOSS.{name.upper()}_WEIGHT is {weight}: it must be at "
                    "least 0"
                )
        if not any(vars(self).values()):
            names = ", ".join(f"{name.upper()}_WEIGHT" for name in vars(self))
            raise ValueError(
                f"MODEL.SPARSE_REFINE.LOSS: {names} are all 0, there is nothing to learn"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LossWeights:
        node = cfg.MODEL.SPARSE_REFINE.LOSS
        return cls(**{field.name: node[f"{field.name.upper()}_WEIGHT"] for field in fields(cls)})


def refinement_losses(
    refined: torch.Tensor, fused: torch.Tensor, labels: torch.Tensor, weights: LossWeights
) -> dict[str, torch.Tensor]:
    """{"loss_refined", "loss_fused", "loss_dice"}: those whose weight is above 0, and always the
    first (0 where its weight is 0).

    Args:
        refined, fused: (P,K) logits.
        labels: (P,) int64 in 0..K-1.
    """
    terms = {
        "loss_refined": (weights.refined, cross_entropy, refined),
        "loss_fused": (weights.fused, cross_entropy, fused),
        "loss_dice": (weights.dice, soft_dice, fused),
    }
    losses = {key: w * loss(x, labels) for key, (w, loss, x) in terms.items() if w > 0}
    # also an empty selection, or a weight of 0, touches every parameter: DDP waits for all
    every = 0.0 * (refined.sum() + fused.sum())
    losses["loss_refined"] = losses.get("loss_refined", 0.0) + every
    return losses
