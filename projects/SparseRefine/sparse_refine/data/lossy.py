# SPDX-License-Identifier: Apache-2.0
"""Whether a file keeps the values that it was given, by its content and not by its name: class ids
are lost in what photographs are stored in."""

from __future__ import annotations

from PIL import Image

from .image_files import LOSSY

# Compressions within a TIFF, by Pillow's names and tifffile's, which has "ojpeg" for "tiff_jpeg".
_TIFF_LOSSY = (
    *("jpeg", "tiff_jpeg", "ojpeg", "alt_jpeg", "jpeg_lossy"),
    *("webp", "jpegxl", "jpegxl_dng", "jpegxr", "jpeg2000", "jpeg_2000_lossy"),
)


def lossy_kind(file, image: Image.Image) -> str | None:
    """What a file is that may change values, as "a JPEG"; None where it keeps them.

    JPEG 2000 counts as lossy: a file of the reversible wavelet may have been cut to a size, which
    nothing in it says, and Pillow shifts depths other than 8 and 16 bits.

    Args:
        file: opened for reading, at any place. image: Pillow's of it.
    """
    if image.format in LOSSY:
        return f"{'an' if image.format == 'AVIF' else 'a'} {image.format}"
    if image.format == "TIFF" and image.info.get("compression") in _TIFF_LOSSY:
        return f"a TIFF with {image.info['compression']} inside"
    if image.format == "WEBP" and not _webp_is_lossless(file):
        return "a lossy WebP"
    return None


def _webp_is_lossless(file) -> bool:
    """Whether the first picture is in VP8L. A WebP is RIFF: chunks of a name, a length (little
    endian; the content is padded to even) and content; an animation has pictures within ANMF."""
    position = file.tell()
    try:
        file.seek(12)  # after "RIFF", the length of all, and "WEBP"
        while len(header := file.read(8)) == 8:
            name, length = header[:4], int.from_bytes(header[4:], "little")
            if name in (b"VP8L", b"VP8 "):
                return name == b"VP8L"
            # of a frame only the 16 bytes of its place and duration are passed over
            file.seek(16 if name == b"ANMF" else length + length % 2, 1)
        return False
    finally:
        file.seek(position)
