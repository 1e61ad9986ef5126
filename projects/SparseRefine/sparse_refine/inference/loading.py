# SPDX-License-Identifier: Apache-2.0
"""A model with its weights, ready to predict."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from ..base import supplied_weights
from ..modeling.building import build_model
from ..modeling.trust import trust
from ..storage.checkpointer import SafeCheckpointer


def load_model(cfg: CfgNode, *, trust_code: bool = False) -> torch.nn.Module:
    """The config's model with MODEL.WEIGHTS, in eval mode.

    MODEL.WEIGHTS must hold every tensor of it, but for those that have their weights already, see
    `supplied_weights`; it may be "" where they are all. `trust_code`
    consents to the code that MODEL.MODULE.PATH names, see modeling/trust.py.

    Raises:
        FileNotFoundError, ValueError: see `SafeCheckpointer`; or MODEL.WEIGHTS is "".
    """
    if trust_code:
        trust([cfg.MODEL.MODULE.PATH])
    model = build_model(cfg)
    supplied = supplied_weights(cfg, model)
    if cfg.MODEL.WEIGHTS:
        checkpointer = SafeCheckpointer(
            model, allow_pickle=cfg.MODEL.ALLOW_PICKLE, required=("",), supplied=supplied
        )
        checkpointer.load(cfg.MODEL.WEIGHTS)
    elif not all(name.startswith(supplied) for name in model.state_dict()):
        raise ValueError("MODEL.WEIGHTS is '': name the checkpoint to evaluate")
    return model.eval()
