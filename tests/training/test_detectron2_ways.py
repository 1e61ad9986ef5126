# SPDX-License-Identifier: Apache-2.0
"""Detectron2's own trainer, predictor, mapper and evaluator around the meta-architecture, and
subclasses of this project's trainer: as Detectron2's pages have them."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator, inference_on_dataset
from PIL import Image

from sparse_refine import SparseRefinePredictor, Trainer, add_sparse_refine_config
from sparse_refine.data import build_test_loader, build_train_loader, read_labels
from sparse_refine.evaluation import SparseRefineEvaluator

from ..tiny import TINY_CLASSES, register_tiny, tiny_cfg, tiny_images
from .runs import METHOD, assert_same, base_weights, final


def read(file_name, dtype):
    """For SemSegEvaluator, whose own reader numpy 2 refuses."""
    return read_labels(file_name).astype(dtype)


def forget(name):
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def yaml(tmp_path):
    """A yaml of the tiny model with folders in DATASETS.FOLDERS; they are registered by nobody."""
    name = f"folders_{tmp_path.name}"
    register_tiny(name, tmp_path)  # writes the files
    forget(name)
    cfg = tiny_cfg(
        "DATASETS.FOLDERS", [[name, str(tmp_path / "images"), str(tmp_path / "labels")]],
        "DATASETS.CLASS_NAMES", TINY_CLASSES,
        "DATASETS.TRAIN", (name,),
        "DATASETS.TEST", (name,),
        "OUTPUT_DIR", str(tmp_path / "out"),
        "INPUT.MIN_SIZE_TRAIN", (40,),
        "SOLVER.MAX_ITER", 2,
        "SOLVER.REFERENCE_WORLD_SIZE", 0,
    )  # fmt: skip
    cfg.MODEL.SPARSE_REFINE.BASE.WEIGHTS = base_weights(cfg, tmp_path)
    file = tmp_path / "model.yaml"
    file.write_text(cfg.dump())
    (tmp_path / "out").mkdir()
    yield file
    forget(name)


def detectron2_cfg(yaml, *options):
    """As Detectron2's pages make one."""
    cfg = get_cfg()
    add_sparse_refine_config(cfg)
    cfg.merge_from_file(str(yaml))
    cfg.merge_from_list(list(options))
    cfg.freeze()
    return cfg


class StockTrainer(DefaultTrainer):
    """Detectron2's trainer with its own loader, mapper and evaluator."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return SemSegEvaluator(dataset_name, sem_seg_loading_fn=read)


# ---- Detectron2's own programs around the meta-architecture --------------------------------------


def test_the_stock_trainer(yaml, tmp_path, quiet_logs):
    cfg = detectron2_cfg(yaml)
    trainer = StockTrainer(cfg)
    before = {n: t.clone() for n, t in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    after = final(tmp_path / "out")
    base = [name for name in after if name.startswith("coarse.base.")]
    assert_same({n: before[n] for n in base}, {n: after[n] for n in base})
    name = "extractor.classifier.weight"
    assert not torch.equal(before[name], after[name])
    assert 0 <= trainer._last_eval_results["sem_seg"]["mIoU"] <= 100


def test_the_stock_trainer_says_that_a_base_has_no_weights(yaml, caplog, quiet_logs):
    with caplog.at_level(logging.WARNING):
        DefaultTrainer(detectron2_cfg(yaml, METHOD + "BASE.WEIGHTS", ""))
    assert "BASE.WEIGHTS and MODEL.WEIGHTS are both ''" in caplog.text
    assert "TinyBase has random weights" in caplog.text


def test_a_base_with_weights_is_not_complained_of(yaml, caplog, quiet_logs):
    with caplog.at_level(logging.WARNING):
        DefaultTrainer(detectron2_cfg(yaml))
    assert "random weights" not in caplog.text


def test_the_stock_mapper_in_this_projects_trainer(yaml, tmp_path):
    """Without "context": the base sees the crop, downsampled."""

    class Mine(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return build_detection_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))

    trainer = Mine(detectron2_cfg(yaml, "INPUT.MIN_SIZE_TRAIN", (48,)))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_the_stock_loader_and_evaluator(yaml):
    """The same numbers as this project's, which counts with other code."""
    cfg = detectron2_cfg(yaml)
    model = Trainer.build_model(cfg).eval()
    (name,) = cfg.DATASETS.TEST
    stock = inference_on_dataset(
        model,
        build_detection_test_loader(cfg, name),
        SemSegEvaluator(name, sem_seg_loading_fn=read),
    )
    ours = inference_on_dataset(model, build_test_loader(cfg, name), SparseRefineEvaluator(name))
    for metric in ("mIoU", "pACC", *(f"IoU-{each}" for each in TINY_CLASSES)):
        assert ours["sparse_refine"][metric] == pytest.approx(stock["sem_seg"][metric])


def test_the_stock_predictor_gives_the_same_labels(yaml, tmp_path):
    """Of 600 x 1800 pixels, which its own default would make 444 x 1333 first."""
    cfg = detectron2_cfg(yaml)
    model = Trainer.build_model(cfg)
    weights = str(tmp_path / "whole.pth")
    torch.save({"model": model.state_dict()}, weights)
    (image, _), *_ = tiny_images(1, (600, 1800))
    cfg = detectron2_cfg(yaml, "MODEL.WEIGHTS", weights)
    stock = DefaultPredictor(cfg)(image[..., ::-1])["sem_seg"].argmax(0)
    ours = SparseRefinePredictor(cfg)(image)["labels"]
    assert stock.shape == (600, 1800) and torch.equal(stock, ours)


# ---- subclasses of this project's trainer --------------------------------------------------------


class Counted(DatasetEvaluator):
    """An evaluator of one's own."""

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(inputs)

    def evaluate(self):
        return {"mine": {"images": float(self.images)}}


def test_a_subclass_with_its_own_evaluator_and_loaders(yaml, tmp_path):
    """On data that this project's evaluators would refuse."""
    asked = []

    class Mine(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return Counted()

        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            asked.append(dataset_name)
            return list(build_test_loader(cfg, cfg.DATASETS.FOLDERS[0][0]))[:2]

        @classmethod
        def build_train_loader(cls, cfg):
            return iter(build_train_loader(cfg))

    (name,) = detectron2_cfg(yaml).DATASETS.TEST
    best = ["SOLVER.BEST_CHECKPOINT_METRIC", "mine/images", "TEST.EVAL_PERIOD", 1]
    cfg = detectron2_cfg(yaml, "DATASETS.TEST", ("somewhere_else",), *best)
    trainer = Mine(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert asked == ["somewhere_else"] * 2 and name != "somewhere_else"
    assert trainer._last_eval_results == {"mine": {"images": 2.0}}
    assert (tmp_path / "out" / "model_best.pth").is_file()


def test_evaluators_by_hand(yaml):
    cfg = detectron2_cfg(yaml)
    model = Trainer.build_model(cfg).eval()
    for given in ([Counted()], Counted()):
        assert Trainer.test(cfg, model, given) == {"mine": {"images": 5.0}}
        assert Trainer.test(cfg, model, evaluators=given) == {"mine": {"images": 5.0}}
    with pytest.raises(ValueError, match=r"2 evaluators for 1 sets of DATASETS\.TEST"):
        Trainer.test(cfg, model, evaluators=[Counted(), Counted()])


def test_folders_of_the_config_that_trains(yaml, tmp_path):
    """A second config of the process has given the name to other folders meanwhile."""
    cfg = detectron2_cfg(
        yaml, "MODEL.META_ARCHITECTURE", "TinyBase", "INPUT.MIN_SIZE_TRAIN", (800,)
    )
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = get_cfg().INPUT.MIN_SIZE_TRAIN
    other = cfg.clone()
    for kind in ("images", "labels"):
        (tmp_path / "other" / kind).mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "other" / "images" / "z.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "other" / "labels" / "z.png")
    name = cfg.DATASETS.FOLDERS[0][0]
    other.DATASETS.FOLDERS = [
        [name, *(str(tmp_path / "other" / kind) for kind in ("images", "labels"))]
    ]
    Trainer(cfg)
    Trainer(other)
    assert len(DatasetCatalog.get(name)) == 1
    assert len(Trainer(cfg)._trainer.data_loader.dataset) == 5
    assert Trainer.test(cfg, Trainer.build_model(cfg).eval(), Counted())["mine"]["images"] == 5
