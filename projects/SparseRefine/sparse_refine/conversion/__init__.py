# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects -> this one's names. Tables of rules, one file a family.

`python -m sparse_refine convert` is the program. In Python:

    tensors = read_tensors("segformer_b5.pth")
    state, report = convert(tensors, FORMATS["mmseg-segformer"].rules)
    compare(report, state, model.state_dict())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import mask2former, mmseg, refiner
from .reading import read_tensors
from .rules import Drop, Report, Rule, compare, convert


@dataclass(frozen=True)
class Format:
    """A checkpoint format.

    `rules`: from its names to ours, the first that matches counts. `target`: what the result loads
    into, for people. `part`: prefixes of the tensors of a SparseRefine model that it fills; "" is
    a base by itself.
    """

    rules: Sequence[Rule | Drop]
    target: str
    part: tuple[str, ...] = ("",)


FORMATS = {
    "mmseg-hrnet": Format(
        mmseg.HRNET, "build_hrnet_backbone (MODEL.TIMM.NAME hrnet_w48) and FCNHead"
    ),
    "mmseg-segformer": Format(mmseg.SEGFORMER, "build_mix_transformer_backbone and SegFormerHead"),
    "mmseg-segnext": Format(mmseg.SEGNEXT, "build_mscan_backbone and LightHamHead"),
    "mmseg-mask2former": Format(
        mask2former.MASK2FORMER, "FrozenMaskFormer, of the project Mask2Former with a Swin backbone"
    ),
    "mask2former": Format(
        mask2former.MASK2FORMER_DETECTRON2, "FrozenMaskFormer; its own checkpoints of any backbone"
    ),
    "sparserefine": Format(
        refiner.refiner_rules(),
        "the refiner, for MODEL.WEIGHTS with BASE.WEIGHTS beside it; EXTRACTOR: PRESET paper, "
        f"DOWNSAMPLE_SITES reach, PIXEL_MEAN {list(refiner.PIXEL_MEAN)}, "
        f"PIXEL_STD {list(refiner.PIXEL_STD)}",
        ("extractor.", "ensembler."),
    ),
}

__all__ = [
    "FORMATS",
    "Drop",
    "Format",
    "Report",
    "Rule",
    "compare",
    "convert",
    "read_tensors",
]
