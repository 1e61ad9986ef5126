# SPDX-License-Identifier: Apache-2.0
"""From the names in a checkpoint to a model's own: what wrappers put before them, taken off."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Where files keep a state dict beside other things: Detectron2; Lightning, MMEngine; many scripts;
# Detectron (Caffe2).
CONTAINERS = ("model", "state_dict", "model_state_dict", "model_state", "blobs")
# DistributedDataParallel, torch.compile, Lightning modules and the like.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")


def unwrapped(content: Any, path: str) -> dict[str, Any]:
    """The content of a checkpoint file as {"model": {name: tensor}, whatever else it holds}. What
    stands among the tensors and is none is left out, with a warning.

    Raises:
        ValueError: there is no tensor with a name in it; says what there is.
    """
    keys = way_to_tensors(content)
    if keys is None:
        raise ValueError(
            f"{path} holds no weights, but {_described(content)}: a state dict is needed, as it is "
            f"or under one of {', '.join(CONTAINERS)}"
        )
    state = content
    for key in keys:
        state = state[key]
    tensors = {name: value for name, value in state.items() if _is_tensor(name, value)}
    others = [name for name in state if name not in tensors]
    if others:
        logger.warning(f"{path}: {others[:6]} are no tensors, and are left out")
    beside = {key: value for key, value in content.items() if keys and key != keys[0]}
    return {**beside, "model": tensors}


def way_to_tensors(content: Any) -> list[str] | None:
    """The keys of containers, outermost first, that lead to a state dict; None where there is none.
    A container without tensors is passed over: a "model" may be a description of one."""
    if not isinstance(content, Mapping):
        return None
    for key in CONTAINERS:
        way = way_to_tensors(content.get(key))
        if way is not None:
            return [key, *way]
    return [] if any(_is_tensor(name, value) for name, value in content.items()) else None


def _is_tensor(name: Any, value: Any) -> bool:
    """A tensor or an array, with a name."""
    return isinstance(name, str) and hasattr(value, "shape")


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    kinds = [f"{key!r}: {_kind(value)}" for key, value in list(content.items())[:6]]
    return f"keys [{', '.join(kinds)}]"


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {len(value)} entries"
    return type(value).__name__


def fitted(
    state: Mapping[str, torch.Tensor], own: Collection[str], inner: str = ""
) -> dict[str, torch.Tensor]:
    """`state` with the names under which most of it fits a model that has the names `own`.

    Prefixes that all names share and that wrappers are known to add are taken off; `inner`, the
    prefix of the model that `own` wraps, is put before them. As they are, where that fits as well.
    """
    candidates = []
    for names in _without_wrappers(list(state)):
        for prefix in dict.fromkeys(("", inner)):
            candidates.append([prefix + name for name in names])
    best = max(candidates, key=lambda names: sum(name in own for name in names))
    return dict(zip(best, state.values()))


def _without_wrappers(names: list[str]) -> Iterable[list[str]]:
    yield names
    prefix = next((p for p in _WRAPPERS if names and all(n.startswith(p) for n in names)), None)
    if prefix is not None:
        yield from _without_wrappers([name[len(prefix) :] for name in names])
