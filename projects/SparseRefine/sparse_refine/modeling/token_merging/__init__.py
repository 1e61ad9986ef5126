# SPDX-License-Identifier: Apache-2.0
"""SegFormer++: token merging inside the attention of a trained model, without training it again.

Kienzle et al., "SegFormer++: Efficient Token-Merging Strategies for High-Resolution Semantic
Segmentation", arXiv 2405.14467. The number of tokens between blocks stays, so that any checkpoint
serves as it is.
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
