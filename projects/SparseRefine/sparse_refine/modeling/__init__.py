# SPDX-License-Identifier: Apache-2.0
"""Base models that Detectron2 lacks. They know nothing of refinement.

Importing this package registers the backbones, heads and meta-architectures below in Detectron2's
registries. Each family declares its keys beside its code, in a function add_*_config.
"""

from detectron2.config import CfgNode

from .building import add_building_config, build_model
from .efficientnet_lite import (
    EfficientNetLite,
    add_efficientnet_lite_config,
    build_efficientnet_lite_fpn_backbone,
)
from .fcn_head import FCNHead, add_head_config
from .folded_head import fold_head
from .frozen_mask_former import FrozenMaskFormer
from .hugging_face import HuggingFaceSegmentor, add_hugging_face_config
from .light_ham_head import LightHamHead
from .mix_transformer import (
    MixTransformer,
    add_mix_transformer_config,
    build_mix_transformer_backbone,
)
from .module_segmentor import ModuleSegmentor, add_module_config, as_segmentor
from .mscan import MSCAN, add_mscan_config, build_mscan_backbone
from .segformer_head import SegFormerHead
from .segmentor import Segmentor
from .timm_backbone import (
    TimmBackbone,
    add_timm_config,
    build_hrnet_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
)
from .token_merging import (
    add_token_merging_config,
    apply_token_merging,
    remove_token_merging,
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
    "add_modeling_config",
    "apply_token_merging",
    "as_segmentor",
    "build_efficientnet_lite_fpn_backbone",
    "build_hrnet_backbone",
    "build_mix_transformer_backbone",
    "build_model",
    "build_mscan_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "fold_head",
    "remove_token_merging",
]


def add_modeling_config(cfg: CfgNode) -> None:
    """Declare the keys of every family of bases in `cfg`, in place."""
    add_efficientnet_lite_config(cfg)
    add_timm_config(cfg)
    add_mscan_config(cfg)
    add_mix_transformer_config(cfg)
    add_head_config(cfg)
    add_hugging_face_config(cfg)
    add_module_config(cfg)
    add_token_merging_config(cfg)
    add_building_config(cfg)
