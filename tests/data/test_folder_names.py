# SPDX-License-Identifier: Apache-2.0
"""DATASETS.FOLDERS: a name stands for what the config at hand says, or is refused."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from sparse_refine import add_sparse_refine_config
from sparse_refine.data import register_folders

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def config_of(tmp_path, make):
    """config_of(*(name, folder), classes=...) -> config; "one" holds 1 pair, "two" holds 2."""
    folders = {
        "one": make(tmp_path / "one", ["a.png"], ["a.png"]),
        "two": make(tmp_path / "two", ["a.png", "b.png"], ["a.png", "b.png"]),
    }
    (tmp_path / "split.txt").write_text("b\n")

    def made(*entries, classes=("soil", "weed"), split=False, ignore=255):
        cfg = get_cfg()
        add_sparse_refine_config(cfg)
        more = [str(tmp_path / "split.txt")] if split else []
        cfg.DATASETS.FOLDERS = [[name, *map(str, folders[of]), *more] for name, of in entries]
        cfg.DATASETS.CLASS_NAMES = list(classes)
        cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = ignore
        return cfg

    return made


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"folder": "two"}, (2, ["soil", "weed"], 255)),
        ({"folder": "one", "classes": ["x", "y", "z"]}, (1, ["x", "y", "z"], 255)),
        ({"folder": "two", "split": True}, (1, ["soil", "weed"], 255)),
        ({"folder": "one", "ignore": 9}, (1, ["soil", "weed"], 9)),
    ],
)
def test_a_second_config_of_a_process_gets_its_own_content(config_of, options, expected):
    register_folders(config_of(("mine", "one")))
    DatasetCatalog.get("mine")
    options = dict(options)
    second = config_of(("mine", options.pop("folder")), **options)
    register_folders(second)
    metadata = MetadataCatalog.get("mine")
    found = len(DatasetCatalog.get("mine")), metadata.stuff_classes, metadata.ignore_label
    assert found == expected
    register_folders(config_of(("mine", "one")))  # and the first again
    assert len(DatasetCatalog.get("mine")) == 1
    assert MetadataCatalog.get("mine").stuff_classes == ["soil", "weed"]


def test_two_entries_of_one_name(config_of):
    with pytest.raises(ValueError, match=r"'mine' twice: .*one/images.* and .*two/images"):
        register_folders(config_of(("mine", "one"), ("mine", "two")))
    assert "mine" not in DatasetCatalog.list()


@pytest.mark.parametrize("name", ["camvid_train", "coco_2017_val_panoptic_stuffonly"])
def test_a_name_that_comes_from_elsewhere(config_of, name):
    """Built-in sets of this project and of Detectron2 stay what they are; both are named."""
    before = MetadataCatalog.get(name).as_dict()
    with pytest.raises(ValueError, match=rf"'{name}' of .*one/images.*registered already, of "):
        register_folders(config_of((name, "one")))
    assert MetadataCatalog.get(name).as_dict() == before


def test_a_name_that_a_program_registered_before(config_of, register, make, tmp_path):
    register(make(tmp_path / "own", ["a.png"], ["a.png"]))
    with pytest.raises(ValueError, match=r"'mine' of .*one/images.*already, of .*own/images"):
        register_folders(config_of(("mine", "one")))
    assert MetadataCatalog.get("mine").image_root == str(tmp_path / "own" / "images")
