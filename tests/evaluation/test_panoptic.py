# SPDX-License-Identifier: Apache-2.0
"""Panoptic quality of a panoptic base under SparseRefine, on two photographs of COCO.

The data set is registered by Detectron2's own functions, in the form that PanopticFPN uses: 80
things, and 53 kinds of stuff with one class for all things.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from PIL import Image

from sparse_refine.evaluation import PanopticEvaluator

from ..marks import slow_except

NAME = "coco_panoptic_sample"
SEPARATED = f"{NAME}_separated"
PERSON, TREES = 1, 184  # COCO's ids, a thing and stuff


def ids_of(file) -> np.ndarray:
    """(H,W) segment ids, 0 where there is none: red + 256 green + 65536 blue."""
    return np.asarray(Image.open(file)).astype(np.int64) @ (1, 256, 65536)


@pytest.fixture
def sample(datasets_root, by_hand, tmp_path):
    """Registers the sample -> its folder and annotations. Things and semantic labels are made from
    the panoptic ones, as PanopticFPN's preparation does, in a folder of the test."""
    folder = datasets_root / "coco_sample" / "panoptic"
    if not folder.is_dir():
        pytest.skip(f"real data: no {folder}")
    given = json.loads((folder / "panoptic.json").read_text())
    things = json.loads((folder / "detection_format.json").read_text())
    isthing = {category["id"]: bool(category["isthing"]) for category in given["categories"]}
    for key, name in (("categories", "id"), ("annotations", "category_id")):
        things[key] = [entry for entry in things[key] if isthing[entry[name]]]
    (tmp_path / "instances.json").write_text(json.dumps(things))

    metadata = _get_builtin_metadata("coco_panoptic_separated")
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    (tmp_path / "stuff").mkdir()
    for annotation in given["annotations"]:
        ids = ids_of(folder / "annotations" / annotation["file_name"])
        labels = np.full(ids.shape, 255, dtype=np.uint8)
        for segment in annotation["segments_info"]:
            category = segment["category_id"]
            labels[ids == segment["id"]] = 0 if isthing[category] else stuff[category]
        Image.fromarray(labels).save(tmp_path / "stuff" / annotation["file_name"])
    register_coco_panoptic_separated(
        NAME,
        metadata,
        image_root=str(folder / "images"),
        panoptic_root=str(folder / "annotations"),
        panoptic_json=str(folder / "panoptic.json"),
        sem_seg_root=str(tmp_path / "stuff"),
        instances_json=str(tmp_path / "instances.json"),
    )
    return folder, given


def answer(ids, annotation, number=None):
    """The truth at half size as a base gives it, with errors that are known: person `number` of the
    image is missed, its pixels are the trees', and no upper quarter has trees."""
    metadata = MetadataCatalog.get(SEPARATED)
    segments, low = [], np.zeros(ids.shape, dtype=np.int32)
    ours = [s for s in annotation["segments_info"] if not s["iscrowd"] and (ids == s["id"]).any()]
    people = [s for s in ours if s["category_id"] == PERSON]
    missed = people[number]["id"] if number is not None else None
    (trees,) = (s["id"] for s in ours if s["category_id"] == TREES)
    for position, segment in enumerate(s for s in ours if s["id"] != missed):
        category, place = segment["category_id"], ids == segment["id"]
        if segment["id"] == trees and missed is not None:
            place |= ids == missed
            place[: len(place) // 4] = False
        isthing = category in metadata.thing_dataset_id_to_contiguous_id
        kind = "thing" if isthing else "stuff"
        contiguous = getattr(metadata, f"{kind}_dataset_id_to_contiguous_id")[category]
        low[place] = position + 1
        segments.append(
            {"id": position + 1, "isthing": isthing, "category_id": contiguous, "of": category}
        )
        if not isthing:
            segments[-1]["area"] = int(place.sum())
    return low, segments


def quality(maps, truths, annotations, segments_of):
    """PQ, SQ and RQ of each COCO category, from the definition (Kirillov et al., CVPR 2019).

    `segments_of`: for each image the category of each predicted id.
    """
    overlaps, missed, wrong = {}, {}, {}
    for low, ids, annotation, categories in zip(maps, truths, annotations, segments_of):
        found = set()
        crowds = np.zeros(ids.shape, dtype=np.int64)  # category of the crowd that a pixel is in
        for truth in annotation["segments_info"]:
            category, of_truth = truth["category_id"], ids == truth["id"]
            if truth["iscrowd"]:
                crowds[of_truth] = category
                continue
            matched = False
            for number, its in categories.items():
                predicted = (low == number) & (ids != 0)  # what nobody has labelled counts nowhere
                iou = (predicted & of_truth).sum() / (predicted | of_truth).sum()
                if its == category and iou > 0.5:
                    overlaps.setdefault(category, []).append(iou)
                    found.add(number)
                    matched = True
            if not matched:
                missed[category] = missed.get(category, 0) + 1
        for number, category in categories.items():
            place = low == number
            excused = place & ((ids == 0) | (crowds == category))
            if number not in found and excused.sum() <= place.sum() / 2:
                wrong[category] = wrong.get(category, 0) + 1
    result = {}
    for category in {*overlaps, *missed, *wrong}:
        ious = overlaps.get(category, [])
        weight = len(ious) + (missed.get(category, 0) + wrong.get(category, 0)) / 2
        result[category] = (
            100 * sum(ious) / weight,
            100 * np.mean(ious) if ious else 0.0,
            100 * len(ious) / weight,
        )
    return result


def put_answers(sample, by_hand, number):
    """Puts down the base's answers -> PQ, SQ, RQ of each category, of the maps at full size."""
    folder, given = sample
    maps, truths, categories = [], [], []
    semantic = {found["file_name"]: found for found in DatasetCatalog.get(SEPARATED)}
    for annotation in given["annotations"]:
        image = str(folder / "images" / annotation["file_name"].replace("png", "jpg"))
        ids = ids_of(folder / "annotations" / annotation["file_name"])
        low, segments = answer(by_hand.half(ids), annotation, number)
        labels = by_hand.half(np.asarray(Image.open(semantic[image]["sem_seg_file_name"])))
        categories.append({segment["id"]: segment.pop("of") for segment in segments})
        by_hand.put(
            image,
            np.where(labels == 255, 0, labels),
            54,
            panoptic_seg=(torch.tensor(low), segments),
        )
        maps.append(by_hand.double(low, ids.shape))
        truths.append(ids)
    return quality(maps, truths, given["annotations"], categories)


@pytest.mark.parametrize("output", slow_except(["logits", "labels"], "logits"))
def test_pq_by_hand(sample, by_hand, eval_only, output):
    pytest.importorskip("panopticapi")
    expected = put_answers(sample, by_hand, number=0)
    assert expected[PERSON][2] < 100 and expected[TREES][1] < 95 and len(expected) >= 7
    results = eval_only(SEPARATED, 54, "MODEL.SPARSE_REFINE.OUTPUT", output)
    found = results["panoptic_seg"]
    things = MetadataCatalog.get(SEPARATED).thing_dataset_id_to_contiguous_id
    for suffix, chosen in (
        ("", list(expected)),
        ("_th", [category for category in expected if category in things]),
        ("_st", [category for category in expected if category not in things]),
    ):
        means = np.mean([expected[category] for category in chosen], axis=0)
        for key, mean in zip(("PQ", "SQ", "RQ"), means):
            assert found[key + suffix] == pytest.approx(mean, abs=1e-6), key + suffix
    assert ("sem_seg" in results) == (output == "logits")  # Detectron2's needs logits
    assert 90 < results["sparse_refine"]["mIoU"] < 100


@pytest.mark.slow
def test_a_base_that_is_not_panoptic(sample, by_hand, eval_only, monkeypatch):
    """No panoptic output, no panoptic quality, and panopticapi is not asked for."""
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", None)
    for found in DatasetCatalog.get(SEPARATED):
        labels = by_hand.half(np.asarray(Image.open(found["sem_seg_file_name"])))
        by_hand.put(found["file_name"], np.where(labels == 255, 0, labels), 54)
    results = eval_only(SEPARATED, 54)
    assert "panoptic_seg" not in results and results["sparse_refine"]["mIoU"] > 90


@pytest.mark.slow
def test_without_panopticapi_the_error_says_what_to_do(sample, by_hand, eval_only, monkeypatch):
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", None)
    put_answers(sample, by_hand, number=None)
    with pytest.raises(ImportError, match="pip install --no-deps panopticapi-lite"):
        eval_only(SEPARATED, 54)


def test_outputs_stay_as_they_were(sample, tmp_path):
    pytest.importorskip("panopticapi")
    evaluator = PanopticEvaluator(SEPARATED, str(tmp_path))
    evaluator.reset()
    found = DatasetCatalog.get(SEPARATED)[0]
    ids = torch.ones(4, 4, dtype=torch.int32)
    segments = [{"id": 1, "isthing": True, "category_id": 0}]
    evaluator.process([found], [{"panoptic_seg": (ids, segments)}])
    assert segments == [{"id": 1, "isthing": True, "category_id": 0}] and (ids == 1).all()


def test_a_data_set_without_semantic_labels_is_named(datasets_root, by_hand, eval_only):
    name = "panoptic_without_semantic"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg", "image_id": 1}])
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b"], evaluator_type="coco_panoptic_seg", ignore_label=255
    )
    with pytest.raises(ValueError, match="'panoptic_without_semantic' has no semantic labels"):
        eval_only(name, 2)
