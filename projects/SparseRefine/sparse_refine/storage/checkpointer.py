# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that load safely and are never half written.

Detectron2's checkpointer writes over the file in place, so that a run killed while saving leaves a
broken `model_best.pth`, and unpickles what it loads.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from .files import write_whole
from .weights import load_weights


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
