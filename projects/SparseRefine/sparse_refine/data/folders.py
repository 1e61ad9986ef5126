# SPDX-License-Identifier: Apache-2.0
"""Folders of images and label maps as Detectron2 datasets.

Registering costs nothing: files are looked for when `DatasetCatalog.get` is called. Every dict has
"file_name", "sem_seg_file_name", "height" and "width", the size as seen with EXIF orientation
applied.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Union

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .labels_from_one import PREFIX as LABELS_FROM_ONE
from .reading import read_size

PathLike = Union[str, "os.PathLike[str]"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".webp")  # lossy JPEG does not keep class ids


def register_image_label_folder(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    class_names: Sequence[str],
    ignore_label: int = 255,
    split_file: PathLike | None = None,
    colors: Sequence[Sequence[int]] | None = None,
    *,
    labels_from_one: bool = False,
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
        labels_from_one: the files hold 0 for "no class" and 1..K for the classes, as ADE20K's do;
            they are read with 0 as the ignore label, which must be 255, and 0..K-1. Then
            "sem_seg_file_name" is a name that PathManager opens, see labels_from_one.py.
        hint: what to do where files are missing, for the end of the message.

    Raises:
        ValueError: a name in use, class names, colours or ignore label that do not fit.

    `DatasetCatalog.get(name)` raises FileNotFoundError or ValueError where files are missing or
    ambiguous.
    """
    if labels_from_one and (ignore_label != 255 or len(class_names) > 255):
        raise ValueError(
            f"dataset {name!r}: labels that count from one need ignore_label 255 and at most 255 "
            f"classes; there are ignore_label {ignore_label} and {len(class_names)} classes"
        )
    prefix = LABELS_FROM_ONE if labels_from_one else ""
    folders = Path(image_dir), Path(label_dir)
    register_dataset(
        name,
        functools.partial(_load_folder, name, *folders, split_file, prefix, hint),
        class_names=class_names,
        ignore_label=ignore_label,
        colors=colors,
        image_dir=image_dir,
        label_dir=label_dir,
    )
    MetadataCatalog.get(name).set(split_file=split_file, labels_from_one=labels_from_one)


def register_folders(cfg: CfgNode) -> None:
    """Register the folders that cfg.DATASETS.FOLDERS lists; a name that is taken is left alone.

    Raises:
        ValueError: an entry that is not [name, images, labels] or [name, images, labels, split].
    """
    for entry in cfg.DATASETS.FOLDERS:
        if len(entry) not in (3, 4):
            raise ValueError(
                f"DATASETS.FOLDERS has the entry {list(entry)}: [name, image folder, label folder] "
                "or [name, image folder, label folder, split file] is needed"
            )
        if entry[0] not in DatasetCatalog:
            register_image_label_folder(
                entry[0],
                entry[1],
                entry[2],
                cfg.DATASETS.CLASS_NAMES,
                cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
                *entry[3:],
                labels_from_one=cfg.DATASETS.LABELS_FROM_ONE,
            )


def register_dataset(
    name: str,
    load: Callable[[], list[dict]],
    *,
    class_names: Sequence[str],
    ignore_label: int,
    colors: Sequence[Sequence[int]] | None,
    image_dir: PathLike,
    label_dir: PathLike,
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
    if isinstance(class_names, str) or not class_names:
        raise ValueError(
            f"dataset {name!r}: class_names has to be a list of names, got {class_names!r}"
        )
    class_names = list(class_names)
    repeated = sorted({c for c in class_names if class_names.count(c) > 1})
    if repeated:
        raise ValueError(f"dataset {name!r}: class_names has {', '.join(repeated)} more than once")
    if ignore_label is not None and 0 <= ignore_label < len(class_names):
        raise ValueError(
            f"dataset {name!r}: ignore_label {ignore_label} is the id of class "
            f"{class_names[ignore_label]!r}; choose one outside 0..{len(class_names) - 1}"
        )
    metadata = {"stuff_classes": class_names}
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


def _load_folder(
    name: str,
    image_dir: Path,
    label_dir: Path,
    split_file: PathLike | None,
    label_prefix: str,
    hint: str,
) -> list[dict]:
    """The dataset's dicts: pairs of files by stem, ordered as in the split file or by name."""
    images = files_by_stem(name, "image", image_dir, IMAGE_EXTENSIONS, hint)
    labels = files_by_stem(name, "label", label_dir, LABEL_EXTENSIONS, hint)
    if split_file is None:
        stems = sorted(images)
    else:
        stems = _read_split(name, Path(split_file), image_dir, images, hint)
    for kind, files in (("images", images), ("label files", labels)):
        twice = next((files[stem] for stem in stems if len(files.get(stem, ())) > 1), None)
        if twice:
            raise ValueError(
                f"dataset {name!r}: {' and '.join(map(str, twice))} are {kind} of one name; "
                "which one is meant? Move the others away"
            )
    lacking = [stem for stem in stems if stem not in labels]
    if lacking:
        raise FileNotFoundError(
            f"dataset {name!r}: {images[lacking[0]][0]} has no labels, looked for {lacking[0]}"
            f"({'|'.join(LABEL_EXTENSIONS)}) in {label_dir}; {len(lacking)} of {len(stems)} images "
            "have none. Add them, or list the images to use in a split file"
        )
    dicts = []
    for stem in stems:
        image, label = str(images[stem][0]), f"{label_prefix}{labels[stem][0]}"
        height, width = read_size(image)
        dicts.append(
            {"file_name": image, "sem_seg_file_name": label, "height": height, "width": width}
        )
    return dicts


def files_by_stem(
    name: str, kind: str, folder: Path, extensions: Sequence[str], hint: str
) -> dict[str, list[Path]]:
    """Files of these extensions by their name without it; hidden files are passed over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset {name!r}: no {kind} folder {folder}{hint}")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in extensions and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(path)
    if not files:
        raise FileNotFoundError(
            f"dataset {name!r}: no {kind} files ({', '.join(extensions)}) in {folder}; subfolders "
            "are not searched"
        )
    return files


def stem_of_entry(entry: str, images: dict[str, list[Path]]) -> str:
    """The stem that a split file's line means: with or without the image's extension."""
    if entry not in images and Path(entry).suffix.lower() in IMAGE_EXTENSIONS:
        return Path(entry).stem
    return entry


def _read_split(
    name: str, split_file: Path, image_dir: Path, images: dict[str, list[Path]], hint: str
) -> list[str]:
    """The stems that a split file lists."""
    if not split_file.is_file():
        raise FileNotFoundError(f"dataset {name!r}: no split file {split_file}{hint}")
    stems: dict[str, int] = {}  # stem -> line
    for number, line in enumerate(split_file.read_text(encoding="utf-8-sig").splitlines(), 1):
        entry = line.strip()
        if not entry:
            continue
        stem = stem_of_entry(entry, images)
        if stem not in images:
            raise FileNotFoundError(
                f"dataset {name!r}: {split_file}, line {number}: no image {entry!r} in "
                f"{image_dir}; a line holds one image's name, with or without its extension"
            )
        if stem in stems:
            raise ValueError(
                f"dataset {name!r}: {split_file} lists {stem!r} twice, in lines "
                f"{stems[stem]} and {number}"
            )
        stems[stem] = number
    if not stems:
        raise ValueError(f"dataset {name!r}: {split_file} lists no images")
    return list(stems)
