# SPDX-License-Identifier: Apache-2.0
"""The engines of `benchmark_sparse.py`, each with the same convolutions and UNets to offer.

A peer is made for one set of sites and keeps its maps. `convolution(case)` gives a call that
returns the engine's own output, and `read(output, case)` brings that to the order of the sites.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine.evaluation.timing import once
from sparse_refine.sites import Sites
from sparse_refine.sparse import Pyramid, build_grid
from sparse_refine.sparse.minkowski_engine import minkowski_available

from .cases import Case, LayerPeer, in_pass

ENGINES = (
    *("torch-fp32", "torch-bf16", "minkowski", "spconv", "spconv-fp16"),
    *("dense", "matmul", "matmul-bf16"),
)
LAYER_ENGINES = ENGINES[:3]  # those that our layers, and so the UNets, run on
PAIRS = 1 << 20  # random numbers that matrices repeat


def make_peer(engine: str, pyramid: Pyramid):
    """A peer by its name in ENGINES."""
    if engine.startswith("spconv"):
        return SpconvPeer(pyramid, torch.float16 if engine.endswith("fp16") else torch.float32)
    if engine == "dense":
        return DensePeer(pyramid)
    dtype = torch.bfloat16 if engine.endswith("bf16") else torch.float32
    if engine.startswith("matmul"):
        return MatmulPeer(dtype)
    return LayerPeer(engine, pyramid)


def why_absent(engine: str, device: torch.device) -> str | None:
    """Why an engine cannot be used here; None where it can."""
    if engine == "minkowski" and not minkowski_available(cuda=device.type == "cuda"):
        return f"MinkowskiEngine is not installed, or not compiled for {device.type}"
    if engine == "spconv-fp16" and device.type != "cuda":
        return "spconv has half precision on a GPU alone"
    if engine.startswith("spconv"):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning)  # on torch.jit
                import spconv.pytorch  # noqa: F401
            from spconv.cppconstants import CPU_ONLY_BUILD
        except ImportError as error:
            return f"spconv is not installed ({error})"
        if device.type == "cuda" and CPU_ONLY_BUILD:
            return "spconv was compiled without CUDA"
    return None


class SpconvPeer:
    """spconv's gather, products and scatter on a CPU (`ConvAlgo.Native`, all that it has there),
    its implicit product on a GPU. Without padding its stride-2 sites are those of mode "reach".

    Version 2.3.8 is right on one thread; on two and more some rows, one in thousands and others in
    each call, lack a part of their sum.
    """

    def __init__(self, pyramid: Pyramid, dtype: torch.dtype = torch.float32):
        import spconv.pytorch as spconv
        from spconv import constants
        from spconv.core import ConvAlgo
        from spconv.pytorch import functional, ops

        self._dtype, self._implicit = dtype, None
        if pyramid.levels[0].sites.is_cuda:
            self._implicit = functional.implicit_gemm
            constants.SPCONV_ALLOW_TF32 = torch.backends.cuda.matmul.allow_tf32
        else:
            # its backward pass asks for a CUDA stream even where it has no use for one
            ops.get_current_stream = lambda: 0
        self._algorithm = ConvAlgo.MaskImplicitGemm if self._implicit else ConvAlgo.Native
        self._functions = {
            "submanifold": functional.indice_subm_conv,
            "down": functional.indice_conv,
            "up": functional.indice_inverse_conv,
        }
        sites = pyramid.levels[0].sites
        shape = (sites[:, 1:].amax(0) + 1).clamp(min=3).tolist()
        one = torch.zeros(len(sites), 1, device=sites.device)
        tensor = spconv.SparseConvTensor(one, sites.int(), shape, 1)
        self._sites, self._maps, self._order = [tensor.indices], {}, None
        with torch.no_grad():
            for level in range(len(pyramid.levels)):
                if level > 0 and min(tensor.spatial_shape) < 3:
                    break  # it refuses where not one window fits
                if level > 0:
                    tensor = self._first(spconv.SparseConv2d, tensor, "down", stride=2)
                    self._sites.append(tensor.indices)
                tensor = self._first(spconv.SubMConv2d, tensor, "submanifold")

    def _first(self, layer, tensor, kind: str, **options):
        """A convolution of one channel, which makes the map that others of its kind share."""
        key = f"{kind} {len(self._sites)}"
        layer = layer(1, 1, 3, bias=False, algo=self._algorithm, indice_key=key, **options)
        result = layer.to(tensor.features.device)(tensor)
        self._maps.setdefault(kind, result.indice_dict[key])  # of the finest level
        return result

    def make_maps(self, case: Case) -> None:
        """They are made with the peer."""

    def coarse_order(self, case: Case) -> torch.Tensor:
        """spconv's rows of level 1 in the order of ours."""
        if self._order is None:
            sites, coarse = self._sites[1].long(), case.pyramid.levels[1]
            order = coarse.position(*sites.unbind(1)).argsort()
            if not torch.equal(sites[order], coarse.sites):
                raise RuntimeError(f"spconv has {len(sites)} coarse sites, we have {coarse.count}")
            self._order = order
        return self._order

    def convolution(self, case: Case):
        _, inputs, outputs = case.weight.shape
        weight = case.weight.permute(2, 0, 1).reshape(outputs, 3, 3, inputs).contiguous()
        weight = nn.Parameter(weight.to(self._dtype), requires_grad=case.train)
        features = case.features.to(self._dtype, copy=True)
        if case.kind == "up":
            features[self.coarse_order(case)] = case.features.to(self._dtype)
        features.requires_grad_(case.train)
        maps = self._maps["submanifold" if case.kind == "submanifold" else "down"]
        rows = len(self._sites[1 if case.kind == "down" else 0])
        if self._implicit is not None:
            ways = [
                (getattr(maps, f"pair_{way}"), getattr(maps, f"pair_mask_{way}_splits"))
                + (getattr(maps, f"mask_argsort_{way}_splits"),)
                for way in (("bwd", "fwd") if case.kind == "up" else ("fwd", "bwd"))
            ]
            tables = [table for pair in zip(*ways) for table in pair]
            last = rows, maps.masks, case.train, case.kind == "submanifold"
            return in_pass(
                lambda: self._implicit(features, weight, *tables, *last),
                [weight, features],
                case.train,
            )
        maps = maps.indice_pairs, maps.indice_pair_num
        function = self._functions[case.kind]

        def forward():
            return function(features, weight, *maps, rows, self._algorithm)

        return in_pass(forward, [weight, features], case.train)

    def read(self, output: torch.Tensor, case: Case) -> torch.Tensor:
        return output[self.coarse_order(case)] if case.kind == "down" else output


class DensePeer:
    """`conv2d` of the whole frame, zero where it has no site; of both memory formats the faster."""

    def __init__(self, pyramid: Pyramid):
        self.size = pyramid.levels[0].sizes[0]

    def make_maps(self, case: Case) -> None:
        """There are none."""

    def convolution(self, case: Case):
        calls = [
            self._in_format(case, form) for form in (torch.channels_last, torch.contiguous_format)
        ]
        device = case.features.device
        return min(calls, key=lambda call: once(call, device)[0])

    def _in_format(self, case: Case, form: torch.memory_format):
        height, width = self.size
        if case.kind == "up":
            height, width = (height - 1) // 2, (width - 1) // 2
        frame = case.features.new_zeros(1, height, width, case.features.shape[1])
        _, y, x = case.pyramid.levels[1 if case.kind == "up" else 0].sites.unbind(1)
        frame[0, y, x] = case.features
        frame = frame.permute(0, 3, 1, 2).contiguous(memory_format=form).requires_grad_(case.train)
        weight = case.weight.unflatten(0, (3, 3))
        weight = weight.permute(2, 3, 0, 1) if case.kind == "up" else weight.permute(3, 2, 0, 1)
        weight = nn.Parameter(weight.contiguous(memory_format=form), requires_grad=case.train)

        def forward():
            if case.kind == "up":
                rest = [1 - side % 2 for side in self.size]
                return F.conv_transpose2d(frame, weight, stride=2, output_padding=rest)
            down = case.kind == "down"
            return F.conv2d(frame, weight, stride=1 + down, padding=1 - down)

        return in_pass(forward, [weight, frame], case.train)

    def read(self, output: torch.Tensor, case: Case) -> torch.Tensor:
        _, y, x = case.pyramid.levels[1 if case.kind == "down" else 0].sites.unbind(1)
        return output[0, :, y, x].t()


class MatmulPeer:
    """The matrix product of as many operations as forward has, which no engine can be much faster
    than. In rounds of training too: the backward pass consists of products of the same size."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def convolution(self, case: Case):
        taps, inputs, outputs = case.weight.shape
        return self.products([(case.rows, taps * inputs, outputs)], case.weight.device)

    def products(self, shapes: list[tuple[int, int, int]], device: torch.device):
        """A call of the products (n,k) x (k,m) one after another."""
        left = _numbers(max(n * k for n, k, _ in shapes), self.dtype, device)
        right = _numbers(max(k * m for _, k, m in shapes), self.dtype, device)

        def call():
            for n, k, m in shapes:
                torch.mm(left[: n * k].view(n, k), right[: k * m].view(k, m))

        return call


def _numbers(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    some = torch.randn(min(count, PAIRS), device=device).to(dtype)
    return some.repeat(-(-count // len(some)))


def maps_call(engine: str, pyramid: Pyramid):
    """A call that makes the maps of all levels, and convolves a single channel by each."""
    if engine == "spconv":
        return lambda: SpconvPeer(pyramid)
    features = torch.zeros(pyramid.levels[0].count, 1, device=pyramid.levels[0].sites.device)
    weight = torch.zeros(9, 1, 1, device=features.device)

    @torch.no_grad()
    def call():
        sites, sizes = pyramid.levels[0].sites, pyramid.levels[0].sizes
        backend = "minkowski" if engine == "minkowski" else "torch"
        grid = build_grid(backend, Sites(sites, sizes), len(pyramid.levels))
        x, last = grid.enter(features), len(pyramid.levels) - 1
        for level in range(last + 1):
            x = grid.submanifold(x, weight, level)
            x = grid.down(x, weight, level) if level < last else x
        for level in reversed(range(last)):
            x = grid.up(x, weight, level)
        return grid.leave(x)

    return call
