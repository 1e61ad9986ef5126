# SPDX-License-Identifier: Apache-2.0
"""One image's counts: every prediction of a model against the ground truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..data.label_checks import check_labels
from ..data.reading import read_labels
from .metrics import boundary_band, boundary_counts, confusion_matrix, remap_ignored
from .predictions import predictions_of
from .records import pack


def count_image(
    file_name: str,
    truth_file: str,
    output: dict[str, Any],
    num_classes: int,
    ignore_label: int,
    boundary_distance: int,
) -> dict[str, Any]:
    """What a record holds besides names and seconds, ready for JSON.

    `predictions`, by name (see predictions.py), packed counts: "all", the confusions (K,K);
    "boundary", intersections and unions (2,K); of a SparseRefine "selected", the confusions at the
    selected pixels. `truth_pixels`; of a SparseRefine `model_pixels` and `selected_pixels`, at the
    size at which the model saw the image.

    Raises:
        ValueError: a prediction's size is not its truth's, or its scores are of another number of
            classes, or a label is out of range; names both files, and both numbers or the value.
    """
    truth = read_labels(truth_file)
    check_labels(truth, num_classes, ignore_label, truth_file)
    truth = remap_ignored(truth, num_classes, ignore_label)  # (H,W), K where ignored
    try:
        _check_classes(output, num_classes)
        predictions, selected = predictions_of(output, truth.shape)
        band = boundary_band(truth, boundary_distance)  # (H,W) bool, the same for all predictions
        record: dict[str, Any] = {"truth_pixels": truth.size, "predictions": {}}
        for name, pred in predictions.items():
            edges = boundary_counts(
                pred, truth, num_classes, num_classes, boundary_distance, truth_band=band
            )
            record["predictions"][name] = {
                "all": pack(confusion_matrix(pred, truth, num_classes, num_classes)),
                "boundary": pack(np.stack(edges)),
            }
            if selected is not None:
                at_sites = (labels.reshape(-1)[selected] for labels in (pred, truth))  # (P,) each
                counts = confusion_matrix(*at_sites, num_classes, num_classes)
                record["predictions"][name]["selected"] = pack(counts)
    except ValueError as error:
        raise ValueError(f"{file_name} against {truth_file}: {error}") from error
    if selected is not None:
        record["model_pixels"] = math.prod(output["refinement"].labels.shape)
        record["selected_pixels"] = len(output["refinement"].sites)
    return record


def _check_classes(output: dict[str, Any], num_classes: int) -> None:
    """A model of fewer classes would be counted as one that never finds the others."""
    scores = output.get("sem_seg")
    if scores is not None and len(scores) != num_classes:
        raise ValueError(
            f"the model gives scores of {len(scores)} classes, the data set has {num_classes}"
        )
