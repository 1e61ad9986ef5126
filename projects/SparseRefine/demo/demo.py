#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Segment images and videos: `python -m sparse_refine predict` from a checkout."""

import sys

from sparse_refine.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
