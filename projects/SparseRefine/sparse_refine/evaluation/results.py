# SPDX-License-Identifier: Apache-2.0
"""From the records of single images to the results of a data set, their table and their file."""

from __future__ import annotations

import json
import math
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..storage.files import write_text
from .metrics import summarize
from .predictions import BASE_PREDICTIONS, REFINED_PREDICTIONS
from .records import add_packed


def total_results(
    records: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> OrderedDict[str, float]:
    """Sum the records' counts and divide once; names and units as in the evaluator's `evaluate`.

    Raises:
        ValueError: some records are a plain model's and some SparseRefine's.
    """
    predictions = _predictions_in(records)
    num_classes = len(class_names)
    results: OrderedDict[str, float] = OrderedDict()
    for prediction in reversed(predictions):  # the model's answer first
        # (K,K) confusions, and the intersections and unions (2,K) of boundaries
        counts = {
            "all": np.zeros((num_classes, num_classes), dtype=np.int64),
            "selected": np.zeros((num_classes, num_classes), dtype=np.int64),
            "boundary": np.zeros((2, num_classes), dtype=np.int64),
        }
        for record in records:
            for name, packed in record["predictions"][prediction].items():
                add_packed(counts[name], packed)
        prefix = _prefix(prediction, predictions)
        everywhere = summarize(counts["all"], tuple(counts["boundary"]), class_names)
        results.update((prefix + name, value) for name, value in everywhere.items())
        if predictions == REFINED_PREDICTIONS:
            at_selected = summarize(counts["selected"])
            results.update((f"selected/{prediction}/{name}", v) for name, v in at_selected.items())
    if predictions == REFINED_PREDICTIONS:
        selected = sum(record["selected_pixels"] for record in records)
        results["selected_fraction"] = selected / sum(r["model_pixels"] for r in records)
    if records:
        results["megapixels"] = float(np.mean([r["truth_pixels"] for r in records])) / 1e6
    seconds = [record["seconds"] for record in records if "seconds" in record]
    if seconds:
        results["seconds"] = statistics.fmean(seconds)
        results["seconds_median"] = statistics.median(seconds)
    return results


def metric_names(class_names: Sequence[str], refined: bool) -> list[str]:
    """The names of the accuracies that `total_results` gives, higher is better; `refined`: of a
    SparseRefine, else of a plain model."""
    none = np.zeros((len(class_names), len(class_names)), dtype=np.int64)
    boundary = (none.sum(0), none.sum(0))
    predictions = REFINED_PREDICTIONS if refined else BASE_PREDICTIONS
    names = []
    for prediction in reversed(predictions):
        prefix = _prefix(prediction, predictions)
        names += [prefix + name for name in summarize(none, boundary, class_names)]
        if refined:
            names += [f"selected/{prediction}/{name}" for name in summarize(none)]
    return names


def results_table(results: dict[str, float], class_names: Sequence[str]) -> str:
    """A row for each prediction, a row for each class, and a line for what an image costs."""
    refined = "selected_fraction" in results
    predictions = REFINED_PREDICTIONS if refined else BASE_PREDICTIONS
    prefixes = {prediction: _prefix(prediction, predictions) for prediction in predictions}
    names = ["mIoU", "BoundaryIoU", "pACC"]
    rows = [[p, *(results[prefix + name] for name in names)] for p, prefix in prefixes.items()]
    if refined:
        rows = [
            [*row, *(results[f"selected/{row[0]}/{name}"] for name in ("mIoU", "pACC"))]
            for row in rows
        ]
        names += ["selected mIoU", "selected pACC"]
    columns = [(kind, prediction) for kind in ("IoU", "BoundaryIoU") for prediction in predictions]
    of_classes = [
        [name, *(results[f"{prefixes[prediction]}{kind}-{name}"] for kind, prediction in columns)]
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
    """Write the results as strict JSON (null stands for NaN), atomically."""
    numbers = {name: None if math.isnan(v) else v for name, v in results.items()}
    text = json.dumps({**about, "sparse_refine": numbers}, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _predictions_in(records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    found = {tuple(record["predictions"]) for record in records}
    if len(found) > 1:
        raise ValueError(f"the records mix a plain model's and SparseRefine's: {sorted(found)}")
    return found.pop() if found else BASE_PREDICTIONS


def _prefix(prediction: str, predictions: tuple[str, ...]) -> str:
    """Of a prediction's names in the results: the model's answer has none."""
    return "" if prediction == predictions[-1] else f"{prediction}/"
