# SPDX-License-Identifier: Apache-2.0
"""Read every image and label map of a data set as training will, and say what is wrong.

    python -m sparse_refine check --dataset rgbweed_train rgbweed_test
    python -m sparse_refine check --config-file C.yaml [KEY VALUE ...]
    python -m sparse_refine check --images DIR --labels DIR \\
        [--split FILE] [--classes K | --class-names soil weed crop] [--ignore 255]

A config's DATASETS.TRAIN and TEST are held against its class count and ignore value, and images
that are in both are found, whatever their names. Without a class count the labels' range is not
checked: the histogram shows what there is.

Faults stop training or falsify it; warnings want to be looked at.
Exit code: 0 no faults, 1 faults (with --strict warnings too), 2 a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from ..config import load_config
from ..data.checking import (
    Finding,
    Listing,
    check_dataset,
    list_folder,
    list_registered,
    shared_images,
)
from ..data.checking.report import dataset_table, findings_table, record
from ..data.reduce_zero_label import PREFIX as REDUCE_ZERO_LABEL
from ..evaluation.checks import check_datasets
from ..storage.files import check_not_an_input, write_text
from .arguments import add_trust_code, config_files, errors_in_a_line, output_file

FOLDER_OPTIONS = ("labels", "split", "classes", "class_names")


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    check_arguments(parser, args)
    with errors_in_a_line(parser):
        todo, findings = what_to_check(args)
        if args.json:
            check_not_an_input(args.json, inputs_of(args, [listing for listing, _, _ in todo]))
    checks = [
        check_dataset(listing, classes, ignore, args.workers, _bar(listing.name))
        for listing, classes, ignore in todo
    ]
    for first, second in combinations(checks, 2):
        findings += shared_images(first, second)
    for check in checks:
        print(dataset_table(check), end="\n\n")
    findings = [finding for check in checks for finding in check.findings] + findings
    print(findings_table(findings, args.show))
    if args.json:
        write_text(args.json, json.dumps(record(checks, findings), indent=1) + "\n")
    return int(any(finding.is_fault or args.strict for finding in findings))


def what_to_check(args) -> tuple[list[tuple[Listing, int | None, int | None]], list[Finding]]:
    """(listing, class count, ignore label) of each data set, and faults of the config."""
    if args.images:
        listing = list_folder(str(args.images), args.images, args.labels, args.split)
        listing.class_names = args.class_names
        classes = len(args.class_names) if args.class_names else args.classes
        return [(listing, classes, args.ignore)], []
    if args.dataset:
        listings = [list_registered(name) for name in dict.fromkeys(args.dataset)]
        return [(one, _count(one.class_names), one.ignore_label) for one in listings], []
    cfg = load_config(args.config_file, args.opts, trust_code=args.trust_code)
    findings = []
    try:
        check_datasets(cfg)
    except ValueError as error:
        findings.append(Finding("config", f"{args.config_file}: {error}"))
    for name in sorted(set(cfg.DATASETS.TRAIN) & set(cfg.DATASETS.TEST)):
        message = f"{args.config_file}: {name} stands in DATASETS.TRAIN and in DATASETS.TEST"
        findings.append(Finding("in two sets", message))
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    head = cfg.MODEL.SEM_SEG_HEAD
    return [
        (list_registered(name), head.NUM_CLASSES, head.IGNORE_VALUE) for name in names
    ], findings


def inputs_of(args, listings: list[Listing]) -> Iterator[str | Path]:
    """All files that are read."""
    yield from config_files(args.config_file)
    if args.split:
        yield args.split
    for listing in listings:
        for image, labels in listing.pairs:
            yield from (image, labels.replace(REDUCE_ZERO_LABEL, ""))


def _count(names: list[str] | None) -> int | None:
    return len(names) if names else None


def _bar(name: str):
    return lambda results, total: tqdm(
        results, desc=name, total=total, unit="pair", disable=not sys.stderr.isatty()
    )


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", nargs="+", metavar="NAME", help="registered data sets")
    source.add_argument("--config-file", metavar="C", help="yaml: its DATASETS.TRAIN and TEST")
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="folder of label maps")
    parser.add_argument("--split", type=Path, metavar="FILE", help="one image's name a line")
    parser.add_argument("--classes", type=int, metavar="K", help="labels are 0..K-1")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="K names instead")
    parser.add_argument("--ignore", type=int, default=255, help="label of no class; 255")
    parser.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that read"
    )
    parser.add_argument("--show", type=int, default=10, help="messages of each kind; 10")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="all of it, for programs")
    add_trust_code(parser)
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser


def check_arguments(parser: argparse.ArgumentParser, args) -> None:
    given = [key for key in FOLDER_OPTIONS if getattr(args, key) is not None]
    if args.images is None and given:
        parser.error(f"--{given[0].replace('_', '-')} belongs to --images")
    if args.images is not None and args.labels is None:
        parser.error("--images needs --labels")
    if args.classes is not None and args.class_names is not None:
        parser.error("--classes and --class-names say the same: give one of them")
    if args.classes is not None and args.classes < 1:
        parser.error(f"--classes {args.classes}: at least 1 is needed")
    if args.opts and not args.config_file:
        parser.error(f"{args.opts[0]}: KEY VALUE pairs belong to --config-file")
