#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""A model at full resolution, at low resolution, and refined: seconds, multiply-adds and memory.

    python projects/SparseRefine/tools/benchmark.py --config-file C --height H --width W \\
        [--sites MASK] [--precision float32 bfloat16] [--preset paper base] [--batch 1] \\
        --json OUT [KEY VALUE ...]

Arms, each from an 8-bit image (3,H,W) to the output named here:
    dense_full     the base by itself on the full image: its scores interpolated to (K,H,W) as every
                   Detectron2 evaluator gets them, and their argmax, the label map (H,W)
    coarse         the image resized to the config's scale, and the base on it: logits (K,h,w)
    sparse_refine  the whole of SparseRefine with OUTPUT "labels": the label map (H,W), and the
                   record of what was refined. Its stages: see evaluation/stages.py; `other` is the
                   rest of its time.

How it is measured:
- Arms take turns, call by call. The first round is warm-up, but where each call takes more than
  two seconds, when there is more to come. Seconds are medians; a speedup is the median of the
  rounds' ratios. Stages are those of the median call.
- bfloat16 is autocast around the whole arm, the same for all. No gradients are recorded.
- With --batch a call is of several images, seconds are an image's. A GPU that waits for the
  launches of a single image's small steps shows there what it can do.
- Memory is the most that the first call holds above what was held before it; weights do not count.
- Multiply-adds: the base's by fvcore, attention's products counted (evaluation/counting.py); the
  extractor's 9 C_in C_out for each site of a 3x3 convolution, neighbours or none; the ensembler's
  linear layers.
- With --sites the selector runs and is timed, its answer is thrown away, and the pixels of MASK
  that are not 0 are refined instead: weights that were never trained can be timed at a real
  pattern. A mask of another size is resized, by nearest, if its shape is that of the image.

JSON: one object, or with several precisions or presets a list of them. All presets are timed in the
same rounds.
"""

from __future__ import annotations

import argparse
import json

import detectron2
import torch
from model_benchmark.arms import build_models, read_sites
from model_benchmark.records import measure, table
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
from sparse_refine.modeling.contract import refines
from sparse_refine.sparse import PRESETS
from sparse_refine.storage.files import check_not_an_input, write_text

PACKAGES = ("timm", "transformers", "MinkowskiEngine")
PRECISIONS = ("float32", "bfloat16")


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    keep_freed_memory()
    size = (args.height, args.width)
    options = ["MODEL.SPARSE_REFINE.OUTPUT", "labels", *args.opts]
    if args.channels_last:
        options += ["MODEL.CHANNELS_LAST", True]
    with errors_in_a_line(parser):
        check_not_an_input(args.json, [*config_files(args.config_file), args.sites])
        cfg = load_config(args.config_file, options, trust_code=args.trust_code)
    if not refines(cfg):
        parser.error(
            f"--config-file {args.config_file}: MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE!r}, and SparseRefine is what is timed"
        )
    if args.preset and cfg.MODEL.WEIGHTS:
        parser.error(
            f"--preset {' '.join(args.preset)}: MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} is of the one "
            "preset of its config; leave one of them out"
        )
    device = torch.device(cfg.MODEL.DEVICE)
    try:
        sites = None if args.sites is None else read_sites(args.sites, size).to(device)
    except ValueError as error:
        parser.error(f"--sites: {error}")

    torch.manual_seed(0)
    with errors_in_a_line(parser):
        models, random = build_models(cfg, args.preset, sites)
    facts = {**describe_machine(device, PACKAGES), "detectron2": detectron2.__version__}
    print(tabulate(facts.items(), tablefmt="plain"))
    if random:
        print(f"random weights in {' and '.join(random)}: seconds are real, predictions are not")
    common = {
        "config": args.config_file,
        "height": args.height,
        "width": args.width,
        "sites": args.sites,
        "random_weights": random,
        "channels_last": cfg.MODEL.CHANNELS_LAST,
        "scale": cfg.MODEL.SPARSE_REFINE.BASE.SCALE,
        "batch": args.batch,
        "repeats": args.repeats,
        "machine": facts,
    }
    records = measure(models, size, args.precision, args.repeats, args.batch)
    records = [{**common, **record} for record in records]
    content = records[0] if len(records) == 1 else records
    write_text(args.json, json.dumps(content, indent=1) + "\n")
    batch = f", {args.batch} images a call" if args.batch > 1 else ""
    print(f"\n{args.config_file}, {args.height} x {args.width}, x{common['scale']}{batch}:")
    print(table(records), flush=True)


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C")
    parser.add_argument("--height", type=positive, required=True, help="of the image, in pixels")
    parser.add_argument("--width", type=positive, required=True)
    parser.add_argument("--sites", metavar="MASK", help="image, not 0 where a pixel is refined")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument(
        "--preset", nargs="+", choices=list(PRESETS), help="of the extractor; else the config's"
    )
    parser.add_argument("--channels-last", action="store_true", help="MODEL.CHANNELS_LAST True")
    parser.add_argument("--batch", type=positive, default=1, help="images a call")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds")
    parser.add_argument("--json", type=output_file, required=True, metavar="OUT")
    add_trust_code(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, last of all")
    return parser


if __name__ == "__main__":
    main()
