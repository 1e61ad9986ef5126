# SPDX-License-Identifier: Apache-2.0
"""Data sets that somebody registered: what does not fit is said before work."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.training.trainer import Trainer

DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase"]


@pytest.fixture
def registered(tiny_dataset):
    """make(metadata, change of a dict) -> name of a data set, the way Detectron2's pages do it."""
    names = []

    def make(metadata, change=dict) -> str:
        dicts = DatasetCatalog.get(tiny_dataset())
        names.append(f"theirs_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: [change(each) for each in dicts])
        MetadataCatalog.get(names[-1]).set(evaluator_type="sem_seg", **metadata)
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_a_name_in_place_of_a_tuple(make_cfg, tiny_dataset, key):
    """("field") is a text in Python: letter by letter 'f' is not registered."""
    cfg = make_cfg(*DENSE)
    cfg.DATASETS[key] = name = tiny_dataset()
    with pytest.raises(ValueError, match=rf"DATASETS\.{key} is '{name}': a tuple .*\('{name}',\)"):
        check_datasets(cfg)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({}, r"has stuff_classes \(\): the names .*MetadataCatalog\.get"),
        ({"stuff_classes": []}, r"has stuff_classes \[\]"),
        ({"thing_classes": ["soil", "crop", "weed"]}, r"has stuff_classes \(\)"),
        ({"stuff_classes": "abc"}, "has stuff_classes 'abc'"),
        ({"stuff_classes": ["soil", "crop", "crop"]}, "several classes called crop"),
        ({"stuff_classes": ["soil", "crop"]}, "2 classes but .*NUM_CLASSES is 3"),
    ],
)
def test_metadata_without_classes(make_cfg, registered, metadata, message):
    name = registered(metadata)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        check_datasets(make_cfg(*DENSE, "DATASETS.TRAIN", (name,), "DATASETS.TEST", ()))


def test_paths_in_place_of_names(make_cfg, registered, tmp_path):
    """Detectron2 opens both; the records of an evaluation are JSON."""

    def with_paths(each):
        return {**each, **{key: Path(each[key]) for key in ("file_name", "sem_seg_file_name")}}

    classes = {"stuff_classes": ["soil", "crop", "weed"]}
    results, model = [], None
    for change in (dict, with_paths):
        name = registered(classes, change)
        options = ["DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path / name)]
        cfg = make_cfg(*DENSE, *options, "DATASETS.TRAIN", ())
        model = model or Trainer.build_model(cfg).eval()
        results.append(Trainer.test(cfg, model)["sparse_refine"]["mIoU"])
        assert results[-1] == Trainer.test(cfg, model, resume=True)["sparse_refine"]["mIoU"]
    assert results[0] == results[1]


@pytest.mark.parametrize("turned", [False, True], ids=["cut", "turned"])
def test_labels_of_another_size_are_named(make_cfg, tiny_dataset, turned):
    """Detectron2's own evaluator, which runs beside, says numpy's words, or counts them."""
    name = tiny_dataset()
    labels = DatasetCatalog.get(name)[0]["sem_seg_file_name"]
    truth = np.array(Image.open(labels))
    Image.fromarray(truth.T.copy() if turned else truth[:-1]).save(labels)
    cfg = make_cfg(*DENSE, "DATASETS.TRAIN", (), "DATASETS.TEST", (name,))
    with pytest.raises(ValueError, match=rf"against {labels}: the prediction is 40 x 56 .*truth"):
        Trainer.test(cfg, Trainer.build_model(cfg).eval())
