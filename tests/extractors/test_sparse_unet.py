# SPDX-License-Identifier: Apache-2.0
"""Features of a site by name, and the extractor as a whole."""

import math

import pytest
import torch

from sparse_refine.extractors import (
    Selection,
    SparseUNetExtractor,
    feature_channels,
    site_features,
)
from sparse_refine.sites import Sites, View

LN3 = math.log(3)

RGB = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, 0.0]])
COARSE = torch.tensor([[LN3, 0.0], [0.0, 0.0]])  # (3/4, 1/4) and (1/2, 1/2)
POSITION = torch.tensor([[-0.5, 0.75], [1.0, -1.0]])

BY_NAME = {
    "rgb": [[0.5, -1.0, 2.0], [0.0, 0.25, 0.0]],
    "probabilities": [[0.75, 0.25], [0.5, 0.5]],
    "entropy": [[0.562335 / 0.693147], [1.0]],  # over ln 2
    "position": [[-0.5, 0.75], [1.0, -1.0]],
}


@pytest.mark.parametrize(
    "names",
    [
        *[[name] for name in BY_NAME],
        ["rgb", "probabilities"],
        ["position", "entropy", "rgb"],
        ["rgb", "probabilities", "entropy", "position"],
    ],
    ids="+".join,
)
def test_features_by_hand(names):
    features = site_features(names, RGB, COARSE, POSITION)
    expected = [sum((BY_NAME[name][site] for name in names), []) for site in (0, 1)]
    assert features.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]
    assert feature_channels(names, num_classes=2) == features.shape[1]


def test_entropy_feature_of_a_single_class():
    features = site_features(["entropy"], RGB, torch.zeros(2, 1), POSITION)
    assert features.tolist() == [[0], [0]]


@pytest.mark.parametrize("names", [[], ["rgb", "rgb"], ["colour"], ["rgb", "Entropy"]])
def test_bad_names(names):
    with pytest.raises(
        ValueError, match=r"EXTRACTOR.FEATURES is .*'rgb', 'probabilities'"
    ) as error:
        SparseUNetExtractor(num_classes=3, features=names)
    assert str(list(names)) in str(error.value)


@pytest.mark.parametrize("preset, millions", [("paper", 79.33), ("base", None), ("small", None)])
def test_presets(make_cfg, preset, millions):
    cfg = make_cfg("MODEL.SPARSE_REFINE.EXTRACTOR.PRESET", preset)
    with torch.device("meta"):
        extractor = SparseUNetExtractor(cfg)
    if millions is not None:
        count = sum(parameter.numel() for parameter in extractor.unet.parameters())
        assert round(count / 1e6, 2) == millions
    assert extractor.classifier.out_features == 3


def selection_of(*masks, classes=3) -> Selection:
    """Random images and coarse logits, selected where masks (H,W) are True."""
    sites = Sites.of_masks(masks)
    images = [torch.randn(3, *mask.shape) for mask in masks]
    views = [View(0, 0, *mask.shape, tuple(mask.shape)) for mask in masks]
    return Selection(sites, images, images, torch.randn(len(sites), classes), views)


def image_of(selection: Selection, index: int) -> Selection:
    """One image of a selection by itself."""
    return Selection(
        Sites.of_images([selection.sites.by_image()[index]], [selection.sites.sizes[index]]),
        [selection.images[index]],
        [selection.contexts[index]],
        selection.sites.split(selection.coarse)[index],
        [selection.views[index]],
    )


def test_selection_reads_pixels_and_places():
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 2] = mask[3, 0] = True
    crop = View(10, 20, 4, 5, (40, 50))
    image = torch.arange(60, dtype=torch.uint8).view(3, 4, 5)
    selection = Selection(Sites.of_masks([mask]), [image], [image], torch.zeros(2, 3), [crop])
    assert selection.pixels().tolist() == [[7, 27, 47], [15, 35, 55]]
    expected = [[(10 + y + 0.5) / 20 - 1, (20 + x + 0.5) / 25 - 1] for y, x in ((1, 2), (3, 0))]
    assert selection.position().tolist() == [pytest.approx(place) for place in expected]


@pytest.fixture
def extractor():
    return SparseUNetExtractor(
        num_classes=3,
        features=("rgb", "probabilities", "position"),
        channels=(4, 8, 8),
        blocks=1,
        backend="torch",
    ).eval()


def test_images_of_a_batch_do_not_see_each_other(extractor):
    selection = selection_of(torch.rand(9, 7) < 0.4, torch.rand(4, 12) < 0.6, torch.zeros(3, 3) > 0)
    together = extractor(selection)
    assert together.shape == (len(selection.sites), 3)
    for i, of_image in enumerate(selection.sites.split(together)):
        assert torch.allclose(of_image, extractor(image_of(selection, i)), atol=1e-5)


def test_patches_see_and_answer_for_all_their_pixels():
    module = SparseUNetExtractor(num_classes=3, channels=(4,), patch=2, backend="torch").eval()
    assert module.unet.stem.weight.shape[1] == 12 and module.classifier.out_features == 12
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 4:6] = mask[0, 0] = True  # a whole patch, and one pixel of another
    selection = selection_of(mask)
    logits = module(selection)
    assert logits.shape == (5, 3) and len(logits.unique(dim=0)) == 5
    selection.images[0][:, 3, 5] += 1  # the last pixel of the whole patch
    changed = (module(selection) != logits).any(1)
    assert changed.tolist() == [False] + [True] * 4


@pytest.mark.parametrize("patch", [1, 2])
def test_residual_starts_as_the_coarse_prediction(patch):
    given = selection_of(torch.rand(9, 7) < 0.5)
    coarse = given.coarse
    options = {"num_classes": 3, "channels": (4, 8), "patch": patch, "backend": "torch"}
    module = SparseUNetExtractor(residual=True, **options).eval()
    assert torch.equal(module(given), coarse)
    module(given).square().sum().backward()
    assert module.classifier.weight.grad.abs().sum() > 0
    plain = SparseUNetExtractor(**options).eval()
    module.load_state_dict(plain.state_dict())
    assert torch.equal(module(given), plain(given) + coarse)


def test_bad_patch():
    with pytest.raises(ValueError, match="EXTRACTOR.PATCH is 0"):
        SparseUNetExtractor(num_classes=3, patch=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_sites(count, norm, training):
    module = SparseUNetExtractor(num_classes=3, channels=(4, 8), norm=norm, backend="torch")
    module.train(training)
    statistics = {n: b.clone() for n, b in module.named_buffers() if "running" in n}
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask.view(-1)[[7, 22][:count]] = True
    logits = module(selection_of(mask))
    assert logits.shape == (count, 3) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    after = dict(module.named_buffers())
    assert all(after[name].isfinite().all() for name in statistics)
    if count < 2:  # there is no variance to learn from
        assert all(torch.equal(after[name], before) for name, before in statistics.items())


def test_logits_are_single_precision_under_autocast(extractor):
    given = selection_of(torch.rand(9, 7) < 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = extractor(given)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, extractor(given), atol=0.1, rtol=0.1)


def test_precision(extractor, make_cfg):
    given = selection_of(torch.rand(9, 7) < 0.5)
    exact = extractor(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = extractor(given)
    assert not torch.equal(near, exact)
    extractor.precision = "bfloat16"
    assert torch.equal(extractor(given), near)
    extractor.precision = "float32"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(given), exact)
    with pytest.raises(ValueError, match=r"EXTRACTOR.PRECISION is 'half': one of .*'bfloat16'"):
        SparseUNetExtractor(make_cfg("MODEL.SPARSE_REFINE.EXTRACTOR.PRECISION", "half"))
