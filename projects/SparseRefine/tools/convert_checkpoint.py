#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects: `python -m sparse_refine convert` from a checkout."""

import sys

from sparse_refine.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
