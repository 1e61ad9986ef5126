# SPDX-License-Identifier: Apache-2.0
"""A trained dense network in place of the sparse UNet: nothing is left to train.

The network runs at full resolution at the selected pixels alone. What it reads around them, of the
image as of every feature map, is what the base computed there on the downsampled image: a rough
copy, where a sparse network sees zeros. (Computing changed places of a feature map alone, and
taking the others from maps that were computed before, is Li et al.'s, NeurIPS 2022, arXiv
2211.02048; that the maps are a smaller image's is ours.)
"""

from __future__ import annotations

import torch
from torch import nn

from .extractor import EXTRACTOR_REGISTRY, autocast, check_precision
from .sparse_inference import Resolutions, SiteTensor, Trace


@EXTRACTOR_REGISTRY.register()
class PretrainedExtractor(nn.Module):
    """Refined logits by a dense segmentation network of convolutions, as it is.

    From a config (build.py) the model is of the base's architecture, with the weights of
    EXTRACTOR.WEIGHTS, or, where that is "", the base itself.

    Args:
        model: what has Detectron2's `backbone` and `sem_seg_head`, of the base's architecture.
            Frozen in place.
        num_classes: K.
        precision: "float32", "bfloat16", or "auto", as autocast says around the call.

    Raises:
        ValueError: another kind of model; an unknown precision.
    """

    reads_traces = True  # see SparseRefine.forward

    def __init__(self, *, model: nn.Module, num_classes: int, precision: str = "auto"):
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

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the pixels that the model wants."""
        return self.model.pixel_mean.flatten().tolist(), self.model.pixel_std.flatten().tolist()

    def train(self, mode: bool = True) -> PretrainedExtractor:
        super().train(mode)
        self.model.eval()
        return self

    @torch.no_grad()
    def forward(
        self,
        rgb: torch.Tensor,
        coarse: torch.Tensor,
        position: torch.Tensor,
        sites: torch.Tensor,
        sizes: list[tuple[int, int]],
        traces: list[Trace],
    ) -> torch.Tensor:
        """Refined logits (P,K) of the selected pixels of a batch, as `SparseUNetExtractor.forward`.

        Args:
            traces: an image each, of the base on the small image.

        Raises:
            ValueError: in training, there is nothing to train; or another number of classes.
            UnsupportedOperation: the network is not of convolutions alone, or not the base's.
        """
        if self.training:
            raise ValueError(
                "MODEL.SPARSE_REFINE.EXTRACTOR.NAME PretrainedExtractor is not trained: evaluate "
                "it (--eval-only), or train a SparseUNetExtractor"
            )
        counts = torch.bincount(sites[:, 0], minlength=len(sizes)).tolist()
        parts = zip(rgb.split(counts), sites[:, 1:].split(counts), sizes, traces)
        with autocast(self.precision, rgb.device.type):
            logits = [self._of_image(*part) for part in parts if len(part[0])]
        return torch.cat([coarse[:0], *logits])

    def _of_image(self, rgb, sites, size, trace: Trace) -> torch.Tensor:
        padded = tuple(-(-n // self.divisor) * self.divisor for n in size)
        scale = tuple(small / full for small, full in zip(trace.size, size))
        resolutions = Resolutions(sites, size, padded, scale)
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
