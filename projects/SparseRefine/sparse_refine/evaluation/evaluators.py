# SPDX-License-Identifier: Apache-2.0
"""Which evaluators look at a data set: this project's, with Detectron2's and Cityscapes' beside."""

from __future__ import annotations

import logging
import os
import sys

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator

from ..data import read_labels
from ..modeling.building import refines
from .cityscapes import CityscapesSemSegEvaluator, import_cityscapesscripts
from .evaluator import SparseRefineEvaluator
from .panoptic import PanopticEvaluator, import_panopticapi

# The data sets that can be evaluated, by their metadata's `evaluator_type`.
CITYSCAPES_TYPES = ("cityscapes_sem_seg", "cityscapes_panoptic_seg")
PANOPTIC_TYPES = ("ade20k_panoptic_seg", "cityscapes_panoptic_seg", "coco_panoptic_seg")
EVALUATOR_TYPES = ("sem_seg", "cityscapes_sem_seg", *PANOPTIC_TYPES)

logger = logging.getLogger(__name__)


def check_packages(dataset_name: str) -> None:
    """Look for what the evaluation of a data set imports, before hours of training.

    Raises:
        ImportError: Cityscapes' own scores need a package that is not there. One that only panoptic
            bases need is a warning: whether a base is one shows in its outputs alone.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind in CITYSCAPES_TYPES:
        import_cityscapesscripts("helpers.labels")
    if kind in PANOPTIC_TYPES:
        try:
            import_panopticapi()
        except ImportError as error:
            logger.warning(f"{dataset_name}, if the base is panoptic: {error}")


def build_evaluators(
    cfg: CfgNode, dataset_name: str, *, resume: bool = False, tag: str = ""
) -> tuple[SparseRefineEvaluator, DatasetEvaluators]:
    """(this project's evaluator, all of them as one), by the data set's `evaluator_type`.

    Beside ours: Cityscapes' own scores on Cityscapes, else Detectron2's SemSegEvaluator, which
    needs logits and joins only where the model returns them; on panoptic data sets also panoptic
    quality, if the base is panoptic.

    Args:
        resume: go on from the records of an interrupted evaluation. Only this project's evaluator
            can do that, so the others stay out.
        tag: says what the records belong to, see `SparseRefineEvaluator`.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    ours = SparseRefineEvaluator(
        dataset_name,
        folder,
        boundary_distance=cfg.TEST.BOUNDARY_DISTANCE,
        resume=resume,
        tag=tag,
        progress=sys.stderr.isatty(),
    )
    if resume:
        return ours, DatasetEvaluators([ours])
    beside = []
    refine = refines(cfg)
    if kind in CITYSCAPES_TYPES:
        beside.append(CityscapesSemSegEvaluator(dataset_name))
    elif not (refine and cfg.MODEL.SPARSE_REFINE.OUTPUT == "labels"):
        beside.append(
            SemSegEvaluator(dataset_name, output_dir=folder, sem_seg_loading_fn=_read_labels)
        )
    if kind in PANOPTIC_TYPES:
        beside.append(PanopticEvaluator(dataset_name, folder))
    return ours, DatasetEvaluators([*beside, ours])


def _read_labels(file_name: str, dtype: type) -> np.ndarray:
    """For SemSegEvaluator: Detectron2's own reader fails on NumPy 2."""
    return read_labels(file_name).astype(dtype)
