# SPDX-License-Identifier: Apache-2.0
"""A model's outputs as label maps in numpy: the answer alone, or every prediction that it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..resampling import argmax_labels, nearest_index

# The predictions that SparseRefine offers, and the only one of any other model.
# The last is the model's answer.
REFINED_PREDICTIONS = ("coarse", "refined", "fused")
BASE_PREDICTIONS = ("base",)


def label_map_of(output: dict[str, Any]) -> np.ndarray:
    """A model's answer for one image as labels, (H,W) integers.

    Takes "labels" as they are, else the class of the highest score in "sem_seg" (K,H,W).

    Raises:
        ValueError: a score is NaN.
    """
    if "labels" in output:
        return _to_numpy(output["labels"])
    scores = output["sem_seg"].detach()
    if any(score.isnan().any() for score in scores):
        raise ValueError("sem_seg holds NaN")
    return argmax_labels(scores).cpu().numpy()


def predictions_of(
    output: dict[str, Any], shape: tuple[int, int]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Every prediction in a model's output for one image.

    A refinement is at the size at which the model saw the image. Where that is not the truth's, its
    maps and its selection are brought there by nearest neighbour, all three alike.

    Args:
        output: with "refinement" (`sites`, `labels`, `label_map(name)`), or a plain model's.
        shape: (H,W) of the truth.

    Returns:
        label maps (H,W) by REFINED_PREDICTIONS or BASE_PREDICTIONS, and the flat indices (P,) of
        the selected pixels in them, None for a plain model.

    Raises:
        ValueError: the answer's size is not `shape`; says both.
    """
    answer = output["labels"] if "labels" in output else output["sem_seg"]
    if tuple(answer.shape[-2:]) != tuple(shape):
        height, width = answer.shape[-2:]
        raise ValueError(
            f"the prediction is {height} x {width} (height x width), the truth is "
            f"{shape[0]} x {shape[1]}"
        )
    if "refinement" not in output:
        return {"base": label_map_of(output)}, None
    refinement = output["refinement"]
    maps = {
        name: _to_shape(_to_numpy(refinement.label_map(name)), shape)
        for name in REFINED_PREDICTIONS
    }
    selected = np.zeros(tuple(refinement.labels.shape), dtype=bool)
    sites = _to_numpy(refinement.sites)  # (P,2)
    selected[sites[:, 0], sites[:, 1]] = True
    return maps, np.flatnonzero(_to_shape(selected, shape))


def _to_numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _to_shape(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map at another size: each pixel from the old pixel in whose area its centre lies."""
    if labels.shape == tuple(shape):
        return labels
    rows, columns = (nearest_index(new, old).numpy() for new, old in zip(shape, labels.shape))
    return labels[np.ix_(rows, columns)]
