# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on a GPU as Triton kernels: gather and matrix product in one.

Nothing that is gathered is written to memory: a program reads the rows that its outputs meet, tap
by tap, straight into the product, and norm, ReLU and residual follow while the sums are in
registers. Weight gradients are a second kernel, a norm and ReLU before a convolution a third. Sums
are in float32 and in the same order on every run: no atomic additions.

`triton_launch` calls them. Both are imported only where Triton is installed: by
`triton_support.kernels_for`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _scale_and_shift(gamma, beta, mean, variance, eps, column, wanted):
    """`FrozenNorm.scale_and_shift` at some columns."""
    scale = tl.load(variance + column, mask=wanted, other=1.0).to(tl.float32)
    scale = tl.load(gamma + column, mask=wanted, other=0.0) * tl.rsqrt(scale + eps)
    shift = tl.load(mean + column, mask=wanted, other=0.0) * scale
    return scale, tl.load(beta + column, mask=wanted, other=0.0) - shift


@triton.jit(do_not_specialize=["n", "inputs", "code", "eps"])
def convolve_kernel(
    x, w, table, rows, gamma, beta, mean, variance, bias, residual, out,
    n, inputs, c_in, c_out, w_tap, w_in, w_out, code, eps,
    TAPS: tl.constexpr, ORDERED: tl.constexpr, RELU: tl.constexpr, EVEN: tl.constexpr,
    LARGE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out[row of i] = relu(norm(sum over taps of x[table[i, place]] @ w[tap]) + bias) + residual.

    x (inputs,c_in), table (n,TAPS), rows (n,) or None, w (T,c_in,c_out) with its strides, residual
    and out (outputs,c_out). A program makes BM outputs of BN channels, BK input channels a step.
    """
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
        if LARGE:  # offsets in elements pass 2**31
            row = row.to(tl.int64)
        if not EVEN:
            present &= (channel < c_in)[None, :]
            wanted_here &= (channel < c_in)[:, None]
        a = tl.load(x + row[:, None] * c_in + channel[None, :], mask=present, other=0.0)  # (BM,BK)
        at = tap * w_tap + channel[:, None] * w_in + column[None, :] * w_out
        b = tl.load(w + at, mask=wanted_here, other=0.0)  # (BK,BN)
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
def correlate_kernel(
    x, g, table, rows, out,
    n, inputs, c_in, c_out, code, per_split,
    TAPS: tl.constexpr, LARGE: tl.constexpr, PRECISION: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[split, slot] = sum over the split's i of x[row of i] outer g[table[i, place]].

    x (outputs,c_in), g (inputs,c_out), out (splits,TAPS,c_in,c_out). The slot is the tap where
    there are all nine, else the place. A program makes (BM,BN) of a slot, BP sites a step.
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
        # a (BM,BP), b (BP,BN)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    slot = place
    if TAPS == 9:
        slot = ((code.to(tl.int64) >> (4 * place)) & 15).to(tl.int32)
    at = ((split * TAPS + slot) * c_in + a_column[:, None]) * c_out + b_column[None, :]
    tl.store(out + at, total, mask=(a_column < c_in)[:, None] & (b_column < c_out)[None, :])


@triton.jit(do_not_specialize=["n", "eps"])
def norm_relu_kernel(
    x, gamma, beta, mean, variance, out, n, columns, out_columns, eps,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out = relu(norm(x)), both (n,columns); rows of `out` are `out_columns` apart."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    wanted = column < columns
    scale, shift = _scale_and_shift(gamma, beta, mean, variance, eps, column, wanted)
    mask = (row < n)[:, None] & wanted[None, :]
    values = tl.load(x + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    values = tl.maximum(values.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
    tl.store(out + row[:, None] * out_columns + column[None, :], values, mask=mask)
