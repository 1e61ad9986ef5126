# SPDX-License-Identifier: Apache-2.0
"""Images and label maps from files.

Detectron2's `read_image` serves 8-bit RGB; here are the cases in which it, or Pillow under it,
changes values silently: 16 bits a channel (clipped or cut to 8; TIFFs: see `tiff`), grey labels of
2 and 4 bits (stretched to 0..255), label maps with a palette (turned into colours) and of 16 bits
(clipped, detectron2 PR#5386).
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from .decoding import (
    bits_of,
    decode_16_bit,
    opened,
    orientation_of,
    size_of,
    turned,
    white_is_zero,
)
from .depth import to_8_bits
from .lossy import lossy_kind
from .tiff import Tiff


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Read an image the way it is meant to be seen.

    EXIF orientation is applied. Grey and palette images become three channels. Alpha is dropped,
    not composited: what is under it was photographed, and a network never sees an invented
    background. 16 bits a channel are scaled to 8 by 1/257, so that white stays white; a largest
    value far below white is warned of. Of a TIFF with three or four bands that no tag calls
    colours, the first three are red, green and blue.

    Args:
        file_name: a path, or a URI that Detectron2's PathManager opens.
        format: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous and writable, channels in the order of `format`.

    Raises:
        FileNotFoundError: no such file.
        OSError: not an image, damaged or cut short; the message names the file.
        ValueError: an unknown `format`; values of 32 bits or floating point, with no known white;
            two, five or more bands, of which nothing says which are the colours.
    """
    if format not in ("RGB", "BGR"):
        raise ValueError(f"format of an image is 'RGB' or 'BGR', got {format!r}")
    with opened(file_name) as (file, image):
        if isinstance(image, Tiff):
            orientation, pixels = image.orientation, image.image(file_name)
        else:
            bits = bits_of(file, image)
            image.load()  # first: Pillow turns a TIFF by itself, and then drops the orientation
            orientation = orientation_of(image)
            pixels = _pixels_of(file, image, bits, file_name)
    if format == "BGR":
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    pixels = turned(pixels, orientation)
    return np.require(pixels, requirements=["C", "W"])


def _pixels_of(file, image: Image.Image, bits: int, file_name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of what Pillow has decoded."""
    if image.mode == "F":
        raise ValueError(
            f"{file_name}: floating point values, and nothing says which of them is white; save "
            "the image with 8 or 16 bits a channel"
        )
    if image.mode.startswith("I"):
        pixels = to_8_bits(np.asarray(image), file_name)
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if image.format == "PNG" and bits == 16:
        return to_8_bits(decode_16_bit(file, image), file_name)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparency
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


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
        ValueError: colours, floating point, or a format that does not keep values, whatever the
            file's name: see `lossy_kind`.
    """
    with opened(file_name) as (file, image):
        bits = bits_of(file, image)
        if lossy := lossy_kind(file, image):
            raise ValueError(
                f"{file_name}: {lossy} does not keep class ids, its values change along every "
                "edge; save label maps as PNG"
            )
        if white_is_zero(image):
            raise ValueError(
                f"{file_name}: a TIFF of PHOTOMETRIC MINISWHITE, whose values some readers invert; "
                "save label maps as PNG"
            )
        if isinstance(image, Tiff):
            return turned(_one_id_a_pixel(_ids_of(image, file_name), file_name), image.orientation)
        image.load()
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode == "L" and bits in (2, 4):
            return np.asarray(image) // (255 // (2**bits - 1))  # Pillow stretched them to 0..255
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
        channels = decode_16_bit(file, image) if bits == 16 else np.asarray(image)
    if image.mode in ("LA", "PA"):
        return np.ascontiguousarray(channels[..., 0])
    return _one_id_a_pixel(channels, file_name)


def _ids_of(image: Tiff, file_name: str) -> np.ndarray:
    """(H, W, bands) of a label map in a TIFF that Pillow does not read."""
    if image.kind not in ("uint", "int"):
        raise ValueError(
            f"{file_name}: a label map holds one integer a pixel, this is {image} (mode 'F' in "
            "Pillow); save it as PNG with 8 or 16 bits"
        )
    channels = image.pixels()
    if channels.dtype in (np.uint8, np.uint16):
        return channels
    limits = np.iinfo(np.int32)
    low, high = int(channels.min()), int(channels.max())
    if low < limits.min or high > limits.max:
        raise ValueError(
            f"{file_name}: values from {low} to {high} are no class ids; a label map holds one id "
            "a pixel, save it as PNG with 8 or 16 bits"
        )
    return channels.astype(np.int32)


def _one_id_a_pixel(channels: np.ndarray, file_name: str) -> np.ndarray:
    """(H, W) of (H, W, 1, 3 or 4): colours are refused. A fourth channel is passed over, as alpha.

    Raises:
        ValueError: the channels differ.
    """
    bands = channels.shape[2]
    if bands > 1:
        differs = (channels[..., 1 : min(bands, 3)] != channels[..., :1]).any(axis=2)
        if differs.any():
            y, x = np.unravel_index(np.argmax(differs), differs.shape)
            color = tuple(channels[y, x, :3].tolist())
            raise ValueError(
                f"{file_name}: these look like colours, not class ids: the pixel at x {x}, y {y} "
                f"is RGB {color}; a label map holds one id a pixel (grey or palette PNG)"
            )
    return np.ascontiguousarray(channels[..., 0])


def read_size(file_name: str) -> tuple[int, int]:
    """(height, width) of what `read_image` returns, from the file's header: no pixel is decoded.

    Raises:
        FileNotFoundError, OSError: as `read_image`.
    """
    with opened(file_name) as (_, image):
        return size_of(image)


def read_orientation(file_name: str) -> int:
    """EXIF orientation 1..8, which `read_image` applies; 1, upright, where there is none."""
    with opened(file_name) as (_, image):
        return orientation_of(image)
