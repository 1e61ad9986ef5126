# SPDX-License-Identifier: Apache-2.0
"""Whether labels fit their classes and their image; what is wrong is said with the file's name."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.data.detection_utils import SizeMismatchError

from .reading import read_orientation


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
        found = np.unique(labels)  # 32 bits and signed: no histogram
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
        orientation = read_orientation(image_file)
        message += (
            f"; turned by 90 degrees they would fit. The image's EXIF orientation is {orientation}"
        )
        message += (
            ", and was applied: draw or turn the labels to match the upright image"
            if orientation != 1
            else ": nothing was turned in reading"
        )
    raise SizeMismatchError(message)
