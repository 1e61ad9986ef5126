# SPDX-License-Identifier: Apache-2.0
"""The checkpoint of the best evaluation, over a resume too."""

from pathlib import Path
from types import SimpleNamespace

from detectron2.utils.events import EventStorage
from torch import nn

from sparse_refine.storage.checkpointer import SafeCheckpointer
from sparse_refine.storage.weights import load_weights
from sparse_refine.training.hooks import BestCheckpointer

from ..storage.states import linear


def evaluations(folder, start_iter, *values):
    """Train with an evaluation in each tenth iteration that gives these values; the best's bias."""
    model = linear()
    hook = BestCheckpointer(10, SafeCheckpointer(model, str(folder)), "mIoU")
    hook.trainer = SimpleNamespace(iter=start_iter, start_iter=start_iter, max_iter=1000)
    with EventStorage(start_iter) as hook.trainer.storage:
        hook.before_train()
        for value in values:
            hook.trainer.iter = (hook.trainer.iter + 1) // 10 * 10 + 9
            hook.trainer.storage.iter = hook.trainer.iter
            hook.trainer.storage.put_scalar("mIoU", value)
            nn.init.constant_(model.bias, value)
            hook.after_step()
    return load_weights(str(Path(folder, "model_best.pth")))["model"]["bias"][0].item()


def test_the_best_checkpoint(tmp_path):
    assert evaluations(tmp_path, 0, 50.0, 40.0) == 50
    assert evaluations(tmp_path, 0, float("nan"), 30.0, 60.0, 60.0, 55.0) == 60
    assert not (tmp_path / "last_checkpoint").exists()


def test_the_best_checkpoint_after_a_resume(tmp_path):
    """The memory is in the file: the run resumes from a checkpoint older than the evaluation."""
    evaluations(tmp_path, 0, 50.0)
    assert evaluations(tmp_path, 10, 45.0) == 50
    assert evaluations(tmp_path, 20, 45.0, 51.0, 50.5) == 51
    assert evaluations(tmp_path, 5, 20.0) == 51
    # and a run that starts anew begins anew
    assert evaluations(tmp_path, 0, 20.0) == 20


def test_the_best_of_a_metric_that_is_not_there(tmp_path, caplog):
    hook = BestCheckpointer(10, SafeCheckpointer(linear(), str(tmp_path)), "mIou")
    hook.trainer = SimpleNamespace(iter=9, start_iter=0, max_iter=1000)
    with EventStorage(9) as hook.trainer.storage:
        hook.after_step()
    assert "mIou does not seem to be computed" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()
