# SPDX-License-Identifier: Apache-2.0
"""Presets and keys of token merging, and how it is applied to a model and removed."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from . import families
from .attention import StageMerging
from .families import Grid, is_patch_embedding, merged_forward, recording_forward
from .matching import Merge

logger = logging.getLogger(__name__)


def add_token_merging_config(cfg: CfgNode) -> None:
    """Declare MODEL.TOKEN_MERGING in `cfg`, in place."""
    # ---- token merging, SegFormer++ --------------------------------------------------------------
    # In the attention of SegFormer, PVT, ViT, DeiT and DPT of transformers and of MixTransformer,
    # in the dense model or in the base. Any checkpoint serves, and training needs nothing more.
    cfg.MODEL.TOKEN_MERGING = CfgNode()
    # "" merges nothing. The paper's: "hq", "fast", "2x2". "hq_near" and "fast_near" compare a token
    # with the destinations of the 3 x 3 cells around it alone, which is faster.
    cfg.MODEL.TOKEN_MERGING.PRESET = ""
    # In its place, an entry for each stage: {query: MERGE, key_value: MERGE}, one of them, both or
    # {}. MERGE is {cell: [rows, columns], rate: share of the tokens that are merged, 0..1, reach:
    # cells to compare with on each side}; without a reach all of the map, without a rate the mean
    # of each cell.
    cfg.MODEL.TOKEN_MERGING.STAGES = []


def _matched(rates: tuple[float, float], cells: tuple[int, int], reach: int | None = None):
    """Keys and values in the stages of strides 4 and 8, queries in those of 16 and 32."""
    early, late = (Merge((n, n), rate, reach) for n, rate in zip(cells, rates))
    return (StageMerging(key_value=early),) * 2 + (StageMerging(query=late),) * 2


# Of stages at strides 4, 8, 16, 32. The first three are the paper's; the others compare a token
# with the destinations around it instead of with all of the map's.
PRESETS = {
    "hq": _matched((0.6, 0.8), (2, 4)),
    "fast": _matched((0.9, 0.9), (4, 4)),
    "2x2": (StageMerging(query=Merge((2, 2))),) * 4,
    "hq_near": _matched((0.6, 0.8), (2, 4), reach=1),
    "fast_near": _matched((0.9, 0.9), (4, 4), reach=1),
}
_PLAIN_STAGE = 2  # a plain ViT has one stage, of stride 16


def apply_token_merging(model: nn.Module, settings: str | Sequence[StageMerging]) -> nn.Module:
    """Merge tokens in every attention of `model` from now on, in place; returns `model`.

    Parameters and their names stay as they are. Works in evaluation and in training, where
    gradients reach all merged tokens. Replaces what was applied before.

    Args:
        model: SegFormer, PVT, ViT, DeiT or DPT of transformers, MixTransformer of this project, or
            any model that holds one of them.
        settings: a name in `PRESETS`, or an entry for each of the model's stages.

    Raises:
        ValueError: an unknown preset, another number of stages, or no attention that is known.
    """
    stages = attention_stages(model)
    settings = _for_stages(settings, stages)
    remove_token_merging(model)
    grid = Grid()
    # `forward` as an attribute of the instance hides the class's. Partials, because they are copied
    # and pickled together with the module that they name.
    for blocks, how in zip(stages.values(), settings):
        for module in blocks:
            module.forward = functools.partial(merged_forward(module), module, how, grid)
    for name, module in model.named_modules():
        if is_patch_embedding(name, module):
            module.forward = functools.partial(recording_forward, module, grid)
    counts = [len(blocks) for blocks in stages.values()]
    logger.info(f"Tokens merged in stages of {counts} blocks: {settings}")
    return model


def remove_token_merging(model: nn.Module) -> nn.Module:
    """Undo `apply_token_merging` where it was called, in place; returns `model`."""
    for module in model.modules():
        own = vars(module).get("forward")
        if isinstance(own, functools.partial) and own.func.__module__ == families.__name__:
            del module.forward
    return model


def apply_configured(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """`apply_token_merging` as MODEL.TOKEN_MERGING says, if it does; returns `model`.

    Raises:
        ValueError: see `apply_token_merging`; PRESET and STAGES at once, or an impossible entry.
    """
    node = cfg.MODEL.TOKEN_MERGING
    if node.PRESET and node.STAGES:
        raise ValueError(
            f"MODEL.TOKEN_MERGING.PRESET is {node.PRESET!r} and STAGES has {len(node.STAGES)} "
            "entries: set one of them"
        )
    if node.PRESET:
        return apply_token_merging(model, node.PRESET)
    if node.STAGES:
        return apply_token_merging(model, [_stage(*pair) for pair in enumerate(node.STAGES)])
    return model


def attention_stages(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The attention modules that are known here, in the order of the model, by the name of the
    list of blocks that they stand in: a stage."""
    stages: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if merged_forward(module) is not None:
            stages.setdefault(re.sub(r"\.?\d+(\.\D+)?$", "", name), []).append(module)
    return stages


def _for_stages(settings, stages: dict[str, list[nn.Module]]) -> Sequence[StageMerging]:
    """A setting for each of the model's stages; see `apply_token_merging`."""
    if not stages:
        raise ValueError(
            "MODEL.TOKEN_MERGING: the model has no attention whose tokens can be merged. Known are "
            "SegFormer, PVT, ViT, DeiT and DPT of transformers, and MixTransformer"
        )
    if not isinstance(settings, str):
        if len(settings) != len(stages):
            raise ValueError(
                f"MODEL.TOKEN_MERGING.STAGES has {len(settings)} entries and the model "
                f"{len(stages)} stages: {', '.join(stages)}"
            )
        return settings
    if settings not in PRESETS:
        raise ValueError(f"MODEL.TOKEN_MERGING.PRESET is {settings!r}: one of {', '.join(PRESETS)}")
    preset = PRESETS[settings]
    if len(stages) == 1:
        return preset[_PLAIN_STAGE : _PLAIN_STAGE + 1]
    if len(stages) > len(preset):
        raise ValueError(
            f"MODEL.TOKEN_MERGING.PRESET {settings!r} is of {len(preset)} stages and the model has "
            f"{len(stages)}: say what to merge in each, in STAGES"
        )
    return preset[: len(stages)]


def _stage(number: int, entry) -> StageMerging:
    """From an entry of MODEL.TOKEN_MERGING.STAGES."""
    key = f"MODEL.TOKEN_MERGING.STAGES[{number}]"
    parts = _fields(StageMerging, entry, key)
    return StageMerging(
        **{name: _merge(value, f"{key}.{name}") for name, value in parts.items() if value}
    )


def _merge(entry, key: str) -> Merge:
    """From {cell: [rows, columns], rate: ..., reach: ...}."""
    values = _fields(Merge, entry, key)
    if "cell" not in values:
        raise ValueError(f"{key} is {dict(entry)}: it needs 'cell', [rows, columns]")
    cell = values["cell"]
    try:
        return Merge(**{**values, "cell": tuple(cell) if isinstance(cell, list) else cell})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def _fields(kind: type, entry, key: str) -> dict:
    """`entry`, checked to be a mapping of fields of the dataclass `kind`."""
    known = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(entry, dict) or set(entry) - set(known):
        raise ValueError(f"{key} is {entry}: a mapping of {', '.join(known)}, each optional")
    return entry
