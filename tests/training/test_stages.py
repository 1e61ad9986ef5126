# SPDX-License-Identifier: Apache-2.0
"""Base, dense network and refiner trained from one config by one command."""

import shutil
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from sparse_refine.config import load_config
from sparse_refine.inference.loading import load_model
from sparse_refine.training.stages import stages_of
from sparse_refine.training.trainer import Trainer

from .runs import METHOD, assert_same, final, train_net

OWN = {
    "META_ARCHITECTURE": "SemanticSegmentor",
    "BACKBONE": {"NAME": "build_efficientnet_lite_fpn_backbone"},
    "EFFICIENTNET_LITE": {"OUT_FEATURES": ["res2", "res3"]},
    "FPN": {"IN_FEATURES": ["res2", "res3"], "OUT_CHANNELS": 8, "NORM": "BN"},
    "SEM_SEG_HEAD": {
        **{"NAME": "SemSegFPNHead", "IN_FEATURES": ["p2", "p3"], "CONVS_DIM": 8, "NORM": "BN"}
    },
}
BASE = {"SOLVER": {"MAX_ITER": 3, "BASE_LR": 0.01}, "INPUT": {"RESIZE_RANGE": [1.0, 1.0]}}
NETWORK = {"SOLVER": {"MAX_ITER": 2}}


@pytest.fixture
def cfg(make_cfg, tiny_dataset, tmp_path):
    cfg = make_cfg(
        *("DATASETS.TRAIN", (tiny_dataset(),), "DATASETS.TEST", ()),
        *("OUTPUT_DIR", str(tmp_path / "run")),
        *("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SEED", 1),
        *(f"{METHOD}EXTRACTOR.NAME", "PretrainedExtractor", f"{METHOD}EXTRACTOR.TRAINED", "all"),
        *(f"{METHOD}ENSEMBLER.NAME", "RefinedEnsembler", f"{METHOD}LOSS.FUSED_WEIGHT", 0.0),
        *(f"{METHOD}LOSS.DISTILLATION_WEIGHT", 1.0, "SOLVER.OPTIMIZER", "SGD"),
        *(f"{METHOD}BASE.TRAINING", BASE, f"{METHOD}EXTRACTOR.TRAINING", NETWORK),
        *(f"{METHOD}EXTRACTOR.MODEL", OWN),
    )
    return cfg


def start(cfg, *flags):
    """`train_net` without the base weights that it would give."""
    cfg = cfg.clone()
    cfg.defrost()
    return train_net(cfg, *flags)


def test_each_has_its_keys(cfg):
    base, network = stages_of(cfg)
    assert base.cfg.MODEL.META_ARCHITECTURE == "TinyBase"
    assert base.cfg.INPUT.SCALE == cfg.MODEL.SPARSE_REFINE.BASE.SCALE
    assert base.cfg.SOLVER.MAX_ITER == 3 and base.cfg.SOLVER.IMS_PER_BATCH == 2
    assert network.cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    assert network.cfg.INPUT.SCALE == 1 and network.cfg.MODEL.WEIGHTS == ""
    assert network.cfg.MODEL.FPN.OUT_CHANNELS == 8 and network.cfg.SOLVER.MAX_ITER == 2
    assert [Path(stage.cfg.OUTPUT_DIR).name for stage in (base, network)] == ["base", "extractor"]


def test_a_network_of_the_bases_architecture_starts_from_it(cfg):
    cfg.MODEL.SPARSE_REFINE.EXTRACTOR.MODEL = CfgNode(new_allowed=True)
    base, network = stages_of(cfg)
    assert base.checkpoint == network.cfg.MODEL.WEIGHTS
    cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = "given.pth"
    (network,) = stages_of(cfg)
    assert network.cfg.MODEL.WEIGHTS == "given.pth"


def test_what_has_weights_is_not_trained(cfg):
    cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = cfg.MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS = "given.pth"
    assert stages_of(cfg) == []
    cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = cfg.MODEL.SPARSE_REFINE.EXTRACTOR.WEIGHTS = ""
    cfg.MODEL.WEIGHTS = "refiner.pth"
    assert stages_of(cfg) == []
    cfg.MODEL.META_ARCHITECTURE = "TinyBase"
    assert stages_of(cfg) == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["BASE.TRAINING", {"SOLVER": {"MAX_ITERS": 3}}], "BASE.TRAINING: .*MAX_ITERS"),
        (["EXTRACTOR.TRAINING", {"INPUT": {"CACHE_IMAGES": "all"}}], "EXTRACTOR.TRAINING: "),
        (["BASE.TRAINING", {"INPUT": {"SCALE": 1.0}}], "BASE.TRAINING holds INPUT.SCALE"),
        (["BASE.TRAINING", {"MODEL": {"ALLOW_PICKLE": True}}], "BASE.TRAINING holds MODEL"),
        (["EXTRACTOR.MODEL", {"ALLOW_PICKLE": True}], "EXTRACTOR.MODEL holds ALLOW_PICKLE"),
        (["SELECTOR.NAME", "NoSelector"], "SELECTOR.NAME is 'NoSelector'"),
        (["TEACHER.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["EXTRACTOR.TRAINED", "none"], "nothing to train"),
        (["COARSE_CACHE", "cache"], "COARSE_CACHE is set"),
        (
            ["EXTRACTOR.NAME", "SparseUNetExtractor", "LOSS.DISTILLATION_WEIGHT", 0.0],
            "nothing reads such a network",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_training(cfg, options, message, tmp_path):
    pairs = [f"{METHOD}{key}" if n % 2 == 0 else key for n, key in enumerate(options)]
    cfg.merge_from_list([str(tmp_path / part) if part == "cache" else part for part in pairs])
    with pytest.raises((KeyError, ValueError, OSError), match=message):
        start(cfg)
    assert not list(Path(cfg.OUTPUT_DIR).rglob("*.pth"))


def test_a_stage_does_not_write_over_what_is_read(cfg):
    file = Path(cfg.OUTPUT_DIR, "extractor", "model_final.pth")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"the teacher")
    cfg.MODEL.SPARSE_REFINE.TEACHER.WEIGHTS = str(file)
    with pytest.raises(ValueError, match="TEACHER.WEIGHTS is .*over it"):
        start(cfg)
    assert file.read_bytes() == b"the teacher"


def test_one_command_trains_all_and_resumes_in_any_of_them(cfg, monkeypatch, tmp_path):
    start(cfg)
    run = Path(cfg.OUTPUT_DIR)
    # the checkpoint holds all: its config names no file that may go
    kept = yaml.safe_load((run / "config.yaml").read_text())["MODEL"]["SPARSE_REFINE"]
    assert kept["BASE"]["WEIGHTS"] == kept["EXTRACTOR"]["WEIGHTS"] == ""
    refiner, base = final(run), final(run / "base")
    assert_same({n: refiner[f"coarse.base.{n}"] for n in base}, base)
    network = final(run / "extractor")
    own = {n: refiner[f"extractor.model.{n}"] for n in network}
    assert any((own[n] != network[n]).any() for n in network)  # which it started from

    cfg.OUTPUT_DIR = str(tmp_path / "broken")
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    done = []

    def run_step(self):
        done.append(self.cfg.OUTPUT_DIR)
        if len(done) == 5:  # the second step of the second stage
            raise KeyboardInterrupt
        original(self)

    original = Trainer.run_step
    monkeypatch.setattr(Trainer, "run_step", run_step)
    with pytest.raises(KeyboardInterrupt):
        start(cfg)
    done += [""] * 10
    start(cfg, "--resume")
    assert_same(final(tmp_path / "broken"), refiner)

    shutil.rmtree(tmp_path / "broken" / "base")
    cfg.MODEL.SPARSE_REFINE.LOSS.DISTILLATION_WEIGHT = 0.0
    cfg.SOLVER.MAX_ITER = 3
    before = len(done)
    start(cfg, "--resume")  # of the refiner, which has the base's weights
    assert done[before:] == [cfg.OUTPUT_DIR]
    load_model(load_config(str(run / "config.yaml"), ["MODEL.WEIGHTS", f"{run}/model_final.pth"]))
