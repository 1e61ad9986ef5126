# SPDX-License-Identifier: Apache-2.0
"""What a check of a data set finds: every kind of finding, made and found, and nothing where
nothing is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import register_image_label_folder
from sparse_refine.data.checking import (
    KINDS,
    check_dataset,
    dataset,
    list_folder,
    list_registered,
    shared_images,
)

SIZE = (30, 40)
ORIENTATION = 0x0112


def photograph(seed: int = 0, size: tuple[int, int] = SIZE):
    """(image, labels): bright blobs of class 1 on dark ground, at random places."""
    random = np.random.default_rng(seed)
    blocks = random.random((size[0] // 5, size[1] // 5)) < 0.3
    labels = blocks.astype(np.uint8).repeat(5, 0).repeat(5, 1)
    image = 40 + 160 * labels[..., None] + random.integers(0, 20, (*size, 3))
    return image.astype(np.uint8), labels


class Folder:
    """A data set's folder with pairs named 0, 1, ...; the tests spoil it."""

    def __init__(self, root: Path, count: int = 2, first: int = 0):
        self.images, self.labels = root / "images", root / "labels"
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True)
        for index in range(count):
            image, labels = photograph(first + index)
            self.put(f"{index}.png", image, labels)

    def put(self, name: str, image=None, labels=None, **options) -> None:
        if image is not None:
            Image.fromarray(image).save(self.images / name, **options)
        if labels is not None:
            Image.fromarray(labels).save((self.labels / name).with_suffix(".png"))

    def check(self, classes=2, ignore=255, split=None, workers=1):
        listing = list_folder("here", self.images, self.labels, split)
        return check_dataset(listing, classes, ignore, workers)

    def found(self, **options) -> dict[str, str]:
        """Messages by kind; one of each is expected."""
        findings = self.check(**options).findings
        kinds = [finding.kind for finding in findings]
        assert len(set(kinds)) == len(kinds), findings
        assert set(kinds) <= set(KINDS)
        return {finding.kind: finding.message for finding in findings}


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "set")


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def test_nothing_wrong(folder):
    check = folder.check()
    assert check.findings == []
    labels = np.stack([photograph(0)[1], photograph(1)[1]])
    assert check.pixels == {0: (labels == 0).sum(), 1: (labels == 1).sum()}
    assert check.images == {0: 2, 1: 2}
    assert [pair.size for pair in check.pairs] == [SIZE, SIZE]
    assert [Path(pair.image).name for pair in check.pairs] == ["0.png", "1.png"]


def test_partners_that_are_missing(folder):
    (folder.labels / "0.png").unlink()
    (folder.images / "1.png").unlink()
    found = folder.found()
    assert set(found) == {"missing", "no image"}
    assert "0.png has no labels" in found["missing"] and "1.png" in found["missing"]
    assert "1.png has no image" in found["no image"]


def test_folders_that_are_missing_or_empty(folder, tmp_path):
    listing = list_folder("x", tmp_path / "nowhere", folder.labels)
    assert [finding.kind for finding in listing.findings] == ["listing"]
    assert str(tmp_path / "nowhere") in listing.findings[0].message
    assert check_dataset(listing, 2, 255).pairs == []


def test_split_file(folder, tmp_path):
    split = tmp_path / "train.txt"
    split.write_text("0\n\nabsent.jpg\n0.png\n")
    found = folder.found(split=split)
    assert "line 3: there is no image 'absent.jpg'" in found["missing"]
    assert "line 4: '0' stands in line 1" in found["duplicate name"]
    assert [Path(pair.image).stem for pair in folder.check(split=split).pairs] == ["0"]
    split.write_text("\n")
    assert "lists no image" in folder.found(split=split)["listing"]
    split.write_bytes(b"\xff\xfe\xff")
    assert str(split) in folder.check(split=split).findings[0].message


def test_two_files_of_one_name(folder):
    folder.put("0.jpg", photograph()[0])
    found = folder.found()
    assert set(found) == {"duplicate name"}
    assert "0.jpg and" in found["duplicate name"] and "0.png" in found["duplicate name"]


@pytest.mark.parametrize("which", ["images", "labels"])
def test_files_that_do_not_open(folder, which):
    (getattr(folder, which) / "0.png").write_text("no image")
    found = folder.found()
    assert set(found) == {"unreadable"}
    assert f"{which}/0.png" in found["unreadable"]


@pytest.mark.parametrize("which", ["images", "labels"])
def test_files_that_are_cut_short(folder, which):
    image, labels = photograph(0, (300, 400))
    folder.put("0.png", image, labels)
    path = getattr(folder, which) / "0.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = folder.found()
    assert set(found) == {"truncated"}
    assert f"{which}/0.png" in found["truncated"]


def test_truncated_jpeg(folder):
    image, labels = photograph(7, (300, 400))
    folder.put("2.jpg", image, labels)
    path = folder.images / "2.jpg"
    path.write_bytes(path.read_bytes()[:-2000])
    assert set(folder.found()) == {"truncated"}


def test_a_decoder_that_raises_anything(folder, monkeypatch):
    def reader(file_name):
        raise ZeroDivisionError("in the decoder")

    monkeypatch.setitem(dataset.check_pair.__globals__, "read_image", reader)
    messages = [finding.message for finding in folder.check().findings]
    assert len(messages) == 2
    assert "0.png: ZeroDivisionError: in the decoder" in messages[0]


def test_formats_that_are_no_labels(folder):
    image, labels = photograph()
    (folder.labels / "0.png").unlink()
    Image.fromarray(labels).save(folder.labels / "0.jpg")
    assert "a JPEG does not keep class ids" in folder.found()["label format"]
    (folder.labels / "0.jpg").unlink()
    colors = np.array([[0, 0, 0], [200, 10, 10]], np.uint8)[labels]
    Image.fromarray(colors).save(folder.labels / "0.png")
    assert "look like colours" in folder.found()["label format"]


def test_sizes_that_differ(folder):
    image, labels = photograph()
    folder.put("0.png", None, labels[:-1])
    found = folder.found()["size mismatch"]
    assert "40 x 29" in found and "40 x 30" in found and "times" not in found
    folder.put("0.png", None, np.ascontiguousarray(labels[::2, ::2]))
    assert "the labels are the image's size times 0.5" in folder.found()["size mismatch"]


def test_exif_that_turns_by_90_degrees_is_named(folder):
    image, labels = photograph(5)
    stored = np.rot90(image)  # orientation 6 is shown turned clockwise: as `image` is
    folder.put("2.jpg", stored, labels, exif=with_exif(6), quality=95)
    assert folder.found() == {}
    folder.put("2.jpg", None, np.ascontiguousarray(np.rot90(labels)))
    message = folder.found()["size mismatch"]
    assert "EXIF orientation is 6" in message and "turned by 90 degrees they would fit" in message


@pytest.mark.parametrize("orientation, turn", [(2, np.fliplr), (3, np.rot90), (4, np.flipud)])
def test_labels_of_the_unturned_image(folder, orientation, turn):
    image, labels = photograph(5, (200, 300))
    stored = turn(image, 2) if turn is np.rot90 else turn(image)
    turned_labels = turn(labels, 2) if turn is np.rot90 else turn(labels)
    folder.put("2.jpg", np.ascontiguousarray(stored), labels, exif=with_exif(orientation))
    assert folder.found() == {}
    folder.put("2.jpg", None, np.ascontiguousarray(turned_labels))
    found = folder.found()
    assert set(found) == {"turned labels"}
    assert f"orientation {orientation}" in found["turned labels"]
    assert not folder.check().findings[0].is_fault


def test_labels_out_of_range(folder):
    labels = photograph()[1]
    labels[0, :3] = 7
    labels[1, :2] = 9
    folder.put("0.png", None, labels)
    message = folder.found()["out of range"]
    assert "label 7, 9 (first at x 0, y 0) is not one of 0..1" in message
    assert "Pixels: 7: 3, 9: 2; 0.417 % of the map" in message
    assert folder.found(classes=None) == {}
    assert folder.found(classes=8, ignore=9) == {}


def test_values_without_end(folder):
    labels = np.arange(60 * 50, dtype=np.uint16).reshape(60, 50)
    folder.put("0.png", np.zeros((60, 50, 3), np.uint8), labels)
    check = folder.check()
    assert len(check.pairs[0].counts) == 1000
    assert "2989 values more" in check.findings[0].message


def test_labels_that_count_from_one(folder):
    for index in range(2):
        folder.put(f"{index}.png", None, photograph(index)[1] + 1)
    findings = folder.check().findings
    assert [f.kind for f in findings] == ["out of range"] * 2 + ["labels count from one"]
    assert "REDUCE_ZERO_LABEL" in findings[-1].message


def test_masks_whose_foreground_is_ignored(folder):
    for index in range(2):
        folder.put(f"{index}.png", None, photograph(index)[1] * 255)
    assert "every pixel is 0 or 255, and 255 is ignored" in folder.found()["one class"]
    assert folder.found(ignore=254, classes=256) == {}


def test_maps_without_labels(folder):
    folder.put("0.png", None, np.full(SIZE, 255, np.uint8))
    check = folder.check()
    assert [(f.kind, f.is_fault) for f in check.findings] == [("empty labels", False)]
    assert folder.found(ignore=254, classes=256) == {}


def test_one_image_under_two_names(folder, tmp_path):
    folder.put("again.webp", *photograph(0), lossless=True)
    found = folder.found()
    assert set(found) == {"same image"}
    assert "again.webp" in found["same image"] and "0.png" in found["same image"]
    assert KINDS["same image"].is_fault is False

    other = Folder(tmp_path / "other", first=1)  # its 0 is the first one's 1
    shared = shared_images(folder.check(), other.check())
    assert [(Path(a).name, Path(b).name) for a, b in (f.files for f in shared)] == [
        ("1.png", "0.png")
    ]
    assert shared[0].is_fault


def test_several_processes_find_the_same(folder, monkeypatch):
    for index in range(2, 6):
        folder.put(f"{index}.png", *photograph(index))
    (folder.images / "3.png").write_text("no image")
    monkeypatch.setattr(dataset, "FEW_PAIRS", 1)
    monkeypatch.setattr(dataset, "CHUNK", 4)
    large = np.zeros((1000, 1000), np.uint8)
    cv2.erode(large, np.ones((9, 9)))  # OpenCV has threads now, which a fork would not copy
    assert folder.check(workers=2) == folder.check(workers=1)


class Killer(str):
    """A file's name that ends the process which it is sent to, as a crash in a decoder would."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_file_that_kills_its_process_is_named(folder, monkeypatch):
    folder.put("2.png", *photograph(2))
    listing = list_folder("here", folder.images, folder.labels)
    listing.pairs[1] = Killer(listing.pairs[1][0]), listing.pairs[1][1]
    monkeypatch.setattr(dataset, "FEW_PAIRS", 1)
    check = check_dataset(listing, 2, 255, workers=2)
    assert [f.kind for f in check.findings] == ["unreadable"]
    assert "1.png: reading them ended the process" in check.findings[0].message
    assert [bool(pair.digest) for pair in check.pairs] == [True, False, True]


# ---- registered data sets ------------------------------------------------------------------------


@pytest.fixture
def registered(folder, request):
    """Register `folder`, with three class names, under the test's name."""
    names = []

    def register(**options) -> str:
        names.append(f"{request.node.name}_{len(names)}")
        classes = ["soil", "weed", "crop"]
        register_image_label_folder(names[-1], folder.images, folder.labels, classes, **options)
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_registered_folder_names_all_that_is_missing(folder, registered):
    for index in range(2):
        (folder.labels / f"{index}.png").rename(folder.labels / f"a{index}.png")
    name = registered()
    with pytest.raises(FileNotFoundError):
        DatasetCatalog.get(name)
    listing = list_registered(name)
    assert [f.kind for f in listing.findings] == ["missing"] * 2 + ["no image"] * 2
    assert listing.class_names == ["soil", "weed", "crop"]


def test_a_registered_split_is_read_as_training_reads_it(folder, registered, tmp_path):
    split = tmp_path / "split.txt"
    split.write_text("1.png\n")
    name = registered(split_file=split, reduce_zero_label=True)
    listing = list_registered(name)
    files = [(d["file_name"], d["sem_seg_file_name"]) for d in DatasetCatalog.get(name)]
    assert listing.pairs == files and len(files) == 1
    ones = (photograph(1)[1] == 1).sum()
    assert check_dataset(listing, 3, 255).pixels == {0: ones, 255: SIZE[0] * SIZE[1] - ones}
    path = folder.labels / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    check = check_dataset(listing, 3, 255)
    assert [(f.kind, str(path) in f.message) for f in check.findings] == [("truncated", True)]


def test_loaders_of_others(registered, folder, tmp_path):
    def broken():
        raise RuntimeError("no network")

    name = "test_checking_broken"
    DatasetCatalog.register(name, broken)
    try:
        listing = list_registered(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert "RuntimeError: no network" in listing.findings[0].message
    with pytest.raises(KeyError, match="not registered"):
        list_registered(name)
    DatasetCatalog.register(name, lambda: [{"file_name": "boxes.jpg"}])
    try:
        assert "names no label map" in list_registered(name).findings[0].message
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_real_photographs_are_clean(datasets_root):
    listing = list_registered("rgbweed_test")
    listing.pairs = listing.pairs[:2]
    check = check_dataset(listing, 3, 255)
    assert check.findings == []
    assert {pair.orientation for pair in check.pairs} <= {1, 3}
