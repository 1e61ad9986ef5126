# SPDX-License-Identifier: Apache-2.0
"""Label maps in formats that change values are refused by what the file is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparse_refine.data import read_labels

LABELS = np.random.default_rng(0).integers(0, 5, (24, 33)).astype(np.uint8)


def save(path, format: str, mode: str = "L", **options) -> str:
    Image.init()
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {format}")
    Image.fromarray(LABELS).convert(mode).save(path, format, **options)
    return str(path)


@pytest.mark.parametrize(
    "format, mode, options",
    [
        ("JPEG", "L", {"quality": 100}),
        ("MPO", "L", {"save_all": True, "append_images": [Image.new("L", (33, 24))]}),
        ("JPEG2000", "L", {"irreversible": True}),
        ("JPEG2000", "L", {"quality_layers": [20]}),
        ("AVIF", "RGB", {"quality": 100}),
        ("WEBP", "RGB", {"quality": 100}),
        ("TIFF", "L", {"compression": "jpeg"}),
    ],
)
def test_whatever_the_name(tmp_path, format, mode, options):
    path = save(tmp_path / "a.png", format, mode, **options)
    with pytest.raises(ValueError, match=r"a\.png: .*does not keep class ids.*save .* as PNG"):
        read_labels(path)


@pytest.mark.parametrize(
    "format, mode, options",
    [
        ("PNG", "L", {}),
        ("GIF", "L", {}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("BMP", "L", {}),
        ("PPM", "L", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_lossless_kinds_keep_their_ids(tmp_path, format, mode, options):
    path = save(tmp_path / "a.jpg", format, mode, **options)
    np.testing.assert_array_equal(read_labels(path), LABELS)


def test_animated_webp(tmp_path):
    """The first picture lies within a frame."""
    for lossless in (True, False):
        rest = {"save_all": True, "append_images": [Image.new("RGB", (33, 24), (9, 9, 9))]}
        path = save(tmp_path / "a.webp", "WEBP", "RGB", lossless=lossless, **rest)
        if lossless:
            np.testing.assert_array_equal(read_labels(path), LABELS)
        else:
            with pytest.raises(ValueError, match="a lossy WebP"):
                read_labels(path)
