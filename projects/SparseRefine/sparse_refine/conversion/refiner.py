# SPDX-License-Identifier: Apache-2.0
"""The refiner of the paper's release (github.com/mit-han-lab/sparserefine) -> this project's.

The release's network is built of numbered containers around TorchSparse 2.1's layers:

    backbone.net.0                      stem
    backbone.net.1                      the UNet's first level, with the others inside of it
        .0 .2                             residual blocks of the encoder (.1 .3 add, no parameters)
        .4.1.0 .2 .3 .4 .6                norm, down, the next level, norm, up (.1 .5 are ReLUs)
        .6 .8                             residual blocks of the decoder
    backbone.net.2                      last norm
    classifier, ensembler.attn, ensembler.fuser

and a residual block is .0 the skip, .1.0 norm, .1.2 convolution, .1.3 norm, .1.5 convolution.
Lightning puts `model.` in front.

TorchSparse's convolutions are (taps,C_in,C_out), (C_in,C_out) for a 1x1, with coordinates (image,
y, x, 0); of an odd kernel it counts the taps with the first axis, y, fastest (its 2.1,
sparsemapping_cuda.cu). Here x is.

The release reads RGB images and then swaps red and blue on the way to MMCV's normalisation: its
network sees (b - 123.675) / 58.395, (g - 116.28) / 57.12, (r - 103.53) / 57.375. The converted stem
takes them in the order r, g, b; MODEL.SPARSE_REFINE.EXTRACTOR.PIXEL_MEAN and PIXEL_STD have to be
the ones below.
"""

from __future__ import annotations

import torch

from .rules import Drop, Rule

# of the converted refiner's pixels, for RGB images (see above); its base keeps its own
PIXEL_MEAN = (103.53, 116.28, 123.675)
PIXEL_STD = (57.375, 57.12, 58.395)

_NORM = "(weight|bias|running_mean|running_var|num_batches_tracked)"
_PREFIX = r"(?:model\.)?"


def refiner_rules(levels: int = 6, blocks: int = 2) -> tuple[Rule | Drop, ...]:
    """Rules for a UNet of `levels` levels with `blocks` residual blocks each on both ways; the
    release's size by default."""
    net, unet = rf"{_PREFIX}backbone\.net", "extractor.unet"
    rules = [
        Rule(rf"{net}\.0\.kernel", f"{unet}.stem.weight", _stem),
        Rule(rf"{net}\.2\.{_NORM}", rf"{unet}.last.norm.\1"),
    ]
    source = rf"{net}\.1"
    for level in range(levels):
        for block in range(blocks):
            rules += _block(rf"{source}\.{2 * block}", f"{unet}.encoders.{level}.{block}")
        if level == levels - 1:
            break
        inner = rf"{source}\.{2 * blocks}\.1"
        rules += [
            Rule(rf"{inner}\.0\.{_NORM}", rf"{unet}.before_down.{level}.norm.\1"),
            Rule(rf"{inner}\.2\.kernel", f"{unet}.downs.{level}.weight", _taps),
            Rule(rf"{inner}\.4\.{_NORM}", rf"{unet}.before_up.{level}.norm.\1"),
            Rule(rf"{inner}\.6\.kernel", f"{unet}.ups.{level}.weight", _taps),
        ]
        for block in range(blocks):
            first = 2 * blocks + 2  # after the encoder's pairs, the next level, the concatenation
            target = f"{unet}.decoders.{level}.{block}"
            rules += _block(rf"{source}\.{first + 2 * block}", target)
        source = rf"{inner}\.3"
    rules += [
        Rule(rf"{_PREFIX}classifier\.(weight|bias)", r"extractor.classifier.\1"),
        Rule(rf"{_PREFIX}ensembler\.attn\.([02])\.(weight|bias)", r"ensembler.gate.\1.\2"),
        Rule(rf"{_PREFIX}ensembler\.fuser\.([02])\.(weight|bias)", r"ensembler.head.\1.\2"),
    ]
    return tuple(rules)


def _block(source: str, target: str) -> list[Rule]:
    """A residual block."""
    return [
        Rule(rf"{source}\.0\.kernel", f"{target}.skip.weight", _transposed),
        Rule(rf"{source}\.1\.0\.{_NORM}", rf"{target}.act1.norm.\1"),
        Rule(rf"{source}\.1\.2\.kernel", f"{target}.conv1.weight", _taps),
        Rule(rf"{source}\.1\.3\.{_NORM}", rf"{target}.act2.norm.\1"),
        Rule(rf"{source}\.1\.5\.kernel", f"{target}.conv2.weight", _taps),
    ]


def _taps(kernel: torch.Tensor) -> tuple[torch.Tensor]:
    """(9,C_in,C_out), tap x * 3 + y -> tap y * 3 + x."""
    return (kernel.unflatten(0, (3, 3)).transpose(0, 1).flatten(0, 1),)


def _stem(kernel: torch.Tensor) -> tuple[torch.Tensor]:
    """`_taps`, and input channels b, g, r -> r, g, b."""
    if kernel.shape[1] != 3:
        raise RuntimeError(f"a stem of {kernel.shape[1]} input channels, not 3: RGB alone is known")
    return (_taps(kernel)[0].flip(1),)


def _transposed(kernel: torch.Tensor) -> tuple[torch.Tensor]:
    """(C_in,C_out) -> a linear layer's (C_out,C_in)."""
    return (kernel.t(),)
