#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Several configs on the same images, taking turns, in one run: accuracy and seconds in one table.

    python projects/SparseRefine/tools/compare.py --output output/compare \\
        --arm dense_low C1.yaml W1 --arm dense_full C2.yaml W2 --arm sparse_refine C3.yaml W3 \\
        [--figure F.png] [KEY VALUE ...]

An arm is a name, a config and weights. The data set is DATASETS.TEST of the first config. KEY VALUE
pairs hold for every arm. The figure shows what the last arm, a SparseRefine, did to one image.
"""

import argparse

from sparse_refine.data import build_test_loader
from sparse_refine.engine import load_config, load_model
from sparse_refine.evaluation.comparison import IN_PROCESS, Arm, compare, comparison_table
from sparse_refine.memory import keep_freed_memory
from sparse_refine.visualization import draw


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--arm", nargs=3, action="append", metavar=("NAME", "CONFIG", "WEIGHTS"), required=True
    )
    parser.add_argument("--output", required=True, help="folder for results.json and records")
    parser.add_argument("--figure", help="file for the picture")
    parser.add_argument("--image", type=int, default=0, help="its place in the data set, from 0")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every arm")
    args = parser.parse_args()
    keep_freed_memory()
    configs = [
        load_config(path, [*args.opts, "MODEL.WEIGHTS", weights, *IN_PROCESS])
        for _, path, weights in args.arm
    ]
    dataset = configs[0].DATASETS.TEST[0]
    arms = [
        Arm(name, load_model(cfg), build_test_loader(cfg, dataset))
        for (name, _, _), cfg in zip(args.arm, configs)
    ]
    rows = compare(arms, dataset, args.output, configs[0].TEST.BOUNDARY_DISTANCE)
    print(comparison_table(rows))
    if args.figure:
        draw(args.figure, arms[-1].model, dataset, args.image, configs[-1].INPUT.FORMAT)


if __name__ == "__main__":
    main()
