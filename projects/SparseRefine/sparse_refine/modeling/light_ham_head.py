# SPDX-License-Identifier: Apache-2.0
"""SegNeXt's head: global context by a low-rank factorisation of the feature map.

"Hamburger" (Geng et al., arXiv 2109.04553) between two 1x1 convolutions: the features X (D,N), D
channels of N = h w pixels, all non-negative, are approximated by a product of bases (D,R) and
coefficients (R,N), found for each image by multiplicative updates (Lee and Seung 2001).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from .fcn_head import ConcatHead, conv_norm_relu

_EPS = 1e-6


class NMF2d(nn.Module):
    """Non-negative matrix factorisation: features (B,D,h,w) >= 0 -> their rank-R approximation.

    The updates start at random bases. In training they are drawn at every call from torch's
    generator; in eval mode they are the same ones for every image, drawn once with `seed`, so that
    predictions are reproducible. (MMSegmentation's draws at every call in eval mode, too.)

    Gradients flow through all updates: with 6 or 7 of them that costs little.

    Args:
        channels: D.
        rank: R.
        train_steps, eval_steps: updates of bases and coefficients.
        seed: of the bases in eval mode.
    """

    def __init__(
        self,
        channels: int,
        rank: int = 16,
        train_steps: int = 6,
        eval_steps: int = 7,
        seed: int = 0,
    ):
        super().__init__()
        self.train_steps = train_steps
        self.eval_steps = eval_steps
        generator = torch.Generator().manual_seed(seed)
        bases = torch.rand((1, channels, rank), generator=generator, device="cpu")
        self.register_buffer("eval_bases", F.normalize(bases, dim=1), persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features.flatten(2)  # (B,D,N)
        bases = self.eval_bases.to(x.dtype).expand(len(x), -1, -1)  # (B,D,R)
        if self.training:
            bases = F.normalize(torch.rand_like(bases), dim=1)
        coefficients = torch.softmax(bases.transpose(1, 2) @ x, dim=1)  # (B,R,N)
        for _ in range(self.train_steps if self.training else self.eval_steps):
            coefficients = _update(coefficients, bases.transpose(1, 2), x)
            bases = _update(bases.transpose(1, 2), coefficients, x.transpose(1, 2)).transpose(1, 2)
        coefficients = _update(coefficients, bases.transpose(1, 2), x)
        return (bases @ coefficients).view_as(features)


def _update(factor: torch.Tensor, other: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One multiplicative update of `factor` (B,R,N), given `other` (B,R,D) and x (B,D,N): it stays
    non-negative, and the squared error of the product does not grow (Lee and Seung 2001)."""
    return factor * (other @ x) / ((other @ other.transpose(1, 2)) @ factor + _EPS)


@SEM_SEG_HEADS_REGISTRY.register()
class LightHamHead(ConcatHead):
    """SegNeXt's head: squeeze to `conv_dims` channels, Hamburger with a skip, one more 1x1, the
    classifier. All convolutions are 1x1. See `ConcatHead` for the other arguments.

    Args:
        norm: a name that Detectron2's `get_norm` knows; SegNeXt's is "GN", for which `conv_dims`
            must be a multiple of 32.
        rank, train_steps, eval_steps: see `NMF2d`.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dims: int,
        norm: str = "GN",
        rank: int = 16,
        train_steps: int = 6,
        eval_steps: int = 7,
        **kwargs,
    ):
        super().__init__(input_shape, conv_dims=conv_dims, **kwargs)
        self.squeeze = conv_norm_relu(self.in_channels, conv_dims, norm)
        self.ham_in = Conv2d(conv_dims, conv_dims, 1, activation=F.relu)
        self.ham = NMF2d(conv_dims, rank, train_steps, eval_steps)
        self.ham_out = Conv2d(
            conv_dims, conv_dims, 1, bias=not norm, norm=get_norm(norm, conv_dims)
        )
        self.align = conv_norm_relu(conv_dims, conv_dims, norm)

    def layers(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = self.squeeze(self.concatenate(maps))
        features = self.ham_in(x)
        with torch.autocast(x.device.type, enabled=False):  # sums over all pixels overflow fp16
            context = self.ham(features.float()).to(features.dtype)
        return self.align(F.relu(x + self.ham_out(context)))
