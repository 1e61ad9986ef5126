# SPDX-License-Identifier: Apache-2.0
"""Extractors: the selected pixels at full resolution -> refined logits (paper, section 3.3)."""

from .extractor import EXTRACTOR_REGISTRY, Extractor, Selection
from .pretrained import PretrainedExtractor
from .sparse_unet import SparseUNetExtractor, feature_channels, site_features

__all__ = [
    "EXTRACTOR_REGISTRY",
    "Extractor",
    "PretrainedExtractor",
    "Selection",
    "SparseUNetExtractor",
    "feature_channels",
    "site_features",
]
