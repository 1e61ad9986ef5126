# SPDX-License-Identifier: Apache-2.0
"""Weights in files: loaded without running what they hold, written whole."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .files import write_whole
from .names import unwrapped


def load_weights(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file: {"model": {name: tensor}, ...}.

    `.safetensors`; `.pth` and its kin with torch's weights-only loader; `.pkl` (Detectron2's model
    zoo), and `.pth` that hold other Python objects, only where `allow_pickle`, since loading one
    runs whatever code it holds. State dicts under other keys are found, see `names.unwrapped`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or needs `allow_pickle`.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {path!r} does not exist")
    if path.endswith(".pkl"):
        if not allow_pickle:
            raise ValueError(
                f"{path} is a Python pickle, and loading one runs whatever code it holds: set "
                "MODEL.ALLOW_PICKLE True if you trust where it comes from"
            )
        import pickle

        with open(path, "rb") as file:
            content = pickle.load(file, encoding="latin1")
    else:
        try:
            if path.endswith(".safetensors"):
                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
        except Exception as error:  # safetensors, zipfile and torch each raise their own kinds
            objects = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
            if objects is not None and not allow_pickle:
                raise ValueError(
                    f"{path} cannot be read as a checkpoint of tensors alone: it holds a "
                    f"{objects[1]}, and loading such objects runs whatever code they name: set "
                    "MODEL.ALLOW_PICKLE True if you trust where it comes from"
                ) from error
            raise ValueError(
                f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}"
            ) from error
    return unwrapped(content, path)


def save_weights(state_dict: dict[str, torch.Tensor], path: str, half: bool = False) -> None:
    """Write tensors as `.safetensors`, floating point ones in fp16 where `half`."""
    tensors = {}
    for name, tensor in state_dict.items():
        if half and tensor.is_floating_point():
            tensor = tensor.clamp(-65504, 65504).half()  # what fp16 holds
        tensors[name] = tensor.contiguous().cpu()
    seen = set()
    for name, tensor in tensors.items():  # safetensors refuses tied weights: each gets its own
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    write_whole(path, lambda temporary: save_file(tensors, temporary))


def state_digest(state_dict: dict[str, torch.Tensor], salt: str = "") -> str:
    """Sixteen hexadecimal digits that change with any name or number of a state dict."""
    digest = hashlib.sha256(salt.encode())
    for name, tensor in state_dict.items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
