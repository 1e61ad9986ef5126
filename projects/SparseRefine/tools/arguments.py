# SPDX-License-Identifier: Apache-2.0
"""Types of command line arguments that several tools share."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, where at least 1 is needed")
    return number
