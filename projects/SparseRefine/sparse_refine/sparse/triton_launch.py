# SPDX-License-Identifier: Apache-2.0
"""Launches of the kernels of `triton_kernels`: tile sizes, strides, and which variant is compiled.

From here nothing of triton's is called but the kernels: its `cdiv` takes 10 us from Python, and a
GPU that is done with a level in 30 waits for the next launch.
"""

from __future__ import annotations

import functools

import torch

from .kernel_map import TapGroup
from .norm import FrozenNorm
from .precision import tf32_allowed
from .triton_kernels import convolve_kernel, correlate_kernel, norm_relu_kernel

_PROGRAMS = 512  # of a weight gradient: a few for each multiprocessor of a large GPU


def convolve_(
    output: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    group: TapGroup,
    norm: FrozenNorm | None = None,
    bias: torch.Tensor | None = None,
    relu: bool = False,
    residual: torch.Tensor | None = None,
) -> None:
    """Write a group's rows of relu(norm(convolution) + bias) + residual to `output` (P_out,C_out).

    features (P_in,C_in), residual (P_out,C_out) and `output` are contiguous; weight (T,C_in,C_out)
    may have any strides. Each step after the convolution only where it is given.
    """
    n, (taps,) = group.outputs, group.taps
    if n == 0:
        return
    _, c_in, c_out = weight.shape
    half = features.element_size() == 2
    bm, bn, bk = _tiles(c_in, c_out, half, n >= 1 << 15)
    ordered, code = _code(taps)
    gamma, beta, mean, variance, eps = norm or (None, None, None, None, 0.0)
    with torch.cuda.device_of(features):  # a launch is on the current device
        convolve_kernel[-(-n // bm), -(-c_out // bn)](
            features, weight, group.table, group.rows, gamma, beta, mean, variance, bias, residual,
            output, n, len(features), c_in, c_out, *weight.stride(), code, eps,
            TAPS=len(taps), ORDERED=ordered, RELU=relu, EVEN=c_in % bk == 0,
            LARGE=_large(features, output), PRECISION=_precision(half), BM=bm, BN=bn, BK=bk,
            num_warps=8 if bn == 128 else 4, num_stages=3,
        )  # fmt: skip


def correlate_(
    sums: torch.Tensor, features: torch.Tensor, gradient: torch.Tensor, group: TapGroup
) -> None:
    """Write a weight gradient to `sums` (9,C_in,C_out), at the group's taps.

    The group is of the transposed map: a window i belongs to a row of features (P_in,C_in), which
    is multiplied by the rows of gradient (P_out,C_out) in the window, and summed over i.
    """
    n, (taps,) = group.outputs, group.taps
    if n == 0:
        sums[list(taps)] = 0
        return
    c_in, c_out = features.shape[1], gradient.shape[1]
    half = features.element_size() == 2
    bp, bm, bn = _gradient_tiles(c_in, c_out, half)
    tiles = -(-c_in // bm) * -(-c_out // bn)
    # sites are split among programs, whose parts are then added in a fixed order
    splits = min(-(-_PROGRAMS // (tiles * len(taps))), -(-n // (4 * bp)))
    per_split = -(-n // (splits * bp)) * bp
    splits = -(-n // per_split)
    shape = splits, len(taps), c_in, c_out
    parts = torch.empty(shape, dtype=torch.float32, device=sums.device)  # (splits,T,C_in,C_out)
    with torch.cuda.device_of(features):  # a launch is on the current device
        correlate_kernel[tiles, len(taps), splits](
            features, gradient, group.table, group.rows, parts,
            n, len(gradient), c_in, c_out, _code(taps)[1], per_split,
            TAPS=len(taps), LARGE=_large(features, gradient), PRECISION=_precision(half),
            BP=bp, BM=bm, BN=bn, num_warps=8 if bm * bn > 64 * 64 else 4, num_stages=3,
        )  # fmt: skip
    if len(taps) == 9:
        torch.sum(parts, 0, out=sums)
    else:
        for place, tap in enumerate(taps):
            torch.sum(parts[:, place], 0, out=sums[tap])


def try_one(device: int) -> None:
    """Compile a kernel and run it; raises whatever Triton's set-up raises where it is broken."""
    numbers = torch.ones(4, device=f"cuda:{device}")
    norm_relu_(numbers[None].clone(), numbers[None], FrozenNorm(*[numbers] * 4, 0.0))
    torch.cuda.synchronize(device)


def norm_relu_(output: torch.Tensor, features: torch.Tensor, norm: FrozenNorm) -> None:
    """Write relu(norm(features)) of contiguous features (P,C) to `output` (P,C), which may be some
    columns of a wider matrix."""
    n, columns = features.shape
    if n == 0:
        return
    bn = _power(columns, 128)
    bm = 4096 // bn
    with torch.cuda.device_of(features):  # a launch is on the current device
        norm_relu_kernel[-(-n // bm), -(-columns // bn)](
            features, *norm[:4], output,
            n, columns, output.stride(0), norm.eps, BM=bm, BN=bn,
        )  # fmt: skip


@functools.cache
def _tiles(c_in: int, c_out: int, half: bool, many: bool) -> tuple[int, int, int]:
    """Outputs, output channels and input channels that a program multiplies at once. Tuned on an
    H100; they fit the shared memory of smaller GPUs, 99 KB."""
    bn = _power(c_out, 128 if half else 64)
    bk = _power(c_in, 64 if half or c_in >= 256 else 32)
    return 128 if many and bn * bk <= 64 * 64 else 64, bn, bk


@functools.cache
def _gradient_tiles(c_in: int, c_out: int, half: bool) -> tuple[int, int, int]:
    """Sites, input channels and output channels that a program multiplies at once."""
    if not half:
        return 64, _power(c_in, 32), _power(c_out, 32)
    sites = 64 if min(c_in, c_out) <= 32 or max(c_in, c_out) > 128 else 32
    return sites, _power(c_in, 128 if c_in > 128 else 64), _power(c_out, 64)


def _precision(half: bool) -> str:
    """How float32 is multiplied: three TF32 products come close to its accuracy."""
    return "tf32" if half or tf32_allowed() else "tf32x3"


@functools.cache
def _code(taps: tuple[int, ...]) -> tuple[bool, int]:
    """Whether place k of a window has tap k; and the taps in four bits each, which the kernels
    read instead of a tensor where it does not."""
    code = sum(tap << (4 * place) for place, tap in enumerate(taps[:9]))
    return taps == tuple(range(len(taps))), code


def _power(channels: int, largest: int) -> int:
    """The smallest power of 2 that is at least `channels`, within 16 .. `largest`."""
    return max(16, min(largest, 1 << (channels - 1).bit_length()))


def _large(*tensors: torch.Tensor) -> bool:
    """Whether offsets into them need 64 bits."""
    return max(tensor.numel() for tensor in tensors) >= 1 << 31
