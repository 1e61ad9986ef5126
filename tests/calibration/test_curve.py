# SPDX-License-Identifier: Apache-2.0
"""The measured curve, and the images that it is measured on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from sparse_refine import SparseRefine
from sparse_refine.calibration import curve
from sparse_refine.calibration.images import Images, dicts_of_folder
from sparse_refine.calibration.kinds import KINDS
from sparse_refine.evaluation.evaluator import SparseRefineEvaluator

METHOD = "MODEL.SPARSE_REFINE."


def test_a_curve_is_what_the_evaluator_measures(make_cfg, tiny_dataset):
    name = tiny_dataset()
    cfg = make_cfg(METHOD + "SELECTOR.NAME", "BudgetSelector")
    model = SparseRefine(cfg).eval()
    own, images = model.selector, Images(cfg, DatasetCatalog.get(name))
    measuring = curve.Curve(model, images.source(""), KINDS["BudgetSelector"], 3, 5)
    nothing, tenth, all_of_it = measuring.measure([0.1, 1.0])
    assert model.selector is own and "forward" not in vars(model.coarse)

    evaluator = SparseRefineEvaluator(name, boundary_distance=5, distributed=False)
    model.selector = KINDS["BudgetSelector"].build(0.1)
    evaluator.reset()
    with torch.inference_mode():
        for item, _ in images.source("")():
            evaluator.process([item], model([item]))
    expected = evaluator.evaluate()["sparse_refine"]
    assert tenth.miou == pytest.approx(expected["mIoU"])
    assert tenth.boundary_iou == pytest.approx(expected["BoundaryIoU"])
    assert tenth.fraction == pytest.approx(expected["selected_fraction"])
    assert nothing.miou == pytest.approx(expected["coarse/mIoU"])
    assert (nothing.fraction, nothing.errors_found, nothing.setting) == (0, 0, None)
    assert (all_of_it.fraction, all_of_it.errors_found) == (1, 1)
    # errors among the selected pixels, over all: from the evaluator's accuracies
    inside = (1 - expected["selected/coarse/pACC"] / 100) * tenth.fraction
    assert tenth.errors_found == pytest.approx(inside / (1 - expected["coarse/pACC"] / 100))
    assert min(nothing.seconds, tenth.seconds) > 0


def test_the_base_runs_once_an_image_and_its_seconds_count(make_cfg, tiny_dataset):
    cfg = make_cfg()
    model = SparseRefine(cfg).eval()
    images = Images(cfg, DatasetCatalog.get(tiny_dataset(count=2)))
    forward, base = model.coarse.base.forward, model.coarse.base
    base.forward = lambda inputs: time.sleep(0.2) or forward(inputs)
    measuring = curve.Curve(model, images.source(""), KINDS["EntropySelector"], 3, 5)
    points = measuring.measure([0.2, 0.5, 1.0])
    assert len(base.calls) == 3  # two, and the first once more beforehand
    assert all(point.seconds > 0.2 for point in points)


def test_points_of_a_base_alone_agree_with_those_that_are_measured(make_cfg, tiny_dataset):
    cfg = make_cfg()
    model = SparseRefine(cfg).eval()
    source = Images(cfg, DatasetCatalog.get(tiny_dataset())).source("")
    for name in ("EntropySelector", "BudgetSelector"):
        kind = KINDS[name]
        histogram = curve.count_uncertainty(model, source, kind, 3)
        points = curve.points_of_base(histogram, kind, [0.05, 0.3])
        measured = curve.Curve(model, source, kind, 3, 5).measure([p.setting for p in points])[1:]
        for base, found in zip(points, measured):
            assert base.seconds is None and base.miou is None
            assert base.fraction == pytest.approx(found.fraction, abs=0.005)
            if name == "EntropySelector":  # a budget is of each image, the base's curve of all
                assert base.errors_found == pytest.approx(found.errors_found, abs=0.02)


def test_limit_takes_images_from_all_over(make_cfg):
    dicts = [{"file_name": str(index)} for index in range(10)]
    chosen = Images(make_cfg(), dicts, limit=4).dicts
    assert [item["file_name"] for item in chosen] == ["0", "2", "5", "7"]
    assert len(Images(make_cfg(), dicts, limit=20)) == 10


def test_labels_that_do_not_fit_are_named(make_cfg, tiny_dataset):
    for size, value, message in (
        ((40, 56), 7, "0.png: label 7"),
        ((40, 50), 0, "0.png: labels of 50"),
    ):
        (record,) = DatasetCatalog.get(tiny_dataset(count=1))
        Image.fromarray(np.full(size, value, np.uint8)).save(record["sem_seg_file_name"])
        with pytest.raises(ValueError, match=message):
            list(Images(make_cfg(), [record]).source("")())


def test_a_folder_is_paired_and_its_labels_understood(make_cfg, tiny_dataset):
    records = DatasetCatalog.get(tiny_dataset(count=2))
    images, labels = (Path(records[0][key]).parent for key in ("file_name", "sem_seg_file_name"))
    before = DatasetCatalog.list()
    assert dicts_of_folder(make_cfg(), images, labels) == records
    from_one = dicts_of_folder(make_cfg("DATASETS.REDUCE_ZERO_LABEL", True), images, labels)
    assert from_one[0]["sem_seg_file_name"] == f"reduce_zero_label://{labels / '0.png'}"
    assert DatasetCatalog.list() == before
    for options, message in (
        (("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 1), "ignore_label 1 is the id of class 'class 1'"),
        (
            ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254, "DATASETS.REDUCE_ZERO_LABEL", True),
            "need ignore_label 255 .* ignore_label 254 and 3 classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dicts_of_folder(make_cfg(*options), images, labels)
