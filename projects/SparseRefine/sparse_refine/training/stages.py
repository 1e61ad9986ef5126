# SPDX-License-Identifier: Apache-2.0
"""What is trained before a refiner, from the same config: the base at low resolution, and the dense
network that the refiner starts from at full resolution. Each by the trainer, as any dense model."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.file_io import PathManager

from ..base import dense_config
from ..extractors import EXTRACTOR_REGISTRY
from ..modeling.contract import lookup, refines
from ..storage.files import write_text
from .checks import check_not_overwritten
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
        KeyError, ValueError: a key of TRAINING that does not exist or that would make another
            model, a value of another type, or a network that nothing reads.
    """
    if not refines(cfg) or cfg.MODEL.WEIGHTS:
        return []
    method = cfg.MODEL.SPARSE_REFINE
    stages, start = [], method.BASE.WEIGHTS
    if method.BASE.TRAINING and not method.BASE.WEIGHTS:
        stages.append(_stage(cfg, "BASE", CfgNode(), method.BASE.SCALE, ""))
        start = stages[0].checkpoint
    if method.EXTRACTOR.TRAINING and not method.EXTRACTOR.WEIGHTS:
        _check_network_is_read(method)
        own = method.EXTRACTOR.MODEL
        if start and not own and method.BASE.WEIGHTS_PREFIX:
            raise ValueError(
                f"{_METHOD}.EXTRACTOR.TRAINING starts from BASE.WEIGHTS, which cannot be read with "
                "a BASE.WEIGHTS_PREFIX: make a file of the base alone (tools/export_weights.py)"
            )
        stages.append(_stage(cfg, "EXTRACTOR", own, 1.0, "" if own else start))
    return stages


def _check_network_is_read(method: CfgNode) -> None:
    extractor = lookup(EXTRACTOR_REGISTRY, f"{_METHOD}.EXTRACTOR.NAME", method.EXTRACTOR.NAME)
    taught = method.LOSS.DISTILLATION_WEIGHT > 0 and not method.TEACHER.WEIGHTS
    if not (extractor.has_network or taught):
        raise ValueError(
            f"{_METHOD}.EXTRACTOR.TRAINING is set, and nothing reads such a network: "
            f"EXTRACTOR.NAME is {method.EXTRACTOR.NAME!r}"
        )


def _stage(cfg: CfgNode, node: str, overrides: CfgNode, scale: float, start: str) -> Stage:
    key = f"{_METHOD}.{node}"
    training = cfg.MODEL.SPARSE_REFINE[node].TRAINING
    # what the model is and sees must be what the refiner runs
    given = {*training, *(f"INPUT.{name}" for name in training.get("INPUT", {}))}
    wrong = sorted(given & {"MODEL", "PROJECTS", "OUTPUT_DIR", "INPUT.SCALE", "INPUT.FORMAT"})
    if wrong:
        raise ValueError(
            f"{key}.TRAINING holds {', '.join(wrong)}: such keys hold for the refiner as well, set "
            "them in the config itself"
        )
    own = dense_config(cfg, overrides, f"{key}.MODEL")
    own.defrost()
    own.MODEL.WEIGHTS, own.INPUT.SCALE = start, scale
    own.TEST.EXPECTED_RESULTS = []  # of the refiner
    try:
        own.merge_from_other_cfg(training)
    except (KeyError, ValueError) as error:
        raise type(error)(f"{key}.TRAINING: {error.args[0]}") from error
    own.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, node.lower())
    own.freeze()
    return Stage(node, own)


def check_stages(cfg: CfgNode, trainer_class: type[Trainer]) -> None:
    """What is wrong with the stages or the refiner, before hours of training.

    Raises:
        ValueError, KeyError, OSError: see `stages_of`; or the refiner cannot be built, has nothing
            to train or cannot make a step; or a stage would write over a file that is read.
    """
    stages = stages_of(cfg)
    if not stages:
        return
    method = cfg.MODEL.SPARSE_REFINE
    for stage in stages:
        for node in ("BASE", "EXTRACTOR", "TEACHER"):
            check_not_overwritten(stage.cfg, f"{_METHOD}.{node}.WEIGHTS", method[node].WEIGHTS)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that it has no weights yet
    try:
        model = trainer_class.build_model(cfg)
        trainer_class.build_optimizer(cfg, model)
        if method.TEACHER.WEIGHTS:
            model.teacher.build()
        model.teacher = None  # has no weights yet, where it is the extractor's network
        image = torch.randint(256, (3, 128, 128), dtype=torch.uint8)
        labels = torch.zeros(128, 128, dtype=torch.int64)
        sum(model.train()([{"image": image, "sem_seg": labels}]).values()).backward()
    finally:
        logging.disable(level)


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
    # a checkpoint of the refiner holds all that the stages made
    refining = resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    cfg = cfg.clone()
    cfg.defrost()
    for stage in stages:
        what = "the base" if stage.node == "BASE" else "the extractor's network"
        if resume and os.path.isfile(stage.checkpoint):
            logger.info(f"{what}: {stage.checkpoint} is there")
        elif refining:
            continue
        else:
            logger.info(f"Training {what} in {stage.cfg.OUTPUT_DIR}")
            _train(stage.cfg, trainer_class, resume)
        cfg.MODEL.SPARSE_REFINE[stage.node].WEIGHTS = stage.checkpoint
    cfg.freeze()
    _seed(cfg)  # the refiner starts as it does without them
    return cfg


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
