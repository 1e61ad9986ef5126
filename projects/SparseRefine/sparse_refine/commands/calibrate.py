# SPDX-License-Identifier: Apache-2.0
"""How many pixels to refine: accuracy against cost on your own images, and the yaml for your goal.

    python -m sparse_refine calibrate --model rgbweed/sparse_refine --images val/images \\
        --labels val/labels --keep-accuracy 0.95 --output output/calibration
    python -m sparse_refine calibrate --config-file C.yaml --weights W.safetensors \\
        --images photographs --seconds 1.5 --output output/calibration [KEY VALUE ...]

Goals, one of which is given:
  --fraction F        refine this mean share of the pixels
  --seconds S         an image takes at most S seconds, measured on this machine
  --keep-accuracy A   keep the share A of the largest gain in mIoU (needs labels)

Prints a table of what settings of the selector give, and writes OUTPUT/curve.png and
OUTPUT/calibrated.yaml, a leaf of the config for train_net.py and all other programs.

With --base-only there is no refiner yet: the threshold for a --fraction is found from the base's
weights (MODEL.SPARSE_REFINE.BASE.WEIGHTS), before training, which sees the selected pixels alone.
With labels it also prints what a refiner can reach at most: mIoU / boundary IoU with the truth at
the selected pixels, for each of --fractions and --scales; with --dense WEIGHTS, the checkpoint of a
dense model at full resolution (of EXTRACTOR.MODEL, by default of the base's architecture), also
with that model's answers there, and whether a refiner can be as accurate and faster.

--fit-temperature also fits MODEL.SPARSE_REFINE.BASE.TEMPERATURE (needs labels), one scalar that
brings the coarse probabilities closer to how often they are right. It matters for a threshold: in
nats it then says how often such pixels are wrong. It does not say how many there are: two bases on
rgbweed select 7 and 12 % of the pixels at 0.3 nats, and 10 and 19 % at their temperatures of 1.3
and 2.5; for a share that does not depend on the base use a budget, or --fraction. A budget hardly
notices a temperature: of a tenth of the pixels 98 and 93 % stayed the same. Fit it before the
refiner is trained, since refiner and gate read the coarse probabilities. The table is measured at
the new temperature: it shows what a refiner that was trained at another one gains or loses.

Use images that base and refiner were not trained on, and that no result is published on: on its
training images a base is surer than elsewhere, and a setting chosen on a test split is tuned to it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..base import base_has_weights, build_dense
from ..calibration import ceiling, curve, goals, report
from ..calibration.images import Images, dicts_of_folder
from ..calibration.kinds import Kind, kind_of, rounded
from ..config import load_config
from ..evaluation.checks import check_datasets
from ..evaluation.machine import device_name
from ..inference import model_zoo
from ..modeling.building import build_model
from .arguments import (
    check_refines,
    errors_in_a_line,
    load_refining,
)
from .calibrate_arguments import argument_parser, check, outputs
from .memory import keep_freed_memory

_DENSE_KEYS = ("MODEL.SPARSE_REFINE.EXTRACTOR.MODEL", "--dense")
NOTHING_TO_CALIBRATE = "only SparseRefine has something to calibrate"


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args(arguments)
    keep_freed_memory()
    with errors_in_a_line(parser):
        calibrate(args)


def calibrate(args: argparse.Namespace) -> None:
    check(args)
    leaf, plot = outputs(args)
    cfg, model = load(args)
    kind = kind_of(args.selector or cfg.MODEL.SPARSE_REFINE.SELECTOR.NAME)
    if args.dataset:
        dicts = DatasetCatalog.get(args.dataset)
    else:
        dicts = dicts_of_folder(cfg, args.images, args.labels)
    images = Images(cfg, dicts, args.limit, progress=not args.quiet)
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    if args.fit_temperature:
        fit = curve.sample_pixels(model, images.source("temperature"), len(images), classes).fit()
        model.coarse.temperature = rounded(fit.temperature)
        print(
            f"temperature {fit.temperature:.4g}: a label's negative log-likelihood is "
            f"{fit.before:.4f} nats at 1, {fit.after:.4f} at {fit.temperature:.4g}"
        )
    histogram = curve.count_uncertainty(model, images.source("uncertainty"), kind, classes)
    fractions = {*args.fractions, *([args.fraction] if args.fraction is not None else [])}
    if args.base_only:
        points = curve.points_of_base(histogram, kind, sorted(fractions))
        setting = kind.to_setting(histogram, args.fraction)
    else:
        settings = {kind.to_setting(histogram, fraction) for fraction in fractions}
        measuring = curve.Curve(
            model, images.source("measuring"), kind, classes, cfg.TEST.BOUNDARY_DISTANCE
        )
        points = in_order(measuring.measure(sorted(settings)))
        setting = kind.to_setting(histogram, wanted_fraction(args, points))
        if setting not in settings:
            points = in_order([*points, measuring.measure([setting])[1]])
    (chosen,) = (point for point in points if point.setting == setting)

    if args.base_only and (args.dataset or args.labels):
        print_ceilings(args, cfg, model, images, kind)
    print(report.table(points, chosen, f"{kind.selector.__name__} {kind.key}"))
    if args.seconds is not None and chosen.seconds > args.seconds:
        print(f"measured again it took {chosen.seconds:.3g} seconds: this machine's seconds vary")
    elif args.seconds is not None and chosen is points[-1]:
        print("no more was measured: larger --fractions may fit as well")
    config_file = args.config_file or model_zoo.get_config_file(args.model)
    changes = report.changed_keys(config_file, kind, setting, model.coarse.temperature)
    args.output.mkdir(parents=True, exist_ok=True)
    title = f"{args.model or Path(config_file).name}, images: {len(images)}"
    report.draw(plot, f"{title}; chosen: {kind.key} {setting:g}", points, chosen, histogram)
    report.write_leaf(leaf, config_file, about(args, model, len(images), chosen), changes)
    changed = ", ".join(f"{key} {value}" for key, value in changes.items()) or "nothing"
    print(f"{leaf}: changes {changed}\n{plot}: the curve")


def print_ceilings(args, cfg: CfgNode, model, images: Images, kind: Kind) -> None:
    """What a refiner can reach at most on these images."""
    scales = sorted({*args.scales, cfg.MODEL.SPARSE_REFINE.BASE.SCALE})
    dense = None
    if args.dense:
        own = cfg.MODEL.SPARSE_REFINE.EXTRACTOR.MODEL
        dense = build_dense(cfg, own, str(args.dense), _DENSE_KEYS).to(model.device).eval()
    ceilings = ceiling.measure(
        model,
        images.source("ceilings"),
        {f: kind.budget(fraction=f) for f in {*args.fractions, args.fraction}},
        scales,
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        cfg.TEST.BOUNDARY_DISTANCE,
        dense,
    )
    print("What a refiner can reach at most, mIoU / boundary IoU:\n")
    print(ceiling.table(ceilings))
    verdict = ceiling.verdict(ceilings, cfg.MODEL.SPARSE_REFINE.BASE.SCALE, args.fraction)
    print(f"\n{verdict}\n")


def in_order(points: list[curve.Point]) -> list[curve.Point]:
    return sorted(points, key=lambda point: point.fraction)


def wanted_fraction(args: argparse.Namespace, points: list[curve.Point]) -> float:
    if args.seconds is not None:
        return goals.fraction_for_seconds(points, args.seconds)
    if args.keep_accuracy is not None:
        return goals.fraction_for_accuracy(points, args.keep_accuracy)
    return args.fraction


def about(args: argparse.Namespace, model, images: int, chosen: curve.Point) -> list[str]:
    """The comment on top of the yaml."""
    goal = next(
        text.format(value)
        for value, text in (
            (args.fraction, "a share of {:g} of the pixels"),
            (args.seconds, "at most {:g} seconds an image"),
            (args.keep_accuracy, "a share of {:g} of the largest gain in mIoU"),
        )
        if value is not None
    )
    lines = [f"Made by `sparse_refine calibrate` for {goal},"]
    facts = f"{100 * chosen.fraction:.2f} % selected"
    if chosen.seconds is not None:
        facts += f", {chosen.seconds:.3g} seconds an image on {device_name(model.device)}"
    lines.append(f"on {args.dataset or args.images} (images: {images}): {facts}.")
    if args.opts:
        lines.append(f"Calibrated with {' '.join(args.opts)}, which it does not hold.")
    return lines


def load(args: argparse.Namespace) -> tuple[CfgNode, torch.nn.Module]:
    """
    Raises:
        ValueError, KeyError, FileNotFoundError: what is wrong with config, weights or data set.
    """
    options = ["DATASETS.TRAIN", (), *(["DATASETS.TEST", (args.dataset,)] if args.dataset else [])]
    options += args.opts
    if args.base_only:
        cfg = model_zoo.with_base_weights(
            load_config(args.config_file, options, trust_code=args.trust_code)
        )
        check_refines(args, cfg, NOTHING_TO_CALIBRATE)
    else:
        predictor = load_refining(args, options, NOTHING_TO_CALIBRATE)
        cfg = predictor.cfg
    if args.dataset:
        check_datasets(cfg)
    if not args.base_only:
        return cfg, predictor.model
    if not base_has_weights(cfg):
        raise ValueError(
            "MODEL.SPARSE_REFINE.BASE.WEIGHTS is '': name the base's checkpoint, as KEY VALUE"
        )
    return cfg, build_model(cfg).eval()
