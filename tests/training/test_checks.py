# SPDX-License-Identifier: Apache-2.0
"""What training refuses before it starts."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from sparse_refine.evaluation.checks import check_datasets
from sparse_refine.training.trainer import Trainer

from .runs import METHOD


@pytest.mark.slow
def test_random_weights_are_refused(run, tmp_path):
    """Where nobody gave the frozen base weights, and where nothing is there to evaluate."""
    run("dense", "MODEL.META_ARCHITECTURE", "TinyBase", "SOLVER.MAX_ITER", 1)
    dense = str(tmp_path / "dense" / "model_final.pth")
    with pytest.raises(ValueError, match=r"none of its tensors.*BASE\.WEIGHTS"):
        run("a", "MODEL.WEIGHTS", dense)
    run("b", "SOLVER.MAX_ITER", 1)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is ''"):
        run("b", METHOD + "BASE.WEIGHTS", dense, flags=["--eval-only"])


def test_a_base_without_weights_is_refused(tiny_dataset, make_cfg, tmp_path):
    name = tiny_dataset()
    cfg = make_cfg("DATASETS.TRAIN", (name,), "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"BASE\.WEIGHTS and MODEL\.WEIGHTS are both ''"):
        Trainer(cfg).resume_or_load(resume=True)


def test_data_sets_that_do_not_fit(make_cfg, tiny_dataset):
    name = tiny_dataset()
    check_datasets(make_cfg("DATASETS.TRAIN", (name,)))
    with pytest.raises(ValueError, match=rf"{name}.* has 3 classes but .*NUM_CLASSES is 7"):
        check_datasets(make_cfg("DATASETS.TEST", (name,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7))
    with pytest.raises(ValueError, match=rf"{name}.* ignores label 255 but .*IGNORE_VALUE is 0"):
        check_datasets(make_cfg("DATASETS.TRAIN", (name,), "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0))
    with pytest.raises(KeyError, match="'nowhere' is not registered.*synthetic_field_train"):
        check_datasets(make_cfg("DATASETS.TRAIN", ("nowhere",)))


def test_a_test_set_that_cannot_be_evaluated_stops_before_the_training(run, tmp_path, make_cfg):
    name = f"{tmp_path.name}_boxes"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        stuff_classes=["soil", "crop", "weed"], ignore_label=255, evaluator_type="coco"
    )
    try:
        with pytest.raises(ValueError, match=rf"{name}.*evaluator_type 'coco'"):
            run("a", "DATASETS.TEST", (name,))
        assert not (tmp_path / "a" / "model_final.pth").exists()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_an_impossible_boundary_stops_before_the_training(run, tmp_path):
    with pytest.raises(ValueError, match="TEST.BOUNDARY_DISTANCE is 0"):
        run("a", "TEST.BOUNDARY_DISTANCE", 0)
    assert not (tmp_path / "a" / "model_final.pth").exists()


def test_weights_that_are_not_there(run, tmp_path):
    for flags in ([], ["--eval-only"]):
        with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS.*none\.pth"):
            run("a", "MODEL.WEIGHTS", str(tmp_path / "none.pth"), flags=flags)
