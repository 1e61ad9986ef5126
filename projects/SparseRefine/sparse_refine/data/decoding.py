# SPDX-License-Identifier: Apache-2.0
"""Image files as Pillow, OpenCV and tifffile open them: bits as stored, 16 bits a channel,
orientation."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from urllib.error import URLError

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from .tiff import SIGNATURES, Tiff

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC = 256, 257, 258, 262
# offset in the file: after the signature, the length and name of IHDR, and the size
_PNG_BIT_DEPTH = 24


@contextlib.contextmanager
def opened(file_name: str) -> Iterator[tuple[object, Image.Image | Tiff]]:
    """The file and its image, header read; whatever a decoder finds wrong names the file. A TIFF
    that Pillow would not read, or not with all bits, comes as `Tiff`."""
    with _open(str(file_name)) as file:
        try:
            image = _header(file)
            if isinstance(image, Tiff):
                yield file, image
            else:
                with image:
                    yield file, image
        except Image.DecompressionBombError as error:
            raise OSError(
                f"{file_name}: {error}; for images that large set PIL.Image.MAX_IMAGE_PIXELS = None"
            ) from error
        except (OSError, SyntaxError, EOFError, struct.error, cv2.error) as error:
            raise OSError(f"{file_name}: cannot be read as an image: {error}") from error


def _open(file_name: str):
    try:
        return PathManager.open(os.path.expanduser(file_name), "rb")
    except URLError as error:  # does not say of what
        raise OSError(f"{file_name} cannot be fetched: {error.reason}") from error


def _header(file) -> Image.Image | Tiff:
    is_tiff = file.read(4) in SIGNATURES
    tiff = Tiff(file) if is_tiff else None
    file.seek(0)
    if tiff is None:
        return Image.open(file)
    if tiff.is_for_pillow:
        try:
            return Image.open(file)
        except UnidentifiedImageError:  # a BigTIFF of the other byte order is one
            pass
    width, height = tiff.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:  # as Pillow checks what it opens
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels are more than the {2 * limit} that are taken"
        )
    return tiff


def bits_of(file, image: Image.Image | Tiff) -> int:
    """Bits a channel as stored, which Pillow's mode does not always tell; of `opened`."""
    if isinstance(image, Tiff):
        return image.bits
    if image.format == "PNG":
        position = file.tell()
        file.seek(_PNG_BIT_DEPTH)
        bits = file.read(1)[0]
        file.seek(position)
        return bits
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,))
        return max(bits) if isinstance(bits, tuple) else bits
    return 16 if image.mode.startswith("I;16") else 8


def white_is_zero(image: Image.Image | Tiff) -> bool:
    """Whether it is a TIFF of PHOTOMETRIC MINISWHITE, whose values Pillow inverts up to 8 bits."""
    if isinstance(image, Tiff):
        return image.photometric == "MINISWHITE"
    return image.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0


def decode_16_bit(file, image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint16 RGB of a PNG, of which Pillow keeps the upper byte alone."""
    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise OSError("OpenCV cannot decode it")
    width, height = image.size
    if pixels.shape[:2] != (height, width) or pixels.dtype != np.uint16:
        raise OSError(
            f"by its header it is {width} x {height} of 16 bits, but decoded it is "
            f"{pixels.shape[1]} x {pixels.shape[0]} of {pixels.dtype}"
        )
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)


def size_of(image: Image.Image | Tiff) -> tuple[int, int]:
    """(height, width) of the upright image; no pixel is decoded."""
    width, height = image.size
    if isinstance(image, Image.Image) and image.format == "TIFF":
        # newer versions of Pillow give the turned size, older the stored
        width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    return (width, height) if orientation_of(image) in (5, 6, 7, 8) else (height, width)


def orientation_of(image: Image.Image | Tiff) -> int:
    """EXIF orientation 1..8; 1, upright, where there is none or it makes no sense."""
    if isinstance(image, Tiff):
        return image.orientation
    try:
        # Of the class itself: a PNG's own method decodes the pixels to look for EXIF after them.
        orientation = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF (detectron2#1885)
        return 1
    return orientation if orientation in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation. OpenCV does it in a quarter of Pillow's time."""
    if orientation in (5, 7):
        pixels = cv2.transpose(pixels)
    if orientation in (3, 7):
        return cv2.rotate(pixels, cv2.ROTATE_180)
    if orientation in (2, 4):
        return cv2.flip(pixels, 1 if orientation == 2 else 0)
    if orientation in (6, 8):
        turn = cv2.ROTATE_90_CLOCKWISE if orientation == 6 else cv2.ROTATE_90_COUNTERCLOCKWISE
        return cv2.rotate(pixels, turn)
    return pixels
