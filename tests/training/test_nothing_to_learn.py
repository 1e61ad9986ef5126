# SPDX-License-Identifier: Apache-2.0
"""Data sets with nothing to learn in them: said before training."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sparse_refine.data import register_image_label_folder
from sparse_refine.training.trainer import Trainer

DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase"]


@pytest.fixture
def labelled(tmp_path):
    """make(values, classes) -> options of a data set whose labels are stripes of the values."""
    names = []

    def make(values, classes):
        name = f"{tmp_path.name}_stripes_{len(names)}"
        names.append(name)
        for kind in ("images", "labels"):
            (tmp_path / name / kind).mkdir(parents=True)
        labels = np.resize(np.array(values, np.uint8), (40, 56))
        for index in range(2):
            picture = Image.fromarray(np.zeros((40, 56, 3), np.uint8))
            picture.save(tmp_path / name / "images" / f"{index}.png")
            Image.fromarray(labels).save(tmp_path / name / "labels" / f"{index}.png")
        folder = tmp_path / name
        register_image_label_folder(name, folder / "images", folder / "labels", classes)
        sets = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
        return [*DENSE, *sets, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(classes)]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "values, classes, message",
    [
        ([0, 255], ["no", "weed"], r"0 and 255 alone.*255 is a class, not the ignore value"),
        ([1], ["soil", "weed"], "hold 1 alone.*nothing to learn"),
        ([255], ["soil", "weed"], "hold 255 alone.*nothing to learn"),
        ([0], ["soil"], r"NUM_CLASSES is 1.*nothing to learn.*two classes"),
    ],
)
def test_nothing_to_learn(run, labelled, tmp_path, values, classes, message):
    with pytest.raises(ValueError, match=message):
        run("a", *labelled(values, classes))
    assert not (tmp_path / "a" / "model_final.pth").exists()


@pytest.mark.parametrize("white, kind", [(65535, ".png"), (3000, ".png"), (3000, ".tif")])
def test_images_of_16_bits_that_are_nearly_black(run, labelled, tmp_path, caplog, white, kind):
    """Said before training, in the checker's words; of a few images alone, and once each."""
    options = labelled([0, 2], ["soil", "crop", "weed"])
    folder = Path(DatasetCatalog.get(options[3][0])[0]["file_name"]).parent
    for image in folder.iterdir():
        image.unlink()
        pixels = np.random.default_rng(0).integers(0, white + 1, (40, 56, 3)).astype(np.uint16)
        cv2.imwrite(str(image.with_suffix(kind)), pixels)
    said = []
    step = Trainer.run_step

    def noted(self):
        said.append((tmp_path / "a" / "log.txt").read_text())
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_step", noted)
        run("a", *options, "SOLVER.MAX_ITER", 1)
    wording = "2 of 2 images of .* that were looked at are dark.*4.6 % of white.*gdal_translate"
    assert bool(re.search(wording, said[0])) == (white == 3000)


def test_two_classes_of_many_are_enough(run, labelled):
    run("a", *labelled([0, 2], ["soil", "crop", "weed"]), "SOLVER.MAX_ITER", 1)
