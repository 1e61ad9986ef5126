# SPDX-License-Identifier: Apache-2.0
"""Images come out of files as they were meant, or not at all; what is checked of a pair."""

from __future__ import annotations

from urllib.error import URLError

import cv2
import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image

from sparse_refine.data import check_labels, check_same_size, decoding
from sparse_refine.data.reading import read_image, read_labels, read_size

from .files import GREY, RGB, save, save_tiff_16

# What EXIF orientation k asks for, in numpy.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}

# ---------------------------------------------------------------------- images


@pytest.mark.parametrize("format", ["RGB", "BGR"])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_plain_image(tmp_path, suffix, format):
    image = read_image(save(tmp_path / f"a.{suffix}", RGB), format=format)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, RGB if format == "RGB" else RGB[..., ::-1])


@pytest.mark.parametrize("format", ["RGB", "BGR"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9), 0, 99])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(tmp_path, suffix, orientation, format):
    file = save(tmp_path / f"a.{suffix}", RGB, orientation=orientation)
    flat = np.asarray(Image.open(save(tmp_path / f"flat.{suffix}", RGB)).convert("RGB"))
    expected = TURNED.get(orientation, TURNED[1])(flat)
    image = read_image(file, format=format)
    np.testing.assert_array_equal(image, expected if format == "RGB" else expected[..., ::-1])
    assert image.flags.c_contiguous and image.flags.writeable
    assert read_size(file) == expected.shape[:2]


def test_as_detectron2_reads_it(tmp_path):
    file = save(tmp_path / "a.jpg", RGB, orientation=6, quality=95)
    for format in ("RGB", "BGR"):
        expected = detection_utils.read_image(file, format)
        np.testing.assert_array_equal(read_image(file, format), expected)


def test_damaged_exif_is_passed_over(tmp_path):
    file = save(tmp_path / "a.png", RGB, exif=b"Exif\0\0MM\0*\0\0")
    np.testing.assert_array_equal(read_image(file), RGB)
    assert read_size(file) == RGB.shape[:2]


def test_grey_and_bilevel(tmp_path):
    image = read_image(save(tmp_path / "a.png", GREY))
    np.testing.assert_array_equal(image, np.repeat(GREY[..., None], 3, 2))
    image = read_image(save(tmp_path / "b.png", (GREY > 127).astype(np.uint8) * 255, mode="1"))
    np.testing.assert_array_equal(image[..., 2], (GREY > 127) * 255)


def test_alpha_is_dropped(tmp_path):
    alpha = GREY[..., None] // 2
    image = read_image(save(tmp_path / "a.png", np.concatenate([RGB, alpha], 2)))
    np.testing.assert_array_equal(image, RGB)
    image = read_image(save(tmp_path / "b.png", np.concatenate([GREY[..., None], alpha], 2)))
    np.testing.assert_array_equal(image, np.repeat(GREY[..., None], 3, 2))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80"])
def test_palette_image_gives_its_colours(tmp_path, transparency):
    image = Image.fromarray(GREY % 3)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {"transparency": transparency}
    pixels = read_image(save(tmp_path / "a.png", image, **options))
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    np.testing.assert_array_equal(pixels, colors[GREY % 3])


def test_cmyk(tmp_path):
    file = save(tmp_path / "a.tif", RGB, mode="CMYK")
    np.testing.assert_array_equal(read_image(file), RGB)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_is_scaled(tmp_path, channels):
    wide = np.random.default_rng(1).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    wide[0, 0], wide[0, 1] = 65535, 0
    file = str(tmp_path / "a.png")
    cv2.imwrite(file, wide)
    expected = np.rint(wide[..., :3] / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(file, "BGR"), np.broadcast_to(expected, (5, 7, 3)))
    assert read_image(file, "RGB")[0, :2, 0].tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_scaled_and_turned_once(tmp_path, orientation, channels):
    wide = (RGB if channels == 3 else GREY).astype(np.uint16) * 257
    file = save_tiff_16(tmp_path / "a.tif", wide, orientation)
    expected = TURNED[orientation](RGB if channels == 3 else np.repeat(GREY[..., None], 3, 2))
    np.testing.assert_array_equal(read_image(file), expected)
    assert read_size(file) == expected.shape[:2]


@pytest.mark.parametrize("values", [np.full((4, 4), 70000, np.int32), np.ones((4, 4), np.float32)])
def test_unknown_range_is_an_error(tmp_path, values):
    file = save(tmp_path / "a.tif", values)
    with pytest.raises(ValueError, match="a.tif.*8 or 16 bits"):
        read_image(file)


@pytest.mark.parametrize("read", [read_image, read_labels, read_size])
def test_not_an_image(tmp_path, read):
    (tmp_path / "a.png").write_bytes(b"no image at all")
    with pytest.raises(OSError, match="a.png"):
        read(str(tmp_path / "a.png"))
    with pytest.raises(FileNotFoundError, match="nowhere.png"):
        read(str(tmp_path / "nowhere.png"))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("keep", [0.6, 0.1])
def test_truncated(tmp_path, suffix, keep):
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / f"a.{suffix}"
    save(file, noise)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    for read in (read_image, read_labels)[: 1 if suffix == "jpg" else 2]:
        with pytest.raises(OSError, match=f"a.{suffix}"):
            read(str(file))


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="'RGB' or 'BGR', got 'HSV'"):
        read_image(save(tmp_path / "a.png", RGB), format="HSV")


# ---------------------------------------------------------------------- checks


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_check_labels(dtype):
    labels = np.array([[0, 1, 2], [255, 2, 1]], dtype)
    check_labels(labels, 3, 255, "x.png")
    check_labels(labels[:1], 3, None, "x.png")
    check_labels(labels[:0], 1, 255, "x.png")
    check_labels(labels[:, ::2], 3, 255, "x.png")  # not contiguous
    with pytest.raises(ValueError, match=r"x.png: label 2 \(first at x 2, y 0\).*0..1 or 255"):
        check_labels(labels, 2, 255, "x.png")
    with pytest.raises(ValueError, match=r"x.png: label 2, 255 .*0..1;"):
        check_labels(labels, 2, None, "x.png")


def test_check_labels_beyond_8_bits():
    with pytest.raises(ValueError, match="label 65535 "):
        check_labels(np.full((2, 2), 65535, np.uint16), 3, 255, "x.png")
    with pytest.raises(ValueError, match="label -1 "):
        check_labels(np.full((2, 2), -1, np.int32), 3, 255, "x.png")
    check_labels(np.full((2, 2), -1, np.int32), 3, -1, "x.png")


def test_check_same_size(tmp_path):
    upright = save(tmp_path / "a.jpg", RGB)
    turned = save(tmp_path / "b.jpg", RGB, orientation=6)
    check_same_size(RGB, GREY, upright, "a.png")
    with pytest.raises(
        ValueError, match=r"a.png: labels of 3 x 5 .*image of 7 x 5.*a.jpg"
    ) as error:
        check_same_size(RGB, GREY[:, :3], upright, "a.png")
    assert "EXIF" not in str(error.value)
    image = read_image(turned)
    assert image.shape == (7, 5, 3)
    with pytest.raises(ValueError, match="EXIF orientation is 6, and was applied"):
        check_same_size(image, GREY, turned, "b.png")
    with pytest.raises(detection_utils.SizeMismatchError, match="EXIF orientation is 1: nothing"):
        check_same_size(RGB, GREY.T, upright, "a.png")


# ---------------------------------------------------------------------- real data


def test_rgbweed_photographs_and_labels_agree(datasets_root):
    files = sorted((datasets_root / "rgbweed" / "images").glob("*.jpg"))
    assert len(files) == 39
    turned = 0
    for file in files:
        with Image.open(file) as image:
            turned += image.getexif().get(0x0112, 1) == 3
        labels = datasets_root / "rgbweed" / "labels" / f"{file.stem}.png"
        assert read_size(str(file)) == read_size(str(labels)) == (2448, 3264)
    assert turned == 31


def test_rgbweed_reads(datasets_root):
    folder = datasets_root / "rgbweed"
    name = (folder / "test.txt").read_text().split()[0]
    files = str(folder / "images" / f"{name}.jpg"), str(folder / "labels" / f"{name}.png")
    image, labels = read_image(files[0]), read_labels(files[1])
    check_same_size(image, labels, *files)
    check_labels(labels, 3, 255, files[1])
    # Plants are greener than soil only where the image has been turned as the labels are.
    green = image[..., 1].astype(int) - image[..., 0]
    assert green[labels > 0].mean() > 0 > green[labels == 0].mean()


@pytest.mark.parametrize("read", [read_image, read_labels, read_size])
def test_home_and_what_cannot_be_fetched(tmp_path, monkeypatch, read):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuple(np.shape(read("~/a.png")))[:2] in ((2, 3), (2,))  # pixels, or the size

    def refuse(*args):
        raise URLError("Name or service not known")

    monkeypatch.setattr(decoding.PathManager, "open", refuse)
    with pytest.raises(OSError, match=r"https://no\.where/a\.png cannot be fetched: Name or"):
        read("https://no.where/a.png")
