# SPDX-License-Identifier: Apache-2.0
"""Labels come out of files as they were meant, or not at all."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from sparse_refine.data.reading import read_labels

from .files import GREY, RGB, save


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_8_bit_labels(tmp_path, suffix):
    labels = read_labels(save(tmp_path / f"a.{suffix}", GREY))
    assert labels.dtype == np.uint8 and labels.flags.writeable
    np.testing.assert_array_equal(labels, GREY)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_labels_are_not_clipped(tmp_path, suffix):
    wide = np.array([[0, 255, 256], [300, 4095, 65535]], np.uint16)
    labels = read_labels(save(tmp_path / f"a.{suffix}", wide))
    assert np.issubdtype(labels.dtype, np.integer) and labels.dtype.isnative
    np.testing.assert_array_equal(labels, wide)


def test_32_bit_labels(tmp_path):
    wide = np.array([[0, 70000], [1, 2]], np.int32)
    np.testing.assert_array_equal(read_labels(save(tmp_path / "a.tif", wide)), wide)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_labels_give_indices(tmp_path, bits):
    ids = GREY & (2**bits - 1)
    image = Image.fromarray(ids)
    image.putpalette(np.random.default_rng(3).integers(0, 256, 3 * 2**bits).tolist())
    np.testing.assert_array_equal(read_labels(save(tmp_path / "a.png", image, bits=bits)), ids)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_below_8_bits_are_not_stretched(tmp_path, bits):
    ids = GREY[:4, :4] & (2**bits - 1)
    rows = ["".join(f"{v:0{bits}b}" for v in row) for row in ids]
    data = b"".join(
        b"\0" + int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big")
        for row in rows
    )
    write_png(tmp_path / "a.png", 4, 4, bits, data)
    labels = read_labels(str(tmp_path / "a.png"))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, ids)


def write_png(path, width, height, bits, data):
    """A grey PNG of a bit depth that Pillow reads but does not write."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def test_coloured_labels_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a.png.*look like colours.*x 0, y 0.*RGB \("):
        read_labels(save(tmp_path / "a.png", RGB))
    wide = np.zeros((3, 3, 3), np.uint16)
    wide[1, 2] = 1, 2, 3000  # blue first
    cv2.imwrite(str(tmp_path / "b.png"), wide)
    with pytest.raises(ValueError, match=r"b.png.*x 2, y 1 is RGB \(3000, 2, 1\)"):
        read_labels(str(tmp_path / "b.png"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_labels_in_equal_channels(tmp_path, mode):
    file = save(tmp_path / "a.png", GREY, mode=mode)
    np.testing.assert_array_equal(read_labels(file), GREY)


def test_16_bit_labels_in_equal_channels(tmp_path):
    wide = np.repeat(np.array([[1, 300], [40000, 2]], np.uint16)[..., None], 3, 2)
    cv2.imwrite(str(tmp_path / "a.png"), wide)
    np.testing.assert_array_equal(read_labels(str(tmp_path / "a.png")), wide[..., 0])


def test_lossy_and_floating_labels_are_errors(tmp_path):
    with pytest.raises(ValueError, match="a.jpg.*JPEG.*PNG"):
        read_labels(save(tmp_path / "a.jpg", GREY))
    with pytest.raises(ValueError, match="a.tif.*'F'"):
        read_labels(save(tmp_path / "a.tif", GREY.astype(np.float32)))


def test_exif_of_labels_is_not_applied(tmp_path):
    file = save(tmp_path / "a.png", GREY, orientation=6)
    np.testing.assert_array_equal(read_labels(file), GREY)
