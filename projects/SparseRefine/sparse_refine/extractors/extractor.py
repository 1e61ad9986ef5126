# SPDX-License-Identifier: Apache-2.0
"""The contract of extractors: what they are handed, and what they give back.

Shapes: B images, K classes, (H, W) full size, (h, w) low size, P selected pixels of a batch.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fvcore.common.registry import Registry
from torch import nn

from ..sites import Sites, View
from ..sparse.precision import warn_of_slow_bfloat16

PRECISIONS = ("auto", "float32", "bfloat16")

EXTRACTOR_REGISTRY = Registry("SPARSE_REFINE_EXTRACTOR")
EXTRACTOR_REGISTRY.__doc__ = """
Extractors, by the name in MODEL.SPARSE_REFINE.EXTRACTOR.NAME: subclasses of `Extractor`. A class is
built as Class(cfg, base) with the frozen base, to whose feature maps it may listen, and called with
a `Selection`.
"""


@dataclass(frozen=True)
class Selection:
    """What every extractor is handed; it takes what it needs.

    `sites`: the selected pixels, P of the batch, in the pixels of `images`.
    `images`: (3,H,W) of each, values and channel order as they were given.
    `contexts`: (3,h,w) of each, the whole image at low resolution: the very tensors that the base
    was called with, where it was called.
    `coarse`: (P,K) logits of the base at the sites.
    `views`: where each of `images`, in training a crop, lies in its whole image.
    """

    sites: Sites
    images: Sequence[torch.Tensor]
    contexts: Sequence[torch.Tensor]
    coarse: torch.Tensor
    views: Sequence[View]

    def pixels(self) -> torch.Tensor:
        """(P,3) float: the images at the sites."""
        return self.sites.read(self.images).float()

    def position(self) -> torch.Tensor:
        """(P,2) float (y, x): the centres of the sites in the whole image, -1..1."""
        parts = [
            (yx + yx.new_tensor([view.top, view.left]) + 0.5) * (2 / yx.new_tensor(view.full)) - 1
            for yx, view in zip(self.sites.by_image(), self.views)
        ]
        return torch.cat(parts)


class Extractor(nn.Module, ABC):
    """Base class: `forward(selection) -> refined logits (P,K)`, float32.

    `frozen`: prefixes of the names of its tensors that training leaves as they are and that have
    their values when it has been built, as the base's have; a checkpoint need not hold them.
    """

    has_network = False  # the dense one of EXTRACTOR.MODEL, WEIGHTS and TRAINING
    frozen: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, selection: Selection) -> torch.Tensor:
        """Refined logits (P,K) of the selected pixels; (0,K) where there are none."""


def check_precision(precision: str) -> None:
    """
    Raises:
        ValueError: it is none of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION is {precision!r}: one of {PRECISIONS}"
        )


def autocast(precision: str, device: str):
    """What an extractor computes in, on a kind of device: "auto" leaves it as it is outside."""
    if precision == "auto":
        return contextlib.nullcontext()
    if precision == "bfloat16" and device == "cpu":
        warn_of_slow_bfloat16("MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION is 'bfloat16'")
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16")
