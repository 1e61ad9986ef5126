# SPDX-License-Identifier: Apache-2.0
"""Data sets of semantic labels in Detectron2's catalogs, under names of one's own.

Registering costs nothing: files are looked for when `DatasetCatalog.get` is called.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..modeling.contract import check_declared
from .folders import PathLike, load_folder


def register_image_label_folder(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    class_names: Sequence[str],
    ignore_label: int = 255,
    split_file: PathLike | None = None,
    colors: Sequence[Sequence[int]] | None = None,
    *,
    reduce_zero_label: bool = False,
    hint: str = "",
) -> None:
    """Register a folder of images and a folder of label maps under `name`.

    An image and its labels share the name up to the extension: `images/a.JPG`, `labels/a.png`.
    Labels hold 0..K-1 for `class_names`, and `ignore_label`; `reading.read_labels` says which
    files are understood.

    Args:
        name: for cfg.DATASETS.TRAIN and TEST.
        image_dir, label_dir: the folders; subfolders are not searched.
        class_names: K different names, in the order of the ids.
        ignore_label: the value of pixels without a class, outside 0..K-1.
        split_file: text file with one image a line, with or without extension; None takes all.
        colors: K times R, G, B, 0..255, for figures.
        reduce_zero_label: the files hold 0 for "no class" and 1..K for the classes, as ADE20K's do;
            they are read with 0 as the ignore label, which must be 255, and 0..K-1. Then
            "sem_seg_file_name" is a name that PathManager opens, see reduce_zero_label.py.
        hint: what to do where files are missing, for the end of the message.

    Raises:
        ValueError: a name in use, class names, colours or ignore label that do not fit.

    `DatasetCatalog.get(name)` raises FileNotFoundError or ValueError where files are missing or
    ambiguous.
    """
    load = functools.partial(
        load_folder,
        name,
        image_dir,
        label_dir,
        split_file,
        reduce_zero_label=reduce_zero_label,
        hint=hint,
    )
    register_dataset(
        name,
        load,
        class_names=class_names,
        ignore_label=ignore_label,
        colors=colors,
        image_dir=image_dir,
        label_dir=label_dir,
        reduce_zero_label=reduce_zero_label,
    )
    MetadataCatalog.get(name).set(split_file=split_file, reduce_zero_label=reduce_zero_label)


def register_folders(cfg: CfgNode) -> None:
    """Register the folders that cfg.DATASETS.FOLDERS lists. A name that an earlier config of this
    process gave to other folders or classes is given anew.

    Raises:
        ValueError: an entry that is not [name, images, labels] or [name, images, labels, split]; a
            name that is there twice, or that a data set has which came from elsewhere. Or see
            `check_declared`.
    """
    check_declared(cfg)
    for entry in cfg.DATASETS.FOLDERS:
        is_list = isinstance(entry, (list, tuple))
        texts = is_list and all(isinstance(place, (str, os.PathLike)) for place in entry)
        if not texts or len(entry) not in (3, 4):
            raise ValueError(
                f"DATASETS.FOLDERS has the entry {list(entry) if is_list else entry!r}: [name, "
                "image folder, label folder] or [name, image folder, label folder, split file] is "
                "needed, within the list of all data sets"
            )
    names = [entry[0] for entry in cfg.DATASETS.FOLDERS]
    for entry in cfg.DATASETS.FOLDERS:
        name, *places = entry
        places = [os.path.expanduser(place) for place in places]
        if names.count(name) > 1:
            both = [list(other) for other in cfg.DATASETS.FOLDERS if other[0] == name]
            raise ValueError(f"DATASETS.FOLDERS has {name!r} twice: {' and '.join(map(str, both))}")
        options = {
            "class_names": list(cfg.DATASETS.CLASS_NAMES),
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "reduce_zero_label": cfg.DATASETS.REDUCE_ZERO_LABEL,
        }
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            given = metadata.get("folders_entry", None)
            if given == (places, options):
                continue
            if given is None:
                raise ValueError(
                    f"DATASETS.FOLDERS has {name!r} of {places}, and a data set of that name is "
                    f"registered already, of {metadata.get('image_root', 'elsewhere')}: choose "
                    "another name"
                )
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_image_label_folder(name, *places[:2], split_file=(*places[2:], None)[0], **options)
        MetadataCatalog.get(name).set(folders_entry=(places, options))


def register_dataset(
    name: str,
    load: Callable[[], list[dict]],
    *,
    class_names: Sequence[str],
    ignore_label: int,
    colors: Sequence[Sequence[int]] | None,
    image_dir: PathLike,
    label_dir: PathLike,
    reduce_zero_label: bool = False,
) -> None:
    """Check what was given and enter a dataset of semantic labels into both catalogs.

    Args:
        load: gives the dataset's dicts.
        image_dir, label_dir: for the metadata's `image_root` and `sem_seg_root`.
        others: see `register_image_label_folder`.

    Raises:
        ValueError: a name in use, class names, colours or ignore label that do not fit.
    """
    if name in DatasetCatalog:
        raise ValueError(f"dataset {name!r} is registered already; choose another name")
    check_classes(name, class_names, ignore_label, reduce_zero_label)
    metadata = {"stuff_classes": list(class_names)}
    if colors is not None:
        if len(colors) != len(class_names):
            raise ValueError(
                f"dataset {name!r}: {len(colors)} colors for {len(class_names)} classes"
            )
        metadata["stuff_colors"] = [[int(v) for v in color] for color in colors]
    MetadataCatalog.get(name).set(
        **metadata,
        ignore_label=ignore_label,
        evaluator_type="sem_seg",
        image_root=str(image_dir),
        sem_seg_root=str(label_dir),
    )
    DatasetCatalog.register(name, load)


def ignore_label_of(name: str, otherwise: int | None = 255) -> int | None:
    """The label that is no class in a registered data set: what its metadata says, or `otherwise`
    (MODEL.SEM_SEG_HEAD.IGNORE_VALUE, where there is a config), as Detectron2's pages register sets.
    """
    return MetadataCatalog.get(name).get("ignore_label", otherwise)


def check_classes(
    name: str, class_names: Sequence[str], ignore_label: int | None, reduce_zero_label: bool = False
) -> None:
    """
    Raises:
        ValueError: class names or an ignore label that do not fit, of the dataset `name`.
    """
    if isinstance(class_names, str) or not class_names:
        raise ValueError(
            f"dataset {name!r}: class_names has to be a list of names, got {class_names!r}"
        )
    words = [name for name in class_names if not isinstance(name, str)]
    if words:
        raise ValueError(
            f"dataset {name!r}: class_names holds {words[0]!r}, which is no text: YAML takes yes, "
            "no, on, off and numbers without quotes for values; put quotes around each name"
        )
    if reduce_zero_label and (ignore_label != 255 or len(class_names) > 255):
        raise ValueError(
            f"dataset {name!r}: labels that count from one need ignore_label 255 and at most 255 "
            f"classes; there are ignore_label {ignore_label} and {len(class_names)} classes"
        )
    class_names = list(class_names)
    # results are keyed by name: the second of two would overwrite the first
    repeated = sorted({c for c in class_names if class_names.count(c) > 1})
    if repeated:
        raise ValueError(f"dataset {name!r}: class_names has {', '.join(repeated)} more than once")
    if ignore_label is not None and 0 <= ignore_label < len(class_names):
        raise ValueError(
            f"dataset {name!r}: ignore_label {ignore_label} is the id of class "
            f"{class_names[ignore_label]!r}; choose one outside 0..{len(class_names) - 1}"
        )
