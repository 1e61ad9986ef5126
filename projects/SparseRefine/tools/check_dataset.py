#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a data set: `python -m sparse_refine check` from a checkout."""

import sys

from sparse_refine.commands.check import main

if __name__ == "__main__":
    sys.exit(main())
