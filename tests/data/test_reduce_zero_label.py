# SPDX-License-Identifier: Apache-2.0
"""Label maps that count from one are shifted, whoever reads them."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from sparse_refine import add_sparse_refine_config
from sparse_refine.data import check_labels, reading, register_folders

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def reduce_zero_label(tmp_path, make, register):
    """reduce_zero_label(values, dtype) -> the registered name of a label map of one row."""

    def name(values, dtype=np.uint8) -> str:
        folders = make(tmp_path, ["a.png"])
        Image.fromarray(np.array([values], dtype=dtype)).save(folders[1] / "a.png")
        register(folders, reduce_zero_label=True)
        (found,) = DatasetCatalog.get("mine")
        return found["sem_seg_file_name"]

    return name


def test_reduce_zero_label_are_shifted_for_every_reader(tmp_path, reduce_zero_label):
    name = reduce_zero_label([0, 1, 3, 255])
    assert name == f"reduce_zero_label://{tmp_path}/labels/a.png"
    expected = [[255, 0, 2, 254]]
    assert reading.read_labels(name).tolist() == expected
    assert detection_utils.read_image(name).tolist() == expected  # Detectron2's own
    assert PathManager.isfile(name) and not PathManager.exists(name + "x")
    with pytest.raises(ValueError, match=r"labels/a.png: label 254 .*not one of 0..2 or 255"):
        check_labels(np.array(expected), 3, 255, name)
    with pytest.raises(ValueError, match="\"rb\" only, not 'w'"):
        PathManager.open(name, "w")


def test_reduce_zero_label_of_16_bits_are_refused(tmp_path, reduce_zero_label):
    name = reduce_zero_label([0, 300], np.uint16)
    with pytest.raises(ValueError, match="labels/a.png: .*8 bits, these are uint16"):
        reading.read_labels(name)


def test_reduce_zero_label_in_a_config(tmp_path, make):
    folders = make(tmp_path, ["a.png"], ["a.png"])  # all 0
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.DATASETS.FOLDERS = [["mine", *map(str, folders)]]
    cfg.DATASETS.CLASS_NAMES = ["soil", "crop"]
    cfg.DATASETS.REDUCE_ZERO_LABEL = True
    register_folders(cfg)
    (found,) = DatasetCatalog.get("mine")
    assert (reading.read_labels(found["sem_seg_file_name"]) == 255).all()
