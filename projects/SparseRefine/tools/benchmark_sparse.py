#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Our sparse engines against others, against dense convolution, and against a matrix product.

    python projects/SparseRefine/tools/benchmark_sparse.py --masks DIR_OR_FILES --json OUT \\
        [--only conv unet density size] [--engines torch-fp32 minkowski ...] [--threads N]

Sections:
    conv     3x3 submanifold, stride-2 down (C to 2 C) and its transpose up, forward and train
    unet     the presets from sites and features to features, forward and train
    density  1 to 100 % of a frame, and dense conv2d of the whole frame
    size     the masks tiled to 4 and 16 times the frame

Engines: torch-fp32 and torch-bf16 (autocast) are ours; minkowski is our layers on MinkowskiEngine;
spconv, and on a GPU spconv-fp16, since it has no bfloat16 (its implicit product there, its native
pairs on a CPU); dense is conv2d of the whole frame in the faster memory format, on a CPU up to 500
GFLOP;
matmul and matmul-bf16 are matrix products (sites, 9 C_in) x (9 C_in, C_out), the roofline.

How it is measured:
- On a GPU float32 means TF32 for all of them: engines differ by up to 1e-3 there.
- Engines take turns after a warm-up; the median, the minimum and the maximum.
- Single convolutions are timed with their maps made, and with weights and features as a layer
  within a network has them; `maps` is the time to make them, for six levels. A UNet's time includes
  its maps. Down and up use the sites of mode "reach", which all engines can have; the UNets and
  `maps` those of the default "floor" (spconv's `maps`: "reach", the one it has).
- train is forward and backward of the mean of squares, gradients of input and weights (of a UNet:
  all parameters), without an optimiser's step.
- Operations are counted for all nine taps of each site (of the coarser level for down and up),
  neighbours or none, and for the 1x1 skips of a UNet; train counts three times forward. The
  roofline is the product of as many operations as forward's (so for train, too, whose matmul has a
  third of its operations), in the same precision and the same rounds.
- Memory is the most that one call, of a UNet the first, holds above what was held before it: its
  output, gradients, maps and inference's folded weights count; parameters and inputs do not.
  On a CPU it is the process's resident memory, files' pages too: good to some tens of MB.
- difference is the largest from the first engine's output, as a share of its largest value.
  spconv 2.3.8 has some rows wrong on more than one thread; its seconds are taken as they are.
- Convolutions, UNets and densities use the first mask; tiles take all masks in turn.

What was tried and is not used, on two AVX-512 cores and street_0 of the masks above (GFLOP/s in
float32 unless said; the machine was shared, so differences below a tenth mean little):
- Dense 3x3 convolution of occupied strips of 2, 4 or 6 image rows, gaps included: 80 against 94 by
  runs at 16 channels, 115 against 132 at 32, 116 against 123 at 64; bfloat16 at 64: 300 against
  322. It gathers less, and multiplies and picks more.
- Winograd F(2x2,3x3) on 2x2 tiles, transforms by additions, sixteen products: 65 against 136 at 32
  channels, 99 against 139 at 64, 137 against 154 at 128, and a little more only on the coarse
  levels, 184 against 159 at 256 and 215 against 188 at 512, for 16/9 of the weights. F(4x4) spends
  on its transforms what it saves, and errs by 5e-5.
- Nine products, one a tap, instead of one: 80 against 136 at 32 channels, 119 against 139 at 64.
  (With the sites alone that have the neighbour they win where channels are many and a fifth of
  the neighbours is absent, and are used there.)
- torch.compile of gather and product: 24 at 32 channels, after 23 s of compiling.
- Weights kept in oneDNN's blocked layout: 5 to 15 % more from 256 channels on, through operators
  that are private to torch, and a second copy of all weights.
- Folded weights kept between calls: 3 % of the `paper` UNet in bfloat16, for such a copy.
- A row of zeros appended to the features in place of zeros written after the gather: 3 of 33 ms at
  32 channels on the finest level; it is what deep levels do, where most windows lack a neighbour.
"""

from __future__ import annotations

import argparse
import gc
import os

import torch
from sparse_benchmark.masks import neighbours_present, read_masks, synthetic_mask
from sparse_benchmark.peers import ENGINES, why_absent
from sparse_benchmark.records import Recorder
from sparse_benchmark.sections import SECTIONS
from tabulate import tabulate

from sparse_refine.commands.arguments import output_file, positive
from sparse_refine.commands.memory import keep_freed_memory
from sparse_refine.evaluation.machine import describe_machine
from sparse_refine.sparse import PRESETS
from sparse_refine.storage.files import check_not_an_input

PACKAGES = ("MinkowskiEngine", "spconv")


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    keep_freed_memory()
    try:
        check_not_an_input(args.json, args.masks or ())
        masks = read_masks(args.masks) if args.masks else {"a generated mask": synthetic_mask()}
    except ValueError as error:
        parser.error(str(error))
    if args.threads:
        torch.set_num_threads(args.threads)
        # MinkowskiEngine and spconv bring threads of their own, which look here when first imported
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.manual_seed(0)

    facts = describe_machine(device, PACKAGES)
    print(tabulate(facts.items(), tablefmt="plain"))
    absent = {engine: why_absent(engine, device) for engine in args.engines}
    for engine in filter(absent.get, args.engines):
        print(f"left out: {engine}: {absent[engine]}")
    args.engines = [engine for engine in ENGINES if absent.get(engine, "not asked for") is None]
    for name, mask in masks.items():
        print(
            f"{name}: {mask.shape[1]} x {mask.shape[0]}, {int(mask.sum())} sites "
            f"({mask.mean():.2%}), {neighbours_present(mask):.1%} of neighbours present"
        )
    print(f"convolutions, UNets and densities: {next(iter(masks))}; sizes: tiles of all masks")

    machine = ", ".join(f"{name} {value}" for name, value in facts.items())
    recorder = Recorder(args.json, device, args.repeats, args.budget, machine)
    gc.freeze()  # what is here stays: Python's collector need not look through it in every case
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # as cuDNN's convolutions have it by default
    try:
        for section in args.only:
            SECTIONS[section](args, recorder, list(masks.values()))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        gc.unfreeze()


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--masks",
        nargs="+",
        help="images, not 0 where a site is, or folders of them; else one is generated",
    )
    parser.add_argument("--json", type=output_file, required=True, help="file for the records")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    for option, default, what in (
        ("--channels", [32, 64, 128, 256], "3x3 convolutions"),
        ("--strided-channels", [32, 64], "down and up, at the finer level"),
        ("--train-channels", [32, 64, 128], "those convolutions that are trained too"),
    ):
        parser.add_argument(option, nargs="+", type=positive, default=default, help=what)
    parser.add_argument("--unets", nargs="+", choices=list(PRESETS), default=list(PRESETS)[::-1])
    parser.add_argument("--repeats", type=positive, default=9, help="rounds of a case, at most")
    parser.add_argument(
        "--budget", type=float, default=4.0, help="seconds a case, then 3 rounds are enough"
    )
    parser.add_argument("--threads", type=positive, help="PyTorch's own choice if not given")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


if __name__ == "__main__":
    main()
