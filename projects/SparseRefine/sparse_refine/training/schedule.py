# SPDX-License-Identifier: Apache-2.0
"""The schedule of the learning rate that SOLVER describes."""

from __future__ import annotations

import torch
from detectron2 import solver
from detectron2.config import CfgNode

# Detectron2's schedules -> keys of SOLVER that each reads besides BASE_LR, MAX_ITER and WARMUP_*
_SCHEDULES = {
    "WarmupMultiStepLR": ("STEPS", "GAMMA"),
    "WarmupCosineLR": ("BASE_LR_END",),
    "WarmupStepWithFixedGammaLR": ("NUM_DECAYS", "GAMMA"),
}


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer):
    """Detectron2's.

    Raises:
        ValueError: there is none of these keys; names them, which Detectron2 does not.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME is {name!r}: one of {', '.join(_SCHEDULES)}; another takes "
            "a build_lr_scheduler of a subclass of Trainer"
        )
    try:
        return solver.build_lr_scheduler(cfg, optimizer)
    except (ValueError, AssertionError, ArithmeticError, LookupError) as error:
        keys = ("BASE_LR", *_SCHEDULES[name], "MAX_ITER", "WARMUP_ITERS", "WARMUP_METHOD")
        values = ", ".join(f"{key} {cfg.SOLVER[key]}" for key in keys)
        raise ValueError(
            f"SOLVER.LR_SCHEDULER_NAME {name} makes no schedule of these keys of SOLVER: {values} "
            f"({type(error).__name__}: {error})"
        ) from error
