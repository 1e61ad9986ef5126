# SPDX-License-Identifier: Apache-2.0
"""Cityscapes' own scores on a small tree in Cityscapes' layout."""

import sys

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from sparse_refine.evaluation import CityscapesSemSegEvaluator

ROAD, SIDEWALK, CAR = 0, 1, 13  # training ids
IDS = {ROAD: 7, SIDEWALK: 8, CAR: 26, 255: 0}

# 4 x 6: road above, sidewalk below, one car of 4 pixels, one pixel unlabelled
TRUTH = np.full((4, 6), ROAD, dtype=np.uint8)
TRUTH[2:] = SIDEWALK
TRUTH[1:3, 1:3] = CAR
TRUTH[0, 0] = 255


@pytest.fixture
def city(tmp_path):
    """Name of a data set of two images in two cities, and its dicts."""
    records = []
    for name, sequence in (("aachen", 0), ("bonn", 1)):
        folder = tmp_path / "gtFine" / "val" / name
        folder.mkdir(parents=True)
        stem = f"{name}_{sequence:06d}_000019"
        ids = np.vectorize(IDS.get)(TRUTH).astype(np.uint8)
        Image.fromarray(ids).save(folder / f"{stem}_gtFine_labelIds.png")
        instances = np.where(TRUTH == CAR, np.uint16(26000), ids)
        Image.fromarray(instances).save(folder / f"{stem}_gtFine_instanceIds.png")
        records.append({"file_name": f"leftImg8bit/val/{name}/{stem}_leftImg8bit.png"})
    dataset_name = f"{tmp_path.name}_cityscapes"
    MetadataCatalog.get(dataset_name).set(gt_dir=str(tmp_path / "gtFine" / "val"))
    yield dataset_name, records
    MetadataCatalog.remove(dataset_name)


def scores(labels):
    return torch.nn.functional.one_hot(torch.as_tensor(labels).long(), 19).permute(2, 0, 1).float()


def evaluate(dataset_name, records, outputs):
    evaluator = CityscapesSemSegEvaluator(dataset_name)
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()["sem_seg"]


def test_by_hand(city):
    pytest.importorskip("cityscapesscripts")
    dataset_name, records = city
    right = np.where(TRUTH == 255, ROAD, TRUTH)
    wrong = np.where(TRUTH == CAR, ROAD, right)
    wrong[3, 5] = CAR
    outputs = [{"labels": torch.as_tensor(right)}, {"sem_seg": scores(wrong)}]
    results = evaluate(dataset_name, records, outputs)
    # An image holds 9 pixels of road, 10 of sidewalk, 4 of the car. The second prediction calls the
    # car road and one pixel of sidewalk car.
    road, sidewalk, car = 18 / (18 + 4), 19 / 20, 4 / (8 + 1)
    assert results["IoU"] == pytest.approx(100 * (road + sidewalk + car) / 3)
    # Categories flat (road and sidewalk) and vehicle
    flat, vehicle = 37 / (38 + 4), 4 / (8 + 1)
    assert results["IoU_sup"] == pytest.approx(100 * (flat + vehicle) / 2)
    # iIoU weighs a car's pixels by the average car's size over this car's
    weight = 12794.0202738185 / 4
    assert results["iIoU"] == pytest.approx(100 * 4 * weight / (8 * weight + 1))


def test_all_right(city):
    pytest.importorskip("cityscapesscripts")
    dataset_name, records = city
    output = {"labels": torch.as_tensor(np.where(TRUTH == 255, CAR, TRUTH))}
    results = evaluate(dataset_name, records, [output, output])
    assert results == {"IoU": 100, "iIoU": 100, "IoU_sup": 100, "iIoU_sup": 100}


def test_a_truth_without_prediction_is_named(city):
    pytest.importorskip("cityscapesscripts")
    dataset_name, records = city
    with pytest.raises(FileNotFoundError, match="1 of 2 truths.*bonn_000001"):
        evaluate(dataset_name, records[:1], [{"labels": torch.zeros(4, 6, dtype=torch.uint8)}])


def test_numpy_is_left_as_it_was(city):
    pytest.importorskip("cityscapesscripts")
    before = hasattr(np, "in1d")
    evaluate(*city, [{"labels": torch.zeros(4, 6, dtype=torch.uint8)}] * 2)
    assert hasattr(np, "in1d") == before


def test_without_cityscapesscripts_the_error_says_what_to_do(city, monkeypatch):
    loaded = [name for name in sys.modules if name.startswith("cityscapesscripts.")]
    for name in ["cityscapesscripts", *loaded]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install cityscapesscripts"):
        evaluate(*city, [{"labels": torch.zeros(4, 6, dtype=torch.uint8)}] * 2)
