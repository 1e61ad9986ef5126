# SPDX-License-Identifier: Apache-2.0
"""Training crops, their labels and their context show the same place."""

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.resampling import low_size

from .painted import HEIGHT, WIDTH, blocks, mapper, noise, ramp


def place(image):
    """(row, column) that each pixel of a ramp, resampled or not, says it comes from."""
    return image[1].double(), image[0].double()


def native(length, start, full, size):
    """Coordinates of pixel centres start .. start + length of `full` pixels, in `size` pixels."""
    return (torch.arange(start, start + length).double() + 0.5) * size / full - 0.5


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resize", [(1.0, 1.0), (0.6, 0.6), (1.7, 1.7), (0.5, 2.0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_crop_labels_and_context_show_the_same_place(write, resize, flip, seed):
    item = write(ramp(), blocks(), seed)
    # with flip, half of the draws: take the first seed from this one on that flips
    options = {"crop_size": (50, 64), "context_scale": 0.5, "resize_range": resize, "flip": flip}
    for item["seed"] in range(seed, seed + 30):
        output = mapper(**options)(item)
        flipped = bool(output["image"][0, 0, 0] > output["image"][0, 0, -1])
        if flipped == flip:
            break
    assert flipped == flip
    top, left, height, width = output["crop"]
    assert resize[0] - 0.01 <= height / HEIGHT <= resize[1] + 0.01
    assert output["image"].shape == (3, 50, 64) and output["sem_seg"].shape == (50, 64)
    assert output["context"].shape[1:] == low_size((height, width), 0.5)
    assert output["context_flip"] is False
    assert 0 <= top <= height - 50 and 0 <= left <= width - 64

    def mirrored(columns):
        return WIDTH - 1 - columns if flip else columns

    # Where crop and context must come from; a ramp stays one under resampling, but at its ends.
    for image, rows, columns in (
        (
            output["image"],
            native(50, top, height, HEIGHT),
            mirrored(native(64, left, width, WIDTH)),
        ),
        (
            output["context"],
            native(output["context"].shape[1], 0, output["context"].shape[1], HEIGHT),
            mirrored(native(output["context"].shape[2], 0, output["context"].shape[2], WIDTH)),
        ),
    ):
        y, x = place(image)
        inner_y = (rows > 2) & (rows < HEIGHT - 3)
        inner_x = (columns > 2) & (columns < WIDTH - 3)
        assert (y - rows[:, None])[inner_y].abs().max() < 1.1
        assert (x - columns)[:, inner_x].abs().max() < 1.1

    # Labels are the nearest native pixel's.
    rows = native(50, top, height, HEIGHT)
    columns = mirrored(native(64, left, width, WIDTH))
    expected = blocks()[rows.round().long().clamp(0, 119)][:, columns.round().long().clamp(0, 199)]
    disagree = output["sem_seg"].numpy() != expected
    # two centres are equally near here and there, where the factor makes halves
    assert disagree.mean() < 0.03
    assert set(output["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}


def test_without_any_augmentation_nothing_changes(write):
    output = mapper(context_scale=0.5)(write(noise(), blocks()))
    assert torch.equal(output["image"], torch.from_numpy(noise()).permute(2, 0, 1))
    assert output["image"].dtype == torch.uint8 and output["sem_seg"].dtype == torch.int64
    assert torch.equal(output["sem_seg"], torch.from_numpy(blocks()).long())
    assert output["crop"] == (0, 0, HEIGHT, WIDTH) and output["context"].shape == (3, 60, 100)


def test_a_crop_of_the_native_image_is_cut_out(write):
    output = mapper(crop_size=(33, 47))(write(noise(), blocks(), seed=5))
    pixels = torch.from_numpy(noise()).permute(2, 0, 1)
    # no context: the place is not told, but a crop of noise is found in one place
    windows = pixels[0].unfold(0, 33, 1).unfold(1, 47, 1)
    found = (windows == output["image"][0]).all(-1).all(-1).nonzero()
    assert len(found) == 1
    top, left = found[0].tolist()
    window = slice(top, top + 33), slice(left, left + 47)
    assert torch.equal(output["image"], pixels[:, window[0], window[1]])
    assert torch.equal(output["sem_seg"], torch.from_numpy(blocks()[window]).long())
    assert "crop" not in output and "context" not in output


@pytest.mark.parametrize("factor", [0.37, 0.8, 1.0, 1.33, 2.0])
def test_resampling_a_box_is_resizing_and_cropping(write, factor):
    output = mapper(crop_size=(40, 48), context_scale=0.5, resize_range=(factor, factor))(
        write(noise(), blocks(), seed=3)
    )
    top, left, height, width = output["crop"]
    resized = np.asarray(Image.fromarray(noise()).resize((width, height), Image.BILINEAR))
    expected = resized[top : top + 40, left : left + 48].astype(int)
    difference = np.abs(output["image"].permute(1, 2, 0).numpy() - expected)
    assert expected.shape == difference.shape and difference.max() <= 1


def test_labels_are_the_nearest_pixels_by_hand(write):
    labels = np.zeros((9, 9), dtype=np.uint8)
    labels[1, [1, 4, 7]] = 0, 1, 2  # centres of thirds: rows and columns 1, 4 and 7
    labels[4, [1, 4, 7]] = 1, 2, 0
    labels[7, [1, 4, 7]] = 2, 2, 255
    item = write(ramp(9, 9), labels)
    small = mapper(resize_range=(1 / 3, 1 / 3))(item)["sem_seg"]
    assert small.tolist() == [[0, 1, 2], [1, 2, 0], [2, 2, 255]]
    large = mapper(resize_range=(2.0, 2.0))(item)["sem_seg"]
    assert torch.equal(large, torch.from_numpy(labels.repeat(2, 0).repeat(2, 1)).long())


def test_a_dense_model_at_a_fraction_of_native_resolution(write):
    """INPUT.SCALE: crop and resize range are on the model's own resolution."""
    output = mapper(scale=0.25, crop_size=(20, 24))(write(noise(), blocks(), seed=1))
    assert output["image"].shape == (3, 20, 24)
    small = np.asarray(Image.fromarray(noise()).resize((50, 30), Image.BILINEAR)).astype(int)
    windows = torch.from_numpy(small[..., 0]).unfold(0, 20, 1).unfold(1, 24, 1)
    near = ((windows - output["image"][0].int()).abs() <= 1).all(-1).all(-1)
    assert near.sum() == 1


@pytest.mark.parametrize("crop", [(150, 64), (50, 300), (150, 300)])
def test_an_image_smaller_than_the_crop(write, crop):
    output = mapper(crop_size=crop, context_scale=0.5)(write(ramp(), blocks()))
    size = min(crop[0], HEIGHT), min(crop[1], WIDTH)
    assert output["image"].shape == (3, *size) and output["sem_seg"].shape == size
    assert output["crop"][2:] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny_images(write, size):
    options = {"crop_size": (4, 4), "context_scale": 0.25, "resize_range": (0.1, 2.0), "flip": True}
    for seed in range(12):
        output = mapper(**options, color_aug=seed % 2 == 0)(
            write(ramp(*size), blocks(*size, side=1), seed)
        )
        height, width = output["crop"][2:]
        assert (
            output["image"].shape[1:] == (min(4, height), min(4, width)) and min(height, width) > 0
        )
        assert output["image"].shape[1:] == output["sem_seg"].shape


def test_crops_reach_every_place(write):
    """Also the last row and column, at any size."""
    item = write(ramp(6, 7), blocks(6, 7))
    places = set()
    for item["seed"] in range(300):
        places.add(mapper(crop_size=(4, 5), context_scale=0.5)(item)["crop"][:2])
    assert places == {(y, x) for y in range(3) for x in range(3)}


def test_factors_fill_the_range(write):
    item = write(ramp(), blocks())
    factors = []
    for item["seed"] in range(60):
        output = mapper(crop_size=(8, 8), context_scale=0.5, resize_range=(0.5, 2.0))(item)
        factors.append(output["crop"][2] / HEIGHT)
    assert 0.49 < min(factors) < 0.65 and 1.8 < max(factors) < 2.01


def test_crops_of_a_single_class_are_drawn_anew(write):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[:, 180:] = 1  # a tenth of the image
    item = write(ramp(), labels)

    def mixed(max_area):
        shares = []
        for item["seed"] in range(40):
            target = mapper(crop_size=(32, 32), single_category_max_area=max_area)(item)["sem_seg"]
            shares.append((target == 1).float().mean().item())
        return sum(0.25 < share < 0.75 for share in shares)

    assert mixed(0.75) > 2 * max(mixed(1.0), 1)
