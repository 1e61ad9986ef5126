# SPDX-License-Identifier: Apache-2.0
"""Reading images and label maps from files, and the checks that stop bad ones with the file's name.

Detectron2's `read_image` serves 8-bit RGB; here are the cases in which it, or Pillow under it,
changes values silently: 16 bits a channel (clipped or cut to 8), grey labels of 2 and 4 bits
(stretched to 0..255), label maps with a palette (turned into colours) and of 16 bits (clipped,
detectron2 PR#5386).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import cv2
import numpy as np
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = [
    "check_labels",
    "check_same_size",
    "read_image",
    "read_labels",
    "read_orientation",
    "read_size",
]

EXIF_ORIENTATION = 0x0112
TIFF_BITS_PER_SAMPLE = 258
PNG_BIT_DEPTH = (
    24  # offset in the file: after the signature, the length and name of IHDR, and the size
)


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Read an image the way it is meant to be seen.

    EXIF orientation is applied. Grey and palette images become three channels. Alpha is dropped,
    not composited: what is under it was photographed, and a network never sees a made-up
    background. 16 bits a channel are scaled to 8 by 1/257, so that white stays white.

    Args:
        file_name: a path, or a URI that Detectron2's PathManager opens.
        format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous and writable, channels in the order of `format`.

    Raises:
        FileNotFoundError: no such file.
        OSError: not an image, damaged or cut short; the message names the file.
        ValueError: an unknown `format`; values of 32 bits or floating point, with no known white.
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"format of an image is 'RGB' or 'BGR', got {format!r}")
    with _opened(file_name) as (file, image):
        bits = _bits(file, image)
        image.load()  # first: Pillow turns a TIFF by itself, and then drops the orientation
        orientation = _orientation(image)
        if bits == 16 and image.mode not in ("L", "I", "I;16", "I;16B", "I;16L"):
            pixels = _decode_16_bit(file)[..., :3]  # Pillow keeps only the upper byte here
            pixels = cv2.cvtColor(cv2.convertScaleAbs(pixels, alpha=1 / 257), cv2.COLOR_BGR2RGB)
            if image.format == "TIFF":
                orientation = 1  # OpenCV, too, turns a TIFF by itself
        elif image.mode.startswith("I"):
            pixels = np.asarray(image)
            low, high = int(pixels.min()), int(pixels.max())
            if low < 0 or high > 65535:
                raise ValueError(
                    f"{file_name}: values from {low} to {high} do not fit 16 bits, and nothing "
                    "says which of them is white; save the image with 8 or 16 bits a channel"
                )
            pixels = cv2.convertScaleAbs(pixels.astype(np.uint16), alpha=1 / 257)
            pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        elif image.mode == "F":
            raise ValueError(
                f"{file_name}: floating point values, and nothing says which of them is white; "
                "save the image with 8 or 16 bits a channel"
            )
        else:
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparency
            pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if format == "BGR":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    pixels = _turn(pixels, orientation)
    return pixels if pixels.flags.writeable else pixels.copy()


def read_labels(file_name: str) -> np.ndarray:
    """Read a label map: one class id a pixel, exactly as it was stored.

    Palette images give their indices, 1-bit images 0 and 1, and colour images are accepted only
    where all channels are equal. EXIF orientation is NOT applied: tools that copy a photograph's
    EXIF into the label file have drawn the labels on the upright picture, and other readers of
    labels (Detectron2's `SemSegEvaluator` among them) do not apply it either. A TIFF's own
    orientation tag is part of that format, and Pillow applies it.

    Returns:
        (H, W) of uint8, uint16 or int32.

    Raises:
        FileNotFoundError: no such file.
        OSError: not an image, damaged or cut short; the message names the file.
        ValueError: colours, floating point, or a JPEG, which does not keep values.
    """
    with _opened(file_name) as (file, image):
        bits = _bits(file, image)
        if image.format == "JPEG":
            raise ValueError(
                f"{file_name}: a JPEG does not keep class ids, its values change along every edge; "
                "save label maps as PNG"
            )
        image.load()
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode == "L" and bits in (2, 4):
            return np.asarray(image) // (
                255 // (2**bits - 1)
            )  # Pillow has stretched them to 0..255
        if image.mode in ("L", "P"):
            return np.array(image)
        if image.mode.startswith("I"):
            labels = np.array(image)
            return labels.astype(labels.dtype.newbyteorder("="), copy=False)
        if image.mode not in ("RGB", "RGBA", "LA", "PA"):
            raise ValueError(
                f"{file_name}: a label map holds one integer a pixel, this is an image of mode "
                f"{image.mode!r}; save it as PNG with 8 or 16 bits"
            )
        channels = _decode_16_bit(file) if bits == 16 else np.asarray(image)
    if image.mode in ("LA", "PA"):
        return np.ascontiguousarray(channels[..., 0])
    differs = (channels[..., 0] != channels[..., 1]) | (channels[..., 0] != channels[..., 2])
    if differs.any():
        y, x = np.unravel_index(np.argmax(differs), differs.shape)
        color = channels[y, x, 2::-1] if bits == 16 else channels[y, x, :3]
        raise ValueError(
            f"{file_name}: these look like colours, not class ids: the pixel at x {x}, y {y} is "
            f"RGB {tuple(color.tolist())}; a label map holds one id a pixel (grey or palette PNG)"
        )
    return np.ascontiguousarray(channels[..., 0])


def read_size(file_name: str) -> tuple[int, int]:
    """(height, width) of what `read_image` returns, from the file's header: no pixel is decoded."""
    with _opened(file_name) as (_, image):
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
        if (
            image.format == "TIFF"
        ):  # newer versions of Pillow give the turned size, older ones the stored
            width, height = image.tag_v2[256], image.tag_v2[257]
        return (width, height) if turned else (height, width)


def read_orientation(file_name: str) -> int:
    """EXIF orientation 1..8, which `read_image` applies; 1, upright, where there is none."""
    with _opened(file_name) as (_, image):
        return _orientation(image)


def check_labels(
    labels: np.ndarray, num_classes: int, ignore_label: int | None, file_name: str
) -> None:
    """Raise ValueError, naming file and values, for labels that are neither classes nor ignored.

    Args:
        labels: (H, W) integers.
        num_classes: K.
        ignore_label: the value of pixels without a class; None where there is none.
        file_name: the labels' file, for the message.
    """
    if labels.size == 0:
        return
    if labels.dtype in (np.uint8, np.uint16):
        bins = np.iinfo(labels.dtype).max + 1
        labels = np.ascontiguousarray(labels)
        # Four times as fast as np.bincount, which makes 64-bit integers of all first.
        found = np.flatnonzero(cv2.calcHist([labels], [0], None, [bins], [0, bins]))
    else:
        found = np.unique(labels)
    wrong = [int(v) for v in found if not 0 <= v < num_classes and v != ignore_label]
    if wrong:
        listed = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        ignored = "" if ignore_label is None else f" or {ignore_label} (ignore)"
        y, x = np.unravel_index(np.argmax(labels == wrong[0]), labels.shape)
        raise ValueError(
            f"{file_name}: label {listed} (first at x {x}, y {y}) is not one of "
            f"0..{num_classes - 1}{ignored}; correct the file, the classes or the ignore label"
        )


def check_same_size(
    image: np.ndarray, labels: np.ndarray, image_file: str, label_file: str
) -> None:
    """Raise Detectron2's SizeMismatchError, a ValueError, unless the sizes are the same."""
    (height, width), found = image.shape[:2], labels.shape[:2]
    if found == (height, width):
        return
    message = (
        f"{label_file}: labels of {found[1]} x {found[0]} (width x height) for an image of "
        f"{width} x {height}, {image_file}"
    )
    if found == (width, height):
        with _opened(image_file) as (_, opened):
            orientation = _orientation(opened)
        message += (
            f"; turned by 90 degrees they would fit. The image's EXIF orientation is {orientation}"
        )
        message += (
            ", and was applied: draw or turn the labels to match the upright image"
            if orientation != 1
            else ": nothing was turned in reading"
        )
    raise SizeMismatchError(message)


@contextlib.contextmanager
def _opened(file_name: str) -> Iterator[tuple[object, Image.Image]]:
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


def _bits(file, image: Image.Image) -> int:
    """Bits a channel as stored, which Pillow's mode does not always tell."""
    if image.format == "PNG":
        position = file.tell()
        file.seek(PNG_BIT_DEPTH)
        bits = file.read(1)[0]
        file.seek(position)
        return bits
    if image.format == "TIFF":
        bits = image.tag_v2.get(TIFF_BITS_PER_SAMPLE, (1,))
        return max(bits) if isinstance(bits, tuple) else bits
    return 16 if image.mode.startswith("I;16") else 8


def _decode_16_bit(file) -> np.ndarray:
    """(H, W, 3 or 4) uint16 in OpenCV's order, blue first."""
    file.seek(0)
    flags = cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), flags)
    if pixels is None:
        raise OSError("OpenCV cannot decode it")
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1, upright, where there is none or it makes no sense."""
    try:
        # Of the class itself: a PNG's own method decodes the pixels to look for EXIF after them.
        orientation = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except (
        Exception
    ):  # Pillow raises many kinds for damaged EXIF (detectron2#1885); the image is fine
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
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
