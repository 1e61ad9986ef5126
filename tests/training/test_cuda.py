# SPDX-License-Identifier: Apache-2.0
"""Training on a CUDA device in mixed precision. Skipped where there is none."""

import itertools

import pytest
import torch

from sparse_refine import SparseRefine
from sparse_refine.inference.loading import load_model
from sparse_refine.storage.weights import save_weights
from sparse_refine.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

METHOD = "MODEL.SPARSE_REFINE."
SELECT = METHOD + "SELECTOR.THRESHOLD"


@pytest.fixture(autouse=True)
def _exact():
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def training_cfg(tiny_dataset, make_cfg, tmp_path, quiet_logs):
    """cfg(folder, *options): a run on the GPU in mixed precision, with a base of given weights."""
    name = tiny_dataset()
    weights = str(tmp_path / "base.safetensors")
    save_weights(SparseRefine(make_cfg()).coarse.base.state_dict(), weights)

    def make(folder, *options):
        (tmp_path / folder).mkdir()
        return make_cfg(
            *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)),
            *("OUTPUT_DIR", str(tmp_path / folder), METHOD + "BASE.WEIGHTS", weights),
            *("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, SELECT, 0.5),
            *options,
        )

    return make


def train(cfg, resume=False):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()


@pytest.mark.parametrize("options", [(), ("MODEL.CHANNELS_LAST", True)], ids=["", "channels_last"])
def test_training_and_evaluation(training_cfg, tmp_path, options):
    cfg = training_cfg("run", "TEST.EVAL_PERIOD", 3, *options)
    train(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    on_gpu = Trainer.test(cfg, load_model(cfg))["sparse_refine"]
    cfg.MODEL.DEVICE = "cpu"  # a checkpoint of one device is one of the other
    on_cpu = Trainer.test(cfg, load_model(cfg))["sparse_refine"]
    for name in ("mIoU", "coarse/mIoU", "BoundaryIoU", "selected_fraction"):
        assert on_gpu[name] == pytest.approx(on_cpu[name], rel=0.01)


def test_a_resumed_run_ends_as_an_unbroken_one(training_cfg, tmp_path):
    train(training_cfg("whole"))
    cfg = training_cfg("broken", "SOLVER.CHECKPOINT_PERIOD", 1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        step = Trainer.run_step
        count = itertools.count()

        def run_step(self):
            if next(count) == 3:
                raise KeyboardInterrupt
            step(self)

        patch.setattr(Trainer, "run_step", run_step)
        train(cfg)
    train(cfg, resume=True)
    whole, broken = (
        torch.load(tmp_path / folder / "model_final.pth", map_location="cpu", weights_only=True)
        for folder in ("whole", "broken")
    )
    different = [k for k, v in whole["model"].items() if not torch.equal(v, broken["model"][k])]
    assert not different


def test_cached_coarse_logits(training_cfg, tmp_path):
    options = ["INPUT.RESIZE_RANGE", [1.0, 1.0], METHOD + "COARSE_CACHE", str(tmp_path / "cache")]
    options += ["SOLVER.IMS_PER_BATCH", 5]
    train(training_cfg("first", *options))
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    train(training_cfg("second", *options))
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == files and len(files) == 5
    assert [file.stat().st_mtime_ns for file in files] == before
