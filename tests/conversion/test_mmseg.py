# SPDX-License-Identifier: Apache-2.0
"""HRNet, SegFormer, SegNeXt and Mask2Former give the numbers of MMSegmentation's own models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_refine import ModuleSegmentor
from sparse_refine.base import build_base, load_base_weights
from sparse_refine.config import load_config
from sparse_refine.conversion import FORMATS, compare, convert
from sparse_refine.modeling.importing import import_projects
from sparse_refine.storage.weights import save_weights

# slow: importing MMSegmentation alone takes seconds
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "configs"
FEATURES = ["res2", "res3", "res4", "res5"]


def hrnet(name: str, channels: int):
    return (
        *("MODEL.BACKBONE.NAME", "build_hrnet_backbone", "MODEL.TIMM.NAME", name),
        *("MODEL.SEM_SEG_HEAD.NAME", "FCNHead", "MODEL.SEM_SEG_HEAD.IN_FEATURES", FEATURES),
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", channels, "MODEL.SEM_SEG_HEAD.NORM", "BN"),
    )


def segformer(size: str):
    return (
        *("MODEL.BACKBONE.NAME", "build_mix_transformer_backbone"),
        *("MODEL.MIX_TRANSFORMER.SIZE", size, "MODEL.SEM_SEG_HEAD.NAME", "SegFormerHead"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", FEATURES, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 256),
        *("MODEL.SEM_SEG_HEAD.NORM", "BN"),
    )


def segnext(size: str, channels: int):
    return (
        *("MODEL.BACKBONE.NAME", "build_mscan_backbone", "MODEL.MSCAN.SIZE", size),
        *("MODEL.SEM_SEG_HEAD.NAME", "LightHamHead", "MODEL.SEM_SEG_HEAD.NORM", "GN"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", FEATURES[1:]),
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", channels),
    )


# one of each family to run: (format, their config, changes to it, our keys)
SMALL = {
    "HRNet-W18-small": (
        "mmseg-hrnet",
        "hrnet/fcn_hr18s_4xb2-160k_cityscapes-512x1024.py",
        {},
        hrnet("hrnet_w18_small_v2", 270),
    ),
    "SegFormer-B0": (
        "mmseg-segformer",
        "segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py",
        {},
        segformer("b0"),
    ),
    "SegNeXt-T": (
        "mmseg-segnext",
        "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py",
        {"decode_head.num_classes": 19},
        segnext("t", 256),
    ),
}
# our yaml -> (format, [(their config, changes to the yaml)]): the paper's base and smaller ones
CONV_DIMS, SIZE = "MODEL.SEM_SEG_HEAD.CONVS_DIM", "MODEL.MSCAN.SIZE"
SHIPPED = {
    "hrnet_w48": ("mmseg-hrnet", [("hrnet/fcn_hr48_4xb2-160k_cityscapes-512x1024.py", [])]),
    "segformer_b5_mmseg": (
        "mmseg-segformer",
        [
            ("segformer/segformer_mit-b5_8xb1-160k_cityscapes-1024x1024.py", []),
            (
                "segformer/segformer_mit-b1_8xb1-160k_cityscapes-1024x1024.py",
                ["MODEL.MIX_TRANSFORMER.SIZE", "b1"],
            ),
        ],
    ),
    "segnext_l": (
        "mmseg-segnext",
        [
            ("segnext/segnext_mscan-l_1xb16-adamw-160k_ade20k-512x512.py", []),
            (
                "segnext/segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512.py",
                [SIZE, "b", CONV_DIMS, 512],
            ),
            (
                "segnext/segnext_mscan-s_1xb16-adamw-160k_ade20k-512x512.py",
                [SIZE, "s", CONV_DIMS, 256],
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_parity_through_the_converter(
    tmp_path, build_mmseg, build_ours, randomise, predict_both, name
):
    form, config, changes, options = SMALL[name]
    theirs = randomise(build_mmseg(config, **changes))
    _, ours = build_ours(*options)
    converted, report = convert(theirs.state_dict(), FORMATS[form].rules)
    compare(report, converted, ours.state_dict())
    assert report.complete, report.summary()
    save_weights(converted, str(tmp_path / "base.safetensors"))
    load_base_weights(ours, str(tmp_path / "base.safetensors"))
    expected, output = predict_both(theirs, ours)
    assert expected.std() > 0.05  # the classes differ, pixel by pixel
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_its_models_serve_as_they_are(build_mmseg, randomise, predict_both):
    """Without conversion: what is built on MMSegmentation is a module like any other."""
    theirs = randomise(build_mmseg(SMALL["SegFormer-B0"][1]))
    expected, output = predict_both(theirs, ModuleSegmentor(theirs).eval())
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_have_the_names_and_shapes(build_mmseg, name):
    form, sizes = SHIPPED[name]
    for config, options in sizes:
        theirs = build_mmseg(config, **{"decode_head.num_classes": 19})
        ours = build_base(load_config(str(CONFIGS / "cityscapes" / f"{name}.yaml"), options))
        converted, report = convert(theirs.state_dict(), FORMATS[form].rules)
        compare(report, converted, ours.state_dict())
        assert report.complete, f"{config}\n{report.summary()}"


def test_another_models_checkpoint_is_no_match(build_mmseg, build_ours):
    theirs = build_mmseg(SMALL["SegFormer-B0"][1])
    _, ours = build_ours(*segformer("b1"))
    _, report = convert(theirs.state_dict(), FORMATS["mmseg-segnext"].rules)
    assert not report.complete and report.left_over
    converted, report = convert(theirs.state_dict(), FORMATS["mmseg-segformer"].rules)
    compare(report, converted, ours.state_dict())
    assert not report.complete and "(32,) in the file, (64,) in the model" in str(report.shapes)


@pytest.fixture
def mask2former():
    """The Mask2Former of our yaml, with fewer layers and queries."""
    pytest.importorskip("mmdet", reason="MMDetection, which has the head's layers, is missing")
    try:
        import_projects(None, ["mask2former"])
    except ImportError:
        pytest.skip("Mask2Former is on no path: a checkout on PYTHONPATH, or maskformer2==0.1")
    cfg = load_config(
        str(CONFIGS / "cityscapes" / "mask2former_t.yaml"),
        [
            "MODEL.DEVICE", "cpu",
            "MODEL.SWIN.DEPTHS", [1, 1, 2, 1],
            "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 2,
            "MODEL.MASK_FORMER.DEC_LAYERS", 3,  # one more than layers
            "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7,
        ],
    )  # fmt: skip
    return build_base(cfg).eval()


MASK2FORMER_CHANGES = {
    "backbone.depths": [1, 1, 2, 1],
    "decode_head.pixel_decoder.encoder.num_layers": 2,
    "decode_head.transformer_decoder.num_layers": 2,
    "decode_head.num_queries": 7,
}


def test_mask2former_parity_through_the_converter(
    tmp_path, build_mmseg, randomise, predict_both, mask2former
):
    config = "mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py"
    theirs = randomise(build_mmseg(config, **MASK2FORMER_CHANGES))
    converted, report = convert(theirs.state_dict(), FORMATS["mmseg-mask2former"].rules)
    compare(report, converted, mask2former.state_dict())
    assert report.complete, report.summary()
    save_weights(converted, str(tmp_path / "base.safetensors"))
    load_base_weights(mask2former, str(tmp_path / "base.safetensors"))
    expected, output = predict_both(theirs, mask2former)
    assert expected.std() > 0.01  # scores of seven queries
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_mask2formers_names_of_older_packages_mean_the_same(build_mmseg):
    pytest.importorskip("mmdet", reason="MMDetection, which has the head's layers, is missing")
    config = "mask2former/mask2former_swin-t_8xb2-90k_cityscapes-512x1024.py"
    state = build_mmseg(config, **MASK2FORMER_CHANGES).state_dict()
    rules = FORMATS["mmseg-mask2former"].rules
    old = {}
    for name, tensor in state.items():
        head = "decode_head." in name
        numbers = {"cross_attn": 0, "self_attn": 0 if "pixel_decoder" in name else 1}
        for word, number in numbers.items():
            name = name.replace(f".{word}.", f".attentions.{number}.") if head else name
        old[name.replace(".ffn.layers.", ".ffns.0.layers.") if head else name] = tensor
    assert old.keys() != state.keys()
    expected, converted = convert(state, rules)[0], convert(old, rules)[0]
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())


def test_mask2formers_own_checkpoints(mask2former):
    expected = mask2former.state_dict()
    state = {"criterion.empty_weight": torch.ones(20), "pixel_mean": torch.ones(3, 1, 1)}
    for name, tensor in expected.items():  # names of the project's first version
        name = name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        state[name.replace("query_feat", "static_query")] = tensor
    for given in (state, expected):
        converted, report = convert(given, FORMATS["mask2former"].rules)
        compare(report, converted, expected)
        assert report.complete, report.summary()
