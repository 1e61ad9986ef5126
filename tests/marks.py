# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a test run in the fast lane."""

import pytest


def slow_except(values, *quick):
    """`values` as parameters, marked slow but for those in `quick`."""
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]
