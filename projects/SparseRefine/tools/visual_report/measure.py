# SPDX-License-Identifier: Apache-2.0
"""One pass over the images: counts for the whole report, and of each image a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparse_refine.data import read_labels
from sparse_refine.evaluation import SparseRefineEvaluator, predictions_of
from sparse_refine.evaluation.budgets import BudgetSweep, one_coarse_pass
from sparse_refine.evaluation.metrics import (
    iou_from_confusion,
    mean_iou,
    remap_ignored,
    summarize,
)
from sparse_refine.evaluation.records import add_packed, read_records
from sparse_refine.evaluation.uncertainty import EntropyErrors, SelectionLimits, errors_found
from sparse_refine.selector import BudgetSelector

# Budgets of the curves that cost no prediction, beside those that are predicted.
CURVE = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)


@dataclass
class ImageResult:
    """`coarse_miou`, `refined_miou`: percent, over the classes of this image. `improved`: pixels
    that were wrong and are right; `degraded`: the other way; `pixels`: with a label. `selected`:
    share 0..1 of the pixels."""

    position: int  # in the data set, from 0
    file_name: str
    coarse_miou: float
    refined_miou: float
    improved: int
    degraded: int
    pixels: int
    selected: float

    @property
    def gain(self) -> float:
        return self.refined_miou - self.coarse_miou

    @property
    def net(self) -> int:
        return self.improved - self.degraded

    def rank(self, by: str) -> float:
        """By "miou" or "pixels"; NaN where no pixel has a label."""
        return self.gain if by == "miou" else (self.net if self.pixels else math.nan)


@dataclass
class Measured:
    """`results`: as `SparseRefineEvaluator.evaluate` names them. `limits`: {"fraction",
    "errors_found" 0..1, "oracle_mIoU"} a budget. `sweep`: as `BudgetSweep.results`.
    `errors_found`: by the config's own selection."""

    results: dict[str, float]
    images: list[ImageResult]
    limits: list[dict[str, float]]
    sweep: list[dict[str, float]]
    entropy: EntropyErrors
    errors_found: float


@torch.inference_mode()
def measure(
    model: torch.nn.Module,
    batches: Iterable[list[dict]],
    dataset_name: str,
    num_classes: int,
    ignore_label: int,
    fractions: Sequence[float],
    boundary_distance: int,
    scratch: str,
) -> Measured:
    """Predict and count. One image is held at a time.

    Args:
        model: a SparseRefine in eval mode.
        batches: of one image each, in the data set's order.
        fractions: budgets to predict with, ascending.
        scratch: a folder for the evaluator's records.
    """
    evaluator = SparseRefineEvaluator(
        dataset_name, scratch, boundary_distance=boundary_distance, distributed=False
    )
    evaluator.reset()
    sweep = BudgetSweep(model, num_classes, fractions, boundary_distance)
    limits = SelectionLimits(num_classes, sorted({*CURVE, *fractions}))
    entropy_errors = EntropyErrors(num_classes)
    changes = {}
    for inputs in batches:
        with one_coarse_pass(model):
            outputs = model(inputs)
            evaluator.process(inputs, outputs)
            truth = remap_ignored(
                read_labels(inputs[0]["sem_seg_file_name"]), num_classes, ignore_label
            )
            maps, sites = predictions_of(outputs[0], truth.shape)
            sweep.add(inputs, truth, {_own_fraction(model): maps["fused"]})
        selected = np.zeros(truth.shape, dtype=bool)
        selected.flat[sites] = True
        valid = truth < num_classes
        wrong = [(maps[kind] != truth) & valid for kind in ("coarse", "fused")]
        entropy = outputs[0]["refinement"].entropy.float().cpu().numpy()
        entropy_errors.add(entropy, selected, *wrong, valid)
        limits.add(entropy, maps["coarse"], truth)
        changes[inputs[0]["file_name"]] = {
            "improved": int((wrong[0] & ~wrong[1]).sum()),
            "degraded": int((wrong[1] & ~wrong[0]).sum()),
            "pixels": int(valid.sum()),
            "selected": len(sites) / truth.size,
        }
    results = evaluator.evaluate()["sparse_refine"]
    records = read_records(scratch, {})
    parts = {part: _coarse_confusion(records, part, num_classes) for part in ("all", "selected")}
    return Measured(
        results=results,
        images=[
            ImageResult(position, name, *_mious(records[name], num_classes), **change)
            for position, (name, change) in enumerate(changes.items())
        ],
        limits=[
            {
                "fraction": fraction,
                "errors_found": float(share),
                "oracle_mIoU": summarize(confusion)["mIoU"],
            }
            for fraction, share, confusion in zip(
                limits.fractions, limits.errors_found(), limits.oracle()
            )
        ],
        sweep=sweep.results(),
        entropy=entropy_errors,
        errors_found=errors_found(parts["selected"], parts["all"]),
    )


def _own_fraction(model: torch.nn.Module) -> float | None:
    """The config's own budget, where it has one."""
    selector = model.selector
    if isinstance(selector, BudgetSelector) and selector.count is None:
        return selector.fraction
    return None


def _coarse_confusion(records: dict[str, dict], part: str, num_classes: int) -> np.ndarray:
    total = np.zeros((num_classes, num_classes), dtype=np.int64)
    for record in records.values():
        add_packed(total, record["predictions"]["coarse"][part])
    return total


def _mious(record: dict, num_classes: int) -> tuple[float, float]:
    """Of one image, percent: coarse and fused."""
    mious = []
    for prediction in ("coarse", "fused"):
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        add_packed(confusion, record["predictions"][prediction]["all"])
        mious.append(100 * mean_iou(iou_from_confusion(confusion)))
    return mious[0], mious[1]
