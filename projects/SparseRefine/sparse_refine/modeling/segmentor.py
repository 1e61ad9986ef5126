# SPDX-License-Identifier: Apache-2.0
"""What models from outside Detectron2 have in common: images in, `sem_seg` out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import nn

from .inputs import check_inputs, check_label_values


class Segmentor(nn.Module, ABC):
    """Base class: Detectron2's contract around `scores`, which a subclass defines.

    Args:
        pixel_mean, pixel_std: three numbers each, on the images' value range and channel order.
        flip_channels: turn RGB into BGR, or back, after that.
        size_divisibility: images are padded at the right and bottom to a multiple of it, with 0
            after normalisation.
        score_type: what `sem_seg` holds: "logits", "probabilities" or "scores", see
            `building.score_type_of`. Only logits can be trained.
        ignore_label: the label that is no class.
    """

    def __init__(
        self,
        *,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
        flip_channels: bool = False,
        size_divisibility: int = 1,
        score_type: str = "logits",
        ignore_label: int = 255,
    ):
        super().__init__()
        self.flip_channels = flip_channels
        self.size_divisibility = size_divisibility
        self.score_type = score_type
        self.ignore_label = ignore_label
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @abstractmethod
    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised (B,3,H,W) -> class scores (B,K,h,w) of any size, which cover all of H x W."""

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised (B,3,H,W), labels (B,H,W) int64 -> losses: cross-entropy at H x W."""
        return {"loss_sem_seg": self._cross_entropy(self.scores(images), labels)}

    def forward(self, batched_inputs: list[dict]):
        """As any Detectron2 meta-architecture.

        Args:
            batched_inputs: a dict an image: "image" (3,H,W); in training "sem_seg" (H,W) int64;
                else "height" and "width" of the output, where they are not H and W.

        Returns:
            In training a dict of losses; else [{"sem_seg": (K, height, width)}].

        Raises:
            ValueError: training of a model whose `score_type` is not "logits".
        """
        check_inputs(batched_inputs, self.training, 0, self.ignore_label)
        if not batched_inputs:
            return []
        device = self.pixel_mean.device
        images = ImageList.from_tensors(
            [self._normalise(item["image"].to(device)) for item in batched_inputs],
            self.size_divisibility,
        )
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)
        pixels = images.tensor.to(dtype)  # of a model made half or double
        if self.training:
            if self.score_type != "logits":
                raise ValueError(
                    f"{type(self).__name__} cannot be trained: its model returns "
                    f"{self.score_type}, and cross-entropy needs logits"
                )
            labels = [item["sem_seg"].to(device).long() for item in batched_inputs]
            labels = ImageList.from_tensors(labels, self.size_divisibility, self.ignore_label)
            return self.losses(pixels, labels.tensor)
        scores = self.scores(pixels)
        return [
            {"sem_seg": self._resized(score, size, tuple(images.tensor.shape[-2:]), item)}
            for score, size, item in zip(scores, images.image_sizes, batched_inputs)
        ]

    def _normalise(self, image: torch.Tensor) -> torch.Tensor:
        """(3,H,W) in the images' channel order -> in the model's."""
        image = (image - self.pixel_mean) / self.pixel_std
        return image.flip(0) if self.flip_channels else image

    def _resized(self, score, size, padded, item) -> torch.Tensor:
        """(K,h,w) -> (K, height, width), interpolated once where that is possible.

        `size` (H,W) of the image, `padded` of the batch that it was padded to.
        """
        wanted = (item.get("height", size[0]), item.get("width", size[1]))
        if tuple(size) == padded:  # no padding: in one step
            if tuple(score.shape[-2:]) == wanted:
                return score
            return F.interpolate(score[None], size=wanted, mode="bilinear", align_corners=False)[0]
        if tuple(score.shape[-2:]) != padded:
            score = F.interpolate(score[None], size=padded, mode="bilinear", align_corners=False)[0]
        if tuple(size) == wanted:
            return score[:, : size[0], : size[1]]
        return sem_seg_postprocess(score, size, *wanted)

    def _cross_entropy(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if scores.shape[-2:] != labels.shape[-2:]:
            size = labels.shape[-2:]
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return pixel_cross_entropy(scores, labels, self.ignore_label)


def pixel_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, ignore_label: int
) -> torch.Tensor:
    """Mean over the pixels with a label: logits (B,K,H,W), labels (B,H,W); 0 where there is none.

    torch's own mean over no pixel is NaN, which ends the training.

    Raises:
        ValueError: a label that is neither 0..K-1 nor `ignore_label`.
    """
    check_label_values(labels, logits.shape[1], ignore_label)
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_label, reduction="sum")
    return total / (labels != ignore_label).sum().clamp(min=1)
