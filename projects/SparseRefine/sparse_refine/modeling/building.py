# SPDX-License-Identifier: Apache-2.0
"""From a config to a model: the keys of this project that hold for any dense model, applied."""

from __future__ import annotations

import re

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from torch import nn

from .contract import check_declared, check_pixel_statistics, lookup
from .point_rend import check_point_rend
from .token_merging import apply_configured

# Registries of what a dense architecture is made of, by their names -> the node under MODEL.
_PARTS = {
    "BACKBONE": (BACKBONE_REGISTRY, "BACKBONE"),
    "SEM_SEG_HEADS": (SEM_SEG_HEADS_REGISTRY, "SEM_SEG_HEAD"),
}


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
    try:
        model = architecture(cfg)
    except KeyError as error:  # fvcore's: says the registry, not the key
        found = re.search(r"No object named .* found in '(\w+)' registry", str(error))
        registry, part = _PARTS.get(found[1] if found else "", (None, ""))
        if registry is None:
            raise
        lookup(registry, f"MODEL.{part}.NAME", cfg.MODEL[part].NAME)
        raise
    if getattr(architecture, "refines", False):
        return model
    model.register_forward_hook(_no_loss_without_labels)
    return apply_configured(model, cfg)


def checked_device(device: str | torch.device, key: str = "MODEL.DEVICE") -> torch.device:
    """
    Args:
        key: names it in messages.

    Raises:
        ValueError: an unknown kind of device, or one that this machine does not have.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        parsed = torch.device(device)
        if parsed.type == "cuda" and (parsed.index or 0) >= found:
            raise ValueError(f"{key} is {str(device)!r}, but torch sees {found} GPUs: 'cpu' works")
        torch.empty(0, device=parsed)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"{key} is {str(device)!r}: 'cpu', 'cuda' or 'cuda:N' is needed "
            f"({str(error).splitlines()[0]})"
        ) from error
    return parsed


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
        ValueError: as `build_architecture`; or no such device; or see `check_declared`.
    """
    check_declared(cfg)
    device = checked_device(cfg.MODEL.DEVICE)
    model = build_architecture(cfg, cfg.MODEL.META_ARCHITECTURE).to(device)
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    return model
