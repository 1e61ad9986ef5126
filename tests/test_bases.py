# SPDX-License-Identifier: Apache-2.0
"""Every shipped config, its base shrunk: builds, predicts, trains a step, is exported and read."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from sparse_refine.base import build_base
from sparse_refine.config import load_config
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.checkpointer import SafeCheckpointer
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

os.environ["HF_HUB_OFFLINE"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]
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
    cfg = load_config(str(path), options)
    for part in ("BASE", "EXTRACTOR"):
        named = Path(cfg.MODEL.SPARSE_REFINE[part].WEIGHTS)
        if named.parts[:1] == ("output",):  # not shipped: what the config beside it trains
            trained = load_config(str(path.with_name(f"{named.parent.name}.yaml")))
            assert Path(trained.OUTPUT_DIR) == named.parent
            weights = str(tmp_path / f"{part}.safetensors")
            save_weights(Trainer.build_model(trained).state_dict(), weights)
            options += [f"MODEL.SPARSE_REFINE.{part}.WEIGHTS", weights]
    return load_config(str(path), options), options


def by_id(path):
    return f"{path.parent.name}-{path.stem}"


def image_of(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def answer(model, image):
    with torch.inference_mode():
        (output,) = model.eval()([{"image": image}])
    return output["labels" if "labels" in output else "sem_seg"]


def unsure(model):
    """Fresh weights may leave nothing, or all, above a threshold: refine a tenth."""
    from sparse_refine.selector import BudgetSelector

    if hasattr(model, "selector"):
        model.selector = BudgetSelector(fraction=0.1)
    return model


def step_of_training(model, image, classes):
    """Names of the tensors that it changes, at least one."""
    labels = torch.randint(0, classes, image.shape[1:])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = model.train()([{"image": image, "sem_seg": labels}])
    sum(losses.values()).backward()
    torch.optim.SGD(parameters, lr=0.1).step()
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(torch.isfinite(loss) for loss in losses.values())
    return changed


@pytest.mark.parametrize("path", LEAVES, ids=by_id)
def test_shipped_config(path, tmp_path, monkeypatch):
    cfg, options = config_of(path, tmp_path, monkeypatch)
    check_datasets(cfg)
    model = unsure(Trainer.build_model(cfg))
    image = image_of(75, 101)
    assert tuple(answer(model, image).shape[-2:]) == (75, 101)

    if cfg.MODEL.SPARSE_REFINE.EXTRACTOR.NAME != "PretrainedExtractor":
        changed = step_of_training(model, image, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        # the base, where there is one below a refiner, stays as it was
        if cfg.MODEL.META_ARCHITECTURE == "SparseRefine":
            assert not any(name.startswith("coarse.base.") for name in changed)

    # out and in again
    SafeCheckpointer(model, str(tmp_path)).save("model")
    exported = tmp_path / "model.safetensors"
    export(monkeypatch, tmp_path / "model.pth", exported)
    again = load_config(str(path), [*options, "MODEL.WEIGHTS", str(exported)])
    assert torch.equal(answer(unsure(load_model(again)), image), answer(model, image))


DENSE = [
    "cityscapes/fpn_r50",
    "cityscapes/hrnet_w48",
    "cityscapes/segformer_b5",
    "cityscapes/segformer_b5_mmseg",
    "cityscapes/segnext_l",
    "examples/plain_pytorch",
    "examples/smp",
    "examples/timm",
]


@pytest.mark.parametrize("name", DENSE)
def test_base_trains_by_itself(name, tmp_path, monkeypatch):
    """With the same yaml and MODEL.META_ARCHITECTURE set to its own, as the examples say."""
    path = CONFIGS / f"{name}.yaml"
    cfg, options = config_of(path, tmp_path, monkeypatch)
    kind = cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE
    model = Trainer.build_model(load_config(str(path), [*options, "MODEL.META_ARCHITECTURE", kind]))
    labels = torch.randint(0, 19, (64, 96))
    labels[:9] = 255
    item = {"image": image_of(64, 96), "sem_seg": labels}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    losses = []
    for _ in range(4):
        loss = sum(model.train()([item, item]).values())  # BatchNorm wants two
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def export(monkeypatch, source, target):
    spec = importlib.util.spec_from_file_location("export", PROJECT / "tools/export_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["export_weights.py", str(source), str(target)])
        module.main()


def test_there_are_shipped_configs():
    folders = {path.parent.name for path in LEAVES}
    assert folders == {
        *("ade20k", "camvid", "cityscapes", "coco_stuff", "examples", "rgbweed"),
        "synthetic_field",
    }
    assert len(LEAVES) > 20


def test_every_base_of_this_project_has_a_config():
    """Architectures and backbones that this project registers are all used by a shipped config."""
    from detectron2.modeling import BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY

    ours = {
        name
        for registry in (META_ARCH_REGISTRY, BACKBONE_REGISTRY, SEM_SEG_HEADS_REGISTRY)
        for name, item in registry
        if item.__module__.startswith("sparse_refine.")
    }
    text = "".join(path.read_text() for path in CONFIGS.rglob("*.yaml"))
    # the same backbone with the FPN around it
    assert {name for name in ours if name not in text} <= {"build_timm_backbone"}


# ---- at full size --------------------------------------------------------------------------------

SELECTORS = {
    "hrnet_w48": (0.3, 0.5),
    "segformer_b5": (0.1, 0.5),
    "segformer_b5_mmseg": (0.1, 0.5),
    "segnext_l": (0.1, 0.625),
    "mask2former_t": (0.05, 0.5),
    "mask2former_l": (0.005, 0.5),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_thresholds_and_sizes_of_the_paper(name):
    needs(name)
    cfg = load_config(str(CONFIGS / "cityscapes" / f"{name}.yaml"))
    node = cfg.MODEL.SPARSE_REFINE
    assert (node.SELECTOR.NAME, node.EXTRACTOR.PRESET) == ("EntropySelector", "paper")
    assert SELECTORS[name] == (node.SELECTOR.THRESHOLD, node.BASE.SCALE)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.0003, 32)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY) == ("ADAMW", 0.05)


# millions of parameters, as MMSegmentation, transformers and Mask2Former's project have them
SIZES = {
    "hrnet_w48": 65.9,
    "segformer_b5_mmseg": 82.0,
    "segnext_l": 48.8,
    "mask2former_t": 47.4,
    "mask2former_l": 215.5,
}


@pytest.mark.parametrize("name", SIZES)
def test_size_of_the_papers_bases(name, monkeypatch):
    needs(name)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor)  # slow
    base = build_base(load_config(str(CONFIGS / "cityscapes" / f"{name}.yaml")))
    millions = sum(parameter.numel() for parameter in base.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[name], rel=0.01)
