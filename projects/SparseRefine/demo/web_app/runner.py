# SPDX-License-Identifier: Apache-2.0
"""Runs the models for the page, and never the same thing twice in a row: the last image stays
decoded, the base's answer for it is kept, and so is the last result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparse_refine.evaluation.budgets import selecting
from sparse_refine.evaluation.stages import StageTimer
from sparse_refine.inference import model_zoo
from sparse_refine.inference.predictor import SparseRefinePredictor
from sparse_refine.modeling.contract import refines
from sparse_refine.selector import BudgetSelector, Selector
from sparse_refine.sites import View

from .uploads import Limits, read_upload

# Label maps are all that the page shows: K x H x W scores of a large image would be gigabytes.
OPTIONS = ("MODEL.SPARSE_REFINE.OUTPUT", "labels")


@dataclass(frozen=True)
class Result:
    """One image refined. (H,W) maps in numpy; `entropy` (h,w) in nats.

    `seconds`: of each of `evaluation.stages.STAGES`. `coarse_kept`: resize and base are of an
    earlier run on the same image. `cut`: fewer pixels were refined than asked for, see `Limits`.
    """

    image: np.ndarray
    coarse: np.ndarray
    labels: np.ndarray
    selected: np.ndarray
    entropy: np.ndarray
    seconds: dict[str, float]
    coarse_kept: bool
    cut: bool
    class_names: list[str]
    colors: list[list[int]]
    note: str

    @property
    def megapixels(self) -> float:
        return self.labels.size / 1e6


class KeptBase(nn.Module):
    """A base that answers without running where it is shown the image that it saw last."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self._seen: torch.Tensor | None = None
        self._outputs: list[dict] = []

    def forward(self, contexts: list[dict]) -> list[dict]:
        (image,) = (context["image"] for context in contexts)
        self.kept = (
            self._seen is not None
            and self._seen.shape == image.shape
            and torch.equal(self._seen, image)
        )
        if not self.kept:
            self._outputs, self._seen = self.base(contexts), image
        return self._outputs


class CappedSelector(Selector):
    """Another selector, or a budget of `count` pixels where that one takes more."""

    def __init__(self, selector: Selector, count: int):
        super().__init__()
        self.selector = selector
        self.fallback = BudgetSelector(count=count)
        self.cut = False

    def forward(self, logits: torch.Tensor, view: View) -> torch.Tensor:
        sites = self.selector(logits, view)
        self.cut = len(sites) > self.fallback.count
        return self.fallback(logits, view) if self.cut else sites


class Runner:
    """Models by name, and the last of everything.

    It is not made for several threads: the page's queue calls it once at a time.
    """

    def __init__(self, predictors: dict[str, SparseRefinePredictor], limits: Limits):
        self.predictors = predictors
        self.limits = limits
        self._image: tuple = (None, None, "")  # key, pixels, note
        self._result: tuple = (None, None)  # key, Result
        self._coarse_seconds: dict[str, dict[str, float]] = {}
        for predictor in predictors.values():
            predictor.model.coarse.base = KeptBase(predictor.model.coarse.base)

    def own_budget(self, name: str) -> float | None:
        """The fraction that a config asks for; None where its selector has none."""
        node = self.predictors[name].cfg.MODEL.SPARSE_REFINE.SELECTOR
        return node.FRACTION if node.NAME == "BudgetSelector" and node.COUNT == -1 else None

    def run(self, path: str, name: str, fraction: float | None) -> Result:
        """Refine the image at `path` with the model `name`.

        Args:
            fraction: of the pixels, 0..1; None is the config's own selector.

        Raises:
            UploadError: of the file.
            ValueError: a name or fraction that there is not.
        """
        if name not in self.predictors:
            raise ValueError(f"there is no model {name!r} here: {', '.join(self.predictors)}")
        image_key = _file_key(path)
        key = (image_key, name, fraction)
        if self._result[0] != key:
            if self._image[0] != image_key:
                self._image = (None, None, "")  # two large images need not fit into memory
                self._image = (image_key, *read_upload(path, self.limits))
            self._result = (None, None)
            self._result = (key, self._refine(name, fraction))
        return self._result[1]

    def _refine(self, name: str, fraction: float | None) -> Result:
        _, image, note = self._image
        predictor = self.predictors[name]
        model = predictor.model
        predictor.set_budget(fraction)
        selector = CappedSelector(model.selector, self.limits.refined_pixels)
        with selecting(model, selector):
            timer = predictor.model = StageTimer(model)
            try:
                output = predictor(image)
            finally:
                predictor.model = model
        (seconds,) = timer.seconds()
        kept = model.coarse.base.kept
        if kept:  # what it would have taken, not what it took to look it up
            seconds.update(self._coarse_seconds[name])
        else:
            self._coarse_seconds[name] = {stage: seconds[stage] for stage in ("resize", "base")}
        maps = ("coarse", "labels", "selected", "entropy")
        return Result(
            image=image,
            **{key: output[key].cpu().numpy() for key in maps},
            seconds=seconds,
            coarse_kept=kept,
            cut=selector.cut,
            class_names=predictor.metadata.stuff_classes,
            colors=predictor.metadata.stuff_colors,
            note=note,
        )


def load_predictors(
    names: Sequence[str],
    config_file: str | None,
    weights: str | None,
    opts: Sequence[str] = (),
    trust_code: bool = False,
) -> dict[str, SparseRefinePredictor]:
    """Name in the page -> predictor: models of the zoo by `names`, and a yaml with its weights.
    Without either, every model of the zoo that refines.

    Raises:
        ValueError, OSError: a name that the zoo has not, a yaml or weights that cannot be read, a
            model that refines nothing.
    """
    wanted = dict.fromkeys(names)
    if not names and not config_file:
        found = [name for name in model_zoo.names() if refines(model_zoo.get_config(name))]
        # first what knows the examples
        wanted = dict.fromkeys(sorted(found, key=lambda name: "synthetic_field" not in name))
    if config_file:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"--config-file {config_file}: no such file")
        wanted[config_file] = weights
    if not wanted:
        raise ValueError("the model zoo has no model that refines: give --config-file, --weights")
    predictors = {}
    for name, checkpoint in wanted.items():
        predictor = SparseRefinePredictor(
            name, checkpoint, opts=[*OPTIONS, *opts], trust_code=trust_code
        )
        if not predictor.refines:
            raise ValueError(
                f"{name}: MODEL.META_ARCHITECTURE is {predictor.cfg.MODEL.META_ARCHITECTURE!r}, "
                "which refines nothing; the page compares coarse and refined"
            )
        predictors[name] = predictor
    return predictors


def _file_key(path: str) -> tuple:
    try:
        stat = os.stat(path)
    except OSError:
        return (path, None, None)  # reading it will say so
    return (path, stat.st_size, stat.st_mtime_ns)
