# SPDX-License-Identifier: Apache-2.0
"""Data sets register at no cost, and what does not fit is said at once."""

from __future__ import annotations

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine import add_sparse_refine_config
from sparse_refine.data import register_folders

pytestmark = pytest.mark.usefixtures("catalogs")


def test_nothing_is_read_at_registration(tmp_path, make, register):
    register((tmp_path / "no", tmp_path / "where"))
    folders = make(tmp_path, ["a.jpg"], ["a.png"])
    folders[0].rename(tmp_path / "no")
    folders[1].rename(tmp_path / "where")
    assert len(DatasetCatalog.get("mine")) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_names": []}, "class_names has to be a list of names"),
        ({"class_names": "soil"}, "class_names has to be a list of names, got 'soil'"),
        ({"class_names": ["a", "b", "a"]}, "class_names has a more than once"),
        ({"ignore_label": 2}, "ignore_label 2 is the id of class 'crop'.*outside 0..2"),
        ({"colors": [(0, 0, 0)]}, "1 colors for 3 classes"),
        (
            {"reduce_zero_label": True, "ignore_label": 0},
            "labels .* need ignore_label 255.* 0 and 3",
        ),
    ],
)
def test_bad_arguments(tmp_path, options, message, make, register):
    with pytest.raises(ValueError, match=f"'mine': {message}"):
        register(make(tmp_path, []), **options)
    assert "mine" not in DatasetCatalog.list() and "mine" not in MetadataCatalog.list()


def test_name_in_use(tmp_path, make, register):
    register(make(tmp_path, []))
    with pytest.raises(ValueError, match="'mine' is registered already"):
        register(make(tmp_path, []))


def test_folders_of_a_config(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.png")
    Image.new("L", (6, 4)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "split.txt").write_text("a\n")
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    name = f"folders_{tmp_path.name}"
    entry = [name, str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "split.txt")]
    text = yaml.safe_dump({"DATASETS": {"FOLDERS": [entry], "CLASS_NAMES": ["soil", "crop"]}})
    (tmp_path / "own.yaml").write_text(text)
    cfg.merge_from_file(str(tmp_path / "own.yaml"))
    register_folders(cfg)
    register_folders(cfg)  # a second time is nothing new
    (record,) = DatasetCatalog.get(name)
    assert (record["height"], record["width"]) == (4, 6)
    assert MetadataCatalog.get(name).stuff_classes == ["soil", "crop"]
    cfg.DATASETS.FOLDERS = [["b", "images"]]
    with pytest.raises(ValueError, match=r"DATASETS.FOLDERS .*'b', 'images'"):
        register_folders(cfg)


@pytest.mark.parametrize(
    "folders, entry",
    [
        (["dev", "images", "labels"], "'dev'"),  # one entry without the list around it
        ([["dev", 1, 2]], r"\['dev', 1, 2\]"),
        ([["dev", "images", None]], r"\['dev', 'images', None\]"),
        ([{"dev": "images"}], r"\{'dev': 'images'\}"),
        ([[]], r"\[\]"),
    ],
)
def test_entries_that_are_none(folders, entry):
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.DATASETS.FOLDERS, cfg.DATASETS.CLASS_NAMES = folders, ["soil", "crop"]
    before = DatasetCatalog.list()
    with pytest.raises(ValueError, match=rf"DATASETS\.FOLDERS has the entry {entry}: \[name, "):
        register_folders(cfg)
    assert DatasetCatalog.list() == before
