# SPDX-License-Identifier: Apache-2.0
"""Any timm model that returns feature maps (`features_only=True`), as a Detectron2 backbone.

Features are named as those of Detectron2's ResNets: `res2` is the one of stride 4, `res3` of stride
8 and so on, so that IN_FEATURES of its FPN and heads stay what they are. A plain vision transformer
has many of one stride: `res4`, `res4_2`, `res4_3` ... in the order of its depth.
"""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import nn

from .trust import tensors_only


def add_timm_config(cfg: CN) -> None:
    """Declare MODEL.TIMM in `cfg`, in place."""
    # ---- backbones of timm -----------------------------------------------------------------------
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet50"  # a model of timm.list_models()
    cfg.MODEL.TIMM.PRETRAINED = False  # timm's weights, from its cache or the network
    # timm's numbers of the feature maps to return, from 0; [] for all of stride 4 and more. They
    # are called res2 (stride 4), res3 (stride 8) ...
    cfg.MODEL.TIMM.OUT_INDICES = []
    # More arguments of timm.create_model, as [name, value] pairs: [["drop_path_rate", 0.1]].
    cfg.MODEL.TIMM.OPTIONS = []


class TimmBackbone(Backbone):
    """The feature maps of a timm model: (B,3,H,W) -> {name: (B,C,H/s,W/s)}.

    Strides s and channels C are what timm says of the model; H and W must be multiples of the
    largest stride (`size_divisibility`).

    Args:
        name: a model of `timm.list_models()`.
        pretrained: load timm's weights, from its cache or the network.
        out_indices: timm's numbers of the feature maps, from 0; empty for all of stride 4 or more.
        options: more arguments of `timm.create_model`, say {"drop_path_rate": 0.1}.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm cannot build it.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        out_indices: tuple[int, ...] | list[int] = (),
        options: dict | None = None,
    ):
        super().__init__()
        self.model = _create(name, pretrained, tuple(out_indices), options or {})
        info = self.model.feature_info
        strides, channels = info.reduction(), info.channels()
        names = _feature_names(strides)
        # stride 2 only where it is asked for by its number
        self._names = [
            feature if out_indices or stride >= 4 else None
            for feature, stride in zip(names, strides)
        ]
        self._out_features = [feature for feature in self._names if feature is not None]
        self._out_feature_strides = dict(zip(names, strides))
        self._out_feature_channels = dict(zip(names, channels))
        # a map that is not returned may be resized inside of the model all the same (HRNet)
        self._size_divisibility = max(entry["reduction"] for entry in info.info)
        self._nhwc = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")  # Swin

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for name, feature in zip(self._names, self.model(x)):
            if name is not None:
                outputs[name] = feature.permute(0, 3, 1, 2) if self._nhwc else feature
        return outputs


def _create(name: str, pretrained: bool, out_indices: tuple[int, ...], options: dict) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"the backbone {name!r} needs `pip install timm`") from error
    if out_indices:
        options = {**options, "out_indices": out_indices}
    try:
        with tensors_only():  # options can name a checkpoint
            return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
    except (RuntimeError, TypeError, AssertionError, AttributeError, LookupError) as error:
        raise ValueError(
            f"MODEL.TIMM.NAME {name!r} with OUT_INDICES {list(out_indices)} and OPTIONS {options}: "
            f"timm {timm.__version__} cannot build it for features: {error}"
        ) from error


def _feature_names(strides: list[int]) -> list[str]:
    """res2 for stride 4, res3 for stride 8 ...; the second of a stride is res3_2."""
    names = []
    for i, stride in enumerate(strides):
        name, count = f"res{round(math.log2(stride))}", strides[: i + 1].count(stride)
        names.append(name if count == 1 else f"{name}_{count}")
    return names


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """A timm model. Reads MODEL.TIMM."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        pretrained=node.PRETRAINED,
        out_indices=node.OUT_INDICES,
        options=dict(node.OPTIONS),
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """A timm model under Detectron2's FPN. Reads MODEL.TIMM and MODEL.FPN."""
    return FPN(
        bottom_up=build_timm_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_hrnet_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """timm's HRNet as HRNetV2 for segmentation (Wang et al., arXiv 1908.07919): its four branches
    as they are, not widened for classification, and bilinear resizing between them, where timm
    takes the nearest pixel. Reads MODEL.TIMM; the features are res2 .. res5."""
    node = cfg.MODEL.TIMM
    backbone = TimmBackbone(
        node.NAME,
        pretrained=node.PRETRAINED,
        out_indices=(1, 2, 3, 4),
        options={**dict(node.OPTIONS), "feature_location": ""},
    )
    for module in backbone.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    return backbone
