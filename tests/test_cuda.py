# SPDX-License-Identifier: Apache-2.0
"""SparseRefine on a CUDA device: the CPU's numbers, mixed precision, the same bits on every run.

Skipped where there is none. TF32 is off here: cuDNN's convolutions use it by default, and then the
coarse logits of the two devices differ by about 1e-3.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine import SparseRefine
from sparse_refine.ensembler import GatedEnsembler
from sparse_refine.extractors import Selection, SparseUNetExtractor
from sparse_refine.resampling import argmax_labels, downsample
from sparse_refine.selector import BudgetSelector
from sparse_refine.sites import Sites, View
from sparse_refine.sparse import TorchGrid, build_grid
from sparse_refine.sparse.minkowski_engine import minkowski_available

from .meta_arch.models import METHOD, SELECT, THRESHOLDS, image_of, training_item

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _exact():
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        yield


def on_both(cfg):
    """The same model on the CPU and on the GPU, in training mode."""
    model = SparseRefine(cfg).train()
    return model, copy.deepcopy(model).cuda()


def assert_same_outputs(of_cpu, of_gpu):
    one, two = of_cpu["refinement"], of_gpu["refinement"]
    assert torch.equal(one.sites, two.sites.cpu())
    assert torch.allclose(one.entropy, two.entropy.cpu(), atol=1e-5)
    for kind in ("coarse", "refined", "fused", "labels"):
        first, second = getattr(one, kind), getattr(two, kind)
        assert second.is_cuda and second.dtype == first.dtype and second.shape == first.shape
        # the two largest of a pixel may be equal but for rounding
        assert (first != second.cpu()).sum() <= 0.002 * first.numel()
    assert of_cpu.keys() == of_gpu.keys()
    if "sem_seg" in of_cpu:
        assert torch.allclose(of_cpu["sem_seg"], of_gpu["sem_seg"].cpu(), atol=1e-4)
    else:
        assert (of_cpu["labels"] != of_gpu["labels"].cpu()).float().mean() <= 0.002


def autocast(dtype):
    return torch.autocast("cuda", dtype=dtype, enabled=dtype is not None)


def gradients(model, items, dtype=None):
    """Losses as numbers, and the gradient of every parameter that learns; forward in `dtype`."""
    model.zero_grad()
    with autocast(dtype):
        losses = model(items)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    scale = 1024.0 if dtype == torch.float16 else 1.0  # as GradScaler does
    (sum(losses.values()) * scale).backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in learning.values())
    losses = {name: loss.item() for name, loss in losses.items()}
    return losses, {name: gradient / scale for name, gradient in learning.items()}


# ---- the numbers of the CPU ----------------------------------------------------------------------


@pytest.mark.parametrize("output", ["logits", "labels"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("selected", ["none", "one", "some", "all"])
def test_inference_is_that_of_the_cpu(make_cfg, selected, interpolation, output):
    """A batch of odd sizes, images on the CPU as the data loader gives them."""
    options = [METHOD + "COARSE_INTERPOLATION", interpolation, METHOD + "OUTPUT", output]
    if selected == "one":
        options += [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR.COUNT", 1]
    else:
        options += [SELECT, THRESHOLDS[selected]]
    cpu, gpu = (model.eval() for model in on_both(make_cfg(*options)))
    sizes = [(37, 53), (16, 16), (1, 9), (5, 3), (1, 1)]
    inputs = [{"image": image_of(*size, seed=i)} for i, size in enumerate(sizes)]
    inputs[1] |= {"height": 31, "width": 40}
    with torch.no_grad():
        for of_cpu, of_gpu in zip(cpu(inputs), gpu(inputs)):
            assert_same_outputs(of_cpu, of_gpu)


@pytest.mark.parametrize("sites", ["floor", "reach"])
@pytest.mark.parametrize("ensembler", ["GatedEnsembler", "EntropyEnsembler"])
@pytest.mark.parametrize("selector", ["EntropySelector", "BudgetSelector", "MarginSelector"])
def test_every_selector_and_ensembler(make_cfg, selector, ensembler, sites):
    cfg = make_cfg(
        *(METHOD + "SELECTOR.NAME", selector, METHOD + "ENSEMBLER.NAME", ensembler),
        *(METHOD + "EXTRACTOR.FEATURES", ["rgb", "probabilities", "entropy", "position"]),
        *(METHOD + "EXTRACTOR.DOWNSAMPLE_SITES", sites, METHOD + "EXTRACTOR.CHANNELS", [4, 8, 8]),
        *(SELECT, 0.5, METHOD + "LOSS.DICE_WEIGHT", 0.5),
    )
    cpu, gpu = on_both(cfg)
    items = [training_item(29, 34), training_item(18, 23, 1)]
    (losses, one), (on_gpu, two) = gradients(cpu, items), gradients(gpu, items)
    assert on_gpu == pytest.approx(losses, rel=1e-4)
    for name, gradient in one.items():
        error = (two[name].cpu() - gradient).norm()
        assert error <= 2e-3 * gradient.norm() + 1e-6, name
    with torch.no_grad():
        for of_cpu, of_gpu in zip(cpu.eval()(items), gpu.eval()(items)):
            assert_same_outputs(of_cpu, of_gpu)


@pytest.mark.parametrize("selected", ["none", "one", "all ignored"])
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_little_to_learn_from(make_cfg, norm, selected):
    count = {"none": 0, "one": 1, "all ignored": 50}[selected]
    options = [METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR.COUNT", count]
    _, gpu = on_both(make_cfg(*options, METHOD + "EXTRACTOR.NORM", norm))
    item = training_item(16, 20)
    if selected == "all ignored":
        item["sem_seg"].fill_(255)
    for dtype in (None, torch.bfloat16, torch.float16):
        losses, _ = gradients(gpu, [item], dtype)
        assert (sum(losses.values()) > 0) == (selected == "one")


def test_context_and_crop(make_cfg):
    cpu, gpu = on_both(make_cfg(SELECT, 0.8, METHOD + "BASE.SCALE", 0.3))
    item = training_item(41, 50)
    crop = {
        "image": item["image"][:, 7:37, 13:44],
        "sem_seg": item["sem_seg"][7:37, 13:44],
        "context": downsample(item["image"], (12, 15)),
        "crop": (7, 13, 41, 50),
    }
    (losses, _), (on_gpu, _) = gradients(cpu, [crop]), gradients(gpu, [crop])
    assert on_gpu == pytest.approx(losses, rel=1e-4)


def test_a_million_sites():
    """More rows than cuDNN's batch normalisation takes (880801), and several chunks of a gather and
    of the gate: single precision against double."""
    size = 1031, 1027
    image = torch.randn(3, *size, device="cuda")
    sites = Sites.of_masks([torch.ones(size, dtype=torch.bool, device="cuda")])
    coarse = torch.randn(len(sites), 3, device="cuda")
    labels = (image > 0).sum(0).clamp(max=2).flatten()
    view = View(0, 0, *size, size)
    modules = nn.ModuleList(
        [
            SparseUNetExtractor(num_classes=3, channels=(16, 16), backend="torch"),
            GatedEnsembler(num_classes=3),
        ]
    ).cuda()
    runs = []
    for dtype in (torch.float32, torch.float64):
        extractor, ensembler = copy.deepcopy(modules).to(dtype)
        selection = Selection(sites, [image], [image], coarse.to(dtype), [view])
        refined = extractor(selection).to(dtype)
        fused = ensembler(coarse.to(dtype), refined)
        F.cross_entropy(fused, labels).backward()
        parameters = [*extractor.parameters(), *ensembler.parameters()]
        runs.append((fused.detach(), torch.cat([p.grad.flatten() for p in parameters])))
    for single, double in zip(*runs):
        assert (single - double).norm() <= 2e-3 * double.norm()


@pytest.mark.parametrize("classes", [1, 2, 256, 257])
def test_labels_are_the_first_highest_score(classes):
    scores = torch.randint(0, 5, (classes, 40, 50)).float()  # many are equal
    labels = argmax_labels(scores.cuda())
    on_cpu = argmax_labels(scores)
    assert labels.dtype == on_cpu.dtype and torch.equal(labels.cpu(), on_cpu)


def test_wrap():
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    cpu = SparseRefine.wrap(
        module,
        num_classes=4,
        selector=BudgetSelector(fraction=0.2),
        extractor=SparseUNetExtractor(num_classes=4, channels=(4, 8), backend="torch"),
        ensembler=GatedEnsembler(num_classes=4),
    ).eval()
    gpu = copy.deepcopy(cpu).cuda()
    inputs = [{"image": image_of(40, 56)}, {"image": image_of(33, 20).float()}]
    with torch.no_grad():
        for of_cpu, of_gpu in zip(cpu(inputs), gpu(inputs)):
            assert_same_outputs(of_cpu, of_gpu)


def test_auto_is_torch_where_minkowski_has_no_cuda():
    if minkowski_available(cuda=True):
        pytest.skip("MinkowskiEngine is compiled for CUDA here")
    sites = torch.tensor([[0, 1, 2], [0, 3, 3]], device="cuda")
    assert isinstance(build_grid("auto", Sites(sites, [(4, 4)]), levels=2), TorchGrid)


# ---- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(make_cfg, dtype):
    _, model = on_both(make_cfg(SELECT, 0.5, METHOD + "EXTRACTOR.CHANNELS", [8, 16]))
    items = [training_item(48, 64), training_item(31, 20, 1)]
    plain, exact = gradients(model, items)
    mixed, rounded = gradients(model, items, dtype)
    assert mixed == pytest.approx(plain, rel=0.05) and mixed != plain
    reference, together = (torch.cat([g.flatten() for g in x.values()]) for x in (exact, rounded))
    assert (together - reference).norm() < 0.1 * reference.norm()

    model.eval()
    for output in ("logits", "labels"):
        model.output = output
        with torch.no_grad():
            plain = model(items)
            with autocast(dtype):
                mixed = model(items)
        for one, two in zip(plain, mixed):
            same = one["refinement"].labels == two["refinement"].labels
            assert same.float().mean() > 0.95


def test_autocast_with_nothing_selected(make_cfg):
    model = SparseRefine(make_cfg(SELECT, 2.0)).cuda().eval()
    with torch.no_grad(), autocast(torch.float16):
        (output,) = model([{"image": image_of(20, 30)}])
    assert output["sem_seg"].shape == (3, 20, 30) and len(output["refinement"].sites) == 0


# ---- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["float32", "float16"])
def test_twice_is_the_same_to_the_bit(make_cfg, dtype):
    cfg = make_cfg(
        *(METHOD + "SELECTOR.NAME", "BudgetSelector", METHOD + "SELECTOR.FRACTION", 0.4),
        *(METHOD + "EXTRACTOR.CHANNELS", [16, 32], METHOD + "LOSS.DICE_WEIGHT", 1.0),
    )
    model = SparseRefine(cfg).cuda().train()
    items = [training_item(300, 400), training_item(131, 257, 1)]
    runs = [gradients(model, items, dtype) for _ in range(3)]
    for losses, grads in runs[1:]:
        assert losses == runs[0][0]
        assert not [name for name in grads if not torch.equal(grads[name], runs[0][1][name])]
    model.eval()
    with torch.no_grad(), autocast(dtype):
        first, second = model(items), model(items)
    assert all(torch.equal(a["sem_seg"], b["sem_seg"]) for a, b in zip(first, second))
