#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""SparseRefine in the browser: drop an image, choose the budget, swipe between coarse and refined.

    python projects/SparseRefine/demo/web_demo.py [--model rgbweed/sparse_refine [--model ...]]
    python projects/SparseRefine/demo/web_demo.py --config-file C --weights W [KEY VALUE ...]

It listens on this machine alone unless --host says otherwise, needs no network, and removes what
was uploaded when it ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path

NAME = Path(__file__).name


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="NAME",
        help="of the model zoo; several give a choice (default: all that refine)")  # fmt: skip
    add("--config-file", help="yaml of a SparseRefine of your own")
    add("--weights", help="its checkpoint (default: its MODEL.WEIGHTS)")
    add("--trust-code", action="store_true", help="run code that the yaml names")
    add("--host", default="127.0.0.1", help="name or address to listen on; 0.0.0.0: all there are")
    add("--port", type=int, default=7860, help="0: any that is free")
    add("--max-megabytes", type=float, default=32, help="of 2**20 bytes, of an uploaded file")
    add("--max-megapixels", type=float, default=24, help="of an uploaded image")
    add("--max-refined-megapixels", type=float, default=4,
        help="at once, whatever the budget: they cost 1 to 3 GB of memory a million")  # fmt: skip
    add("--examples", type=int, default=3, choices=range(7), metavar="N",
        help="synthetic images to start from, 0 to 6")  # fmt: skip
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

    # of Detectron2's layers, at import: nothing that a user could change
    warnings.filterwarnings("ignore", r".*torch\.jit\.script", FutureWarning)
    for name in ("SIGTERM", "SIGHUP"):  # as an exception it lets the folder below go
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
    from web_app.server import application, listen, private_folder, serve

    try:
        listener = listen(args.host, args.port)
    except OSError as error:
        sys.exit(f"{NAME}: {error}")
    print("Loading, which takes some seconds ...", flush=True)
    with private_folder() as folder:
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            sys.exit(
                f"{NAME}: {error}. `make web` installs gradio; in an environment of your own, with "
                "Python 3.10 or newer, `pip install -e '.[web]'` does"
            )
        from detectron2.data import DatasetCatalog
        from PIL import Image
        from web_app import page
        from web_app.runner import Runner, load_predictors
        from web_app.uploads import Limits

        from sparse_refine.commands.memory import keep_freed_memory

        limits = Limits(
            bytes=round(args.max_megabytes * 2**20),
            pixels=round(args.max_megapixels * 1e6),
            refined_pixels=round(args.max_refined_megapixels * 1e6),
        )
        examples = []
        try:
            predictors = load_predictors(
                args.model, args.config_file, args.weights, args.opts, args.trust_code
            )
            if args.examples:  # made when first asked for
                records = DatasetCatalog.get("synthetic_field_val")[: args.examples]
                examples = [record["file_name"] for record in records]
        except (ValueError, OSError, KeyError) as error:
            sys.exit(f"{NAME}: {error}")
        keep_freed_memory()
        Image.MAX_IMAGE_PIXELS = limits.pixels  # Pillow's own limit must not lie below this one
        blocks = page.build(Runner(predictors, limits), examples)
        address = listener.getsockname()[0]
        app = application(blocks, folder, limits.bytes, address, args.host)
        served = serve(app, listener)
    sys.stdout.flush()
    os._exit(0 if served else 1)  # else it would wait, minutes, for a model that is running


if __name__ == "__main__":
    main()
