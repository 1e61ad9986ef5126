# SPDX-License-Identifier: Apache-2.0
"""Base models that Detectron2 lacks. They know nothing of refinement."""

from .efficientnet_lite import EfficientNetLite, build_efficientnet_lite_fpn_backbone
from .fcn_head import FCNHead
from .frozen_mask_former import FrozenMaskFormer
from .hugging_face import HuggingFaceSegmentor
from .light_ham_head import LightHamHead
from .mix_transformer import MixTransformer, build_mix_transformer_backbone
from .module_segmentor import ModuleSegmentor
from .mscan import MSCAN, build_mscan_backbone
from .segformer_head import SegFormerHead
from .segmentor import Segmentor
from .timm_backbone import (
    TimmBackbone,
    build_hrnet_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)

__all__ = [
    "MSCAN",
    "EfficientNetLite",
    "FCNHead",
    "FrozenMaskFormer",
    "HuggingFaceSegmentor",
    "LightHamHead",
    "MixTransformer",
    "ModuleSegmentor",
    "SegFormerHead",
    "Segmentor",
    "TimmBackbone",
    "build_efficientnet_lite_fpn_backbone",
    "build_hrnet_backbone",
    "build_mix_transformer_backbone",
    "build_mscan_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]
