# SPDX-License-Identifier: Apache-2.0
"""Keys of SOLVER, and output folders, with which a training would end in words that name no key, or
go the wrong way: refused before the first iteration."""

import pytest
import torch
from detectron2.solver import build_lr_scheduler

from sparse_refine.training import schedule
from sparse_refine.training.trainer import Trainer

from .runs import final

CLIP = ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS."]
DENSE = ["MODEL.META_ARCHITECTURE", "TinyBase", "SOLVER.MAX_ITER", 2]


@pytest.mark.parametrize(
    "options, message",
    [
        (["SOLVER.BASE_LR", 0.0], r"SOLVER\.BASE_LR is 0: it must be above 0"),
        (["SOLVER.BASE_LR", -1.0], r"SOLVER\.BASE_LR is -1: it must be above 0"),
        (["SOLVER.WEIGHT_DECAY", -1.0], r"SOLVER\.WEIGHT_DECAY is -1: .* at least 0"),
        (["SOLVER.BACKBONE_MULTIPLIER", -1.0], r"SOLVER\.BACKBONE_MULTIPLIER is -1"),
        ([*CLIP[:2], CLIP[2] + "CLIP_TYPE", "full_model"], r"CLIP_TYPE is 'full_model': one of"),
        ([*CLIP[:2], CLIP[2] + "CLIP_VALUE", -1.0], r"CLIP_GRADIENTS\.CLIP_VALUE is -1: .* above"),
        (["SOLVER.CHECKPOINT_PERIOD", 0], r"SOLVER\.CHECKPOINT_PERIOD is 0: at least 1"),
        (["SOLVER.CHECKPOINT_PERIOD", -1], r"SOLVER\.CHECKPOINT_PERIOD is -1: at least 1"),
        (["DATALOADER.NUM_WORKERS", -1], r"DATALOADER\.NUM_WORKERS is -1: at least 0"),
        (["OUTPUT_DIR", ""], r"OUTPUT_DIR is '': a folder of this machine"),
        (["OUTPUT_DIR", "s3://bucket/run"], r"OUTPUT_DIR is 's3://bucket/run': a folder of this"),
    ],
)
def test_values_that_fail_later(make_cfg, tiny_dataset, options, message):
    name = tiny_dataset()
    cfg = make_cfg(*DENSE, "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), *options)
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)


def test_zero_where_it_means_off(run, tmp_path):
    zeros = ["SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.BACKBONE_MULTIPLIER", 0.0, *CLIP[:2]]
    run("a", *DENSE, *zeros)
    assert (tmp_path / "a" / "model_final.pth").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["LR_SCHEDULER_NAME", "Cosine"], r"LR_SCHEDULER_NAME is 'Cosine': one of WarmupMulti"),
        (["LR_SCHEDULER_NAME", "WarmupPolyLR"], r"'WarmupPolyLR': .*a build_lr_scheduler of a sub"),
        (["WARMUP_METHOD", "cosine"], r"WARMUP_METHOD cosine .*Unknown warmup method"),
        (["BASE_LR_END", 1.0], r"WarmupCosineLR makes no schedule .*BASE_LR 0\.01, BASE_LR_END 1"),
        (
            ["LR_SCHEDULER_NAME", "WarmupMultiStepLR", "STEPS", (4, 2)],
            r"WarmupMultiStepLR makes no schedule .*STEPS \(4, 2\), GAMMA",
        ),
    ],
)
def test_keys_of_which_there_is_no_schedule(make_cfg, options, message):
    options = [f"SOLVER.{each}" if index % 2 == 0 else each for index, each in enumerate(options)]
    with pytest.raises(ValueError, match=f"SOLVER.*{message}"):
        schedule.build_lr_scheduler(make_cfg(*options), adam())


def test_a_schedule_is_detectron2s(make_cfg):
    cfg = make_cfg("SOLVER.WARMUP_ITERS", 2)
    rates = []
    for build in (schedule.build_lr_scheduler, build_lr_scheduler):
        optimizer = adam()
        made = build(cfg, optimizer)
        rates.append([])
        for _ in range(cfg.SOLVER.MAX_ITER):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            made.step()
    assert rates[0] == rates[1] and len(set(rates[0])) > 3


def adam() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)


def test_a_trainer_says_the_schedules_keys(run):
    with pytest.raises(ValueError, match=r"SOLVER\.LR_SCHEDULER_NAME is 'Cosine'"):
        run("a", *DENSE, "SOLVER.LR_SCHEDULER_NAME", "Cosine")


@pytest.mark.parametrize("first, then", [("ADAMW", "SGD"), ("SGD", "ADAMW")])
def test_another_optimizer_on_resume(run, tmp_path, first, then):
    """Its state is the other's: torch would say "KeyError: 'momentum'", or 'step'."""
    run("a", *DENSE, "SOLVER.OPTIMIZER", first)
    before = final(tmp_path / "a")
    more = ["SOLVER.MAX_ITER", 4, "SOLVER.OPTIMIZER", then]
    message = rf"OPTIMIZER is '{then}', .*resume .*'{first}'.*begin anew"
    with pytest.raises(ValueError, match=message):
        run("a", *DENSE, *more, flags=["--resume"])
    anew = [*more, "MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth")]
    run("b", *DENSE, *anew)
    assert before.keys() == final(tmp_path / "b").keys()


def test_a_training_that_selects_nothing(run, tmp_path):
    """Its losses are 0, as if all had been learnt: said in the log."""
    nothing = ["MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD", 5.0, "SOLVER.MAX_ITER", 2]
    run("a", *nothing)
    assert (tmp_path / "a" / "log.txt").read_text().count("no pixel was selected") == 1
    run("b", "SOLVER.MAX_ITER", 2)
    assert "no pixel was selected" not in (tmp_path / "b" / "log.txt").read_text()


def test_a_cache_that_is_no_folder(make_cfg, tiny_dataset, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ["MODEL.SPARSE_REFINE.COARSE_CACHE", str(tmp_path / "file")]
    name = tiny_dataset()
    cfg = make_cfg("DATASETS.TRAIN", (name,), *cache, "OUTPUT_DIR", str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"COARSE_CACHE is .*file is a file: choose another"):
        Trainer(cfg)
