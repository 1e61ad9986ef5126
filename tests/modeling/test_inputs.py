# SPDX-License-Identifier: Apache-2.0
"""The models' border in Python: what comes in, in which precision, and what a base returns."""

import numpy as np
import pytest
import torch
from torch import nn

from sparse_refine import ModuleSegmentor, SparseRefine
from sparse_refine.extractors import SparseUNetExtractor
from sparse_refine.selector import (
    BudgetSelector,
    EntropySelector,
    MarginBudgetSelector,
    MarginSelector,
    RandomBudgetSelector,
)
from sparse_refine.sites import View


class Net(nn.Module):
    """(B,3,H,W) -> logits (B,3,H,W), returned as `form` says."""

    def __init__(self, form=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.5)
        self.form = form or (lambda scores: scores)

    def forward(self, x):
        return self.form(self.conv(x))


def wrapped(module, **options) -> SparseRefine:
    torch.manual_seed(1)
    extractor = SparseUNetExtractor(num_classes=3, channels=(4, 8), backend="torch")
    options.setdefault("selector", BudgetSelector(fraction=0.3))
    return SparseRefine.wrap(module, num_classes=3, extractor=extractor, **options)


MODELS = {"SparseRefine": lambda: wrapped(Net()), "ModuleSegmentor": lambda: ModuleSegmentor(Net())}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def image_of(height=16, width=24, channels=3, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, height, width), generator=generator).to(dtype)


def labelled(labels, **options) -> list[dict]:
    return [{"image": image_of(**options), "sem_seg": labels}]


def labels_of(height=16, width=24, dtype=torch.int64):
    return (torch.arange(height * width) % 3).view(height, width).to(dtype)


# ---- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs, message",
    [
        ([{"image": image_of(channels=4)}], r"'image' is Tensor \(4, 16, 24\).*\(3,H,W\)"),
        ([{"image": image_of(channels=1)}], r"'image' is Tensor \(1, 16, 24\).*\(3,H,W\)"),
        ([{"image": image_of().permute(1, 2, 0)}], r"Tensor \(16, 24, 3\).*permute\(2, 0, 1\)"),
        ([{"image": image_of()[None]}], r"Tensor \(1, 3, 16, 24\).*\(3,H,W\)"),
        ([{"image": image_of()[:, :0]}], r"Tensor \(3, 0, 24\).*at least one pixel"),
        ([{"image": np.zeros((16, 24, 3), np.uint8)}], r"ndarray \(16, 24, 3\).*from_numpy"),
        ([{"image": image_of(dtype=torch.int64)}], r"torch\.int64: uint8 or a floating point"),
        ([{"image": "field.jpg"}], "'image' is str: a tensor"),
        ([{"img": image_of()}], r"keys \['img'\]: a dict with 'image'"),
        ([image_of()], r"input 0 has Tensor \(3, 16, 24\).*a dict with 'image'"),
        (image_of()[None], r"list of dicts.*not Tensor \(1, 3, 16, 24\)"),
        ({"image": image_of()}, "list of dicts.*not dict"),
        ([{"image": image_of()}, {"image": image_of(channels=4)}], "input 1, 'image'"),
    ],
)
def test_what_is_no_image(model, inputs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.eval()(inputs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_types_of_images(model, dtype):
    model.eval()
    (expected,), (found,) = (model([{"image": image_of(dtype=d)}]) for d in (torch.uint8, dtype))
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    assert found["sem_seg"].dtype == torch.float32


def test_no_images(model):
    assert model.eval()([]) == []
    with pytest.raises(ValueError, match="training batch of no images"):
        model.train()([])


@pytest.mark.parametrize("crop", [(0, 0, 10, 10), (5, 0, 16, 24), (-1, 0, 40, 40), (1, 2)])
def test_a_crop_that_is_not_in_its_image(crop):
    item = {"image": image_of(), "sem_seg": labels_of(), "context": image_of(8, 12), "crop": crop}
    with pytest.raises(ValueError, match=r"'crop' is \("):
        wrapped(Net()).train()([item])


# ---- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, message",
    [
        (labels_of(12, 24), r"'sem_seg' is Tensor \(12, 24\).*its image is \(16, 24\)"),
        (labels_of(20, 30), r"'sem_seg' is Tensor \(20, 30\).*its image is \(16, 24\)"),
        (labels_of(24, 16), r"'sem_seg' is Tensor \(24, 16\).*its image is \(16, 24\)"),
        (labels_of()[None], r"'sem_seg' is Tensor \(1, 16, 24\).*its image is \(16, 24\)"),
        (labels_of().float(), "torch.float32: a tensor .* of integers"),
        (labels_of().numpy(), "ndarray .* a tensor"),
    ],
)
def test_labels_of_another_shape(model, labels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.train()(labelled(labels))


def test_training_without_labels(model):
    with pytest.raises(ValueError, match=r"keys \['image'\]: training needs labels, 'sem_seg'"):
        model.train()([{"image": image_of()}])


@pytest.mark.parametrize("value", [300, -1, 3, 254])
def test_labels_that_are_no_class(model, value):
    labels = labels_of()
    labels[3, 5] = value
    with pytest.raises(ValueError, match=rf"'sem_seg' holds \[{value}\]: labels are 0\.\.2"):
        model.train()(labelled(labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_labels_of_any_integer_type(model, dtype):
    labels = labels_of()
    labels[0] = 255
    kept = labels.to(dtype) if dtype != torch.int16 else labels.short()
    losses = [model.train()(labelled(each)) for each in (labels, kept)]
    assert {k: v.item() for k, v in losses[0].items()} == {
        k: v.item() for k, v in losses[1].items()
    }


# ---- precision -----------------------------------------------------------------------------------

TYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_base_in_another_precision(dtype):
    torch.manual_seed(0)
    reference = wrapped(Net()).eval()
    torch.manual_seed(0)
    model = wrapped(Net().to(dtype)).eval()
    (expected,), (found,) = (each([{"image": image_of()}]) for each in (reference, model))
    assert found["sem_seg"].dtype == torch.float32
    same = found["refinement"].label_map("coarse") == expected["refinement"].label_map("coarse")
    assert same.float().mean() > 0.95
    losses = model.train()(labelled(labels_of()))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("dtype", TYPES)
def test_the_whole_in_another_precision(model, dtype):
    (expected,) = model.eval()([{"image": image_of()}])
    (found,) = model.to(dtype)([{"image": image_of()}])
    assert found["sem_seg"].shape == expected["sem_seg"].shape
    same = found["sem_seg"].argmax(0) == expected["sem_seg"].argmax(0)
    assert same.float().mean() > 0.9


# ---- what a base returns -------------------------------------------------------------------------

FORMS = {
    "a tuple's second": (lambda s: (s[:, :1], s), 1),
    "a list's last": (lambda s: [s[:, :1], s], -1),
    "an index as text": (lambda s: (s, s[:, :1]), "0"),
    "a key": (lambda s: {"logits": s, "aux": s[:, :1]}, "logits"),
}


@pytest.mark.parametrize("name", FORMS)
def test_which_entry_holds_the_scores(name):
    form, entry = FORMS[name]
    torch.manual_seed(0)
    (expected,) = wrapped(Net()).eval()([{"image": image_of()}])
    torch.manual_seed(0)
    (found,) = wrapped(Net(form), module_output=entry).eval()([{"image": image_of()}])
    assert torch.equal(found["sem_seg"], expected["sem_seg"])
    with pytest.raises(ValueError, match=r"MODEL\.MODULE\.OUTPUT \(module_output"):
        wrapped(Net(form)).eval()([{"image": image_of()}])
    with pytest.raises(ValueError, match=r"MODEL\.MODULE\.OUTPUT .*it is '?(7|none)"):
        other = "none" if name == "a key" else 7
        wrapped(Net(form), module_output=other).eval()([{"image": image_of()}])


def test_an_entry_that_is_no_number():
    with pytest.raises(ValueError, match=r"a tuple of 2.*MODEL\.MODULE\.OUTPUT.*'logits'"):
        wrapped(Net(FORMS["a tuple's second"][0]), module_output="logits").eval()(
            [{"image": image_of()}]
        )


def test_a_module_of_torch_export():
    """It has no eval(), and keeps the mode that it was exported in."""
    torch.manual_seed(0)
    net = Net().eval()
    sizes = {0: torch.export.Dim("b", max=8), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(net, (torch.zeros(2, 3, 8, 12),), dynamic_shapes=(sizes,))
    model = wrapped(program.module()).eval()
    (found,) = model([{"image": image_of()}])
    (expected,) = wrapped(net).eval()([{"image": image_of()}])
    assert torch.allclose(found["sem_seg"], expected["sem_seg"], atol=1e-5)
    assert set(model.train()(labelled(labels_of()))) == {"loss_refined", "loss_fused"}


def test_a_softmax_is_not_read_as_logits():
    softmax = Net(lambda scores: scores.softmax(1))
    with pytest.raises(ValueError, match=r"sum to 1.*BASE\.SCORE_TYPE.*'probabilities'"):
        wrapped(softmax).eval()([{"image": image_of()}])
    wrapped(softmax, score_type="probabilities").eval()([{"image": image_of()}])


SELECTORS = [
    EntropySelector(threshold=0.5),
    MarginSelector(threshold=0.3),
    BudgetSelector(fraction=0.05),
    MarginBudgetSelector(fraction=0.05),
    RandomBudgetSelector(fraction=0.05),
]


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda each: type(each).__name__)
def test_what_is_not_a_number_is_refined(selector):
    """Nobody is sure of a pixel whose logits are NaN: one rule for all selectors."""
    logits = torch.zeros(3, 10, 20)
    logits[0] = 50.0  # sure of all others
    logits[:, 4, 7] = torch.nan
    logits[1, 8, 2] = torch.nan
    sites = selector(logits, View(0, 0, 10, 20, (10, 20))).tolist()
    assert [4, 7] in sites and [8, 2] in sites


def test_wrap_stays_where_the_module_is():
    module = Net()
    assert wrapped(module).device == torch.device("cpu")
    assert wrapped(module).to("meta").device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_wrap_a_module_on_a_gpu():
    model = wrapped(Net().cuda()).eval()
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    (output,) = model([{"image": image_of()}])
    assert output["sem_seg"].is_cuda
