# SPDX-License-Identifier: Apache-2.0
"""More than 8 bits a channel -> 8: white stays white, and a white that is never reached is said."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import cv2
import numpy as np

logger = logging.getLogger(__name__)

# Of white: data of 12 bits (at most 0.062 of 65535) and 14 bits (0.25), and reflectances times
# 10000 (0.15), all of them often stored in 16 bits, stay below.
_DARK = 0.25
_MOST_WARNINGS = 10  # files named a process
_warned: set[str] = set()
_collecting: list[dict[str, str]] = []


@contextlib.contextmanager
def dark_images() -> Iterator[dict[str, str]]:
    """Inside, what `to_8_bits` would warn of is collected instead: file -> what is said of it."""
    found: dict[str, str] = {}
    _collecting.append(found)
    try:
        yield found
    finally:
        _collecting.pop()


def to_8_bits(pixels: np.ndarray, file_name: str, bits: int = 16) -> np.ndarray:
    """Scale integers so that 2**bits - 1 becomes 255; halves do not occur, since it is odd.

    Warns once a file where the largest value is at most a quarter of white.

    Args:
        pixels: (H, W) or (H, W, C) of any integer type. bits: a channel; above 16, white is 65535.

    Returns:
        uint8 of that shape, contiguous.

    Raises:
        ValueError: values that do not fit those bits; names `file_name`.
    """
    if bits == 8 and pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    bits = min(bits, 16)
    white = 2**bits - 1
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > white:
        raise ValueError(
            f"{file_name}: values from {low} to {high} do not fit {bits} bits, and nothing "
            "says which of them is white; save the image with 8 or 16 bits a channel"
        )
    if 0 < high <= _DARK * white:
        _say(
            file_name,
            f"{file_name}: its largest value is {high}, {100 * high / white:.1f} % of white "
            f"({white}): a network sees it nearly black. If its white is another value, as with "
            "sensors of 12 or 14 bits and reflectances, scale all images by that one value: "
            "gdal_translate -ot Byte -scale 0 WHITE 0 255 IN.tif OUT.tif",
        )
    narrow = np.ascontiguousarray(pixels, dtype=np.uint16)
    return cv2.convertScaleAbs(narrow, alpha=255 / white).reshape(pixels.shape)


def _say(file_name: str, message: str) -> None:
    if _collecting:
        _collecting[-1][file_name] = message
    elif file_name not in _warned and len(_warned) < _MOST_WARNINGS:
        _warned.add(file_name)
        logger.warning(message)
