# SPDX-License-Identifier: Apache-2.0
"""What is trained before a refiner, from the same config: the base at low resolution, and the dense
network that the refiner starts from at full resolution. Each by the trainer, as any dense model."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager

from ..base import dense_config
from ..modeling.contract import refines
from ..storage.files import write_text
from .trainer import Trainer

logger = logging.getLogger(__name__)

_METHOD = "MODEL.SPARSE_REFINE"


@dataclass(frozen=True)
class Stage:
    """A dense model to train. `node`, "BASE" or "EXTRACTOR", gets its checkpoint as WEIGHTS."""

    node: str
    cfg: CfgNode

    @property
    def checkpoint(self) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, "model_final.pth")


def stages_of(cfg: CfgNode) -> list[Stage]:
    """What the config trains before the refiner, in order; nothing of what has weights already.

    The base is trained at BASE.SCALE. The extractor's network is trained at full resolution and,
    where it is of the base's architecture, starts from the base.

    Raises:
        KeyError, ValueError: a key of TRAINING that does not exist, or a value of another type.
    """
    if not refines(cfg) or cfg.MODEL.WEIGHTS:
        return []
    method = cfg.MODEL.SPARSE_REFINE
    stages, start = [], method.BASE.WEIGHTS
    if method.BASE.TRAINING and not method.BASE.WEIGHTS:
        stages.append(_stage(cfg, "BASE", CfgNode(), method.BASE.SCALE, ""))
        start = stages[0].checkpoint
    if method.EXTRACTOR.TRAINING and not method.EXTRACTOR.WEIGHTS:
        own = method.EXTRACTOR.MODEL
        stages.append(_stage(cfg, "EXTRACTOR", own, 1.0, "" if own else start))
    return stages


def _stage(cfg: CfgNode, node: str, overrides: CfgNode, scale: float, start: str) -> Stage:
    key = f"{_METHOD}.{node}"
    own = dense_config(cfg, overrides, f"{key}.MODEL")
    own.defrost()
    own.MODEL.WEIGHTS, own.INPUT.SCALE = start, scale
    try:
        own.merge_from_other_cfg(cfg.MODEL.SPARSE_REFINE[node].TRAINING)
    except (KeyError, ValueError) as error:
        raise type(error)(f"{key}.TRAINING: {error.args[0]}") from error
    own.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, node.lower())
    own.freeze()
    return Stage(node, own)


def train_stages(
    cfg: CfgNode, trainer_class: type[Trainer] = Trainer, resume: bool = False
) -> CfgNode:
    """Train them -> the refiner's config, with the checkpoints as BASE.WEIGHTS, EXTRACTOR.WEIGHTS.

    Args:
        resume: go on where an interrupted run stopped; what is finished is kept.
    """
    stages = stages_of(cfg)
    if not stages:
        return cfg
    _check_refiner(cfg, trainer_class)
    cfg = cfg.clone()
    cfg.defrost()
    for stage in stages:
        what = "the base" if stage.node == "BASE" else "the extractor's network"
        if resume and os.path.isfile(stage.checkpoint):
            logger.info(f"{what}: {stage.checkpoint} is there")
        else:
            logger.info(f"Training {what} in {stage.cfg.OUTPUT_DIR}")
            _train(stage.cfg, trainer_class, resume)
        cfg.MODEL.SPARSE_REFINE[stage.node].WEIGHTS = stage.checkpoint
    cfg.freeze()
    _seed(cfg)  # the refiner starts as it does without them
    if comm.is_main_process():  # what a prediction needs
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    return cfg


def _check_refiner(cfg: CfgNode, trainer_class: type[Trainer]) -> None:
    """Build it once: what is wrong with it is said before hours of training, not after them."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that it has no weights yet
    try:
        trainer_class.build_model(cfg)
    finally:
        logging.disable(level)


def _train(cfg: CfgNode, trainer_class: type[Trainer], resume: bool) -> None:
    if comm.is_main_process():
        PathManager.mkdirs(cfg.OUTPUT_DIR)
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
    _seed(cfg)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    comm.synchronize()  # its checkpoint is written by one process


def _seed(cfg: CfgNode) -> None:
    """As Detectron2's `default_setup` does."""
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
