# SPDX-License-Identifier: Apache-2.0
"""Training: Detectron2's trainer with what this project adds to it."""

from .trainer import Trainer

__all__ = ["Trainer"]
