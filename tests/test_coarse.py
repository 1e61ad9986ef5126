# SPDX-License-Identifier: Apache-2.0
"""The coarse pass: downsampling, scores to logits, reading at full resolution, frozen base."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine.coarse import CoarsePass, View, downsample, low_size, to_logits
from sparse_refine.labels import argmax_labels
from sparse_refine.selector import EntropySelector, entropy

SIZES = [((3, 4), (6, 8)), ((4, 5), (4, 5)), ((2, 3), (5, 7)), ((5, 3), (13, 11)), ((1, 1), (3, 2))]


class Recorder(nn.Module):
    """Returns given scores, and keeps what it was given."""

    def __init__(self, scores, **others):
        super().__init__()
        self.scores, self.others, self.inputs = scores, others, None

    def forward(self, inputs):
        self.inputs = inputs
        assert not torch.is_grad_enabled()
        return [{"sem_seg": self.scores, **self.others} for _ in inputs]


def coarse_pass(base=None, **options):
    return CoarsePass(base=base or nn.Identity(), **{"num_classes": 3, "scale": 0.5, **options})


def whole(height, width):
    return View(0, 0, height, width, (height, width))


def test_temperature_divides_logits_and_keeps_labels():
    scores = torch.tensor([[2.0, -1.0], [1.0, 3.0], [0.0, 0.5]]).view(3, 1, 2)
    item = {"image": torch.zeros(3, 2, 4)}
    for score_type in ("logits", "scores"):
        found = {}
        for temperature in (1.0, 2.5):
            base = Recorder(scores.clamp(min=0) if score_type == "scores" else scores)
            options = {"score_type": score_type, "temperature": temperature}
            (output,) = coarse_pass(base, **options)([item])
            found[temperature] = output["sem_seg"]
        torch.testing.assert_close(found[2.5], found[1.0] / 2.5)
        assert torch.equal(argmax_labels(found[2.5]), argmax_labels(found[1.0]))
        assert (entropy(found[2.5]) > entropy(found[1.0])).all()  # less sure of itself


# ---- sizes and resampling ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, scale, expected",
    [
        ((2448, 3264), 0.25, (612, 816)),
        ((1024, 2048), 0.5, (512, 1024)),
        ((101, 51), 0.3, (30, 15)),
        ((7, 9), 1.0, (7, 9)),
        ((1, 3), 0.1, (1, 1)),
    ],
)
def test_low_size(size, scale, expected):
    assert low_size(size, scale) == expected


def test_downsample_is_antialiased():
    # At half size a low pixel weighs the four pixels around its centre by 1 3 3 1, over 8; without
    # antialiasing the edge would stay sharp: 0 0 8 8.
    row = torch.tensor([0, 0, 0, 0, 8, 8, 8, 8], dtype=torch.uint8)
    image = row.expand(3, 8, 8)
    assert downsample(image, (4, 4)) == pytest.approx(torch.tensor([0.0, 1, 7, 8]).expand(3, 4, 4))
    assert downsample(image.transpose(1, 2), (4, 4))[1, :, 2].tolist() == [0, 1, 7, 8]


def test_downsample_keeps_range_and_size():
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert torch.equal(downsample(image, (5, 7)), image.float())
    assert downsample(torch.full((3, 9, 11), 255, dtype=torch.uint8), (4, 3)) == pytest.approx(
        torch.full((3, 4, 3), 255.0)
    )


# ---- score types ---------------------------------------------------------------------------------


def test_logits_stay():
    logits = torch.randn(3, 4, 5)
    assert to_logits(logits, "logits") is logits


@pytest.mark.parametrize("score_type", ["probabilities", "scores"])
@pytest.mark.parametrize("total", [1.0, 10.0, 80.0])
def test_scores_become_a_distribution(score_type, total):
    scores = total * torch.tensor([0.7, 0.2, 0.1])[:, None, None]
    probabilities = to_logits(scores, score_type).softmax(0)
    assert probabilities.flatten().tolist() == pytest.approx([0.7, 0.2, 0.1], rel=1e-6)


@pytest.mark.parametrize("score_type", ["probabilities", "scores"])
def test_scores_of_zero_and_below(score_type):
    scores = torch.tensor([[1.0, 0.0, 30.0], [0.0, 0.0, -1e-4]])  # (K, pixels)
    logits = to_logits(scores, score_type)
    assert logits.isfinite().all()
    assert logits.softmax(0)[0].tolist() == pytest.approx([1, 0.5, 1])


def test_mask2former_scores_do_not_select_everything():
    """Class sums of 10 to 80, as Mask2Former gives; one pixel in a hundred is uncertain."""
    certain = torch.tensor([0.9996, 0.0002, 0.0002])
    scores = certain[:, None] * torch.linspace(10, 80, 100)
    scores[:, 50] = torch.tensor([20.0, 20.0, 0.0])
    logits = to_logits(scores[:, None], "scores")
    # 0.9996 ln 0.9996 and 2 * 0.0002 ln 0.0002: 0.0004 + 0.003407; an even pair: ln 2
    assert entropy(logits)[0, 0].item() == pytest.approx(0.003807, rel=1e-3)
    assert entropy(logits)[0, 50].item() == pytest.approx(0.693147, rel=1e-4)
    sites = EntropySelector(threshold=0.005)(logits, whole(1, 100))
    assert sites.tolist() == [[0, 50]]
    # taken for logits, a class sum of 1 (a small score over many classes) is nothing but doubt
    assert len(EntropySelector(threshold=0.005)(scores[:, None] / 80, whole(1, 100))) == 100


@pytest.mark.parametrize("score_type", ["probabilities", "scores"])
def test_score_type_is_applied_to_what_the_base_returns(score_type):
    scores = torch.tensor([28.0, 8.0, 4.0])[:, None, None].expand(3, 2, 2)
    module = coarse_pass(Recorder(scores), score_type=score_type)
    logits = module([{"image": torch.zeros(3, 4, 4)}])[0]["sem_seg"]
    assert logits.softmax(0)[:, 0, 1].tolist() == pytest.approx([0.7, 0.2, 0.1])


# ---- reading logits at full resolution -----------------------------------------------------------


def test_nearest_at_sites_by_hand():
    logits = torch.arange(12.0).view(2, 2, 3)  # class 0: 0..5, class 1: 6..11
    sites = torch.tensor([[0, 0], [2, 3], [3, 2], [4, 6]])
    # of 5 rows 0-2 lie in low row 0; of 7 columns 0-2 in low column 0, 3-4 in 1, 5-6 in 2
    values = coarse_pass().at_sites(logits, sites, whole(5, 7))
    assert values.tolist() == [[0, 6], [1, 7], [3, 9], [5, 11]]
    crop = View(1, 2, 4, 5, (5, 7))
    moved = coarse_pass().at_sites(logits, sites[1:] - torch.tensor([1, 2]), crop)
    assert torch.equal(moved, values[1:])


def test_bilinear_at_sites_by_hand():
    # Two low pixels over four: centres 0.5 and 2.5 in full pixels, 0 + 8 (x - 0.5) / 2 between them
    logits = torch.tensor([0.0, 8.0]).view(1, 1, 2)
    sites = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
    values = coarse_pass(interpolation="bilinear").at_sites(logits, sites, whole(1, 4))
    assert values.flatten().tolist() == pytest.approx([0, 2, 6, 8])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("low, full", SIZES)
def test_sites_full_logits_and_labels_agree_with_torch(interpolation, low, full):
    logits = torch.randn(3, *low)
    options = {} if interpolation == "nearest" else {"align_corners": False}
    expected = F.interpolate(logits[None], size=full, mode=interpolation, **options)[0]
    module = coarse_pass(interpolation=interpolation)

    sites = torch.ones(full).nonzero()
    values = module.at_sites(logits, sites, whole(*full))
    assert torch.allclose(values.t().reshape(3, *full), expected, atol=1e-5)
    assert torch.allclose(module.full_logits(logits, full), expected, atol=1e-6)
    labels = module.full_labels(logits, full)
    assert labels.dtype == torch.uint8 and labels.shape == full
    top = expected.topk(2, dim=0).values
    clear = (top[0] - top[1]) > 1e-4  # bilinear numbers differ in the last bits
    assert torch.equal(labels.long()[clear], expected.argmax(0)[clear])
    assert clear.float().mean() > 0.9

    crop = View(1, 1, full[0] - 1, full[1] - 1, full)
    inside = (sites >= 1).all(1)
    part = module.at_sites(logits, sites[inside] - 1, crop)
    assert torch.allclose(part, values[inside], atol=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_labels_of_a_tall_image_with_many_classes(interpolation):
    logits = torch.randn(300, 20, 2)
    module = coarse_pass(interpolation=interpolation, num_classes=300)
    labels = module.full_labels(logits, (601, 4))  # more rows than a strip of the bilinear way
    assert labels.dtype == torch.int16
    agree = labels.long() == module.full_logits(logits, (601, 4)).argmax(0)
    assert agree.float().mean() > 0.999 and labels.max() > 255


def test_labels_are_the_first_highest_score():
    scores = torch.tensor([[1.0, 5.0, 2.0, 7.0], [3.0, 5.0, 2.0, 7.0], [3.0, 4.0, 6.0, 8.0]])
    assert argmax_labels(scores[:, None]).tolist() == [[1, 0, 2, 2]]
    for classes, dtype in ((1, torch.uint8), (256, torch.uint8), (257, torch.int16)):
        many = torch.randn(classes, 4, 5)
        assert torch.equal(argmax_labels(many).long(), many.argmax(0))
        assert argmax_labels(many).dtype == dtype


def test_no_sites():
    none = torch.zeros(0, 2, dtype=torch.int64)
    for interpolation in ("nearest", "bilinear"):
        values = coarse_pass(interpolation=interpolation).at_sites(
            torch.randn(3, 2, 2), none, whole(4, 4)
        )
        assert values.shape == (0, 3)


# ---- the frozen base -----------------------------------------------------------------------------


def test_the_base_gets_the_small_image_and_its_size():
    base = Recorder(torch.randn(3, 4, 5))
    image = torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8)
    coarse_pass(base, scale=0.45)([{"image": image, "height": 99, "width": 99}])
    (given,) = base.inputs
    assert (given["height"], given["width"]) == tuple(given["image"].shape[1:]) == (4, 5)
    assert torch.equal(given["image"], downsample(image, (4, 5)))


def test_the_base_gets_the_context_where_there_is_one():
    base = Recorder(torch.randn(3, 4, 5))
    context = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    coarse_pass(base)([{"image": torch.zeros(3, 3, 3), "context": context, "crop": (1, 1, 9, 11)}])
    (given,) = base.inputs
    assert given["image"] is context and (given["height"], given["width"]) == (4, 5)


def test_other_outputs_pass_through():
    panoptic = (torch.ones(2, 2), [{"id": 1}])
    base = Recorder(torch.randn(3, 2, 2), panoptic_seg=panoptic, instances="some")
    (output,) = coarse_pass(base)([{"image": torch.zeros(3, 4, 4)}])
    assert output["panoptic_seg"] is panoptic and output["instances"] == "some"


def test_the_base_is_frozen_and_stays_in_eval_mode():
    base = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    module = coarse_pass(base)
    module.train()
    assert module.training and not any(part.training for part in base.modules())
    nn.ModuleList([module]).train()
    assert not any(part.training for part in base.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_class_count_that_does_not_fit_gives_both_numbers():
    module = coarse_pass(Recorder(torch.randn(19, 2, 2)))
    with pytest.raises(ValueError, match=r"Recorder predicts 19 .*NUM_CLASSES is 3"):
        module([{"image": torch.zeros(3, 4, 4)}])


def test_a_base_without_semantic_output():
    class Instances(nn.Module):
        def forward(self, inputs):
            return [{"instances": 1} for _ in inputs]

    with pytest.raises(ValueError, match=r"Instances returned \['instances'\] but no 'sem_seg'"):
        coarse_pass(Instances())([{"image": torch.zeros(3, 4, 4)}])
