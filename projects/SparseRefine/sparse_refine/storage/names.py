# SPDX-License-Identifier: Apache-2.0
"""From the names in a checkpoint to a model's own: what wrappers put before them, taken off."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

# Where files keep a state dict beside other things: Detectron2; Lightning, MMEngine; many scripts.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "model_state")
# DistributedDataParallel, torch.compile, Lightning modules and the like.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "net.")


def unwrapped(content: Any, path: str) -> dict[str, Any]:
    """The content of a checkpoint file as {"model": {name: tensor}, whatever else it holds}.

    Raises:
        ValueError: there is no state dict in it; says what there is.
    """
    if isinstance(content, Mapping):
        for key in _CONTAINERS:
            if isinstance(content.get(key), Mapping):
                return {**{k: v for k, v in content.items() if k != key}, "model": content[key]}
        if any(hasattr(value, "shape") for value in content.values()):
            return {"model": content}
    found = f"keys {list(content)[:6]}" if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(
        f"{path} holds no weights, but {found}: a state dict is needed, as it is or under one of "
        f"{', '.join(_CONTAINERS)}"
    )


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
