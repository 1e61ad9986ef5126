# SPDX-License-Identifier: Apache-2.0
"""SparseRefine: a frozen model on the downsampled image, and a sparse network on the few
full-resolution pixels that it is unsure of (Liu et al., ECCV 2024, arXiv 2407.19014).

Shapes: B images, K classes, (H, W) full size, (h, w) low size, P selected pixels of a batch.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from .build import base_score_type, build_parts
from .coarse import CoarsePass, View, repeat_nearest
from .ensembler import GatedEnsembler, RefinedEnsembler
from .extractor import SparseUNetExtractor
from .labels import argmax_labels
from .losses import cross_entropy, soft_dice
from .modeling import ModuleSegmentor, Segmentor
from .pass_through import full_size_outputs
from .pretrained_extractor import PretrainedExtractor
from .refinement import Refinement
from .selector import EntropySelector, Selector, entropy


@META_ARCH_REGISTRY.register()
class SparseRefine(nn.Module):
    """Refines the `sem_seg` of any base; every other output of the base passes through.

    Args:
        coarse: the frozen base with its scale.
        selector: coarse logits -> sites.
        extractor: selected full-resolution pixels -> refined logits.
        ensembler: coarse and refined logits -> fused logits.
        pixel_mean, pixel_std: of the extractor's pixels, on the images' value range and order of
            channels.
        ignore_label: no class.
        output: "logits" or "labels", see `forward`.
        refined_weight, fused_weight, dice_weight: of the losses.
    """

    @configurable
    def __init__(
        self,
        *,
        coarse: CoarsePass,
        selector: Selector,
        extractor: nn.Module,
        ensembler: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        ignore_label: int = 255,
        output: str = "logits",
        refined_weight: float = 1.0,
        fused_weight: float = 1.0,
        dice_weight: float = 0.0,
    ):
        super().__init__()
        if output not in ("logits", "labels"):
            raise ValueError(f"MODEL.SPARSE_REFINE.OUTPUT is {output!r}: one of 'logits', 'labels'")
        if isinstance(extractor, PretrainedExtractor) and any(True for _ in ensembler.parameters()):
            raise ValueError(
                f"MODEL.SPARSE_REFINE.ENSEMBLER.NAME is {type(ensembler).__name__!r}, which is "
                "trained together with an extractor, and PretrainedExtractor is not trained: set "
                "RefinedEnsembler or EntropyEnsembler"
            )
        self.coarse = coarse
        self.selector = selector
        self.extractor = extractor
        self.ensembler = ensembler
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, -1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, -1), False)
        self.ignore_label = ignore_label
        self.output = output
        self.loss_weights = (refined_weight, fused_weight, dice_weight)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return build_parts(cfg)

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
        selector: Selector | None = None,
        extractor: nn.Module | None = None,
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
            selector, extractor, ensembler: the paper's by default (entropy above 0.3 nats, the
                `base` UNet on RGB, the gate; with a PretrainedExtractor its own answer).
            options: of the constructor.
        """
        if not _speaks_detectron2(module):
            module = ModuleSegmentor(
                module,
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
                size_divisibility=size_divisibility,
                score_type=score_type or "logits",
            )
        score_type = base_score_type(module, score_type)
        coarse = CoarsePass(
            base=module,
            num_classes=num_classes,
            scale=scale,
            score_type=score_type,
            interpolation=interpolation,
        )
        # `is None`: a module that is an empty container is false in Python
        if selector is None:
            selector = EntropySelector(threshold=0.3)
        if extractor is None:
            extractor = SparseUNetExtractor(num_classes=num_classes)
        if isinstance(extractor, PretrainedExtractor):
            pixel_mean, pixel_std = extractor.normalisation
            ensembler = RefinedEnsembler() if ensembler is None else ensembler
        if ensembler is None:
            ensembler = GatedEnsembler(num_classes=num_classes)
        return cls(
            coarse=coarse,
            selector=selector,
            extractor=extractor,
            ensembler=ensembler,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            **options,
        )

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

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
        inputs = [self._on_device(item) for item in batched_inputs]
        views = [_view(item) for item in inputs]

        record = getattr(self.extractor, "reads_traces", False)
        outputs = self.coarse(inputs, record)  # "sem_seg": logits (K,h,w) an image
        traces = [out.pop("trace", None) for out in outputs] if record else None
        sites = [self.selector(out["sem_seg"], view) for out, view in zip(outputs, views)]
        coarse = self._coarse_logits(outputs, sites, views)  # (P,K)
        pixels = self._pixels(inputs, sites)  # (P,3)
        refined = self._refine(pixels, coarse, sites, views, traces)  # (P,K)
        del traces  # all feature maps of the batch
        fused = self.ensembler(coarse, refined)  # (P,K)

        if self.training:
            return self._losses(inputs, sites, views, coarse, refined, fused)
        return self._results(inputs, outputs, sites, coarse, refined, fused)

    def _on_device(self, item: dict) -> dict:
        images = {key: item[key].to(self.device) for key in ("image", "context") if key in item}
        return {**item, **images}

    def _coarse_logits(self, outputs, sites, views) -> torch.Tensor:
        parts = zip(outputs, sites, views)
        return torch.cat([self.coarse.at_sites(out["sem_seg"], s, view) for out, s, view in parts])

    def _pixels(self, inputs, sites) -> torch.Tensor:
        pixels = [
            item["image"].flatten(1)[:, s[:, 0] * item["image"].shape[2] + s[:, 1]].t()
            for item, s in zip(inputs, sites)
        ]
        return (torch.cat(pixels).float() - self.pixel_mean) / self.pixel_std

    def _refine(self, pixels, coarse, sites, views, traces) -> torch.Tensor:
        position = [
            (s + s.new_tensor([v.top, v.left]) + 0.5) * (2 / s.new_tensor(v.full)) - 1
            for s, v in zip(sites, views)
        ]
        indexed = [torch.cat([s.new_full((len(s), 1), i), s], 1) for i, s in enumerate(sites)]
        sizes = [(view.height, view.width) for view in views]
        own = () if traces is None else (traces,)
        return self.extractor(pixels, coarse, torch.cat(position), torch.cat(indexed), sizes, *own)

    def _losses(self, inputs, sites, views, coarse, refined, fused) -> dict:
        labels = torch.cat(
            [item["sem_seg"].to(s.device)[s[:, 0], s[:, 1]] for item, s in zip(inputs, sites)]
        )
        valid = labels != self.ignore_label
        predictions = {"coarse": coarse, "refined": refined, "fused": fused}
        self._log(sum(v.height * v.width for v in views), labels, valid, predictions)
        labels, refined, fused = labels[valid], refined[valid], fused[valid]
        terms = {
            "loss_refined": (self.loss_weights[0], cross_entropy, refined),
            "loss_fused": (self.loss_weights[1], cross_entropy, fused),
            "loss_dice": (self.loss_weights[2], soft_dice, fused),
        }
        losses = {k: w * loss(x, labels) for k, (w, loss, x) in terms.items() if w > 0}
        # an empty selection, or a weight of 0, still reaches every parameter: DDP waits for all
        losses["loss_refined"] = losses.get("loss_refined", 0.0) + 0.0 * (
            refined.sum() + fused.sum()
        )
        return losses

    @staticmethod
    def _log(pixels: int, labels, valid, predictions: dict) -> None:
        if not has_event_storage():
            return
        storage = get_event_storage()
        storage.put_scalar("selected/fraction", len(labels) / pixels)
        if valid.any():
            for name, logits in predictions.items():
                right = (logits.detach().argmax(1) == labels)[valid].float().mean()
                storage.put_scalar(f"selected/accuracy_{name}", right.item())

    def _results(self, inputs, outputs, sites, coarse, refined, fused) -> list[dict]:
        counts = [len(s) for s in sites]
        results = []
        for item, out, s, *logits in zip(
            inputs, outputs, sites, *(x.split(counts) for x in (coarse, refined, fused))
        ):
            size = tuple(item["image"].shape[-2:])
            height, width = item.get("height", size[0]), item.get("width", size[1])
            predictions = [argmax_labels(x.t()) for x in logits]
            low = tuple(out["sem_seg"].shape[-2:])
            result = full_size_outputs(out, low, (height, width))
            if self.output == "logits":
                full = self.coarse.full_logits(out["sem_seg"], size)
                full[:, s[:, 0], s[:, 1]] = logits[2].t().to(full.dtype)  # autocast
                labels = argmax_labels(full)
                if (height, width) != size:
                    full = sem_seg_postprocess(full, size, height, width)
                result["sem_seg"] = full
            else:
                labels = self.coarse.full_labels(out["sem_seg"], size)
                labels[s[:, 0], s[:, 1]] = predictions[2]
                resized = (height, width) != size
                result["labels"] = repeat_nearest(labels, (height, width)) if resized else labels
            result["refinement"] = Refinement(labels, s, *predictions, entropy(out["sem_seg"]))
            results.append(result)
        return results


def _speaks_detectron2(module: nn.Module) -> bool:
    name = type(module).__name__
    registered = name in META_ARCH_REGISTRY and META_ARCH_REGISTRY.get(name) is type(module)
    return registered or isinstance(module, Segmentor) or hasattr(module, "sem_seg_head")


def _view(item: dict) -> View:
    height, width = item["image"].shape[-2:]
    top, left, *full = item.get("crop", (0, 0, height, width))
    return View(top, left, height, width, tuple(full))
