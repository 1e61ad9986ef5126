# SPDX-License-Identifier: Apache-2.0
"""Evaluation: counts and ratios in metrics.py, Detectron2's evaluators around them."""

from .cityscapes import CityscapesSemSegEvaluator
from .evaluator import SparseRefineEvaluator
from .evaluators import (
    EVALUATOR_TYPES,
    build_evaluators,
    check_packages,
    known_metrics,
    own_evaluator,
)
from .panoptic import PanopticEvaluator
from .predictions import label_map_of, predictions_of
from .timing import ForwardTimer

__all__ = [
    "EVALUATOR_TYPES",
    "CityscapesSemSegEvaluator",
    "ForwardTimer",
    "PanopticEvaluator",
    "SparseRefineEvaluator",
    "build_evaluators",
    "known_metrics",
    "check_packages",
    "label_map_of",
    "own_evaluator",
    "predictions_of",
]
