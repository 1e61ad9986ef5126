# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are images, in which order, and how many others there were. Data sets,
checks, calibration, prediction and tools list folders by this.

Images are what Pillow opens, plugins that a program has registered included (pillow-heif, say).
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from detectron2.utils.logger import log_first_n
from PIL import Image

# What Pillow knows of that holds no pixels, or is no single image: videos, vector graphics,
# documents, and containers of scientific data that it recognises and cannot decode.
_NOT_IMAGES = {"MPEG", "FLI", "EPS", "WMF", "PDF", "BUFR", "GRIB", "HDF5", "IPTC"}
# Formats that change values: label maps in them are refused, whatever their names, see lossy.py.
LOSSY = {"JPEG", "MPO", "JPEG2000", "AVIF", "HEIF"}


@dataclass(frozen=True)
class ImageFiles:
    """`files`: sorted. `passed_over`: the number of other files by their extension."""

    files: list[Path]
    passed_over: Counter[str]

    def by_stem(self) -> dict[str, list[Path]]:
        """The files by their name without its extension, see `normalized`."""
        stems: dict[str, list[Path]] = {}
        for file in self.files:
            stems.setdefault(normalized(file.stem), []).append(file)
        return stems


def image_extensions() -> frozenset[str]:
    """In lower case, with the dot."""
    return _extensions(_NOT_IMAGES)


def label_extensions() -> frozenset[str]:
    """Those of `image_extensions` whose files can keep class ids."""
    return _extensions(_NOT_IMAGES | LOSSY)


def list_images(
    folder: Path,
    extensions: Collection[str],
    recursive: bool = False,
    without: Path | None = None,
) -> ImageFiles:
    """The files of a folder with one of `extensions`; hidden ones, and those in hidden subfolders,
    are neither listed nor counted.

    Args:
        extensions: `image_extensions()`, `label_extensions()`, or these and more.
        recursive: subfolders, too.
        without: a folder whose files are left out, resolved.
    """
    paths = folder.rglob("*") if recursive else folder.iterdir()
    visible = (p for p in paths if not any(map(_hidden, p.relative_to(folder).parts)))
    return pick_images(visible, extensions, without)


def pick_images(
    paths: Iterable[Path], extensions: Collection[str], without: Path | None = None
) -> ImageFiles:
    """`list_images` of given paths, such as a glob's."""
    files, passed_over = [], Counter()
    for path in paths:
        # a broken link is listed: who opens it says so
        if _hidden(path.name) or not (path.is_file() or path.is_symlink()) or path.is_dir():
            continue
        if without is not None and without in path.resolve().parents:
            continue
        extension = path.suffix.lower()
        if extension in extensions:
            files.append(path)
        else:
            passed_over[extension] += 1
    return ImageFiles(sorted(files), passed_over)


def normalized(name: str) -> str:
    """A name as it is compared: macOS writes an accented letter as two characters, others one."""
    return unicodedata.normalize("NFC", name)


def described(passed_over: Counter[str]) -> str:
    """As in "8 .heic, 4 .txt, 1 without extension"."""
    return ", ".join(
        f"{count} {extension or 'without extension'}"
        for extension, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    )


def warn_passed_over(where: str | Path, passed_over: Counter[str]) -> None:
    """Log once what was passed over, if anything was."""
    if passed_over:
        message = f"{where}: files passed over: {described(passed_over)}"
        log_first_n(logging.WARNING, message, key="message", name=__name__)


def _extensions(without: Collection[str]) -> frozenset[str]:
    opened = {*Image.registered_extensions().items()}  # this loads Pillow's plugins
    formats = {*Image.OPEN, "MPO"} - {*without}  # Pillow opens MPO as a kind of JPEG
    return frozenset(extension for extension, format in opened if format in formats)


def _hidden(name: str) -> bool:
    return name.startswith(".")
