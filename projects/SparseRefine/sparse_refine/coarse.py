# SPDX-License-Identifier: Apache-2.0
"""The coarse pass: the frozen base on the downsampled image (paper, section 3.1).

Shapes: B images, K classes, (H, W) full size, (h, w) low size.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .coarse_cache import CoarseCache
from .labels import argmax_labels
from .sparse_inference import Recording

_STRIP = 128  # rows of full resolution whose scores exist at once

SCORE_TYPES = ("logits", "probabilities", "scores")


@dataclass(frozen=True)
class View:
    """The window of an image that the refiner works on: all of it, or a training crop.

    `top`, `left`, `height`, `width` in pixels of the whole image, which is `full` = (H, W).
    """

    top: int
    left: int
    height: int
    width: int
    full: tuple[int, int]


def low_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) -> (h, w) at `scale`, each side rounded and at least 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def downsample(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Antialiased bilinear resize (C,H,W) -> float (C,h,w) in the value range of the image."""
    image = image.float()
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(
        image[None], size=size, mode="bilinear", align_corners=False, antialias=True
    )[0]


def nearest_index(size: int, low: int, device=None) -> torch.Tensor:
    """(size,) int64: the low-resolution row (or column) that each full-resolution one lies in."""
    return torch.arange(size, device=device) * low // size


def repeat_nearest(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(...,h,w) -> (...,H,W): each pixel gets the low-resolution one that it lies in.

    Of any type, where torch's interpolate knows only some.
    """
    rows = nearest_index(size[0], maps.shape[-2], maps.device)
    columns = nearest_index(size[1], maps.shape[-1], maps.device)
    return maps[..., columns][..., rows, :]


def pixels_under(low: tuple[int, int], size: tuple[int, int], device=None) -> torch.Tensor:
    """(h,w) int64: how many of the (H,W) = `size` pixels lie in each low-resolution one. They
    differ where the scale is odd."""
    rows, columns = (
        torch.bincount(nearest_index(new, old, device), minlength=old)
        for new, old in zip(size, low)
    )
    return rows[:, None] * columns


def to_logits(scores: torch.Tensor, score_type: str) -> torch.Tensor:
    """(K,...) scores of a base -> logits whose softmax is its class distribution.

    "logits" stay as they are. "probabilities" and "scores" are non-negative and need not sum to 1
    (Mask2Former's class sum runs from about 10 to 80): the log of the clipped, normalised value.
    """
    if score_type == "logits":
        return scores
    scores = scores.clamp(min=0)
    return (scores / scores.sum(0, keepdim=True).clamp(min=1e-12)).clamp(min=1e-12).log()


class CoarsePass(nn.Module):
    """Runs a frozen base on low-resolution images.

    Args:
        base: any model that maps Detectron2's list of {"image", "height", "width"} to a list of
            {"sem_seg": (K,h,w)}. Its parameters stop requiring gradients, and it stays in eval mode
            whatever mode this module is put in, so that its statistics do not move.
        num_classes: K.
        scale: low over full resolution, 0 < scale <= 1.
        score_type: what `sem_seg` holds, see `to_logits`.
        temperature: > 0, what logits are divided by (Guo et al. 2017, arXiv 1706.04599): above 1 a
            base that is too sure of itself gets less so. Labels stay as they are.
        interpolation: "nearest" or "bilinear", how logits are read at full resolution.
        cache: keeps logits of training images on disk, or None.
    """

    def __init__(
        self,
        *,
        base: nn.Module,
        num_classes: int,
        scale: float,
        score_type: str = "logits",
        temperature: float = 1.0,
        interpolation: str = "nearest",
        cache: CoarseCache | None = None,
    ):
        super().__init__()
        if not 0 < scale <= 1:
            raise ValueError(f"MODEL.SPARSE_REFINE.BASE.SCALE is {scale}: it must be in (0, 1]")
        if score_type not in SCORE_TYPES:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.BASE.SCORE_TYPE is {score_type!r}: one of {SCORE_TYPES}"
            )
        if not 0 < temperature < float("inf"):
            raise ValueError(
                f"MODEL.SPARSE_REFINE.BASE.TEMPERATURE is {temperature}: it must be above 0"
            )
        if interpolation not in ("nearest", "bilinear"):
            raise ValueError(
                f"MODEL.SPARSE_REFINE.COARSE_INTERPOLATION is {interpolation!r}: "
                "one of ('nearest', 'bilinear')"
            )
        self.base = base.requires_grad_(False).eval()
        self.num_classes = num_classes
        self.scale = scale
        self.score_type = score_type
        self.temperature = temperature
        self.interpolation = interpolation
        self.cache = cache

    def train(self, mode: bool = True) -> CoarsePass:
        super().train(mode)
        self.base.eval()
        return self

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict], record: bool = False) -> list[dict]:
        """Each image's outputs of the base: {"sem_seg": float logits (K,h,w), whatever else}.

        Where `record` is True there is also "trace", the `Trace` of the base on that image.

        An input's "context" (3,h,w), the whole image at low resolution, is used where the mapper
        gives one (training, where "image" is a crop); else its "image" is downsampled.

        Raises:
            ValueError: the base's class count is not `num_classes`, or it returned no `sem_seg`.
        """
        outputs = [self._cached(item) for item in batched_inputs]
        groups = {}  # images of one size go together: padding would change the others' logits
        for i, output in enumerate(outputs):
            if output is None:
                context = self._context(batched_inputs[i])
                groups.setdefault((context["height"], context["width"]), []).append((i, context))
        for group in groups.values():
            contexts = [context for _, context in group]
            with Recording() if record else contextlib.nullcontext() as recording:
                group_outputs = self._run_base(contexts)
            for j, ((i, context), output) in enumerate(zip(group, group_outputs)):
                outputs[i] = {**output, "sem_seg": self._logits(output)}
                if record:
                    size = (context["height"], context["width"])
                    outputs[i]["trace"] = recording.of_image(j, size)
                if self.training and self.cache is not None:
                    name, logits = batched_inputs[i]["file_name"], outputs[i]["sem_seg"]
                    outputs[i]["sem_seg"] = self.cache.store(name, logits)
        for item, output in zip(batched_inputs, outputs):
            if self.temperature != 1:  # here: what the cache keeps does not depend on it
                output["sem_seg"] = output["sem_seg"] / self.temperature
            if item.get("context_flip", False):  # cached logits know no augmentation
                output["sem_seg"] = output["sem_seg"].flip(-1)
        return outputs

    def _run_base(self, contexts: list[dict]) -> list[dict]:
        if not self.training:
            return self.base(contexts)
        # without the training's mixed precision: thresholds of 0.005 nats would notice it
        with torch.autocast(contexts[0]["image"].device.type, enabled=False):
            return self.base(contexts)

    def _cached(self, item: dict) -> dict | None:
        if not self.training or self.cache is None:
            return None
        logits = self.cache.load(item["file_name"], self.base, device=item["image"].device)
        return None if logits is None else {"sem_seg": logits}

    def _context(self, item: dict) -> dict:
        context = item.get("context")
        if context is None:
            context = downsample(item["image"], low_size(item["image"].shape[-2:], self.scale))
        return {"image": context, "height": context.shape[-2], "width": context.shape[-1]}

    def _logits(self, output: dict) -> torch.Tensor:
        if "sem_seg" not in output:
            raise ValueError(
                f"the base {type(self.base).__name__} returned {sorted(output)} but no 'sem_seg': "
                "turn its semantic output on (in Mask2Former MODEL.MASK_FORMER.TEST.SEMANTIC_ON)"
            )
        scores = output["sem_seg"]
        if scores.shape[0] != self.num_classes:
            raise ValueError(
                f"the base {type(self.base).__name__} predicts {scores.shape[0]} classes but "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.num_classes}"
            )
        return to_logits(scores.float(), self.score_type)

    def at_sites(self, logits: torch.Tensor, sites: torch.Tensor, view: View) -> torch.Tensor:
        """Coarse logits (K,h,w) read at `sites` (P,2), (y, x) in the view's pixels -> (P,K)."""
        classes, height, width = logits.shape
        y, x = sites[:, 0] + view.top, sites[:, 1] + view.left
        if self.interpolation == "nearest":
            index = (y * height // view.full[0]) * width + x * width // view.full[1]
            return logits.reshape(classes, -1)[:, index].t().contiguous()
        # align_corners=False: pixel centres lie at (i + 0.5) / n of the image's side
        grid_y = (y + 0.5) * (2.0 / view.full[0]) - 1
        grid_x = (x + 0.5) * (2.0 / view.full[1]) - 1
        grid = torch.stack([grid_x, grid_y], dim=1)[None, None].to(logits.dtype)
        values = F.grid_sample(logits[None], grid, padding_mode="border", align_corners=False)
        return values[0, :, 0].t().contiguous()

    def full_logits(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(K,h,w) -> (K,H,W). The one tensor of that size; only OUTPUT "logits" makes it."""
        if self.interpolation == "bilinear":
            return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        return repeat_nearest(logits, size)

    def full_labels(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(K,h,w) -> label map (H,W), see `argmax_labels`. K x H x W never exists."""
        height = logits.shape[-2]
        if self.interpolation == "nearest":
            return repeat_nearest(argmax_labels(logits), size)
        # F.interpolate in strips: along the rows inside it, between the rows by hand
        y = ((torch.arange(size[0]) + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
        above = y.long()
        below = (above + 1).clamp(max=height - 1)
        share = (y - above).to(logits)[:, None]
        strips = []
        # found on the CPU, brought over at once: no strip waits for a GPU
        places = [line.to(logits.device) for line in (above, below)]
        for start in range(0, size[0], _STRIP):
            strip = slice(start, start + _STRIP)
            first, last = int(above[start]), int(below[strip][-1])
            rows = F.interpolate(
                logits[None, :, first : last + 1],
                size=(last + 1 - first, size[1]),
                mode="bilinear",
                align_corners=False,
            )[0]
            upper, lower = (rows[:, line[strip] - first] for line in places)
            strips.append(argmax_labels(torch.lerp(upper, lower, share[strip])))
        return torch.cat(strips)
