# SPDX-License-Identifier: Apache-2.0
"""A plain module behind Detectron2's contract: normalisation, padding, sizes, what it returns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_refine import ModuleSegmentor
from sparse_refine.base import build_base


class Echo(nn.Module):
    """Scores that are its input; keeps what it saw. `stride` answers at a lower resolution."""

    def __init__(self, stride=1, key=None):
        super().__init__()
        self.stride, self.key = stride, key

    def forward(self, x):
        self.seen = x
        scores = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return scores if self.key is None else {self.key: scores, "aux": None}


def plain(module, **options):
    return ModuleSegmentor(module, pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1), **options).eval()


def image_of(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_normalisation_by_hand():
    echo = Echo()
    model = ModuleSegmentor(echo, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(2.0, 4.0, 5.0)).eval()
    image = torch.tensor([12, 12, 40], dtype=torch.uint8).view(3, 1, 1)
    (output,) = model([{"image": image}])
    assert echo.seen.flatten().tolist() == [1, -2, 2] and echo.seen.dtype == torch.float32
    assert output["sem_seg"].flatten().tolist() == [1, -2, 2]


def test_numbers_may_be_integers():
    model = ModuleSegmentor(Echo(), pixel_mean=(10, 20, 30), pixel_std=(2, 4, 5)).eval()
    (output,) = model([{"image": torch.full((3, 1, 1), 35, dtype=torch.uint8)}])
    assert output["sem_seg"].flatten().tolist() == [12.5, 3.75, 1]


@pytest.mark.parametrize("divisibility, padded", [(1, (13, 21)), (8, (16, 24)), (32, (32, 32))])
def test_padding_goes_in_and_comes_off(divisibility, padded):
    echo, image = Echo(), image_of(13, 21)
    (output,) = plain(echo, size_divisibility=divisibility)([{"image": image}])
    assert echo.seen.shape == (1, 3, *padded)
    assert torch.equal(output["sem_seg"], image.float())
    assert echo.seen[0, :, 13:].abs().sum() == 0 and echo.seen[0, :, :, 21:].abs().sum() == 0


def test_images_of_different_sizes():
    sizes = [(13, 21), (30, 8), (5, 5)]
    images = [image_of(*size) for size in sizes]
    outputs = plain(Echo(), size_divisibility=4)([{"image": image} for image in images])
    for image, output in zip(images, outputs):
        assert torch.equal(output["sem_seg"], image.float())


@pytest.mark.parametrize("key", [None, "out"])
def test_scores_of_a_lower_resolution_are_brought_up(key):
    image = image_of(16, 24)
    (output,) = plain(Echo(stride=4, key=key))([{"image": image}])
    small = F.avg_pool2d(image[None].float(), 4)
    expected = F.interpolate(small, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(output["sem_seg"], expected[0])


def test_scores_of_a_lower_resolution_are_cut_after_they_are_brought_up():
    """The padding belongs to the small scores too."""
    image = image_of(13, 21)
    (output,) = plain(Echo(stride=4), size_divisibility=8)([{"image": image}])
    padded = F.pad(image.float(), (0, 3, 0, 3))
    small = F.avg_pool2d(padded[None], 4)
    expected = F.interpolate(small, size=(16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(output["sem_seg"], expected[0, :, :13, :21])


def test_height_and_width_of_the_input_are_honoured():
    image = image_of(10, 12)
    (output,) = plain(Echo())([{"image": image, "height": 30, "width": 18}])
    expected = F.interpolate(image[None].float(), (30, 18), mode="bilinear", align_corners=False)
    assert torch.allclose(output["sem_seg"], expected[0], atol=1e-4)


@pytest.mark.parametrize(
    "returned, named",
    [
        (lambda x: {"logits": x}, r"a dict of \['logits'\]"),
        (lambda x: [x], "a list of 1"),
        (lambda x: x.argmax(1), r"\(1, 4, 5\)"),
    ],
)
def test_what_is_no_class_scores(returned, named):
    class Other(nn.Module):
        def forward(self, x):
            return returned(x)

    with pytest.raises(ValueError, match=rf"Other returned {named}.*'out'"):
        plain(Other())([{"image": image_of(4, 5)}])


def test_the_modules_state_is_its_own():
    """No normalisation among the weights: a checkpoint of the module loads under one prefix."""
    model = ModuleSegmentor(nn.Conv2d(3, 2, 1)).eval()
    assert set(model.state_dict()) == {"network.weight", "network.bias"}


# ---- from a config -------------------------------------------------------------------------------

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, *, widths, options=None):
        super().__init__()
        self.options = options
        self.one = nn.Conv2d(3, widths[0], 3, 4, 1)
        self.two = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        self.seen = x
        return self.two(self.one(x).relu())


def nothing():
    return 3
"""
NODE = "MODEL.MODULE."


@pytest.fixture
def from_yaml(make_cfg, tmp_path, monkeypatch):
    """make(*options) -> config of the net above, in a user's file, as a base."""
    monkeypatch.setenv("SPARSE_REFINE_TRUST_CODE", "1")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "c.yaml").write_text(
        f"""
MODEL:
  MODULE:
    PATH: {tmp_path}/net.py:Net
    ARGS:
      classes: 3
      widths: [4]
      options: {{a: [1, 2], b: null}}
    SIZE_DIVISIBILITY: 4
  SPARSE_REFINE:
    BASE:
      META_ARCHITECTURE: ModuleSegmentor
"""
    )

    def make(*options):
        cfg = make_cfg()
        cfg.merge_from_file(str(tmp_path / "c.yaml"))
        cfg.merge_from_list(list(options))
        return cfg

    return make


def test_a_users_file(from_yaml):
    base = build_base(from_yaml())
    assert base.network.options == {"a": [1, 2], "b": None} and type(base.network.options) is dict
    (output,) = base.eval()([{"image": image_of(13, 21)}])
    assert output["sem_seg"].shape == (3, 13, 21) and base.network.seen.shape == (1, 3, 16, 24)
    assert base.pixel_mean.flatten().tolist() == [127] * 3
    text = from_yaml().dump()
    assert "!!python" not in text and "widths" in text


@pytest.mark.parametrize("wanted, flipped", [("", False), ("RGB", False), ("BGR", True)])
def test_order_of_channels(from_yaml, wanted, flipped):
    base = build_base(from_yaml(NODE + "FORMAT", wanted, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]))
    base.eval()([{"image": torch.zeros(3, 4, 4)}])
    order = [3, 2, 1] if flipped else [1, 2, 3]
    assert (base.network.seen[0, :, 0, 0] * -64).tolist() == pytest.approx(order)


def test_weights_with_and_without_the_prefix(from_yaml, tmp_path):
    source = build_base(from_yaml())
    for name, state in (("wrapped", source), ("alone", source.network)):
        path = tmp_path / f"{name}.pth"
        torch.save(state.state_dict(), path)
        base = build_base(from_yaml("MODEL.SPARSE_REFINE.BASE.WEIGHTS", str(path)))
        assert torch.equal(base.network.one.weight, source.network.one.weight)


@pytest.mark.parametrize(
    "options, message",
    [
        ([NODE + "PATH", ""], "MODEL.MODULE.PATH is ''"),
        ([NODE + "FORMAT", "GBR"], "MODEL.MODULE.FORMAT is 'GBR'"),
    ],
)
def test_keys_that_make_no_sense(from_yaml, options, message):
    with pytest.raises(ValueError, match=message):
        build_base(from_yaml(*options))


def test_what_is_no_module(make_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_REFINE_TRUST_CODE", "1")
    (tmp_path / "net.py").write_text(NET)
    path = f"{tmp_path}/net.py:nothing"
    cfg = make_cfg("MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "ModuleSegmentor")
    cfg.merge_from_list([NODE + "PATH", path])
    with pytest.raises(ValueError, match="net.py:nothing' returned int: an nn.Module is needed"):
        build_base(cfg)


# ---- training ------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Two pixels of three have a label."""
    model = plain(Echo()).train()
    model.network.forward = lambda x: torch.tensor([[[[2.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]]]])
    labels = torch.tensor([[0, 1, 255]])
    (loss,) = model([{"image": torch.zeros(3, 1, 3), "sem_seg": labels}]).values()
    assert loss.item() == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-5)
    labels[:] = 255
    (loss,) = model([{"image": torch.zeros(3, 1, 3), "sem_seg": labels}]).values()
    assert loss.item() == 0


def test_labels_are_padded_as_images_are():
    model = plain(nn.Conv2d(3, 2, 1), size_divisibility=8).train()
    items = [
        {"image": image_of(*size), "sem_seg": torch.ones(size, dtype=torch.int64)}
        for size in ((5, 9), (8, 8))
    ]
    loss = model(items)["loss_sem_seg"]
    logits = torch.cat(
        [model.network(item["image"].float()[None]).flatten(2)[0] for item in items], dim=1
    )
    expected = F.cross_entropy(logits.t(), torch.ones(5 * 9 + 64, dtype=torch.int64))
    assert torch.allclose(loss, expected, rtol=1e-4)


def test_torchvisions_auxiliary_head_joins():
    class Two(nn.Module):
        def forward(self, x):
            return {"out": x[:, :2], "aux": x[:, :2, ::2, ::2]}

    labels = torch.zeros(4, 4, dtype=torch.int64)
    losses = plain(Two()).train()([{"image": torch.zeros(3, 4, 4), "sem_seg": labels}])
    assert losses["loss_sem_seg"].item() == pytest.approx(0.693147, abs=1e-5)
    assert losses["loss_aux"].item() == pytest.approx(0.693147 / 2, abs=1e-5)


def test_only_logits_can_be_trained():
    model = plain(nn.Conv2d(3, 2, 1), score_type="probabilities").train()
    with pytest.raises(ValueError, match="cannot be trained.*probabilities"):
        model([{"image": image_of(4, 4), "sem_seg": torch.zeros(4, 4, dtype=torch.int64)}])


@pytest.mark.parametrize(
    "path, options",
    [
        ("torchvision.models.segmentation:lraspp_mobilenet_v3_large", ("weights_backbone", None)),
        ("segmentation_models_pytorch:Unet", ("encoder_weights", None)),
    ],
)
def test_libraries(make_cfg, tmp_path, path, options):
    pytest.importorskip(path.split(":")[0].split(".")[0])
    classes = "num_classes" if "torchvision" in path else "classes"
    text = f"MODEL: {{MODULE: {{ARGS: {{{classes}: 3, {options[0]}: null}}}}}}"
    (tmp_path / "c.yaml").write_text(text)
    cfg = make_cfg(NODE + "PATH", path, NODE + "SIZE_DIVISIBILITY", 32)
    cfg.merge_from_list(["MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE", "ModuleSegmentor"])
    cfg.merge_from_file(str(tmp_path / "c.yaml"))
    base = build_base(cfg).eval()
    with torch.inference_mode():
        (output,) = base([{"image": image_of(75, 101)}])
    assert output["sem_seg"].shape == (3, 75, 101)
