# SPDX-License-Identifier: Apache-2.0
"""Folders of a data set, and Detectron2's catalogs put back."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import register_image_label_folder

from .pairs import Folder


@pytest.fixture
def catalogs():
    """Both catalogs as they were, after each test."""
    before = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, data in before:
        catalog.data.clear()
        catalog.data.update(data)


@pytest.fixture
def make():
    """make(folder, images, labels) -> its folders images and labels, with files of 6 x 4 pixels."""

    def made(folder: Path, images, labels=()) -> tuple[Path, Path]:
        for kind, names in (("images", images), ("labels", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                with open(folder / kind / name, "wb") as file:
                    format = Image.registered_extensions()[Path(name).suffix.lower()]
                    Image.new("RGB" if kind == "images" else "L", (6, 4)).save(file, format=format)
        return folder / "images", folder / "labels"

    return made


@pytest.fixture
def register():
    """register(folders, **options): as "mine", of three classes."""

    def registered(folders, **options):
        options = {"class_names": ("soil", "weed", "crop"), **options}
        register_image_label_folder("mine", *folders, **options)

    return registered


@pytest.fixture
def write(tmp_path):
    """write(image, labels) -> dataset dict."""

    def write(image, labels, seed=0):
        Image.fromarray(image).save(tmp_path / "image.png")
        Image.fromarray(labels).save(tmp_path / "label.png")
        return {
            "file_name": str(tmp_path / "image.png"),
            "sem_seg_file_name": str(tmp_path / "label.png"),
            "seed": seed,
        }

    return write


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "set")
