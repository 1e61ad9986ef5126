# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that load safely and are never half written.

Detectron2's checkpointer writes over the file in place, so that a run killed while saving leaves a
broken `model_best.pth`, and unpickles what it loads.
"""

from __future__ import annotations

import hashlib
import os
from types import SimpleNamespace
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from detectron2.utils import comm
from safetensors.torch import load_file, save_file

from .files import write_whole


def load_weights(path: str, allow_pickle: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file: {"model": {name: tensor}, ...}.

    `.safetensors`; `.pth` and its kin with torch's weights-only loader; `.pkl` (Detectron2's model
    zoo) only where `allow_pickle`, since loading one runs whatever code it holds.

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
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # safetensors, zipfile and torch each raise their own kinds
            raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    return content if "model" in content else {"model": content}


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


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with whole-or-nothing files and `load_weights`.

    A tensor of another shape is an error, never skipped. So is one of the model that the file
    lacks, if its name begins with one of `required` ("" is all) and not with one of `supplied`,
    which have their weights already: what is only evaluated, or frozen, must not stay random.
    """

    def __init__(
        self,
        model,
        save_dir="",
        *,
        allow_pickle: bool = False,
        required: tuple[str, ...] = (),
        supplied: tuple[str, ...] = (),
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.allow_pickle = allow_pickle
        self.required = required
        self.supplied = supplied
        self._loading = ""  # for messages

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        for key, checkpointable in self.checkpointables.items():
            data[key] = checkpointable.state_dict()
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_whole(path, lambda temporary: torch.save(data, temporary))
        if tag:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        def write(temporary):
            with open(temporary, "w") as file:
                file.write(last_filename_basename)

        write_whole(os.path.join(self.save_dir, "last_checkpoint"), write)

    def load(self, path: str, *args, **kwargs):
        if path and "://" not in path and comm.is_main_process() and not os.path.isfile(path):
            raise FileNotFoundError(f"MODEL.WEIGHTS: checkpoint {path!r} does not exist")
        self._loading = path
        return super().load(path, *args, **kwargs)

    def _log_incompatible_keys(self, incompatible) -> None:
        faults = [
            f"{name} is {tuple(of_file)} in the checkpoint and {tuple(of_model)} in the model"
            for name, of_file, of_model in incompatible.incorrect_shapes
        ]
        wrong = {name for name, _, _ in incompatible.incorrect_shapes}
        missing = [n for n in incompatible.missing_keys if not n.startswith(self.supplied)]
        faults += [
            f"{name} is missing"
            for name in missing
            if name not in wrong and name.startswith(self.required)
        ]
        if faults:
            more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
            raise ValueError(
                f"{self._loading} does not fit the model: {'; '.join(faults[:4])}{more}. Check "
                "MODEL.WEIGHTS, MODEL.SPARSE_REFINE.BASE.WEIGHTS (the base's own checkpoint), "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES and the model's keys"
            )
        super()._log_incompatible_keys(incompatible._replace(missing_keys=missing))

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = load_weights(filename, self.allow_pickle)
        if filename.endswith(".pkl") and "__author__" not in content:  # as Detectron2 reads them
            blobs = content["model"].get("blobs", content["model"])
            model = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
            return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
        return content


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, with a memory: after a resume a worse model does not replace the best.

    The memory is `model_best.pth` itself: the checkpoint that a run is resumed from may have been
    written before the evaluation that found the best. That one stays what `--resume` takes up.
    """

    def __init__(self, eval_period: int, checkpointer: SafeCheckpointer, metric: str):
        super().__init__(eval_period, SimpleNamespace(save=self._save), metric)
        self._saver = checkpointer
        self._path = os.path.join(checkpointer.save_dir, f"{self._file_prefix}.pth")

    def _save(self, name: str, iteration: int) -> None:
        value = self.trainer.storage.latest()[self._val_metric][0]
        self._saver.save(name, tag=False, iteration=iteration, best_metric=float(value))

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and os.path.isfile(self._path):
            best = load_weights(self._path)
            self.best_metric, self.best_iter = best.get("best_metric"), best.get("iteration")
