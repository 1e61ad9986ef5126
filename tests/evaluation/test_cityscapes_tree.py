# SPDX-License-Identifier: Apache-2.0
"""A small tree in Cityscapes' layout, made by Cityscapes' own tools from polygons and registered by
Detectron2's own function, through `train_net.py --eval-only`.
"""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import builtin
from detectron2.evaluation import cityscapes_evaluation
from PIL import Image

from sparse_refine.data import check_labels, read_image, read_labels
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.evaluation.cityscapes import _in1d

HEIGHT, WIDTH = 24, 32
ROAD, SIDEWALK, CAR = 0, 1, 13  # training ids
# A label, and the first and last column and row of its rectangle; later ones cover earlier ones.
SCENE = [
    ("road", (0, 31), (0, 23)),
    ("sidewalk", (0, 31), (16, 23)),  # 256 pixels
    ("car", (4, 11), (8, 15)),  # 64
    ("car", (20, 23), (8, 11)),  # 16
    ("static", (28, 31), (0, 3)),  # 16, of no class that is evaluated; 416 of the road are left
]
SPLITS = {"train": ["ulm"], "val": ["aachen", "bonn"]}
VAL = "cityscapes_fine_sem_seg_val"


@pytest.fixture
def tree(by_hand, tmp_path):
    """Makes the tree, registers it under Detectron2's names and puts down the base's answers."""
    pytest.importorskip("cityscapesscripts")
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    objects = [
        {"label": label, "polygon": [(left, top), (right, top), (right, bottom), (left, bottom)]}
        for label, (left, right), (top, bottom) in SCENE
    ]
    text = json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
    random = np.random.default_rng(0)
    for split, cities in SPLITS.items():
        for city in cities:
            stem = f"{city}_000000_000019"
            images, truths = (
                tmp_path / "cityscapes" / kind / split / city for kind in ("leftImg8bit", "gtFine")
            )
            images.mkdir(parents=True)
            truths.mkdir(parents=True)
            image = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(image).save(images / f"{stem}_leftImg8bit.png")
            polygons = truths / f"{stem}_gtFine_polygons.json"
            polygons.write_text(text)
            for suffix, encoding in (("labelIds", "ids"), ("labelTrainIds", "trainIds")):
                json2labelImg(str(polygons), str(truths / f"{stem}_gtFine_{suffix}.png"), encoding)
            annotation = Annotation()
            annotation.fromJsonText(text)
            instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
            Image.fromarray(instances).save(truths / f"{stem}_gtFine_instanceIds.png")
    for key in builtin._RAW_CITYSCAPES_SPLITS:
        for task in ("sem_seg", "instance_seg"):
            DatasetCatalog.remove(key.format(task=task))
            builtin.MetadataCatalog.remove(key.format(task=task))
    builtin.register_all_cityscapes(str(tmp_path))

    right, wrong = np.full((HEIGHT, WIDTH), ROAD), None
    right[16:] = SIDEWALK
    right[8:16, 4:12] = right[8:12, 20:24] = CAR
    wrong = right.copy()
    wrong[8:16, 4:12] = ROAD  # the larger car is missed: 64 pixels
    wrong[20:] = CAR  # half of the sidewalk is called a car: 128 pixels
    answers = {"aachen": right, "bonn": wrong}
    for found in DatasetCatalog.get(VAL):
        (city,) = (city for city in answers if f"/{city}/" in found["file_name"])
        by_hand.put(found["file_name"], answers[city][::2, ::2], 19)
    return answers


def expected_scores():
    # counts of both images
    road, sidewalk, car = 832 / (832 + 64), 384 / 512, 96 / (160 + 128)
    flat, vehicle = (1344 - 128) / (1344 + 64), car
    # iIoU weighs a pixel of an instance by the average car's size over this car's
    average = 12794.0202738185
    instances = 3 * average / (4 * average + 128)
    return {
        "IoU": 100 * (road + sidewalk + car) / 3,
        "IoU_sup": 100 * (flat + vehicle) / 2,
        "iIoU": 100 * instances,
        "iIoU_sup": 100 * instances,
    }


def test_the_tree_is_cityscapes(tree):
    for split, cities in SPLITS.items():
        dicts = DatasetCatalog.get(f"cityscapes_fine_sem_seg_{split}")
        assert len(dicts) == len(cities)
        for found in dicts:
            labels = read_labels(found["sem_seg_file_name"])
            assert read_image(found["file_name"]).shape == (*labels.shape, 3)
            check_labels(labels, 19, 255, found["sem_seg_file_name"])
            counts = [(labels == label).sum() for label in (ROAD, SIDEWALK, CAR, 255)]
            assert counts == [416, 256, 80, 16]
            ids = read_labels(found["sem_seg_file_name"].replace("labelTrainIds", "labelIds"))
            assert sorted(np.unique(ids)) == [4, 7, 8, 26]  # static, road, sidewalk, car


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_by_hand(tree, eval_only, output):
    results = eval_only(VAL, 19, "MODEL.SPARSE_REFINE.OUTPUT", output)
    expected = expected_scores()
    assert results["sem_seg"] == pytest.approx(expected, abs=1e-6)
    ours = results["sparse_refine"]
    assert ours["mIoU"] == pytest.approx(expected["IoU"], abs=1e-6)  # the same definition
    assert ours["IoU-car"] == pytest.approx(100 * 96 / 288)
    assert ours["selected_fraction"] == 0 and np.isnan(ours["IoU-train"])


def test_detectron2_s_own_evaluator_agrees(tree):
    """Where it runs: on releases before its import was broken, with what NumPy 2.4 took away."""
    evaluator = cityscapes_evaluation.CityscapesSemSegEvaluator(VAL)
    evaluator.reset()
    for found in DatasetCatalog.get(VAL):
        (labels,) = (tree[city] for city in tree if f"/{city}/" in found["file_name"])
        scores = torch.nn.functional.one_hot(torch.as_tensor(labels), 19).permute(2, 0, 1)
        try:
            evaluator.process([found], [{"sem_seg": scores}])
        except ModuleNotFoundError as error:
            pytest.skip(f"this Detectron2's own evaluator does not run: {error}")
    with _in1d():
        assert evaluator.evaluate()["sem_seg"] == pytest.approx(expected_scores(), abs=1e-6)


def test_on_detectron2_main_with_its_broken_import(tree, eval_only, monkeypatch):
    """Since 2024-12-19 Detectron2's module imports from `deeplearning.projects.cityscapesApi`, that
    only Meta has (detectron2#5436). The same is done here to what is installed."""
    with open(cityscapes_evaluation.__file__) as file:
        source = file.read()
    broken = "deeplearning.projects.cityscapesApi.cityscapesscripts"
    if broken not in source:
        assert source.count("cityscapesscripts.helpers") == 2
        for kind in ("from", "import"):
            source = source.replace(f"{kind} cityscapesscripts", f"{kind} {broken}")
    module = types.ModuleType(cityscapes_evaluation.__name__)
    module.__package__ = cityscapes_evaluation.__package__
    exec(compile(source, cityscapes_evaluation.__file__, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    package = sys.modules["detectron2.evaluation"]
    monkeypatch.setattr(package, "cityscapes_evaluation", module)
    for name in ("CityscapesSemSegEvaluator", "CityscapesInstanceEvaluator"):
        monkeypatch.setattr(package, name, getattr(module, name))

    theirs = package.CityscapesSemSegEvaluator(VAL)
    theirs.reset()
    with pytest.raises(ModuleNotFoundError, match="No module named 'deeplearning'"):
        theirs.process([DatasetCatalog.get(VAL)[0]], [{"sem_seg": torch.zeros(19, 24, 32)}])
    assert eval_only(VAL, 19)["sem_seg"] == pytest.approx(expected_scores(), abs=1e-6)


def test_what_is_missing_is_said_before_work(tree, make_cfg, monkeypatch):
    cfg = make_cfg(
        "DATASETS.TRAIN", (), "DATASETS.TEST", (VAL,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19
    )
    check_datasets(cfg)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    with pytest.raises(ImportError, match="pip install cityscapesscripts"):
        check_datasets(cfg)
