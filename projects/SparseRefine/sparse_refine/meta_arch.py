# SPDX-License-Identifier: Apache-2.0
"""SparseRefine: a frozen model on the downsampled image, and a sparse network on the few
full-resolution pixels that it is unsure of (Liu et al., ECCV 2024, arXiv 2407.19014).

Shapes: B images, K classes, (H, W) full size, (h, w) low size, P selected pixels of a batch.
"""

from __future__ import annotations

import itertools

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from .base import Teacher, build_base
from .coarse import CoarseOutput, CoarsePass
from .data.registration import register_folders
from .ensembler import ENSEMBLER_REGISTRY, GatedEnsembler, RefinedEnsembler
from .extractors import EXTRACTOR_REGISTRY, Extractor, Selection, SparseUNetExtractor
from .losses import LossWeights, divergence, refinement_losses
from .modeling import as_segmentor
from .modeling.contract import check_declared, lookup, score_type_of
from .modeling.inputs import check_inputs
from .results import image_result
from .selector import (
    SELECTOR_REGISTRY,
    EntropySelector,
    Selector,
    keep_entropy,
)
from .sites import Sites, View


@META_ARCH_REGISTRY.register()
class SparseRefine(nn.Module):
    """Refines the `sem_seg` of any base; every other output of the base passes through.

    Args:
        coarse: the frozen base with its scale.
        selector: coarse logits -> sites.
        extractor: selected full-resolution pixels -> refined logits.
        ensembler: coarse and refined logits -> fused logits.
        ignore_label: no class.
        output: "logits" or "labels", see `forward`.
        loss_weights: of the terms of the loss.
        teacher: what the refiner also learns from, where `loss_weights.distillation` is above 0.
    """

    refines = True  # see modeling/contract.py

    @configurable
    def __init__(
        self,
        *,
        coarse: CoarsePass,
        selector: Selector,
        extractor: Extractor,
        ensembler: nn.Module,
        ignore_label: int = 255,
        output: str = "logits",
        loss_weights: LossWeights = LossWeights(),  # noqa: B008 (frozen)
        teacher: Teacher | None = None,
    ):
        super().__init__()
        if output not in ("logits", "labels"):
            raise ValueError(f"MODEL.SPARSE_REFINE.OUTPUT is {output!r}: one of 'logits', 'labels'")
        if loss_weights.distillation > 0 and teacher is None:
            raise ValueError("loss_weights.distillation is above 0, and there is no teacher")
        self.coarse = coarse
        self.selector = selector
        self.extractor = extractor
        self.ensembler = ensembler
        self.ignore_label = ignore_label
        self.output = output
        self.loss_weights = loss_weights
        self.teacher = teacher
        self.register_buffer("_place", torch.empty(0), False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        check_declared(cfg)
        node, classes = cfg.MODEL.SPARSE_REFINE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if classes < 1:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}: it must be at least 1")
        register_folders(cfg)  # Detectron2's own trainer builds the model first, then its loaders
        weights = LossWeights.from_config(cfg)
        selector, extractor, ensembler = (
            lookup(registry, f"MODEL.SPARSE_REFINE.{part}.NAME", node[part].NAME)
            for part, registry in (
                ("SELECTOR", SELECTOR_REGISTRY),
                ("EXTRACTOR", EXTRACTOR_REGISTRY),
                ("ENSEMBLER", ENSEMBLER_REGISTRY),
            )
        )
        base = build_base(cfg)
        return {
            "coarse": CoarsePass(cfg, base),
            "selector": selector(cfg),
            "extractor": extractor(cfg, base),
            "ensembler": ensembler(cfg),
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "output": node.OUTPUT,
            "loss_weights": weights,
            "teacher": Teacher.from_config(cfg),
        }

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        *,
        num_classes: int,
        scale: float = 0.5,
        score_type: str | None = None,
        interpolation: str = "nearest",
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
        size_divisibility: int = 1,
        module_output: str | int = "",
        selector: Selector | None = None,
        extractor: Extractor | None = None,
        ensembler: nn.Module | None = None,
        **options,
    ) -> SparseRefine:
        """SparseRefine around a plain PyTorch module, without any yaml.

        Args:
            module: float (B,3,h,w) -> class scores (B,K,*,*), see `ModuleSegmentor`; or a model
                that speaks Detectron2's lists of dicts: a `Segmentor` (HuggingFaceSegmentor), a
                registered meta-architecture, or what has an attribute `sem_seg_head`.
            num_classes: K.
            scale, score_type, interpolation: of the coarse pass, see `CoarsePass`; the module is
                frozen in place. `score_type` is the module's own where it says (Segmentor), else
                "logits" by default.
            pixel_mean, pixel_std, size_divisibility: of a plain module, see `Segmentor`; the first
                two also of the default extractor.
            module_output: which entry of what a plain module returns holds the scores, see
                `ModuleSegmentor`.
            selector, extractor, ensembler: the paper's by default (entropy above 0.3 nats, the
                `base` UNet on RGB, the gate); beside an extractor that has nothing to train, no
                gate: its own answer.
            options: of the constructor.
        """
        module = as_segmentor(
            module,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            size_divisibility=size_divisibility,
            score_type=score_type or "logits",
            output=module_output,
        )
        coarse = CoarsePass(
            base=module,
            num_classes=num_classes,
            scale=scale,
            score_type=score_type_of(module, score_type),
            interpolation=interpolation,
        )
        # `is None`: a module that is an empty container is false in Python
        if selector is None:
            selector = EntropySelector(threshold=0.3)
        if extractor is None:
            extractor = SparseUNetExtractor(
                num_classes=num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std
            )
        if ensembler is None:
            trained = any(parameter.requires_grad for parameter in extractor.parameters())
            ensembler = GatedEnsembler(num_classes=num_classes) if trained else RefinedEnsembler()
        model = cls(
            coarse=coarse, selector=selector, extractor=extractor, ensembler=ensembler, **options
        )
        tensors = itertools.chain(module.parameters(), module.buffers())
        return model.to(next(tensors).device)

    @property
    def device(self) -> torch.device:
        return self._place.device

    @property
    def frozen(self) -> tuple[str, ...]:
        """Prefixes of the names of weights that training leaves as they are."""
        return ("coarse.base.", *(f"extractor.{prefix}" for prefix in self.extractor.frozen))

    def forward(self, batched_inputs: list[dict]):
        """The paper's figure.

        Args:
            batched_inputs: a dict an image: "image" (3,H,W) at full resolution; in training also
                "sem_seg" (H,W) int64, and, where "image" is a crop, "context" (3,h,w), the whole
                image at low resolution, and "crop" (top, left, H, W), the crop's place in it.

        Returns:
            In training a dict of losses. Else a dict an image: "sem_seg" (K, height, width) logits
            or, where `output` is "labels", "labels" (height, width) integer; "refinement", a
            `Refinement`; and whatever else the base returned, see `full_size_outputs`. `height` and
            `width` are the input's, by default the image's own.
        """
        check_inputs(batched_inputs, self.training, self.coarse.num_classes, self.ignore_label)
        if not batched_inputs:
            return []
        inputs = [self._on_device(item) for item in batched_inputs]
        views = [View.of_input(item) for item in inputs]

        outputs = self.coarse(inputs)  # an image each: logits (K,h,w) of the context (3,h,w)
        sites = self._select(outputs, views)  # P pixels of the batch
        coarse = self.coarse.at_sites(outputs, sites, views)  # (P,K)
        selection = _selection(inputs, outputs, sites, coarse, views)
        refined = self.extractor(selection)  # (P,K)
        fused = self.ensembler(coarse, refined)  # (P,K)

        if self.training:
            return self._losses(inputs, sites, coarse, refined, fused)
        return self._results(inputs, outputs, sites, coarse, refined, fused)

    def _on_device(self, item: dict) -> dict:
        images = {key: item[key].to(self.device) for key in ("image", "context") if key in item}
        return {**item, **images}

    def _select(self, outputs: list[CoarseOutput], views: list[View]) -> Sites:
        for out in outputs:
            keep_entropy(out.logits)
        parts = [self.selector(out.logits, view) for out, view in zip(outputs, views)]
        return Sites.of_images(parts, [view.size for view in views])

    def _losses(self, inputs, sites: Sites, coarse, refined, fused) -> dict:
        truth = [item["sem_seg"].to(self.device).long()[None] for item in inputs]
        labels = sites.read(truth)[:, 0]  # (P,)
        valid = labels != self.ignore_label
        self._log(sites, labels, valid, {"coarse": coarse, "refined": refined, "fused": fused})
        weights = self.loss_weights
        losses = refinement_losses(refined[valid], fused[valid], labels[valid], weights)
        if self.teacher is not None:  # also where there is no label
            taught = self.teacher([item["image"] for item in inputs], sites)
            losses["loss_distillation"] = weights.distillation * divergence(refined, taught)
        return losses

    @staticmethod
    def _log(sites: Sites, labels, valid, predictions: dict) -> None:
        if not has_event_storage():
            return
        storage = get_event_storage()
        pixels = sum(height * width for height, width in sites.sizes)
        storage.put_scalar("selected/fraction", len(sites) / pixels)
        if valid.any():
            for name, logits in predictions.items():
                right = (logits.detach().argmax(1) == labels)[valid].float().mean()
                storage.put_scalar(f"selected/accuracy_{name}", right.item())

    def _results(self, inputs, outputs, sites: Sites, *logits) -> list[dict]:
        """`logits`: coarse, refined, fused, (P,K) each."""
        parts = zip(inputs, outputs, sites.by_image(), *(sites.split(x) for x in logits))
        return [image_result(*part, self.output, self.coarse.interpolation) for part in parts]


def _selection(inputs, outputs, sites: Sites, coarse: torch.Tensor, views) -> Selection:
    images = [item["image"] for item in inputs]
    return Selection(sites, images, [out.context for out in outputs], coarse, views)
