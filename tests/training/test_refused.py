# SPDX-License-Identifier: Apache-2.0
"""Configs and data on which a training would be wrong: refused before it, in plain words."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.utils import comm
from PIL import Image

from sparse_refine.commands.train import train
from sparse_refine.config import load_config
from sparse_refine.evaluation import known_metrics
from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.modeling.building import build_model
from sparse_refine.training.trainer import Trainer

from ..tiny import register_tiny
from .runs import METHOD, final

DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase"]


def assert_nothing_was_trained(folder: Path) -> None:
    assert not (folder / "model_final.pth").exists()


# ---- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.MIN_SIZE_TRAIN", (512,)),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        ("INPUT.MAX_SIZE_TRAIN", 2048),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("DATALOADER.ASPECT_RATIO_GROUPING", False),
        ("TEST.AUG.ENABLED", True),
    ],
)
def test_keys_that_nothing_here_reads(run, tmp_path, key, value):
    with pytest.raises(ValueError, match=rf"{key} is .*nothing here reads it: leave it at"):
        run("a", *DENSE, key, value)
    assert_nothing_was_trained(tmp_path / "a")


@pytest.mark.parametrize(
    "options, message",
    [
        (["SOLVER.MAX_ITER", 0], "SOLVER.MAX_ITER is 0: at least 1"),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
    ],
)
def test_no_training_at_all(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run("a", *DENSE, *options)
    assert_nothing_was_trained(tmp_path / "a")


def test_a_best_metric_that_does_not_exist(run, tmp_path):
    metric = ["TEST.EVAL_PERIOD", 2, "SOLVER.BEST_CHECKPOINT_METRIC"]
    for name in ("sparse_refine/mIou", "sem_seg/mIoU2", "sparse_refine/seconds"):
        with pytest.raises(ValueError, match=rf"METRIC is '{name}'.*Known: sparse_refine/mIoU, "):
            run("a", *DENSE, *metric, name)
    with pytest.raises(ValueError, match="coarse/mIoU"):  # of SparseRefine alone
        run("a", *DENSE, *metric, "sparse_refine/coarse/mIoU")
    assert_nothing_was_trained(tmp_path / "a")


@pytest.mark.parametrize("refined", [False, True], ids=["dense", "refined"])
def test_every_known_metric_is_one(run, tmp_path, refined):
    """The names that are accepted are those that an evaluation gives, but for costs."""
    options = ["SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 2]
    metric = "sparse_refine/BoundaryIoU-weed"
    run("a", *([] if refined else DENSE), *options, "SOLVER.BEST_CHECKPOINT_METRIC", metric)
    assert (tmp_path / "a" / "model_best.pth").is_file()
    cfg = load_config(str(tmp_path / "a" / "given_0.yaml"))
    model = Trainer.build_model(cfg).eval()
    found = set(flatten_results_dict(Trainer.test(cfg, model)))
    known = set(known_metrics(cfg))
    assert known <= found
    costs = ("seconds", "seconds_median", "megapixels", "selected_fraction")
    assert {name for name in found - known if name.startswith("sparse_refine/")} == {
        f"sparse_refine/{cost}" for cost in costs if refined or cost != "selected_fraction"
    }


def test_a_best_metric_of_several_sets(run, tiny_dataset, caplog, make_cfg, tmp_path):
    other = tiny_dataset()
    cfg = make_cfg(*DENSE, "OUTPUT_DIR", str(tmp_path), "TEST.EVAL_PERIOD", 2)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (other,), (other, tiny_dataset())
    with caplog.at_level(logging.WARNING):
        Trainer(cfg)
    assert f"Known: {other}/sparse_refine/mIoU" in caplog.text
    caplog.clear()
    cfg.SOLVER.BEST_CHECKPOINT_METRIC = f"{other}/sparse_refine/mIoU"
    Trainer(cfg)
    assert "BEST_CHECKPOINT_METRIC" not in caplog.text


# ---- data sets -----------------------------------------------------------------------------------


def test_metadata_without_an_ignore_label(run, tmp_path):
    """As Detectron2's pages register a data set: IGNORE_VALUE holds, in the evaluation too."""
    name = f"{tmp_path.name}_plain"
    register_tiny(name, tmp_path / "data")
    labels = tmp_path / "data" / "labels" / "0.png"
    truth = np.array(Image.open(labels))
    truth[:9] = 77
    Image.fromarray(truth).save(labels)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=["soil", "crop", "weed"], evaluator_type="sem_seg")
    try:
        sets = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
        ignore = ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 77]
        run("a", *DENSE, *sets, *ignore, "SOLVER.MAX_ITER", 1)
        weights = ["MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth")]
        results = run("a", *DENSE, *sets, *ignore, *weights, flags=["--eval-only"])
        ours, theirs = results["sparse_refine"], results["sem_seg"]
        assert ours["mIoU"] == pytest.approx(theirs["mIoU"])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_cityscapes_on_several_machines(tiny_dataset, make_cfg, monkeypatch):
    """Its evaluation needs one: said before the training, not at the first evaluation."""
    name = tiny_dataset()
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(
        stuff_classes=["soil", "crop", "weed"], evaluator_type="cityscapes_sem_seg"
    )
    monkeypatch.setattr(comm, "get_world_size", lambda: 8)
    monkeypatch.setattr(comm, "get_local_size", lambda: 4)
    with pytest.raises(RuntimeError, match=r"one machine, but 4 of 8 .*DATASETS\.TEST empty"):
        check_datasets(make_cfg("DATASETS.TEST", (name,)))


# ---- no labels in a batch ------------------------------------------------------------------------

# fmt: off
HEADS = {
    "SemSegFPNHead": [],
    "PointRendSemSegHead": [
        "MODEL.POINT_HEAD.NUM_CLASSES", 3,
        "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2,
    ],
}
# fmt: on


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_any_label(make_cfg, head):
    cfg = make_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE", "SemanticSegmentor",
            "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
            "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
            "MODEL.RESNETS.WIDTH_PER_GROUP", 8,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
            "MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"],
            "MODEL.FPN.OUT_CHANNELS", 16,
            "MODEL.SEM_SEG_HEAD.NAME", head,
            "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"],
            "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
            "MODEL.POINT_HEAD.IN_FEATURES", ["p2"],
            *HEADS[head],
        ]
    )  # fmt: skip
    model = build_model(cfg).train()
    item = {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}
    nothing = torch.full((64, 64), 255)
    losses = model([{**item, "sem_seg": nothing}])
    assert losses and all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(not p.grad.any() for p in model.parameters() if p.requires_grad)
    some = model([{**item, "sem_seg": nothing}, {**item, "sem_seg": torch.zeros_like(nothing)}])
    assert all(loss.isfinite() and loss > 0 for loss in some.values())


# ---- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message", [([], "is needed"), (["--config-file", "no.yaml"], "no such file")]
)
def test_without_a_config_file(capsys, arguments, message):
    with pytest.raises(SystemExit):
        train(arguments)
    text = capsys.readouterr().err
    assert "--config-file" in text and message in text


def test_class_names_that_yaml_takes_for_values(make_cfg, tmp_path):
    text = make_cfg(*DENSE).dump() + "\n"
    (tmp_path / "base.yaml").write_text(text)
    folders = f"  FOLDERS: [[yes_no, {tmp_path}/images, {tmp_path}/labels]]\n"
    leaf = f"_BASE_: base.yaml\nDATASETS:\n{folders}  CLASS_NAMES: [no, yes]\n"
    (tmp_path / "leaf.yaml").write_text(leaf)
    with pytest.raises(ValueError, match="class_names holds False, which is no text.*quotes"):
        load_config(str(tmp_path / "leaf.yaml"))


def test_home_in_paths(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("base", *DENSE, "SOLVER.MAX_ITER", 1)
    weights = ["MODEL.WEIGHTS", "~/base/model_final.pth"]
    assert "sparse_refine" in run("b", *DENSE, *weights, flags=["--eval-only"])
    run("refined", METHOD + "BASE.WEIGHTS", weights[1], "SOLVER.MAX_ITER", 1)
    assert any(name.startswith("coarse.base.") for name in final(tmp_path / "refined"))
    with pytest.raises(ValueError, match="over it"):
        run("base", METHOD + "BASE.WEIGHTS", weights[1])
