#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Several configs on the same images, taking turns, in one run: accuracy and seconds in one table.

    python projects/SparseRefine/tools/compare.py --output output/compare \\
        --arm dense_low C1.yaml --arm dense_full C2.yaml --arm sparse_refine C3.yaml [KEY VALUE ...]

Each config names its weights (MODEL.WEIGHTS); the data set is DATASETS.TEST of the first. KEY VALUE
pairs hold for every arm.
"""

import argparse

from sparse_refine.data import build_test_loader
from sparse_refine.engine import load_config, load_model
from sparse_refine.evaluation.comparison import Arm, compare, comparison_table


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--arm", nargs=2, action="append", metavar=("NAME", "CONFIG"), required=True
    )
    parser.add_argument("--output", required=True, help="folder for results.json and records")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every arm")
    args = parser.parse_args()
    configs = [load_config(path, args.opts) for _, path in args.arm]
    dataset = configs[0].DATASETS.TEST[0]
    arms = [
        Arm(name, load_model(cfg), build_test_loader(cfg, dataset))
        for (name, _), cfg in zip(args.arm, configs)
    ]
    rows = compare(arms, dataset, args.output, configs[0].TEST.BOUNDARY_DISTANCE)
    print(comparison_table(rows))


if __name__ == "__main__":
    main()
