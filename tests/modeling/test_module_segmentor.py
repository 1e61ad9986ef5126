# SPDX-License-Identifier: Apache-2.0
"""A plain module behind Detectron2's contract: normalisation, padding, sizes, what it returns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine import ModuleSegmentor


class Echo(nn.Module):
    """Scores that are its input; keeps what it saw. `stride` answers at a lower resolution."""

    def __init__(self, stride=1, key=None):
        super().__init__()
        self.stride, self.key = stride, key

    def forward(self, x):
        self.seen = x
        scores = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return scores if self.key is None else {self.key: scores, "aux": None}


def plain(module, **options):
    return ModuleSegmentor(module, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1), **options).eval()


def image_of(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_normalisation_by_hand():
    echo = Echo()
    model = ModuleSegmentor(echo, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(2.0, 4.0, 5.0)).eval()
    image = torch.tensor([12, 12, 40], dtype=torch.uint8).view(3, 1, 1)
    (output,) = model([{"image": image}])
    assert echo.seen.flatten().tolist() == [1, -2, 2] and echo.seen.dtype == torch.float32
    assert output["sem_seg"].flatten().tolist() == [1, -2, 2]


def test_numbers_may_be_integers():
    model = ModuleSegmentor(Echo(), pixel_mean=(10, 20, 30), pixel_std=(2, 4, 5)).eval()
    (output,) = model([{"image": torch.full((3, 1, 1), 35, dtype=torch.uint8)}])
    assert output["sem_seg"].flatten().tolist() == [12.5, 3.75, 1]


@pytest.mark.parametrize("divisibility, padded", [(1, (13, 21)), (8, (16, 24)), (32, (32, 32))])
def test_padding_goes_in_and_comes_off(divisibility, padded):
    echo, image = Echo(), image_of(13, 21)
    (output,) = plain(echo, size_divisibility=divisibility)([{"image": image}])
    assert echo.seen.shape == (1, 3, *padded)
    assert torch.equal(output["sem_seg"], image.float())
    assert echo.seen[0, :, 13:].abs().sum() == 0 and echo.seen[0, :, :, 21:].abs().sum() == 0


def test_images_of_different_sizes():
    sizes = [(13, 21), (30, 8), (5, 5)]
    images = [image_of(*size) for size in sizes]
    outputs = plain(Echo(), size_divisibility=4)([{"image": image} for image in images])
    for image, output in zip(images, outputs):
        assert torch.equal(output["sem_seg"], image.float())


@pytest.mark.parametrize("key", [None, "out"])
def test_scores_of_a_lower_resolution_are_brought_up(key):
    image = image_of(16, 24)
    (output,) = plain(Echo(stride=4, key=key))([{"image": image}])
    small = F.avg_pool2d(image[None].float(), 4)
    expected = F.interpolate(small, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(output["sem_seg"], expected[0])


def test_scores_of_a_lower_resolution_are_cut_after_they_are_brought_up():
    """The padding belongs to the small scores too."""
    image = image_of(13, 21)
    (output,) = plain(Echo(stride=4), size_divisibility=8)([{"image": image}])
    padded = F.pad(image.float(), (0, 3, 0, 3))
    small = F.avg_pool2d(padded[None], 4)
    expected = F.interpolate(small, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(output["sem_seg"], expected[0, :, :13, :21])


def test_height_and_width_of_the_input_are_honoured():
    image = image_of(10, 12)
    (output,) = plain(Echo())([{"image": image, "height": 30, "width": 18}])
    expected = F.interpolate(image[None].float(), (30, 18), mode="bilinear", align_corners=False)
    assert torch.allclose(output["sem_seg"], expected[0], atol=1e-4)


@pytest.mark.parametrize(
    "returned, named",
    [
        (lambda x: {"logits": x}, "NoneType"),
        (lambda x: [x], "list"),
        (lambda x: x.argmax(1), r"\(1, 4, 5\)"),
    ],
)
def test_what_is_no_class_scores(returned, named):
    class Other(nn.Module):
        def forward(self, x):
            return returned(x)

    with pytest.raises(ValueError, match=rf"Other returned {named}.*'out'"):
        plain(Other())([{"image": image_of(4, 5)}])


def test_the_modules_state_is_its_own():
    """No normalisation among the weights: a checkpoint of the module loads under one prefix."""
    model = ModuleSegmentor(nn.Conv2d(3, 2, 1)).eval()
    assert set(model.state_dict()) == {"module.weight", "module.bias"}
