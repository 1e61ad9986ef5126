# SPDX-License-Identifier: Apache-2.0
"""SparseRefine as a whole: outputs, losses, the frozen base, training, checkpoints, `wrap`."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from torch import nn

from sparse_refine import ModuleSegmentor, Refinement, SparseRefine
from sparse_refine.coarse import CoarsePass
from sparse_refine.ensembler import EntropyEnsembler, GatedEnsembler
from sparse_refine.extractors import Extractor, SparseUNetExtractor
from sparse_refine.losses import LossWeights
from sparse_refine.resampling import downsample, low_size
from sparse_refine.selector import BudgetSelector, EntropySelector

LN3 = math.log(3)
METHOD = "MODEL.SPARSE_REFINE."
SELECT = METHOD + "SELECTOR.THRESHOLD"
# nothing, some and all of what TinyBase is unsure of (at most ln 3 = 1.0986)
THRESHOLDS = {"none": 2.0, "some": 0.8, "all": 0.0}


def image_of(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def training_item(height, width, seed=0, classes=3):
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.randint(0, classes, (height, width), generator=generator)
    labels[0, :3] = 255
    return {"image": image_of(height, width, seed), "sem_seg": labels}


class Given(nn.Module):
    """A base of fixed scores, without parameters."""

    def __init__(self, scores):
        super().__init__()
        self.register_buffer("scores", scores)
        self.sem_seg_head = None

    def forward(self, inputs):
        return [{"sem_seg": self.scores.clone()} for _ in inputs]


class Recorder(Extractor):
    """An extractor of fixed logits, one row for every site, that keeps its arguments."""

    def __init__(self, *row):
        super().__init__()
        self.row = nn.Parameter(torch.tensor(row))

    def forward(self, selection):
        self.given = {
            "pixels": selection.pixels(),
            "coarse": selection.coarse,
            "position": selection.position(),
        }
        self.sites, self.sizes = selection.sites.coordinates, selection.sites.sizes
        return self.row.expand(len(self.sites), -1)


def model_of_two_classes(extractor, scores, **options):
    return SparseRefine(
        coarse=CoarsePass(base=Given(scores), num_classes=2, scale=0.5),
        selector=EntropySelector(threshold=0.5),
        extractor=extractor,
        ensembler=EntropyEnsembler(),
        **options,
    )


# Two low pixels over a 2 x 4 image: the left one certain of class 1, with an entropy of
# e^-18 * -ln 1e-5 = 1.523e-8 * 11.513, the right one even.
SCORES = torch.tensor([[[-9.0, 0.0]], [[9.0, 0.0]]])


# ---- by hand -------------------------------------------------------------------------------------


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


# ---- what is selected, and what comes out --------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("scale", [0.5, 0.3, 1.0])
@pytest.mark.parametrize("selected", [*THRESHOLDS, "one"])
def test_logits_labels_and_the_record_agree(make_cfg, selected, scale, interpolation):
    """At odd sizes and non-integer scales; outside of the sites the coarse prediction stands."""
    options = [METHOD + "BASE.SCALE", scale, METHOD + "COARSE_INTERPOLATION", interpolation]
    if selected == "one":
        options += [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR.COUNT", 1]
    else:
        options += [SELECT, THRESHOLDS[selected]]
    model = SparseRefine(make_cfg(*options)).eval()
    image = image_of(37, 53)
    with torch.no_grad():
        (logits,) = model([{"image": image}])
        model.output = "labels"
        (labels,) = model([{"image": image}])
        small = downsample(image, low_size((37, 53), scale))
        coarse = model.coarse.base([{"image": small}])[0]["sem_seg"]
    model.output = "logits"

    refinement = logits["refinement"]
    count = len(refinement.sites)
    share = {"none": (0, 0), "one": (1, 1), "some": (2, 37 * 53 - 1), "all": (37 * 53,) * 2}
    assert share[selected][0] <= count <= share[selected][1]
    assert refinement.selected_fraction == count / (37 * 53)

    assert "labels" not in logits and "sem_seg" not in labels
    assert logits["sem_seg"].shape == (3, 37, 53) and labels["labels"].dtype == torch.uint8
    assert torch.equal(logits["sem_seg"].argmax(0), labels["labels"].long())
    assert torch.equal(labels["refinement"].labels, labels["labels"])
    assert torch.equal(refinement.labels, labels["refinement"].labels)
    assert torch.equal(refinement.label_map("fused"), refinement.labels)

    modes = {"nearest": {}, "bilinear": {"align_corners": False}}[interpolation]
    mode = {"nearest": "nearest-exact"}.get(interpolation, interpolation)
    full = F.interpolate(coarse[None], size=(37, 53), mode=mode, **modes)[0]
    outside = torch.ones(37, 53, dtype=torch.bool)
    outside[refinement.sites[:, 0], refinement.sites[:, 1]] = False
    assert torch.allclose(logits["sem_seg"][:, outside], full[:, outside], atol=1e-5)
    at_sites = full.argmax(0)[refinement.sites[:, 0], refinement.sites[:, 1]]
    assert (at_sites == refinement.coarse).float().mean().nan_to_num(1) > 0.99
    for kind in ("coarse", "refined", "fused"):
        labels_of_kind = refinement.label_map(kind)
        y, x = refinement.sites.unbind(1)
        assert torch.equal(labels_of_kind[y, x], getattr(refinement, kind))
        assert torch.equal(labels_of_kind[outside], refinement.labels[outside])


def test_label_map_of_an_unknown_kind(make_cfg):
    model = SparseRefine(make_cfg()).eval()
    refinement = model([{"image": image_of(8, 8)}])[0]["refinement"]
    with pytest.raises(ValueError, match="'gold': one of 'coarse', 'refined', 'fused'"):
        refinement.label_map("gold")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1), (5, 3)])
def test_the_smallest_images(make_cfg, size):
    model = SparseRefine(make_cfg(SELECT, 0.0)).eval()
    (output,) = model([{"image": image_of(*size)}])
    assert output["sem_seg"].shape == (3, *size)
    assert len(output["refinement"].sites) == size[0] * size[1]


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_a_batch_of_different_sizes_is_its_images_one_by_one(make_cfg, output):
    model = SparseRefine(make_cfg(SELECT, 0.8, METHOD + "OUTPUT", output)).eval()
    sizes = [(37, 53), (16, 16), (41, 9), (5, 60)]
    inputs = [{"image": image_of(*size, seed=i)} for i, size in enumerate(sizes)]
    inputs.append({"image": torch.full((3, 11, 13), 127, dtype=torch.uint8)})
    key = {"logits": "sem_seg", "labels": "labels"}[output]
    with torch.no_grad():
        together = model(inputs)
        for item, of_batch in zip(inputs, together):
            (alone,) = model([item])
            assert torch.equal(of_batch["refinement"].sites, alone["refinement"].sites)
            assert torch.equal(of_batch["refinement"].labels, alone["refinement"].labels)
            assert torch.allclose(of_batch[key].float(), alone[key].float(), atol=1e-5)
            assert of_batch["panoptic_seg"] == alone["panoptic_seg"]
    assert len({len(out["refinement"].sites) for out in together}) > 2


def test_a_base_that_pads_does_not_see_the_batch():
    """Padding to the largest image would change the smaller ones' coarse logits."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    model = SparseRefine.wrap(
        module,
        num_classes=4,
        selector=BudgetSelector(count=50),
        extractor=SparseUNetExtractor(num_classes=4, channels=(4,), backend="torch"),
    ).eval()
    sizes = [(20, 30), (33, 17), (20, 30), (40, 40)]
    inputs = [{"image": image_of(*size, seed=i)} for i, size in enumerate(sizes)]
    with torch.no_grad():
        for item, of_batch in zip(inputs, model(inputs)):
            (alone,) = model([item])
            assert torch.allclose(of_batch["sem_seg"], alone["sem_seg"], atol=1e-5)


def test_pixels_that_are_not_selected_do_not_matter(make_cfg):
    """The refiner sees the selected pixels and nothing else of the large image."""
    model = SparseRefine(make_cfg(SELECT, 0.8)).eval()
    image = image_of(24, 32)
    context = downsample(image, (12, 16))
    sites = model([{"image": image, "context": context}])[0]["refinement"].sites
    assert 0 < len(sites) < 24 * 32
    other = torch.zeros_like(image)
    other[:, sites[:, 0], sites[:, 1]] = image[:, sites[:, 0], sites[:, 1]]
    first, second = (model([{"image": x, "context": context}])[0] for x in (image, other))
    assert torch.equal(first["sem_seg"], second["sem_seg"])


def test_other_outputs_of_the_base_pass_through(make_cfg):
    model = SparseRefine(make_cfg()).eval()
    outputs = model([{"image": image_of(10, 14)}, {"image": image_of(20, 14)}])
    assert [out["panoptic_seg"] for out in outputs] == ["of (5, 7)", "of (10, 7)"]


def test_inputs_are_left_as_they_were(make_cfg):
    model = SparseRefine(make_cfg())
    item = {**training_item(12, 16), "context": image_of(6, 8), "crop": (0, 0, 12, 16)}
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in item.items()}
    for training in (True, False):
        model.train(training)([item])
        assert item.keys() == before.keys()
        assert all(torch.equal(item[k], before[k]) for k in ("image", "sem_seg", "context"))


@pytest.mark.parametrize("size", [(60, 80), (15, 20), (31, 37)])
def test_height_and_width_of_the_input_are_honoured(make_cfg, size):
    model = SparseRefine(make_cfg(SELECT, 0.8)).eval()
    item = {"image": image_of(30, 40), "height": size[0], "width": size[1]}
    with torch.no_grad():
        (own,) = model([{"image": item["image"]}])
        (logits,) = model([item])
        model.output = "labels"
        (labels,) = model([item])
    expected = F.interpolate(own["sem_seg"][None], size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(logits["sem_seg"], expected[0], atol=1e-5)
    assert logits["refinement"].labels.shape == (30, 40)
    own_labels = own["refinement"].labels[None, None].float()
    nearest = F.interpolate(own_labels, size=size, mode="nearest-exact")
    assert torch.equal(labels["labels"].float(), nearest[0, 0])


def test_labels_of_many_classes_at_another_size():
    classes = 300
    model = SparseRefine(
        coarse=CoarsePass(base=Given(torch.randn(classes, 4, 5)), num_classes=classes, scale=0.5),
        selector=BudgetSelector(count=7),
        extractor=SparseUNetExtractor(num_classes=classes, channels=(4,), backend="torch"),
        ensembler=GatedEnsembler(num_classes=classes),
        output="labels",
    ).eval()
    (output,) = model([{"image": image_of(8, 10), "height": 16, "width": 20}])
    labels = output["refinement"].labels
    assert labels.dtype == torch.int16
    assert torch.equal(output["labels"], labels.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("features", [["rgb"], ["rgb", "probabilities", "entropy", "position"]])
@pytest.mark.parametrize("ensembler", ["GatedEnsembler", "EntropyEnsembler"])
def test_features_and_ensemblers(make_cfg, ensembler, features):
    model = build_model(
        make_cfg(
            METHOD + "EXTRACTOR.FEATURES",
            features,
            METHOD + "ENSEMBLER.NAME",
            ensembler,
            SELECT,
            0.0,
        )
    )
    assert sum(loss.item() for loss in model.train()([training_item(16, 20)]).values()) > 0
    output = model.eval()([{"image": image_of(16, 20)}])[0]
    assert output["sem_seg"].isfinite().all()


def test_class_counts_that_differ_give_both_numbers():
    model = model_of_two_classes(Recorder(0.0, 0.0), torch.zeros(19, 1, 2)).eval()
    with pytest.raises(ValueError, match=r"19 classes .* is 2"):
        model([{"image": image_of(2, 4)}])


# ---- training ------------------------------------------------------------------------------------


def train(model, items, steps, lr=0.01):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    totals = []
    model.train()
    for _ in range(steps):
        total = sum(model(items).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


def test_training_leaves_the_base_bit_identical(make_cfg):
    model = SparseRefine(make_cfg(SELECT, 0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, [training_item(20, 24, 1), training_item(17, 30, 2)], steps=3)
    after = model.state_dict()
    base = [name for name in before if name.startswith("coarse.base.")]
    assert any("running_mean" in name for name in base)
    assert all(torch.equal(before[name], after[name]) for name in base)
    others = [name for name in before if name not in base and "num_batches" not in name]
    assert {name.split(".")[0] for name in others} == {"extractor", "ensembler"}
    assert all(not torch.equal(before[name], after[name]) for name in others)


def test_the_base_stays_in_eval_mode(make_cfg):
    model = SparseRefine(make_cfg())
    for _ in range(2):
        assert not any(module.training for module in model.coarse.base.modules())
        assert model.train().extractor.training
    model.eval()
    assert not model.extractor.training


def stripes(height=32, width=40):
    """Two classes in stripes of one pixel, which half resolution does not hold."""
    labels = torch.zeros(height, width, dtype=torch.int64)
    labels[:, ::2] = 1
    image = torch.where(labels[None] > 0, 200.0, 60.0).expand(3, -1, -1)
    image = (image + torch.randn(3, height, width) * 8).clamp(0, 255).byte()
    return {"image": image, "sem_seg": labels}


def test_training_learns_what_the_base_cannot_see(make_cfg):
    model = SparseRefine(
        make_cfg(
            SELECT, 0.3, METHOD + "EXTRACTOR.CHANNELS", [8, 8], METHOD + "LOSS.DICE_WEIGHT", 0.5
        )
    )
    item = stripes()
    totals = train(model, [item], steps=40, lr=0.02)
    assert totals[-1] < 0.15 * totals[0]
    with torch.no_grad():
        refinement = model.eval()([item])[0]["refinement"]
    y, x = refinement.sites.unbind(1)
    truth = item["sem_seg"][y, x]
    accuracy = {
        kind: (getattr(refinement, kind).long() == truth).float().mean().item()
        for kind in ("coarse", "refined", "fused")
    }
    assert len(truth) > 600
    assert accuracy["coarse"] < 0.7 < 0.95 < min(accuracy["refined"], accuracy["fused"])


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


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("selected", ["none", "one", "all ignored"])
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_little_to_learn_from_still_reaches_every_parameter(make_cfg, norm, selected, weight):
    """DistributedDataParallel waits for the gradient of each."""
    options = [METHOD + "EXTRACTOR.NORM", norm, METHOD + "LOSS.DICE_WEIGHT", 1.0]
    options += [METHOD + "LOSS.FUSED_WEIGHT", weight]
    options += [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR.COUNT"]
    model = SparseRefine(make_cfg(*options, {"none": 0, "one": 1, "all ignored": 50}[selected]))
    item = training_item(16, 20)
    if selected == "all ignored":
        item["sem_seg"].fill_(255)
    losses = model.train()([item])
    assert all(loss.isfinite() for loss in losses.values())
    assert (sum(losses.values()).item() > 0) == (selected == "one")
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_autocast_to_bfloat16(make_cfg):
    model = SparseRefine(make_cfg(SELECT, 0.5))
    items = [training_item(24, 32), training_item(15, 20, 1)]
    plain = model.train()(items)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(items)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(plain[name].item(), rel=0.05)
        assert loss.item() != plain[name].item()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)

    # in training the base is not part of it: thresholds are fine, and the base is what it was
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = [output.logits for output in model.coarse(items)]
    for logits, output in zip(coarse, model.coarse(items)):
        assert torch.equal(logits, output.logits)

    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for output in ("logits", "labels"):
            model.output = output
            results = model([{"image": item["image"]} for item in items])
            agree = (
                results[0]["refinement"].label_map("fused") == model(items)[0]["refinement"].labels
            )
            assert agree.all()
    plain_labels = model(items)[0]["refinement"].labels
    assert (results[0]["labels"] == plain_labels).float().mean() > 0.9


# ---- checkpoints ---------------------------------------------------------------------------------


def test_state_dict_round_trip(make_cfg):
    cfg = make_cfg(SELECT, 0.8)
    model = SparseRefine(cfg)
    train(model, [training_item(20, 24)], steps=2)
    other = SparseRefine(cfg)
    inputs = [{"image": image_of(20, 24)}]
    model.eval(), other.eval()
    assert not torch.equal(model(inputs)[0]["sem_seg"], other(inputs)[0]["sem_seg"])
    result = other.load_state_dict(model.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(model(inputs)[0]["sem_seg"], other(inputs)[0]["sem_seg"])


def test_a_checkpoint_of_the_whole_model_stands_alone(make_cfg, tmp_path):
    base = META_ARCH_REGISTRY.get("TinyBase")(make_cfg())
    torch.save({"model": base.state_dict()}, tmp_path / "base.pth")
    model = build_model(make_cfg(METHOD + "BASE.WEIGHTS", str(tmp_path / "base.pth"))).eval()
    assert torch.equal(model.coarse.base.conv.weight, base.conv.weight)
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "base.pth").unlink()

    from sparse_refine.storage.checkpointer import SafeCheckpointer

    alone = build_model(make_cfg(METHOD + "BASE.WEIGHTS", "")).eval()
    SafeCheckpointer(alone).load(str(tmp_path / "whole.pth"))
    inputs = [{"image": image_of(20, 24)}]
    assert torch.equal(alone(inputs)[0]["sem_seg"], model(inputs)[0]["sem_seg"])


def test_backends_share_the_state_dict(make_cfg):
    names = [
        list(SparseRefine(make_cfg(METHOD + "EXTRACTOR.BACKEND", backend)).state_dict())
        for backend in ("auto", "torch")
    ]
    assert names[0] == names[1]


# ---- wrap ----------------------------------------------------------------------------------------


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
