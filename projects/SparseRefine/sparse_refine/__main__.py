# SPDX-License-Identifier: Apache-2.0
"""Programs of the package: `python -m sparse_refine COMMAND ...`, or `sparse-refine COMMAND`."""

from __future__ import annotations

import importlib
import sys

# Each is imported when it is asked for: torch alone takes seconds.
COMMANDS = {
    "train": ("train", "train", "train a base or a refiner from a yaml"),
    "evaluate": ("train", "evaluate", "evaluate one, with its MODEL.WEIGHTS"),
    "predict": ("predict", "main", "segment images, folders, videos and cameras"),
    "check": ("check", "main", "read a data set as training will, and say what is wrong with it"),
    "calibrate": ("calibrate", "main", "choose how many pixels to refine"),
    "convert": ("convert", "main", "make a checkpoint of another project fit a config"),
    "configs": ("configs", "main", "print where the configs are, for a yaml's _BASE_"),
}


def usage() -> str:
    lines = [f"  {name:10} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m sparse_refine COMMAND ...", "", *lines, "", "COMMAND --help says more"]
    )


def main() -> int | None:
    name, arguments = (sys.argv[1] if sys.argv[1:] else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"{usage()}\n\nno command {name!r}", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[name]
    sys.argv[0] = f"python -m sparse_refine {name}"  # what usage lines begin with
    return getattr(importlib.import_module(f"sparse_refine.commands.{module}"), function)(arguments)


if __name__ == "__main__":
    sys.exit(main())
