# SPDX-License-Identifier: Apache-2.0
"""Frozen models: the base, any segmentation model as it is with its own weights; and the teacher.

Shapes: K classes, (H, W) an image, P sites of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
from torch import nn

from .coarse import to_logits
from .modeling.building import build_architecture
from .modeling.contract import lookup, score_type_of
from .sites import Sites
from .storage.names import fitted
from .storage.weights import load_weights

logger = logging.getLogger(__name__)

_KEY = "MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE"


def build_base(cfg: CfgNode) -> nn.Module:
    """The model to refine, with the weights of BASE.WEIGHTS where that is set."""
    node = cfg.MODEL.SPARSE_REFINE.BASE
    if getattr(lookup(META_ARCH_REGISTRY, _KEY, node.META_ARCHITECTURE), "refines", False):
        raise ValueError(f"{_KEY} cannot be {node.META_ARCHITECTURE} itself")
    base = _build(cfg, node.META_ARCHITECTURE, _KEY)
    if node.WEIGHTS:
        load_base_weights(base, node.WEIGHTS, node.WEIGHTS_PREFIX, cfg.MODEL.ALLOW_PICKLE)
    elif not cfg.MODEL.WEIGHTS and not base_has_weights(cfg):  # Detectron2's trainer does not look
        logger.warning(
            f"MODEL.SPARSE_REFINE.BASE.WEIGHTS and MODEL.WEIGHTS are both '': the frozen base "
            f"{type(base).__name__} has random weights until a checkpoint of the whole model is "
            "loaded. Set BASE.WEIGHTS to the base's own checkpoint"
        )
    return base


def _build(cfg: CfgNode, name: str, key: str) -> nn.Module:
    # The crop is the refiner's: DeepLab's head would pool in windows of it and refuse other sizes.
    own = cfg.clone()
    own.defrost()
    own.INPUT.CROP.ENABLED = False
    own.freeze()
    return build_architecture(own, name, key)


def build_dense(cfg: CfgNode, overrides: CfgNode, weights: str, keys: tuple[str, str]) -> nn.Module:
    """A dense model beside the base: of the base's architecture, or of what `overrides` say.

    Args:
        overrides: keys of MODEL that differ from the base's, see `dense_config`.
        weights: its checkpoint; "" leaves it as it was built.
        keys: where both stand, for messages.
    """
    own = dense_config(cfg, overrides, keys[0])
    model = _build(own, own.MODEL.META_ARCHITECTURE, f"{keys[0]}.META_ARCHITECTURE")
    if weights:
        load_base_weights(model, weights, "", cfg.MODEL.ALLOW_PICKLE, keys[1])
    return model.to(memory_format=torch.channels_last) if cfg.MODEL.CHANNELS_LAST else model


def dense_config(cfg: CfgNode, overrides: CfgNode, key: str) -> CfgNode:
    """The config of a dense model by itself: `cfg` with the base's META_ARCHITECTURE and with other
    values of keys under MODEL. `key` names them in messages.

    Raises:
        KeyError, ValueError: a key that MODEL does not have, one that is the config's alone, or a
            value of another type.
    """
    for name in ("WEIGHTS", "DEVICE", "ALLOW_PICKLE", "SPARSE_REFINE"):
        if name in overrides:
            raise ValueError(f"{key} holds {name}, which is not the network's: leave it out")
    own = cfg.clone()
    own.defrost()
    own.MODEL.META_ARCHITECTURE = cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE
    try:
        own.MODEL.merge_from_other_cfg(overrides)
    except (KeyError, ValueError) as error:
        raise type(error)(f"{key}: {error.args[0]} (it holds keys of MODEL)") from error
    own.freeze()
    return own


class Teacher:
    """A dense model that sees whole crops in training (Hinton et al. 2015, arXiv 1503.02531).

    No module: its weights are in no checkpoint, and a model that is only used never builds it.

    Args:
        cfg: of the refiner.
        node: of cfg, whose MODEL and WEIGHTS are the teacher's. keys: where they stand.
    """

    def __init__(self, cfg: CfgNode, node: CfgNode, keys: tuple[str, str]):
        self._cfg, self._node, self._keys = cfg, node, keys
        self._model: nn.Module | None = None  # built at the first call

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Teacher | None:
        """Of TEACHER, or of EXTRACTOR where TEACHER.WEIGHTS is ""; None where
        LOSS.DISTILLATION_WEIGHT is 0.

        Raises:
            ValueError: a teacher that nothing is learned from, or one without weights.
        """
        method = cfg.MODEL.SPARSE_REFINE
        node, name = method.TEACHER, "MODEL.SPARSE_REFINE.TEACHER"
        if method.LOSS.DISTILLATION_WEIGHT == 0:
            if node.WEIGHTS:
                raise ValueError(
                    f"{name}.WEIGHTS is {node.WEIGHTS!r}, and nothing is learned from it: "
                    "MODEL.SPARSE_REFINE.LOSS.DISTILLATION_WEIGHT is 0"
                )
            return None
        if not node.WEIGHTS:
            if node.MODEL:
                raise ValueError(f"{name}.MODEL is set, and {name}.WEIGHTS is ''")
            node, name = method.EXTRACTOR, "MODEL.SPARSE_REFINE.EXTRACTOR"
        return cls(cfg, node, (f"{name}.MODEL", f"{name}.WEIGHTS"))

    def build(self) -> nn.Module:
        """
        Raises:
            FileNotFoundError, ValueError: no weights, or what is wrong with them.
        """
        if not self._node.WEIGHTS:
            raise ValueError(
                "MODEL.SPARSE_REFINE.LOSS.DISTILLATION_WEIGHT is above 0, and both TEACHER.WEIGHTS "
                "and EXTRACTOR.WEIGHTS are '': name the checkpoint of the teacher, or set it to 0"
            )
        model = build_dense(self._cfg, self._node.MODEL, self._node.WEIGHTS, self._keys)
        return model.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, images: Sequence[torch.Tensor], sites: Sites) -> torch.Tensor:
        """Logits (P,K) at the sites of images (3,H,W).

        Raises:
            ValueError: another number of classes than the refiner's.
        """
        if self._model is None:
            self._model = self.build()
        model = self._model.to(images[0].device)
        given = None if self._node.MODEL else self._cfg.MODEL.SPARSE_REFINE.BASE.SCORE_TYPE
        score_type = score_type_of(model, given)
        answers = model([{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images])
        maps = [to_logits(each["sem_seg"].float(), score_type) for each in answers]
        classes = self._cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if maps[0].shape[0] != classes:
            raise ValueError(
                f"{self._keys[1]}: the teacher predicts {maps[0].shape[0]} classes, and "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}"
            )
        return sites.read(maps)


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
    try:
        path = PathManager.get_local_path(path)
    except OSError as error:  # no network, no such address
        raise OSError(f"{keys.split(',')[0]}: {path!r} cannot be fetched: {error}") from error
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
    if getattr(model, "started_anew", ()):
        return ()
    return ("",) if getattr(model, "comes_with_weights", lambda cfg: False)(cfg) else ()
