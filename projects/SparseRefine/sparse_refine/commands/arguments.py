# SPDX-License-Identifier: Apache-2.0
"""What several tools share of their command lines: types of arguments, the model to look at, and
errors in a line."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..inference.predictor import SparseRefinePredictor
from ..modeling.contract import refines

WRONG_ARGUMENT = 2  # argparse's exit code


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, where at least 1 is needed")
    return number


def output_file(text: str) -> Path:
    """A file to write at the end; that its folder is missing should not come out only then."""
    path = Path(text)
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: its folder does not exist")
    return path


def config_files(path: str | Path | None) -> Iterator[Path]:
    """A yaml and those that it stands on (_BASE_); nothing for None, or of what cannot be read."""
    todo, seen = [] if path is None else [Path(path).expanduser()], set()
    while todo:
        path = todo.pop()
        if path.resolve() in seen or not path.is_file():
            continue
        seen.add(path.resolve())
        yield path
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError):  # of which loading it says more
            continue
        bases = content.get("_BASE_", []) if isinstance(content, dict) else []
        bases = [bases] if isinstance(bases, str) else bases
        todo += [path.parent / Path(base).expanduser() for base in bases if "://" not in base]


@contextlib.contextmanager
def errors_in_a_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Inside, what is wrong with files, configs and packages ends the program as a wrong argument
    does: a line that says what, exit code 2, no traceback."""
    try:
        yield
    except KeyError as error:
        parser.error(error.args[0])  # its str() has quotes around it
    except (OSError, ImportError, ValueError, yaml.YAMLError) as error:
        parser.error(str(error))


def add_trust_code(parser: argparse.ArgumentParser) -> None:
    """--trust-code: consent to the code that a yaml names, see modeling/trust.py."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="run code that the yaml names: PROJECTS, MODEL.MODULE.PATH, pickled checkpoints",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model NAME, or --config-file C [--weights W] [--trust-code]: a SparseRefine."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME", help="of the model zoo: rgbweed/sparse_refine")
    source.add_argument("--config-file", metavar="C", help="yaml of a SparseRefine")
    parser.add_argument("--weights", metavar="W", help="else MODEL.WEIGHTS of the config")
    add_trust_code(parser)


def check_model(args: argparse.Namespace) -> None:
    """What can be known of `add_model`'s arguments before anything is loaded.

    Raises:
        ValueError, FileNotFoundError: what is wrong.
    """
    if args.model and args.weights:
        raise ValueError("--weights belongs to --config-file; a model of the zoo has its own")
    if args.config_file and not os.path.isfile(args.config_file):
        raise FileNotFoundError(f"--config-file {args.config_file} does not exist")


def check_refines(args: argparse.Namespace, cfg: CfgNode, why: str) -> None:
    """
    Raises:
        ValueError: the config of `add_model`'s arguments is a dense model's; ends with `why`.
    """
    if not refines(cfg):
        raise ValueError(
            f"{args.model or args.config_file}: MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE!r}, which refines nothing: {why}"
        )


def load_refining(args: argparse.Namespace, opts: list, why: str) -> SparseRefinePredictor:
    """The SparseRefine of `add_model`'s arguments, with KEY VALUE pairs `opts`.

    Raises:
        ValueError, KeyError, FileNotFoundError: what is wrong with config or weights; of a dense
            model it ends with `why`.
    """
    check_model(args)
    predictor = SparseRefinePredictor(
        args.model or args.config_file, args.weights, opts=opts, trust_code=args.trust_code
    )
    check_refines(args, predictor.cfg, why)
    return predictor
