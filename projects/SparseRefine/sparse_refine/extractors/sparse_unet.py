# SPDX-License-Identifier: Apache-2.0
"""The paper's extractor: a sparse residual UNet over the selected pixels (section 3.3)."""

from __future__ import annotations

import math

import torch
from detectron2.config import configurable
from torch import nn

from ..modeling.contract import check_pixel_statistics
from ..selector import entropy
from ..sparse import BACKENDS, PRESETS, Patches, SparseUNet, build_grid
from .extractor import EXTRACTOR_REGISTRY, Extractor, Selection, autocast, check_precision


def feature_channels(features: list[str] | tuple[str, ...], num_classes: int) -> int:
    """Input channels that named features make together.

    Raises:
        ValueError: an unknown name, one given twice, or none.
    """
    channels = {"rgb": 3, "probabilities": num_classes, "entropy": 1, "position": 2}
    if not features or len(set(features)) != len(features) or set(features) - set(channels):
        raise ValueError(
            f"MODEL.SPARSE_REFINE.EXTRACTOR.FEATURES is {list(features)}: one or more, each once, "
            f"of {list(channels)}"
        )
    return sum(channels[name] for name in features)


def site_features(
    names: list[str] | tuple[str, ...],
    rgb: torch.Tensor,
    coarse: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    """Named features side by side, in the order of their names -> float (P,C).

    Args:
        rgb: (P,3) normalised full-resolution pixels.
        coarse: (P,K) coarse logits.
        position: (P,2) (y, x) in the whole image, -1..1.
    """
    values = []
    for name in names:
        if name == "rgb":
            values.append(rgb)
        elif name == "probabilities":
            values.append(coarse.t().contiguous().softmax(0).t())  # short rows are slow
        elif name == "entropy":  # over ln K: 0..1 whatever K
            scale = math.log(max(2, coarse.shape[1]))
            values.append(entropy(coarse, dim=1)[:, None] / scale)
        else:
            values.append(position)
    return values[0] if len(values) == 1 else torch.cat(values, dim=1)


@EXTRACTOR_REGISTRY.register()
class SparseUNetExtractor(Extractor):
    """Sparse residual UNet over the selected pixels, then a linear classifier.

    Args:
        num_classes: K.
        pixel_mean, pixel_std: three numbers each, on the images' value range and order of channels.
        features: names of input features, see `site_features`.
        channels, blocks: of the UNet.
        norm: "BN" or "SyncBN".
        downsample: "floor" or "reach", see `sparse.Pyramid`.
        backend: "auto", "torch" or "minkowski".
        precision: "float32", "bfloat16", or "auto", as autocast says around the call.
        patch: side in pixels of the squares that the UNet's finest level works on, see `Patches`;
            1 is the paper's.
        residual: the network's output is added to the coarse logits. It starts at zero, and so as
            the coarse prediction.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
        features: list[str] | tuple[str, ...] = ("rgb",),
        channels: list[int] | tuple[int, ...] = PRESETS["base"][0],
        blocks: int = PRESETS["base"][1],
        norm: str = "BN",
        downsample: str = "floor",
        backend: str = "auto",
        precision: str = "auto",
        patch: int = 1,
        residual: bool = False,
    ):
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.BACKEND is {backend!r}: one of {BACKENDS}"
            )
        if downsample not in ("floor", "reach"):
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.DOWNSAMPLE_SITES is {downsample!r}: "
                "one of ('floor', 'reach')"
            )
        check_precision(precision)
        if patch < 1:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.PATCH is {patch}: a side in pixels, at least 1"
            )
        self.features = tuple(features)
        self.patch = patch
        self.residual = residual
        self.precision = precision
        self.downsample = downsample
        self.backend = backend
        inputs = feature_channels(features, num_classes) * patch**2
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, -1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, -1), False)
        self.unet = SparseUNet(inputs, channels, blocks, norm)
        self.classifier = nn.Linear(channels[0], num_classes * patch**2)
        if residual:
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    @classmethod
    def from_config(cls, cfg, base=None) -> dict:
        """`base` is not looked at: the network starts from the selected pixels alone."""
        node = cfg.MODEL.SPARSE_REFINE.EXTRACTOR
        mean, std = node.PIXEL_MEAN or cfg.MODEL.PIXEL_MEAN, node.PIXEL_STD or cfg.MODEL.PIXEL_STD
        check_pixel_statistics(mean, std, "MODEL.SPARSE_REFINE.EXTRACTOR")
        if node.PRESET == "custom":
            channels, blocks = tuple(node.CHANNELS), node.BLOCKS
        elif node.PRESET in PRESETS:
            channels, blocks = PRESETS[node.PRESET]
        else:
            raise ValueError(
                f"MODEL.SPARSE_REFINE.EXTRACTOR.PRESET is {node.PRESET!r}: one of "
                f"{[*PRESETS, 'custom']}"
            )
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "pixel_mean": mean,
            "pixel_std": std,
            "features": tuple(node.FEATURES),
            "channels": channels,
            "blocks": blocks,
            "norm": node.NORM,
            "downsample": node.DOWNSAMPLE_SITES,
            "backend": node.BACKEND,
            "precision": node.PRECISION,
            "patch": node.PATCH,
            "residual": node.RESIDUAL,
        }

    def forward(self, selection: Selection) -> torch.Tensor:
        sites, coarse = selection.sites, selection.coarse
        rgb = (selection.pixels() - self.pixel_mean) / self.pixel_std  # (P,3)
        features = site_features(self.features, rgb, coarse, selection.position())  # (P,C)
        features = features.to(next(self.unet.parameters()).dtype)  # of a half or double model
        patches = Patches(sites, self.patch) if self.patch > 1 else None
        if patches is not None:
            features, sites = patches.gather(features), patches.sites  # (N,patch*patch*C)
        grid = build_grid(self.backend, sites, self.unet.levels, self.downsample)
        with autocast(self.precision, features.device.type):
            logits = self.classifier(self.unet(features, grid)).float()  # (N,patch*patch*K)
        logits = logits if patches is None else patches.scatter(logits)  # (P,K)
        return logits + coarse if self.residual else logits
