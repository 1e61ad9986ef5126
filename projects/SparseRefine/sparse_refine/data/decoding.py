# SPDX-License-Identifier: Apache-2.0
"""Image files as Pillow and OpenCV open them: bits as stored, 16 bits a channel, orientation."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS_PER_SAMPLE = 256, 257, 258
# offset in the file: after the signature, the length and name of IHDR, and the size
_PNG_BIT_DEPTH = 24


@contextlib.contextmanager
def opened(file_name: str) -> Iterator[tuple[object, Image.Image]]:
    """The file and its image, header read; whatever Pillow or OpenCV finds wrong names the file."""
    with PathManager.open(str(file_name), "rb") as file:
        try:
            with Image.open(file) as image:
                yield file, image
        except Image.DecompressionBombError as error:
            raise OSError(
                f"{file_name}: {error}; for images that large set PIL.Image.MAX_IMAGE_PIXELS = None"
            ) from error
        except (OSError, SyntaxError, EOFError, struct.error, cv2.error) as error:
            raise OSError(f"{file_name}: cannot be read as an image: {error}") from error


def bits_of(file, image: Image.Image) -> int:
    """Bits a channel as stored, which Pillow's mode does not always tell; of `opened`."""
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


def decode_16_bit(file) -> np.ndarray:
    """(H, W, 3 or 4) uint16 in OpenCV's order, blue first."""
    file.seek(0)
    flags = cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), flags)
    if pixels is None:
        raise OSError("OpenCV cannot decode it")
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)


def size_of(image: Image.Image) -> tuple[int, int]:
    """(height, width) of the upright image; no pixel is decoded."""
    width, height = image.size
    if image.format == "TIFF":  # newer versions of Pillow give the turned size, older the stored
        width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
    return (width, height) if orientation_of(image) in (5, 6, 7, 8) else (height, width)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1, upright, where there is none or it makes no sense."""
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
