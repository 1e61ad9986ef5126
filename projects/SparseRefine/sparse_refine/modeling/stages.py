# SPDX-License-Identifier: Apache-2.0
"""What backbones of successive stages share: features res2, res3 ... at strides 4, 8 ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from detectron2.modeling import Backbone
from torch import nn


class StagedBackbone(Backbone):
    """Input (B,3,H,W) -> {"res2": (B,C,H/4,W/4), "res3": (B,C,H/8,W/8) ...}.

    Args:
        channels: C of each stage.
        stage: makes the module of a stage, given its number from 0: (B,C_in,h,w) -> (B,C,h/s,w/s),
            s is 4 for the first and 2 for the others. Its weights are drawn here, see `initialise`.
        out_features: names to return; stages after the last are not built.
        key: config key of `out_features`, for messages.

    Raises:
        ValueError: an unknown feature name.
    """

    def __init__(
        self,
        channels: Sequence[int],
        stage: Callable[[int], nn.Module],
        out_features: Sequence[str],
        key: str,
    ):
        super().__init__()
        names = [f"res{i + 2}" for i in range(len(channels))]
        if not out_features or set(out_features) - set(names):
            raise ValueError(f"{key} is {list(out_features)}: one or more of {names}")
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(names)}
        self._out_feature_channels = dict(zip(names, channels))
        built = names[: names.index(self._out_features[-1]) + 1]
        self.stages = nn.ModuleDict({name: stage(i) for i, name in enumerate(built)})
        self.apply(initialise)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def stage_drop_paths(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth (Huang et al., arXiv 1603.09382) of each block of each stage: the share of
    images that skip a residual branch in training, from 0 growing linearly to `last`."""
    blocks = sum(depths)
    rates = [last * i / max(1, blocks - 1) for i in range(blocks)]
    ends = [sum(depths[: i + 1]) for i in range(len(depths))]
    return [rates[end - depth : end] for end, depth in zip(ends, depths)]


def initialise(module: nn.Module) -> None:
    """Draw a layer's weights from a normal distribution: convolutions with variance 2 / fan-out,
    linear layers with deviation 0.02. Biases are 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
