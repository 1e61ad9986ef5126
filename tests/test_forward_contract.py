# SPDX-License-Identifier: Apache-2.0
"""What stands where in SparseRefine's forward: three predictions that all differ, by hand."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.coarse import CoarsePass
from sparse_refine.ensembler import GatedEnsembler, RefinedEnsembler
from sparse_refine.extractors import Extractor
from sparse_refine.losses import LossWeights
from sparse_refine.selector import EntropySelector

# Three classes over a 2 x 4 image at half size: the left pixel is sure of class 0, the right one
# is not, and says 0; refined says 1, with probabilities (1, 3, 1) / 5; fused 2, with (1, 1, 6) / 8.
SCORES = torch.tensor([[[9.0, 0.2]], [[0.0, 0.1]], [[0.0, 0.0]]])
COARSE, REFINED, FUSED = [0.2, 0.1, 0.0], [0.0, math.log(3), 0.0], [0.0, 0.0, math.log(6)]
LABELS = torch.tensor([[0, 0, 2, 255], [0, 0, 1, 2]])  # at the sites: 2, ignored, 1, 2


class Base(nn.Module):
    """SCORES, as wide as the image; `contexts` keeps all images that it saw."""

    def __init__(self):
        super().__init__()
        self.contexts, self.others = [], {}

    def forward(self, inputs):
        self.contexts += [item["image"] for item in inputs]
        widths = [item["image"].shape[-1] for item in inputs]
        return [{"sem_seg": SCORES[..., :width].clone(), **self.others} for width in widths]


class Given(nn.Module):
    """A row of logits for every site; keeps what it was called with."""

    def __init__(self, row):
        super().__init__()
        self.row = nn.Parameter(torch.tensor(row))

    def forward(self, *given):
        self.given = given
        return self.row.expand(4, -1)


class GivenExtractor(Given, Extractor):
    pass


def model_of(**options) -> SparseRefine:
    return SparseRefine(
        coarse=CoarsePass(base=Base(), num_classes=3, scale=0.5),
        selector=EntropySelector(threshold=0.5),
        extractor=GivenExtractor(REFINED),
        ensembler=Given(FUSED),
        **options,
    )


# ---- forward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_ensembler_gets_coarse_first_and_refined_second(training):
    model = model_of().train(training)
    model([{"image": torch.zeros(3, 2, 4), "sem_seg": LABELS}])
    coarse, refined = model.ensembler.given
    torch.testing.assert_close(coarse, torch.tensor([COARSE] * 4))
    assert torch.equal(refined, model.extractor.row.expand(4, -1))


def test_the_gate_reads_both_from_their_own_places():
    """A trained gate knows which is which: it was trained with the coarse logits first."""
    model = model_of().eval()
    model.ensembler = gate = GatedEnsembler(num_classes=3).eval()
    (output,) = model([{"image": torch.zeros(3, 2, 4)}])
    expected = gate(torch.tensor([COARSE]), torch.tensor([REFINED]))[0]
    other = gate(torch.tensor([REFINED]), torch.tensor([COARSE]))[0]
    torch.testing.assert_close(output["sem_seg"][:, 1, 3], expected)
    assert not torch.allclose(expected, other)


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_the_fused_prediction_is_the_answer(output):
    model = model_of(output=output).eval()
    (result,) = model([{"image": torch.zeros(3, 2, 4)}])
    labels = [[0, 0, 2, 2]] * 2
    if output == "labels":
        assert result["labels"].tolist() == labels
    else:
        assert result["sem_seg"].argmax(0).tolist() == labels
        assert torch.equal(result["sem_seg"][:, 0, 2], torch.tensor(FUSED))
    record = result["refinement"]
    assert record.labels.tolist() == labels
    assert record.coarse.tolist() == [0] * 4
    assert record.refined.tolist() == [1] * 4
    assert record.fused.tolist() == [2] * 4
    assert record.label_map("refined").tolist() == [[0, 0, 1, 1]] * 2
    assert record.selected().tolist() == [[False, False, True, True]] * 2


def test_losses_of_predictions_that_differ():
    # of labels 2, 1, 2: refined has 1/5, 3/5, 1/5, fused 6/8, 1/8, 6/8
    refined = -(2 * math.log(1 / 5) + math.log(3 / 5)) / 3
    fused = -(2 * math.log(6 / 8) + math.log(1 / 8)) / 3
    # fused, class 1: (2 * 1/8 + 1) / (3/8 + 1 + 1); class 2: (2 * 12/8 + 1) / (18/8 + 2 + 1)
    dice = 1 - (1.25 / 2.375 + 4 / 5.25) / 2
    model = model_of(loss_weights=LossWeights(refined=0.5, fused=2.0, dice=3.0)).train()
    losses = model([{"image": torch.zeros(3, 2, 4), "sem_seg": LABELS}])
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {"loss_refined": 0.5 * refined, "loss_fused": 2 * fused, "loss_dice": 3 * dice}, abs=1e-5
    )


@pytest.mark.parametrize("name", ["refined", "fused", "dice"])
def test_each_loss_teaches_what_it_is_named_after(name):
    """The gradient of the refined loss stops at the extractor's logits, that of the others at the
    fused ones: nothing here connects the two."""
    weights = {"refined": 0.0, "fused": 0.0, "dice": 0.0, name: 1.0}
    model = model_of(loss_weights=LossWeights(**weights)).train()
    sum(model([{"image": torch.zeros(3, 2, 4), "sem_seg": LABELS}]).values()).backward()
    moved = {
        part: bool(module.row.grad.abs().sum() > 0)
        for part, module in (("refined", model.extractor), ("fused", model.ensembler))
    }
    assert moved == {"refined": name == "refined", "fused": name != "refined"}


def test_the_log_tells_the_three_apart():
    model = model_of().train()
    with EventStorage() as storage:
        model([{"image": torch.zeros(3, 2, 4), "sem_seg": LABELS}])
    logged = {name.rpartition("/")[2]: value for name, (value, _) in storage.latest().items()}
    expected = {"accuracy_coarse": 0, "accuracy_refined": 1 / 3, "accuracy_fused": 2 / 3}
    assert logged == pytest.approx({"fraction": 0.5, **expected})


def test_an_extractor_is_handed_what_the_base_saw():
    """The very tensors, by which one that listens to the base finds its feature maps again; each
    beside its own image, in a batch of two sizes."""
    model = model_of().eval()
    images = [torch.full((3, 2, 4), 10.0), torch.full((3, 2, 2), 20.0), torch.full((3, 2, 4), 30.0)]
    (given,) = extractor_arguments(model, [{"image": image} for image in images])
    for image, context in zip(images, given.contexts):
        assert any(context is seen for seen in model.coarse.base.contexts)
        assert context.mean().item() == pytest.approx(image.mean().item())
        assert context.shape[-1] == image.shape[-1] // 2
    assert all(torch.equal(one, two) for one, two in zip(given.images, images))


def test_crops_of_a_batch_keep_their_places():
    """Of whole images of 2 x 4 and 4 x 8 pixels, each with its context at half size."""
    crops = [(0, 2, 2, 4), (1, 5, 4, 8)]
    contexts = [torch.zeros(3, 1, 2), torch.zeros(3, 2, 4)]
    model = model_of().train()
    pixels = {"image": torch.zeros(3, 2, 2), "sem_seg": torch.zeros(2, 2, dtype=torch.int64)}
    inputs = [{**pixels, "context": c, "crop": crop} for c, crop in zip(contexts, crops)]
    (given,) = extractor_arguments(model, inputs)
    places = [(view.top, view.left, *view.full) for view in given.views]
    assert places == crops and given.sites.sizes == [(2, 2), (2, 2)]
    first = given.position()[0].tolist()  # the centre of pixel (0, 2) of 2 x 4
    assert first == pytest.approx([2 * 0.5 / 2 - 1, 2 * 2.5 / 4 - 1])


def test_what_stays_frozen_is_the_base_and_what_the_extractor_says():
    model = model_of()
    assert model.frozen == ("coarse.base.",)
    model.extractor.frozen = ("teacher.",)
    assert model.frozen == ("coarse.base.", "extractor.teacher.")


def extractor_arguments(model, inputs):
    """What the extractor is called with; the rest of forward is left out."""

    class Stop(Exception):
        pass

    def stop(module, args):
        raise Stop(args)

    model.extractor.register_forward_pre_hook(stop)
    with pytest.raises(Stop) as stopped:
        model(inputs)
    return stopped.value.args[0]


def test_other_outputs_come_at_the_size_that_is_asked_for():
    """The base's map (1,2) of an image of 2 x 4, wanted at 4 x 8."""
    model = model_of().eval()
    model.coarse.base.others = {"panoptic_seg": (torch.tensor([[1, 2]]), None)}
    (result,) = model([{"image": torch.zeros(3, 2, 4), "height": 4, "width": 8}])
    assert result["panoptic_seg"][0].tolist() == [[1] * 4 + [2] * 4] * 4


# ---- wrap ----------------------------------------------------------------------------------------


def test_wrap_hands_on_what_it_is_given():
    module = nn.Conv2d(3, 4, 1)
    statistics = {"pixel_mean": (1.0, 2.0, 3.0), "pixel_std": (4.0, 5.0, 6.0)}
    options = {"scale": 0.25, "score_type": "scores", "interpolation": "bilinear"}
    model = SparseRefine.wrap(
        module, num_classes=4, size_divisibility=8, output="labels", **statistics, **options
    )
    coarse, base = model.coarse, model.coarse.base
    assert {name: getattr(coarse, name) for name in options} == options
    assert base.pixel_mean.flatten().tolist() == [1, 2, 3]
    assert base.pixel_std.flatten().tolist() == [4, 5, 6]
    assert base.size_divisibility == 8 and model.output == "labels"
    assert model.extractor.pixel_mean.tolist() == [[1, 2, 3]]
    assert model.extractor.pixel_std.tolist() == [[4, 5, 6]]


def test_wrap_puts_a_gate_beside_what_is_trained_and_none_beside_what_is_not():
    for trained, kind in ((True, GatedEnsembler), (False, RefinedEnsembler)):
        extractor = GivenExtractor([0.0] * 4).requires_grad_(trained)
        model = SparseRefine.wrap(nn.Conv2d(3, 4, 1), num_classes=4, extractor=extractor)
        assert type(model.ensembler) is kind
