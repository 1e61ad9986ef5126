#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""SparseRefine in the browser: drop an image, choose the budget, swipe between coarse and refined.

    python projects/SparseRefine/demo/web_demo.py [--model rgbweed/sparse_refine ...]
    python projects/SparseRefine/demo/web_demo.py --config-file C --weights W [KEY VALUE ...]

It listens on this machine alone unless --host says otherwise, needs no network, and removes what
was uploaded when it ends.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="NAME",
        help="of the model zoo; several give a choice (default: all that refine)")  # fmt: skip
    add("--config-file", help="yaml of a SparseRefine of your own")
    add("--weights", help="its checkpoint (default: its MODEL.WEIGHTS)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of the machine's")
    add("--port", type=int, default=7860, help="0: any that is free")
    add("--max-megabytes", type=float, default=32, help="of an uploaded file")
    add("--max-megapixels", type=float, default=24, help="of an uploaded image")
    add("--max-refined-megapixels", type=float, default=4,
        help="at once, whatever the budget: they cost 1 to 3 GB of memory a million")  # fmt: skip
    add("--examples", type=int, default=3, help="synthetic images to start from, 0 to 6")
    add("opts", nargs="*", default=[], metavar="KEY VALUE", help="pairs of the config")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(arguments)
    for name in ("max_megabytes", "max_megapixels", "max_refined_megapixels"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name):g}: more than 0")
    if args.weights and not args.config_file:
        parser.error("--weights belong to --config-file; the zoo's models have theirs")

    from web_app.server import MISSING, listen, private_folder, serve

    with private_folder() as folder:
        try:
            from web_app import page
        except ImportError as error:
            sys.exit(MISSING.format(error=error))
        from detectron2.data import DatasetCatalog
        from web_app.runner import Runner, load_predictors
        from web_app.uploads import Limits

        from sparse_refine.memory import keep_freed_memory

        limits = Limits(
            bytes=round(args.max_megabytes * 1e6),
            pixels=round(args.max_megapixels * 1e6),
            refined_pixels=round(args.max_refined_megapixels * 1e6),
        )
        try:
            listener = listen(args.host, args.port)
            predictors = load_predictors(args.model, args.config_file, args.weights, args.opts)
        except (ValueError, OSError, KeyError) as error:
            sys.exit(f"{Path(__file__).name}: {error}")
        keep_freed_memory()
        records = (
            DatasetCatalog.get("synthetic_field_val")[: args.examples] if args.examples else []
        )
        examples = [record["file_name"] for record in records]
        style = (Path(page.__file__).parent / "style.css").read_text()
        blocks = page.build(Runner(predictors, limits), examples)
        serve(blocks, listener, folder, limits.bytes, style)


if __name__ == "__main__":
    main()
