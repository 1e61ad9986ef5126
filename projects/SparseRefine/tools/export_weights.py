#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""A training checkpoint -> a small file of weights: safetensors, without optimizer state.

    python projects/SparseRefine/tools/export_weights.py output/x/model_final.pth x.safetensors \\
        --half
    python projects/SparseRefine/tools/export_weights.py output/y/model_final.pth y.safetensors \\
        --half --drop coarse.base.

`--drop coarse.base.` leaves the frozen base out of a SparseRefine checkpoint; the config then names
the base's own file in MODEL.SPARSE_REFINE.BASE.WEIGHTS.
"""

import argparse
import os

from sparse_refine.commands.arguments import errors_in_a_line
from sparse_refine.storage.files import check_not_an_input
from sparse_refine.storage.weights import load_weights, save_weights


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", help=".pth or .safetensors")
    parser.add_argument("output", help=".safetensors")
    parser.add_argument("--half", action="store_true", help="floating point numbers as fp16")
    parser.add_argument("--drop", default=None, metavar="PREFIX", help="leave these names out")
    args = parser.parse_args(arguments)
    if not args.output.endswith(".safetensors"):
        parser.error(f"output is {args.output}: its name must end in .safetensors")
    with errors_in_a_line(parser):
        check_not_an_input(args.output, [args.checkpoint])
        export(args)


def export(args):
    """
    Raises:
        ValueError, FileNotFoundError: what is wrong with the checkpoint.
    """
    weights = load_weights(args.checkpoint)["model"]
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if args.drop is None or not name.startswith(args.drop)
    }
    if not kept:
        raise ValueError(f"every name in {args.checkpoint} begins with {args.drop}")
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    save_weights(kept, args.output, half=args.half)
    size = os.path.getsize(args.output) / 2**20
    print(f"{args.output}: {len(kept)} of {len(weights)} tensors, {size:.1f} MiB")


if __name__ == "__main__":
    main()
