# SPDX-License-Identifier: Apache-2.0
"""The command line of `calibrate`: its arguments, and what can be known of them before anything is
loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..calibration.kinds import KINDS
from ..storage.files import check_not_an_input, identity
from .arguments import add_model, check_model, config_files, positive

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--images", type=Path, metavar="FOLDER", help="your images")
    data.add_argument("--dataset", metavar="NAME", help="or a registered split")
    parser.add_argument("--labels", type=Path, metavar="FOLDER", help="label maps of --images")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--fraction", type=float, metavar="F", help="0..1, see above")
    goal.add_argument("--seconds", type=float, metavar="S", help="above 0")
    goal.add_argument("--keep-accuracy", type=float, metavar="A", help="0..1")
    parser.add_argument("--base-only", action="store_true", help="there is no refiner yet")
    parser.add_argument("--dense", type=Path, metavar="WEIGHTS", help="with --base-only, see above")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=(), metavar="S",
        help="with --base-only: of the base beside BASE.SCALE, above 0, up to 1",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--force", action="store_true", help="replace what is in OUTPUT")
    parser.add_argument("--fit-temperature", action="store_true", help="see above")
    parser.add_argument("--selector", choices=list(KINDS), help="else the config's own")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=FRACTIONS, metavar="F",
        help=f"shares to measure; by default {' '.join(map(str, FRACTIONS))}",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="N images, evenly spaced")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, last of all")
    return parser


def outputs(args: argparse.Namespace) -> tuple[Path, Path]:
    """The yaml and the picture that are written."""
    return args.output / "calibrated.yaml", args.output / "curve.png"


def check(args: argparse.Namespace) -> None:
    """What can be known before anything is loaded."""
    import matplotlib  # noqa: F401

    leaf, plot = outputs(args)
    for path in (leaf, plot):
        if path.exists() and not args.force:
            raise FileExistsError(f"{path} exists: choose another --output, or --force replaces it")
    check_model(args)
    check_not_an_input(leaf, config_files(args.config_file))
    for folder in (args.images, args.labels):
        if folder and identity(folder) == identity(args.output):
            raise ValueError(f"--output {args.output} holds the images or labels: choose another")
    limits = {"fraction": 1, "keep_accuracy": 1, "seconds": float("inf")}
    for name, high in limits.items():
        value = getattr(args, name)
        if value is not None and not 0 < value <= high:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}: above 0, up to {high}")
    wrong = [f for f in args.fractions if not 0 < f <= 1]
    if wrong:
        raise ValueError(f"--fractions {wrong[0]:g}: shares of the pixels, above 0, up to 1")
    if args.labels and not args.images:
        raise ValueError("--labels belongs to --images")
    if args.weights and args.base_only:
        raise ValueError("--weights are a refiner's, for a --config-file without --base-only")
    if args.base_only and (args.model or args.fraction is None):
        raise ValueError("--base-only goes with --config-file and --fraction: nothing is refined")
    wrong = [s for s in args.scales if not 0 < s <= 1]
    if wrong:
        raise ValueError(f"--scales {wrong[0]:g}: low over full resolution, above 0, up to 1")
    if (args.dense or args.scales) and not (args.base_only and (args.dataset or args.labels)):
        raise ValueError("--dense and --scales go with --base-only and labels")
    for name in ("fit_temperature", "keep_accuracy"):
        if getattr(args, name) and not (args.dataset or args.labels):
            raise ValueError(
                f"--{name.replace('_', '-')} needs labels: --labels FOLDER beside --images, or a "
                "registered --dataset"
            )
