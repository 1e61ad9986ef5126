# SPDX-License-Identifier: Apache-2.0
"""MSCAN, the convolutional backbone of SegNeXt (Guo et al., arXiv 2209.08575), for Detectron2.

A stage is an overlapping downsampling convolution, then blocks of two residual branches: attention
whose weights are sums of strip convolutions of 7, 11 and 21 pixels, and a convolutional MLP.

Shapes: B images, C channels, (h,w) the map of the stage; all modules map (B,C,h,w) to (B,C,h,w).
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torchvision.ops import StochasticDepth

from .stages import StagedBackbone, stage_drop_paths

# name -> (channels a stage, blocks a stage); the paper's table 2
SIZES = {
    "t": ((32, 64, 160, 256), (3, 3, 5, 2)),
    "s": ((64, 128, 320, 512), (2, 2, 4, 2)),
    "b": ((64, 128, 320, 512), (3, 3, 12, 3)),
    "l": ((64, 128, 320, 512), (3, 5, 27, 3)),
}
MLP_RATIOS = (8, 8, 4, 4)
_STRIPS = (7, 11, 21)
_LAYER_SCALE = 1e-2  # initial factor on each residual branch


def add_mscan_config(cfg: CN) -> None:
    """Declare MODEL.MSCAN in `cfg`, in place."""
    # ---- SegNeXt's backbone ----------------------------------------------------------------------
    cfg.MODEL.MSCAN = CN()
    cfg.MODEL.MSCAN.SIZE = "t"  # t, s, b or l
    cfg.MODEL.MSCAN.DROP_PATH = 0.0  # stochastic depth in training, 0..1 (the paper: 0.1, l: 0.3)
    cfg.MODEL.MSCAN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # strides 4, 8, 16, 32


class StripAttention(nn.Module):
    """x * weights(x) (section 3.1, MSCA): a 5x5 depthwise convolution of x, plus three pairs of
    strip convolutions of that, mixed by a 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        self.local = _depthwise(channels, (5, 5))
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(channels, (1, size)), _depthwise(channels, (size, 1)))
            for size in _STRIPS
        )
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        local = self.local(x)
        total = local
        for strip in self.strips:
            total = total + strip(local)
        return self.mix(total) * x


class Attention(nn.Module):
    """x + f(x), f: 1x1, GELU, `StripAttention`, 1x1."""

    def __init__(self, channels: int):
        super().__init__()
        self.before = nn.Conv2d(channels, channels, 1)
        self.activation = nn.GELU()
        self.strip_attention = StripAttention(channels)
        self.after = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.after(self.strip_attention(self.activation(self.before(x))))


class Block(nn.Module):
    """x + s1 attention(norm(x)), then x + s2 mlp(norm(x)); s1, s2 are learnt, one for each channel
    (layer scale)."""

    def __init__(self, channels: int, mlp_ratio: int, drop_path: float):
        super().__init__()
        hidden = channels * mlp_ratio
        self.norm1 = nn.BatchNorm2d(channels)
        self.attention = Attention(channels)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            _depthwise(hidden, (3, 3)),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1),
        )
        self.scale1 = nn.Parameter(torch.full((channels, 1, 1), _LAYER_SCALE))
        self.scale2 = nn.Parameter(torch.full((channels, 1, 1), _LAYER_SCALE))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.scale1 * self.attention(self.norm1(x)))
        return x + self.drop_path(self.scale2 * self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """(B,C_in,H,W) -> (B,C,h,w): downsampling by `embed`, blocks, layer norm over the channels."""

    def __init__(self, embed: nn.Module, channels: int, mlp_ratio: int, drop_paths: list[float]):
        super().__init__()
        self.embed = embed
        self.blocks = nn.Sequential(*(Block(channels, mlp_ratio, rate) for rate in drop_paths))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.embed(x))
        # left in the norm's layout, which convolutions take as channels_last: 1.4 times faster
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MSCAN(StagedBackbone):
    """Input (B,3,H,W) -> {"res2" ... "res5"}, (B,C,H/s,W/s) at strides s 4, 8, 16, 32.

    Args:
        channels, depths: channels and number of blocks of each stage, see `SIZES`.
        mlp_ratios: hidden over outer channels of the MLP, of each stage.
        drop_path: stochastic depth of the last block, 0..1, see `stage_drop_paths`.
        out_features: names to return; stages after the last are not built.

    Raises:
        ValueError: an unknown feature name, or stages that do not fit together.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        *,
        mlp_ratios: tuple[int, ...] = MLP_RATIOS,
        drop_path: float = 0.0,
        out_features: tuple[str, ...] | list[str] = ("res2", "res3", "res4", "res5"),
    ):
        if not len(channels) == len(depths) == len(mlp_ratios):
            raise ValueError(
                f"MSCAN: {len(channels)} channels, {len(depths)} depths and {len(mlp_ratios)} MLP "
                "ratios: one each a stage is needed"
            )
        rates = stage_drop_paths(drop_path, depths)

        def stage(i: int) -> Stage:
            embed = _down(channels[i - 1], channels[i]) if i else _stem(channels[0])
            return Stage(embed, channels[i], mlp_ratios[i], rates[i])

        super().__init__(channels, stage, out_features, "MODEL.MSCAN.OUT_FEATURES")


def _depthwise(channels: int, size: tuple[int, int]) -> nn.Conv2d:
    padding = (size[0] // 2, size[1] // 2)
    return nn.Conv2d(channels, channels, size, padding=padding, groups=channels)


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), nn.BatchNorm2d(out_channels)
    )


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(*_down(3, channels // 2), nn.GELU(), *_down(channels // 2, channels))


@BACKBONE_REGISTRY.register()
def build_mscan_backbone(cfg, input_shape: ShapeSpec) -> MSCAN:
    """SegNeXt's MSCAN. Reads MODEL.MSCAN."""
    node = cfg.MODEL.MSCAN
    if node.SIZE not in SIZES:
        raise ValueError(f"MODEL.MSCAN.SIZE is {node.SIZE!r}: one of {list(SIZES)}")
    channels, depths = SIZES[node.SIZE]
    return MSCAN(channels, depths, drop_path=node.DROP_PATH, out_features=node.OUT_FEATURES)
