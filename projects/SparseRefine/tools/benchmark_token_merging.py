#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What merging tokens in a model's attention saves: the same weights with and without, in turns.

    python projects/SparseRefine/tools/benchmark_token_merging.py --config-file C --height H \\
        --width W --json OUT [--segformer b5] [--dense] [--merging plain hq fast 2x2] \\
        [--head own folded] [--sites MASK] [--precision float32 bfloat16] [KEY VALUE ...]

Arms, for each kind of merging and of head, from an 8-bit image (3,H,W) to its label map (H,W):
    dense          the base, or the config's dense model, on the full image
    SparseRefine   the whole of it, its base on the small image; not with --dense or a dense config

"plain" merges nothing: the model as its library runs it, attention by scaled_dot_product_attention.
--segformer puts transformers' SegFormer of that size with random weights in place of the model: the
number of merged tokens does not depend on what they hold, so its seconds are real.

How it is measured:
- All arms take turns, call by call, in one process and share their weights. The first call of each
  is warm-up, but where all take more than two seconds, when there is more to come. --repeats rounds
  are made, fewer when --budget seconds are over, one at least. "x faster" is the median of the
  rounds' ratios to the first arm.
- "in attention" and "in head" are the seconds within those modules of the base, matching and layers
  included; "rest" is what is left.
- Multiply-adds of convolutions and matrix products, those of attention and of matching included;
  of the refiner as in benchmark.py.
- Memory is the most that the first call holds above what was held before it; weights do not count.
- bfloat16 is autocast around the whole arm.

--sites: as in benchmark.py. JSON: what was run, and a record an arm.
"""

from __future__ import annotations

import argparse
import json

import detectron2
import torch
from benchmark import PACKAGES, PRECISIONS
from model_benchmark import merging
from model_benchmark.arms import read_sites
from tabulate import tabulate

from sparse_refine.commands.arguments import (
    add_trust_code,
    config_files,
    errors_in_a_line,
    output_file,
    positive,
)
from sparse_refine.commands.memory import keep_freed_memory
from sparse_refine.config import load_config
from sparse_refine.evaluation.machine import describe_machine
from sparse_refine.modeling.mix_transformer import SIZES
from sparse_refine.modeling.token_merging import PRESETS
from sparse_refine.storage.files import check_not_an_input, write_text


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    keep_freed_memory()
    size = (args.height, args.width)
    options = ["MODEL.SPARSE_REFINE.OUTPUT", "labels", "MODEL.CHANNELS_LAST", args.channels_last]
    if args.segformer:
        options += merging.segformer_options(args.segformer)
    options += args.opts
    with errors_in_a_line(parser):
        check_not_an_input(args.json, [*config_files(args.config_file), args.sites])
        cfg = load_config(args.config_file, options, trust_code=args.trust_code)
    device = torch.device(cfg.MODEL.DEVICE)
    try:
        sites = None if args.sites is None else read_sites(args.sites, size).to(device)
    except ValueError as error:
        parser.error(f"--sites: {error}")

    torch.manual_seed(0)
    with errors_in_a_line(parser):
        model, base, random = merging.build(cfg, sites, args.dense)
    if args.sites is not None and model is None:
        parser.error("--sites: it is for SparseRefine, which is not timed here")
    facts = {**describe_machine(device, PACKAGES), "detectron2": detectron2.__version__}
    print(tabulate(facts.items(), tablefmt="plain"))
    if random:
        print(f"random weights in {' and '.join(random)}: seconds are real, predictions are not")
    variants = [(kind, head) for head in args.head for kind in args.merging]
    records = []
    for precision in args.precision:
        records += merging.measure(
            model, base, size, precision, variants, args.repeats, args.budget
        )
    content = {
        "config": args.config_file,
        "segformer": args.segformer,
        "height": args.height,
        "width": args.width,
        "sites": args.sites,
        "random_weights": random,
        "channels_last": cfg.MODEL.CHANNELS_LAST,
        "machine": facts,
        "arms": records,
    }
    write_text(args.json, json.dumps(content, indent=1) + "\n")
    name = f"SegFormer-{args.segformer.upper()} in " if args.segformer else ""
    print(f"\n{name}{args.config_file}, {args.height} x {args.width}:")
    print(merging.table(records), flush=True)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C")
    parser.add_argument("--segformer", choices=list(SIZES), help="in place of the config's model")
    parser.add_argument("--height", type=positive, required=True, help="of the image, in pixels")
    parser.add_argument("--width", type=positive, required=True)
    parser.add_argument("--dense", action="store_true", help="the base by itself alone")
    kinds = (merging.PLAIN, *PRESETS)
    parser.add_argument(
        "--merging", nargs="+", choices=kinds, default=list(kinds[:4]), help="the first is 1 x"
    )
    parser.add_argument(
        "--head", nargs="+", choices=merging.HEADS, default=["own"], help="MODEL.HUGGING_FACE."
        "FOLD_HEAD False, True"
    )  # fmt: skip
    parser.add_argument("--sites", metavar="MASK", help="image, not 0 where a pixel is refined")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--channels-last", action="store_true", help="MODEL.CHANNELS_LAST True")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds for them")
    parser.add_argument("--json", type=output_file, required=True, metavar="OUT")
    add_trust_code(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, last of all")
    return parser


if __name__ == "__main__":
    main()
