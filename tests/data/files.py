# SPDX-License-Identifier: Apache-2.0
"""Small image files of every kind."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def save(path, pixels, mode=None, orientation=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    (image.convert(mode) if mode else image).save(path, **options)
    return str(path)


def save_tiff_16(path, pixels, orientation=1):
    """An uncompressed 16-bit TIFF, which Pillow cannot write in colour."""
    pixels = np.asarray(pixels, "<u2")
    height, width = pixels.shape[:2]
    channels = 3 if pixels.ndim == 3 else 1
    bits_at = 8 + 2 + 12 * 10 + 4
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits_at)),
        *((259, 3, 1, 1), (262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, bits_at + 6)),
        *((274, 3, 1, orientation), (277, 3, 1, channels), (278, 4, 1, height)),
        (279, 4, 1, pixels.nbytes),
    ]
    if channels == 1:
        tags[2] = (258, 3, 1, 16)
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + struct.pack("<I", 0)
    path.write_bytes(header + struct.pack("<HHH", 16, 16, 16) + pixels.tobytes())
    return str(path)
