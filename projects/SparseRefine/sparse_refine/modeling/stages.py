# SPDX-License-Identifier: Apache-2.0
"""What backbones of stages in a row share: features res2, res3 ... at strides 4, 8 ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from detectron2.modeling import Backbone
from torch import nn


class StagedBackbone(Backbone):
    """Input (B,3,H,W) -> {"res2": (B,C,H/4,W/4), "res3": (B,C,H/8,W/8) ...}.

    Args:
        channels: of each stage.
        stage: number of a stage, from 0 -> the module, (B,C_in,h,w) -> (B,C,h/s,w/s) with s 4 for
            the first and 2 for the others. Weights are drawn anew here, see `initialise`.
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
    """Stochastic depth of each block of each stage: 0 at the first, growing linearly to `last`."""
    blocks = sum(depths)
    rates = [last * i / max(1, blocks - 1) for i in range(blocks)]
    ends = [sum(depths[: i + 1]) for i in range(len(depths))]
    return [rates[end - depth : end] for end, depth in zip(ends, depths)]


def initialise(module: nn.Module) -> None:
    """Normal convolutions of variance 2 / fan-out, linear layers of 0.02; no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
