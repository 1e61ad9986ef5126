# SPDX-License-Identifier: Apache-2.0
"""What a refiner can reach at most, before one is trained: the truth, and a dense model's answers,
at the selected pixels, and the base's everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tabulate import tabulate
from torch import nn

from ..evaluation.metrics import boundary_band, boundary_counts, confusion_matrix, summarize
from ..evaluation.timing import ForwardTimer
from ..resampling import enlarge_labels
from ..selector import Selector
from ..sites import View
from .images import Source

# how far below dense full a refiner that is "as accurate" may lie, points of mIoU, boundary IoU
TOLERANCE = (0.5, 1.0)
FASTER = 3.0  # times, at the least, for refinement to be worth the trouble


@dataclass(frozen=True)
class Accuracy:
    """Percent over all images."""

    miou: float
    boundary_iou: float

    def reaches(self, other: Accuracy) -> bool:
        """Whether it is as good as another, to TOLERANCE."""
        return (
            self.miou >= other.miou - TOLERANCE[0]
            and self.boundary_iou >= other.boundary_iou - TOLERANCE[1]
        )


@dataclass(frozen=True)
class Ceiling:
    """`truth`, `dense`: the accuracy with the truth, or a dense model's answers, at the selected
    pixels: a share `fraction` 0..1 of each image, of a base at `scale`."""

    scale: float
    fraction: float
    truth: Accuracy
    dense: Accuracy | None = None


@dataclass(frozen=True)
class Ceilings:
    """`bases`: accuracy of the base alone, by scale; `base_seconds`, of its pass an image. `dense`,
    `dense_seconds`: of the dense model, where there is one."""

    points: list[Ceiling]
    bases: dict[float, Accuracy]
    base_seconds: dict[float, float]
    dense: Accuracy | None = None
    dense_seconds: float | None = None


@torch.inference_mode()
def measure(
    model: nn.Module,
    images: Source,
    selectors: dict[float, Selector],
    scales: Sequence[float],
    num_classes: int,
    boundary_distance: int,
    dense: nn.Module | None = None,
) -> Ceilings:
    """
    Args:
        model: a SparseRefine in eval mode, whose base is run at each of `scales`.
        images: gives all images anew, with labels.
        selectors: by the share of the pixels that each selects.
        dense: a dense model in eval mode, run at full resolution.
    """
    counts: dict[tuple, _Counts] = {}
    seconds: dict[object, list[float]] = {}

    def count(key: tuple, labels: np.ndarray, truth: np.ndarray, band) -> None:
        found = counts.setdefault(key, _Counts(num_classes))
        found.add(labels, truth, band, boundary_distance)

    for item, truth in images():
        item = {**item, "image": item["image"].to(model.device)}
        band = boundary_band(truth, boundary_distance)
        answers = {"truth": truth}
        if dense is not None:
            labels, spent = _timed(dense, item)
            answers["dense"] = labels
            count(("dense",), labels, truth, band)
            seconds.setdefault("dense", []).append(spent)
        for scale in scales:
            labels, selected, spent = _coarse(model, item, scale, selectors)
            seconds.setdefault(scale, []).append(spent)
            count(("base", scale), labels, truth, band)
            for fraction, (y, x) in selected.items():
                for name, answer in answers.items():
                    merged, at = labels.copy(), answer[y, x]
                    # where the truth is ignored any label does
                    merged[y, x] = np.where(at < num_classes, at, merged[y, x])
                    count((name, scale, fraction), merged, truth, band)
    # the first image is warm-up, where there are others
    mean = {key: float(np.mean(spent[1:] or spent)) for key, spent in seconds.items()}
    result = {key: found.accuracy() for key, found in counts.items()}
    points = [
        Ceiling(s, f, result["truth", s, f], result.get(("dense", s, f)))
        for s in scales
        for f in sorted(selectors)
    ]
    return Ceilings(
        points,
        {scale: result["base", scale] for scale in scales},
        {scale: mean[scale] for scale in scales},
        result.get(("dense",)),
        mean.get("dense"),
    )


def _timed(dense: nn.Module, item: dict) -> tuple[np.ndarray, float]:
    with ForwardTimer(dense) as timer:
        (output,) = dense([item])
    return output["sem_seg"].argmax(0).cpu().numpy(), timer.seconds[0]


def _coarse(model: nn.Module, item: dict, scale: float, selectors: dict[float, Selector]):
    """Labels (H,W) of the base at a scale, the selected (y, x) by share, and its seconds."""
    own, model.coarse.scale = model.coarse.scale, scale
    try:
        with ForwardTimer(model.coarse) as timer:
            (output,) = model.coarse([item])
    finally:
        model.coarse.scale = own
    view = View.of_input(item)
    labels = enlarge_labels(output.logits, view.size, model.coarse.interpolation)
    selected = {
        fraction: tuple(selector(output.logits, view).cpu().numpy().T)
        for fraction, selector in selectors.items()
    }
    return labels.cpu().numpy(), selected, timer.seconds[0]


class _Counts:
    def __init__(self, num_classes: int):
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self._boundary = np.zeros((2, num_classes), dtype=np.int64)

    def add(self, labels: np.ndarray, truth: np.ndarray, band, distance: int) -> None:
        classes = len(self._confusion)
        self._confusion += confusion_matrix(labels, truth, classes, classes)
        self._boundary += np.stack(
            boundary_counts(labels, truth, classes, classes, distance, truth_band=band)
        )

    def accuracy(self) -> Accuracy:
        result = summarize(self._confusion, tuple(self._boundary))
        return Accuracy(result["mIoU"], result["BoundaryIoU"])


def table(ceilings: Ceilings) -> str:
    """A row for the base at each scale, for each share, and for the dense model."""
    dense = ceilings.dense is not None
    rows = []
    for scale, accuracy in ceilings.bases.items():
        seconds = f"{ceilings.base_seconds[scale]:.3f}"
        rows.append([f"{scale:g}", "base alone", _both(accuracy), "", seconds])
        for point in ceilings.points:
            if point.scale == scale:
                answers = _both(point.dense) if dense else ""
                share = f"{100 * point.fraction:g} %"
                rows.append([f"{scale:g}", share, _both(point.truth), answers, ""])
    if dense:
        rows.append(["1", "dense full", "", _both(ceilings.dense), f"{ceilings.dense_seconds:.3f}"])
    heads = ["scale", "selected", "truth there", "dense full there", "s/image"]
    keep = [index for index in range(5) if dense or index != 3]
    return tabulate(
        [[row[index] for index in keep] for row in rows],
        headers=[heads[index] for index in keep],
        tablefmt="github",
        disable_numparse=True,
        colalign=("right",) * len(keep),
    )


def _both(accuracy: Accuracy) -> str:
    return f"{accuracy.miou:.2f} / {accuracy.boundary_iou:.2f}"


def verdict(ceilings: Ceilings, scale: float, fraction: float) -> str:
    """Whether a refiner can be as accurate as the dense model at a scale and share, and be faster;
    where not, what to change."""
    if ceilings.dense is None:
        return (
            "Without a dense model at full resolution (--dense) it cannot be said whether this is "
            "enough: a refiner stays below the truth's row"
        )
    points = {(point.scale, point.fraction): point for point in ceilings.points}
    chosen, dense = points[scale, fraction], ceilings.dense
    lines = []
    if chosen.dense.reaches(dense):
        lines.append(
            f"At scale {scale:g} and {100 * fraction:g} % a refiner as good as dense full at the "
            f"selected pixels is as accurate as dense full ({_both(chosen.dense)}; dense full "
            f"{_both(dense)})"
        )
    else:
        who = "dense full" if chosen.truth.reaches(dense) else "even the truth"
        below = chosen.dense if chosen.truth.reaches(dense) else chosen.truth
        lines.append(
            f"At scale {scale:g} and {100 * fraction:g} % the claim cannot hold: with the answers "
            f"of {who} at the selected pixels the result is {_both(below)}, and dense full is at "
            f"{_both(dense)}. {_instead(ceilings, chosen)}"
        )
    least = ceilings.dense_seconds / ceilings.base_seconds[scale]
    if least < FASTER:
        lines.append(
            f"The base alone at scale {scale:g} is {least:.1f} times as fast as dense full, and a "
            "refiner comes on top: choose a smaller BASE.SCALE or a cheaper base"
        )
    return "\n".join(lines)


def _instead(ceilings: Ceilings, chosen: Ceiling) -> str:
    enough = [point for point in ceilings.points if point.dense.reaches(ceilings.dense)]
    if not enough:
        return (
            "No scale and share that was looked at is enough: train the base for longer, take a "
            "better one, or a larger BASE.SCALE (--scales) and share (--fractions)"
        )
    cheapest = min(enough, key=lambda point: (point.scale**2 + point.fraction, point.scale))
    return f"Enough are {100 * cheapest.fraction:g} % at scale {cheapest.scale:g}"
