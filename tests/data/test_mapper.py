# SPDX-License-Identifier: Apache-2.0
"""The mapper on painted images whose pixels say where they come from."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.data import SegmentationMapper
from sparse_refine.resampling import low_size

HEIGHT, WIDTH = 120, 200


def ramp(height=HEIGHT, width=WIDTH):
    """Red is the column, green is the row: a pixel says where it comes from."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=2).astype(np.uint8)


def noise(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def blocks(height=HEIGHT, width=WIDTH, side=20):
    """Labels 0, 1, 2 in squares; the last row is ignored."""
    y, x = np.mgrid[:height, :width]
    labels = ((y // side + x // side) % 3).astype(np.uint8)
    labels[-1] = 255
    return labels


@pytest.fixture
def write(tmp_path):
    """write(image, labels) -> dataset dict."""

    def write(image, labels, seed=0):
        Image.fromarray(image).save(tmp_path / "image.png")
        Image.fromarray(labels).save(tmp_path / "label.png")
        return {
            "file_name": str(tmp_path / "image.png"),
            "sem_seg_file_name": str(tmp_path / "label.png"),
            "seed": seed,
        }

    return write


def mapper(**options):
    return SegmentationMapper(
        **{"is_train": True, "num_classes": 3, "ignore_label": 255, **options}
    )


def place(image):
    """(row, column) that each pixel of a ramp, resampled or not, says it comes from."""
    return image[1].double(), image[0].double()


def native(length, start, full, size):
    """Coordinates of pixel centres start .. start + length of `full` pixels, in `size` pixels."""
    return (torch.arange(start, start + length).double() + 0.5) * size / full - 0.5


# ---- training: crop, labels and context agree ----------------------------------------------------


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


# ---- images kept in memory -----------------------------------------------------------------------


def test_kept_images_are_read_once_and_give_the_same_samples(write, tmp_path, monkeypatch):
    from sparse_refine.data import mapper as module

    item = write(noise(), blocks())
    (tmp_path / "other.png").write_bytes((tmp_path / "image.png").read_bytes())
    other = {**item, "file_name": str(tmp_path / "other.png")}
    options = {"crop_size": (40, 48), "context_scale": 1.0, "flip": True, "color_aug": True}
    fresh = [mapper(**options)({**d, "seed": s}) for s in range(4) for d in (item, other)]

    read, files = module.read_image, []
    monkeypatch.setattr(
        module, "read_image", lambda name, **how: (files.append(name), read(name, **how))[1]
    )
    keep = mapper(**options, cache_images=1)
    kept = [keep({**d, "seed": s}) for s in range(4) for d in (item, other)]
    assert (files.count(item["file_name"]), files.count(other["file_name"])) == (1, 4)
    for a, b in zip(fresh, kept):
        assert all(torch.equal(a[key], b[key]) for key in ("image", "context", "sem_seg"))


# ---- what the base's cached logits need ----------------------------------------------------------


def test_a_plain_context_knows_no_augmentation(write):
    item = write(ramp(), blocks())
    options = {"crop_size": (50, 64), "context_scale": 0.5, "flip": True, "color_aug": True}
    plain = mapper(context_scale=0.5)(item)["context"]
    flips = set()
    for item["seed"] in range(12):
        output = mapper(**options, plain_context=True)(item)
        assert torch.equal(output["context"], plain)
        flips.add(output["context_flip"])
        # apart from the context it is the same sample
        other = mapper(**options)(item)
        assert torch.equal(output["image"], other["image"]) and output["crop"] == other["crop"]
        assert torch.equal(output["sem_seg"], other["sem_seg"]) and other["context_flip"] is False
        assert not torch.equal(other["context"], plain)
    assert flips == {False, True}


# ---- colour --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_crop_and_context_get_one_draw_of_colour(write, image_format):
    """A flat image stays flat: its one colour must be the same in both."""
    flat = np.broadcast_to(np.array([180, 90, 40], np.uint8), (40, 60, 3)).copy()
    item = write(flat, blocks(40, 60))
    colours = set()
    for item["seed"] in range(12):
        output = mapper(
            crop_size=(16, 16), context_scale=0.5, color_aug=True, image_format=image_format
        )(item)
        seen = {tuple(p) for k in ("image", "context") for p in output[k].flatten(1).t().tolist()}
        assert len(seen) == 1
        colours |= seen
    assert len(colours) > 6


def test_channel_order(write):
    item = write(ramp(), blocks())
    rgb, bgr = (mapper(image_format=order)(item)["image"] for order in ("RGB", "BGR"))
    assert torch.equal(rgb, bgr.flip(0)) and rgb[2].unique().tolist() == [7]


# ---- seeds ---------------------------------------------------------------------------------------


def test_a_seed_makes_a_sample(write):
    item = write(noise(), blocks())
    augment = mapper(
        crop_size=(40, 40), context_scale=0.5, resize_range=(0.5, 2.0), flip=True, color_aug=True
    )
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    first = augment(item)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # left as they were
    random.random(), np.random.rand()
    second = augment(item)
    third = augment({**item, "seed": 1})
    for key in ("image", "context", "sem_seg"):
        assert torch.equal(first[key], second[key])
    assert first["crop"] == second["crop"] != third["crop"]
    assert "seed" not in first


def test_without_a_seed_the_generators_run_on(write):
    item = write(noise(), blocks())
    del item["seed"]
    augment = mapper(crop_size=(40, 40), context_scale=0.5)
    assert len({augment(item)["crop"] for _ in range(8)}) > 3


def test_the_dataset_dict_is_left_as_it_was(write):
    item = write(noise(), blocks())
    before = dict(item)
    mapper(context_scale=0.5)(item)
    assert item == before


# ---- inference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, size", [(1.0, (121, 200)), (0.25, (30, 50)), (0.3, (36, 60))])
def test_inference_sizes(write, scale, size):
    image = noise(121, 200)
    item = write(image, blocks(121, 200))
    item.pop("seed")
    output = mapper(is_train=False, scale=scale, crop_size=(8, 8), flip=True)(item)
    assert (output["height"], output["width"]) == (121, 200)
    assert output["image"].shape == (3, *size) and output["image"].dtype == torch.uint8
    assert "sem_seg" not in output and output["file_name"] == item["file_name"]
    expected = Image.fromarray(image).resize(size[::-1], Image.BILINEAR)
    assert np.array_equal(output["image"].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_inference_needs_no_labels(write, tmp_path):
    item = write(noise(), blocks())
    output = mapper(is_train=False)({"file_name": item["file_name"]})
    assert output["image"].shape == (3, HEIGHT, WIDTH)


def test_from_config(make_cfg, write):
    """SparseRefine gets the native image whatever INPUT.SCALE says; a dense model does not."""
    item = write(noise(), blocks())
    cfg = make_cfg("INPUT.SCALE", 0.5)
    output = SegmentationMapper(cfg, is_train=False)(item)
    assert output["image"].shape == (3, HEIGHT, WIDTH)
    output = SegmentationMapper(cfg, is_train=True)(item)
    assert output["image"].shape == (3, 24, 32) and "context" in output
    dense = make_cfg("INPUT.SCALE", 0.5, "MODEL.META_ARCHITECTURE", "TinyBase")
    assert SegmentationMapper(dense, is_train=False)(item)["image"].shape == (3, 60, 100)
    assert "context" not in SegmentationMapper(dense, is_train=True)(item)


# ---- errors --------------------------------------------------------------------------------------


def test_a_label_that_is_no_class_stops_with_file_and_value(write):
    labels = blocks()
    labels[30, 40] = 7
    with pytest.raises(ValueError, match=r"label\.png.*\b7\b"):
        mapper()(write(ramp(), labels))


def test_images_and_labels_of_different_sizes(write):
    with pytest.raises(ValueError, match=r"(?s)label\.png.*image\.png") as error:
        mapper()(write(ramp(), blocks(60, 100)))
    assert all(str(number) in str(error.value) for number in (120, 200, 60, 100))
