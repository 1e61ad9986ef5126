# SPDX-License-Identifier: Apache-2.0
"""The coarse pass: scores to logits, what the base is given, and that it stays frozen."""

import pytest
import torch
from torch import nn

from sparse_refine import ModuleSegmentor
from sparse_refine.coarse import CoarsePass, to_logits
from sparse_refine.resampling import argmax_labels, downsample
from sparse_refine.selector import EntropySelector, entropy
from sparse_refine.sites import View


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
            found[temperature] = output.logits
        torch.testing.assert_close(found[2.5], found[1.0] / 2.5)
        assert torch.equal(argmax_labels(found[2.5]), argmax_labels(found[1.0]))
        assert (entropy(found[2.5]) > entropy(found[1.0])).all()  # less sure of itself


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
    logits = module([{"image": torch.zeros(3, 4, 4)}])[0].logits
    assert logits.softmax(0)[:, 0, 1].tolist() == pytest.approx([0.7, 0.2, 0.1])


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
    assert output.others == {"panoptic_seg": panoptic, "instances": "some"}


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


# ---- what would be read the wrong way ------------------------------------------------------------


class Normalizing(Recorder):
    """Says what range of values it takes, as Detectron2's models do."""

    def __init__(self, mean, std):
        super().__init__(torch.randn(3, 4, 5))
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), mean))
        self.register_buffer("pixel_std", torch.full((3, 1, 1), std))


@pytest.mark.parametrize(
    "mean, std, image, warned",
    [
        (127.0, 64.0, torch.rand(3, 8, 10), True),
        (103.5, 1.0, torch.rand(3, 8, 10), True),
        (0.0, 255.0, torch.rand(3, 8, 10), True),
        (0.45, 0.22, torch.rand(3, 8, 10), False),
        (127.0, 64.0, torch.rand(3, 8, 10) * 255, False),
        (127.0, 64.0, torch.ones(3, 8, 10, dtype=torch.uint8), False),  # nearly black
        (127.0, 64.0, torch.zeros(3, 8, 10), False),
    ],
)
def test_images_in_0_to_1(caplog, mean, std, image, warned):
    module = coarse_pass(Normalizing(mean, std))
    module([{"image": image}])
    assert ("floating point values in 0..1" in caplog.text) == warned
    caplog.clear()
    module([{"image": image}])  # said once
    assert not caplog.text


@pytest.mark.parametrize(
    "scores, warned",
    [
        (torch.rand(3, 4, 5), True),
        (torch.randn(3, 4, 5), False),
        (torch.rand(3, 4, 5) * 9, False),
        (torch.zeros(3, 4, 5), False),  # of a layer that starts at zero
    ],
)
def test_a_base_that_ends_in_a_sigmoid(caplog, scores, warned):
    coarse_pass(Recorder(scores))([{"image": torch.zeros(3, 8, 10)}])
    assert ("SCORE_TYPE" in caplog.text and "sigmoid" in caplog.text) == warned
    caplog.clear()
    coarse_pass(Recorder(scores.clamp(0)), score_type="probabilities")(
        [{"image": torch.zeros(3, 8, 10)}]
    )
    assert not caplog.text


def test_a_base_that_somebody_puts_in_training_mode():
    base = nn.Sequential(nn.BatchNorm2d(3))
    module = coarse_pass(ModuleSegmentor(base, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1)))
    before = base[0].running_mean.clone()
    module.base.train()
    module([{"image": torch.rand(3, 8, 10) * 255}])
    assert torch.equal(base[0].running_mean, before) and not base[0].training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_softmax_in_any_precision_is_no_logits(dtype):
    """Its sum is 1 to the precision's last bits."""

    class Softmax(nn.Module):
        def forward(self, inputs):
            scores = torch.randn(11, 20, 30, generator=torch.Generator().manual_seed(0))
            return [{"sem_seg": scores.softmax(0).to(dtype)} for _ in inputs]

    coarse = CoarsePass(base=Softmax(), num_classes=11, scale=0.5)
    with pytest.raises(ValueError, match="SCORE_TYPE .*'probabilities'"):
        coarse([{"image": torch.zeros(3, 40, 60)}])


def test_the_context_of_a_crop_that_was_turned():
    """Cached logits know no flip: they and the image that they belong to are turned together."""
    scores = torch.arange(18.0).view(3, 2, 3)
    coarse = coarse_pass(Recorder(scores))
    context = torch.rand(3, 2, 3)
    item = {"image": torch.zeros(3, 4, 6), "context": context, "context_flip": True}
    (output,) = coarse([item])
    assert torch.equal(output.context, context.flip(-1))
    assert torch.equal(output.logits, scores.flip(-1))


def test_scores_that_are_integers():
    base = Recorder(torch.randint(-5, 5, (3, 2, 3)))
    (output,) = coarse_pass(base)([{"image": torch.zeros(3, 4, 6)}])
    assert output.logits.dtype == torch.float32
