# SPDX-License-Identifier: Apache-2.0
"""Accuracies of label maps: pure functions that count pixels, and the ratios of those counts.

Shape shorthand in this module:

    H, W: height and width of one image.
    K: number of classes; labels run 0..K-1, and the truth may also hold the ignore label.

Over a data set the counts are summed over the images first and divided once, so that a class that
an image lacks does no harm (the usual data set IoU; sums run over the images n):

    IoU_c          = sum_n |G_c & P_c|  /  sum_n |G_c or P_c|
    Boundary IoU_c = sum_n |B(G_c) & B(P_c)|  /  sum_n |B(G_c) or B(P_c)|
    pixel accuracy = sum_n sum_c |G_c & P_c|  /  sum_n |G|

G_c and P_c are the pixels that the truth and the prediction call class c. B(.) is a mask's inner
band: its pixels within a distance of its contour or of the image's border (Cheng et al., Boundary
IoU, CVPR 2021, arXiv 2103.16562, and the code released with it; there the distance is a share of
the image's diagonal, here pixels). Pixels whose truth is the ignore label count nowhere.
A class that neither truth nor prediction holds has no IoU (NaN) and is left out of the mean; one
that is only predicted has an IoU of 0 and counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import cv2
import numpy as np


def remap_ignored(truth: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """The truth with its ignored pixels given the id K, as uint8 (K <= 255) or uint16.

    The functions below do this themselves. To compare one truth with several predictions, do it
    once and pass the result with `ignore_label=num_classes`, which then costs no copy.

    Raises:
        ValueError: a label is neither 0..K-1 nor the ignore label, or K does not fit 16 bit.
        TypeError: the labels are no integers.
    """
    if not 0 < num_classes <= 65535:
        raise ValueError(f"num_classes is {num_classes}, expected 1..65535")
    # the narrowest that OpenCV filters: a truth of 8 megapixels is passed over many times
    dtype = np.uint8 if num_classes <= 255 else np.uint16
    if ignore_label == num_classes:
        return _in_range(truth, num_classes + 1, "truth").astype(dtype, copy=False)
    ignored = np.asarray(truth) == ignore_label
    result = _in_range(np.where(ignored, 0, truth), num_classes, "truth").astype(dtype, copy=False)
    result[ignored] = num_classes  # `where` made the copy
    return result


def confusion_matrix(
    pred: np.ndarray, truth: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Pixels by true class (rows) and predicted class (columns), (K,K) int64.

    Args:
        pred: integers 0..K-1, any shape; the ignore label is not a prediction.
        truth: integers 0..K-1 or `ignore_label`, the same shape.

    Raises:
        ValueError: shapes differ, or a label is out of range (also where the truth is ignored).
    """
    truth = remap_ignored(truth, num_classes, ignore_label)
    pred = _prediction(pred, truth, num_classes)
    joint = _joint_counts(truth, pred, num_classes + 1, num_classes)  # (K+1,K)
    return joint[:num_classes]  # the last row: ignored pixels


def boundary_band(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels whose (2d+1) x (2d+1) window holds another label or leaves the image, (H,W) bool.

    For every class c at once, `band & (labels == c)` is the paper's mask minus its erosion (d times
    by 3x3, zeros beyond the border): a pixel of class c survives the erosion iff its whole window
    is c, that is iff the window's smallest and largest label agree. One minimum and one maximum
    filter serve, however many classes there are.

    Args:
        labels: (H,W) integers of any width and sign.
        distance: d, pixels, at least 1.
    """
    if distance < 1:
        raise ValueError(f"boundary distance is {distance} pixels, expected 1 or more")
    labels = _filterable(labels)
    window = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    # OpenCV leaves what is beyond the border out of a minimum or maximum; in the paper's code it is
    # zero, which makes the border a contour of every mask that touches it.
    band = cv2.dilate(labels, window) != cv2.erode(labels, window)
    band[:distance] = band[-distance:] = True
    band[:, :distance] = band[:, -distance:] = True
    return band


def boundary_counts(
    pred: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    ignore_label: int,
    distance: int,
    truth_band: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of Boundary IoU, each (K,) int64.

    Where the truth is ignored the prediction is set to ignored too before its band is drawn: an
    ignored region has the same contour on both sides, and is itself counted on neither.

    Args:
        pred, truth: (H,W), as for `confusion_matrix`.
        distance: half width of the band in pixels.
        truth_band: `boundary_band(truth, distance)` where it is known already.
    """
    truth = remap_ignored(truth, num_classes, ignore_label)
    pred = _prediction(pred, truth, num_classes)
    if truth_band is None:
        truth_band = boundary_band(truth, distance)
    pred = np.where(truth == num_classes, truth, pred)  # (H,W), K where ignored
    pred_band = boundary_band(pred, distance)
    # Inside its band a side keeps its class, outside it says "none", which is index K.
    joint = _joint_counts(
        np.where(truth_band, truth, truth.dtype.type(num_classes)),
        np.where(pred_band, pred, pred.dtype.type(num_classes)),
        num_classes + 1,
        num_classes + 1,
    )  # (K+1,K+1)
    intersection = joint.diagonal()[:num_classes].copy()
    of_truth, of_pred = joint.sum(1)[:num_classes], joint.sum(0)[:num_classes]
    return intersection, of_truth + of_pred - intersection  # |A or B| = |A| + |B| - |A & B|


def iou_from_counts(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """(K,) float64, 0..1, NaN where the union is empty."""
    iou = np.full(len(union), np.nan)
    return np.divide(intersection, union, out=iou, where=union > 0)


def iou_from_confusion(confusion: np.ndarray) -> np.ndarray:
    """Per-class IoU of a confusion matrix, (K,) float64, 0..1, NaN for a class absent from both."""
    both = confusion.diagonal()  # (K,) intersections
    return iou_from_counts(both, confusion.sum(0) + confusion.sum(1) - both)


def mean_iou(iou: np.ndarray) -> float:
    """Mean over the classes present (those that are not NaN); NaN where none is."""
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the valid pixels that are right, 0..1; NaN where there is no valid pixel."""
    total = confusion.sum()
    return float(confusion.trace() / total) if total else float("nan")


def summarize(
    confusion: np.ndarray,
    boundary: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] = (),
) -> OrderedDict[str, float]:
    """The accuracies in percent, 0..100, under the names that Detectron2's evaluator uses.

    Args:
        confusion: (K,K) counts, summed over the images.
        boundary: intersection and union from `boundary_counts`, summed over the images.
        class_names: adds one IoU (and Boundary IoU) per class.

    Returns:
        mIoU, pACC, then with `boundary` BoundaryIoU, then IoU-NAME and BoundaryIoU-NAME.
    """
    iou = iou_from_confusion(confusion)
    results = OrderedDict(mIoU=100 * mean_iou(iou), pACC=100 * pixel_accuracy(confusion))
    if boundary is not None:
        boundary_iou = iou_from_counts(*boundary)
        results["BoundaryIoU"] = 100 * mean_iou(boundary_iou)
    for index, name in enumerate(class_names):
        results[f"IoU-{name}"] = 100 * float(iou[index])
        if boundary is not None:
            results[f"BoundaryIoU-{name}"] = 100 * float(boundary_iou[index])
    return results


def _joint_counts(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    """How often each pair (row, column) occurs, (height, width) int64."""
    # row * width + column, in the narrowest type that holds it: the largest array of an evaluation
    pairs = rows.astype(np.min_scalar_type(height * width - 1))
    pairs *= width
    pairs += columns
    return np.bincount(pairs.ravel(), minlength=height * width).reshape(height, width)


def _prediction(pred: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """The prediction in the remapped truth's type, after a check of its shape and values."""
    pred = np.asarray(pred)
    if pred.shape != truth.shape:
        raise ValueError(f"prediction is {pred.shape}, truth is {truth.shape}")
    return _in_range(pred, num_classes, "prediction").astype(truth.dtype, copy=False)


def _in_range(labels: np.ndarray, end: int, what: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{what} is {labels.dtype}, expected integer labels")
    for value in (labels.min(), labels.max()) if labels.size else ():
        if not 0 <= value < end:
            raise ValueError(f"{what} holds label {value}, expected 0..{end - 1}")
    return labels


def _filterable(labels: np.ndarray) -> np.ndarray:
    """The same labels in the narrowest type that OpenCV filters: uint8, uint16 or float64."""
    labels = np.ascontiguousarray(labels)
    if labels.dtype.kind not in "iu" or labels.ndim != 2:
        raise TypeError(f"labels are {labels.dtype} {labels.shape}, expected an integer (H,W) map")
    if labels.dtype in (np.uint8, np.uint16) or not labels.size:
        return labels
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high <= 65535:
        return labels.astype(np.uint8 if high <= 255 else np.uint16)
    if max(-low, high) > 2**53:  # beyond that float64 no longer tells neighbours apart
        raise ValueError(f"labels run from {low} to {high}, expected at most 2**53 in size")
    return labels.astype(np.float64)
