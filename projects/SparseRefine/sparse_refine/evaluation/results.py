# SPDX-License-Identifier: Apache-2.0
"""From the records of single images to the results of a data set, their table and their file."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..storage.files import write_whole
from .metrics import summarize
from .predictions import BASE_ARMS, REFINEMENT_ARMS
from .records import add_packed


def total_results(
    records: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> OrderedDict[str, float]:
    """Sum the records' counts and divide once; names and units as in the evaluator's `evaluate`.

    Raises:
        ValueError: some records are a plain model's and some SparseRefine's.
    """
    arms = _arms_of(records)
    num_classes = len(class_names)
    results: OrderedDict[str, float] = OrderedDict()
    for arm in reversed(arms):  # the model's answer first
        counts = {
            "all": np.zeros((num_classes, num_classes), dtype=np.int64),
            "selected": np.zeros((num_classes, num_classes), dtype=np.int64),
            "boundary": np.zeros((2, num_classes), dtype=np.int64),
        }
        for record in records:
            for name, packed in record["arms"][arm].items():
                add_packed(counts[name], packed)
        prefix = _prefix(arm, arms)
        everywhere = summarize(counts["all"], tuple(counts["boundary"]), class_names)
        results.update((prefix + name, value) for name, value in everywhere.items())
        if arms == REFINEMENT_ARMS:
            at_selected = summarize(counts["selected"])
            results.update((f"selected/{arm}/{name}", v) for name, v in at_selected.items())
    if arms == REFINEMENT_ARMS:
        selected = sum(record["selected_pixels"] for record in records)
        results["selected_fraction"] = selected / sum(r["model_pixels"] for r in records)
    if records:
        results["megapixels"] = float(np.mean([r["truth_pixels"] for r in records])) / 1e6
    seconds = [record["seconds"] for record in records if "seconds" in record]
    if seconds:
        results["seconds"] = float(np.mean(seconds))
        results["seconds_median"] = float(np.median(seconds))
    return results


def results_table(results: dict[str, float], class_names: Sequence[str]) -> str:
    """A row for each prediction, a row for each class, and a line for what an image costs."""
    arms = REFINEMENT_ARMS if "selected_fraction" in results else BASE_ARMS
    names = ["mIoU", "BoundaryIoU", "pACC"]
    rows = [[arm, *(results[_prefix(arm, arms) + name] for name in names)] for arm in arms]
    if arms == REFINEMENT_ARMS:
        rows = [
            [*row, *(results[f"selected/{row[0]}/{name}"] for name in ("mIoU", "pACC"))]
            for row in rows
        ]
        names += ["selected mIoU", "selected pACC"]
    columns = [(kind, arm) for kind in ("IoU", "BoundaryIoU") for arm in arms]
    of_classes = [
        [name, *(results[f"{_prefix(arm, arms)}{kind}-{name}"] for kind, arm in columns)]
        for name in class_names
    ]
    costs = ("selected_fraction", "megapixels", "seconds", "seconds_median")
    style = {"tablefmt": "pipe", "floatfmt": ".2f"}
    return "\n\n".join(
        [
            tabulate(rows, headers=["prediction", *names], **style),
            tabulate(of_classes, headers=["class", *map(" ".join, columns)], **style),
            ", ".join(f"{name} {results[name]:.4g}" for name in costs if name in results),
        ]
    )


def write_results(path: Path, about: dict[str, Any], results: dict[str, float]) -> None:
    """Write the results as strict JSON (null stands for NaN), whole or not at all."""
    numbers = {name: None if math.isnan(v) else v for name, v in results.items()}
    text = json.dumps({**about, "sparse_refine": numbers}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: Path(temporary).write_text(text))


def _arms_of(records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    found = {tuple(record["arms"]) for record in records}
    if len(found) > 1:
        raise ValueError(f"the records mix a plain model's and SparseRefine's: {sorted(found)}")
    return found.pop() if found else BASE_ARMS


def _prefix(arm: str, arms: tuple[str, ...]) -> str:
    return "" if arm == arms[-1] else f"{arm}/"
