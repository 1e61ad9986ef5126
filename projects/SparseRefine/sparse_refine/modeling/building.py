# SPDX-License-Identifier: Apache-2.0
"""From a config to a model: what holds for any meta-architecture, of Detectron2 or of this project.

A meta-architecture may say of itself, as attributes of its class:

- `refines = True`: it wraps a base; keys of dense models apply to the base, not to itself;
- `comes_with_weights(cfg)`: a classmethod, whether it has trained weights when it has been built;
- `score_type`: what its `sem_seg` holds, see `score_type_of`;
- `weights_prefix`: what a wrapper puts before the names of tensors of the model that it wraps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.registry import Registry
from torch import nn

from .point_rend import check_point_rend
from .token_merging import apply_configured

SCORE_TYPES = ("logits", "probabilities", "scores")
# Meta-architectures of other projects, which do not say it themselves; subclasses included.
_FOREIGN_SCORE_TYPES = {"MaskFormer": "scores"}


def add_building_config(cfg: CfgNode) -> None:
    """Declare MODEL.CHANNELS_LAST and MODEL.ALLOW_PICKLE in `cfg`, in place."""
    # ---- any dense model -------------------------------------------------------------------------
    # Convolution weights in torch's channels_last layout: same numbers, on most machines faster.
    cfg.MODEL.CHANNELS_LAST = False
    # Read Detectron2's .pkl checkpoints. They are Python pickles: loading one runs whatever code it
    # holds, so only for files from a source that you trust.
    cfg.MODEL.ALLOW_PICKLE = False


def lookup(registry: Registry, key: str, name: str):
    """What is registered as `name`; `key` is the config key, for the message.

    Raises:
        ValueError: nothing is; names the key and all that is registered.
    """
    if name not in registry:
        known = sorted(registered for registered, _ in registry)
        raise ValueError(f"{key} is {name!r}, which is not registered. Known: {', '.join(known)}")
    return registry.get(name)


def refines(cfg: CfgNode) -> bool:
    """Whether the config's model refines a base: SparseRefine, or a subclass under any name.

    Raises:
        ValueError: an unknown MODEL.META_ARCHITECTURE.
    """
    architecture = lookup(
        META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE
    )
    return getattr(architecture, "refines", False)


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


def check_pixel_statistics(mean: Sequence[float], std: Sequence[float], node: str) -> None:
    """Check PIXEL_MEAN and PIXEL_STD of a config node: `node` is its name, for messages.

    Raises:
        ValueError: not three numbers each, or a deviation that is not above 0.
    """
    for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std)):
        if len(values) != 3 or (key == "PIXEL_STD" and not min(values) > 0):
            raise ValueError(
                f"{node}.{key} is {list(values)}: three numbers are needed"
                f"{', each above 0' if key == 'PIXEL_STD' else ''}"
            )


def score_type_of(base: nn.Module, given: str | None = None) -> str:
    """What the `sem_seg` of a base holds, one of SCORE_TYPES: `given`, checked against what the
    base says of itself; "logits" where neither says anything.

    - "logits": its softmax over the classes is the class distribution;
    - "probabilities": the distribution itself;
    - "scores": non-negative numbers that need not sum to 1 (Mask2Former).

    Raises:
        ValueError: they differ. Scores read as logits would select nearly every pixel.
    """
    names = (kind.__name__ for kind in type(base).__mro__)
    foreign = next((_FOREIGN_SCORE_TYPES[n] for n in names if n in _FOREIGN_SCORE_TYPES), None)
    own = getattr(base, "score_type", foreign)
    if own is not None and given is not None and own != given:
        raise ValueError(
            f"the base {type(base).__name__} returns {own}: set "
            f"MODEL.SPARSE_REFINE.BASE.SCORE_TYPE to {own!r} (it is {given!r})"
        )
    return given or own or "logits"
