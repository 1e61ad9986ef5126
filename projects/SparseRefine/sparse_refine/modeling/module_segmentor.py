# SPDX-License-Identifier: Apache-2.0
"""A plain PyTorch segmentation module behind Detectron2's meta-architecture contract."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import nn


class ModuleSegmentor(nn.Module):
    """Maps Detectron2's list of {"image"} to [{"sem_seg": (K,H,W)}] with any `nn.Module`.

    Args:
        module: float (B,3,H,W) -> class scores (B,K,h,w) of any size (brought to H x W bilinearly),
            or a dict that holds them under "out" (torchvision).
        pixel_mean, pixel_std: three numbers each, on the images' value range and channel order.
        size_divisibility: images are padded at the right and bottom to a multiple of it.

    Raises:
        ValueError: the module returned something else.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
        size_divisibility: int = 1,
    ):
        super().__init__()
        self.module = module
        self.size_divisibility = size_divisibility
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        images = [item["image"].to(self.pixel_mean.device) for item in batched_inputs]
        images = ImageList.from_tensors(
            [(image - self.pixel_mean) / self.pixel_std for image in images],
            self.size_divisibility,
        )
        scores = self.module(images.tensor)
        if isinstance(scores, dict):
            scores = scores.get("out")
        if not isinstance(scores, torch.Tensor) or scores.dim() != 4:
            kind = (
                tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
            )
            raise ValueError(
                f"{type(self.module).__name__} returned {kind}: class scores (B,K,h,w), or a dict "
                "that holds them under 'out', are needed"
            )
        if scores.shape[-2:] != images.tensor.shape[-2:]:
            size = images.tensor.shape[-2:]
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return [
            {
                "sem_seg": sem_seg_postprocess(
                    score, size, item.get("height", size[0]), item.get("width", size[1])
                )
            }
            for score, size, item in zip(scores, images.image_sizes, batched_inputs)
        ]
