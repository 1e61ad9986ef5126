# SPDX-License-Identifier: Apache-2.0
"""Keys reach the part that they belong to; records and cached logits belong to the keys that they
depend on."""

from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY

from sparse_refine import SparseRefine, Trainer
from sparse_refine.base import build_base
from sparse_refine.losses import LossWeights
from sparse_refine.modeling.building import build_model
from sparse_refine.sparse.layers import SyncSiteNorm

from .tiny import TinyBase

METHOD = "MODEL.SPARSE_REFINE."
BUDGET = (METHOD + "SELECTOR.NAME", "BudgetSelector")

# ---- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, attribute",
    [
        ("OUTPUT", "labels", "output"),
        ("COARSE_INTERPOLATION", "bilinear", "coarse.interpolation"),
        ("COARSE_CACHE", "some/folder", "coarse.cache.root.as_posix"),
        ("BASE.SCALE", 0.25, "coarse.scale"),
        ("BASE.SCORE_TYPE", "scores", "coarse.score_type"),
        ("BASE.TEMPERATURE", 2.5, "coarse.temperature"),
        ("SELECTOR.THRESHOLD", 0.125, "selector.threshold"),
        ("EXTRACTOR.FEATURES", ("entropy", "rgb"), "extractor.features"),
        ("EXTRACTOR.PATCH", 2, "extractor.patch"),
        ("EXTRACTOR.RESIDUAL", True, "extractor.residual"),
        ("EXTRACTOR.DOWNSAMPLE_SITES", "reach", "extractor.downsample"),
        ("EXTRACTOR.BACKEND", "minkowski", "extractor.backend"),
        ("EXTRACTOR.PRECISION", "bfloat16", "extractor.precision"),
        ("ENSEMBLER.HIDDEN", 5, "ensembler.gate.0.out_features"),
        ("ENSEMBLER.HIDDEN", 5, "ensembler.head.0.out_features"),
    ],
)
def test_a_key_of_the_method_reaches_its_part(make_cfg, key, value, attribute):
    given = list(value) if isinstance(value, tuple) else value
    found = attrgetter(attribute)(SparseRefine(make_cfg(METHOD + key, given)))
    assert (found() if callable(found) else found) == value


@pytest.mark.parametrize("key, value, count", [("FRACTION", 0.3, None), ("COUNT", 17, 17)])
def test_a_budget(make_cfg, key, value, count):
    selector = SparseRefine(make_cfg(*BUDGET, METHOD + "SELECTOR." + key, value)).selector
    assert selector.count == count and (count or selector.fraction == value)


def test_the_networks_size_and_norm(make_cfg):
    def unet(*options):
        return SparseRefine(make_cfg(*options)).extractor.unet

    node = METHOD + "EXTRACTOR."
    assert [len(blocks) for blocks in unet(node + "BLOCKS", 3).encoders] == [3, 3]
    assert unet(node + "CHANNELS", [6, 10, 12]).levels == 3
    for norm, expected in (("BN", False), ("SyncBN", True)):
        modules = unet(node + "NORM", norm).modules()
        assert any(isinstance(module, SyncSiteNorm) for module in modules) == expected


def test_losses_and_the_ignored_label(make_cfg):
    node = METHOD + "LOSS."
    weights = (
        node + "REFINED_WEIGHT",
        0.25,
        node + "FUSED_WEIGHT",
        0.5,
        node + "DICE_WEIGHT",
        0.75,
    )
    model = SparseRefine(make_cfg(*weights, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 9))
    assert model.loss_weights == LossWeights(refined=0.25, fused=0.5, dice=0.75)
    assert model.ignore_label == 9


def test_the_crop_is_the_refiners_alone(make_cfg, monkeypatch):
    """A base that reads INPUT.CROP (DeepLab pools in windows of it) sees whole images."""
    seen, init = [], TinyBase.__init__

    def recording(self, cfg):
        seen.append(cfg.INPUT.CROP.ENABLED)
        init(self, cfg)

    monkeypatch.setattr(TinyBase, "__init__", recording)
    cfg = make_cfg("INPUT.CROP.ENABLED", True)
    build_base(cfg)
    assert seen == [False] and cfg.INPUT.CROP.ENABLED


# ---- what the records of an evaluation belong to -------------------------------------------------


@pytest.fixture
def evaluation(make_cfg, tiny_dataset, tmp_path):
    """run(*options) -> number of images that an evaluation looked at which went on from the records
    of a first one, with the same weights and other keys."""
    name = tiny_dataset(count=3)
    data = ("DATASETS.TRAIN", (), "DATASETS.TEST", (name,), "OUTPUT_DIR", str(tmp_path))

    def run(*options, given=()):
        model = build_model(make_cfg(*data, *given)).eval()
        Trainer.test(make_cfg(*data, *given), model)
        seen = []
        model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
        Trainer.test(make_cfg(*data, *given, *options), model, resume=True)
        return len(seen)

    return SimpleNamespace(run=run, dense=("MODEL.META_ARCHITECTURE", "TinyBase"))


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        (METHOD + "OUTPUT", "labels"),
        (METHOD + "COARSE_INTERPOLATION", "bilinear"),
        (METHOD + "BASE.SCALE", 0.25),
        (METHOD + "BASE.TEMPERATURE", 2.0),
        (METHOD + "SELECTOR.THRESHOLD", 0.5),
        (METHOD + "EXTRACTOR.PRECISION", "bfloat16"),
    ],
)
def test_records_of_other_settings_are_refused(evaluation, key, value):
    """Whatever changes a prediction."""
    with pytest.raises(ValueError, match="other weights or another configuration"):
        evaluation.run(key, value)


@pytest.mark.parametrize("key, value", [("INPUT.FORMAT", "BGR"), ("INPUT.SCALE", 0.5)])
def test_records_of_a_dense_model_at_other_settings_are_refused(evaluation, key, value):
    with pytest.raises(ValueError, match="other weights or another configuration"):
        evaluation.run(key, value, given=evaluation.dense)


def test_records_of_the_same_predictions_are_taken_up(evaluation, tmp_path):
    """What the weights are called, and what training alone reads, changes no prediction."""
    options = ["MODEL.WEIGHTS", "some.pth", METHOD + "BASE.WEIGHTS", "base.pth"]
    options += [METHOD + "COARSE_CACHE", str(tmp_path / "cache"), "SOLVER.BASE_LR", 0.5]
    assert evaluation.run(*options) == 0


# ---- what cached logits belong to ----------------------------------------------------------------


@pytest.fixture
def calls(make_cfg, tmp_path):
    """calls(*options) -> how many times the base was asked for one and the same image."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"its name, size and time matter")
    item = {
        "file_name": str(photo),
        "image": torch.zeros(3, 4, 6, dtype=torch.uint8),
        "sem_seg": torch.zeros(4, 6, dtype=torch.int64),
        "context": torch.zeros(3, 4, 6, dtype=torch.uint8),
        "crop": (0, 0, 8, 12),
    }

    def calls(*options) -> int:
        torch.manual_seed(0)  # the same weights
        model = SparseRefine(make_cfg(METHOD + "COARSE_CACHE", str(tmp_path / "c"), *options))
        model.train()([item])
        return len(model.coarse.base.calls)

    return calls


def test_another_architecture_of_the_same_weights_is_asked_anew(calls):
    class OtherBase(TinyBase):
        pass

    META_ARCH_REGISTRY.register(OtherBase)
    try:
        assert calls() == 1 and calls() == 0
        assert calls(METHOD + "BASE.META_ARCHITECTURE", "OtherBase") == 1
    finally:
        del META_ARCH_REGISTRY._obj_map["OtherBase"]


def test_neither_paths_nor_the_refiner_matter_to_cached_logits(calls):
    assert calls() == 1
    assert calls("MODEL.WEIGHTS", "some.pth") == 0
    assert calls(METHOD + "EXTRACTOR.CHANNELS", [6, 8], METHOD + "ENSEMBLER.HIDDEN", 4) == 0
    assert calls(*BUDGET) == 0
