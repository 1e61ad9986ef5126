# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of a dense model at an input size, counted by fvcore."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class _SemSeg(nn.Module):
    """A Detectron2 model with the interface that fvcore traces: a tensor in, a tensor out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        return self.model([{"image": image, "height": height, "width": width}])[0]["sem_seg"]


@torch.no_grad()
def multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Of a Detectron2 model that maps one image of (H,W) = `size` to `sem_seg` at that size.

    As fvcore counts: one for a multiplication with its addition, in convolutions, linear layers
    and all products of matrices, those of attention included; some for norms and interpolation;
    none for activations. Runs the model once.
    """
    device = next(model.parameters()).device
    image = torch.zeros(3, *size, dtype=torch.uint8, device=device)
    analysis = FlopCountAnalysis(_SemSeg(model), (image,))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
    analysis.set_op_handle("aten::baddbmm", _baddbmm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, which is for counting alone here
        return int(analysis.total())


def products_of(call: Callable[[], object]) -> tuple[int, object]:
    """Multiply-adds of the convolutions and matrix products that `call` makes, and what it returns.

    Counted while it runs, at the cost of a few microseconds an operation, where `multiply_adds`
    runs a model for it. What that counts beside them, norms and interpolation, is 1 to 2 % of a
    SegFormer.
    """
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to torch's own
    with FlopCounterMode(display=False, custom_mapping={attention: _attention_flops}) as counter:
        result = call()
    return counter.get_total_flops() // 2, result  # two operations a multiply-add


def _attention_flops(query, key, value, *args, **options) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _shape(value) -> list[int]:
    return value.type().sizes()


def _attention(inputs: list, outputs: list) -> int:
    """queries (...,L,E), keys (...,S,E), values (...,S,V): L x S products of E, and again of V."""
    query, key, value = map(_shape, inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _baddbmm(inputs: list, outputs: list) -> int:
    """c + a (B,n,k) @ b (B,k,m)."""
    left, right = map(_shape, inputs[1:3])
    return math.prod(left) * right[-1]
