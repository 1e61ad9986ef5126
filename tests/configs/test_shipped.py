# SPDX-License-Identifier: Apache-2.0
"""Every shipped config, its base shrunk: builds, predicts, trains a step, is exported and read."""

import importlib.util
import sys

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from sparse_refine.config import load_config
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.checkpointer import SafeCheckpointer
from sparse_refine.training.trainer import Trainer

from ..marks import slow_except
from .shrunk import CONFIGS, LEAVES, PROJECT, config_of


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


QUICK = ["cityscapes/segformer_b5", "examples/plain_pytorch", "rgbweed/sparse_refine"]
QUICK_LEAVES = [CONFIGS / f"{name}.yaml" for name in QUICK]


@pytest.mark.parametrize("path", slow_except(LEAVES, *QUICK_LEAVES), ids=by_id)
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
    options += ["MODEL.WEIGHTS", str(exported)]
    again = load_config(str(path), options, trust_code=True)
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


@pytest.mark.parametrize("name", slow_except(DENSE, "examples/plain_pytorch"))
def test_base_trains_by_itself(name, tmp_path, monkeypatch):
    """With the same yaml and MODEL.META_ARCHITECTURE set to its own, as the examples say."""
    path = CONFIGS / f"{name}.yaml"
    cfg, options = config_of(path, tmp_path, monkeypatch)
    kind = cfg.MODEL.SPARSE_REFINE.BASE.META_ARCHITECTURE
    options += ["MODEL.META_ARCHITECTURE", kind]
    model = Trainer.build_model(load_config(str(path), options, trust_code=True))
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
