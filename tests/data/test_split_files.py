# SPDX-License-Identifier: Apache-2.0
"""Split files in the encodings that programs write."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from sparse_refine.data.checking import list_folder

CASES = Path(__file__).with_name("cases")
FOLDERS = CASES / "endings" / "images", CASES / "endings" / "labels"

pytestmark = pytest.mark.usefixtures("catalogs")


def listed(split_file: Path, register) -> list[str]:
    register(FOLDERS, split_file=split_file)
    dicts = DatasetCatalog.get("mine")
    pairs = [(d["file_name"], d["sem_seg_file_name"]) for d in dicts]
    assert list_folder("x", *FOLDERS, split_file).pairs == pairs
    return [Path(image).name for image, _ in pairs]


@pytest.mark.parametrize("name", ["utf8_bom.txt", "utf16.txt"])
def test_byte_order_marks_are_understood(name, register):
    assert listed(CASES / "lists" / name, register) == ["0.png", "1.jpg", "2.jfif"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_encodings(tmp_path, register, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "split.txt").write_bytes(f"{mark}2\r\n\r\n0.png\r\n".encode(encoding))
    assert listed(tmp_path / "split.txt", register) == ["2.jfif", "0.png"]


def test_an_encoding_that_cannot_be_told_is_named(tmp_path, register):
    unmarked = tmp_path / "unmarked.txt"
    unmarked.write_bytes("0.png\n".encode("utf-16-le"))
    cut = tmp_path / "cut.txt"
    cut.write_bytes("0.png\n".encode("utf-16")[:-1])
    for path, message in (
        (CASES / "lists" / "latin1.txt", "is not in UTF-8: byte 2 is 0xe4 .* Save it as UTF-8"),
        (unmarked, "is not a text in UTF-8: it holds NUL"),
        (cut, "is not in UTF-16"),
    ):
        with pytest.raises(ValueError, match=f"{path} {message}"):
            listed(path, register)
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")
        (finding,) = list_folder("x", *FOLDERS, path).findings
        assert finding.kind == "listing" and str(path) in finding.message


@pytest.mark.parametrize("line", ["images/0.png labels/1.png", "0.png,1.png", "0.png\t2.png"])
def test_an_image_and_its_labels_in_a_line(tmp_path, register, line):
    """As other projects list pairs: the last name would decide which image it is."""
    (tmp_path / "pairs.txt").write_text(f"2\n{line}\n")
    with pytest.raises(ValueError, match=r"pairs\.txt, line 2: .* names 2 files; a line holds one"):
        listed(tmp_path / "pairs.txt", register)


def test_a_folder_before_a_name(tmp_path, register):
    (tmp_path / "split.txt").write_text("my photographs/2.jfif\nimages/0.png\n")
    assert listed(tmp_path / "split.txt", register) == ["2.jfif", "0.png"]
