# SPDX-License-Identifier: Apache-2.0
"""What the base sees of an image is the same in training and at inference, bit for bit."""

import pytest
import torch
from PIL import Image

from sparse_refine import SparseRefine
from sparse_refine.data import SegmentationMapper
from sparse_refine.resampling import low_size, nearest_index

from .painted import HEIGHT, WIDTH, blocks, mapper, noise


@pytest.fixture
def seen(make_cfg):
    """seen(scale, item) -> what SparseRefine's base is given of the item."""

    def run(scale, item):
        model = SparseRefine(make_cfg("MODEL.SPARSE_REFINE.BASE.SCALE", scale)).eval()
        model.coarse([item])
        ((call,),) = model.coarse.base.calls
        return call["image"]

    return run


@pytest.mark.parametrize("scale", [0.25, 0.3, 0.5, 0.625, 1.0])
@pytest.mark.parametrize("kept", [0, 1], ids=["read each time", "kept in memory"])
def test_training_and_inference_see_the_same_bits(write, seen, scale, kept):
    item = write(noise(), blocks())
    train = mapper(
        crop_size=(40, 48), context_scale=scale, cache_images=kept, plain_context=bool(kept)
    )
    outputs = [train({**item, "seed": seed}) for seed in range(2)]
    test = SegmentationMapper(is_train=False, num_classes=3, ignore_label=255)(item)
    expected = seen(scale, test)
    assert expected.dtype == torch.float32
    assert tuple(expected.shape[1:]) == low_size((HEIGHT, WIDTH), scale)
    for output in outputs:
        assert torch.equal(output["context"], expected)
        assert torch.equal(seen(scale, output), expected)


def test_whole_steps_of_grey_are_kept(write):
    """An image of 8 bits is not rounded to 8 bits again after it has been shrunk."""
    context = mapper(context_scale=0.5)(write(noise(), blocks()))["context"]
    assert (context != context.round()).float().mean() > 0.5


@pytest.mark.parametrize("scale", [0.3, 0.625, 1.7])
def test_labels_are_read_by_the_one_nearest_rule(write, scale):
    """As logits are: the pixel in which the centre lies."""
    item = write(noise(), blocks())
    target = mapper(resize_range=(scale, scale))(item)["sem_seg"]
    height, width = low_size((HEIGHT, WIDTH), scale)
    rows, columns = nearest_index(height, HEIGHT), nearest_index(width, WIDTH)
    expected = torch.from_numpy(blocks()).long()[rows][:, columns]
    assert torch.equal(target, expected)


@pytest.mark.parametrize("scale", [0.25, 0.625])
def test_an_image_of_a_file_and_its_pixels(write, seen, scale):
    item = write(noise(), blocks())
    test = SegmentationMapper(is_train=False, num_classes=3, ignore_label=255)(item)
    with Image.open(item["file_name"]) as image:
        assert image.size == (WIDTH, HEIGHT)
    pixels = torch.from_numpy(noise()).permute(2, 0, 1)
    assert torch.equal(seen(scale, test), seen(scale, {"image": pixels}))
