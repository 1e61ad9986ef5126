# SPDX-License-Identifier: Apache-2.0
"""The mapper: cached images, plain contexts, colour, seeds, inference, errors."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_refine.data import SegmentationMapper

from .painted import HEIGHT, WIDTH, blocks, mapper, noise, ramp

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
