# SPDX-License-Identifier: Apache-2.0
"""The sections of `benchmark_sparse.py`: which runs meet in which rounds."""

from __future__ import annotations

import functools

import numpy as np
import torch

from sparse_refine.sites import Sites
from sparse_refine.sparse import PRESETS, Pyramid, SparseUNet

from .cases import Case, unet_call, unet_products
from .masks import at_density, sites_of, tiled
from .peers import LAYER_ENGINES, MatmulPeer, make_peer, maps_call
from .records import Recorder, Run, case_table, growth_table

DENSITIES = (0.01, 0.05, 0.12, 0.3, 1.0)
SIDES = (1, 2, 4)  # tiles along each side
DENSE_LIMIT = 5e11  # operations; a dense convolution beyond takes longer than all else on a CPU
MAP_ENGINES = ("torch-fp32", "minkowski", "spconv")
GROWTH_CHANNELS = 64
GROWTH_UNET = "small"
INPUTS = 3  # channels of a UNet's input


def report(records: list[dict]) -> None:
    first = records[0]
    print(f"\n{first['op']}, {first['channels']} channels, {first['pass']}:")
    print(case_table(records), flush=True)


def pyramid_of(mask: np.ndarray, device: torch.device, levels: int, downsample: str) -> Pyramid:
    return Pyramid(Sites(sites_of(mask, device), [mask.shape]), levels, downsample)


def features_of(pyramid: Pyramid, level: int, channels: int) -> torch.Tensor:
    sites = pyramid.levels[level].sites
    return torch.randn(len(sites), channels, device=sites.device)


def convolution_run(engine, peer, case: Case, section: str, mask: np.ndarray) -> Run:
    channels = case.weight.shape[2 if case.kind == "up" else 1]
    product = engine.startswith("matmul")

    def build():
        if not product:
            peer.make_maps(case)
        call = peer.convolution(case)
        return call, None if product else lambda output: peer.read(output, case)

    levels = 1 if case.kind == "submanifold" else 2
    op = "conv3x3" if case.kind == "submanifold" else case.kind
    flops = case.forward_flops if product else case.flops
    return Run(section, op, engine, channels, levels, case.train, flops, mask, build)


def make_case(kind: str, channels: int, pyramid: Pyramid, train: bool) -> Case:
    inputs = channels * 2 if kind == "up" else channels
    outputs = channels * 2 if kind == "down" else channels
    features = features_of(pyramid, 1 if kind == "up" else 0, inputs)
    weight = torch.randn(9, inputs, outputs, device=features.device) / (9 * inputs) ** 0.5
    return Case(kind, weight, features, pyramid, train)


def convolutions(args, recorder: Recorder, masks: list[np.ndarray]) -> None:
    mask, device = masks[0], recorder.device
    levels = max(len(channels) for channels, _ in PRESETS.values())
    runs = []
    for engine in args.engines:
        if engine in MAP_ENGINES:
            pyramid = pyramid_of(mask, device, levels, "reach" if engine == "spconv" else "floor")
            call = maps_call(engine, pyramid)
            build = functools.partial(lambda call: (call, None), call)
            runs.append(Run("conv", "maps", engine, 1, levels, False, None, mask, build))
    if runs:
        report(recorder.take(runs))
    pyramid = pyramid_of(mask, device, 2, "reach")
    peers = {engine: make_peer(engine, pyramid) for engine in args.engines}
    for kind in ("submanifold", "down", "up"):
        for channels in args.channels if kind == "submanifold" else args.strided_channels:
            for train in (False, True)[: 1 + (channels in args.train_channels)]:
                case = make_case(kind, channels, pyramid, train)
                runs = [
                    convolution_run(engine, peer, case, "conv", mask)
                    for engine, peer in peers.items()
                    if engine != "dense" or device.type == "cuda" or within_limit(case, mask)
                ]
                report(recorder.take(runs))


def within_limit(case: Case, mask: np.ndarray) -> bool:
    """Whether the dense form of a convolution is worth its time; says so if not."""
    flops = case.flops // case.rows * mask.size // (1 if case.kind == "submanifold" else 4)
    if flops > DENSE_LIMIT:
        print(f"\nleft out: dense, with {flops / 1e9:.0f} GFLOP, from the following case")
    return flops <= DENSE_LIMIT


def unets(args, recorder: Recorder, masks: list[np.ndarray]) -> None:
    for name in args.unets:
        for train in (False, True):
            engines = [e for e in args.engines if e in LAYER_ENGINES or e.startswith("matmul")]
            runs = [unet_run(e, name, train, "unet", masks[0], recorder.device) for e in engines]
            report(recorder.take(runs))


def unet_run(engine: str, name: str, train: bool, section: str, mask: np.ndarray, device) -> Run:
    channels, blocks = PRESETS[name]
    pyramid = pyramid_of(mask, device, len(channels), "floor")
    with torch.device("meta"):
        shapes = unet_products(SparseUNet(INPUTS, channels, blocks), pyramid)
    product = engine.startswith("matmul")
    flops = sum(2 * n * k * m for n, k, m in shapes) * (3 if train and not product else 1)

    def build():
        if product:
            dtype = torch.bfloat16 if engine.endswith("bf16") else torch.float32
            return MatmulPeer(dtype).products(shapes, device), None
        torch.manual_seed(0)  # the same numbers for every engine
        features = features_of(pyramid, 0, INPUTS)
        unet = SparseUNet(INPUTS, channels, blocks).to(device)
        return unet_call(engine, unet, pyramid, features, train), lambda output: output

    return Run(
        section, f"unet-{name}", engine, channels[0], len(channels), train, flops, mask, build
    )


def growth(args, recorder: Recorder, masks: list[np.ndarray], section: str) -> None:
    if "torch-fp32" not in args.engines:
        print(f"\n{section}: left out, since it is of torch-fp32")
        return
    runs = []
    for mask in masks:
        pyramid = pyramid_of(mask, recorder.device, 2, "reach")
        case = make_case("submanifold", GROWTH_CHANNELS, pyramid, False)
        engines = ["torch-fp32", *(["dense"] if mask.all() and "dense" in args.engines else [])]
        for engine in engines:
            run = convolution_run(engine, make_peer(engine, pyramid), case, section, mask)
            runs.append(run)
    for mask in masks:
        runs.append(unet_run("torch-fp32", GROWTH_UNET, False, section, mask, recorder.device))
    print(f"\n{section}:\n{growth_table(recorder.take(runs, compare=False))}", flush=True)


def densities(args, recorder: Recorder, masks: list[np.ndarray]) -> None:
    growth(args, recorder, [at_density(masks[0], density) for density in DENSITIES], "density")


def sizes(args, recorder: Recorder, masks: list[np.ndarray]) -> None:
    growth(args, recorder, [tiled(masks, side) for side in SIDES], "size")


SECTIONS = {"conv": convolutions, "unet": unets, "density": densities, "size": sizes}
