# SPDX-License-Identifier: Apache-2.0
"""What `benchmark.py` runs: the model once for each preset, all of them around one base."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from sparse_benchmark.cases import unet_products
from sparse_benchmark.masks import read_masks
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.base import base_has_weights
from sparse_refine.extractors import EXTRACTOR_REGISTRY
from sparse_refine.inference.loading import load_model
from sparse_refine.modeling.building import build_model
from sparse_refine.resampling import argmax_labels, repeat_nearest
from sparse_refine.selector import Selector
from sparse_refine.sites import Sites, View
from sparse_refine.sparse import Pyramid


class GivenSites(Selector):
    """Runs a selector, for the time that it takes, and answers with sites (P,2) of its own."""

    def __init__(self, selector: Selector, sites: torch.Tensor):
        super().__init__()
        self.selector = selector
        self.register_buffer("sites", sites, False)

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        self.selector(logits, view)
        return self.sites


def read_sites(path: str, size: tuple[int, int]) -> torch.Tensor:
    """(P,2) int64 (y, x) in raster order of the pixels of a mask that are not 0.

    A mask of another size than (H,W) = `size` is resized, by nearest, if it has its shape.

    Raises:
        ValueError: no such file, no mask, one without a site, or of another shape.
    """
    (mask,) = read_masks([path]).values()
    height, width = mask.shape
    if (height, width) != size and height * size[1] != width * size[0]:
        raise ValueError(
            f"{path} is {height} x {width} and the image {size[0]} x {size[1]} (height x width): "
            "the same shape is needed, of any size"
        )
    if (height, width) != size:
        mask = repeat_nearest(torch.from_numpy(mask), size).numpy()
    return torch.from_numpy(np.stack(mask.nonzero(), axis=1))


def build_models(
    cfg: CfgNode, presets: list[str] | None, sites: torch.Tensor | None
) -> tuple[dict[str, SparseRefine], list[str]]:
    """By preset, SparseRefine; and which parts have random weights.

    Without `presets` it is the config's own alone; an extractor without presets is listed by its
    name. They share all but the extractor.
    """
    random = [] if cfg.MODEL.WEIGHTS or base_has_weights(cfg) else ["the base"]
    if cfg.MODEL.WEIGHTS:
        model = load_model(cfg)
    else:
        random.append("the refiner")
        model = build_model(_with_preset(cfg, presets[0] if presets else None)).eval()
    if sites is not None:
        model.selector = GivenSites(model.selector, sites)
    node = cfg.MODEL.SPARSE_REFINE.EXTRACTOR
    own = node.PRESET if hasattr(model.extractor, "unet") else node.NAME
    models = {presets[0] if presets else own: model}
    for preset in presets[1:] if presets else ():
        extractor = EXTRACTOR_REGISTRY.get(node.NAME)
        models[preset] = (
            SparseRefine(
                coarse=model.coarse,
                selector=model.selector,
                extractor=extractor(_with_preset(cfg, preset), model.coarse.base),
                ensembler=model.ensembler,
                output="labels",
            )
            .to(model.device)
            .eval()
        )
    return models, random


def dense_labels(base: nn.Module, inputs: list[dict]) -> list[torch.Tensor]:
    """The base by itself: a label map (H,W) an image."""
    return [argmax_labels(output["sem_seg"]) for output in base(inputs)]


def refiner_multiply_adds(
    model: SparseRefine, sites: torch.Tensor, size: tuple[int, int]
) -> int | None:
    """Of extractor and ensembler at sites (P,2); None where the extractor is not of this project's.

    Neighbours that are not there count as if they were.
    """
    if not hasattr(model.extractor, "unet"):
        return None
    unet, levels = model.extractor.unet, model.extractor.unet.levels
    indexed = torch.cat([torch.zeros_like(sites[:, :1]), sites], dim=1)
    pyramid = Pyramid(Sites(indexed, [size]), levels, model.extractor.downsample)
    total = sum(n * k * m for n, k, m in unet_products(unet, pyramid))
    for part in (model.extractor.classifier, model.ensembler):
        linear = (m for m in part.modules() if isinstance(m, nn.Linear))
        total += len(sites) * sum(m.weight.numel() for m in linear)
    return total


def _with_preset(cfg: CfgNode, preset: str | None) -> CfgNode:
    if preset is None:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SPARSE_REFINE.EXTRACTOR.PRESET = preset
    cfg.freeze()
    return cfg
