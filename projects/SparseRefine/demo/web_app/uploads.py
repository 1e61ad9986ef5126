# SPDX-License-Identifier: Apache-2.0
"""What may be uploaded: files are judged by their first bytes and their header before any pixel is
decoded, and what is wrong with one is said in a sentence for the page."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparse_refine.data import read_image
from sparse_refine.data.reading import read_size
from sparse_refine.data.tiff import SIGNATURES as TIFF_SIGNATURES

# First bytes of the formats that are read. Pillow knows many more; uploads are kept from decoders
# that photographs do not need, since hostile files attack the rare ones.
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WebP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
FORMATS = ", ".join(dict.fromkeys(SIGNATURES.values()))
SMALLEST_SIDE = 16


class UploadError(ValueError):
    """A file that is not taken; the message is for the person who sent it."""


@dataclass(frozen=True)
class Limits:
    """`bytes` of a file, `pixels` of an image, `refined_pixels` at once, whatever the budget."""

    bytes: int
    pixels: int
    refined_pixels: int


def read_upload(path: str, limits: Limits) -> tuple[np.ndarray, str]:
    """The image in an uploaded file, upright, and a note on what was done to it, often "".

    Returns:
        image: (H,W,3) uint8 RGB; sides of at least `SMALLEST_SIDE`, at most `limits.pixels` pixels.

    Raises:
        UploadError: anything else; says what the file is and what is taken, without its folder.
    """
    name = display_name(path)
    with _explained(path, name, limits):
        _check_file(path, name, limits)
        height, width = read_size(path)
        if height * width > limits.pixels:
            raise UploadError(
                f"{name} is {width} x {height} pixels, {height * width / 1e6:.1f} megapixels; at "
                f"most {limits.pixels / 1e6:g} are taken. Nothing of it was decoded."
            )
        if min(height, width) < SMALLEST_SIDE:
            raise UploadError(
                f"{name} is {width} x {height} pixels; each side has to be at least "
                f"{SMALLEST_SIDE}."
            )
        return read_image(path), _note(path)


def display_name(path: str) -> str:
    """The file's name, short enough for a message."""
    name = Path(path).name
    return name if len(name) <= 60 else f"{name[:40]}...{name[-15:]}"


def _check_file(path: str, name: str, limits: Limits) -> None:
    size = os.stat(path).st_size
    if size == 0:
        raise UploadError(f"{name} is empty: 0 bytes.")
    if size > limits.bytes:
        raise UploadError(
            f"{name} has {size / 2**20:.1f} MB; at most {limits.bytes / 2**20:g} MB are taken."
        )
    with open(path, "rb") as file:
        start = file.read(512)
    kind = next((kind for first, kind in SIGNATURES.items() if start.startswith(first)), None)
    if kind == "WebP" and start[8:12] != b"WEBP":  # RIFF holds sound and films too
        kind = None
    if kind is None:
        if b"<svg" in start.lower() or Path(path).suffix.lower() in (".svg", ".svgz"):
            raise UploadError(
                f"{name} is a drawing (SVG), which has no pixels: save it as PNG first."
            )
        raise UploadError(f"{name} is not an image of a kind that is read here: {FORMATS}.")


def _note(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(4) in TIFF_SIGNATURES:  # which Pillow may not open
            return ""
    with Image.open(path) as image:
        if image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False):
            return "It is an animation: this is its first picture."
    return ""


@contextlib.contextmanager
def _explained(path: str, name: str, limits: Limits):
    """Turns what reading raises into an UploadError that does not tell where the file lies."""
    try:
        yield
    except UploadError:
        raise
    except FileNotFoundError as error:
        raise UploadError(f"{name} is no longer here: send it again.") from error
    except (OSError, ValueError) as error:
        cause = error.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            raise UploadError(
                f"{name} says that it has more than {limits.pixels / 1e6:g} megapixels, the most "
                "that are taken. Nothing of it was decoded."
            ) from error
        if isinstance(error, ValueError) and str(error).startswith(path):  # of read_image itself
            raise UploadError(str(error).replace(path, name)) from error
        reason = cause or error
        if isinstance(reason, UnidentifiedImageError):  # its message is an object's address
            reason = "its header makes no sense"
        text = f"{name} cannot be read, it is damaged or cut short: {reason}"
        raise UploadError(text.replace(path, name)) from error
    except MemoryError as error:
        raise UploadError(f"{name} needs more memory than there is.") from error
