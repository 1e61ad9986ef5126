# SPDX-License-Identifier: Apache-2.0
"""Which evaluators look at a data set: this project's, with Detectron2's and Cityscapes' beside."""

from __future__ import annotations

import logging
import os
import sys

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator

from ..data import read_labels
from ..modeling.contract import refines
from .cityscapes import (
    CityscapesSemSegEvaluator,
    check_one_machine,
    import_cityscapesscripts,
)
from .evaluator import SparseRefineEvaluator
from .panoptic import PanopticEvaluator, import_panopticapi
from .results import metric_names

# The data sets that can be evaluated, by their metadata's `evaluator_type`.
CITYSCAPES_TYPES = ("cityscapes_sem_seg", "cityscapes_panoptic_seg")
PANOPTIC_TYPES = ("ade20k_panoptic_seg", "cityscapes_panoptic_seg", "coco_panoptic_seg")
EVALUATOR_TYPES = ("sem_seg", "cityscapes_sem_seg", *PANOPTIC_TYPES)

logger = logging.getLogger(__name__)


def check_packages(dataset_name: str) -> None:
    """Look for what the evaluation of a data set needs, before hours of training.

    Raises:
        ImportError: Cityscapes' own scores need a package that is not there. One that only panoptic
            bases need is a warning: whether a base is one shows in its outputs alone.
        RuntimeError: Cityscapes, with processes on several machines.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind in CITYSCAPES_TYPES:
        check_one_machine()
        import_cityscapesscripts("helpers.labels")
    if kind in PANOPTIC_TYPES:
        try:
            import_panopticapi()
        except ImportError as error:
            logger.warning(f"{dataset_name}, if the base is panoptic: {error}")


def build_evaluators(cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
    """All evaluators of a data set as one, by its `evaluator_type`.

    Beside ours: Cityscapes' own scores on Cityscapes, else Detectron2's SemSegEvaluator, which
    needs logits and joins only where the model returns them; on panoptic data sets also panoptic
    quality, if the base is panoptic.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    ours = SparseRefineEvaluator(
        dataset_name,
        folder,
        boundary_distance=cfg.TEST.BOUNDARY_DISTANCE,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        progress=sys.stderr.isatty(),
    )
    beside = []
    if kind in CITYSCAPES_TYPES:
        beside.append(CityscapesSemSegEvaluator(dataset_name))
    elif not (refines(cfg) and cfg.MODEL.SPARSE_REFINE.OUTPUT == "labels"):
        given = "ignore_label" in MetadataCatalog.get(dataset_name).as_dict()
        ignore = {} if given else {"ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}
        theirs = SemSegEvaluator(
            dataset_name, output_dir=folder, sem_seg_loading_fn=_read_labels, **ignore
        )
        files = theirs.input_file_to_gt_file  # by name, as our loader gives them: no Path
        theirs.input_file_to_gt_file = {os.fspath(name): file for name, file in files.items()}
        beside.append(theirs)
    if kind in PANOPTIC_TYPES:
        beside.append(PanopticEvaluator(dataset_name, folder))
    # ours first: labels that do not fit their image are named by it, and by the others not
    return DatasetEvaluators([ours, *beside])


def known_metrics(cfg: CfgNode) -> list[str]:
    """What SOLVER.BEST_CHECKPOINT_METRIC may name: the accuracies that `build_evaluators` gives for
    the sets of DATASETS.TEST, by the names under which Detectron2 logs them."""
    names: list[str] = []
    for dataset in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(dataset)
        kind, classes = metadata.get("evaluator_type", None), metadata.get("stuff_classes", [])
        of_set = [f"sparse_refine/{name}" for name in metric_names(classes, refines(cfg))]
        if kind in CITYSCAPES_TYPES:
            of_set += [f"sem_seg/{name}" for name in ("IoU", "iIoU", "IoU_sup", "iIoU_sup")]
        elif not (refines(cfg) and cfg.MODEL.SPARSE_REFINE.OUTPUT == "labels"):
            of_set += [f"sem_seg/{name}" for name in ("mIoU", "fwIoU", "mACC", "pACC")]
            of_set += [
                f"sem_seg/{m}-{name}" for m in ("IoU", "BoundaryIoU", "ACC") for name in classes
            ]
        if kind in PANOPTIC_TYPES:
            of_set += [
                f"panoptic_seg/{m}{of}" for m in ("PQ", "SQ", "RQ") for of in ("", "_th", "_st")
            ]
        several = len(cfg.DATASETS.TEST) > 1
        names += [f"{dataset}/{name}" if several else name for name in of_set]
    return names


def own_evaluator(evaluator: DatasetEvaluator) -> SparseRefineEvaluator | None:
    """This project's evaluator, in whatever a `build_evaluator` returned."""
    if isinstance(evaluator, DatasetEvaluators):
        found = (own_evaluator(part) for part in evaluator._evaluators)
        return next((part for part in found if part is not None), None)
    return evaluator if isinstance(evaluator, SparseRefineEvaluator) else None


def _read_labels(file_name: str, dtype: type) -> np.ndarray:
    """For SemSegEvaluator: Detectron2's own reader fails on NumPy 2."""
    return read_labels(file_name).astype(dtype)
