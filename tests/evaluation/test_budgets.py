# SPDX-License-Identifier: Apache-2.0
"""Several budgets in one go give what each gives by itself, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from sparse_refine.data import read_labels
from sparse_refine.data.loader import build_test_loader
from sparse_refine.evaluation import SparseRefineEvaluator
from sparse_refine.evaluation.budgets import BudgetSweep, one_coarse_pass, selecting
from sparse_refine.evaluation.metrics import remap_ignored
from sparse_refine.selector import BudgetSelector

FRACTIONS = (0.1, 0.4)


@pytest.fixture
def model(make_cfg):
    return build_model(make_cfg("MODEL.SPARSE_REFINE.OUTPUT", "labels")).eval()


def image(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [{"image": torch.randint(0, 256, (3, 40, 56), generator=generator, dtype=torch.uint8)}]


@torch.no_grad()
def test_one_coarse_pass_serves_all(model):
    expected = []
    for fraction in FRACTIONS:
        with selecting(model, BudgetSelector(fraction=fraction)):
            expected.append(model(image())[0]["labels"])
    model.coarse.base.calls.clear()
    with one_coarse_pass(model):
        for fraction, labels in zip(FRACTIONS, expected):
            with selecting(model, BudgetSelector(fraction=fraction)):
                output = model(image())[0]
            assert torch.equal(output["labels"], labels)
            assert output["panoptic_seg"] == "of (20, 28)"  # other outputs of the base pass through
    assert len(model.coarse.base.calls) == 1
    model(image(1))
    assert len(model.coarse.base.calls) == 2


def fail(*_):
    raise RuntimeError("in the middle")


def test_the_model_is_left_as_it_was(model):
    selector = model.selector
    half = BudgetSelector(fraction=0.5)
    half.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        with one_coarse_pass(model), selecting(model, half):
            assert model.selector is half
            model([{"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}])
    assert model.selector is selector and "forward" not in vars(model.coarse)


@torch.no_grad()
def test_sweep_is_what_the_evaluator_says(model, make_cfg, tiny_dataset):
    name = tiny_dataset(count=2)
    sweep = BudgetSweep(model, 3, FRACTIONS, boundary_distance=2)
    for inputs in build_test_loader(make_cfg(), name):
        truth = remap_ignored(read_labels(inputs[0]["sem_seg_file_name"]), 3, 255)
        sweep.add(inputs, truth)
    for row, fraction in zip(sweep.results(), FRACTIONS):
        evaluator = SparseRefineEvaluator(name, boundary_distance=2, distributed=False)
        evaluator.reset()
        with selecting(model, BudgetSelector(fraction=fraction)):
            for inputs in build_test_loader(make_cfg(), name):
                evaluator.process(inputs, model(inputs))
        results = evaluator.evaluate()["sparse_refine"]
        assert row["fraction"] == fraction
        for key in ("mIoU", "pACC", "BoundaryIoU"):
            assert row[key] == pytest.approx(results[key])


@torch.no_grad()
def test_what_is_known_is_not_predicted_again(model):
    sweep = BudgetSweep(model, 3, [0.1], boundary_distance=2)
    truth = torch.randint(0, 3, (40, 56)).numpy().astype("uint8")
    sweep.add(image(), truth, {0.1: truth, None: None})
    assert model.coarse.base.calls == []
    assert sweep.results()[0]["mIoU"] == 100
