# SPDX-License-Identifier: Apache-2.0
"""The coarse pass: the frozen base on the downsampled image (paper, section 3.1).

Shapes: B images, K classes, (H, W) full size, (h, w) low size, P selected pixels of the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import nn

from .modeling.contract import SCORE_TYPES, score_type_of
from .resampling import INTERPOLATIONS, downsample, low_size, read_at
from .sites import Sites, View
from .storage.coarse_cache import CoarseCache

logger = logging.getLogger(__name__)


def to_logits(scores: torch.Tensor, score_type: str) -> torch.Tensor:
    """(K,...) scores of a base -> logits whose softmax is its class distribution.

    "logits" stay as they are. "probabilities" and "scores" are non-negative and need not sum to 1
    (Mask2Former's class sum runs from about 10 to 80): the log of the clipped, normalised value.
    """
    if score_type == "logits":
        return scores
    scores = scores.clamp(min=0)
    return (scores / scores.sum(0, keepdim=True).clamp(min=1e-12)).clamp(min=1e-12).log()


@dataclass(frozen=True)
class CoarseOutput:
    """What the base says of one image.

    `context` (3,h,w): the image that it saw. `logits` (K,h,w) float. `others`: its other outputs.
    """

    context: torch.Tensor
    logits: torch.Tensor
    others: dict = field(default_factory=dict)


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

    @configurable
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
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.COARSE_INTERPOLATION is {interpolation!r}: "
                f"one of {INTERPOLATIONS}"
            )
        self.base = base.requires_grad_(False).eval()
        self.num_classes = num_classes
        self.scale = scale
        self.score_type = score_type
        self.temperature = temperature
        self.interpolation = interpolation
        self.cache = cache
        self._looked_at = False  # whether the first images and the base's answer have been

    @classmethod
    def from_config(cls, cfg: CN, base: nn.Module) -> dict:
        node = cfg.MODEL.SPARSE_REFINE
        return {
            "base": base,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "scale": node.BASE.SCALE,
            "score_type": score_type_of(base, node.BASE.SCORE_TYPE),
            "temperature": node.BASE.TEMPERATURE,
            "interpolation": node.COARSE_INTERPOLATION,
            "cache": _build_cache(cfg) if node.COARSE_CACHE else None,
        }

    def train(self, mode: bool = True) -> CoarsePass:
        super().train(mode)
        self.base.eval()
        return self

    @torch.no_grad()
    def forward(self, inputs: Sequence[dict]) -> list[CoarseOutput]:
        """What the base says of each image.

        An input's "context" (3,h,w), the whole image at low resolution, is used where the mapper
        gives one (training, where "image" is a crop); else its "image" is downsampled.

        Raises:
            ValueError: the base's class count is not `num_classes`, or it returned no `sem_seg`.
        """
        self._look_at_images(inputs)
        contexts = [self.context(item) for item in inputs]
        outputs = [self._cached(item, context) for item, context in zip(inputs, contexts)]
        groups: dict[tuple, list[int]] = {}  # padding to another image's size would change logits
        for index, context in enumerate(contexts):
            if outputs[index] is None:
                groups.setdefault(tuple(context.shape), []).append(index)
        for group in groups.values():
            for index, answer in zip(group, self._run_base([contexts[i] for i in group])):
                logits = self._logits(answer)
                if self.training and self.cache is not None:
                    logits = self.cache.store(inputs[index]["file_name"], logits)
                others = {key: value for key, value in answer.items() if key != "sem_seg"}
                outputs[index] = CoarseOutput(contexts[index], logits, others)
        return [self._read(output, item) for output, item in zip(outputs, inputs)]

    def context(self, item: dict) -> torch.Tensor:
        """(3,h,w), what the base sees of an image."""
        context = item.get("context")
        if context is None:
            context = downsample(item["image"], low_size(item["image"].shape[-2:], self.scale))
        dtype = next((p.dtype for p in self.base.parameters() if p.is_floating_point()), None)
        # a base in half, bfloat16 or double precision wants its own
        return context if dtype in (None, torch.float32) else context.to(dtype)

    def _cached(self, item: dict, context: torch.Tensor) -> CoarseOutput | None:
        if not self.training or self.cache is None:
            return None
        logits = self.cache.load(item["file_name"], self.base, device=context.device)
        return None if logits is None else CoarseOutput(context, logits)

    def _run_base(self, contexts: list[torch.Tensor]) -> list[dict]:
        if self.base.training:  # somebody called its train() by hand
            self.base.eval()
        batch = [{"image": c, "height": c.shape[-2], "width": c.shape[-1]} for c in contexts]
        if not self.training:
            return self.base(batch)
        # without the training's mixed precision: thresholds of 0.005 nats would notice it
        with torch.autocast(contexts[0].device.type, enabled=False):
            return self.base(batch)

    def _read(self, output: CoarseOutput, item: dict) -> CoarseOutput:
        """What the cache's logits do not depend on: temperature, and the flip of a crop."""
        logits, context = output.logits, output.context
        if self.temperature != 1:
            logits = logits / self.temperature
        if item.get("context_flip", False):  # cached logits know no augmentation
            logits, context = logits.flip(-1), context.flip(-1)
        return replace(output, logits=logits, context=context)

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
        if self.score_type == "logits" and not self._looked_at:
            exact = not scores.is_floating_point()
            precision = 0.0 if exact else torch.finfo(scores.dtype).eps
            self._refuse_probabilities(scores.float(), max(1e-3, 4 * precision))
        self._looked_at = True
        return to_logits(scores.float(), self.score_type)

    def _look_at_images(self, inputs: Sequence[dict]) -> None:
        """Of the first batch: floats in 0..1 are read as 0..255 where the base says that it takes
        those, and nearly black images give labels too."""
        if self._looked_at:
            return
        statistics = [getattr(self.base, name, None) for name in ("pixel_mean", "pixel_std")]
        if not any(isinstance(s, torch.Tensor) and s.max() > 1 for s in statistics):
            return
        floats = [item["image"] for item in inputs if item["image"].is_floating_point()]
        if any(0 < image.max() <= 1 and image.min() >= 0 for image in floats):
            logger.warning(
                f"an image holds floating point values in 0..1, and the base "
                f"{type(self.base).__name__} has PIXEL_MEAN and PIXEL_STD of 0..255: multiply "
                "images by 255, or give it both of 0..1"
            )

    def _refuse_probabilities(self, scores: torch.Tensor, tolerance: float) -> None:
        """Read as logits they would select nearly every pixel. `tolerance`: of their sum."""
        total, low, high = scores.sum(0), scores.min(), scores.max()
        distribution = low >= 0 and (total - 1).abs().max() < tolerance
        if low >= 0 and low < high <= 1 and not distribution:
            logger.warning(
                f"the base {type(self.base).__name__} returns values in 0..1 alone, as a sigmoid "
                "does: where they are no logits, set MODEL.SPARSE_REFINE.BASE.SCORE_TYPE "
                "(score_type of SparseRefine.wrap) to 'probabilities', or take the sigmoid off"
            )
        if len(scores) > 1 and distribution:
            raise ValueError(
                f"the base {type(self.base).__name__} returns values in 0..1 that sum to 1 over "
                "the classes, which are no logits: set MODEL.SPARSE_REFINE.BASE.SCORE_TYPE "
                "(score_type of SparseRefine.wrap) to 'probabilities'"
            )

    def at_sites(
        self, outputs: Sequence[CoarseOutput], sites: Sites, views: Sequence[View]
    ) -> torch.Tensor:
        """(P,K) coarse logits at the sites of all images."""
        parts = zip(outputs, sites.by_image(), views)
        return torch.cat([read_at(o.logits, yx, v, self.interpolation) for o, yx, v in parts])


def _build_cache(cfg: CN) -> CoarseCache:
    node = cfg.MODEL.SPARSE_REFINE
    # what the base's logits depend on besides the image and the weights: all that shapes the base,
    # but BASE.TEMPERATURE, which divides them when they are read
    model = cfg.MODEL.clone()
    model.defrost()
    model.WEIGHTS = model.DEVICE = ""
    model.SPARSE_REFINE = CN()
    base = (node.BASE.META_ARCHITECTURE, node.BASE.SCALE, node.BASE.SCORE_TYPE, cfg.INPUT.FORMAT)
    return CoarseCache(node.COARSE_CACHE, f"{base} {model.dump()}")
