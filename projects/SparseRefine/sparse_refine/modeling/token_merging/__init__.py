# SPDX-License-Identifier: Apache-2.0
"""SegFormer++: token merging inside the attention of a trained model, without training it again.

Kienzle et al., "SegFormer++: Efficient Token-Merging Strategies for High-Resolution Semantic
Segmentation", arXiv 2405.14467. Tokens are merged before a block's attention and unmerged after it,
so that any checkpoint can be used as it is.

    matching.py    which tokens become one
    attention.py   self-attention on merged tokens
    families.py    whose attention modules are known
    applying.py    presets, keys, and how a model is changed
"""

from .applying import (
    PRESETS,
    add_token_merging_config,
    apply_configured,
    apply_token_merging,
    remove_token_merging,
)
from .attention import StageMerging
from .matching import Merge

__all__ = [
    "PRESETS",
    "Merge",
    "StageMerging",
    "add_token_merging_config",
    "apply_configured",
    "apply_token_merging",
    "remove_token_merging",
]
