# SPDX-License-Identifier: Apache-2.0
"""What Detectron2's own tests ask of a trainer, of this one: its model, the order of its hooks,
writers, evaluation, the best checkpoint, and what a resume brings back."""

import json
import math

import pytest
import torch
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import EventWriter
from torch import nn

from sparse_refine.training.hooks import BestCheckpointer, SelectionPrinter
from sparse_refine.training.trainer import Trainer

METRICS = iter(())


@META_ARCH_REGISTRY.register()
class OneNumber(nn.Module):
    """The least that can be trained."""

    def __init__(self, cfg):
        super().__init__()
        self.number = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return {"loss": self.number * len(inputs)}


class Quick(Trainer):
    """Without files, and with an evaluation that gives METRICS."""

    @classmethod
    def build_train_loader(cls, cfg):
        return iter([[{}]] * 1000)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"metric": next(METRICS, 100.0)}


@pytest.fixture
def trainer_of(make_cfg, tmp_path, quiet_logs):
    def make(*options, kind=Quick):
        cfg = make_cfg(
            "MODEL.META_ARCHITECTURE", "OneNumber",
            "OUTPUT_DIR", str(tmp_path),
            "SOLVER.OPTIMIZER", "SGD",
            "SOLVER.BEST_CHECKPOINT_METRIC", "",
            *options,
        )  # fmt: skip
        return kind(cfg)

    return make


class Recorded(HookBase):
    def __init__(self, calls, name=""):
        self.calls, self.name = calls, name

    def __getattribute__(self, name):
        if name in ("before_train", "after_train", "before_step", "after_step", "after_backward"):
            return lambda: self.calls.append(self.name + name)
        return super().__getattribute__(name)


def test_the_model_can_be_set(trainer_of):
    trainer = trainer_of()
    assert isinstance(trainer, DefaultTrainer)
    assert trainer.model is trainer._trainer.model
    trainer.model = other = OneNumber(None)
    assert trainer.model is other and trainer._trainer.model is other


def test_the_order_of_hooks(trainer_of):
    """Checkpoint, then evaluation, which may fail; then the best checkpoint; writers last."""
    trainer = trainer_of("TEST.EVAL_PERIOD", 5, "SOLVER.BEST_CHECKPOINT_METRIC", "metric")
    kinds = [type(hook) for hook in trainer._hooks]
    order = [hooks.PeriodicCheckpointer, hooks.EvalHook, BestCheckpointer, hooks.PeriodicWriter]
    assert kinds == [hooks.IterationTimer, hooks.LRScheduler, *order]


def test_hooks_of_ones_own_are_called_in_order(trainer_of):
    trainer, calls = trainer_of("SOLVER.MAX_ITER", 2), []
    trainer.register_hooks([Recorded(calls, "1 "), None, Recorded(calls, "2 ")])
    trainer.train()
    step = ["before_step", "after_backward", "after_step"]
    wanted = ["before_train", *step, *step, "after_train"]
    if calls.count("1 after_backward") == 0:  # Detectron2 before 0.6
        wanted = [name for name in wanted if name != "after_backward"]
    assert calls == [f"{hook} {name}" for name in wanted for hook in (1, 2)]


@pytest.mark.parametrize("iterations, period, count", [(30, 15, 2), (31, 15, 3), (20, 0, 1)])
def test_how_often_it_evaluates(trainer_of, monkeypatch, iterations, period, count):
    times = []
    monkeypatch.setattr(Quick, "test", classmethod(lambda *args: times.append(1) or {"metric": 1}))
    trainer_of("SOLVER.MAX_ITER", iterations, "TEST.EVAL_PERIOD", period).train()
    assert len(times) == count


@pytest.mark.parametrize(
    "values, saved",
    [([0.3, 0.4, 0.35, 0.5], 3), ([math.nan, 0.8, 0.9, 0.9], 2), ([0.9, 0.8, 0.9, math.nan], 1)],
)
def test_the_best_checkpoint(trainer_of, monkeypatch, tmp_path, values, saved):
    monkeypatch.setitem(globals(), "METRICS", iter(values))
    best = ["SOLVER.BEST_CHECKPOINT_METRIC", "metric", "TEST.EVAL_PERIOD", 10]
    trainer = trainer_of("SOLVER.MAX_ITER", 40, "SOLVER.CHECKPOINT_PERIOD", 1000, *best)
    names, save = [], trainer.checkpointer.save
    monkeypatch.setattr(
        trainer.checkpointer,
        "save",
        lambda name, **given: names.append(name) or save(name, **given),
    )
    trainer.train()
    assert names.count("model_best") == saved
    assert torch.load(tmp_path / "model_best.pth")["best_metric"] == max(
        value for value in values if not math.isnan(value)
    )


def test_what_the_writers_write(trainer_of, tmp_path):
    trainer = trainer_of("SOLVER.MAX_ITER", 50)
    kinds = [type(writer).__name__ for writer in trainer.build_writers()]
    assert kinds == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter", "SelectionPrinter"]
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [19, 39, 49, 50]
    assert lines[-1]["metric"] == 100, "the evaluation's result is in the last line"


def test_writers_of_ones_own(trainer_of):
    class Kept(EventWriter):
        closed = 0

        def write(self):
            pass

        def close(self):
            Kept.closed += 1

    class Mine(Quick):
        def build_writers(self):
            return [Kept(), SelectionPrinter()]

    trainer_of("SOLVER.MAX_ITER", 3, kind=Mine).train()
    assert Kept.closed == 1


def test_an_exception_leaves_what_was_logged(trainer_of, tmp_path):
    """Hooks' after_train runs, the writers are flushed, and the error comes through."""

    class Fails(Quick):
        def run_step(self):
            if self.iter == 7:
                raise RuntimeError("out of memory")
            super().run_step()

    calls = []
    trainer = trainer_of("SOLVER.MAX_ITER", 30, kind=Fails)
    trainer.register_hooks([Recorded(calls)])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert calls[-1] == "after_train" and calls.count("after_step") == 7
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert "metric" not in lines[-1], "no evaluation after a failure"
    assert not (tmp_path / "model_final.pth").exists()


def test_a_loss_that_is_no_number_stops(trainer_of):
    trainer = trainer_of()
    trainer.model.number.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="infinite or NaN"):
        trainer.train()


def test_what_a_resume_brings_back(trainer_of):
    steps = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", (3, 6, 9)]
    options = ["SOLVER.CHECKPOINT_PERIOD", 10, "SOLVER.BASE_LR", 0.01, *steps]
    trainer = trainer_of("SOLVER.MAX_ITER", 12, *options)
    trainer.train()
    rate = trainer._trainer.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-5) and trainer.scheduler.last_epoch == 12
    number = trainer.model.number.item()

    again = trainer_of("SOLVER.MAX_ITER", 20, *options)
    again.resume_or_load(resume=True)
    assert again.iter == 11, "the last iteration that was finished"
    assert again.start_iter == 12 and again.scheduler.last_epoch == 12
    assert again._trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert again.model.number.item() == number
    again.train()
    assert again.scheduler.last_epoch == 20

    fresh = trainer_of("SOLVER.MAX_ITER", 12, *options)
    fresh.resume_or_load(resume=False)
    assert fresh.start_iter == 0 and fresh.model.number.item() == 1


def test_expected_results_are_verified(trainer_of, monkeypatch):
    """TEST.EXPECTED_RESULTS, as in Detectron2: train() gives the results, or ends the process."""
    monkeypatch.setattr(Quick, "test", classmethod(lambda *args: {"task": {"metric": 100.0}}))
    for value in (100.0, 50.0):
        wanted = [["task", "metric", value, 0.1]]
        trainer = trainer_of("SOLVER.MAX_ITER", 1, "TEST.EXPECTED_RESULTS", wanted)
        if value == 100.0:
            assert trainer.train() == {"task": {"metric": 100.0}}
        else:
            with pytest.raises(SystemExit):
                trainer.train()
