# SPDX-License-Identifier: Apache-2.0
"""Print the folder of the configs, or the path of the yaml of a model of the zoo.

    python -m sparse_refine configs
    python -m sparse_refine configs rgbweed/sparse_refine

A yaml of your own begins with one of them, by its whole path or relative to itself:

    _BASE_: /path/that/it/printed/rgbweed/sparse_refine.yaml
"""

from __future__ import annotations

import argparse

from ..inference import model_zoo
from .arguments import errors_in_a_line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="a model of the zoo; without one, the folder")
    args = parser.parse_args(arguments)
    with errors_in_a_line(parser):
        print(model_zoo.get_config_file(args.name) if args.name else model_zoo.configs_folder())
