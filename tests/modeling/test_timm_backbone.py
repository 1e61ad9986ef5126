# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.projects.deeplab import add_deeplab_config

from sparse_refine.modeling import TimmBackbone

timm = pytest.importorskip("timm", reason="timm is not installed")

# a convolutional, an HRNet with widened branches, one in NHWC, a plain vision transformer
MODELS = {
    "resnet18": ({}, ["res2", "res3", "res4", "res5"]),
    "convnext_atto": ({"drop_path_rate": 0.1}, ["res2", "res3", "res4", "res5"]),
    "mobilenetv3_small_050": ({}, ["res2", "res3", "res4", "res5"]),
    "hrnet_w18_small": ({}, ["res2", "res3", "res4", "res5"]),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "depths": (1, 1, 1, 1)},
        ["res2", "res3", "res4", "res5"],
    ),
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 3}, ["res4", "res4_2", "res4_3"]),
}


def timm_cfg(make_cfg, *options):
    cfg = make_cfg()
    add_deeplab_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE", "SemanticSegmentor",
            "MODEL.BACKBONE.NAME", "build_timm_backbone",
            "MODEL.TIMM.NAME", "resnet18",
            "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16,
            "MODEL.SEM_SEG_HEAD.NORM", "BN",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"],
            *options,
        ]
    )  # fmt: skip
    return cfg


@pytest.mark.parametrize("name", MODELS)
def test_features_have_the_shapes_that_are_announced(name):
    options, names = MODELS[name]
    backbone = TimmBackbone(name, options=options).eval()
    size = 64 if "img_size" in options else 96
    with torch.no_grad():
        outputs = backbone(torch.randn(2, 3, 64, size))
    assert list(outputs) == list(backbone.output_shape()) == names
    for name, shape in backbone.output_shape().items():
        expected = (2, shape.channels, 64 // shape.stride, size // shape.stride)
        assert outputs[name].shape == expected
    assert backbone.size_divisibility == max(s.stride for s in backbone.output_shape().values())


def test_features_are_timms():
    backbone = TimmBackbone("resnet18", out_indices=(0, 3)).eval()
    assert list(backbone.output_shape()) == ["res1", "res4"]
    reference = timm.create_model("resnet18", features_only=True).eval()
    reference.load_state_dict(backbone.model.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, outputs = reference(image), backbone(image)
    assert torch.equal(outputs["res1"], expected[0]) and torch.equal(outputs["res4"], expected[3])


@pytest.mark.parametrize(
    "name, out_indices, options",
    [("no_such_model", (), {}), ("resnet18", (7,), {}), ("resnet18", (), {"no_such_option": 1})],
)
def test_what_timm_cannot_build(name, out_indices, options):
    with pytest.raises(ValueError, match=f"MODEL.TIMM.NAME '{name}'.*timm {timm.__version__}"):
        TimmBackbone(name, out_indices=out_indices, options=options)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        TimmBackbone("resnet18")


def test_hrnet_gives_its_four_branches_and_resizes_between_them_bilinearly(make_cfg):
    cfg = timm_cfg(
        make_cfg,
        *("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.TIMM.NAME", "hrnet_w18_small"),
    )
    backbone = build_backbone(cfg)
    assert backbone.output_shape() == {
        "res2": ShapeSpec(channels=16, stride=4),
        "res3": ShapeSpec(channels=32, stride=8),
        "res4": ShapeSpec(channels=64, stride=16),
        "res5": ShapeSpec(channels=128, stride=32),
    }
    resizes = [m for m in backbone.modules() if isinstance(m, torch.nn.Upsample)]
    assert resizes and all(m.mode == "bilinear" and m.align_corners is False for m in resizes)


HEADS = {
    "FPN": (
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    ),
    "FCN": (
        *("MODEL.SEM_SEG_HEAD.NAME", "FCNHead", "MODEL.SEM_SEG_HEAD.DROPOUT", 0.1),
        *("MODEL.SEM_SEG_HEAD.NUM_CONVS", 2, "MODEL.SEM_SEG_HEAD.KERNEL_SIZE", 3),
    ),
    "DeepLabV3+": (
        *("MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res5"]),
        *("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 16, "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [8]),
        *("MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy", "INPUT.CROP.SIZE", [64, 64]),
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_under_heads_it_trains_predicts_at_an_odd_size_and_serves_as_a_base(make_cfg, head):
    cfg = timm_cfg(make_cfg, *HEADS[head])
    model = build_model(cfg)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    item = {"image": image, "sem_seg": torch.randint(0, 3, (64, 64)), "height": 64, "width": 64}
    losses = model.train()([item, dict(item)])
    sum(losses.values()).backward()
    stem = dict(model.named_parameters())
    name = next(n for n in stem if n.endswith("model.conv1.weight"))
    assert stem[name].grad.abs().sum() > 0

    cfg.MODEL.META_ARCHITECTURE = "SparseRefine"
    cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE = "SemanticSegmentor"
    refine = build_model(cfg).eval()
    refine.coarse.base.load_state_dict(model.state_dict())
    odd = torch.randint(0, 256, (3, 75, 101), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = refine([{"image": odd}])
    assert output["sem_seg"].shape == (3, 75, 101)


def test_a_feature_that_is_not_there(make_cfg):
    cfg = timm_cfg(make_cfg, *HEADS["FCN"], "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "p3"])
    with pytest.raises(ValueError, match=r"IN_FEATURES is \['res2', 'p3'\].*\['p3'\] are not"):
        build_model(cfg)
