# SPDX-License-Identifier: Apache-2.0
"""Folders of images and label maps as pairs of files.

Every dict has "file_name", "sem_seg_file_name", "height" and "width", the size as seen with EXIF
orientation applied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

from .reading import read_size
from .reduce_zero_label import PREFIX as REDUCE_ZERO_LABEL

PathLike = Union[str, "os.PathLike[str]"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".webp")  # lossy JPEG does not keep class ids


def load_folder(
    name: str,
    image_dir: PathLike,
    label_dir: PathLike,
    split_file: PathLike | None = None,
    *,
    reduce_zero_label: bool = False,
    hint: str = "",
) -> list[dict]:
    """A dataset's dicts, unregistered: pairs of files by stem, in the order of the split file or of
    their names.

    Args: as of `register_image_label_folder`; `name` is for messages.

    Raises:
        FileNotFoundError, ValueError: files are missing or ambiguous.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    prefix = REDUCE_ZERO_LABEL if reduce_zero_label else ""
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
        image, label = str(images[stem][0]), f"{prefix}{labels[stem][0]}"
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


def split_entries(
    split_file: Path, images: dict[str, list[Path]]
) -> Iterator[tuple[int, str, str]]:
    """(line from 1, entry, stem) of each line of a split file that is not empty. An entry has the
    extension of its image or has none; that it is one of `images`, by stem, is not checked."""
    for number, line in enumerate(split_file.read_text(encoding="utf-8-sig").splitlines(), 1):
        entry = stem = line.strip()
        if entry not in images and Path(entry).suffix.lower() in IMAGE_EXTENSIONS:
            stem = Path(entry).stem
        if entry:
            yield number, entry, stem


def _read_split(
    name: str, split_file: Path, image_dir: Path, images: dict[str, list[Path]], hint: str
) -> list[str]:
    """The stems that a split file lists."""
    if not split_file.is_file():
        raise FileNotFoundError(f"dataset {name!r}: no split file {split_file}{hint}")
    stems: dict[str, int] = {}  # stem -> line
    for number, entry, stem in split_entries(split_file, images):
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
