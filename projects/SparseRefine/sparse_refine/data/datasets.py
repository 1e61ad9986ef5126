# SPDX-License-Identifier: Apache-2.0
"""Datasets for Detectron2's catalogs: one's own folders, rgbweed, CamVid and the synthetic field.

Registering costs nothing: files are looked for, and synthetic images made, when
`DatasetCatalog.get` is called. Every dict has "file_name", "sem_seg_file_name", "height" and
"width", the size as seen with EXIF orientation applied. Cityscapes, ADE20K and COCO-Stuff are
registered by Detectron2 itself.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Union

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..files import write_whole
from . import synthetic
from .reading import read_size

__all__ = [
    "register_builtin",
    "register_image_label_folder",
    "register_synthetic_field",
]

PathLike = Union[str, "os.PathLike[str]"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".webp")  # lossy JPEG does not keep class ids

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
# First seed and number of images; the seeds of two splits never meet.
SYNTHETIC_SPLITS = {"train": (0, 24), "val": (1_000_000, 6)}

logger = logging.getLogger(__name__)


def register_image_label_folder(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    class_names: Sequence[str],
    ignore_label: int = 255,
    split_file: PathLike | None = None,
    colors: Sequence[Sequence[int]] | None = None,
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

    Raises:
        ValueError: a name in use, class names, colours or ignore label that do not fit.

    `DatasetCatalog.get(name)` raises FileNotFoundError or ValueError where files are missing or
    ambiguous.
    """
    _register(
        name,
        functools.partial(_load_folder, name, Path(image_dir), Path(label_dir), split_file),
        class_names=class_names,
        ignore_label=ignore_label,
        colors=colors,
        image_dir=image_dir,
        label_dir=label_dir,
    )


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
            )


def register_synthetic_field(
    name: str,
    split: str,
    count: int | None = None,
    height: int = 1536,
    width: int = 2048,
    root: PathLike | None = None,
) -> None:
    """Register `count` images of the synthetic field (synthetic/), made when first asked for.

    They are kept in `root`/VERSION/HEIGHTxWIDTH/`split`: images as JPEG of quality 95 without
    chroma subsampling, a quarter of a PNG's size, labels as PNG. Any number of processes may ask
    at once.

    Args:
        split: "train" or "val", whose seeds are disjoint.
        count: number of images; the split's own (24 and 6) by default.
        root: by default `synthetic_field` in $SPARSE_REFINE_CACHE, or else in `sparse_refine` in
            $XDG_CACHE_HOME or ~/.cache.

    Raises:
        ValueError: a name in use, an unknown split, a count or size below 1.
    """
    if split not in SYNTHETIC_SPLITS:
        raise ValueError(
            f"split of a synthetic field is one of {list(SYNTHETIC_SPLITS)}, got {split!r}"
        )
    count = SYNTHETIC_SPLITS[split][1] if count is None else count
    if min(count, height, width) < 1:
        raise ValueError(
            f"dataset {name!r}: {count} images of {width} x {height} pixels cannot be made"
        )
    root = _cache_folder() / "synthetic_field" if root is None else Path(root)
    folder = root / synthetic.GENERATOR_VERSION / f"{height}x{width}" / split
    _register(
        name,
        functools.partial(
            _load_synthetic, name, folder, SYNTHETIC_SPLITS[split][0], count, height, width
        ),
        class_names=synthetic.CLASS_NAMES,
        ignore_label=255,
        colors=synthetic.CLASS_COLORS,
        image_dir=folder,
        label_dir=folder,
    )


def register_builtin(root: PathLike | None = None) -> None:
    """Register rgbweed, CamVid and the synthetic field. Names already registered are left alone.

    Args:
        root: the folder that holds `rgbweed` and `camvid`; by default $DETECTRON2_DATASETS, or else
            `datasets`, as for Detectron2's own.
    """
    root = Path(
        os.environ.get("DETECTRON2_DATASETS", "datasets") if root is None else root
    ).expanduser()
    known = set(DatasetCatalog.list())
    for split in ("train", "test"):
        _register_below(
            known,
            f"rgbweed_{split}",
            root,
            ("rgbweed/images", "rgbweed/labels", f"rgbweed/{split}.txt"),
            synthetic.CLASS_NAMES,
            synthetic.CLASS_COLORS,
        )
    for split in ("train", "val", "test"):
        _register_below(
            known,
            f"camvid_{split}",
            root,
            (f"camvid/images/{split}", f"camvid/labels/{split}", None),
            tuple(CAMVID),
            tuple(CAMVID.values()),
        )
    for split in SYNTHETIC_SPLITS:
        if f"synthetic_field_{split}" not in known:
            register_synthetic_field(f"synthetic_field_{split}", split)


# ----------------------------------------------------------------------------------------- catalogs


def _register(
    name: str,
    load: Callable[[], list[dict]],
    *,
    class_names: Sequence[str],
    ignore_label: int,
    colors: Sequence[Sequence[int]] | None,
    image_dir: PathLike,
    label_dir: PathLike,
) -> None:
    """Check what was given and enter a dataset into both catalogs."""
    if name in DatasetCatalog.list():
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


def _register_below(known, name: str, root: Path, places, class_names, colors) -> None:
    """Register a dataset in its usual place below `root`, unless `name` is known."""
    if name in known:
        return
    image_dir, label_dir, split_file = (place and root / place for place in places)
    folder = image_dir.relative_to(root).parts[0]
    hint = f"; set DETECTRON2_DATASETS, now {str(root)!r}, to the folder that holds {folder}/"
    _register(
        name,
        functools.partial(_load_folder, name, image_dir, label_dir, split_file, hint),
        class_names=class_names,
        ignore_label=255,
        colors=colors,
        image_dir=image_dir,
        label_dir=label_dir,
    )


# ------------------------------------------------------------------------------------------ folders


def _load_folder(
    name: str, image_dir: Path, label_dir: Path, split_file: PathLike | None, hint: str = ""
) -> list[dict]:
    """The dataset's dicts: pairs of files by stem, ordered as in the split file or by name."""
    images = _files_by_stem(name, "image", image_dir, IMAGE_EXTENSIONS, hint)
    labels = _files_by_stem(name, "label", label_dir, LABEL_EXTENSIONS, hint)
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
        image, label = str(images[stem][0]), str(labels[stem][0])
        height, width = read_size(image)
        dicts.append(
            {"file_name": image, "sem_seg_file_name": label, "height": height, "width": width}
        )
    return dicts


def _files_by_stem(
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
        stem = entry
        if entry not in images and Path(entry).suffix.lower() in IMAGE_EXTENSIONS:
            stem = Path(entry).stem
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


# ---------------------------------------------------------------------------------------- synthetic


def _cache_folder() -> Path:
    """Where made data is kept: $SPARSE_REFINE_CACHE, or the user's cache folder."""
    folder = os.environ.get("SPARSE_REFINE_CACHE")
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sparse_refine"


def _load_synthetic(
    name: str, folder: Path, first_seed: int, count: int, height: int, width: int
) -> list[dict]:
    """The dataset's dicts, after making what images are missing."""
    pairs = {
        seed: (folder / f"{seed:07d}.jpg", folder / f"{seed:07d}.png")
        for seed in range(first_seed, first_seed + count)
    }

    def missing(seed: int) -> bool:
        return not all(path.exists() for path in pairs[seed])

    todo = [seed for seed in pairs if missing(seed)]
    if todo:
        logger.info("Making %d images of %s in %s", len(todo), name, folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Several processes start at different images, so that they share the work; making the same
        # one twice is harmless, since its bytes are the same and a rename replaces whole files.
        start = os.getpid() % len(todo)
        for seed in tqdm(todo[start:] + todo[:start], desc=name, unit="image"):
            if missing(seed):
                image, labels = synthetic.generate_field(height, width, seed)
                image_file, label_file = pairs[seed]
                save = functools.partial(Image.fromarray(image).save, quality=95, subsampling=0)
                write_whole(image_file, save)
                write_whole(label_file, Image.fromarray(labels).save)
    return [
        {"file_name": str(image), "sem_seg_file_name": str(label), "height": height, "width": width}
        for image, label in pairs.values()
    ]
