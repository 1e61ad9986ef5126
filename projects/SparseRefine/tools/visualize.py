#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Where SparseRefine helped and where it hurt on a data set: one HTML report with its pictures.

    python projects/SparseRefine/tools/visualize.py --model rgbweed/sparse_refine --output R
    python projects/SparseRefine/tools/visualize.py --config-file C.yaml --weights W.safetensors \\
        --dataset rgbweed_test --output R --limit 3 --fractions 0.05 0.1 [KEY VALUE ...]

Writes R/index.html, to be opened in a browser, with pages (PNG) of the images that gained and lost
most, gains of classes, entropy against errors and budgets against accuracy; R/report.json has all
numbers. The folder can be moved and needs no network. It appears at the end, whole; one of an
earlier run is replaced.

Every budget of --fractions is one more prediction of each image.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm
from visual_report import pictures, plots
from visual_report.measure import ImageResult, measure
from visual_report.report import MARKER, RANKS, About, choose, write_report

from sparse_refine.commands.arguments import (
    add_model,
    config_files,
    errors_in_a_line,
    load_refining,
    positive,
)
from sparse_refine.commands.memory import keep_freed_memory
from sparse_refine.data import build_test_loader, read_labels
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.evaluation.comparison import IN_PROCESS
from sparse_refine.evaluation.metrics import remap_ignored
from sparse_refine.evaluation.results import results_table
from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.storage.files import check_not_an_input, check_replaceable, whole_folder

FRACTIONS = (0.02, 0.05, 0.1, 0.2)


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    wrong = [f for f in args.fractions if not 0 < f <= 1]
    if wrong:
        parser.error(f"--fractions {wrong[0]:g}: shares of the pixels, above 0, up to 1")
    keep_freed_memory()
    with errors_in_a_line(parser):
        plots.require_matplotlib()
        check_replaceable(args.output, MARKER)
        check_not_an_input(args.output, [*config_files(args.config_file), args.weights])
        predictor = load(args)
        name = predictor.cfg.DATASETS.TEST[0]
        loader = build_test_loader(predictor.cfg, name, keep=lambda dicts: dicts[: args.limit])
    cfg = predictor.cfg
    with whole_folder(args.output, MARKER) as folder, tempfile.TemporaryDirectory() as scratch:
        measured = measure(
            predictor.model,
            tqdm(loader, desc="predicting", unit="image", disable=args.quiet),
            name,
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            sorted(set(args.fractions)),
            cfg.TEST.BOUNDARY_DISTANCE,
            scratch,
        )
        about = About(
            model=args.model or f"{args.config_file}, {cfg.MODEL.WEIGHTS}",
            dataset=name,
            selector=describe_selector(predictor.model.selector),
            images=len(measured.images),
            of_images=len(DatasetCatalog.get(name)),
            boundary_distance=cfg.TEST.BOUNDARY_DISTANCE,
            class_names=list(MetadataCatalog.get(name).stuff_classes),
        )
        chosen = choose(measured.images, args.top, args.rank_by)
        todo = len(chosen.helped) + len(chosen.hurt)
        with tqdm(total=todo, desc="drawing", unit="page", disable=args.quiet) as bar:

            def show(image: ImageResult) -> pictures.View:
                bar.update()
                return predicted(predictor, loader.dataset[image.position])

            write_report(folder, about, measured, chosen, args.rank_by, show)
    print(results_table(measured.results, about.class_names))
    print(f"{args.output / 'index.html'}: open it in a browser")


def load(args) -> SparseRefinePredictor:
    """The model, its data set checked.

    Raises:
        ValueError, KeyError, FileNotFoundError: what is wrong with config, weights or data set.
    """
    options = [*IN_PROCESS, "MODEL.SPARSE_REFINE.OUTPUT", "labels", "DATASETS.TRAIN", ()]
    if args.dataset:
        options += ["DATASETS.TEST", (args.dataset,)]
    why = "this report is of what SparseRefine did. For a dense model: train_net.py --eval-only"
    predictor = load_refining(args, [*options, *args.opts], why)
    if not predictor.cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a data set with --dataset")
    check_datasets(predictor.cfg)
    return predictor


@torch.inference_mode()
def predicted(predictor: SparseRefinePredictor, inputs: dict) -> pictures.View:
    """An image of the loader's, predicted once more: pages are drawn when the order is known, and
    keeping all maps until then would take more memory than any data set leaves."""
    cfg = predictor.cfg
    classes, ignore = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    truth = remap_ignored(read_labels(inputs["sem_seg_file_name"]), classes, ignore)
    image = inputs["image"].permute(1, 2, 0).numpy()
    if cfg.INPUT.FORMAT == "BGR":
        image = image[..., ::-1]
    metadata = predictor.metadata
    return pictures.view(
        image.copy(),
        predictor.model([inputs])[0],
        truth,
        metadata.stuff_classes,
        metadata.stuff_colors,
    )


def describe_selector(selector: torch.nn.Module) -> str:
    """Its class and what it was built with."""
    values = {k: v for k, v in vars(selector).items() if isinstance(v, (int, float))}
    values.pop("training", None)
    return f"{type(selector).__name__} {', '.join(f'{k} {v:g}' for k, v in values.items())}".strip()


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    parser.add_argument("--dataset", metavar="NAME", help="else the first of DATASETS.TEST")
    parser.add_argument("--output", type=Path, required=True, metavar="R", help="folder to make")
    parser.add_argument("--limit", type=positive, metavar="N", help="its first N images only")
    parser.add_argument(
        "--top", type=positive, default=5, metavar="N", help="pages of either kind, at most; 5"
    )
    parser.add_argument(
        "--rank-by", choices=list(RANKS), default="miou", help="what helped and hurt is told by"
    )
    parser.add_argument(
        "--fractions", type=float, nargs="*", default=FRACTIONS, metavar="F",
        help=f"budgets to try, shares of the pixels; by default {' '.join(map(str, FRACTIONS))}",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, last of all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
