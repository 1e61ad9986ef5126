# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on a GPU in Triton kernels: gather and matrix product in one.

Nothing that is gathered is written to memory: a program reads the rows that its outputs meet, tap
by tap, straight into the product, and norm, ReLU and residual follow while the sums are in
registers. Weight gradients are a second kernel, a norm and ReLU before a convolution a third. Sums
are in float32 and in the same order on every run: no atomic additions.

Import this module only where Triton is installed: `fused.kernels_for` does.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from .kernel_map import TapGroup
from .norm import Statistics
from .precision import tf32_allowed

_PROGRAMS = 512  # of a weight gradient: a few for each multiprocessor of a large GPU


@triton.jit
def _scale_and_shift(gamma, beta, mean, variance, eps, column, wanted):
    """`Statistics.scale_and_shift` at some columns."""
    scale = tl.load(variance + column, mask=wanted, other=1.0).to(tl.float32)
    scale = tl.load(gamma + column, mask=wanted, other=0.0) * tl.rsqrt(scale + eps)
    shift = tl.load(mean + column, mask=wanted, other=0.0) * scale
    return scale, tl.load(beta + column, mask=wanted, other=0.0) - shift


@triton.jit(do_not_specialize=["n", "inputs", "code", "eps"])
def _convolve_kernel(
    x, w, table, rows, gamma, beta, mean, variance, bias, residual, out,
    n, inputs, c_in, c_out, w_tap, w_in, w_out, code, eps,
    TAPS: tl.constexpr, ORDERED: tl.constexpr, RELU: tl.constexpr, EVEN: tl.constexpr,
    LARGE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[row] = relu(norm(sum over taps of x[table[i, place]] @ w[tap]) + bias) + residual."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside, wanted = i < n, column < c_out
    blocks = tl.cdiv(c_in, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(TAPS * blocks):
        place = step // blocks
        channel = step % blocks * BK + tl.arange(0, BK)
        tap = place if ORDERED else ((code.to(tl.int64) >> (4 * place)) & 15).to(tl.int32)
        row = tl.load(table + i * TAPS + place, mask=inside, other=inputs)
        present, wanted_here = (row < inputs)[:, None], wanted[None, :]
        if LARGE:
            row = row.to(tl.int64)
        if not EVEN:
            present &= (channel < c_in)[None, :]
            wanted_here &= (channel < c_in)[:, None]
        a = tl.load(x + row[:, None] * c_in + channel[None, :], mask=present, other=0.0)
        at = tap * w_tap + channel[:, None] * w_in + column[None, :] * w_out
        b = tl.load(w + at, mask=wanted_here, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    if gamma is not None:
        scale, shift = _scale_and_shift(gamma, beta, mean, variance, eps, column, wanted)
        total = total * scale[None, :] + shift[None, :]
    if bias is not None:
        total += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    row = i
    if rows is not None:
        row = tl.load(rows + i, mask=inside, other=0)
    if LARGE:
        row = row.to(tl.int64)
    at = row[:, None] * c_out + column[None, :]
    if residual is not None:
        before = tl.load(residual + at, mask=inside[:, None] & wanted[None, :], other=0.0)
        total += before.to(tl.float32)
    tl.store(out + at, total, mask=inside[:, None] & wanted[None, :])


@triton.jit(do_not_specialize=["n", "inputs", "code", "per_split"])
def _correlate_kernel(
    x, g, table, rows, out,
    n, inputs, c_in, c_out, code, per_split,
    TAPS: tl.constexpr, LARGE: tl.constexpr, PRECISION: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[split, slot] = sum over the split's i of x[row of i] outer g[table[i, place]].

    The slot is the tap where there are all nine, else the place.
    """
    tile, place, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    across = tl.cdiv(c_out, BN)
    a_column = tile // across * BM + tl.arange(0, BM)
    b_column = tile % across * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    last = tl.minimum((split + 1) * per_split, n)
    for start in range(split * per_split, last, BP):
        i = start + tl.arange(0, BP)
        inside = i < last
        source = tl.load(table + i * TAPS + place, mask=inside, other=inputs)
        present = source < inputs
        row = i
        if rows is not None:
            row = tl.load(rows + i, mask=inside, other=0)
        if LARGE:
            source, row = source.to(tl.int64), row.to(tl.int64)
        mask = inside[None, :] & (a_column < c_in)[:, None]
        a = tl.load(x + row[None, :] * c_in + a_column[:, None], mask=mask, other=0.0)
        mask = present[:, None] & (b_column < c_out)[None, :]
        b = tl.load(g + source[:, None] * c_out + b_column[None, :], mask=mask, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    slot = place
    if TAPS == 9:
        slot = ((code.to(tl.int64) >> (4 * place)) & 15).to(tl.int32)
    at = ((split * TAPS + slot) * c_in + a_column[:, None]) * c_out + b_column[None, :]
    tl.store(out + at, total, mask=(a_column < c_in)[:, None] & (b_column < c_out)[None, :])


@triton.jit(do_not_specialize=["n", "eps"])
def _norm_relu_kernel(
    x, gamma, beta, mean, variance, out, n, columns, out_columns, eps,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out = relu(norm(x)), columns of a matrix whose rows are `out_columns` apart."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    wanted = column < columns
    scale, shift = _scale_and_shift(gamma, beta, mean, variance, eps, column, wanted)
    mask = (row < n)[:, None] & wanted[None, :]
    values = tl.load(x + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    values = tl.maximum(values.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
    tl.store(out + row[:, None] * out_columns + column[None, :], values, mask=mask)


# Below nothing of triton's is called but the kernels: its `cdiv` takes 10 us from Python, and a GPU
# that is done with a level in 30 waits for the next launch.


def convolve_(
    output: torch.Tensor,
    features: torch.Tensor,
    weight: torch.Tensor,
    group: TapGroup,
    statistics: Statistics | None = None,
    bias: torch.Tensor | None = None,
    relu: bool = False,
    residual: torch.Tensor | None = None,
) -> None:
    """Write a group's rows of relu(norm(convolution) + bias) + residual to `output` (P_out,C_out).

    features (P_in,C_in), residual (P_out,C_out) and `output` lie row by row in memory; weight
    (9,C_in,C_out) as it likes.
    """
    n, (taps,) = group.outputs, group.taps
    if n == 0:
        return
    _, c_in, c_out = weight.shape
    half = features.element_size() == 2
    bm, bn, bk = _tiles(c_in, c_out, half, n >= 1 << 15)
    ordered, code = _code(taps)
    gamma, beta, mean, variance, eps = statistics or (None, None, None, None, 0.0)
    with torch.cuda.device_of(features):  # a launch is on the current device
        _convolve_kernel[-(-n // bm), -(-c_out // bn)](
            features, weight, group.table, group.rows, gamma, beta, mean, variance, bias, residual,
            output, n, len(features), c_in, c_out, *weight.stride(), code, eps,
            TAPS=len(taps), ORDERED=ordered, RELU=relu, EVEN=c_in % bk == 0,
            LARGE=_large(features, output), PRECISION=_precision(half), BM=bm, BN=bn, BK=bk,
            num_warps=8 if bn == 128 else 4, num_stages=3,
        )  # fmt: skip


def correlate_(
    sums: torch.Tensor, features: torch.Tensor, gradient: torch.Tensor, group: TapGroup
) -> None:
    """A weight gradient at the group's taps, to `sums` (9,C_in,C_out): over the windows i of the
    group, features (P_in,C_in) at row i of it, times the rows of gradient (P_out,C_out) that the
    window meets."""
    n, (taps,) = group.outputs, group.taps
    if n == 0:
        sums[list(taps)] = 0
        return
    c_in, c_out = features.shape[1], gradient.shape[1]
    half = features.element_size() == 2
    bp, bm, bn = _gradient_tiles(c_in, c_out, half)
    tiles = -(-c_in // bm) * -(-c_out // bn)
    splits = min(-(-_PROGRAMS // (tiles * len(taps))), -(-n // (4 * bp)))
    per_split = -(-n // (splits * bp)) * bp
    splits = -(-n // per_split)
    shape = splits, len(taps), c_in, c_out
    parts = torch.empty(shape, dtype=torch.float32, device=sums.device)
    with torch.cuda.device_of(features):  # a launch is on the current device
        _correlate_kernel[tiles, len(taps), splits](
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
    """Compile a kernel and run it, which fails in as many ways as Triton's set-up can."""
    numbers = torch.ones(4, device=f"cuda:{device}")
    norm_relu_(numbers[None].clone(), numbers[None], Statistics(*[numbers] * 4, 0.0))
    torch.cuda.synchronize(device)


def norm_relu_(output: torch.Tensor, features: torch.Tensor, statistics: Statistics) -> None:
    """Write relu(norm(features)) of features (P,C) to `output` (P,C), columns of a matrix."""
    n, columns = features.shape
    if n == 0:
        return
    bn = _power(columns, 128)
    bm = 4096 // bn
    with torch.cuda.device_of(features):  # a launch is on the current device
        _norm_relu_kernel[-(-n // bm), -(-columns // bn)](
            features, *statistics[:4], output,
            n, columns, output.stride(0), statistics.eps, BM=bm, BN=bn,
        )  # fmt: skip


@functools.cache
def _tiles(c_in: int, c_out: int, half: bool, many: bool) -> tuple[int, int, int]:
    """Outputs, output channels and input channels of a step; tuned on an H100. They fit the shared
    memory of smaller GPUs, 99 KB."""
    bn = _power(c_out, 128 if half else 64)
    bk = _power(c_in, 64 if half or c_in >= 256 else 32)
    return 128 if many and bn * bk <= 64 * 64 else 64, bn, bk


@functools.cache
def _gradient_tiles(c_in: int, c_out: int, half: bool) -> tuple[int, int, int]:
    """Sites of a step, input and output channels."""
    if not half:
        return 64, _power(c_in, 32), _power(c_out, 32)
    sites = 64 if min(c_in, c_out) <= 32 or max(c_in, c_out) > 128 else 32
    return sites, _power(c_in, 128 if c_in > 128 else 64), _power(c_out, 64)


def _precision(half: bool) -> str:
    """How float32 is multiplied: three products of TF32 have nearly its accuracy."""
    return "tf32" if half or tf32_allowed() else "tf32x3"


@functools.cache
def _code(taps: tuple[int, ...]) -> tuple[bool, int]:
    """Whether tap k stands at place k; and four bits a place, which the kernels read in place of a
    tensor where it does not."""
    code = sum(tap << (4 * place) for place, tap in enumerate(taps[:9]))
    return taps == tuple(range(len(taps))), code


def _power(channels: int, largest: int) -> int:
    """The power of 2 from 16 to `largest` that holds so many channels, if one does."""
    return max(16, min(largest, 1 << (channels - 1).bit_length()))


def _large(*tensors: torch.Tensor) -> bool:
    """Whether positions in them do not fit 32 bits."""
    return max(tensor.numel() for tensor in tensors) >= 1 << 31
