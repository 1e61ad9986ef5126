# SPDX-License-Identifier: Apache-2.0
"""TIFFs that Pillow does not read, or not with all that is in them: more than 8 bits a channel, and
bands that no tag calls colours (PHOTOMETRIC MINISBLACK, the default of GDAL, rasterio and COG).
tifffile decodes them; what their bands mean stands here."""

from __future__ import annotations

import math
import shlex

import numpy as np
import tifffile
from PIL import Image

from .depth import to_8_bits

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_ORIENTATION = 274
_SAMPLE_FORMATS = {1: "uint", 2: "int", 3: "float", 5: "complex int", 6: "complex"}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha, of ExtraSamples


class Tiff:
    """The first image of a TIFF as its header has it; decoded where pixels are asked for.

    `size`: (width, height) as stored. `orientation`: the tag's, 1..8. `format` and `info` are as
    Pillow's images have them.
    """

    format = "TIFF"

    def __init__(self, file):
        """
        Args:
            file: opened for reading, and open as long as pixels are asked for.

        Raises:
            OSError: not a TIFF, or its header is damaged.
        """
        file.seek(0)
        try:
            self._page = page = tifffile.TiffFile(file).pages.first
            self.size = (page.imagewidth, page.imagelength)
            self.bands, self.bits = page.samplesperpixel, page.bitspersample
            self.kind = _SAMPLE_FORMATS.get(page.sampleformat, "unknown")
            self.photometric = getattr(page.photometric, "name", str(page.photometric))
            self.compression = getattr(page.compression, "name", str(page.compression))
            orientation = page.tags.valueof(_ORIENTATION, 1)
        except Exception as error:  # as many kinds as there are ways to damage a header
            raise OSError(f"its header cannot be read as a TIFF's: {error}") from error
        self.orientation = orientation if orientation in range(1, 9) else 1
        self.info = {"compression": self.compression.lower()}
        self.is_planar = page.planarconfig == 2 and self.bands > 1
        # The extra samples come last; the alpha is one of them.
        kinds = [int(kind) for kind in page.extrasamples]
        alpha = next((i for i, k in enumerate(kinds) if k in (_ASSOCIATED, _UNASSOCIATED)), None)
        self._alpha = None if alpha is None else self.bands - len(kinds) + alpha
        self._is_premultiplied = alpha is not None and kinds[alpha] == _ASSOCIATED

    def __str__(self) -> str:
        return (
            f"a TIFF of {self.bands} band{'s' * (self.bands > 1)} of {self.kind}{self.bits}, "
            f"PHOTOMETRIC {self.photometric}, INTERLEAVE {'BAND' if self.is_planar else 'PIXEL'}, "
            f"compression {self.compression}"
        )

    @property
    def is_for_pillow(self) -> bool:
        """Whether Pillow keeps all bits, and takes each band for what it is."""
        if self.bits not in (1, 2, 4, 8) or self.kind != "uint":
            return False
        if self.photometric in ("MINISBLACK", "MINISWHITE"):
            return self.bands == 1 or (self.bands == 2 and self._alpha is not None)
        return self.photometric in ("PALETTE", "RGB", "SEPARATED", "YCBCR")

    def pixels(self) -> np.ndarray:
        """(H, W, bands), values and orientation as stored.

        Raises:
            OSError: damaged or cut short, a compression that cannot be decoded here, or the decoder
                gave something else than the header says.
        """
        width, height = self.size
        listed, needed = len(self._page.dataoffsets), math.prod(self._page.chunked)
        if listed < needed:  # tifffile fills what is missing; GDAL's empty tiles are listed
            raise OSError(f"{self}; its header lists {listed} of {needed} strips or tiles")
        try:  # one thread: a loader has many processes
            pixels = self._page.asarray(maxworkers=1)
        except Exception as error:  # every codec has its own
            reason = str(error) or type(error).__name__
            if "imagecodecs" in reason:
                reason += ": pip install imagecodecs, or save the file with DEFLATE"
            raise OSError(f"{self}; it cannot be decoded: {reason}") from error
        shape = (self.bands, height, width) if self.is_planar else (height, width, self.bands)
        expected = shape if self.bands > 1 else (height, width)
        if pixels.shape != expected or pixels.dtype != self._page.dtype:
            raise OSError(
                f"{self}; its header says {expected} of {self._page.dtype}, but decoded it is "
                f"{pixels.shape} of {pixels.dtype}"
            )
        pixels = pixels.reshape(shape)
        return np.moveaxis(pixels, 0, 2) if self.is_planar else pixels

    def image(self, file_name: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB, orientation as stored.

        Raises:
            OSError: as `pixels`.
            ValueError: what its bands are, or which value is white, is not known.
        """
        mode = self._mode(file_name)
        self._check_white(file_name)
        pixels = self.pixels()
        colors = pixels[..., : len(mode)]
        if self._is_premultiplied:
            white = 2**self.bits - 1
            alpha = np.maximum(pixels[..., self._alpha, None], 1)
            colors = np.minimum(colors / alpha * white, white).round().astype(pixels.dtype)
        colors = to_8_bits(colors, file_name, self.bits)
        if self.photometric == "MINISWHITE":
            colors = 255 - colors
        if mode == "CMYK":
            return np.asarray(Image.fromarray(colors, mode).convert("RGB"))
        return colors.repeat(3, axis=2) if mode == "L" else colors

    def _mode(self, file_name: str) -> str:
        """ "L", "RGB" or "CMYK", which the first bands are."""
        bands = self.bands - (self._alpha is not None)
        if self.photometric in ("MINISBLACK", "MINISWHITE") and bands == 1:
            return "L"
        if (self.photometric == "MINISBLACK" and bands in (3, 4)) or (
            self.photometric == "RGB" and bands >= 3
        ):
            return "RGB"
        if self.photometric == "SEPARATED" and bands == 4:
            return "CMYK"
        if self.photometric in ("MINISBLACK", "MINISWHITE", "RGB"):
            scale = "" if self._white_is_known else " -ot Byte -scale BLACK WHITE 0 255"
            three = "-b 1 -b 2 -b 3" if bands > 2 else "-b 1"
            raise ValueError(
                f"{file_name}: {self}; nothing says which of its bands are red, green and blue. "
                "Write three of them, or one for grey, to a file, by their numbers from 1: for "
                f"instance gdal_translate {three}{scale} {shlex.quote(str(file_name))} OUT.tif"
            )
        raise ValueError(
            f"{file_name}: {self}; such pixels are not read here: save the image as RGB with 8 or "
            "16 bits a channel"
        )

    @property
    def _white_is_known(self) -> bool:
        # int32 is what Pillow saves its mode "I" as, in which it holds 16 bits
        return (self.kind == "uint" and isinstance(self.bits, int)) or (
            self.kind == "int" and self.bits == 32
        )

    def _check_white(self, file_name: str) -> None:
        if not self._white_is_known:
            values = "floating point" if self.kind == "float" else f"{self.kind}{self.bits}"
            raise ValueError(
                f"{file_name}: {self}; its values are {values}, and nothing says which of them is "
                "white; save the image with 8 or 16 bits a channel, with one BLACK and one WHITE "
                "for all images: gdal_translate -ot Byte -scale BLACK WHITE 0 255 "
                f"{shlex.quote(str(file_name))} OUT.tif"
            )
