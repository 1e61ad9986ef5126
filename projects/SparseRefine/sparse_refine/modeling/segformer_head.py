# SPDX-License-Identifier: Apache-2.0
"""SegFormer's all-MLP head (Xie et al., arXiv 2105.15203, section 3.2), as MMSegmentation has it.

There each of the four projections is a 1x1 convolution with batch norm and ReLU. In the authors'
code and in `transformers` it is a linear layer alone: checkpoints of one do not fit the other.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from .fcn_head import ConcatHead, conv_norm_relu


@SEM_SEG_HEADS_REGISTRY.register()
class SegFormerHead(ConcatHead):
    """Each feature is projected to `conv_dims` channels and brought to the finest one's size; a 1x1
    convolution mixes all; the classifier follows. See `ConcatHead` for the other arguments.

    Args:
        norm: a name that Detectron2's `get_norm` knows.
    """

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, conv_dims: int, norm: str = "BN", **kwargs
    ):
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)
        self.project = nn.ModuleList(
            conv_norm_relu(input_shape[name].channels, conv_dims, norm) for name in self.in_features
        )
        self.fuse = conv_norm_relu(len(self.in_features) * conv_dims, conv_dims, norm)

    def layers(self, maps: list[torch.Tensor]) -> torch.Tensor:
        maps = [project(x) for project, x in zip(self.project, maps)]
        return self.fuse(self.concatenate(maps))
