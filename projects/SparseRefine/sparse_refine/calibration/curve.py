# SPDX-License-Identifier: Apache-2.0
"""A SparseRefine at several settings of its selector on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..evaluation.budgets import one_coarse_pass, selecting
from ..evaluation.metrics import boundary_band, boundary_counts, confusion_matrix, summarize
from ..evaluation.predictions import label_map_of
from ..evaluation.timing import ForwardTimer
from ..evaluation.uncertainty import errors_found
from ..resampling import enlarge_labels
from ..selector import BudgetSelector, Selector
from .histogram import UncertaintyHistogram
from .images import Source
from .kinds import Kind
from .temperature import PixelSample


@dataclass(frozen=True)
class Point:
    """What a setting gives, means over the images.

    `setting`: of the selector's key; None where nothing is refined. `fraction`: selected pixels,
    0..1. `seconds`: an image, None where no refiner was run. With labels `miou`, `boundary_iou` in
    percent, and `errors_found`, the share 0..1 of the coarse prediction's errors that are among the
    selected pixels.
    """

    setting: float | None
    fraction: float
    seconds: float | None = None
    miou: float | None = None
    boundary_iou: float | None = None
    errors_found: float | None = None


@torch.inference_mode()
def sample_pixels(model: nn.Module, images: Source, count: int, num_classes: int) -> PixelSample:
    """Logits as the base gives them (temperature 1) of pixels of all `count` images."""
    sample = PixelSample(count, ignore=num_classes)
    for item, truth in images():
        # the coarse pass divides by its temperature
        logits = _coarse_logits(model, item) * model.coarse.temperature  # (K,h,w)
        sample.add(logits, torch.from_numpy(truth.astype(np.int32)))
    return sample


@torch.inference_mode()
def count_uncertainty(
    model: nn.Module, images: Source, kind: Kind, num_classes: int
) -> UncertaintyHistogram:
    """One coarse pass over all images."""
    histogram = UncertaintyHistogram(kind.highest(num_classes))
    for item, truth in images():
        logits = _coarse_logits(model, item)  # (K,h,w)
        size = tuple(item["image"].shape[-2:])
        wrong = None
        if truth is not None:
            labels = enlarge_labels(logits, size, model.coarse.interpolation).cpu().numpy()
            wrong = (labels != truth) & (truth != num_classes)  # (H,W); K is ignored
        histogram.add(kind.score(logits).cpu().numpy(), size, wrong)
    return histogram


def points_of_base(
    histogram: UncertaintyHistogram, kind: Kind, fractions: Sequence[float]
) -> list[Point]:
    """What can be said of shares 0..1 of the pixels without a refiner, ascending by share."""
    shares, found = histogram.shares(), histogram.errors_found()
    points = {}
    for fraction in sorted(fractions):
        # what is equally uncertain is taken whole by a threshold, in part by a budget
        share = fraction
        if kind.key == "THRESHOLD":
            share = float(shares[shares <= fraction].max(initial=0.0))  # of 0 nothing is selected
        inside = None if found is None else float(np.interp(share, shares, found))
        setting = kind.to_setting(histogram, fraction)
        points[setting] = Point(setting, share, errors_found=inside)
    return list(points.values())


class Curve:
    """Measures settings of a selector; each image's coarse pass is run once for all of them.

    Seconds are those of the model's whole forward call: the coarse pass's, and what the setting
    takes after it. The first image is run once beforehand, uncounted, to warm up.

    Args:
        model: a SparseRefine in eval mode.
        images: gives all images anew at each call.
        kind: of the selector that replaces the model's own meanwhile.
        boundary_distance: pixels, as for `SparseRefineEvaluator`.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Source,
        kind: Kind,
        num_classes: int,
        boundary_distance: int,
    ):
        self._model = model
        self._images = images
        self._kind = kind
        self._classes = num_classes
        self._distance = boundary_distance

    @torch.inference_mode()
    def measure(self, settings: Sequence[float]) -> list[Point]:
        """Points: first the one at which nothing is refined, then those of `settings`."""
        arms = [_Arm(None, BudgetSelector(fraction=0.0), self._classes)]
        arms += [_Arm(s, self._kind.build(s), self._classes) for s in settings]
        for position, (item, truth) in enumerate(self._images()):
            if position == 0:
                self._run([arms[-1]], item, None, counted=False)
            self._run(arms, item, truth)
        return [arm.point(arms[0]) for arm in arms]

    def _run(self, arms: list[_Arm], item: dict, truth, counted: bool = True) -> None:
        model = self._model
        band = None if truth is None else boundary_band(truth, self._distance)
        with one_coarse_pass(model), ForwardTimer(model.coarse) as coarse:
            for arm in arms:
                with selecting(model, arm.selector), ForwardTimer(model) as whole:
                    (output,) = model([item])
                if counted:
                    # the coarse pass of later arms is a look into a list
                    arm.seconds += whole.seconds[0] - coarse.seconds[-1] + coarse.seconds[0]
                    arm.count(output, truth, band, self._distance)


class _Arm:
    """Sums of one setting over the images."""

    def __init__(self, setting: float | None, selector: Selector, num_classes: int):
        self.setting = setting
        self.selector = selector
        self.seconds = 0.0
        self._images = self._pixels = self._selected = 0
        self._labelled = False
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._coarse_inside = np.zeros_like(self._confusion)
        self._boundary = np.zeros((2, num_classes), dtype=np.int64)

    def count(self, output: dict, truth, band, distance: int) -> None:
        refinement = output["refinement"]
        self._images += 1
        self._pixels += refinement.labels.numel()
        self._selected += len(refinement.sites)
        if truth is None:
            return
        self._labelled = True
        classes = len(self._confusion)
        labels = label_map_of(output)
        self._confusion += confusion_matrix(labels, truth, classes, classes)
        self._boundary += np.stack(
            boundary_counts(labels, truth, classes, classes, distance, truth_band=band)
        )
        y, x = refinement.sites.cpu().numpy().T
        coarse = refinement.coarse.cpu().numpy()  # (P,)
        self._coarse_inside += confusion_matrix(coarse, truth[y, x], classes, classes)

    def point(self, nothing: _Arm) -> Point:
        """`nothing`: the arm that refines no pixel."""
        fraction, seconds = self._selected / self._pixels, self.seconds / self._images
        if not self._labelled:
            return Point(self.setting, fraction, seconds)
        result = summarize(self._confusion, tuple(self._boundary))
        return Point(
            self.setting,
            fraction,
            seconds,
            result["mIoU"],
            result["BoundaryIoU"],
            errors_found(self._coarse_inside, nothing._confusion),
        )


def _coarse_logits(model: nn.Module, item: dict) -> torch.Tensor:
    (output,) = model.coarse([{**item, "image": item["image"].to(model.device)}])
    return output.logits
