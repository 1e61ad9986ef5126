#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Several configs on the same images, taking turns, in one run: accuracy and seconds in one table.

    python projects/SparseRefine/tools/compare.py --output output/compare \\
        --arm dense_low C1.yaml W1 --arm dense_full C2.yaml W2 \\
        --arm sparse_refine C3.yaml W3 MODEL.SPARSE_REFINE.SELECTOR.FRACTION=0.06 \\
        [--seeds 0 1 2] [--oracle] [--figure F.png] [-- KEY VALUE ...]

An arm is a name, a config, weights, and what of the config is different in it; the pairs after "--"
hold for every arm. The data set is DATASETS.TEST of the first config.

With --seeds the comparison is made once for each, "{seed}" in an arm's config, weights and values
stands for it, and the table gives means and sample standard deviations. --oracle adds a row: the
last arm, a SparseRefine, with the truth at its selected pixels. The figure shows what the last arm
did to one image (with the last seed).
"""

import argparse
from pathlib import Path

from sparse_refine.commands.arguments import add_trust_code, config_files, errors_in_a_line
from sparse_refine.commands.memory import keep_freed_memory
from sparse_refine.config import load_config
from sparse_refine.data import build_test_loader
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.evaluation.comparison import (
    IN_PROCESS,
    Arm,
    compare,
    comparison_table,
    over_seeds,
    write_rows,
)
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.files import check_not_an_input
from sparse_refine.visualization.figure import draw


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--arm", nargs="+", action="append", metavar="ARG", required=True,
        help="NAME CONFIG WEIGHTS [KEY=VALUE ...]",
    )  # fmt: skip
    parser.add_argument("--output", required=True, help="folder for results.json and records")
    parser.add_argument("--seeds", nargs="+", metavar="S", help="values of {seed}")
    parser.add_argument("--oracle", action="store_true", help="the last arm with the truth, too")
    parser.add_argument("--figure", help="file for the picture")
    parser.add_argument("--image", type=int, default=0, help="its place in the data set, from 0")
    add_trust_code(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every arm")
    args = parser.parse_args(arguments)
    args.opts = args.opts[args.opts[:1] == ["--"] :]  # argparse leaves it in, or not, by version
    for arm in args.arm:
        if len(arm) < 3 or not all("=" in own for own in arm[3:]):
            parser.error(
                f"--arm {' '.join(arm)}: NAME CONFIG WEIGHTS [KEY=VALUE ...] is needed; "
                "KEY VALUE pairs for every arm come last, after --"
            )
    names = [arm[0] for arm in args.arm]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        parser.error(f"--arm {twice} is given twice: a name is a folder of --output")
    keep_freed_memory()

    output = Path(args.output)
    with errors_in_a_line(parser):
        for written in (output / "results.json", args.figure):
            if written:
                check_not_an_input(written, inputs(args))
        if not args.seeds:
            rows = run(args, output, None)
        else:
            rows = over_seeds([run(args, output / f"seed_{seed}", seed) for seed in args.seeds])
            write_rows(output / "results.json", rows)
    print(comparison_table(rows))


def inputs(args):
    """Configs and weights of all arms."""
    for _, *values in args.arm:
        for seed in args.seeds or [None]:
            config, weights = with_seed(values, seed)[:2]
            yield from (*config_files(config), weights)


def with_seed(values: list, seed) -> list:
    return values if seed is None else [value.replace("{seed}", seed) for value in values]


def run(args, output: Path, seed) -> list:
    """The comparison with one seed; its rows."""
    arms, dataset = [], None
    for number, (name, *values) in enumerate(args.arm, 1):
        path, weights, *own = with_seed(values, seed)
        own = [part for pair in own for part in pair.split("=", 1)]
        options = [*args.opts, *own, "MODEL.WEIGHTS", weights, *IN_PROCESS, "DATASETS.TRAIN", ()]
        options += ["DATASETS.TEST", (dataset,)] if dataset else []
        cfg = load_config(path, options, trust_code=args.trust_code)
        check_datasets(cfg)
        if dataset is None:
            if not cfg.DATASETS.TEST:
                raise ValueError(f"DATASETS.TEST of {path} is empty: no images to compare on")
            dataset, distance = cfg.DATASETS.TEST[0], cfg.TEST.BOUNDARY_DISTANCE
            ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        oracle = args.oracle and number == len(args.arm)
        arms.append(Arm(name, load_model(cfg), build_test_loader(cfg, dataset), oracle))
    rows = compare(arms, dataset, output, distance, ignore)
    if args.figure:
        draw(args.figure, arms[-1].model, dataset, args.image, cfg.INPUT.FORMAT)
    return rows


if __name__ == "__main__":
    main()
