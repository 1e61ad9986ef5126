# SPDX-License-Identifier: Apache-2.0
"""A plain PyTorch segmentation module behind Detectron2's meta-architecture contract."""

from __future__ import annotations

import re

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from .importing import build_named
from .segmentor import Segmentor


def add_module_config(cfg: CfgNode) -> None:
    """Declare MODEL.MODULE in `cfg`, in place."""
    # ---- plain PyTorch modules -------------------------------------------------------------------
    cfg.MODEL.MODULE = CfgNode()
    # What makes the module: "package.module:name" or "path/to/file.py:name", a class or a function.
    cfg.MODEL.MODULE.PATH = ""
    cfg.MODEL.MODULE.ARGS = CfgNode(new_allowed=True)  # its keyword arguments, any mapping
    # Whether it comes with its weights: then it serves as a frozen base without BASE.WEIGHTS.
    cfg.MODEL.MODULE.PRETRAINED = False
    cfg.MODEL.MODULE.FORMAT = ""  # channel order it wants, "RGB" or "BGR"; "" takes INPUT.FORMAT
    cfg.MODEL.MODULE.SIZE_DIVISIBILITY = 1  # images are padded to a multiple of it, >= 1
    # Which entry of what it returns holds the class scores: an index of a tuple or list ("0"), a
    # key of a dict; "" for a tensor, or "out" of a dict (torchvision).
    cfg.MODEL.MODULE.OUTPUT = ""


@META_ARCH_REGISTRY.register()
class ModuleSegmentor(Segmentor):
    """Maps Detectron2's list of {"image"} to [{"sem_seg": (K,H,W)}] with any `nn.Module`.

    From a config it is built by MODEL.MODULE (see `add_module_config`), MODEL.PIXEL_MEAN and
    PIXEL_STD, SEM_SEG_HEAD.IGNORE_VALUE and SPARSE_REFINE.BASE.SCORE_TYPE.

    Args:
        module: float (B,3,H,W) -> class scores (B,K,h,w) of any size (brought to H x W bilinearly),
            or a dict that holds them under "out" (torchvision). In training, "aux" of that dict
            joins the loss with half the weight.
        output: where else they are: an index of a tuple or list, or a key of a dict; "" for none.
        options: of `Segmentor`: pixel_mean, pixel_std, flip_channels, size_divisibility,
            score_type, ignore_label.

    Raises:
        ValueError: the module returned something else.
    """

    # a checkpoint of the module alone, without this before its names, serves as a base's weights
    weights_prefix = "network."

    @configurable
    def __init__(self, module: nn.Module, *, output: str | int = "", **options):
        super().__init__(**options)
        self.network = module
        self.output = output

    def train(self, mode: bool = True) -> ModuleSegmentor:
        try:
            return super().train(mode)
        except NotImplementedError:  # a module of torch.export keeps the mode it was exported in
            return self

    @classmethod
    def comes_with_weights(cls, cfg: CfgNode) -> bool:
        """What MODULE.PRETRAINED says, see contract.py."""
        return bool(cfg.MODEL.MODULE.PRETRAINED)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.MODULE
        if not node.PATH:
            raise ValueError(
                "MODEL.MODULE.PATH is '': name the module to wrap, 'package.module:name' or "
                "'path/to/file.py:name'"
            )
        orders = (cfg.INPUT.FORMAT, "RGB", "BGR")
        if node.FORMAT and node.FORMAT not in orders:
            raise ValueError(f"MODEL.MODULE.FORMAT is {node.FORMAT!r}: '', 'RGB' or 'BGR'")
        return {
            "module": build_named(node.PATH, plain(node.ARGS), "MODEL.MODULE.PATH"),
            "output": node.OUTPUT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "flip_channels": node.FORMAT not in ("", cfg.INPUT.FORMAT),
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "score_type": cfg.MODEL.SPARSE_REFINE.BASE.SCORE_TYPE,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        return self._checked(self.network(images))

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.network(images)
        losses = {"loss_sem_seg": self._cross_entropy(self._checked(output), labels)}
        if isinstance(output, dict) and isinstance(output.get("aux"), torch.Tensor):
            losses["loss_aux"] = 0.5 * self._cross_entropy(output["aux"], labels)
        return losses

    def _checked(self, output) -> torch.Tensor:
        scores = output
        if isinstance(output, dict):
            scores = output.get(self.output or "out")
        elif isinstance(output, (tuple, list)) and re.fullmatch(r"-?\d+", str(self.output)):
            index = int(self.output)
            scores = output[index] if -len(output) <= index < len(output) else None
        if isinstance(scores, torch.Tensor) and scores.dim() == 4:
            return scores
        kind = type(output).__name__
        if isinstance(output, torch.Tensor):
            kind = str(tuple(output.shape))
        elif isinstance(output, dict):
            kind = f"a dict of {list(output)}"
        elif isinstance(output, (tuple, list)):
            kind = f"a {kind} of {len(output)}"
        raise ValueError(
            f"{type(self.network).__name__} returned {kind}: class scores (B,K,h,w), or a dict "
            "that holds them under 'out', are needed. MODEL.MODULE.OUTPUT (module_output of "
            f"SparseRefine.wrap) says which entry holds them; it is {self.output!r}"
        )


def as_segmentor(module: nn.Module, **options) -> nn.Module:
    """`module` as it is where it takes Detectron2's list of dicts: a `Segmentor`, a registered
    meta-architecture, or what has an attribute `sem_seg_head`. Else a `ModuleSegmentor` around it,
    with `options`."""
    name = type(module).__name__
    registered = name in META_ARCH_REGISTRY and META_ARCH_REGISTRY.get(name) is type(module)
    if registered or isinstance(module, Segmentor) or hasattr(module, "sem_seg_head"):
        return module
    return ModuleSegmentor(module, **options)


def plain(node):
    """A config node, or a value of one, as plain dicts, lists and numbers."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [plain(value) for value in node]
    return node
