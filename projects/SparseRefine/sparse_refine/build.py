# SPDX-License-Identifier: Apache-2.0
"""From a config to the parts of SparseRefine."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode as CN
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
from torch import nn

from .checkpoint import load_weights
from .coarse import CoarsePass
from .coarse_cache import CoarseCache
from .ensembler import ENSEMBLER_REGISTRY
from .extractor import EXTRACTOR_REGISTRY
from .modeling.token_merging import apply_configured
from .pretrained_extractor import PretrainedExtractor
from .selector import SELECTOR_REGISTRY

logger = logging.getLogger(__name__)


def build_parts(cfg) -> dict:
    """Keyword arguments of `SparseRefine`. See config.py for the keys.

    Raises:
        ValueError: an unknown name (listing the known ones), or an impossible value.
    """
    node = cfg.MODEL.SPARSE_REFINE
    _check(cfg)
    base = build_base(cfg)
    extractor = _build_extractor(cfg, base)
    mean = node.EXTRACTOR.PIXEL_MEAN or cfg.MODEL.PIXEL_MEAN
    std = node.EXTRACTOR.PIXEL_STD or cfg.MODEL.PIXEL_STD
    if isinstance(extractor, PretrainedExtractor):
        mean, std = extractor.normalisation
    return {
        "coarse": CoarsePass(
            base=base,
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            scale=node.BASE.SCALE,
            score_type=base_score_type(base, node.BASE.SCORE_TYPE),
            temperature=node.BASE.TEMPERATURE,
            interpolation=node.COARSE_INTERPOLATION,
            cache=_build_cache(cfg),
        ),
        "selector": _get(SELECTOR_REGISTRY, "SELECTOR", node.SELECTOR.NAME)(cfg),
        "extractor": extractor,
        "ensembler": _get(ENSEMBLER_REGISTRY, "ENSEMBLER", node.ENSEMBLER.NAME)(cfg),
        "pixel_mean": mean,
        "pixel_std": std,
        "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "output": node.OUTPUT,
        "refined_weight": node.LOSS.REFINED_WEIGHT,
        "fused_weight": node.LOSS.FUSED_WEIGHT,
        "dice_weight": node.LOSS.DICE_WEIGHT,
    }


def build_base(cfg) -> nn.Module:
    """The model to refine, with the weights of BASE.WEIGHTS where that is set."""
    node = cfg.MODEL.SPARSE_REFINE.BASE
    if node.META_ARCHITECTURE == "SparseRefine":
        raise ValueError("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE cannot be SparseRefine itself")
    build = _get(META_ARCH_REGISTRY, "BASE", node.META_ARCHITECTURE, key="META_ARCHITECTURE")
    # The crop is the refiner's: DeepLab's head would pool in windows of it and refuse other sizes.
    own = cfg.clone()
    own.defrost()
    own.INPUT.CROP.ENABLED = False
    own.freeze()
    base = build(own)
    if node.WEIGHTS:
        load_base_weights(base, node.WEIGHTS, node.WEIGHTS_PREFIX, cfg.MODEL.ALLOW_PICKLE)
    return apply_configured(base, cfg)


def _build_extractor(cfg, base: nn.Module) -> nn.Module:
    node = cfg.MODEL.SPARSE_REFINE.EXTRACTOR
    extractor = _get(EXTRACTOR_REGISTRY, "EXTRACTOR", node.NAME)
    if extractor is not PretrainedExtractor:
        return extractor(cfg)
    if node.WEIGHTS:
        own = cfg.clone()
        own.defrost()
        own.MODEL.SPARSE_REFINE.BASE.WEIGHTS = ""
        base = build_base(own)
        key = "MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS"
        load_base_weights(base, node.WEIGHTS, "", cfg.MODEL.ALLOW_PICKLE, key)
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return PretrainedExtractor(model=base, num_classes=classes, precision=node.PRECISION)


def base_has_weights(cfg) -> bool:
    """Whether the base comes with weights: from BASE.WEIGHTS, as a pretrained model of Hugging
    Face's, or as a module that loads its own (MODEL.MODULE.PRETRAINED)."""
    kind = cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE
    hub = cfg.MODEL.HUGGING_FACE
    return bool(
        cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS
        or (kind == "HuggingFaceSegmentor" and hub.NAME and hub.PRETRAINED)
        or (kind == "ModuleSegmentor" and cfg.MODEL.MODULE.PRETRAINED)
    )


def load_base_weights(
    base: nn.Module,
    path: str,
    prefix: str = "",
    allow_pickle: bool = False,
    keys: str = "MODEL.SPARSE_REFINE.BASE.WEIGHTS, BASE.WEIGHTS_PREFIX",
) -> None:
    """Load a base from its own checkpoint, every tensor of it. `keys` are what messages name.

    Where the base is a wrapper (ModuleSegmentor, HuggingFaceSegmentor), the names may be the
    wrapped model's own, without the wrapper's prefix.

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
    inner = getattr(base, "weights_prefix", "")
    if inner and not any(name in own for name in state):
        state = {f"{inner}{name}": tensor for name, tensor in state.items()}
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


def base_score_type(base: nn.Module, given: str | None) -> str:
    """What the `sem_seg` of a base holds: `given`, held against what the base itself says.

    Raises:
        ValueError: they differ. Scores read as logits would select nearly every pixel.
    """
    own = getattr(base, "score_type", "scores" if type(base).__name__ == "MaskFormer" else None)
    if own is not None and given is not None and own != given:
        raise ValueError(
            f"the base {type(base).__name__} returns {own}: set "
            f"MODEL.SPARSE_REFINE.BASE.SCORE_TYPE to {own!r} (it is {given!r})"
        )
    return given or own or "logits"


def _check(cfg) -> None:
    """Values that no part of its own looks at."""
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if classes < 1:
        raise ValueError(f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}: it must be at least 1")
    own = cfg.MODEL.SPARSE_REFINE.EXTRACTOR
    for key, values in (
        ("PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN),
        ("PIXEL_STD", cfg.MODEL.PIXEL_STD),
        ("SPARSE_REFINE.EXTRACTOR.PIXEL_MEAN", own.PIXEL_MEAN or cfg.MODEL.PIXEL_MEAN),
        ("SPARSE_REFINE.EXTRACTOR.PIXEL_STD", own.PIXEL_STD or cfg.MODEL.PIXEL_STD),
    ):
        if len(values) != 3 or (key.endswith("STD") and not min(values) > 0):
            raise ValueError(
                f"MODEL.{key} is {list(values)}: three numbers are needed"
                f"{', each above 0' if key.endswith('STD') else ''}"
            )
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME == "PointRendSemSegHead":  # else it answers for the top left corner alone
        steps = cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS
        if 2**steps != head.COMMON_STRIDE:  # facebookresearch/detectron2#3693
            raise ValueError(
                f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {steps} and "
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE {head.COMMON_STRIDE}: PointRend needs "
                "2**SUBDIVISION_STEPS == COMMON_STRIDE"
            )
    weights = dict(cfg.MODEL.SPARSE_REFINE.LOSS)
    for key, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"MODEL.SPARSE_REFINE.LOSS.{key} is {weight}: it must be at least 0")
    if not any(weights.values()):
        raise ValueError(
            f"MODEL.SPARSE_REFINE.LOSS: {', '.join(weights)} are all 0, there is nothing to learn"
        )


def _build_cache(cfg) -> CoarseCache | None:
    node = cfg.MODEL.SPARSE_REFINE
    if not node.COARSE_CACHE:
        return None
    # what the base's logits depend on besides the image and the weights: all that shapes the base,
    # but BASE.TEMPERATURE, which divides them when they are read
    model = cfg.MODEL.clone()
    model.defrost()
    model.WEIGHTS = model.DEVICE = ""
    model.SPARSE_REFINE = CN()
    base = (node.BASE.META_ARCHITECTURE, node.BASE.SCALE, node.BASE.SCORE_TYPE, cfg.INPUT.FORMAT)
    return CoarseCache(node.COARSE_CACHE, f"{base} {model.dump()}")


def _get(registry, node: str, name: str, key: str = "NAME"):
    if name not in registry:
        known = sorted(registered for registered, _ in registry)
        raise ValueError(
            f"MODEL.SPARSE_REFINE.{node}.{key} is {name!r}, which is not registered. Known: "
            f"{', '.join(known)}"
        )
    return registry.get(name)
