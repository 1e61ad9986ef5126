# SPDX-License-Identifier: Apache-2.0
"""Whether the data sets of a config fit it, and whether they can be evaluated."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .evaluators import EVALUATOR_TYPES, check_packages


def check_datasets(cfg: CfgNode, *, training: bool = True, evaluation: bool = True) -> None:
    """Hold every data set of the config against its class count and ignore value, and what is
    needed to evaluate, before work: not after hours of training.

    Args:
        training, evaluation: whether this project's loader reads the sets of DATASETS.TRAIN, and
            its evaluators those of DATASETS.TEST. A subclass's own may take anything.

    Raises:
        KeyError: a name that is not registered.
        ImportError: a test set needs a package for its evaluation that is not there.
        RuntimeError: Cityscapes, with processes on several machines.
        ValueError: class counts or ignore values differ, with both numbers; a test set of another
            task; an impossible TEST.BOUNDARY_DISTANCE.
    """
    if cfg.TEST.BOUNDARY_DISTANCE < 1:
        raise ValueError(
            f"TEST.BOUNDARY_DISTANCE is {cfg.TEST.BOUNDARY_DISTANCE}: a width in pixels, at least 1"
        )
    train = cfg.DATASETS.TRAIN if training else ()
    test = cfg.DATASETS.TEST if evaluation else ()
    for name in (*train, *test):
        if name not in DatasetCatalog:
            raise KeyError(
                f"DATASETS: {name!r} is not registered. Known: {', '.join(DatasetCatalog.list())}"
            )
        metadata = MetadataCatalog.get(name)
        classes = len(metadata.get("stuff_classes", ()))
        if classes != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            raise ValueError(
                f"data set {name!r} has {classes} classes but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
                f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}"
            )
        kind = metadata.get("evaluator_type", None)
        if name in test and kind not in EVALUATOR_TYPES:
            raise ValueError(
                f"data set {name!r} has evaluator_type {kind!r}: this project evaluates semantic "
                f"segmentation, {EVALUATOR_TYPES}"
            )
        if name in test:
            check_packages(name)
        ignore = metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
        if ignore != cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE:
            raise ValueError(
                f"data set {name!r} ignores label {ignore} but MODEL.SEM_SEG_HEAD.IGNORE_VALUE is "
                f"{cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}"
            )
