# SPDX-License-Identifier: Apache-2.0
"""Counts and ratios of label maps against numbers worked out by hand and a slow reference."""

import cv2
import numpy as np
import pytest

from sparse_refine.evaluation import metrics

nan = float("nan")

TRUTH = np.array([[0, 0, 1], [2, 255, 1]], dtype=np.uint8)
PRED = np.array([[0, 1, 1], [2, 2, 0]], dtype=np.uint8)
COUNTS = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def mask_minus_erosion(mask, distance):
    """Boundary IoU's mask to boundary, as the paper's code does it: one class at a time."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
    return (mask.astype(np.uint8) - eroded).astype(bool)


def blobs(rng, classes, height, width, cell):
    """Random rectangles of about `cell` pixels, so that classes have insides."""
    coarse = rng.integers(0, classes, (height // cell + 1, width // cell + 1))
    return coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_confusion_matrix_by_hand(dtype):
    counts = metrics.confusion_matrix(PRED.astype(dtype), TRUTH.astype(dtype), 3, 255)
    assert counts.dtype == np.int64
    assert counts.tolist() == COUNTS


@pytest.mark.parametrize("ignore", [3, 255, -1, 65535, 10**6])
def test_any_ignore_label(ignore):
    truth = np.where(TRUTH == 255, ignore, TRUTH.astype(np.int64))
    assert metrics.confusion_matrix(PRED, truth, 3, ignore).tolist() == COUNTS


def test_a_class_can_be_the_ignore_label():
    counts = metrics.confusion_matrix(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]), 2, 0)
    assert counts.tolist() == [[0, 0], [0, 1]]


def test_remap_ignored_is_free_when_done():
    folded = metrics.remap_ignored(TRUTH, 3, 255)
    assert folded.tolist() == [[0, 0, 1], [2, 3, 1]] and TRUTH[1, 1] == 255
    assert np.shares_memory(metrics.remap_ignored(folded, 3, 3), folded)
    assert metrics.remap_ignored(np.array([[254, 255]]), 255, 255).dtype == np.uint8
    assert metrics.remap_ignored(np.array([[255, 300]]), 256, 300).tolist() == [[255, 256]]


@pytest.mark.parametrize("value", [3, 255, -1])
def test_a_prediction_out_of_range_is_refused(value):
    pred = PRED.astype(np.int64)
    pred[1, 1] = value  # also where the truth is ignored
    with pytest.raises(ValueError, match=f"prediction holds label {value}, expected 0..2"):
        metrics.confusion_matrix(pred, TRUTH, 3, 255)


def test_bad_truth_shape_and_type_are_refused():
    with pytest.raises(ValueError, match="truth holds label 7, expected 0..2"):
        metrics.confusion_matrix(PRED, np.where(TRUTH == 2, 7, TRUTH), 3, 255)
    with pytest.raises(ValueError, match=r"prediction is \(2, 2\), truth is \(2, 3\)"):
        metrics.confusion_matrix(PRED[:, :2], TRUTH, 3, 255)
    with pytest.raises(TypeError, match="prediction is float64"):
        metrics.confusion_matrix(PRED / 1.0, TRUTH, 3, 255)
    with pytest.raises(ValueError, match="num_classes is 70000"):
        metrics.confusion_matrix(PRED, TRUTH, 70000, 255)


def test_no_pixels():
    nothing = np.zeros(0, dtype=np.uint8)
    counts = metrics.confusion_matrix(nothing, nothing, 2, 255)
    assert counts.tolist() == [[0, 0], [0, 0]]
    assert np.isnan(metrics.mean_iou(metrics.iou_from_confusion(counts)))
    assert np.isnan(metrics.pixel_accuracy(counts))


def test_ratios_by_hand():
    # class 0: 1 both, 1 truth only, 1 prediction only; class 2: 1 both; nobody has class 3
    counts = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    iou = metrics.iou_from_confusion(counts)
    np.testing.assert_allclose(iou, [1 / 3, 1 / 3, 1, nan])
    assert metrics.mean_iou(iou) == pytest.approx(5 / 9)  # not 5/12: an absent class has no part
    assert metrics.pixel_accuracy(counts) == pytest.approx(3 / 5)


def test_a_class_that_is_only_predicted_counts_as_zero():
    iou = metrics.iou_from_confusion(np.array([[3, 1], [0, 0]]))
    np.testing.assert_allclose(iou, [0.75, 0])
    assert metrics.mean_iou(iou) == pytest.approx(0.375)


def test_summarize_by_hand():
    boundary = np.array([1, 2, 0]), np.array([4, 2, 0])
    results = metrics.summarize(np.array(COUNTS), boundary, ["soil", "crop", "weed"])
    assert list(results)[:3] == ["mIoU", "pACC", "BoundaryIoU"]
    assert results["mIoU"] == pytest.approx(100 * 5 / 9)
    assert results["pACC"] == pytest.approx(60)
    assert results["BoundaryIoU"] == pytest.approx(62.5)
    assert results["IoU-crop"] == pytest.approx(100 / 3)
    assert results["BoundaryIoU-soil"] == pytest.approx(25)
    assert np.isnan(results["BoundaryIoU-weed"])
    assert list(metrics.summarize(np.array(COUNTS))) == ["mIoU", "pACC"]


def test_boundary_band_by_hand():
    labels = np.zeros((7, 8), dtype=np.uint8)
    labels[:, 5:] = 9
    band = metrics.boundary_band(labels, 1)
    inside = np.zeros((7, 8), dtype=bool)
    inside[1:6, 1:4] = True  # columns 4 and 5 see each other, the outermost pixels see out
    inside[1:6, 6] = True
    assert (band == ~inside).all()
    inside[:] = False
    inside[2:5, 2] = True
    assert (metrics.boundary_band(labels, 2) == ~inside).all()


@pytest.mark.parametrize("distance", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_boundary_band_is_every_class_mask_minus_its_erosion(distance, dtype):
    rng = np.random.default_rng(distance)
    labels = blobs(rng, 6, 61, 83, 11).astype(dtype)
    labels[rng.random(labels.shape) < 0.005] = 5  # specks
    band = metrics.boundary_band(labels, distance)
    for c in range(6):
        expected = mask_minus_erosion(labels == c, distance)
        assert (band & (labels == c) == expected).all(), c


def test_boundary_band_takes_wide_and_negative_labels():
    labels = blobs(np.random.default_rng(0), 4, 40, 40, 9)
    expected = metrics.boundary_band(labels, 2)
    for names in ([0, 256, 65536, 2**40], [-1, 0, 300, 70000], [0, 1, 2, 65535]):
        assert (metrics.boundary_band(np.array(names)[labels], 2) == expected).all()
    with pytest.raises(ValueError, match="2\\*\\*53"):
        metrics.boundary_band(np.array([[2**60, 0]]), 1)
    with pytest.raises(TypeError, match="float64"):
        metrics.boundary_band(labels / 2, 1)
    with pytest.raises(ValueError, match="distance is 0"):
        metrics.boundary_band(labels, 0)


def test_boundary_counts_by_hand():
    truth = np.zeros((5, 6), dtype=np.uint8)
    truth[:, 3:] = 1
    pred = np.zeros((5, 6), dtype=np.uint8)
    pred[:, 4:] = 1
    # Bands of class 0: truth 5x3 less its 3x1 inside = 12, prediction 5x4 less 3x2 = 14; they share
    # column 0 (5) and the ends of columns 1 and 2 (4). Class 1: 12 and 10; they share the ends of
    # column 4 (2) and column 5 (5). Class 2: nowhere.
    intersection, union = metrics.boundary_counts(pred, truth, 3, 255, 1)
    assert intersection.tolist() == [9, 7, 0] and union.tolist() == [17, 15, 0]
    assert intersection.dtype == union.dtype == np.int64
    np.testing.assert_allclose(metrics.iou_from_counts(intersection, union), [9 / 17, 7 / 15, nan])
    band = metrics.boundary_band(truth, 1)
    again = metrics.boundary_counts(pred, truth, 3, 255, 1, truth_band=band)
    assert [counts.tolist() for counts in again] == [[9, 7, 0], [17, 15, 0]]


def test_ignored_pixels_have_no_part_in_boundary_counts():
    truth = np.zeros((9, 9), dtype=np.uint8)
    truth[3:6, 3:6] = 255
    pred = np.random.default_rng(0).integers(0, 2, (9, 9))
    pred[truth == 0] = 0
    intersection, union = metrics.boundary_counts(pred, truth, 2, 255, 1)
    # Of 9 x 9 the border's ring (32) and the hole's (16); not the hole's 9, not the 24 between.
    assert union.tolist() == [32 + 16, 0]
    assert intersection.tolist() == union.tolist()


@pytest.mark.parametrize("classes", [3, 20, 150, 300])
def test_against_a_slow_reference(classes):
    rng = np.random.default_rng(classes)
    ignore, distance = 65535, 2
    truth = blobs(rng, classes, 45, 52, 7)
    pred = np.where(rng.random(truth.shape) < 0.3, blobs(rng, classes, 45, 52, 5), truth)
    truth = np.where(rng.random(truth.shape) < 0.02, ignore, truth)

    confusion = np.zeros((classes, classes), dtype=int)
    for t, p in zip(truth.flat, pred.flat):
        if t != ignore:
            confusion[t, p] += 1
    assert (metrics.confusion_matrix(pred, truth, classes, ignore) == confusion).all()

    masked = np.where(truth == ignore, ignore, pred)
    intersection, union = metrics.boundary_counts(pred, truth, classes, ignore, distance)
    for c in range(classes):
        edge_t = mask_minus_erosion(truth == c, distance)
        edge_p = mask_minus_erosion(masked == c, distance)
        assert intersection[c] == (edge_t & edge_p).sum()
        assert union[c] == (edge_t | edge_p).sum()
        both, either = (truth == c) & (masked == c), (truth == c) | (masked == c)
        expected = both.sum() / either.sum() if either.any() else nan
        np.testing.assert_allclose(metrics.iou_from_confusion(confusion)[c], expected)
