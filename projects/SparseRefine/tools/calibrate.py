#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""How many pixels to refine: `python -m sparse_refine calibrate` from a checkout."""

import sys

from sparse_refine.commands.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
