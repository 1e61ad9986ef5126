# SPDX-License-Identifier: Apache-2.0
"""Whether the data sets of a config fit it, and whether they can be evaluated."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.registration import ignore_label_of
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
    train = _names(cfg, "TRAIN") if training else ()
    test = _names(cfg, "TEST") if evaluation else ()
    for name in (*train, *test):
        if name not in DatasetCatalog:
            raise KeyError(
                f"DATASETS: {name!r} is not registered. Known: {', '.join(DatasetCatalog.list())}"
            )
        metadata = MetadataCatalog.get(name)
        given = metadata.get("stuff_classes", ())
        if isinstance(given, str) or not given:
            raise ValueError(
                f"the metadata of data set {name!r} has stuff_classes {given!r}: the names of its "
                f"classes are needed, MetadataCatalog.get({name!r}).stuff_classes = [...]"
            )
        twice = sorted({each for each in given if list(given).count(each) > 1})
        if twice:  # results are keyed by name
            raise ValueError(f"data set {name!r} has several classes called {', '.join(twice)}")
        classes = len(given)
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
        ignore = ignore_label_of(name, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
        if ignore != cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE:
            raise ValueError(
                f"data set {name!r} ignores label {ignore} but MODEL.SEM_SEG_HEAD.IGNORE_VALUE is "
                f"{cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}"
            )


def _names(cfg: CfgNode, key: str) -> tuple[str, ...]:
    names = cfg.DATASETS[key]
    if isinstance(names, str):  # letter by letter they would be looked up
        raise ValueError(f"DATASETS.{key} is {names!r}: a tuple is needed, ({names!r},)")
    return names
