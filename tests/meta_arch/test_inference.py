# SPDX-License-Identifier: Apache-2.0
"""What is selected, and what comes out."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.coarse import CoarsePass
from sparse_refine.ensembler import GatedEnsembler
from sparse_refine.extractors import SparseUNetExtractor
from sparse_refine.resampling import downsample, low_size
from sparse_refine.selector import BudgetSelector

from .models import METHOD, SELECT, THRESHOLDS, Given, image_of, training_item


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
