# SPDX-License-Identifier: Apache-2.0
"""The shipped configs, with bases shrunk to what a test can run."""

import importlib.util
import os
from pathlib import Path

import pytest

from sparse_refine.config import load_config
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = REPOSITORY / "projects" / "SparseRefine"
CONFIGS = PROJECT / "configs"
LEAVES = sorted(path for path in CONFIGS.glob("*/*.yaml") if not path.name.startswith("Base-"))
METHOD = "MODEL.SPARSE_REFINE."

# fmt: off
TINY_EXTRACTOR = [
    METHOD + "EXTRACTOR.PRESET", "custom", METHOD + "EXTRACTOR.CHANNELS", [4, 8],
    METHOD + "EXTRACTOR.BACKEND", "torch", METHOD + "ENSEMBLER.HIDDEN", 8,
    "MODEL.EFFICIENTNET_LITE.PRETRAINED", False, METHOD + "COARSE_CACHE", "",
]
TINY_RESNET = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
]
TINY_FPN = ["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]
TINY_MASK2FORMER = [
    "MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.HIDDEN_DIM", 32,
    "MODEL.MASK_FORMER.NHEADS", 4, "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 32,
    "MODEL.MASK_FORMER.DEC_LAYERS", 3, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7,
]
TINY = {  # by the name of the config: what makes its base small
    "deeplab_v3plus_r103": [
        *TINY_RESNET, "MODEL.RESNETS.DEPTH", 50,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 32,
    ],
    "fpn_r50": [*TINY_RESNET, *TINY_FPN],
    "hrnet_w48": ["MODEL.TIMM.NAME", "hrnet_w18_small"],
    "mask2former_l": TINY_MASK2FORMER,
    "mask2former_t": TINY_MASK2FORMER,
    "panoptic_fpn_r50": [*TINY_RESNET, *TINY_FPN, "MODEL.ROI_BOX_HEAD.FC_DIM", 32],
    "plain_pytorch": ["MODEL.MODULE.ARGS.width", 8],
    "pointrend_r101": [
        *TINY_RESNET, *TINY_FPN, "MODEL.RESNETS.DEPTH", 50,
        "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 64,
    ],
    "segformer_b5_mmseg": [
        "MODEL.MIX_TRANSFORMER.SIZE", "b0", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    ],
    "segnext_l": ["MODEL.MSCAN.SIZE", "t", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 64],
    "smp": ["MODEL.MODULE.ARGS.encoder_name", "resnet18"],
    "timm": ["MODEL.TIMM.NAME", "resnet18", *TINY_FPN],
}

# fmt: on
def segformer(classes, folder):
    """Written as the hub has it: config, safetensors, image processor."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=classes,
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor().save_pretrained(folder)
    return ["MODEL.HUGGING_FACE.NAME", str(folder)]


def hugging_face_mask2former(classes, folder):
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        num_queries=7,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_labels=classes,
    )
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    transformers.Mask2FormerImageProcessor().save_pretrained(folder)
    return ["MODEL.HUGGING_FACE.NAME", str(folder)]


FOLDERS = {
    "segformer_b5": segformer,
    "segformer_b5_hq": segformer,
    "hugging_face": hugging_face_mask2former,
}
NEEDS = {
    "hrnet_w48": "timm",
    "timm": "timm",
    "smp": "segmentation_models_pytorch",
    "mask2former_t": "mask2former",
    "mask2former_l": "mask2former",
    "pem_r50": "pem",
}


def needs(name):
    package = NEEDS.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def config_of(path, tmp_path, monkeypatch):
    needs(path.stem)
    monkeypatch.chdir(REPOSITORY)  # weights and files are named from there
    options = [*TINY_EXTRACTOR, *TINY.get(path.stem, [])]
    if path.stem in FOLDERS:
        classes = {"ade20k": 150, "coco_stuff": 54}.get(path.parent.name, 19)
        options += FOLDERS[path.stem](classes, tmp_path / "model")
    cfg = load_config(str(path), options, trust_code=True)
    for part in ("BASE", "EXTRACTOR"):
        named = Path(cfg.MODEL.SPARSE_REFINE[part].WEIGHTS)
        if named.parts[:1] == ("output",):  # not shipped: what the config beside it trains
            trained = load_config(str(path.with_name(f"{named.parent.name}.yaml")))
            assert Path(trained.OUTPUT_DIR) == named.parent
            weights = str(tmp_path / f"{part}.safetensors")
            save_weights(Trainer.build_model(trained).state_dict(), weights)
            options += [f"MODEL.SPARSE_REFINE.{part}.WEIGHTS", weights]
    return load_config(str(path), options, trust_code=True), options
