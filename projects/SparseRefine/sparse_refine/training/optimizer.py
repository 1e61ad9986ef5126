# SPDX-License-Identifier: Apache-2.0
"""The optimizer that SOLVER describes."""

from __future__ import annotations

import functools

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import GradientClipType, maybe_add_gradient_clipping


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that are not frozen, with Detectron2's factors of norms and
    biases, and SOLVER.BACKBONE_MULTIPLIER.

    Raises:
        ValueError: nothing to train, another optimizer, or see `check_solver`.
    """
    check_solver(cfg)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has nothing to train here: "
            "all of its parameters are frozen. Evaluate it, with --eval-only"
        )
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        lr_factor_func=lambda name: cfg.SOLVER.BACKBONE_MULTIPLIER if "backbone" in name else 1.0,
    )
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        optimizer = functools.partial(torch.optim.AdamW, lr=cfg.SOLVER.BASE_LR)
    elif cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = functools.partial(
            torch.optim.SGD,
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
        )
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}: one of 'ADAMW', 'SGD'")
    return maybe_add_gradient_clipping(cfg, optimizer(params))


def check_solver(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: a value with which the optimizer would fail in words that name no key, or climb.
    """
    solver = cfg.SOLVER
    if not 0 < solver.BASE_LR < float("inf"):
        raise ValueError(f"SOLVER.BASE_LR is {solver.BASE_LR:g}: it must be above 0")
    for key in (
        *("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"),
        *("BACKBONE_MULTIPLIER", "BIAS_LR_FACTOR", "MOMENTUM"),
    ):
        if solver[key] is not None and not solver[key] >= 0:
            raise ValueError(f"SOLVER.{key} is {solver[key]:g}: it must be at least 0")
    clip, known = solver.CLIP_GRADIENTS, [kind.value for kind in GradientClipType]
    if not clip.ENABLED:
        return
    if clip.CLIP_TYPE not in known:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}: one of {known}, of each "
            "parameter by itself; what other projects call 'full_model' takes a build_optimizer of "
            "a subclass of Trainer"
        )
    if not clip.CLIP_VALUE > 0:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_VALUE is {clip.CLIP_VALUE:g}: it must be above 0"
        )
