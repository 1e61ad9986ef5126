# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of another project -> safetensors with this project's names.

    python -m sparse_refine convert --format mmseg-hrnet \\
        --input fcn_hr48_512x1024.pth --output hrnet_w48.safetensors \\
        --config-file projects/SparseRefine/configs/cityscapes/hrnet_w48.yaml

A base's result goes into MODEL.SPARSE_REFINE.BASE.WEIGHTS (or MODEL.WEIGHTS of the base by itself).
With --config-file it is held against that model, name by name and shape by shape. Whatever does not
fit stops the conversion, unless --allow-partial is given.

Checkpoints of Hugging Face need no conversion: MODEL.HUGGING_FACE.NAME takes their folder.
"""

from __future__ import annotations

import argparse
import os
import sys

from ..base import build_base
from ..config import load_config
from ..conversion import FORMATS, Format, compare, convert, read_tensors
from ..modeling.building import build_model
from ..modeling.contract import refines
from ..storage.files import check_not_an_input
from ..storage.weights import save_weights
from .arguments import add_trust_code, config_files, errors_in_a_line


def main(arguments: list[str] | None = None) -> None:
    formats = "\n".join(f"  {name:18} -> {form.target}" for name, form in FORMATS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nFormats:\n{formats}",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--input", required=True, help=".pth, .safetensors, .pkl")
    parser.add_argument("--output", required=True, help=".safetensors")
    parser.add_argument("--config-file", help="yaml of the model that the result is for")
    parser.add_argument("--half", action="store_true", help="floating point numbers as fp16")
    parser.add_argument("--allow-partial", action="store_true", help="write what did match")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read a .pkl, which runs whatever code it holds: only from a source that you trust",
    )
    add_trust_code(parser)
    parser.add_argument("opts", nargs="*", default=[], help="KEY VALUE pairs for the config")
    args = parser.parse_args(arguments)
    if not args.output.endswith(".safetensors"):
        parser.error(f"--output is {args.output}: its name must end in .safetensors")
    if args.input.endswith(".pkl") and not args.allow_pickle:
        parser.error(
            f"--input {args.input} is a Python pickle, and reading one runs whatever code it "
            "holds: add --allow-pickle if you trust where it comes from"
        )
    with errors_in_a_line(parser):
        check_not_an_input(args.output, [args.input, *config_files(args.config_file)])
        convert_file(args)


def convert_file(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, KeyError, FileNotFoundError: what is wrong with the files or the config.
    """
    form = FORMATS[args.format]
    converted, report = convert(read_tensors(args.input, args.allow_pickle), form.rules)
    if args.config_file:
        compare(report, converted, expected_tensors(form, args))
    print(report.summary())
    if not args.config_file:
        print("not held against a model: give --config-file for that")
    if not report.complete and not args.allow_partial:
        sys.exit(
            f"{args.input} does not fit format {args.format}"
            f"{f' and {args.config_file}' if args.config_file else ''} in full, see above; nothing "
            "was written. Choose another format or config, or accept it with --allow-partial"
        )
    if not converted:
        sys.exit(f"no tensor of {args.input} matches format {args.format}; nothing was written")
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    save_weights(converted, args.output, half=args.half)
    print(f"{args.output}: {len(converted)} tensors for {form.target}")


def expected_tensors(form: Format, args: argparse.Namespace) -> dict:
    """The tensors of the yaml's model that the format fills: a base's, or a refiner's."""
    options = ["MODEL.SPARSE_REFINE.BASE.WEIGHTS", "", *args.opts]
    cfg = load_config(args.config_file, options, trust_code=args.trust_code)
    if form.part != ("",):
        model = build_model(cfg)
        return {name: t for name, t in model.state_dict().items() if name.startswith(form.part)}
    return (build_base(cfg) if refines(cfg) else build_model(cfg)).state_dict()
