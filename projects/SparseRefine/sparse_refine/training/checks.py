# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a training before it begins: not after hours of it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from ..evaluation import known_metrics
from ..modeling.contract import refines
from ..storage.files import check_writable_folder, identity

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
        ValueError: nothing to train on, no iterations, no place for checkpoints, or a file that
            training would write over is one that it reads.
    """
    if own_loader and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name the data sets to train on")
    if cfg.SOLVER.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: at least 1 is needed")
    if cfg.SOLVER.CHECKPOINT_PERIOD < 1:
        raise ValueError(
            f"SOLVER.CHECKPOINT_PERIOD is {cfg.SOLVER.CHECKPOINT_PERIOD}: at least 1 is needed; a "
            "number above SOLVER.MAX_ITER keeps the final checkpoint alone"
        )
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ValueError(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}: at least 0, which reads "
            "images in the training's own process"
        )
    check_inputs_are_kept(cfg, resume=True)  # MODEL.WEIGHTS is looked at where it is loaded


def check_inputs_are_kept(cfg: CfgNode, resume: bool) -> None:
    """
    Args:
        resume: a resumed run does not read MODEL.WEIGHTS.

    Raises:
        ValueError: OUTPUT_DIR is the folder of a checkpoint that this training reads; or it, or
            COARSE_CACHE, is no folder that can be written.
    """
    check_writable_folder(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    if not resume:
        check_not_overwritten(cfg, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    if not refines(cfg):  # reads none of the others: one yaml may train a base, then refine it
        return
    node = cfg.MODEL.SPARSE_REFINE
    if node.COARSE_CACHE:
        check_writable_folder(node.COARSE_CACHE, "MODEL.SPARSE_REFINE.COARSE_CACHE")
    for key, path in (
        ("MODEL.SPARSE_REFINE.BASE.WEIGHTS", node.BASE.WEIGHTS),
        ("MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS", node.EXTRACTOR.WEIGHTS),
        ("MODEL.SPARSE_REFINE.TEACHER.WEIGHTS", node.TEACHER.WEIGHTS),
    ):
        check_not_overwritten(cfg, key, path)


def check_not_overwritten(cfg: CfgNode, key: str, path: str) -> None:
    """
    Raises:
        ValueError: `path` is a checkpoint in cfg.OUTPUT_DIR, where training would replace it.
    """
    folder = Path(cfg.OUTPUT_DIR).expanduser()
    if not path or "://" in path or not folder.is_dir():
        return
    file = identity(path.split("?")[0])
    ours = (p for p in folder.iterdir() if re.fullmatch(r"model_(final|best|\d{7})\.pth", p.name))
    if file is not None and file in map(identity, ours):
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
