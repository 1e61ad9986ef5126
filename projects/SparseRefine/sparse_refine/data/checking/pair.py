# SPDX-License-Identifier: Apache-2.0
"""One image and its label map, read as training reads them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import cv2
import numpy as np

from ..depth import dark_images
from ..label_checks import check_labels, check_same_size
from ..reading import read_image, read_labels, read_orientation, read_size
from ..reduce_zero_label import PREFIX as REDUCE_ZERO_LABEL
from .findings import Finding

MOST_VALUES = 1000  # of a label map that are kept: a depth map has as many as it has pixels
# Edges of labels lie on edges of the image, the stored one's where labels were drawn on that. How
# much better they fit it: at most 1.04 on 701 street scenes whose labels are right, at least 1.4 on
# 36 photographs of fields with labels turned by 180 degrees.
TURNED_RATIO = 1.3
EDGE_SIDE = 1000  # pixels of the longer side at which edges are compared


@dataclass
class CheckedPair:
    """What one pair holds.

    `size`: (height, width) of the upright image, `label_size` of the label map; None where it
    cannot be read. `orientation`: EXIF, 1..8. `digest`: of the upright image's pixels.
    `counts`: pixels of each label value; of more than MOST_VALUES values the most frequent.
    """

    image: str
    labels: str
    size: tuple[int, int] | None = None
    label_size: tuple[int, int] | None = None
    orientation: int = 1
    digest: str = ""
    counts: dict[int, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check_pair(
    image_file: str, label_file: str, num_classes: int | None, ignore_label: int | None
) -> CheckedPair:
    """Read both files and hold them against each other; raises nothing for what is in them.

    Args:
        num_classes: K; None does not look at the labels' range.
        ignore_label: the value of pixels without a class; None where there is none.
    """
    pair = CheckedPair(image_file, label_file)
    with dark_images() as dark:
        image = _read(pair, read_image, image_file, "image format")
    pair.findings += [Finding("dark image", message, (file,)) for file, message in dark.items()]
    labels = _read(pair, read_labels, label_file, "label format")
    if image is not None:
        pair.size = image.shape[:2]
        pair.orientation = read_orientation(image_file)
        pair.digest = hashlib.blake2b(image, digest_size=16).hexdigest()
        pair.digest += f"-{image.shape[1]}x{image.shape[0]}"
    if labels is not None:
        pair.label_size = labels.shape
        _check_values(pair, labels, num_classes, ignore_label)
    if image is not None and labels is not None:
        try:
            check_same_size(image, labels, image_file, label_file)
        except ValueError as error:
            message = f"{error}{_scaled(pair.size, labels.shape)}"
            pair.findings.append(Finding("size mismatch", message, (image_file, label_file)))
        else:
            _check_turn(pair, image, labels)
    return pair


def _read(pair: CheckedPair, reader, file_name: str, format_kind: str) -> np.ndarray | None:
    try:
        return reader(file_name)
    except FileNotFoundError:
        kind, message = "missing", f"{file_name} does not exist"
    except ValueError as error:
        kind, message = format_kind, str(error)
    except OSError as error:
        kind, message = ("truncated" if _has_header(file_name) else "unreadable"), str(error)
    except Exception as error:  # decoders of hostile files raise whatever they like
        kind, message = "unreadable", f"{type(error).__name__}: {error}"
    if file_name.replace(REDUCE_ZERO_LABEL, "") not in message:
        message = f"{file_name}: {message}"
    pair.findings.append(Finding(kind, message, (file_name,)))
    return None


def _has_header(file_name: str) -> bool:
    try:
        return min(read_size(file_name.replace(REDUCE_ZERO_LABEL, ""))) > 0
    except (OSError, ValueError):
        return False


def _check_values(
    pair: CheckedPair, labels: np.ndarray, num_classes: int | None, ignore_label: int | None
) -> None:
    if labels.dtype in (np.uint8, np.uint16):
        counts = np.bincount(labels.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
    # ascending again: a table of labels reads by value
    most = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
    pair.counts = dict(zip(values[most].tolist(), counts[most].tolist()))
    if pair.counts and set(pair.counts) == {ignore_label}:
        message = f"{pair.labels}: every pixel is {ignore_label} (ignore): nothing to learn from"
        pair.findings.append(Finding("empty labels", message, (pair.labels,)))
    if num_classes is None:
        return
    try:
        check_labels(labels, num_classes, ignore_label, pair.labels)
    except ValueError as error:
        wrong = ~(((values >= 0) & (values < num_classes)) | (values == ignore_label))
        values, counts = values[wrong], counts[wrong]
        listed = [f"{v}: {n}" for v, n in zip(values[:8], counts[:8])]
        more = f", and {len(values) - 8} values more" if len(values) > 8 else ""
        share = 100 * counts.sum() / labels.size
        message = f"{error}. Pixels: {', '.join(listed)}{more}; {share:.3g} % of the map"
        pair.findings.append(Finding("out of range", message, (pair.labels,)))


def _scaled(image: tuple[int, int], labels: tuple[int, int]) -> str:
    """What to say of labels that have the image's shape in another size."""
    factor = labels[0] / image[0]
    if abs(labels[1] / image[1] / factor - 1) > 0.01:
        return ""
    return f"; the labels are the image's size times {factor:.4g}: use the image they were drawn on"


def _check_turn(pair: CheckedPair, image: np.ndarray, labels: np.ndarray) -> None:
    """Orientations that keep the size (2 to 4) hide labels of the unturned image. Edges tell."""
    stored = {2: np.s_[:, ::-1], 3: np.s_[::-1, ::-1], 4: np.s_[::-1]}.get(pair.orientation)
    if stored is None:
        return
    zoom = min(1, EDGE_SIDE / max(labels.shape))
    size = tuple(max(1, round(side * zoom)) for side in labels.shape[::-1])
    # uint16 is the widest that OpenCV's filters take; other values would only be class ids
    small = cv2.resize(labels.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
    edges = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    if not edges.any():
        return
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small.astype(np.float32), (0, 0), 1)
    gradient = np.hypot(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1))
    gradient = gradient.max(2)  # of the channels: leaf and soil can be equally bright
    upright, before = gradient[edges].mean(), gradient[edges[stored]].mean()
    if before > TURNED_RATIO * upright:
        message = (
            f"{pair.labels}: labels seem to be drawn on the image as it is stored, before its EXIF "
            f"orientation {pair.orientation} is applied (edges fit {before / upright:.1f} times as "
            f"well there), and training applies it. Look at {pair.image}; turn the labels, or take "
            "the orientation out of the image"
        )
        pair.findings.append(Finding("turned labels", message, (pair.image, pair.labels)))
