# SPDX-License-Identifier: Apache-2.0
"""A trained dense network in place of the sparse UNet: nothing is left to train.

The network runs at full resolution at the selected pixels alone. What it reads around them, of the
image as of every feature map, is what the base computed there on the downsampled image: a rough
copy, where a sparse network sees zeros. (Computing changed places of a feature map alone, and
taking the others from maps that were computed before, is Li et al.'s, NeurIPS 2022, arXiv
2211.02048; that the maps are a smaller image's is ours.)
"""

from __future__ import annotations

import contextlib

import torch
from detectron2.config import configurable
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..base import build_base, load_base_weights
from ..sparse_inference import Recording, Resolutions, SiteTensor, Trace
from .extractor import EXTRACTOR_REGISTRY, Extractor, Selection, autocast, check_precision


@EXTRACTOR_REGISTRY.register()
class PretrainedExtractor(Extractor):
    """Refined logits by a dense segmentation network of convolutions, as it is.

    From a config the model is of the base's architecture, with the weights of EXTRACTOR.WEIGHTS,
    or, where that is "", the base itself.

    Args:
        model: what has Detectron2's `backbone` and `sem_seg_head`, of the base's architecture.
            Frozen in place.
        base: the base, whose feature maps of the small image `model` reads.
        num_classes: K.
        precision: "float32", "bfloat16", or "auto", as autocast says around the call.

    Raises:
        ValueError: another kind of model; an unknown precision.
    """

    frozen = ("model.",)

    @configurable
    def __init__(
        self, *, model: nn.Module, base: nn.Module, num_classes: int, precision: str = "auto"
    ):
        super().__init__()
        if not (hasattr(model, "backbone") and hasattr(model, "sem_seg_head")):
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.NAME PretrainedExtractor needs a base with "
                f"Detectron2's backbone and sem_seg_head; {type(model).__name__} has not both"
            )
        check_precision(precision)
        self.model = model.requires_grad_(False).eval()
        self.precision = precision
        self.num_classes = num_classes
        own = model.backbone.size_divisibility
        self.divisor = own if own > 1 else 32  # the strides of nearly all networks divide it
        self._listener = _Listener(base)

    @classmethod
    def from_config(cls, cfg, base: nn.Module) -> dict:
        node, model = cfg.MODEL.SPARSE_REFINE.EXTRACTOR, base
        if node.WEIGHTS:
            own = cfg.clone()
            own.defrost()
            own.MODEL.SPARSE_REFINE.BASE.WEIGHTS = ""
            model = build_base(own)
            key = "MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS"
            load_base_weights(model, node.WEIGHTS, "", cfg.MODEL.ALLOW_PICKLE, key)
        return {
            "model": model,
            "base": base,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "precision": node.PRECISION,
        }

    def train(self, mode: bool = True) -> PretrainedExtractor:
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, selection: Selection) -> torch.Tensor:
        """Refined logits (P,K).

        Raises:
            ValueError: another number of classes, or another stride.
            UnsupportedOperation: the network is not of convolutions alone, or not the base's.
        """
        sites, model = selection.sites, self.model
        mean, std = model.pixel_mean.flatten(), model.pixel_std.flatten()
        pixels = (selection.pixels() - mean) / std  # (P,3)
        parts = zip(sites.split(pixels), sites.by_image(), sites.sizes, selection.contexts)
        with autocast(self.precision, pixels.device.type):
            logits = [
                self._of_image(rgb, yx, size, self._listener.trace(context))
                for rgb, yx, size, context in parts
                if len(yx)
            ]
        return torch.cat([selection.coarse[:0], *logits])

    def _of_image(self, rgb, yx, size: tuple[int, int], trace: Trace) -> torch.Tensor:
        padded = tuple(-(-n // self.divisor) * self.divisor for n in size)
        scale = tuple(small / full for small, full in zip(trace.size, size))
        resolutions = Resolutions(yx, size, padded, scale)
        image = SiteTensor(rgb, resolutions.at(1), resolutions, trace.from_start())
        features = self.model.backbone(image)
        scores = self.model.sem_seg_head(features)[0]
        if scores.rows.shape[1] != self.num_classes or scores.cells.stride != 1:
            raise ValueError(
                f"PretrainedExtractor: {type(self.model.sem_seg_head).__name__} returns "
                f"{scores.rows.shape[1]} classes at stride {scores.cells.stride}; "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES ({self.num_classes}) at stride 1 are needed"
            )
        return scores.rows.float()


class _Listener:
    """Records the feature maps of the base whenever it runs, and keeps those of an image as long as
    the tensor lives that the base was given.

    Args:
        base: called with Detectron2's list of {"image": (3,h,w)}; gets two hooks for good.
    """

    def __init__(self, base: nn.Module):
        self._base = base
        self._traces = WeakTensorKeyDictionary()
        self._recording: Recording | None = None
        base.register_forward_pre_hook(self._before)
        base.register_forward_hook(self._after, always_call=True)

    def trace(self, context: torch.Tensor) -> Trace:
        """Of the base on `context` (3,h,w); it runs if it has not (logits came from a cache)."""
        if context not in self._traces:
            height, width = context.shape[-2:]
            self._base([{"image": context, "height": height, "width": width}])
        return self._traces[context]

    def _before(self, base: nn.Module, args: tuple) -> None:
        self._stack = contextlib.ExitStack()
        # in inference mode tensors do not tell that they were changed in place
        self._stack.enter_context(torch.inference_mode(False))
        self._stack.enter_context(torch.no_grad())
        self._recording = self._stack.enter_context(Recording())

    def _after(self, base: nn.Module, args: tuple, output) -> None:
        self._stack.close()
        recording, self._recording = self._recording, None
        if output is None:  # it failed
            return
        for index, item in enumerate(args[0]):
            image = item["image"]
            self._traces[image] = recording.of_image(index, tuple(image.shape[-2:]))
