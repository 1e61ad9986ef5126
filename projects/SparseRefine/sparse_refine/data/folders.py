# SPDX-License-Identifier: Apache-2.0
"""Folders of images and label maps as pairs of files.

Every dict has "file_name", "sem_seg_file_name", "height" and "width", the size as seen with EXIF
orientation applied.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Union

from .image_files import (
    ImageFiles,
    described,
    image_extensions,
    label_extensions,
    list_images,
    normalized,
    warn_passed_over,
)
from .reading import read_size
from .reduce_zero_label import PREFIX as REDUCE_ZERO_LABEL

PathLike = Union[str, "os.PathLike[str]"]

# Byte order marks, of which UTF-32's begins like UTF-16's.
_ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


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
    their names. What else the folders hold is logged.

    Args: as of `register_image_label_folder`; `name` is for messages.

    Raises:
        FileNotFoundError, ValueError: files are missing or ambiguous.
    """
    image_dir, label_dir = Path(image_dir).expanduser(), Path(label_dir).expanduser()
    if image_dir.resolve() == label_dir.resolve():  # each label map would be its own image
        raise ValueError(f"dataset {name!r}: {image_dir} is given for images and for labels")
    prefix = REDUCE_ZERO_LABEL if reduce_zero_label else ""
    images = dataset_files(name, "image", image_dir, image_extensions(), hint)
    labels = dataset_files(name, "label", label_dir, label_extensions(), hint)
    for folder, found in ((image_dir, images), (label_dir, labels)):
        warn_passed_over(f"dataset {name!r}: {folder}", found.passed_over)
    images, labels = images.by_stem(), labels.by_stem()
    if split_file is None:
        stems = sorted(images)
    else:
        split_file = Path(split_file).expanduser()
        stems = _read_split(name, split_file, image_dir, images, hint)
    # twins outside the split do no harm
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
            f"dataset {name!r}: {images[lacking[0]][0]} has no labels, looked for {lacking[0]}.png "
            f"or another lossless kind in {label_dir}; {len(lacking)} of {len(stems)} images have "
            "none. Add them, or list the images to use in a split file"
        )
    dicts = []
    for stem in stems:
        image, label = str(images[stem][0]), f"{prefix}{labels[stem][0]}"
        height, width = read_size(image)
        dicts.append(
            {"file_name": image, "sem_seg_file_name": label, "height": height, "width": width}
        )
    return dicts


def dataset_files(
    name: str, kind: str, folder: Path, extensions: Collection[str], hint: str = ""
) -> ImageFiles:
    """The files of a dataset's folder, see `list_images`.

    Args:
        name: of the dataset; `kind`: "image" or "label"; `hint`: what to do where the folder is
            missing. For messages.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset {name!r}: no {kind} folder {folder}{_from_where(folder)}{hint}"
        )
    found = list_images(folder, extensions)
    if not found.files:
        others = f", which holds {described(found.passed_over)}" if found.passed_over else ""
        raise FileNotFoundError(
            f"dataset {name!r}: no {kind} files in {folder}{others}; subfolders are not searched"
        )
    return found


def _from_where(path: Path) -> str:
    """Programs are started in other folders than the one that a path was meant from."""
    return "" if path.is_absolute() else f" in the working directory {Path.cwd()}"


def split_entries(
    split_file: Path, images: dict[str, list[Path]]
) -> Iterator[tuple[int, str, str]]:
    """(line from 1, entry, stem) of each line of a split file that is not empty. An entry has the
    extension of its image or has none; that it is one of `images`, by stem, is not checked.

    Raises:
        ValueError: the file is no text, or in an encoding that cannot be told: names it; or a line
            holds an image and its labels.
    """
    extensions = image_extensions()
    for number, line in enumerate(_text_of(split_file).splitlines(), 1):
        entry = line.strip()
        stem = normalized(entry)
        if stem not in images and Path(stem).suffix.lower() in extensions:
            _check_one_name(entry, extensions, f"{split_file}, line {number}")
            stem = Path(stem).stem
        if entry:
            yield number, entry, stem


def _check_one_name(entry: str, extensions: Collection[str], where: str) -> None:
    """A line "images/a.png labels/b.png", as other projects list pairs, is no file of that name:
    the last part alone would decide which image it is."""
    words = re.split(r"[\s,;]+", entry)
    if len(words) > 1 and all(Path(word).suffix.lower() in extensions for word in words):
        raise ValueError(
            f"{where}: {entry!r} names {len(words)} files; a line holds one image's name, and its "
            "labels are the file of that name in the label folder"
        )


def _text_of(path: Path) -> str:
    """In UTF-8, or what the byte order mark says."""
    content = path.read_bytes()
    marked = (known for mark, known in _ENCODINGS.items() if content.startswith(mark))
    encoding = next(marked, "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in {encoding.upper()}: byte {error.start} is "
            f"0x{content[error.start]:02x} ({error.reason}). Save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{path} is not a text in {encoding.upper()}: it holds NUL, as UTF-16 without a byte "
            "order mark does. Save it as UTF-8"
        )
    return text


def _read_split(
    name: str, split_file: Path, image_dir: Path, images: dict[str, list[Path]], hint: str
) -> list[str]:
    """The stems that a split file lists."""
    if not split_file.is_file():
        raise FileNotFoundError(
            f"dataset {name!r}: no split file {split_file}{_from_where(split_file)}{hint}"
        )
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
