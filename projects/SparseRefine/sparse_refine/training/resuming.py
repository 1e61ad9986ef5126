# SPDX-License-Identifier: Apache-2.0
"""What makes a resumed run the same as an unbroken one, and says so where it is not."""

from __future__ import annotations

import logging
import random

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

logger = logging.getLogger(__name__)

# Keys whose values the optimizer's and the scheduler's states bring back on a resume.
_KEPT = ("BASE_LR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "MOMENTUM", "BIAS_LR_FACTOR")


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed Python's, numpy's and torch's generators for one training iteration of this process.

    Random numbers (dropout, drop path, PointRend's points) are then a function of seed, process and
    iteration, as the data are: no state of a generator has to be in the checkpoint, of which there
    would be one for each process.
    """
    drawn = np.random.SeedSequence([seed, comm.get_rank(), iteration]).generate_state(1)
    random.seed(int(drawn[0]))
    np.random.seed(drawn[0])
    torch.manual_seed(int(drawn[0]))  # of every device


def kept_solver_keys(cfg: CfgNode) -> dict[str, float]:
    """What `warn_of_changed_solver` compares, for the checkpoint."""
    return {key: float(cfg.SOLVER[key]) for key in _KEPT}


def warn_of_changed_solver(cfg: CfgNode, kept: dict[str, float]) -> None:
    """Say which keys of SOLVER have changed since the checkpoint that is resumed from: the
    optimizer's state in it goes before the config, as in Detectron2."""
    for key, value in kept.items():
        if key in cfg.SOLVER and float(cfg.SOLVER[key]) != value:
            logger.warning(
                f"SOLVER.{key} is {cfg.SOLVER[key]:g}, but --resume goes on with the checkpoint's "
                f"{value:g}. To change it, begin anew from that checkpoint: MODEL.WEIGHTS, another "
                "OUTPUT_DIR, no --resume"
            )
