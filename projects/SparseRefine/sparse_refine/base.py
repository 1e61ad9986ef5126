# SPDX-License-Identifier: Apache-2.0
"""The base: any segmentation model, built as it is, with its own weights, to be frozen."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
from torch import nn

from .modeling.building import build_architecture
from .modeling.contract import lookup
from .storage.names import fitted
from .storage.weights import load_weights

logger = logging.getLogger(__name__)

_KEY = "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE"


def build_base(cfg: CfgNode) -> nn.Module:
    """The model to refine, with the weights of BASE.WEIGHTS where that is set."""
    node = cfg.MODEL.SPARSE_REFINE.BASE
    if getattr(lookup(META_ARCH_REGISTRY, _KEY, node.META_ARCHITECTURE), "refines", False):
        raise ValueError(f"{_KEY} cannot be {node.META_ARCHITECTURE} itself")
    # The crop is the refiner's: DeepLab's head would pool in windows of it and refuse other sizes.
    own = cfg.clone()
    own.defrost()
    own.INPUT.CROP.ENABLED = False
    own.freeze()
    base = build_architecture(own, node.META_ARCHITECTURE, _KEY)
    if node.WEIGHTS:
        load_base_weights(base, node.WEIGHTS, node.WEIGHTS_PREFIX, cfg.MODEL.ALLOW_PICKLE)
    elif not cfg.MODEL.WEIGHTS and not base_has_weights(cfg):  # Detectron2's trainer does not look
        logger.warning(
            f"MODEL.SPARSE_REFINE.BASE.WEIGHTS and MODEL.WEIGHTS are both '': the frozen base "
            f"{type(base).__name__} has random weights until a checkpoint of the whole model is "
            "loaded. Set BASE.WEIGHTS to the base's own checkpoint"
        )
    return base


def base_has_weights(cfg: CfgNode) -> bool:
    """Whether the base comes with weights: from BASE.WEIGHTS, or by itself, as a pretrained model
    of Hugging Face does."""
    node = cfg.MODEL.SPARSE_REFINE.BASE
    base = lookup(META_ARCH_REGISTRY, _KEY, node.META_ARCHITECTURE)
    return bool(node.WEIGHTS) or getattr(base, "comes_with_weights", lambda cfg: False)(cfg)


def load_base_weights(
    base: nn.Module,
    path: str,
    prefix: str = "",
    allow_pickle: bool = False,
    keys: str = "MODEL.SPARSE_REFINE.BASE.WEIGHTS, BASE.WEIGHTS_PREFIX",
) -> None:
    """Load a base from its own checkpoint, every tensor of it. `keys` are what messages name.

    Names may be the wrapped model's own where the base is a wrapper (ModuleSegmentor,
    HuggingFaceSegmentor), and may have prefixes of other wrappers, see `names.fitted`.

    Raises:
        ValueError: tensors are missing or of another shape: the file, the names and both shapes.
    """
    path = PathManager.get_local_path(path)
    state = {
        name[len(prefix) :]: torch.as_tensor(tensor)  # Detectron2's .pkl files hold numpy arrays
        for name, tensor in load_weights(path, allow_pickle)["model"].items()
        if name.startswith(prefix)
    }
    own = base.state_dict()
    state = fitted(state, own, getattr(base, "weights_prefix", ""))
    # a frozen base never reads the counters, and converted checkpoints lack them
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and tuple(state[name].shape) != tuple(tensor.shape)
    ]
    if missing or shapes:
        faults = [*(f"{name} is missing" for name in missing), *shapes]
        raise ValueError(
            f"{path} does not fit the base {type(base).__name__}: {'; '.join(faults[:4])}"
            f"{f' and {len(faults) - 4} more' if len(faults) > 4 else ''}. Check "
            f"{keys}, MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        )
    # into `own`, which has the versions of the base's modules: without them Mask2Former would take
    # the names for those of its first version, and change them
    own.update({name: state[name] for name in own if name in state})
    base.load_state_dict(own)
    logger.info(f"Base {type(base).__name__}: {len(own)} tensors from {path}")


def supplied_weights(cfg: CfgNode, model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of the tensors of a built model that have their weights already: the
    frozen part of a refiner whose base has them, all of a model that comes with its own."""
    if hasattr(model, "frozen"):
        return model.frozen if base_has_weights(cfg) else ()
    return ("",) if getattr(model, "comes_with_weights", lambda cfg: False)(cfg) else ()
