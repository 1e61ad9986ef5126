# SPDX-License-Identifier: Apache-2.0
"""Segmentation heads on concatenated feature maps: what they share, and the FCN head.

Shapes: features (B,C_i,h_i,w_i), the finest (h_0,w_0); K classes; images (B,3,H,W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from .segmentor import pixel_cross_entropy


def add_head_config(cfg: CN) -> None:
    """Declare what these heads add to MODEL.SEM_SEG_HEAD in `cfg`, in place."""
    # ---- FCNHead, LightHamHead and SegFormerHead (modeling/) -------------------------------------
    # Share of the channels before the classifier that training sets to zero, 0..1.
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    cfg.MODEL.SEM_SEG_HEAD.NUM_CONVS = 1  # FCNHead: convolutions before the classifier, >= 1
    cfg.MODEL.SEM_SEG_HEAD.KERNEL_SIZE = 1  # FCNHead: their size, odd


class ConcatHead(nn.Module):
    """Base class of heads that bring features to the finest one's size and concatenate them.

    A subclass defines `layers`; the classifier and the loss are here.

    Args:
        input_shape: the features to use, see `Backbone.output_shape`; any order.
        num_classes: K.
        conv_dims: channels before the classifier.
        dropout: share of those channels that training sets to zero, 0..1.
        loss_weight: factor on the cross-entropy.
        ignore_value: the label that is no class.

    Raises:
        ValueError: no feature.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        dropout: float = 0.0,
        loss_weight: float = 1.0,
        ignore_value: int = 255,
    ):
        super().__init__()
        if not input_shape:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.IN_FEATURES names no feature that the backbone gives"
            )
        features = sorted(input_shape.items(), key=lambda item: item[1].stride)
        self.in_features = [name for name, _ in features]
        self.in_channels = sum(shape.channels for _, shape in features)
        self.common_stride = features[0][1].stride
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = Conv2d(conv_dims, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SEM_SEG_HEAD
        missing = sorted(set(node.IN_FEATURES) - set(input_shape))
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(node.IN_FEATURES)}, but the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} gives {list(input_shape)}: {missing} are not there"
            )
        return {
            "input_shape": {name: input_shape[name] for name in node.IN_FEATURES},
            "num_classes": node.NUM_CLASSES,
            "conv_dims": node.CONVS_DIM,
            "dropout": node.DROPOUT,
            "loss_weight": node.LOSS_WEIGHT,
            "ignore_value": node.IGNORE_VALUE,
            "norm": node.NORM,
        }

    def layers(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """The features, finest first -> (B,conv_dims,h_0,w_0)."""
        raise NotImplementedError

    @staticmethod
    def concatenate(maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (B,C_i,h_i,w_i) -> (B, sum of C_i, h_0, w_0), the size of the first."""
        size = maps[0].shape[-2:]
        return torch.cat(
            [
                maps[0],
                *(
                    F.interpolate(x, size=size, mode="bilinear", align_corners=False)
                    for x in maps[1:]
                ),
            ],
            dim=1,
        )

    def forward(self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None):
        """As Detectron2's SemSegFPNHead: in training, with labels (B,H,W), returns
        (None, {"loss_sem_seg"}); else (logits (B,K,H,W), {})."""
        x = self.layers([features[name] for name in self.in_features])
        logits = F.interpolate(
            self.predictor(self.dropout(x)).float(),
            scale_factor=self.common_stride,
            mode="bilinear",
            align_corners=False,
        )
        if not self.training:
            return logits, {}
        loss = pixel_cross_entropy(logits, targets, self.ignore_value)
        return None, {"loss_sem_seg": loss * self.loss_weight}


def conv_norm_relu(in_channels: int, out_channels: int, norm: str, kernel_size: int = 1) -> Conv2d:
    """Convolution (without bias where a norm follows), norm, ReLU; stride 1, the size stays.

    `norm`: a name that Detectron2's `get_norm` knows, "" for none; `kernel_size`: odd.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


@SEM_SEG_HEADS_REGISTRY.register()
class FCNHead(ConcatHead):
    """`num_convs` convolutions with norm and ReLU over the concatenated features, a 1x1 classifier.

    On the four branches of HRNet with one 1x1 convolution this is HRNetV2's head (arXiv 1908.07919,
    section 3.3). See `ConcatHead` for the other arguments.

    Args:
        num_convs: at least 1.
        kernel_size: of each of them, odd.
        norm: a name that Detectron2's `get_norm` knows.

    Raises:
        ValueError: no feature, no convolution, or an even size.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dims: int,
        num_convs: int = 1,
        kernel_size: int = 1,
        norm: str = "BN",
        **kwargs,
    ):
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)
        if num_convs < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CONVS is {num_convs} and KERNEL_SIZE {kernel_size}: at "
                "least one convolution with an odd size is needed"
            )
        widths = [self.in_channels, *[conv_dims] * num_convs]
        self.convs = nn.Sequential(
            *(conv_norm_relu(a, b, norm, kernel_size) for a, b in zip(widths, widths[1:]))
        )

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SEM_SEG_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "num_convs": node.NUM_CONVS,
            "kernel_size": node.KERNEL_SIZE,
        }

    def layers(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.convs(self.concatenate(maps))
