# SPDX-License-Identifier: Apache-2.0
"""What is known of any meta-architecture, and how parts are found by name.

A meta-architecture may say of itself, as attributes of its class:

- `refines = True`: it wraps a base; keys of dense models apply to the base, not to itself;
- `comes_with_weights(cfg)`: a classmethod, whether it has trained weights when it has been built;
  then, as an attribute of the model, `started_anew`: names of tensors that have none all the same;
- `score_type`: what its `sem_seg` holds, see `score_type_of`;
- `weights_prefix`: what a wrapper puts before the names of tensors of the model that it wraps.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from fvcore.common.registry import Registry
from torch import nn

SCORE_TYPES = ("logits", "probabilities", "scores")
# Meta-architectures of other projects, which do not say it themselves; subclasses included.
_FOREIGN_SCORE_TYPES = {"MaskFormer": "scores"}


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


def check_declared(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: a config of Detectron2 without the keys of this project.
    """
    if "SPARSE_REFINE" not in cfg.MODEL:
        raise ValueError(
            "the config lacks the keys of this project: call add_sparse_refine_config(cfg) after "
            "get_cfg(), before a yaml is merged; `load_config` does so"
        )


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
