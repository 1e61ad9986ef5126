# SPDX-License-Identifier: Apache-2.0
"""Images and labels are paired by name, and what is wrong with a folder is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import reading

pytestmark = pytest.mark.usefixtures("catalogs")


def test_pairs_by_stem_whatever_the_extension(tmp_path, make, register):
    images = ["b.PNG", "a.jpg", "c.1.JPEG", "d.tif", "e.TIFF", "f.bmp", "g.webp", ".hidden.jpg"]
    labels = ["a.png", "b.png", "c.1.PNG", "d.tif", "e.png", "f.bmp", "g.png", "unused.png"]
    folders = make(tmp_path, images, labels)
    (folders[0] / "notes.txt").write_text("not an image")
    register(folders, colors=[(1, 2, 3), (4, 5, 6), np.array([7, 8, 9])])
    dicts = DatasetCatalog.get("mine")
    assert [Path(d["file_name"]).stem for d in dicts] == ["a", "b", "c.1", "d", "e", "f", "g"]
    assert [Path(d["sem_seg_file_name"]).name for d in dicts] == labels[:-1]
    assert all(set(d) == {"file_name", "sem_seg_file_name", "height", "width"} for d in dicts)
    assert all((d["height"], d["width"]) == (4, 6) for d in dicts)
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["soil", "weed", "crop"] and metadata.ignore_label == 255
    assert metadata.stuff_colors == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.image_root == str(folders[0]) and metadata.sem_seg_root == str(folders[1])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_is_the_upright_image_s(tmp_path, orientation, make, register):
    folders = make(tmp_path, [], ["a.png"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(folders[0] / "a.jpg", exif=exif)
    register(folders)
    (found,) = DatasetCatalog.get("mine")
    assert (found["height"], found["width"]) == ((6, 4) if orientation in (6, 8) else (4, 6))
    assert reading.read_image(found["file_name"]).shape[:2] == (found["height"], found["width"])


def test_split_file(tmp_path, make, register):
    folders = make(tmp_path, ["a.jpg", "b.jpg", "c.png", "d.e.jpg"], ["a.png", "c.png", "d.e.png"])
    (tmp_path / "split.txt").write_bytes("\ufeffc.png\r\n\r\n  a \r\nd.e\r\n".encode())
    register(folders, split_file=tmp_path / "split.txt")
    dicts = DatasetCatalog.get("mine")
    assert [Path(d["file_name"]).name for d in dicts] == ["c.png", "a.jpg", "d.e.jpg"]


@pytest.mark.parametrize(
    "images, labels, split, message",
    [
        ([], [], None, "no image files .*in .*images; subfolders are not searched"),
        (["a.jpg"], [], None, "no label files .*in .*labels"),
        (
            ["a.jpg", "b.jpg"],
            ["a.png"],
            None,
            "images/b.jpg has no labels, looked for b.png or .*labels; 1 of 2",
        ),
        (["a.jpg", "a.PNG"], ["a.png"], None, "images/a.PNG and .*images/a.jpg are images of one"),
        (["a.jpg"], ["a.png", "a.tif"], None, "a.png and .*a.tif are label files of one name"),
        (["a.jpg"], ["a.png"], "a\nq\n", "split.txt, line 2: no image 'q' in .*images"),
        (["a.jpg"], ["a.png"], "a\n\na.jpg\n", "split.txt lists 'a' twice, in lines 1 and 3"),
        (["a.jpg"], ["a.png"], "\n", "split.txt lists no images"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, images, labels, split, message, make, register):
    if split is not None:
        (tmp_path / "split.txt").write_text(split)
    register(make(tmp_path, images, labels), split_file=split and tmp_path / "split.txt")
    with pytest.raises((FileNotFoundError, ValueError), match=f"'mine': .*{message}"):
        DatasetCatalog.get("mine")


def test_twins_outside_the_split_do_no_harm(tmp_path, make, register):
    folders = make(tmp_path, ["a.jpg", "b.jpg", "b.png"], ["a.png", "b.png"])
    (tmp_path / "split.txt").write_text("a\n")
    register(folders, split_file=tmp_path / "split.txt")
    assert len(DatasetCatalog.get("mine")) == 1


def test_missing_folders_and_split_file(tmp_path, make, register):
    folders = make(tmp_path, ["a.jpg"], ["a.png"])
    for given, split, message in [
        ((tmp_path / "x", folders[1]), None, "no image folder .*x"),
        ((folders[0], tmp_path / "x"), None, "no label folder .*x"),
        (folders, tmp_path / "x.txt", "no split file .*x.txt"),
    ]:
        register(given, split_file=split)
        with pytest.raises(FileNotFoundError, match=f"'mine': {message}"):
            DatasetCatalog.get("mine")
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")


def test_an_unreadable_image_is_named(tmp_path, make, register):
    folders = make(tmp_path, [], ["a.png"])
    (folders[0] / "a.jpg").write_bytes(b"nothing")
    register(folders)
    with pytest.raises(OSError, match="images/a.jpg"):
        DatasetCatalog.get("mine")


def test_paths_from_elsewhere(tmp_path, make, register, monkeypatch):
    """A folder that is not there is looked for in the working directory; `~` is the home."""
    make(tmp_path / "field", ["a.jpg", "b.jpg"], ["a.png", "b.png"])
    (tmp_path / "field" / "split.txt").write_text("b\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    register(("~/field/images", "~/field/labels"), split_file="~/field/split.txt")
    (record,) = DatasetCatalog.get("mine")
    assert record["file_name"] == str(tmp_path / "field" / "images" / "b.jpg")
    monkeypatch.chdir(tmp_path / "field")
    for folders, split in (
        (("field/images", "labels"), None),
        (("images", "field/labels"), None),
        (("images", "labels"), "field/split.txt"),
    ):
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")
        register(folders, split_file=split)
        with pytest.raises(
            FileNotFoundError, match=f"field/.* in the working directory {tmp_path}"
        ):
            DatasetCatalog.get("mine")


def test_one_folder_for_both(tmp_path, make, register):
    """Label maps would be their own images, and every prediction right."""
    folders = make(tmp_path, ["a.png"], ["a.png"])
    (tmp_path / "link").symlink_to(folders[1])
    for images in (folders[1], tmp_path / "link"):
        register((images, folders[1]))
        with pytest.raises(ValueError, match=f"{images} is given for images and for labels"):
            DatasetCatalog.get("mine")
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")
