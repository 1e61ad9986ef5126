# SPDX-License-Identifier: Apache-2.0
"""Base models that Detectron2 lacks. They know nothing of refinement."""

from .efficientnet_lite import EfficientNetLite, build_efficientnet_lite_fpn_backbone
from .module_segmentor import ModuleSegmentor

__all__ = ["EfficientNetLite", "ModuleSegmentor", "build_efficientnet_lite_fpn_backbone"]
