# SPDX-License-Identifier: Apache-2.0
"""The data sets that importing sparse_refine.data registers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import check_labels, datasets, reading, synthetic

pytestmark = pytest.mark.usefixtures("catalogs")

BUILTIN = [
    *("rgbweed_train", "rgbweed_test", "camvid_train", "camvid_val", "camvid_test"),
    *("ade20k_train", "ade20k_val", "synthetic_field_train", "synthetic_field_val"),
]
CLASSES = {"camvid": 11, "ade20k": 150}


def forget_builtin():
    for name in BUILTIN:
        DatasetCatalog.data.pop(name, None)
        MetadataCatalog.data.pop(name, None)


def test_importing_registers(tmp_path):
    assert set(BUILTIN) <= set(DatasetCatalog.list())
    for name in BUILTIN:
        metadata = MetadataCatalog.get(name)
        assert len(metadata.stuff_classes) == CLASSES.get(name.split("_")[0], 3)
        if not name.startswith("ade20k"):
            assert len(metadata.stuff_colors) == len(metadata.stuff_classes)
        assert metadata.ignore_label == 255 and metadata.evaluator_type == "sem_seg"


def test_registering_again_leaves_what_is_there():
    DatasetCatalog.remove("camvid_val")
    MetadataCatalog.remove("camvid_val")
    DatasetCatalog.register("camvid_val", lambda: ["someone else's"])
    datasets.register_builtin()
    datasets.register_builtin()
    assert DatasetCatalog.get("camvid_val") == ["someone else's"]


@pytest.mark.parametrize("name", ["rgbweed_test", "camvid_train"])
def test_absent_data_says_where_it_was_looked_for(tmp_path, monkeypatch, name):
    forget_builtin()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    datasets.register_builtin()
    folder = name.split("_")[0]
    message = (
        f"no image folder {tmp_path}/{folder}/images.*set DETECTRON2_DATASETS.*holds {folder}/"
    )
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get(name)


def test_ade20k_as_it_is_downloaded(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    images, labels = (folder / kind / "validation" for kind in ("images", "annotations"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(images / "ADE_val_00000001.jpg")
    Image.fromarray(np.array([[0, 1, 150]], np.uint8)).save(labels / "ADE_val_00000001.png")
    forget_builtin()
    datasets.register_builtin(tmp_path)
    (found,) = DatasetCatalog.get("ade20k_val")
    assert reading.read_labels(found["sem_seg_file_name"]).tolist() == [[255, 0, 149]]
    assert MetadataCatalog.get("ade20k_val").stuff_classes[0] == "wall"


def test_default_sets(tmp_path, monkeypatch):
    forget_builtin()
    monkeypatch.setenv("SPARSE_REFINE_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(
        synthetic,
        "generate_field",
        lambda h, w, seed, **scales: (
            made.append((h, w, seed)) or (np.zeros((1, 1, 3), np.uint8),) * 2
        ),
    )
    datasets.register_builtin(tmp_path)
    train = DatasetCatalog.get("synthetic_field_train")
    seeds = {seed for _, _, seed in made}
    assert len(train) == len(seeds) == 20
    val = DatasetCatalog.get("synthetic_field_val")
    assert len(val) == 4 and len(made) == 24
    assert not seeds & {seed for _, _, seed in made[20:]}
    assert {(h, w) for h, w, _ in made} == {(3072, 4096)}
    assert Path(val[0]["file_name"]).parent == (
        tmp_path / "synthetic_field" / synthetic.GENERATOR_VERSION / "3072x4096" / "val"
    )


@pytest.mark.parametrize(
    "name, count, size",
    [
        ("rgbweed_train", 25, (2448, 3264)),
        ("rgbweed_test", 11, (2448, 3264)),
        ("camvid_train", 367, (360, 480)),
        ("camvid_val", 101, (360, 480)),
        ("camvid_test", 233, (360, 480)),
    ],
)
def test_real_data(datasets_root, name, count, size):
    forget_builtin()
    datasets.register_builtin(datasets_root)
    dicts = DatasetCatalog.get(name)
    assert len(dicts) == count
    assert {(d["height"], d["width"]) for d in dicts} == {size}
    classes = len(MetadataCatalog.get(name).stuff_classes)
    for found in dicts[:: max(count // 5, 1)]:
        labels = reading.read_labels(found["sem_seg_file_name"])
        assert labels.shape == size
        check_labels(labels, classes, 255, found["sem_seg_file_name"])
    assert len({d["file_name"] for d in dicts}) == count
