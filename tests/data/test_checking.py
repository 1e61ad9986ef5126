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

from sparse_refine.data import register_image_label_folder
from sparse_refine.data.checking import (
    KINDS,
    check_dataset,
    dataset,
    list_folder,
    list_registered,
    shared_images,
)

from .pairs import SIZE, Folder, photograph


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


def test_images_whose_white_is_never_reached(folder):
    """As of a camera of 12 bits: to the network nearly black. At each check, not once a process."""
    dark = folder.images / "0.png"
    cv2.imwrite(str(dark), np.full((*SIZE, 3), 4095, np.uint16))
    for _ in range(2):
        (finding,) = folder.check().findings
        assert finding.kind == "dark image" and not finding.is_fault
        assert finding.files == (str(dark),)
        assert f"{dark}: its largest value is 4095, 6.2 % of white (65535)" in finding.message
    cv2.imwrite(str(dark), np.full((*SIZE, 3), 40950, np.uint16))
    assert folder.check().findings == []


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


@pytest.mark.slow
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
