# SPDX-License-Identifier: Apache-2.0
"""The pretrained extractor and a base that changes a feature map after a convolution has read it:
noticed in every mode of autograd, in inference mode too, where tensors do not count changes."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.extractors import PretrainedExtractor
from sparse_refine.selector import BudgetSelector
from sparse_refine.sparse_inference import UnsupportedOperation

MODES = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


class Backbone(nn.Module):
    size_divisibility = 8

    def __init__(self, changes):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.next = nn.Conv2d(6, 6, 3, padding=1)
        self.changes = changes

    def forward(self, x):
        y = self.stem(x)
        z = self.next(y)
        return F.relu(y, inplace=self.changes) + z


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.predictor = nn.Conv2d(6, 3, 1)

    def forward(self, features, targets=None):
        return self.predictor(features), {}


class Dense(nn.Module):
    """With the parts of Detectron2's SemanticSegmentor that the extractor asks for."""

    def __init__(self, changes):
        super().__init__()
        self.backbone, self.sem_seg_head = Backbone(changes), Head()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 127.0))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), 64.0))

    def forward(self, inputs):
        outputs = []
        for item in inputs:
            pixels = (item["image"] - self.pixel_mean) / self.pixel_std
            outputs.append({"sem_seg": self.sem_seg_head(self.backbone(pixels[None]))[0][0]})
        return outputs


def refiner(changes) -> SparseRefine:
    torch.manual_seed(0)
    dense = Dense(changes)
    return SparseRefine.wrap(
        dense,
        num_classes=3,
        selector=BudgetSelector(fraction=0.3),
        extractor=PretrainedExtractor(model=dense, base=dense, num_classes=3),
    ).eval()


@pytest.fixture
def item():
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=generator)}


@pytest.mark.parametrize("mode", MODES)
def test_a_map_that_is_changed_is_said(item, mode):
    with MODES[mode](), pytest.raises(UnsupportedOperation, match="in place, after it has been re"):
        refiner(True)([item])


@pytest.mark.parametrize("mode", MODES)
def test_the_same_answer_in_every_mode(item, mode):
    (expected,) = refiner(False)([item])
    with MODES[mode]():
        inside = {"image": item["image"].clone()}  # made in that mode, too
        (found,) = refiner(False)([inside])
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
