# SPDX-License-Identifier: Apache-2.0
"""`SparseRefine.wrap`: the way in without yaml."""

import pytest
import torch
from torch import nn

from sparse_refine import ModuleSegmentor, SparseRefine
from sparse_refine.ensembler import GatedEnsembler
from sparse_refine.extractors import SparseUNetExtractor
from sparse_refine.selector import BudgetSelector, EntropySelector

from .models import Given, image_of, training_item


class Plain(nn.Module):
    """A plain segmentation module of stride 2, as `wrap` takes them."""

    def __init__(self, classes=4, as_dict=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, classes, 1)
        self.as_dict = as_dict

    def forward(self, x):
        scores = self.head(self.stem(x))
        return {"out": scores, "aux": None} if self.as_dict else scores


@pytest.mark.parametrize("as_dict", [False, True], ids=["tensor", "torchvision's dict"])
def test_wrap_a_plain_module(as_dict):
    module = Plain(as_dict=as_dict)
    model = SparseRefine.wrap(
        module,
        num_classes=4,
        scale=0.5,
        size_divisibility=8,
        extractor=SparseUNetExtractor(num_classes=4, channels=(4, 8), backend="torch"),
        output="labels",
    )
    assert not any(parameter.requires_grad for parameter in module.parameters())
    losses = model.train()([training_item(26, 40, classes=4)])
    assert set(losses) == {"loss_refined", "loss_fused"} and not module.training
    (output,) = model.eval()([{"image": image_of(26, 40)}])
    assert output["labels"].shape == (26, 40) and len(output["refinement"].sites) > 0


def test_wrap_a_segmentor_of_ones_own():
    """What normalises and pads already is not wrapped twice."""
    segmentor = ModuleSegmentor(Plain(), pixel_mean=(1, 2, 3), size_divisibility=4)
    model = SparseRefine.wrap(segmentor, num_classes=4, interpolation="bilinear")
    assert model.coarse.base is segmentor and model.coarse.interpolation == "bilinear"
    (output,) = model.eval()([{"image": image_of(16, 20)}])
    assert output["sem_seg"].shape == (4, 16, 20)


def test_wrap_gives_the_paper_by_default():
    model = SparseRefine.wrap(Plain(), num_classes=4)
    assert isinstance(model.selector, EntropySelector) and model.selector.threshold == 0.3
    assert isinstance(model.ensembler, GatedEnsembler)
    assert model.extractor.classifier.weight.shape == (4, 32)
    (output,) = model.eval()([{"image": image_of(16, 20)}])
    assert output["sem_seg"].shape == (4, 16, 20)


def test_wrap_takes_an_empty_selector_as_given():
    """A part that is falsy in Python (an empty container module) is a part all the same."""

    class Nothing(nn.ModuleList):
        def forward(self, logits, view):
            return torch.zeros(0, 2, dtype=torch.int64)

    model = SparseRefine.wrap(Plain(), num_classes=4, selector=Nothing()).eval()
    (output,) = model([{"image": image_of(16, 20)}])
    assert len(output["refinement"].sites) == 0


def test_wrap_a_model_that_speaks_detectron2():
    scores = torch.randn(4, 8, 10)
    model = SparseRefine.wrap(Given(scores), num_classes=4, selector=BudgetSelector(count=0)).eval()
    (output,) = model([{"image": image_of(16, 20)}])
    expected = scores.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(output["sem_seg"], expected)


def test_wrap_a_class_count_that_does_not_fit():
    model = SparseRefine.wrap(Plain(classes=4), num_classes=5).eval()
    with pytest.raises(ValueError, match=r"4 classes .* is 5"):
        model([{"image": image_of(16, 20)}])
