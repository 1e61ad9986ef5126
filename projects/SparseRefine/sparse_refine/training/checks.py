# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a training before it begins: not after hours of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from ..data import read_labels
from ..evaluation import known_metrics
from ..modeling.contract import refines

logger = logging.getLogger(__name__)

# Keys of Detectron2 that its own loader and mapper read and this project's do not -> what to set.
_OF_ITS_LOADER = {
    "INPUT.MIN_SIZE_TRAIN": "INPUT.RESIZE_RANGE",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "INPUT.RESIZE_RANGE",
    "INPUT.MAX_SIZE_TRAIN": "INPUT.RESIZE_RANGE",
    "DATALOADER.SAMPLER_TRAIN": "a build_train_loader of a subclass of Trainer",
    "DATALOADER.REPEAT_THRESHOLD": "a build_train_loader of a subclass of Trainer",
    "DATALOADER.ASPECT_RATIO_GROUPING": "a build_train_loader of a subclass of Trainer",
}
_LABEL_MAPS = 24  # of a training set are looked at beforehand


def check_loader_keys(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: a key has been changed that this project's training loader does not read.
    """
    _refuse_changed(cfg, _OF_ITS_LOADER)


def check_test_keys(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: TEST.AUG.ENABLED, which is for detection models in Detectron2.
    """
    _refuse_changed(cfg, {"TEST.AUG.ENABLED": "an evaluation without augmentation"})


def _refuse_changed(cfg: CfgNode, keys: dict[str, str]) -> None:
    default = get_cfg()
    for key, instead in keys.items():
        found, usual = (_value(node, key) for node in (cfg, default))
        if found != usual:
            raise ValueError(
                f"{key} is {found}, and nothing here reads it: leave it at {usual}. What there is "
                f"in its place: {instead}"
            )


def _value(cfg: CfgNode, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def check_training(cfg: CfgNode, own_loader: bool = True) -> None:
    """
    Args:
        own_loader: whether this project's training loader is used.

    Raises:
        ValueError: nothing to train on, no iterations, or a file that training would write over is
            one that it reads.
    """
    if own_loader and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name the data sets to train on")
    if cfg.SOLVER.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: at least 1 is needed")
    check_inputs_are_kept(cfg, resume=True)  # MODEL.WEIGHTS is looked at where it is loaded


def check_inputs_are_kept(cfg: CfgNode, resume: bool) -> None:
    """
    Args:
        resume: a resumed run does not read MODEL.WEIGHTS.

    Raises:
        ValueError: OUTPUT_DIR is the folder of a checkpoint that this training reads.
    """
    if not resume:
        check_not_overwritten(cfg, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    if not refines(cfg):  # reads none of the others: one yaml may train a base, then refine it
        return
    node = cfg.MODEL.SPARSE_REFINE
    for key, path in (
        ("MODEL.SPARSE_REFINE.BASE.WEIGHTS", node.BASE.WEIGHTS),
        ("MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS", node.EXTRACTOR.WEIGHTS),
    ):
        check_not_overwritten(cfg, key, path)


def check_not_overwritten(cfg: CfgNode, key: str, path: str) -> None:
    """
    Raises:
        ValueError: `path` is a checkpoint in cfg.OUTPUT_DIR, where training would replace it.
    """
    if not path or "://" in path:
        return
    file = Path(path.split("?")[0]).expanduser().resolve()
    ours = re.fullmatch(r"model_(final|best|\d{7})\.pth", file.name)
    if ours and file.parent == Path(cfg.OUTPUT_DIR).expanduser().resolve():
        raise ValueError(
            f"{key} is {path!r}, and training would write its own checkpoints over it: OUTPUT_DIR "
            f"is {cfg.OUTPUT_DIR!r}. Set another OUTPUT_DIR"
        )


def check_best_metric(cfg: CfgNode, own_evaluators: bool = True) -> None:
    """Whether an evaluation gives what SOLVER.BEST_CHECKPOINT_METRIC names.

    Raises:
        ValueError: it does not; lists what there is. Where a subclass has evaluators of its own, or
            the key was left as it is, a warning: then no best checkpoint is kept.
    """
    metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
    if not metric or cfg.TEST.EVAL_PERIOD < 1 or not cfg.DATASETS.TEST:
        return
    known = known_metrics(cfg)
    if metric in known:
        return
    of_all = [name for name in known if not re.search(r"(IoU|ACC)-", name)]
    message = (
        f"SOLVER.BEST_CHECKPOINT_METRIC is {metric!r}, which no evaluation of {cfg.DATASETS.TEST} "
        f"gives. Known: {', '.join(of_all) or 'nothing'}; of single classes IoU-NAME and "
        "BoundaryIoU-NAME after the same words; '' keeps no best checkpoint"
    )
    default = "sparse_refine/mIoU"
    if own_evaluators and metric != default:
        raise ValueError(message)
    if own_evaluators:
        logger.warning(message)
    elif metric != default:
        logger.warning(f"{message}. It has to come from the subclass's own evaluators")


def check_something_to_learn(cfg: CfgNode) -> None:
    """Look at a few label maps of the training sets.

    Raises:
        ValueError: one class, or labels that hold one class at most, of all there are. Where only a
            part of many label maps was looked at, a warning.
    """
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if classes == 1:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 1: with a single class every pixel is right and "
            "there is nothing to learn. Of an object and its background make two classes"
        )
    files = [
        record["sem_seg_file_name"]
        for name in cfg.DATASETS.TRAIN
        for record in DatasetCatalog.get(name)
        if "sem_seg_file_name" in record
    ]
    step = max(1, len(files) // _LABEL_MAPS)
    values = _values(files[::step])
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if not files or len(values - {ignore}) > 1:
        return
    found = " and ".join(map(str, sorted(values)))
    hint = ""
    if values == {0, 255} and ignore == 255:
        hint = (
            ". Masks of 0 and 255? Then 255 is a class, not the ignore value: write them as 0 and "
            "1, or set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to another value"
        )
    message = (
        f"the labels of {', '.join(cfg.DATASETS.TRAIN)} hold {found} alone, where {ignore} is no "
        f"class: there is nothing to learn{hint}. `python -m sparse_refine check` shows what is in "
        "each file"
    )
    if step == 1:
        raise ValueError(message)
    logger.warning(f"{len(files[::step])} of {len(files)} label maps were looked at: {message}")


def _values(files: Iterable[str]) -> set[int]:
    values: set[int] = set()
    for file in files:
        values |= set(np.unique(read_labels(file)).tolist())
        if len(values) > 2:  # two classes at least
            break
    return values
