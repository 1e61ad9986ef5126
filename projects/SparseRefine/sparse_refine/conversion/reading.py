# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other projects, read without running what is inside of them.

Their `.pth` files hold tensors and, beside them, objects of the trainer that wrote them (mmengine's
HistoryBuffer, Lightning's and omegaconf's configs), which torch's weights-only loader refuses. Here
such an object becomes an inert stand-in: only what builds tensors is ever called.
"""

from __future__ import annotations

import collections
import pickle
import types
from typing import Any

import torch

from ..storage.names import way_to_tensors
from ..storage.weights import load_weights

# what torch writes to rebuild tensors; none of it runs code of the file
_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
}


class _Inert(dict):
    """Stands for an object whose class is not to be called: accepts everything, does nothing."""

    __hash__ = object.__hash__

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _TensorUnpickler(pickle.Unpickler):
    """Finds what rebuilds tensors, and `_Inert` for every other name."""

    def find_class(self, module: str, name: str):
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return getattr(torch, name, None) or getattr(torch.storage, name)
        return _Inert


# the parts of the module `pickle` that torch.load asks for
_TENSORS_ONLY = types.SimpleNamespace(
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
    __name__="sparse_refine.conversion.reading",
)


def read_tensors(path: str, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint: `.safetensors`, `.pth` and the like, `.pkl`.

    Of a file with several parts the one called `state_dict` (MMSegmentation, Lightning), `model`
    (Detectron2) and the like, see `names.way_to_tensors`; `module.` in front of every name, of a
    model in DDP, is taken off.

    Args:
        allow_pickle: read `.pkl` files (Detectron2's model zoo), and `.pth` files with all that is
            in them: runs whatever code they hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no tensors, or one of a kind that is not known.
    """
    try:
        content = load_weights(path, allow_pickle)["model"]
    except ValueError:
        if path.endswith((".pkl", ".safetensors")):
            raise
        content = _read_foreign(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is a {type(content).__name__}, not a dict of tensors")
    whole = content
    for key in way_to_tensors(content) or ():
        content = content[key]
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str):  # an optimizer's parameters are numbered
            continue
        if type(value).__module__ == "numpy":  # Detectron2's .pkl
            value = torch.as_tensor(value)
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach()
        elif isinstance(value, _Inert) and content is not whole:
            raise ValueError(f"{path}: {name} is of a kind that is not read without running code")
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name: {_kinds(content)}")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name[len("module.") :]: tensor for name, tensor in tensors.items()}
    return tensors


def _read_foreign(path: str) -> Any:
    """A `.pth` file that torch's weights-only loader refuses, with inert objects in it."""
    if _is_torchscript(path):  # torch.load would hand it to torch.jit.load, which runs its code
        raise ValueError(
            f"{path} is a TorchScript archive, a program: save the state_dict of the model that it "
            "was made from"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TENSORS_ONLY)
    except Exception as error:  # zipfile, pickle and torch each raise their own kinds
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error


def _is_torchscript(path: str) -> bool:
    """Whether torch.load would take the file for TorchScript, by the same reader."""
    with open(path, "rb") as file:
        try:
            return torch._C.PyTorchFileReader(file).has_record("constants.pkl")
        except RuntimeError:  # no zip archive
            return False


def _kinds(content: dict) -> str:
    kinds = [f"{name}: {type(value).__name__}" for name, value in list(content.items())[:5]]
    return ", ".join(kinds) or "it is empty"
