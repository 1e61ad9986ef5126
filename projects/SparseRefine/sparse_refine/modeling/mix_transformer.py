# SPDX-License-Identifier: Apache-2.0
"""MiT, the transformer backbone of SegFormer (Xie et al., arXiv 2105.15203), for Detectron2.

Overlapping patches, no position embedding, and attention whose keys and values come from a smaller
map. Written here although `transformers` has it: the parameters of that package's SegFormer have
other names in each major version, and a checkpoint has to outlive them.

Shapes: B images, C channels, (h,w) the map of the stage, N = h w tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torchvision.ops import StochasticDepth

from .stages import StagedBackbone, stage_drop_paths

# name -> (channels a stage, blocks a stage); the paper's table 6
SIZES = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)  # how many times smaller, a side, the map of keys and values is
_MLP_RATIO = 4
_EPS = 1e-6  # of layer norms


def add_mix_transformer_config(cfg: CN) -> None:
    """Declare MODEL.MIX_TRANSFORMER in `cfg`, in place."""
    # ---- SegFormer's backbone --------------------------------------------------------------------
    cfg.MODEL.MIX_TRANSFORMER = CN()
    cfg.MODEL.MIX_TRANSFORMER.SIZE = "b0"  # b0 .. b5
    cfg.MODEL.MIX_TRANSFORMER.DROP_PATH = 0.0  # stochastic depth, 0..1 (the paper: 0.1)
    cfg.MODEL.MIX_TRANSFORMER.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # strides 4 .. 32


class ReducedAttention(nn.Module):
    """Multi-head attention of N tokens to a map that is `reduction` times smaller a side (section
    3.1, efficient self-attention): (B,N,C) -> (B,N,C)."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.reduce = self.norm = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=_EPS)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        source = x
        if self.reduce is not None:
            source = self.norm(_to_tokens(self.reduce(_to_map(x, size))))  # (B,N/reduction**2,C)
        query = self._split(self.query(x))  # (B,heads,N,C/heads)
        key, value = (self._split(part) for part in self.key_value(source).chunk(2, dim=2))
        context = F.scaled_dot_product_attention(query, key, value)
        return self.out(context.transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), (B,N,C) each. The MLP has a 3x3 depthwise
    convolution, which stands for the position embedding (section 3.1, Mix-FFN)."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float):
        super().__init__()
        hidden = channels * _MLP_RATIO
        self.norm1 = nn.LayerNorm(channels, eps=_EPS)
        self.attention = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=_EPS)
        self.fc1 = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), size))
        hidden = self.depthwise(_to_map(self.fc1(self.norm2(x)), size))
        return x + self.drop_path(self.fc2(F.gelu(_to_tokens(hidden))))


class Stage(nn.Module):
    """(B,C_in,H,W) -> (B,C,h,w): overlapping patches, blocks, layer norm.

    Args:
        patch, stride: of the convolution that makes patches, in pixels.
        heads, reduction: of the attention.
        drop_paths: stochastic depth of each block, 0..1.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        patch: int,
        stride: int,
        heads: int,
        reduction: int,
        drop_paths: list[float],
    ):
        super().__init__()
        self.embed = nn.Conv2d(in_channels, channels, patch, stride=stride, padding=patch // 2)
        self.embed_norm = nn.LayerNorm(channels, eps=_EPS)
        self.blocks = nn.ModuleList(Block(channels, heads, reduction, p) for p in drop_paths)
        self.norm = nn.LayerNorm(channels, eps=_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        size = x.shape[-2:]
        x = self.embed_norm(_to_tokens(x))
        for block in self.blocks:
            x = block(x, size)
        return _to_map(self.norm(x), size)


class MixTransformer(StagedBackbone):
    """Input (B,3,H,W) -> {"res2" ... "res5"}, (B,C,H/s,W/s) at strides s 4, 8, 16, 32.

    Args:
        channels, depths: channels and number of blocks of each stage, see `SIZES`.
        heads, reductions: of the attention of each stage.
        drop_path: stochastic depth of the last block, 0..1, see `stage_drop_paths`.
        out_features: names to return; stages after the last are not built.

    Raises:
        ValueError: an unknown feature name, or channels that the heads do not divide.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        *,
        heads: tuple[int, ...] = HEADS,
        reductions: tuple[int, ...] = REDUCTIONS,
        drop_path: float = 0.0,
        out_features: tuple[str, ...] | list[str] = ("res2", "res3", "res4", "res5"),
    ):
        if any(width % count for width, count in zip(channels, heads)):
            raise ValueError(f"MixTransformer: heads {heads} do not divide channels {channels}")
        rates = stage_drop_paths(drop_path, depths)

        def stage(i: int) -> Stage:
            return Stage(
                channels[i - 1] if i else 3,
                channels[i],
                patch=3 if i else 7,
                stride=2 if i else 4,
                heads=heads[i],
                reduction=reductions[i],
                drop_paths=rates[i],
            )

        super().__init__(channels, stage, out_features, "MODEL.MIX_TRANSFORMER.OUT_FEATURES")


def _to_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B,N,C) -> (B,C,h,w): the same memory, channels_last for torch."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def _to_tokens(x: torch.Tensor) -> torch.Tensor:
    """(B,C,h,w) -> (B,N,C)."""
    return x.flatten(2).transpose(1, 2)


@BACKBONE_REGISTRY.register()
def build_mix_transformer_backbone(cfg, input_shape: ShapeSpec) -> MixTransformer:
    """SegFormer's MiT. Reads MODEL.MIX_TRANSFORMER."""
    node = cfg.MODEL.MIX_TRANSFORMER
    if node.SIZE not in SIZES:
        raise ValueError(f"MODEL.MIX_TRANSFORMER.SIZE is {node.SIZE!r}: one of {list(SIZES)}")
    channels, depths = SIZES[node.SIZE]
    return MixTransformer(
        channels, depths, drop_path=node.DROP_PATH, out_features=node.OUT_FEATURES
    )
