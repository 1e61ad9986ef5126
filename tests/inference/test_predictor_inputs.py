# SPDX-License-Identifier: Apache-2.0
"""What SparseRefinePredictor takes: arrays and files of every kind, at every size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.data import SegmentationMapper
from sparse_refine.inference.predictor import SparseRefinePredictor

from .predicting import LABELS, same


def test_channel_orders(make_cfg, weights, image):
    path = weights()
    rgb = SparseRefinePredictor(make_cfg(), path)
    bgr = SparseRefinePredictor(make_cfg("INPUT.FORMAT", "BGR"), path)
    flipped = np.ascontiguousarray(image[..., ::-1])
    expected = rgb(image)
    assert same(rgb(flipped, channel_order="BGR"), expected)
    assert same(bgr(flipped), expected)  # its network reads BGR: what it gets has red last
    assert same(bgr(image, channel_order="BGR"), expected)
    assert not same(rgb(flipped), expected)
    with pytest.raises(ValueError, match="'GBR'"):
        rgb(image, channel_order="GBR")


def test_arrays_and_files_agree(predictor, image, tmp_path):
    """Every kind of pixel that is normal, as an array and from a file."""
    made = predictor()
    grey = image[..., 1]
    alpha = np.dstack([image, image[..., 0]])
    deep = image.astype(np.uint16) * 257
    pairs = {
        "rgb.png": (image, Image.fromarray(image)),
        "grey.png": (grey, Image.fromarray(grey)),
        "grey1.png": (grey[..., None], Image.fromarray(grey)),
        "rgba.png": (alpha, Image.fromarray(alpha)),
        "grey16.png": (deep[..., 1], Image.fromarray(deep[..., 1])),
        "rgb.bmp": (image, Image.fromarray(image)),
        "rgb.tif": (image, Image.fromarray(image)),
    }
    for name, (array, picture) in pairs.items():
        picture.save(tmp_path / name)
        assert same(made(array), made(tmp_path / name)), name
    cv2.imwrite(str(tmp_path / "rgb16.png"), deep[..., ::-1])
    assert same(made(deep), made(str(tmp_path / "rgb16.png")))
    assert same(made(deep), made(image))
    assert same(made(np.dstack([deep, deep[..., 0]])), made(image))
    palette = Image.fromarray(image).quantize(200)
    palette.save(tmp_path / "palette.png")
    assert same(made(tmp_path / "palette.png"), made(np.asarray(palette.convert("RGB"))))


def test_exif_orientation(predictor, image, tmp_path):
    made = predictor()
    upright = made(image)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(image)))
    turned.save(tmp_path / "turned.png", exif=exif)
    assert turned.size == (48, 64)
    assert same(made(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize("shape", [(1, 1), (37, 1), (1, 37), (33, 47)])
def test_sizes(predictor, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for options in ([], LABELS):
        made = predictor(*options, "MODEL.SPARSE_REFINE.COARSE_INTERPOLATION", "bilinear")
        made.set_budget(1.0)
        output = made(image)
        assert output["labels"].shape == shape and output["selected"].all()


def test_large(predictor):
    """12 megapixels, with the maps at their size."""
    made = predictor(*LABELS, "MODEL.SPARSE_REFINE.BASE.SCALE", 0.125)
    made.set_budget(0.001)
    output = made(np.zeros((3000, 4000, 3), np.uint8))
    assert output["labels"].shape == (3000, 4000)
    assert output["selected"].sum() == 12_000


def test_what_is_no_image(predictor, image, tmp_path):
    made = predictor()
    for wrong, message in (
        (image.astype(np.float32), "float32"),
        (image.astype(np.int64), "int64"),
        (image.tolist(), "list"),
        (Image.fromarray(image), "np.asarray"),
        (torch.from_numpy(image), "permute"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=message):
            made(wrong)
    for wrong in (image[..., :2], image[None], image[:0], image[:, :, :0], np.uint8(3)[None]):
        with pytest.raises(ValueError, match=r"of shape \("):
            made(wrong)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        made(tmp_path / "nowhere.png")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(OSError, match=r"text\.jpg"):
        made(tmp_path / "text.jpg")


def test_home_in_paths(make_cfg, weights, image, tmp_path, monkeypatch):
    path = weights()
    (tmp_path / "model.yaml").write_text(make_cfg().dump())
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = SparseRefinePredictor(make_cfg(), path)(image)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(SparseRefinePredictor("~/model.yaml", path)("~/image.png"), expected)


def test_options_and_budgets_of_another_kind(make_cfg, weights, predictor):
    path = weights()
    for opts in ({"OUTPUT_DIR": "a", "VERSION": 2}, "OUTPUT_DIR a"):
        with pytest.raises(TypeError, match=rf"opts is a {type(opts).__name__}: a list of pairs"):
            SparseRefinePredictor(make_cfg(), path, opts=opts)
    with pytest.raises(TypeError, match="a share 0..1 of the pixels, not '0.1'"):
        predictor().set_budget("0.1")
    predictor().set_budget(np.float32(0.1))


def test_a_size_that_images_are_not_resized_to_is_refused(make_cfg, weights):
    """DefaultPredictor would resize by it: other labels for the same config."""
    cfg = make_cfg("INPUT.MIN_SIZE_TEST", 800)
    for use in (
        lambda: SparseRefinePredictor(cfg, weights()),
        lambda: SegmentationMapper(cfg, is_train=False),
    ):
        with pytest.raises(ValueError, match="INPUT.MIN_SIZE_TEST is 800.*set it to 0"):
            use()
    SegmentationMapper(cfg, is_train=True)
