# SPDX-License-Identifier: Apache-2.0
"""Prediction: shipped models by name, single images, and folders and videos of them."""

from .loading import load_model
from .predictor import SparseRefinePredictor

__all__ = ["SparseRefinePredictor", "load_model"]
