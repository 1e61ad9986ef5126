# SPDX-License-Identifier: Apache-2.0
"""The datasets that this project registers under names of its own: rgbweed, CamVid, ADE20K as it is
downloaded, and the synthetic field. Cityscapes, COCO-Stuff and ADE20K in the form that its own
script prepares (`ade20k_sem_seg_*`) are registered by Detectron2 itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from . import synthetic
from .folders import PathLike
from .registration import register_image_label_folder
from .synthetic_field import SYNTHETIC_SPLITS, register_synthetic_field

CAMVID = {  # the 11 classes of the SegNet split, in CamVid's own colours
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (0, 0, 192),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}


def register_builtin(root: PathLike | None = None) -> None:
    """Register `rgbweed_{train,test}`, `camvid_{train,val,test}`, `ade20k_{train,val}` and
    `synthetic_field_{train,val}`. Names already registered are left alone.

    Args:
        root: the folder that holds `rgbweed`, `camvid` and `ADEChallengeData2016`; by default
            $DETECTRON2_DATASETS, or else `datasets`, as for Detectron2's own.
    """
    root = Path(
        os.environ.get("DETECTRON2_DATASETS", "datasets") if root is None else root
    ).expanduser()
    for split in ("train", "test"):
        _register_below(
            root,
            f"rgbweed_{split}",
            ("rgbweed/images", "rgbweed/labels", f"rgbweed/{split}.txt"),
            class_names=synthetic.CLASS_NAMES,
            colors=synthetic.CLASS_COLORS,
        )
    for split in ("train", "val", "test"):
        _register_below(
            root,
            f"camvid_{split}",
            (f"camvid/images/{split}", f"camvid/labels/{split}", None),
            class_names=list(CAMVID),
            colors=list(CAMVID.values()),
        )
    for split, folder in (("train", "training"), ("val", "validation")):
        _register_below(
            root,
            f"ade20k_{split}",
            (
                f"ADEChallengeData2016/images/{folder}",
                f"ADEChallengeData2016/annotations/{folder}",
                None,
            ),
            class_names=MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes,
            reduce_zero_label=True,
        )
    for split in SYNTHETIC_SPLITS:
        if f"synthetic_field_{split}" not in DatasetCatalog:
            register_synthetic_field(f"synthetic_field_{split}", split)


def _register_below(root: Path, name: str, places: tuple[str, str, str | None], **options) -> None:
    """Register images, labels and split file in their usual place below `root`, unless `name` is
    known."""
    if name in DatasetCatalog:
        return
    image_dir, label_dir, split_file = (place and root / place for place in places)
    register_image_label_folder(
        name,
        image_dir,
        label_dir,
        split_file=split_file,
        hint=f"; set DETECTRON2_DATASETS, now {str(root)!r}, to the folder that holds "
        f"{Path(places[0]).parts[0]}/",
        **options,
    )
