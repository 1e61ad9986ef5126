# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder count as images, everywhere that folders are listed."""

from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from sparse_refine.data import read_image, read_labels
from sparse_refine.data.checking import check_dataset, list_folder
from sparse_refine.data.checking.report import dataset_table, record
from sparse_refine.data.image_files import (
    image_extensions,
    label_extensions,
    list_images,
)
from sparse_refine.inference.inputs import find_inputs

ENDINGS = Path(__file__).with_name("cases") / "endings"  # eight pairs of eight kinds of image
OTHERS = ("a.heic_", "b.heic_", "c.mpg", "d.pdf", "notes")

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A copy of the eight pairs; OTHERS stand beside the images."""
    root = tmp_path / "set"
    shutil.copytree(ENDINGS, root)
    for name in (*OTHERS, ".hidden.txt"):
        (root / "images" / name).write_text("no image")
    return root / "images", root / "labels"


def test_all_that_pillow_reads_is_used(folders, register, caplog):
    register(folders)
    dicts = DatasetCatalog.get("mine")
    known = [p for p in (ENDINGS / "images").iterdir() if p.suffix in image_extensions()]
    assert {".png", ".jpg", ".jfif", ".jpe", ".gif", ".jp2", ".webp"} <= {p.suffix for p in known}
    assert [Path(d["file_name"]).name for d in dicts] == sorted(path.name for path in known)
    first = read_image(dicts[0]["file_name"]).astype(int)
    for found in dicts:
        image, labels = read_image(found["file_name"]), read_labels(found["sem_seg_file_name"])
        assert image.shape == (32, 48, 3) and labels.shape == (32, 48)
        assert np.abs(image - first).mean() < 12, found["file_name"]  # one picture, losses apart

    DatasetCatalog.get("mine")
    said = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert len(said) == 1  # not at every look
    assert f"'mine': {folders[0]}: files passed over: 2 .heic_, 1 without extension" in said[0]


def test_a_check_and_a_prediction_say_what_they_pass_over(folders, caplog):
    listing = list_folder("here", *folders)
    expected = {".heic_": 2, ".mpg": 1, ".pdf": 1, "": 1}
    check = check_dataset(listing, None, 255)
    assert {finding.kind for finding in check.findings} == {"same image"}  # three JPEGs, and so on
    assert f"passed over in {folders[0]}: 2 .heic_" in dataset_table(check)
    (content,) = record([check], [])["datasets"]
    assert content["passed_over"] == {str(folders[0]): expected, str(folders[1]): {}}

    found = find_inputs([str(folders[0])], folders[0] / "out")
    assert "c.mpg" in {path.name for path in found}  # a video, which prediction takes
    assert len(found) == 1 + len(list_images(folders[0], image_extensions()).files)
    assert f"{folders[0]}: files passed over: 2 .heic_, 1 without extension, 1 .pdf" in caplog.text


def test_no_videos_vectors_and_documents():
    never = {".mpg", ".mpeg", ".mp4", ".fli", ".eps", ".ps", ".wmf", ".emf", ".svg", ".pdf", ".h5"}
    assert not never & image_extensions()
    assert label_extensions() < image_extensions()
    assert {".png", ".tif", ".bmp", ".pgm", ".gif", ".webp"} <= label_extensions()
    assert not {".jpg", ".jfif", ".jpe", ".jp2", ".avif", ".mpo"} & label_extensions()


def test_formats_that_a_program_registers(monkeypatch):
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN, "HEIF": (None, None)})
    monkeypatch.setattr(Image, "EXTENSION", {**Image.EXTENSION, ".heic": "HEIF"})
    assert ".heic" in image_extensions() and ".heic" not in label_extensions()


def test_order_hidden_files_and_subfolders(tmp_path):
    for name in ("b.png", "a.JPG", ".c.png", "deep/d.png", ".trash/e.png", "out/f.png", "g.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")  # opening it will say so

    def names(**options) -> list[str]:
        found = list_images(tmp_path, image_extensions(), **options)
        assert found.passed_over == Counter({".txt": 1})
        return [path.relative_to(tmp_path).as_posix() for path in found.files]

    assert names() == ["a.JPG", "b.png", "gone.png"]
    deep = names(recursive=True, without=(tmp_path / "out").resolve())
    assert deep == ["a.JPG", "b.png", "deep/d.png", "gone.png"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accented_letters_are_one_in_both_forms(tmp_path, make, register, forms):
    """As macOS and the others write them."""
    names = [unicodedata.normalize(form, "Blätter") for form in forms]
    assert names[0] != names[1]
    folders = make(tmp_path, [f"{names[0]}.jpg"], [f"{names[1]}.png"])
    (tmp_path / "split.txt").write_text(f"{names[1]}.jpg\n", encoding="utf-8")
    register(folders, split_file=tmp_path / "split.txt")
    (found,) = DatasetCatalog.get("mine")
    assert Path(found["file_name"]).stem == names[0]
    assert Path(found["sem_seg_file_name"]).stem == names[1]
    assert list_folder("x", *folders, tmp_path / "split.txt").findings == []
    both = make(tmp_path, [f"{names[1]}.png"])
    with pytest.raises(ValueError, match="images of one name"):
        DatasetCatalog.get("mine")
    assert [f.kind for f in list_folder("x", *both).findings] == ["duplicate name"]


def test_lossy_label_maps_are_named_where_there_are_no_others(tmp_path, make, register):
    folders = make(tmp_path, ["a.png"], ["a.jpg"])
    register(folders)
    with pytest.raises(FileNotFoundError, match="no label files in .*labels, which holds 1 .jpg"):
        DatasetCatalog.get("mine")
