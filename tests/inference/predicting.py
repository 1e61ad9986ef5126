# SPDX-License-Identifier: Apache-2.0
"""What the tests of the predictor share."""

from __future__ import annotations

import torch

DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase"]
LABELS = ["MODEL.SPARSE_REFINE.OUTPUT", "labels"]


def same(first: dict, second: dict) -> bool:
    return torch.equal(first["labels"], second["labels"]) and torch.equal(
        first["entropy"], second["entropy"]
    )
