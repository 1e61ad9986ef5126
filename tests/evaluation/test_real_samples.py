# SPDX-License-Identifier: Apache-2.0
"""Samples of COCO-Stuff and ADE20K through `train_net.py --eval-only`: our evaluator and, beside
it, Detectron2's SemSegEvaluator, against IoUs that plain numpy counts.
"""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import (
    check_labels,
    check_same_size,
    read_image,
    read_labels,
    register_image_label_folder,
)

COCO_CLASSES = [f"category {i + 1}" for i in range(182)]  # labels are COCO's ids less one


@pytest.fixture
def samples(datasets_root, by_hand, tmp_path):
    """Registers the samples as one's own folders are registered."""
    (tmp_path / "two.txt").write_text("000000000139\n000000001268\n")
    folder = datasets_root / "coco_sample" / "stuff" / "val"
    register_image_label_folder(
        "coco_stuff_sample_two",  # 182 classes take their time
        folder / "images",
        folder / "labels",
        COCO_CLASSES,
        split_file=tmp_path / "two.txt",
    )
    for split in ("train", "val"):
        folder = datasets_root / "coco_sample" / "stuff" / split
        register_image_label_folder(
            f"coco_stuff_sample_{split}", folder / "images", folder / "labels", COCO_CLASSES
        )
    for split, name in (("train", "training"), ("val", "validation")):
        folder = datasets_root / "ade20k_sample"
        register_image_label_folder(
            f"ade20k_sample_{split}",
            folder / "images" / name,
            folder / "annotations" / name,
            MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes,
            reduce_zero_label=True,
        )
    if not all((datasets_root / name).is_dir() for name in ("coco_sample", "ade20k_sample")):
        pytest.skip(f"real data: no coco_sample/ and ade20k_sample/ in {datasets_root}")


@pytest.mark.parametrize(
    "name, count, classes",
    [
        ("coco_stuff_sample_train", 13, 182),
        ("coco_stuff_sample_val", 8, 182),
        ("ade20k_sample_train", 1, 150),
        ("ade20k_sample_val", 1, 150),
    ],
)
def test_pairs_fit(samples, name, count, classes):
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == count
    for found in dicts:
        image, labels = read_image(found["file_name"]), read_labels(found["sem_seg_file_name"])
        check_same_size(image, labels, found["file_name"], found["sem_seg_file_name"])
        check_labels(labels, classes, 255, found["sem_seg_file_name"])


def truths_of(name):
    return [read_labels(found["sem_seg_file_name"]) for found in DatasetCatalog.get(name)]


def with_an_error(truth, instead):
    """The truth with its most frequent class called `instead` in the image's left half; what has no
    class is called the most frequent one."""
    frequent = np.bincount(truth[truth != 255]).argmax()
    answer = np.where(truth == 255, frequent, truth)
    left = answer[:, : truth.shape[1] // 2]
    left[left == frequent] = instead
    return answer


def put_answers(by_hand, name, num_classes, instead):
    """Puts down answers for a data set -> what they are at full size, for numpy."""
    coarse = []
    for found, truth in zip(DatasetCatalog.get(name), truths_of(name)):
        low = with_an_error(by_hand.half(truth), instead)
        by_hand.put(found["file_name"], low, num_classes)
        coarse.append(by_hand.double(low, truth.shape))
    return coarse


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, num_classes, instead, images",
    [
        ("coco_stuff_sample_two", 182, 181, 2),  # a class that the truth lacks
        ("ade20k_sample_val", 150, 2, 1),  # sky, which it has
    ],
)
def test_miou_by_hand(samples, by_hand, eval_only, name, num_classes, instead, images):
    coarse = put_answers(by_hand, name, num_classes, instead)
    assert len(coarse) == images
    expected = by_hand.ious(coarse, truths_of(name), num_classes)
    results = eval_only(name, num_classes)
    ours, theirs = results["sparse_refine"], results["sem_seg"]
    assert ours["selected_fraction"] == 0  # the base is sure, so nothing is refined
    assert 20 < np.nanmean(expected) < 99
    for kind in ("mIoU", "coarse/mIoU", "refined/mIoU"):
        assert ours[kind] == pytest.approx(np.nanmean(expected), abs=1e-6)
    # Detectron2 leaves a class that is only predicted out; with us it counts as 0
    truths = np.unique(np.concatenate([truth.ravel() for truth in truths_of(name)]))
    of_truth = np.where(np.isin(np.arange(num_classes), truths), expected, np.nan)
    assert theirs["mIoU"] == pytest.approx(np.nanmean(of_truth), abs=1e-6)
    for index, class_name in enumerate(MetadataCatalog.get(name).stuff_classes):
        for found, wanted in ((ours, expected), (theirs, of_truth)):
            iou = found[f"IoU-{class_name}"]
            assert iou == pytest.approx(wanted[index], abs=1e-6, nan_ok=True)


@pytest.mark.slow
def test_ade20k_and_its_selected_pixels_by_hand(samples, by_hand, eval_only, datasets_root):
    """From the file as it is stored: 0 is ignored, wall (1) is class 0. The base is unsure of a
    sixteenth of the image: those pixels and no others are selected."""
    file = datasets_root / "ade20k_sample/annotations/validation/ADE_val_00000001.png"
    stored = np.asarray(Image.open(file)).astype(int)
    assert {0, 1} <= set(np.unique(stored))
    (found,) = DatasetCatalog.get("ade20k_sample_val")
    low = np.maximum(by_hand.half(stored), 1) - 1
    low[10:30] = 0
    unsure = np.zeros(low.shape, dtype=bool)
    unsure[: low.shape[0] // 4, : low.shape[1] // 4] = True
    by_hand.put(found["file_name"], low, 150, unsure)
    full, selected = by_hand.double(low, stored.shape), by_hand.double(unsure, stored.shape)
    valid = stored > 0
    results = eval_only("ade20k_sample_val", 150)["sparse_refine"]
    truth, called = stored == 1, (full == 0) & valid
    iou = 100 * (truth & called).sum() / (truth | called).sum()
    assert iou < 99 and results["coarse/IoU-wall"] == pytest.approx(iou)
    right = (full + 1 == stored)[valid]
    assert results["coarse/pACC"] == pytest.approx(100 * right.mean())
    assert results["selected/coarse/pACC"] == pytest.approx(100 * right[selected[valid]].mean())
    assert results["selected_fraction"] == pytest.approx(selected.mean())
    assert results["mIoU"] != pytest.approx(results["coarse/mIoU"])  # of random weights
