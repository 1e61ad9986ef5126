# SPDX-License-Identifier: Apache-2.0
"""Shipped models by name, as in `detectron2.model_zoo`: "rgbweed/sparse_refine", or the same with
".yaml". The one place that pairs configs with weights.

A config `configs/NAME.yaml` belongs to the weights `weights/NAME.safetensors`, or to those of
`_SAME_WEIGHTS`; configs without weights are not in the zoo. Both folders are those of
$SPARSE_REFINE_ZOO where that is set, else of the installed package (setup.py puts them there), else
of the checkout (projects/SparseRefine).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ..config import load_config
from .loading import load_model

__all__ = [
    "configs_folder",
    "find",
    "get",
    "get_config",
    "get_config_file",
    "get_weights",
    "names",
    "with_weights_found",
]

# Name of a config -> name of the weights, where they differ: a budget is chosen at inference.
_SAME_WEIGHTS = {"rgbweed/sparse_refine_fast": "rgbweed/sparse_refine"}
# What the yaml files, which are read from the repository's root, put before `weights/`.
_IN_REPOSITORY = Path("projects", "SparseRefine")


def names() -> list[str]:
    """Names of the models that have their weights here, sorted."""
    root = _root()
    configs = (path.relative_to(root / "configs") for path in root.glob("configs/*/*.yaml"))
    found = (config.with_suffix("").as_posix() for config in configs)
    return sorted(name for name in found if _weights(root, name).is_file())


def configs_folder() -> str:
    """Path of the folder of all configs, with and without weights here.

    Raises:
        FileNotFoundError: there is none; says where was looked.
    """
    return str(_root() / "configs")


def get_config_file(name: str) -> str:
    """Path of a model's yaml.

    Raises:
        ValueError: no model of that name; lists those that there are.
    """
    return str(_root() / "configs" / f"{_known(name)}.yaml")


def get_weights(name: str) -> str:
    """Path of a model's weights, `.safetensors`. For a SparseRefine they are the refiner's; the
    base's stand under MODEL.SPARSE_REFINE.BASE.WEIGHTS of `get_config`.

    Raises:
        ValueError: as `get_config_file`.
    """
    return str(_weights(_root(), _known(name)))


def get_config(name: str, opts: Sequence = ()) -> CfgNode:
    """A model's config, frozen, with its weights: `load_model` takes it from any working directory.

    Args:
        name: one of `names()`, with or without ".yaml".
        opts: KEY VALUE pairs, which come last.

    Raises:
        ValueError: as `get_config_file`.
        FileNotFoundError: the weights of the base are missing.
    """
    path, weights = get_config_file(name), get_weights(name)
    # the weights are complete: no ImageNet weights are needed below them, nor the package of those
    return with_base_weights(
        load_config(
            path,
            ["MODEL.WEIGHTS", weights, "MODEL.EFFICIENTNET_LITE.PRETRAINED", False, *opts],
        )
    )


def get(name: str, device: str | None = None) -> nn.Module:
    """A model with its weights, in eval mode (Detectron2's zoo returns training mode).

    Args:
        name: one of `names()`, with or without ".yaml".
        device: in place of MODEL.DEVICE.
    """
    return load_model(get_config(name, ["MODEL.DEVICE", device] if device else ()))


def find(config_file: str) -> str | None:
    """The name of the model that a yaml file belongs to, None where it is not one of the zoo's."""
    path, folder = Path(config_file).resolve(), (_root() / "configs").resolve()
    if folder not in path.parents:
        return None
    name = path.relative_to(folder).with_suffix("").as_posix()
    return name if name in names() else None


def with_base_weights(cfg: CfgNode) -> CfgNode:
    """The config with the weights found that a refiner stands on, its base's, extractor's and
    teacher's: a path into projects/SparseRefine/weights, which holds only from the repository's
    root, becomes one into the zoo.

    Raises:
        FileNotFoundError: the zoo has no such file.
    """
    for key, path in _stood_on(cfg).items():
        cfg = _with_zoo_path(cfg, key, path)
    return cfg


def _stood_on(cfg: CfgNode) -> dict[str, str]:
    """Keys and files of the weights that a refiner stands on."""
    method = cfg.MODEL.SPARSE_REFINE
    parts = ("BASE", "EXTRACTOR", "TEACHER")
    return {f"MODEL.SPARSE_REFINE.{part}.WEIGHTS": method[part].WEIGHTS for part in parts}


def with_weights_found(cfg: CfgNode) -> CfgNode:
    """The same of all keys of weights, where they are no files from here: a yaml that stands on one
    of the zoo's works in any folder, with a wheel as with a checkout.

    Raises:
        FileNotFoundError: as `with_base_weights`.
    """
    for key, path in {**_stood_on(cfg), "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS}.items():
        if not Path(path).is_file():
            cfg = _with_zoo_path(cfg, key, path)
    return cfg


def _with_zoo_path(cfg: CfgNode, key: str, given: str) -> CfgNode:
    if _IN_REPOSITORY / "weights" not in Path(given).parents:
        return cfg
    path = _root() / Path(given).relative_to(_IN_REPOSITORY)
    if not path.is_file():
        raise FileNotFoundError(f"{key} is {given!r}, which is not at {path}")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, str(path)])
    cfg.freeze()
    return cfg


def _root() -> Path:
    """The folder that holds configs/ and weights/.

    Raises:
        FileNotFoundError: none does; says where was looked.
    """
    given = os.environ.get("SPARSE_REFINE_ZOO", "")
    package = Path(__file__).resolve().parents[1]
    places = [Path(given).expanduser()] if given else [package / "zoo", package.parent]
    for place in places:
        if (place / "configs").is_dir() and (place / "weights").is_dir():
            return place
    raise FileNotFoundError(
        f"no folder with configs/ and weights/ at {' or '.join(map(str, places))}: set "
        "SPARSE_REFINE_ZOO to projects/SparseRefine of a checkout"
    )


def _weights(root: Path, name: str) -> Path:
    return root / "weights" / f"{_SAME_WEIGHTS.get(name, name)}.safetensors"


def _known(name: str) -> str:
    plain = name[: -len(".yaml")] if name.endswith(".yaml") else name
    known = names()
    if plain not in known:
        raise ValueError(f"the model zoo has no {name!r}. It has: {', '.join(known)}")
    return plain
