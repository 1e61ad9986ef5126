# SPDX-License-Identifier: Apache-2.0
"""SparseRefine for Detectron2: full-resolution accuracy at a fraction of full-resolution cost."""

from .config import add_sparse_refine_config, load_config
from .inference import SparseRefinePredictor
from .meta_arch import SparseRefine
from .modeling import EfficientNetLite, HuggingFaceSegmentor, ModuleSegmentor
from .results import Refinement
from .training import Trainer

__all__ = [
    "EfficientNetLite",
    "HuggingFaceSegmentor",
    "ModuleSegmentor",
    "Refinement",
    "SparseRefine",
    "SparseRefinePredictor",
    "Trainer",
    "add_sparse_refine_config",
    "load_config",
]
__version__ = "0.1.0"
