# SPDX-License-Identifier: Apache-2.0
"""What a check finds in label maps: formats, sizes, orientation, values."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from .pairs import SIZE, photograph

ORIENTATION = 0x0112


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


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
