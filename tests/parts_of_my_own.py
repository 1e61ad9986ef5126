# SPDX-License-Identifier: Apache-2.0
"""Parts as somebody outside of the package writes them; test_outside_parts.py copies this file."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.ensembler import ENSEMBLER_REGISTRY
from sparse_refine.extractors import EXTRACTOR_REGISTRY, Extractor
from sparse_refine.modeling import Segmentor
from sparse_refine.selector import SELECTOR_REGISTRY, Selector


def add_my_config(cfg):
    cfg.MODEL.MY = CfgNode()
    cfg.MODEL.MY.CHANNELS = 4  # of the base
    cfg.MODEL.MY.EVERY = 2  # rows from one that is selected to the next
    cfg.MODEL.MY.HIDDEN = 8  # width of the extractor
    cfg.MODEL.MY.SHARE = 0.5  # of the refined logits in the fused ones


@META_ARCH_REGISTRY.register()
class MyBase(Segmentor):
    @configurable
    def __init__(self, *, num_classes, channels, **options):
        super().__init__(size_divisibility=4, **options)
        self.net = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=4),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, num_classes, 1),
        )

    @classmethod
    def from_config(cls, cfg):
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "channels": cfg.MODEL.MY.CHANNELS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def scores(self, images):
        return self.net(images)


@SELECTOR_REGISTRY.register()
class RowSelector(Selector):
    """Every so many rows of the whole image, whatever the base says."""

    @configurable
    def __init__(self, *, every):
        super().__init__()
        self.every = every

    @classmethod
    def from_config(cls, cfg):
        return {"every": cfg.MODEL.MY.EVERY}

    def forward(self, logits, view):
        rows = (torch.arange(view.height, device=logits.device) + view.top) % self.every == 0
        return rows[:, None].expand(view.height, view.width).nonzero()


@EXTRACTOR_REGISTRY.register()
class PixelMLP(Extractor):
    @configurable
    def __init__(self, *, num_classes, hidden, base):
        super().__init__()
        self.given = [base]  # in a list: no part of this module
        self.layers = nn.Sequential(
            nn.Linear(5 + num_classes, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )

    @classmethod
    def from_config(cls, cfg, base):
        classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        return {"num_classes": classes, "hidden": cfg.MODEL.MY.HIDDEN, "base": base}

    def forward(self, selection):
        parts = [selection.pixels() / 255, selection.coarse.softmax(1), selection.position()]
        return self.layers(torch.cat(parts, dim=1))


@ENSEMBLER_REGISTRY.register()
class ShareEnsembler(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.share = cfg.MODEL.MY.SHARE

    def forward(self, coarse, refined):
        return (1 - self.share) * coarse + self.share * refined


@META_ARCH_REGISTRY.register()
class OwnRefine(SparseRefine):
    """The same under another name."""
