# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation that were stopped, or killed, and go on."""

import itertools

import pytest
import torch
from detectron2.utils import comm

from sparse_refine import SparseRefine
from sparse_refine.storage.weights import load_weights
from sparse_refine.training.trainer import Trainer

from ..marks import slow_except
from .runs import METHOD, assert_same, final, stop_at

KINDS = ["plain", "one worker", "cached base", "SGD and AMP"]


@pytest.mark.parametrize(
    "stop", slow_except([3, 4], 3), ids=["between checkpoints", "at a checkpoint"]
)
@pytest.mark.parametrize("kind", slow_except(KINDS, "plain"))
def test_a_resumed_run_is_an_unbroken_one(run, tmp_path, monkeypatch, kind, stop):
    options = {
        "plain": ["INPUT.COLOR_AUG_SSD", True],
        "one worker": ["DATALOADER.NUM_WORKERS", 1],
        "cached base": ["INPUT.RESIZE_RANGE", [1.0, 1.0], METHOD + "COARSE_CACHE"],
        "SGD and AMP": ["SOLVER.OPTIMIZER", "SGD", "SOLVER.AMP.ENABLED", True],
    }[kind]

    def of(folder):
        return [*options, str(tmp_path / folder / "cache")] if kind == "cached base" else options

    run("unbroken", *of("unbroken"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, stop)
        run("broken", *of("broken"))
    assert not (tmp_path / "broken" / "model_final.pth").exists()
    run("broken", *of("broken"), flags=["--resume"])
    assert_same(final(tmp_path / "unbroken"), final(tmp_path / "broken"))


@pytest.mark.parametrize("kind", slow_except(["dense", "refined"], "dense"))
def test_a_resumed_run_without_a_seed(run, tmp_path, monkeypatch, kind):
    """SEED -1 draws one, which is the checkpoint's: for the data as for dropout and its kin."""
    dense = ["MODEL.META_ARCHITECTURE", "TinyBase"] if kind == "dense" else []
    options = [*dense, "SEED", -1, "INPUT.COLOR_AUG_SSD", True, "MODEL.WEIGHTS"]
    run("weights", *dense, "SOLVER.MAX_ITER", 1)
    options.append(str(tmp_path / "weights" / "model_final.pth"))  # SEED draws those as well
    drawn = itertools.repeat(11)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: next(drawn))
    run("unbroken", *options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run("broken", *options)
    drawn = itertools.count(70)
    run("broken", *options, flags=["--resume"])
    assert next(drawn) > 70  # it did draw
    assert_same(final(tmp_path / "unbroken"), final(tmp_path / "broken"))


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 2)
    before = final(tmp_path / "a")
    run("a", "SOLVER.MAX_ITER", 2, flags=["--resume"])
    assert_same(before, final(tmp_path / "a"))


@pytest.mark.slow
def test_resume_without_a_checkpoint_starts_from_the_weights(run, tmp_path):
    run("a", "SOLVER.MAX_ITER", 2)
    options = ["MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth"), "SOLVER.MAX_ITER", 2]
    run("b", *options)
    run("c", *options, flags=["--resume"])
    assert_same(final(tmp_path / "b"), final(tmp_path / "c"))
    assert not torch.equal(
        final(tmp_path / "a")["extractor.classifier.bias"],
        final(tmp_path / "c")["extractor.classifier.bias"],
    )


@pytest.mark.slow
def test_the_best_checkpoint_survives_a_resume(run, tmp_path, monkeypatch):
    """The evaluation that found it came after the checkpoint that the run resumes from."""
    values = iter([50.0, 40.0, 45.0])

    def evaluate(cls, cfg, model, resume=False):
        return {"sparse_refine": {"mIoU": next(values)}}

    monkeypatch.setattr(Trainer, "test", classmethod(evaluate))
    options = ["TEST.EVAL_PERIOD", 2]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)
        run("a", *options)
    best = load_weights(str(tmp_path / "a" / "model_best.pth"))["model"]
    assert_same(best, load_weights(str(tmp_path / "a" / "model_0000001.pth"))["model"])
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_0000001.pth"
    run("a", *options, flags=["--resume"])
    assert next(values, None) is None
    assert_same(best, load_weights(str(tmp_path / "a" / "model_best.pth"))["model"])
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(run, tmp_path, monkeypatch):
    run("a", "SOLVER.MAX_ITER", 1)
    options = ["MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth")]
    expected = run("a", *options, flags=["--eval-only"])["sparse_refine"]
    forward, seen = SparseRefine.forward, []

    def counted(self, inputs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(inputs[0]["file_name"])
        return forward(self, inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SparseRefine, "forward", counted)
        run("b", *options, flags=["--eval-only"])
    first = list(seen)
    for rest in (2, 0):  # and once more with nothing left to do
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(SparseRefine, "forward", counted)
            results = run("b", *options, flags=["--eval-only", "--resume"])["sparse_refine"]
        assert len(seen) == rest and not set(seen) & set(first)
        for name in ("mIoU", "coarse/BoundaryIoU", "selected_fraction"):
            assert results[name] == pytest.approx(expected[name])
    with pytest.raises(ValueError, match="other weights"):
        run("b", *options, METHOD + "SELECTOR.THRESHOLD", 0.5, flags=["--eval-only", "--resume"])
