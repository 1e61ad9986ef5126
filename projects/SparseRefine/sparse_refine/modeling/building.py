# SPDX-License-Identifier: Apache-2.0
"""From a config to a model: the keys of this project that hold for any dense model, applied."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from .contract import check_pixel_statistics, lookup
from .point_rend import check_point_rend
from .token_merging import apply_configured


def add_building_config(cfg: CfgNode) -> None:
    """Declare MODEL.CHANNELS_LAST and MODEL.ALLOW_PICKLE in `cfg`, in place."""
    # ---- any dense model -------------------------------------------------------------------------
    # Convolution weights in torch's channels_last layout: same numbers, on most machines faster.
    cfg.MODEL.CHANNELS_LAST = False
    # Read checkpoints that are Python pickles (Detectron2's .pkl, a .pth with more in it than
    # tensors): loading one runs whatever code it holds, so only for files from a source that you
    # trust. A yaml that sets it needs --trust-code.
    cfg.MODEL.ALLOW_PICKLE = False


def build_architecture(cfg: CfgNode, name: str, key: str = "MODEL.META_ARCHITECTURE") -> nn.Module:
    """The meta-architecture `name` built from a config, with what MODEL says of any dense model:
    checks that Detectron2 lacks, and token merging. `key` names it in messages.

    Raises:
        ValueError: an unknown name, or values that it cannot work with.
    """
    architecture = lookup(META_ARCH_REGISTRY, key, name)
    check_pixel_statistics(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, "MODEL")
    check_point_rend(cfg)
    model = architecture(cfg)
    if getattr(architecture, "refines", False):
        return model
    model.register_forward_hook(_no_loss_without_labels)
    return apply_configured(model, cfg)


def _no_loss_without_labels(model: nn.Module, args: tuple, output):
    """A hook on dense models: where no pixel of a training batch has a label, Detectron2's heads
    return the mean over no pixels, NaN, which ends the training. The right loss is 0."""
    if not model.training or not isinstance(output, dict):
        return output
    ignore = getattr(getattr(model, "sem_seg_head", model), "ignore_value", None)
    labels = [item["sem_seg"] for item in args[0] if "sem_seg" in item]
    if ignore is None or not labels or any((each != ignore).any() for each in labels):
        return output
    nothing = sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0  # DDP: every one
    return {key: nothing if loss.isnan() else loss for key, loss in output.items()}


def build_model(cfg: CfgNode) -> nn.Module:
    """The config's model on MODEL.DEVICE, in training mode, as `detectron2.modeling.build_model`,
    with the keys of this project that hold for any model.

    Raises:
        ValueError: as `build_architecture`.
    """
    model = build_architecture(cfg, cfg.MODEL.META_ARCHITECTURE).to(torch.device(cfg.MODEL.DEVICE))
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    return model
