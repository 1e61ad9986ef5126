# SPDX-License-Identifier: Apache-2.0
"""Evaluation: counts and ratios in metrics.py, Detectron2's evaluators around them."""

from .cityscapes import CityscapesSemSegEvaluator
from .evaluator import SparseRefineEvaluator
from .predictions import label_map_of, predictions_of
from .timing import ForwardTimer

__all__ = [
    "CityscapesSemSegEvaluator",
    "ForwardTimer",
    "SparseRefineEvaluator",
    "label_map_of",
    "predictions_of",
]
