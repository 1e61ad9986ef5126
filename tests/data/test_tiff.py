# SPDX-License-Identifier: Apache-2.0
"""TIFFs as GDAL, rasterio and cameras write them: true pixels, or an error that says what is there.

The files of `cases/tiff` were written by GDAL, what stands beside them is their true pixels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from sparse_refine.data import depth
from sparse_refine.data.reading import read_image, read_labels, read_orientation, read_size

from .test_reading import TURNED

CASES = Path(__file__).with_name("cases") / "tiff"
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_file_was_warned_of(monkeypatch):
    monkeypatch.setattr(depth, "_warned", set())


def write(path, pixels, **options):
    """`pixels`: (H,W), (H,W,C), or (C,H,W) with planarconfig="separate"."""
    usual = {"photometric": "minisblack", "metadata": None}
    if pixels.ndim == 3:
        usual["planarconfig"] = "contig"
    tifffile.imwrite(path, pixels, **usual | options)
    return str(path)


def to_8(wide):
    return np.rint(wide / 257).astype(np.uint8)


# ---------------------------------------------------------------------- files of GDAL


@pytest.mark.parametrize(
    "name",
    ["rgb_pixel", "rgb_planar", "rgb_zstd", "3band_minisblack", "4band_minisblack"],
)
def test_16_bit_colours(name, caplog):
    file = str(CASES / f"uint16_{name}.tif")
    np.testing.assert_array_equal(read_image(file), to_8(np.load(CASES / "truth_rgb16.npy")))
    assert read_size(file) == (32, 48) and not caplog.records


@pytest.mark.parametrize("name", ["3band_minisblack_planar", "rgb_zstd"])
def test_8_bit_colours(name):
    image = read_image(str(CASES / f"uint8_{name}.tif"))
    np.testing.assert_array_equal(image, np.load(CASES / "truth_rgb8.npy"))


def test_tiles_with_overviews():
    file = str(CASES / "uint8_rgb_tiled_cog.tif")
    np.testing.assert_array_equal(read_image(file), Image.open(CASES / "truth_cog.png"))
    assert read_size(file) == (160, 256)


@pytest.mark.parametrize("name, found", [("uint16_5band", "5 b.*uint16"), ("uint8_8band", "8 b.*")])
def test_more_bands_than_colours_are_an_error(name, found):
    file = str(CASES / f"{name}.tif")
    with pytest.raises(ValueError, match=rf"{name}.tif: a TIFF of {found}.*MINISBLACK.*PIXEL.*com"):
        read_image(file)
    with pytest.raises(ValueError, match=r"gdal_translate -b 1 -b 2 -b 3 \S+.tif OUT.tif"):
        read_image(file)
    assert read_size(file) == (32, 48)  # a data set can be listed


def test_floating_point_is_an_error():
    with pytest.raises(ValueError, match="float32_rgb_0_1.tif.*float32.*-scale BLACK WHITE 0 255"):
        read_image(str(CASES / "float32_rgb_0_1.tif"))


def test_a_white_that_is_never_reached_is_said_once(caplog):
    file = str(CASES / "uint16_reflectance_0_3000.tif")
    first, second = read_image(file), read_image(file)
    assert first.max() == second.max() == 11
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{file}: its largest value is 2773, 4.2 % of white (65535)" in caplog.text


def test_a_dark_png_is_warned_of_too(tmp_path, caplog):
    for name, high in (("black", 0), ("bright", 20000), ("twelve", 4095)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((4, 4, 3), high, np.uint16))
        read_image(str(tmp_path / f"{name}.png"))
    assert len(caplog.records) == 1 and "twelve.png: its largest value is 4095" in caplog.text


def test_warnings_of_a_large_data_set_end(tmp_path, caplog):
    for i in range(15):
        read_image(write(tmp_path / f"{i}.tif", np.full((2, 2, 3), 100, np.uint16)))
    assert len(caplog.records) == depth._MOST_WARNINGS


# ---------------------------------------------------------------------- every layout


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize(
    "bands, planar",
    [(1, "contig"), (3, "contig"), (3, "separate"), (4, "contig"), (4, "separate")],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_layouts(tmp_path, dtype, bands, planar, compression, tile):
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (37, 43, bands)).astype(dtype)
    stored = pixels.transpose(2, 0, 1) if planar == "separate" else pixels
    options = {"planarconfig": planar} if bands > 1 else {}
    options |= {"compression": compression, "tile": tile, "extrasamples": [0] * (bands - 1)}
    expected = pixels[..., :3] if dtype == np.uint8 else to_8(pixels[..., :3])
    for i, more in enumerate(
        [{"photometric": "rgb", "extrasamples": [0] * (bands - 3)}] * (bands > 1)
        + [{}, {"byteorder": ">"}, {"bigtiff": True}, {"byteorder": ">", "bigtiff": True}]
        + [{"predictor": True}] * (compression not in (None, "packbits"))
    ):
        file = write(
            tmp_path / f"{i}.tif", stored[..., 0] if bands == 1 else stored, **options | more
        )
        image = read_image(file)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        np.testing.assert_array_equal(image, np.broadcast_to(expected, (37, 43, 3)))
        np.testing.assert_array_equal(read_image(file, "BGR"), image[..., ::-1])
        assert read_size(file) == (37, 43)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation, planar):
    pixels = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    stored = pixels.transpose(2, 0, 1) if planar == "separate" else pixels
    tags = [(274, "H", 1, orientation, True)]
    file = write(tmp_path / "a.tif", stored, planarconfig=planar, extratags=tags)
    expected = TURNED[orientation](to_8(pixels))
    np.testing.assert_array_equal(read_image(file), expected)
    assert read_size(file) == expected.shape[:2] and read_orientation(file) == orientation


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_white_of_other_depths(tmp_path, bits):
    pixels = RNG.integers(0, 2**bits, (6, 8, 3)).astype(np.uint16)
    pixels[0, 0] = 2**bits - 1
    file = write(tmp_path / "a.tif", pixels, photometric="rgb", bitspersample=bits)
    expected = np.rint(pixels * (255 / (2**bits - 1))).astype(np.uint8)
    np.testing.assert_array_equal(read_image(file), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(tmp_path, dtype):
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (6, 8)).astype(dtype)
    file = write(tmp_path / "a.tif", pixels, photometric="miniswhite")
    grey = 255 - (pixels if dtype == np.uint8 else to_8(pixels))
    np.testing.assert_array_equal(read_image(file), grey[..., None].repeat(3, axis=2))
    with pytest.raises(ValueError, match="a.tif.*MINISWHITE.*PNG"):
        read_labels(file)


def test_premultiplied_alpha_is_undone(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint16)
    pixels[0, 0] = 10000, 20000, 32767, 32768  # half covered
    pixels[1, 1] = 10000, 20000, 65535, 65535
    file = write(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    image = read_image(file)
    assert image[0, 0].tolist() == [78, 156, 255] and image[1, 1].tolist() == [39, 78, 255]


def test_cmyk_of_16_bits(tmp_path):
    pixels = RNG.integers(0, 65536, (6, 8, 4)).astype(np.uint16)
    file = write(tmp_path / "a.tif", pixels, photometric="separated")
    expected = np.asarray(Image.fromarray(to_8(pixels), "CMYK").convert("RGB"))
    np.testing.assert_array_equal(read_image(file), expected)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "pixels, options, message",
    [
        (np.ones((4, 4, 2), np.uint16), {}, r"2 bands of uint16.*one for grey.*-b 1 \S+a.tif"),
        (np.ones((4, 4, 6), np.float32), {}, "6 bands of float32.*-b 3 -ot Byte -scale BLACK"),
        (np.ones((4, 4, 3), np.int16), {}, "3 bands of int16.*nothing says which of them is white"),
        (np.ones((4, 4), np.float64), {}, "1 band of float64.*nothing says which"),
        (np.full((4, 4, 3), 70000, np.uint32), {}, "values from 70000 to 70000 do not fit 16 bits"),
        (np.ones((4, 4, 3), np.uint8), {"photometric": "cielab"}, "CIELAB.*save.*as RGB"),
    ],
)
def test_what_is_not_known(tmp_path, pixels, options, message):
    file = write(tmp_path / "a.tif", pixels, **options)
    with pytest.raises(ValueError, match=f"a.tif: .*{message}"):
        read_image(file)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd"])
def test_cut_short(tmp_path, compression):
    pixels = RNG.integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    file = tmp_path / "a.tif"
    write(file, pixels, compression=compression, rowsperstrip=8)
    whole = file.read_bytes()
    for keep in (0.02, 0.1, 0.6, 0.99):
        file.write_bytes(whole[: int(len(whole) * keep)])
        for read in (read_image, read_labels):
            with pytest.raises(OSError, match="a.tif"):
                read(str(file))


@pytest.mark.parametrize("tag, value", [(256, 96), (257, 80), (258, 8), (277, 4)])
def test_a_header_that_does_not_fit_its_pixels(tmp_path, tag, value):
    """Of strips that hold less than the header says no pixel is made up."""
    file = tmp_path / "a.tif"
    write(file, RNG.integers(0, 65536, (64, 64, 3)).astype(np.uint16), compression="zlib")
    with tifffile.TiffFile(file, mode="r+") as tiff:
        tiff.pages.first.tags[tag].overwrite((value,) * 3 if tag == 258 else value)
    with pytest.raises(OSError, match="a.tif"):
        read_image(str(file))


def test_a_codec_that_is_not_there_is_named(tmp_path, monkeypatch):
    file = write(tmp_path / "a.tif", np.ones((4, 4, 3), np.uint16), compression="zstd")

    def asarray(self, **_):
        raise ValueError("<COMPRESSION.ZSTD: 50000> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", asarray)
    with pytest.raises(OSError, match="a.tif.*compression ZSTD.*pip install imagecodecs"):
        read_image(file)


def test_a_decoder_that_gives_something_else(tmp_path, monkeypatch):
    file = write(tmp_path / "a.tif", np.ones((4, 5, 3), np.uint16))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: np.ones((4, 5), np.uint16))
    with pytest.raises(OSError, match=r"a.tif.*\(4, 5, 3\) of uint16, but decoded it is \(4, 5\)"):
        read_image(file)
    file = str(tmp_path / "a.png")
    cv2.imwrite(file, np.ones((4, 5, 3), np.uint16))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.ones((4, 5, 3), np.uint8))
    with pytest.raises(OSError, match="a.png.*5 x 4 of 16 bits, but decoded it is 5 x 4 of uint8"):
        read_image(file)


def test_too_many_pixels(tmp_path, monkeypatch):
    file = write(tmp_path / "a.tif", np.ones((40, 50, 3), np.uint16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)
    for read in (read_image, read_size):
        with pytest.raises(OSError, match="a.tif.*50 x 40.*PIL.Image.MAX_IMAGE_PIXELS"):
            read(file)


# ---------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64])
def test_labels_of_every_integer(tmp_path, dtype):
    ids = RNG.integers(0, 100, (6, 8)).astype(dtype)
    for name, stored in (("grey", ids), ("equal", np.stack([ids] * 3, axis=2))):
        labels = read_labels(write(tmp_path / f"{name}.tif", stored))
        assert labels.dtype in (np.uint8, np.uint16, np.int32)
        np.testing.assert_array_equal(labels, ids)


def test_labels_that_are_none(tmp_path):
    ids = np.full((4, 4), 2**40, np.int64)
    with pytest.raises(ValueError, match="a.tif: values from 1099511627776"):
        read_labels(write(tmp_path / "a.tif", ids))
    for name in ("uint16_rgb_planar", "uint16_3band_minisblack", "uint8_3band_minisblack_planar"):
        with pytest.raises(ValueError, match=f"{name}.tif: these look like colours.*RGB "):
            read_labels(str(CASES / f"{name}.tif"))
