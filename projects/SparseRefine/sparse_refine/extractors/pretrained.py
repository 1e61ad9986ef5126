# SPDX-License-Identifier: Apache-2.0
"""A dense network in place of the sparse UNet, which starts from features that it has learned.

The network runs at full resolution at the selected pixels alone. What it reads around them, of the
image as of every feature map, is what was computed there on the downsampled image: a rough copy,
where a sparse network sees zeros. (Computing changed places of a feature map alone, and taking the
others from maps that were computed before, is Li et al.'s, NeurIPS 2022, arXiv 2211.02048; that the
maps are a smaller image's is ours.) It is used as it is, or trained to read such copies.
"""

from __future__ import annotations

import copy

import torch
from detectron2.config import configurable
from torch import nn

from ..base import build_dense
from ..sites import View
from ..sparse_inference import (
    CompositeTensor,
    PartialTensor,
    Resolutions,
    SiteTensor,
    Trace,
    Window,
)
from .context_features import BaseFeatures, OwnFeatures
from .extractor import EXTRACTOR_REGISTRY, Extractor, Selection, autocast, check_precision

TRAINED = ("none", "norms", "head", "all")
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_NODE = "MODEL.SPARSE_REFINE.EXTRACTOR"


@EXTRACTOR_REGISTRY.register()
class PretrainedExtractor(Extractor):
    """Refined logits by a dense segmentation network of convolutions.

    Its norms keep their statistics in training, which are the dense network's.

    Args:
        model: what has Detectron2's `backbone` and `sem_seg_head`. Changed in place: what is not
            trained is frozen, and it stays in eval mode.
        base: the base, whose feature maps of the small image `model` reads: one of the same
            architecture, at no cost. None: `model` runs on the small image itself, and the base may
            be anything.
        num_classes: K.
        trained: what is trained of it: "none", "norms" (their factors and offsets), "head" (the
            `sem_seg_head`), or "all".
        pretrained: whether `model` has its weights, so that a checkpoint of a refiner that does not
            train it need not hold them.
        deepest_stride: in pixels; maps of larger strides are the small image's everywhere, and none
            of their cells is computed. 0: all maps are computed at the selected pixels.
        precision: "float32", "bfloat16", or "auto", as autocast says around the call.

    Raises:
        ValueError: another kind of model; an unknown precision or part; a stride below 0.
    """

    has_network = True

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        base: nn.Module | None,
        num_classes: int,
        trained: str = "none",
        pretrained: bool = True,
        deepest_stride: int = 0,
        precision: str = "auto",
    ):
        super().__init__()
        if model is base and trained != "none":
            raise ValueError("the base is frozen: train a copy of it, copy.deepcopy(base)")
        if not (hasattr(model, "backbone") and hasattr(model, "sem_seg_head")):
            raise ValueError(
                f"{_NODE}.NAME PretrainedExtractor needs a model with Detectron2's backbone and "
                f"sem_seg_head; {type(model).__name__} has not both. A network of its own, beside "
                f"any base: {_NODE}.MODEL"
            )
        check_precision(precision)
        self.model = model.requires_grad_(False).eval()
        for parameter in _parameters(model, trained):
            parameter.requires_grad_(True)
        self.trained = trained != "none"
        self.frozen = ("model.",) if pretrained and not self.trained else ()
        if deepest_stride < 0:
            raise ValueError(f"{_NODE}.DEEPEST_STRIDE is {deepest_stride}: pixels, or 0 for all")
        self.deepest = deepest_stride or None
        self.precision = precision
        self.num_classes = num_classes
        own = model.backbone.size_divisibility
        self.divisor = own if own > 1 else 32  # the strides of nearly all networks divide it
        self._features = OwnFeatures(model) if base is None else BaseFeatures(base)

    @classmethod
    def from_config(cls, cfg, base: nn.Module) -> dict:
        node = cfg.MODEL.SPARSE_REFINE.EXTRACTOR
        if node.TRAINED != "none" and cfg.MODEL.SPARSE_REFINE.COARSE_CACHE:
            raise ValueError(
                f"{_NODE}.TRAINED is {node.TRAINED!r} and MODEL.SPARSE_REFINE.COARSE_CACHE is set: "
                "the cache keeps logits, and the network reads feature maps: set it to ''"
            )
        if node.WEIGHTS or node.MODEL:
            keys = (f"{_NODE}.MODEL", f"{_NODE}.WEIGHTS")
            model = build_dense(cfg, node.MODEL, node.WEIGHTS, keys)
        else:  # the base itself, or a copy of it that is trained
            model = base if node.TRAINED == "none" else copy.deepcopy(base).float()
        return {
            "model": model,
            "base": None if node.MODEL else base,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "trained": node.TRAINED,
            "pretrained": bool(node.WEIGHTS or not node.MODEL),
            "deepest_stride": node.DEEPEST_STRIDE,
            "precision": node.PRECISION,
        }

    def train(self, mode: bool = True) -> PretrainedExtractor:
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, selection: Selection) -> torch.Tensor:
        """Refined logits (P,K).

        Raises:
            ValueError: another number of classes, or another stride.
            UnsupportedOperation: the network is not of convolutions alone, or not the base's.
        """
        sites, model = selection.sites, self.model
        train = self.trained and self.training
        mean, std = model.pixel_mean.flatten(), model.pixel_std.flatten()
        with torch.set_grad_enabled(train), autocast(self.precision, sites.device.type):
            pixels = (selection.pixels() - mean) / std  # (P,3)
            parts = zip(
                *(sites.split(pixels), sites.by_image(), selection.views, selection.contexts)
            )
            at_sites = self._composite if train else self._sparse
            logits = [
                at_sites(rgb, yx, view, self._features.trace(context))
                for rgb, yx, view, context in parts
                if len(yx)
            ]
            refined = torch.cat([selection.coarse[:0].float(), *logits])
            if train:  # also an empty selection touches every trained parameter: DDP waits for all
                trained = (p for p in model.parameters() if p.requires_grad)
                refined = refined + 0.0 * sum(p.flatten()[:1].sum() for p in trained)
            return refined

    def _sparse(self, rgb, yx, view, trace: Trace) -> torch.Tensor:
        """(P,K) at the sites of one image, computed there alone."""
        padded = tuple(-(-n // self.divisor) * self.divisor for n in view.full)
        yx = yx + yx.new_tensor([view.top, view.left])
        resolutions = Resolutions(yx, view.full, padded, _scale(trace, view), self.deepest)
        image = SiteTensor(rgb, resolutions.at(1), resolutions, trace.from_start())
        return self._scores(image).values.float()

    def _composite(self, rgb, yx, view, trace: Trace) -> torch.Tensor:
        """The same with gradients, by whole maps of the view."""
        place = (view.top, view.left, view.height, view.width)
        scale = _scale(trace, view)
        window = Window(yx, place, view.full, self.divisor, scale, self.deepest)
        image = CompositeTensor(window.image_of(rgb), 1, window, trace.from_start())
        return window.at(self._scores(image).values).float()

    def _scores(self, image: PartialTensor) -> PartialTensor:
        """
        Raises:
            ValueError: another number of classes, or another stride than the image's.
        """
        scores = self.model.sem_seg_head(self.model.backbone(image))[0]
        if scores.channels != self.num_classes or scores.stride != 1:
            raise ValueError(
                f"PretrainedExtractor: {type(self.model.sem_seg_head).__name__} returns "
                f"{scores.channels} classes at stride {scores.stride}; "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES ({self.num_classes}) at stride 1 are needed"
            )
        return scores


def _scale(trace: Trace, view: View) -> tuple[float, float]:
    """The small image's size over the image's, (vertical, horizontal)."""
    return tuple(small / full for small, full in zip(trace.size, view.full))


def _parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Those of a part, one of TRAINED.

    Raises:
        ValueError: an unknown part, or one that the model does not have.
    """
    if part not in TRAINED:
        raise ValueError(f"{_NODE}.TRAINED is {part!r}: one of {TRAINED}")
    modules = {
        "none": [],
        "norms": [module for module in model.modules() if isinstance(module, _NORMS)],
        "head": [model.sem_seg_head],
        "all": [model],
    }[part]
    found = [parameter for module in modules for parameter in module.parameters()]
    if part != "none" and not found:
        raise ValueError(f"{_NODE}.TRAINED is {part!r}: {type(model).__name__} has no such weights")
    return found
