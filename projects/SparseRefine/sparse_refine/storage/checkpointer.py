# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that load safely and are never half written.

Detectron2's checkpointer writes over the file in place, so that a run killed while saving leaves a
broken `model_best.pth`, and unpickles what it loads.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.error import URLError
from urllib.parse import parse_qs, urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils import comm

from .files import write_whole
from .names import fitted
from .weights import load_weights


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with whole-or-nothing files and `load_weights`.

    Names are fitted to the model's, see `names.fitted`; a file of which nothing fits is an error.
    So is a tensor of the model that the file lacks or has in another shape, if its name begins with
    one of `required` ("" is all): what is only evaluated, or frozen, must not stay random. Those
    that begin with one of `supplied` have their weights already and may be lacking. When a run is
    resumed every tensor is required. The others are skipped with a warning, as in Detectron2: so a
    checkpoint of other classes can be fine-tuned.
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
        file = path.split("?")[0] if path else path  # ?matching_heuristics=True, as in Detectron2
        if file and "://" not in file and comm.is_main_process() and not os.path.isfile(file):
            found = "is a folder" if os.path.isdir(file) else "does not exist"
            raise FileNotFoundError(f"MODEL.WEIGHTS: checkpoint {file!r} {found}")
        self._loading = path
        try:
            return super().load(path, *args, **kwargs)
        except URLError as error:  # does not say of what
            raise OSError(f"MODEL.WEIGHTS: {path} cannot be fetched: {error.reason}") from error
        finally:
            self._parsed_url_during_load = None  # left behind by an error, it refuses the next one

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=False)
        last = self.get_checkpoint_file()
        if comm.is_main_process() and not os.path.isfile(last):
            raise FileNotFoundError(
                f"--resume: {os.path.join(self.save_dir, 'last_checkpoint')} names "
                f"{os.path.basename(last)!r}, which is not there. Write the name of one that is "
                "into it, or delete it and begin anew"
            )
        required, supplied = self.required, self.supplied
        self.required, self.supplied = ("",), ()
        try:
            return super().resume_or_load(path, resume=True)
        finally:
            self.required, self.supplied = required, supplied

    def _load_model(self, checkpoint: dict[str, Any]):
        own = self.model.state_dict()
        state = fitted(checkpoint["model"], own, getattr(self.model, "weights_prefix", ""))
        if checkpoint.pop("matching_heuristics", False):  # here: what follows holds for it as well
            caffe2 = checkpoint.get("__author__") == "Caffe2"
            self._convert_ndarray_to_tensor(state)
            state = align_and_update_state_dicts(own, state, c2_conversion=caffe2)
        if own and not any(name in own for name in state):
            raise ValueError(
                f"{self._loading} does not fit the model: it has none of its tensors. The file has "
                f"{', '.join(list(state)[:3])} ..., the model {', '.join(list(own)[:3])} ... . "
                "Check MODEL.WEIGHTS (a base's own checkpoint belongs into "
                "MODEL.SPARSE_REFINE.BASE.WEIGHTS) and the model's keys"
            )
        if state and all(name.startswith("module.") for name in state):
            # the model's own names: fvcore takes one such prefix for DDP's, and off
            state = {f"module.{name}": tensor for name, tensor in state.items()}
        checkpoint["model"] = state
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible) -> None:
        faults = [
            f"{name} is {tuple(of_file)} in the checkpoint and {tuple(of_model)} in the model"
            for name, of_file, of_model in incompatible.incorrect_shapes
            if name.startswith(self.required)
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
        query = parse_qs(urlparse(self._loading).query)
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            content["matching_heuristics"] = True
        if query:
            raise ValueError(f"MODEL.WEIGHTS {self._loading}: no such option, {list(query)}")
        if filename.endswith(".pkl") and "__author__" not in content:  # as Detectron2 reads them
            blobs = content["model"].items()
            model = {name: blob for name, blob in blobs if not name.endswith("_momentum")}
            return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
        return content
