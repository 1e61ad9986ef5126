# SPDX-License-Identifier: Apache-2.0
"""SparseRefine by hand: outputs, losses, what is logged, the place of a crop."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from sparse_refine import Refinement, SparseRefine
from sparse_refine.losses import LossWeights
from sparse_refine.resampling import downsample, low_size

from .models import (
    LN3,
    METHOD,
    SCORES,
    SELECT,
    Recorder,
    image_of,
    model_of_two_classes,
    training_item,
)


def test_forward_by_hand():
    extractor = Recorder(LN3, 0.0)
    model = model_of_two_classes(extractor, SCORES).eval()
    image = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    (output,) = model([{"image": image}])

    refinement = output["refinement"]
    assert isinstance(refinement, Refinement)
    assert refinement.sites.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert refinement.selected_fraction == 0.5
    assert refinement.coarse.tolist() == [0, 0, 0, 0]
    assert refinement.refined.tolist() == refinement.fused.tolist() == [0, 0, 0, 0]
    assert refinement.labels.tolist() == [[1, 1, 0, 0]] * 2
    assert refinement.entropy.tolist() == [
        [pytest.approx(1.753e-7, rel=0.01), pytest.approx(0.693147)]
    ]
    # the refined logits, more certain than an even pair, stand at the sites
    assert output["sem_seg"].shape == (2, 2, 4)
    assert output["sem_seg"][:, 0, 0].tolist() == [-9, 9]
    assert output["sem_seg"][:, 1, 3].tolist() == [pytest.approx(LN3), 0]

    # what the extractor saw: pixel 2 of the first row is (2, 10, 18), of the second (6, 14, 22)
    assert extractor.given["pixels"][0].tolist() == [2, 10, 18]
    assert extractor.given["pixels"][2].tolist() == [6, 14, 22]
    assert extractor.given["coarse"].tolist() == [[0, 0]] * 4
    # (y, x) of pixel centres: (0.5 / 2, 2.5 / 4) on 0..1, twice that minus 1
    assert extractor.given["position"][0].tolist() == pytest.approx([-0.5, 0.25])
    assert extractor.given["position"][3].tolist() == pytest.approx([0.5, 0.75])
    assert extractor.sites.tolist() == [[0, 0, 2], [0, 0, 3], [0, 1, 2], [0, 1, 3]]
    assert list(map(tuple, extractor.sizes)) == [(2, 4)]


@pytest.mark.parametrize(
    "options, expected",
    [
        # labels at the sites: 0, 1, ignored, 0; refined and fused are (3/4, 1/4) everywhere:
        # (2 * 0.287682 + 1.386294) / 3
        ({}, {"loss_refined": 0.653886, "loss_fused": 0.653886}),
        (
            {"refined": 0.5, "fused": 2.0},
            {"loss_refined": 0.326943, "loss_fused": 1.307772},
        ),
        ({"refined": 0.0}, {"loss_refined": 0.0, "loss_fused": 0.653886}),
        (
            # class 0: (2 * 1.5 + 1) / (2.25 + 2 + 1), class 1: (2 * 0.25 + 1) / (0.75 + 1 + 1)
            {"fused": 0.0, "dice": 1.0},
            {"loss_refined": 0.653886, "loss_dice": 1 - (4 / 5.25 + 1.5 / 2.75) / 2},
        ),
    ],
)
def test_losses_by_hand(options, expected):
    weights = LossWeights(**options)
    model = model_of_two_classes(Recorder(LN3, 0.0), SCORES, loss_weights=weights).train()
    labels = torch.tensor([[1, 0, 0, 1], [1, 255, 255, 0]])
    losses = model([{"image": torch.zeros(3, 2, 4), "sem_seg": labels}])
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, abs=1e-5)


def test_log_by_hand():
    model = model_of_two_classes(Recorder(0.0, LN3), SCORES).train()
    labels = torch.tensor([[1, 0, 0, 1], [1, 255, 255, 1]])
    with EventStorage() as storage:
        model([{"image": torch.zeros(3, 2, 4), "sem_seg": labels}])
        logged = {name: value for name, (value, _) in storage.latest().items()}
    # coarse ties go to class 0, refined says 1; valid labels at the sites: 0, 1, 1
    assert {name.split("]")[-1].strip(): value for name, value in logged.items()} == pytest.approx(
        {
            "selected/fraction": 0.5,
            "selected/accuracy_coarse": 1 / 3,
            "selected/accuracy_refined": 2 / 3,
            "selected/accuracy_fused": 2 / 3,
        }
    )


def test_a_crop_reads_its_place_in_the_whole_image():
    extractor = Recorder(LN3, 0.0)
    model = model_of_two_classes(extractor, SCORES).train()
    crop = {
        "image": torch.zeros(3, 2, 3),
        "sem_seg": torch.zeros(2, 3, dtype=torch.int64),
        "context": torch.zeros(3, 1, 2),
        "crop": (1, 4, 5, 8),  # of 8 columns 4 and more lie in the right low pixel
    }
    model([crop])
    assert extractor.sites.tolist() == [[0, y, x] for y in range(2) for x in range(3)]
    # pixel (0, 0) of the crop is (1, 4) of 5 x 8
    assert extractor.given["position"][0].tolist() == pytest.approx(
        [2 * 1.5 / 5 - 1, 2 * 4.5 / 8 - 1]
    )
    model([{**crop, "crop": (1, 2, 5, 8)}])
    assert extractor.sites.tolist() == [[0, 0, 2], [0, 1, 2]]


def test_class_counts_that_differ_give_both_numbers():
    model = model_of_two_classes(Recorder(0.0, 0.0), torch.zeros(19, 1, 2)).eval()
    with pytest.raises(ValueError, match=r"19 classes .* is 2"):
        model([{"image": image_of(2, 4)}])


def test_a_crop_that_is_the_whole_image(make_cfg):
    """The same losses and gradients as without context and crop."""
    model = SparseRefine(make_cfg(SELECT, 0.8, METHOD + "BASE.SCALE", 0.4)).train()
    item = training_item(21, 34)
    context = downsample(item["image"], low_size((21, 34), 0.4))
    results = []
    for given in (item, {**item, "context": context, "crop": (0, 0, 21, 34)}):
        model.zero_grad()
        losses = model([given])
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.requires_grad]
        results.append((losses, gradients))
    assert {k: v.item() for k, v in results[0][0].items()} == {
        k: v.item() for k, v in results[1][0].items()
    }
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1]))


def test_a_crop_selects_and_reads_what_the_whole_image_does(make_cfg):
    model = SparseRefine(make_cfg(SELECT, 0.8, METHOD + "BASE.SCALE", 0.3)).train()
    model.extractor = Recorder(0.0, 1.0, 2.0)
    item = training_item(41, 50)
    context = downsample(item["image"], low_size((41, 50), 0.3))
    model([item])
    whole = model.extractor.given, model.extractor.sites
    for top, left, height, width in [
        (0, 0, 20, 20),
        (7, 13, 30, 31),
        (40, 49, 1, 1),
        (5, 0, 36, 50),
    ]:
        window = slice(top, top + height), slice(left, left + width)
        crop = {
            "image": item["image"][:, window[0], window[1]],
            "sem_seg": item["sem_seg"][window],
            "context": context,
            "crop": (top, left, 41, 50),
        }
        model([crop])
        y, x = whole[1][:, 1] - top, whole[1][:, 2] - left
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        assert torch.equal(model.extractor.sites[:, 1:], torch.stack([y, x], 1)[inside])
        for name in ("pixels", "coarse", "position"):
            assert torch.equal(model.extractor.given[name], whole[0][name][inside])
